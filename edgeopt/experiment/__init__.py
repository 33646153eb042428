"""A whole training run in plain values: written down, read from a TOML file, built, run.

It joins training with problems and solvers. So it is no part of `edgeopt.training`, which knows no solvers: like the
command line it stands above all packages, and imports them when it builds.
"""

from edgeopt.experiment.config import Choice as Choice
from edgeopt.experiment.config import DataChoice as DataChoice
from edgeopt.experiment.config import NetworkChoice as NetworkChoice
from edgeopt.experiment.experiment import Experiment as Experiment
