"""Optimisation and scheduling of AI at the wireless edge.

The packages load on first use, so that ``import edgeopt`` stays light; each says which extra it lacks, if any.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edgeopt.errors import AuthenticationError as AuthenticationError
from edgeopt.errors import EdgeOptError as EdgeOptError
from edgeopt.errors import InvalidFileError as InvalidFileError
from edgeopt.errors import InvalidProblemError as InvalidProblemError
from edgeopt.errors import MissingDependencyError as MissingDependencyError
from edgeopt.errors import NoSolutionError as NoSolutionError
from edgeopt.errors import SolverError as SolverError
from edgeopt.errors import UnsupportedProblemError as UnsupportedProblemError
from edgeopt.installed import versions as versions
from edgeopt.problem import Problem as Problem
from edgeopt.problem import Violation as Violation
from edgeopt.progress import Callback as Callback
from edgeopt.progress import ProgressLine as ProgressLine
from edgeopt.result import Exact as Exact
from edgeopt.result import Heuristic as Heuristic
from edgeopt.result import Ratio as Ratio
from edgeopt.result import Result as Result
from edgeopt.result import Status as Status
from edgeopt.solve import Run as Run
from edgeopt.solve import SolveOptions as SolveOptions
from edgeopt.solve import Solver as Solver
from edgeopt.solve import solve as solve
from edgeopt.stop import AnyOf as AnyOf
from edgeopt.stop import Limit as Limit
from edgeopt.stop import MaxIterations as MaxIterations
from edgeopt.stop import MaxTime as MaxTime
from edgeopt.stop import NoImprovement as NoImprovement
from edgeopt.stop import Progress as Progress
from edgeopt.stop import StopCriterion as StopCriterion
from edgeopt.stop import TargetGap as TargetGap

if TYPE_CHECKING:
    from edgeopt import coding as coding
    from edgeopt import data as data
    from edgeopt import evaluation as evaluation
    from edgeopt import experiment as experiment
    from edgeopt import fusion as fusion
    from edgeopt import inference as inference
    from edgeopt import models as models
    from edgeopt import privacy as privacy
    from edgeopt import problems as problems
    from edgeopt import rl as rl
    from edgeopt import solvers as solvers
    from edgeopt import training as training
    from edgeopt.network import EdgeNetwork as EdgeNetwork
    from edgeopt.problems import load as load
    from edgeopt.profile import ModelProfile as ModelProfile
    from edgeopt.profile import model_profile as model_profile
    from edgeopt.schedule import AvailableOnly as AvailableOnly
    from edgeopt.schedule import ClientPlan as ClientPlan
    from edgeopt.schedule import Feedback as Feedback
    from edgeopt.schedule import LinkBudget as LinkBudget
    from edgeopt.schedule import Planner as Planner
    from edgeopt.schedule import RoundPlan as RoundPlan
    from edgeopt.schedule import Schedule as Schedule
    from edgeopt.schedule import StatefulPlanner as StatefulPlanner
    from edgeopt.schedule import StaticPlanner as StaticPlanner
    from edgeopt.series import TimeSeries as TimeSeries

_PACKAGES = (
    "coding",
    "data",
    "evaluation",
    "experiment",
    "fusion",
    "inference",
    "models",
    "privacy",
    "problems",
    "rl",
    "solvers",
    "training",
)
_LAZY = {name: (f"edgeopt.{name}", None) for name in _PACKAGES} | {
    "EdgeNetwork": ("edgeopt.network", "EdgeNetwork"),
    "load": ("edgeopt.problems", "load"),
    "ModelProfile": ("edgeopt.profile", "ModelProfile"),
    "model_profile": ("edgeopt.profile", "model_profile"),
    "AvailableOnly": ("edgeopt.schedule", "AvailableOnly"),
    "ClientPlan": ("edgeopt.schedule", "ClientPlan"),
    "Feedback": ("edgeopt.schedule", "Feedback"),
    "LinkBudget": ("edgeopt.schedule", "LinkBudget"),
    "Planner": ("edgeopt.schedule", "Planner"),
    "RoundPlan": ("edgeopt.schedule", "RoundPlan"),
    "Schedule": ("edgeopt.schedule", "Schedule"),
    "StatefulPlanner": ("edgeopt.schedule", "StatefulPlanner"),
    "StaticPlanner": ("edgeopt.schedule", "StaticPlanner"),
    "TimeSeries": ("edgeopt.series", "TimeSeries"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
