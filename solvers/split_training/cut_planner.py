"""`CutPlanner`: the cut of each device by its own time and memory, and by how accurate models are with that cut."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.problems import SplitTraining
from edgeopt.problems.split_training.instance import MEMORY_TOLERANCE
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.validate import float_array, int_array, integer, real

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutPlanner:
    r"""Plan the same cuts in every round: of each device that which weighs its time against the accuracy best.

    Device i has the cut

    .. math:: c_i = \arg\min_{c \in C} \kappa \frac{T_i(c)}{\max_{c' \in C} T_i(c')} + (1 - \kappa) (1 - Acc(c))
        \quad \text{with} \quad mem_i(c) \le M_i,

    of several that are equally good the lowest. :math:`T_i(c)` are the seconds of a mini-batch of this device alone: its
    layers forward, activations up, the server's layers, gradients down, its layers backward. Both terms are from 0 to 1,
    since a device's time is measured by that of its slowest cut, be there memory for it or not; so whoever is slow at
    every cut weighs accuracy no less than others. Devices do not depend on each other: all cuts of all devices are looked
    at, in O(N L). After FlexP-SFL (arXiv 2508.10349), whose resource-aware choice of split ratios is a discrete
    optimisation of accuracy and cost; this objective is ours.

    Parameters
    ----------
    problem : what model, devices and links are like, for example of `SplitTraining.from_profile`.
    accuracy : float64 [C], or one number: the accuracy that is expected with each of `cuts`, from 0 to 1. Default: alike,
        so that time alone decides.
    kappa : weight of time, from 0 to 1.
    cuts : int32 [C], the cuts that may be, ascending. Default: all that leave the server a layer.
    batch_size : int32 [N], or one for all.
    local_steps : mini-batches of a round.
    head_layers : in the U shape, how many of the last layers devices have too. They take time and memory at every cut.

    Raises
    ------
    InvalidProblemError
        Naming what does not fit, or a device that has no memory for any of the cuts.

    Examples
    --------
    >>> problem = SplitTraining.random(num_devices=3, num_layers=4, seed=0)
    >>> planner = CutPlanner(problem=problem, accuracy=[0.9, 0.8, 0.5], kappa=0.0)
    >>> planner.plan(0).cut_layer
    array([1, 1, 1], dtype=int32)
    """

    problem: SplitTraining
    accuracy: Floats = field(default_factory=lambda: np.array(0.0))
    kappa: float = 0.5
    cuts: NDArray[np.int32] | None = None
    batch_size: NDArray[np.int32] = field(default_factory=lambda: np.array(16))
    local_steps: int = 1
    head_layers: int = 0
    _at: NDArray[np.int32] = field(init=False)  # the cuts in arrays of layers
    _chosen: NDArray[np.int32] = field(init=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        layers, devices = self.problem.num_layers, self.problem.num_devices
        head = integer("head_layers", self.head_layers, low=0, high=max(0, layers - 2))
        given: ArrayLike = np.arange(1, layers - head) if self.cuts is None else self.cuts
        cuts = int_array("cuts", given, (None,), low=1, high=layers - head - 1)
        if cuts.size == 0 or (np.diff(cuts) <= 0).any():
            raise InvalidProblemError(
                f"cuts = {quoted(cuts.tolist())}: expected different ones, ascending, at least one"
            )
        accuracy = float_array("accuracy", self.accuracy, (cuts.size,), nonnegative=True)
        if (high := np.flatnonzero(accuracy > 1)).size:
            raise InvalidProblemError(f"accuracy[{high[0]}] = {accuracy[high[0]]}: expected a number from 0 to 1")
        if not 0 <= real("kappa", self.kappa) <= 1:
            raise InvalidProblemError(f"kappa = {quoted(self.kappa)}: expected a number from 0 to 1")
        object.__setattr__(self, "cuts", cuts)
        object.__setattr__(self, "_at", cuts - 1)
        object.__setattr__(self, "accuracy", accuracy)
        object.__setattr__(self, "batch_size", int_array("batch_size", self.batch_size, (devices,), low=1))
        integer("local_steps", self.local_steps, low=1)
        cost = np.where(self.fits, self.kappa * self._share() + (1 - self.kappa) * (1 - accuracy), np.inf)
        if (without := np.flatnonzero(np.isinf(cost).all(axis=1))).size:
            device = without[0]
            raise InvalidProblemError(
                f"device {device} has no memory for any of the cuts {quoted(cuts.tolist())} with "
                f"{self.batch_size[device]} samples: expected at least {self.memory_bytes[device].min():.6g} bytes, its "
                f"memory is {self.problem.memory_bytes[device]:.6g}"
            )
        object.__setattr__(self, "_chosen", cuts[cost.argmin(axis=1)])

    @property
    def seconds(self) -> Floats:
        """float64 [N, C], T_i(c): what a mini-batch takes a device alone with each of the cuts."""
        p, at = self.problem, self._at
        server_s = p.server_s[at] - p.server_s[p.num_layers - self.head_layers - 1]
        each = p.forward_s[:, at] + server_s + p.backward_s[:, at]
        return np.asarray(self.batch_size[:, None] * (each + self._head_s()[:, None]))

    @property
    def memory_bytes(self) -> Floats:
        """float64 [N, C], mem_i(c): what a device holds with each of the cuts."""
        p, at = self.problem, self._at
        head = slice(p.num_layers - self.head_layers, None)
        kept = np.cumsum(p.memory_bits)[at] + p.memory_bits[head].sum()
        held = p.client_bits[at] + p.parameter_bits[head].sum()
        return np.asarray((self.batch_size[:, None] * kept + p.optimizer_states * held) / 8)

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether there is memory for each of the cuts, bool [N, C]."""
        return np.asarray(self.memory_bytes <= self.problem.memory_bytes[:, None] * (1 + MEMORY_TOLERANCE))

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round: all devices, each as client of its own number."""
        return RoundPlan(
            client=np.arange(self.problem.num_devices, dtype=np.int32),
            batch_size=self.batch_size,
            cut_layer=self._chosen,
            local_steps=np.array(self.local_steps, np.int32),
        )

    def _share(self) -> Floats:
        """Return float64 [N, C]: the seconds over those of each device's slowest cut; 0 where nothing takes time."""
        slowest = self.seconds.max(axis=1, keepdims=True)
        return np.asarray(self.seconds / np.where(slowest > 0, slowest, 1.0))

    def _head_s(self) -> Floats:
        """Return float64 [N]: seconds per sample of the head, and of what crosses before it, down and up."""
        p, first = self.problem, self.problem.num_layers - self.head_layers
        if not self.head_layers:
            return np.zeros(p.num_devices)
        work = (p.forward_flops + p.backward_flops)[first:].sum()
        crossing = p.activation_bits[first - 1] / p.downlink_bps + p.gradient_bits[first - 1] / p.uplink_bps
        return np.asarray(work / p.device_flops + crossing)
