"""Expert caching: which experts of mixture-of-experts models each edge server keeps."""

from edgeopt.problems.expert_caching.exported import ExpertTensors as ExpertTensors
from edgeopt.problems.expert_caching.exported import LayerTensors as LayerTensors
from edgeopt.problems.expert_caching.exported import keep_list as keep_list
from edgeopt.problems.expert_caching.exported import placement_document as placement_document
from edgeopt.problems.expert_caching.exported import read_placement as read_placement
from edgeopt.problems.expert_caching.exported import tensor_list as tensor_list
from edgeopt.problems.expert_caching.moe_models import MOE_MODELS as MOE_MODELS
from edgeopt.problems.expert_caching.moe_models import MoEModel as MoEModel
from edgeopt.problems.expert_caching.moe_models import moe_model as moe_model
from edgeopt.problems.expert_caching.placement import Placement as Placement
from edgeopt.problems.expert_caching.problem import CacheReport as CacheReport
from edgeopt.problems.expert_caching.problem import ExpertCaching as ExpertCaching
from edgeopt.problems.expert_caching.recorded import ROUTING_FORMATS as ROUTING_FORMATS
from edgeopt.problems.expert_caching.routed_model import RoutedModel as RoutedModel
from edgeopt.problems.expert_caching.routing_trace import BUNDLED_TRACES as BUNDLED_TRACES
from edgeopt.problems.expert_caching.routing_trace import RoutingTrace as RoutingTrace
from edgeopt.problems.expert_caching.routing_trace import bundled_trace as bundled_trace
