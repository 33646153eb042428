"""Learning algorithms, one per file; `edgeopt.training.algorithm` says what an algorithm is."""

from edgeopt.training.algorithm import Algorithm as Algorithm
from edgeopt.training.algorithm import Outcome as Outcome
from edgeopt.training.algorithms.fedalign_moe import FedAlignMoe as FedAlignMoe
from edgeopt.training.algorithms.fedavg import FedAvg as FedAvg
from edgeopt.training.algorithms.fedprox import FedProx as FedProx
from edgeopt.training.algorithms.flexp_sfl import FlexpSfl as FlexpSfl
from edgeopt.training.algorithms.gapsl import Gapsl as Gapsl
from edgeopt.training.algorithms.het_lora import HetLora as HetLora
from edgeopt.training.algorithms.hfedmoe import HFedMoe as HFedMoe
from edgeopt.training.algorithms.ho_sfl import HoSfl as HoSfl
from edgeopt.training.algorithms.hsplit_lora import HSplitLora as HSplitLora
from edgeopt.training.algorithms.multi_server import MultiServerFedAvg as MultiServerFedAvg
from edgeopt.training.algorithms.parallel_split import ParallelSplit as ParallelSplit
from edgeopt.training.algorithms.splitfed import SplitFed as SplitFed
from edgeopt.training.algorithms.splitfed_v2 import SplitFedV2 as SplitFedV2
from edgeopt.training.algorithms.vanilla_split import VanillaSplit as VanillaSplit
from edgeopt.training.algorithms.zero_pad_lora import ZeroPadLora as ZeroPadLora
from edgeopt.training.algorithms.zo_sfl import ZoSfl as ZoSfl

ALGORITHMS: tuple[type[Algorithm], ...] = (
    FedAvg, FedProx, VanillaSplit, ParallelSplit, SplitFed, SplitFedV2, MultiServerFedAvg,
    Gapsl, HoSfl, ZoSfl, FlexpSfl,
    HFedMoe, FedAlignMoe,
    HSplitLora, HetLora, ZeroPadLora,
)  # fmt: skip
"""The algorithms of the package; add yours here to have it on the command line."""
