"""Split training: batch sizes and cut layers of devices that train one model with an edge server."""

from edgeopt.problems.split_training.factors import CostFactors as CostFactors
from edgeopt.problems.split_training.plan import SplitPlan as SplitPlan
from edgeopt.problems.split_training.problem import SplitTraining as SplitTraining
from edgeopt.problems.split_training.report import SplitReport as SplitReport
