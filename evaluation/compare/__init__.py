"""Comparing solvers: runs in worker processes, one row for each, kept on disk the moment it is made."""

from edgeopt.evaluation.compare.run import compare as compare
from edgeopt.evaluation.compare.run import comparison_rows as comparison_rows
from edgeopt.evaluation.compare.run import name_instances as name_instances
from edgeopt.evaluation.compare.run import solver_label as solver_label
