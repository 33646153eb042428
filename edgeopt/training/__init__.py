"""The torch side: models with named cut points, learning algorithms, and the loop that trains under a planner's decisions.

Needs the extra ``train``.
"""

from edgeopt.extras import needs

with needs("edgeopt.training", "train"):
    from edgeopt.data import ArrayData as ArrayData
    from edgeopt.data import DataSplit as DataSplit
    from edgeopt.data import load_data as load_data
    from edgeopt.data.partition import Partition as Partition
    from edgeopt.training.algorithm import Algorithm as Algorithm
    from edgeopt.training.algorithm import Models as Models
    from edgeopt.training.algorithm import Outcome as Outcome
    from edgeopt.training.algorithm import PredictingAlgorithm as PredictingAlgorithm
    from edgeopt.training.algorithm import SplitAlgorithm as SplitAlgorithm
    from edgeopt.training.constants import GradientEstimator as GradientEstimator
    from edgeopt.training.costs.ledger import Ledger as Ledger
    from edgeopt.training.costs.memory import ExpertBudget as ExpertBudget
    from edgeopt.training.costs.memory import MemoryBudget as MemoryBudget
    from edgeopt.training.costs.memory import client_peak_bytes as client_peak_bytes
    from edgeopt.training.costs.selection_timing import SelectionTiming as SelectionTiming
    from edgeopt.training.costs.timing import EdgeTiming as EdgeTiming
    from edgeopt.training.history import History as History
    from edgeopt.training.history import RoundRecord as RoundRecord
    from edgeopt.training.leakage import Leak as Leak
    from edgeopt.training.leakage import Leakage as Leakage
    from edgeopt.training.leakage import leakage as leakage
    from edgeopt.training.loop import train as train
    from edgeopt.training.messages import Batches as Batches
    from edgeopt.training.messages import Message as Message
    from edgeopt.training.messages import Phase as Phase
    from edgeopt.training.messages import Replies as Replies
    from edgeopt.training.messages import State as State
    from edgeopt.training.messages import Tensors as Tensors
    from edgeopt.training.messages import received as received
    from edgeopt.training.messages import reply as reply
    from edgeopt.training.optimizers import Adam as Adam
    from edgeopt.training.optimizers import Optimizer as Optimizer
    from edgeopt.training.optimizers import Sgd as Sgd
    from edgeopt.training.rules.average import average_of_parts as average_of_parts
    from edgeopt.training.rules.average import average_update as average_update
    from edgeopt.training.rules.average import masked_average as masked_average
    from edgeopt.training.rules.average import weighted_average as weighted_average
    from edgeopt.training.rules.common import Weighting as Weighting
    from edgeopt.training.rules.common import client_weight as client_weight
    from edgeopt.training.rules.common import tensors_of as tensors_of
    from edgeopt.training.rules.local import LocalLoss as LocalLoss
    from edgeopt.training.rules.local import minimise as minimise
    from edgeopt.training.rules.local import squared_distance as squared_distance
    from edgeopt.training.rules.optimizer_state import average_states as average_states
    from edgeopt.training.rules.optimizer_state import leaves_in as leaves_in
    from edgeopt.training.rules.optimizer_state import overlay as overlay
    from edgeopt.training.rules.whole_model import AverageOnArrival as AverageOnArrival
    from edgeopt.training.rules.whole_model import average_of_replies as average_of_replies
    from edgeopt.training.rules.whole_model import losses_of as losses_of
    from edgeopt.training.rules.whole_model import train_messages as train_messages
    from edgeopt.training.runners.local import LocalRunner as LocalRunner
    from edgeopt.training.split.exchange import Answer as Answer
    from edgeopt.training.split.exchange import Assignment as Assignment
    from edgeopt.training.split.exchange import Smashed as Smashed
    from edgeopt.training.split.exchange import assign as assign
    from edgeopt.training.split.exchange import play_steps as play_steps
    from edgeopt.training.split.exchange import split_client as split_client
    from edgeopt.training.split.head import head_step as head_step
    from edgeopt.training.split.placement import Placement as Placement
    from edgeopt.training.split.placement import average_layers as average_layers
    from edgeopt.training.split.placement import mean_of_clients as mean_of_clients
    from edgeopt.training.split.placement import move_layers as move_layers
    from edgeopt.training.split.server import ServerGradients as ServerGradients
    from edgeopt.training.split.server import SharedModel as SharedModel
    from edgeopt.training.split.server import map_cuts as map_cuts
    from edgeopt.training.split.server import server_gradients as server_gradients
    from edgeopt.training.split.server import server_step as server_step
    from edgeopt.training.task import Batch as Batch
    from edgeopt.training.task import Task as Task
    from edgeopt.training.trouble import TrainingError as TrainingError

    # isort: split
    # the algorithms come last: their files may import everything above from here, as those of users do
    from edgeopt.training.algorithms import ALGORITHMS as ALGORITHMS
    from edgeopt.training.algorithms.fedalign_moe import FedAlignMoe as FedAlignMoe
    from edgeopt.training.algorithms.fedavg import AveragedModel as AveragedModel
    from edgeopt.training.algorithms.fedavg import FedAvg as FedAvg
    from edgeopt.training.algorithms.fedprox import FedProx as FedProx
    from edgeopt.training.algorithms.flexp_sfl import FlexpSfl as FlexpSfl
    from edgeopt.training.algorithms.gapsl import Gapsl as Gapsl
    from edgeopt.training.algorithms.het_lora import HetLora as HetLora
    from edgeopt.training.algorithms.hfedmoe import HFedMoe as HFedMoe
    from edgeopt.training.algorithms.ho_sfl import HoSfl as HoSfl
    from edgeopt.training.algorithms.hsplit_lora import HSplitLora as HSplitLora
    from edgeopt.training.algorithms.multi_server import MultiServerFedAvg as MultiServerFedAvg
    from edgeopt.training.algorithms.parallel_split import Choice as Choice
    from edgeopt.training.algorithms.parallel_split import Exchange as Exchange
    from edgeopt.training.algorithms.parallel_split import ParallelModel as ParallelModel
    from edgeopt.training.algorithms.parallel_split import ParallelSplit as ParallelSplit
    from edgeopt.training.algorithms.splitfed import SplitFed as SplitFed
    from edgeopt.training.algorithms.splitfed_v2 import SplitFedV2 as SplitFedV2
    from edgeopt.training.algorithms.vanilla_split import VanillaSplit as VanillaSplit
    from edgeopt.training.algorithms.zero_pad_lora import ZeroPadLora as ZeroPadLora
    from edgeopt.training.algorithms.zo_sfl import ZoSfl as ZoSfl
    from edgeopt.training.codecs import CODECS as CODECS
    from edgeopt.training.codecs import AcpCodec as AcpCodec
    from edgeopt.training.codecs import Codec as Codec
    from edgeopt.training.codecs import CodecAtWork as CodecAtWork
    from edgeopt.training.codecs import Compressed as Compressed
    from edgeopt.training.codecs import Form as Form
    from edgeopt.training.codecs import Identity as Identity
    from edgeopt.training.codecs import LowRank as LowRank
    from edgeopt.training.codecs import NscCodec as NscCodec
    from edgeopt.training.codecs import Order as Order
    from edgeopt.training.codecs import Quantise as Quantise
    from edgeopt.training.codecs import RandomChannels as RandomChannels
    from edgeopt.training.codecs import ReportingCodec as ReportingCodec
    from edgeopt.training.codecs import TopK as TopK
