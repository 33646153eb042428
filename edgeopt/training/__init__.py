"""The torch side: models with named cut points, learning algorithms, and the loop that trains under a planner's decisions.

Needs the extra ``train``.
"""

from edgeopt.data import ArrayData as ArrayData
from edgeopt.data import DataSplit as DataSplit
from edgeopt.data import load_data as load_data
from edgeopt.data.partition import Partition as Partition
from edgeopt.training.algorithm import Algorithm as Algorithm
from edgeopt.training.algorithm import Models as Models
from edgeopt.training.algorithm import PredictingAlgorithm as PredictingAlgorithm
from edgeopt.training.algorithms import ALGORITHMS as ALGORITHMS
from edgeopt.training.algorithms import FedAvg as FedAvg
from edgeopt.training.algorithms import FedProx as FedProx
from edgeopt.training.algorithms import MultiServerFedAvg as MultiServerFedAvg
from edgeopt.training.algorithms import Outcome as Outcome
from edgeopt.training.algorithms import ParallelSplit as ParallelSplit
from edgeopt.training.algorithms import SplitFed as SplitFed
from edgeopt.training.algorithms import SplitFedV2 as SplitFedV2
from edgeopt.training.algorithms import VanillaSplit as VanillaSplit
from edgeopt.training.constants import GradientEstimator as GradientEstimator
from edgeopt.training.costs.ledger import Ledger as Ledger
from edgeopt.training.costs.selection_timing import SelectionTiming as SelectionTiming
from edgeopt.training.costs.timing import EdgeTiming as EdgeTiming
from edgeopt.training.history import History as History
from edgeopt.training.history import RoundRecord as RoundRecord
from edgeopt.training.loop import train as train
from edgeopt.training.messages import Batches as Batches
from edgeopt.training.messages import Message as Message
from edgeopt.training.messages import Phase as Phase
from edgeopt.training.messages import reply as reply
from edgeopt.training.optimizers import Adam as Adam
from edgeopt.training.optimizers import Sgd as Sgd
from edgeopt.training.runners.local import LocalRunner as LocalRunner
from edgeopt.training.task import Task as Task
from edgeopt.training.trouble import TrainingError as TrainingError
