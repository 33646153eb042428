"""Problems: frozen data that knows its own objective and constraints, one package each."""

import os
from typing import Any

from edgeopt import storage
from edgeopt.fields import Fields, in_file
from edgeopt.problem import Problem
from edgeopt.problems.client_selection import ClientSelection as ClientSelection
from edgeopt.problems.client_selection import SelectionPlan as SelectionPlan
from edgeopt.problems.client_selection import SelectionReport as SelectionReport
from edgeopt.problems.expert_balancing import BalanceReport as BalanceReport
from edgeopt.problems.expert_balancing import ExpertBalancing as ExpertBalancing
from edgeopt.problems.expert_balancing import Replicas as Replicas
from edgeopt.problems.expert_caching import BUNDLED_TRACES as BUNDLED_TRACES
from edgeopt.problems.expert_caching import MOE_MODELS as MOE_MODELS
from edgeopt.problems.expert_caching import ROUTING_FORMATS as ROUTING_FORMATS
from edgeopt.problems.expert_caching import CacheReport as CacheReport
from edgeopt.problems.expert_caching import ExpertCaching as ExpertCaching
from edgeopt.problems.expert_caching import ExpertTensors as ExpertTensors
from edgeopt.problems.expert_caching import LayerTensors as LayerTensors
from edgeopt.problems.expert_caching import MoEModel as MoEModel
from edgeopt.problems.expert_caching import Placement as Placement
from edgeopt.problems.expert_caching import RoutedModel as RoutedModel
from edgeopt.problems.expert_caching import RoutingTrace as RoutingTrace
from edgeopt.problems.expert_caching import bundled_trace as bundled_trace
from edgeopt.problems.expert_caching import keep_list as keep_list
from edgeopt.problems.expert_caching import moe_model as moe_model
from edgeopt.problems.expert_caching import placement_document as placement_document
from edgeopt.problems.expert_caching import read_placement as read_placement
from edgeopt.problems.expert_caching import tensor_list as tensor_list
from edgeopt.problems.model_download import DownloadPlan as DownloadPlan
from edgeopt.problems.model_download import DownloadTimeline as DownloadTimeline
from edgeopt.problems.model_download import ModelDownload as ModelDownload
from edgeopt.problems.model_download import Refusal as Refusal
from edgeopt.problems.split_training import CostFactors as CostFactors
from edgeopt.problems.split_training import SplitPlan as SplitPlan
from edgeopt.problems.split_training import SplitReport as SplitReport
from edgeopt.problems.split_training import SplitTraining as SplitTraining

if __name__ != "edgeopt.problems":  # one module object only: the root folder is edgeopt.problems
    raise ImportError("import edgeopt.problems, not " + __name__)

PROBLEMS: tuple[type[Problem], ...] = (ExpertCaching, ModelDownload, SplitTraining, ClientSelection, ExpertBalancing)


def load(path: str | os.PathLike[str]) -> Problem:
    """Read a problem that `Problem.save` wrote.

    Parameters
    ----------
    path : a ``.json`` or ``.npz`` file.

    Raises
    ------
    InvalidFileError
        If the file cannot be read or is of an unknown kind or version; the message starts with the path.
    InvalidProblemError
        If what it holds is not a valid problem.
    """
    values, arrays = storage.load(path, lambda header: _kind_of(header).layout(header))
    with in_file(path):
        return _kind_of(values).from_data(values, arrays)


def _kind_of(values: dict[str, Any]) -> type[Problem]:
    """Return the class of the problem whose plain values a file has."""
    kinds = {problem.kind: problem for problem in PROBLEMS}
    given = Fields(values)
    kind = kinds[given.choice("kind", kinds)]
    given.expect("schema_version", kind.schema_version)
    return kind
