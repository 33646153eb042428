"""The four experiments that join decisions and training, each one command: ``python -m edgeopt.evaluation.studies.NAME``."""
