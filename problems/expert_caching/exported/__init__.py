"""Placements as others take them: ids of experts by server and layer, keep-lists, and names of tensors in files of models."""

from edgeopt.problems.expert_caching.exported.expert_tensors import ExpertTensors as ExpertTensors
from edgeopt.problems.expert_caching.exported.expert_tensors import LayerTensors as LayerTensors
from edgeopt.problems.expert_caching.exported.placement_files import keep_list as keep_list
from edgeopt.problems.expert_caching.exported.placement_files import placement_document as placement_document
from edgeopt.problems.expert_caching.exported.placement_files import read_placement as read_placement
from edgeopt.problems.expert_caching.exported.placement_files import tensor_list as tensor_list
