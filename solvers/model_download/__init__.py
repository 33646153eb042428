"""Solvers of model download, one algorithm per file."""

from edgeopt.solve import Solver
from edgeopt.solvers.model_download.clairvoyant_bound import clairvoyant_bound as clairvoyant_bound
from edgeopt.solvers.model_download.download_then_infer import DownloadThenInfer as DownloadThenInfer
from edgeopt.solvers.model_download.equal_bandwidth import EqualBandwidth as EqualBandwidth
from edgeopt.solvers.model_download.fixed_frequency import FixedFrequency as FixedFrequency
from edgeopt.solvers.model_download.generic import Generic as Generic
from edgeopt.solvers.model_download.milp import Milp as Milp
from edgeopt.solvers.model_download.random_admission import RandomAdmission as RandomAdmission
from edgeopt.solvers.model_download.rolling_horizon import poisson_arrivals as poisson_arrivals
from edgeopt.solvers.model_download.rolling_horizon import rolling_horizon as rolling_horizon
from edgeopt.solvers.model_download.rolling_result import RollingResult as RollingResult
from edgeopt.solvers.model_download.slide import Slide as Slide
from edgeopt.solvers.model_download.smallest_model import SmallestModel as SmallestModel

SOLVERS: tuple[Solver, ...] = (
    Slide(),
    Milp(),
    Generic(),
    DownloadThenInfer(),
    EqualBandwidth(),
    FixedFrequency(),
    SmallestModel(),
    RandomAdmission(),
)
