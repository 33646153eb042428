"""Split training: batch sizes and cut layers of split federated learning, for the least time to a target accuracy."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.fields import Fields, check_table
from edgeopt.npz import numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.split_training.limits import reachable_target
from edgeopt.problems.split_training.plan import SplitPlan
from edgeopt.problems.split_training.report import STAGES, SplitReport, report_of  # noqa: F401 - STAGES for readers of reports
from edgeopt.validate import float_array, int_array

if TYPE_CHECKING:
    from edgeopt.network import EdgeNetwork
    from edgeopt.profile import ModelProfile

Floats = NDArray[np.float64]

MEMORY_TOLERANCE = 1e-12  # relative


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SplitTraining(Problem):
    r"""Choose batch sizes, cut layers and the aggregation interval of split federated learning.

    Device i trains layers 1 to :math:`l_i` on :math:`b_i` samples per round, the edge server the layers above, for all
    devices; a fed server averages the devices' parts every I rounds. Minimise the seconds until a convergence bound
    is at :math:`\epsilon`,

    .. math:: \Theta = \frac{2 \vartheta}{\gamma} \frac{T_S + T_A / I}{Den}, \qquad
        Den = \epsilon - \frac{\beta \gamma}{N^2} \sum_j \sigma_j^2 \sum_i \frac{1}{b_i}
        - 1_{I > 1} 4 \beta^2 \gamma^2 I^2 \sum_{j \le L_c} G_j^2 > 0,

    where :math:`L_c = \max_i l_i`. A round takes

    .. math:: T_S = \max_i b_i a_i + \sum_i b_i s_i + \max_i b_i d_i

    with, per sample, :math:`a_i = \rho_l / f_i + \psi_l / r^U_i` up, :math:`s_i = (\rho_L - \rho_l + w_L - w_l) / f_s`
    at the server and :math:`d_i = \chi_l / r^D_i + w_l / f_i` down, all at :math:`l = l_i`; an aggregation

    .. math:: T_A = \max(\max_i \delta_{l_i} / r^{UF}_i, \Lambda / r^{UF}_s)
        + \max(\max_i \delta_{l_i} / r^{DF}_i, \Lambda / r^{DF}_s), \qquad
        \Lambda = \sum_i (\delta_{L_c} - \delta_{l_i}).

    Device i holds :math:`b_i m_l + k \delta_l \le M_i`. The bound is HASFL's (arXiv 2506.08426), the latency model our
    formulation after it.

    =============  ==============================================  =========
    symbol         field                                           unit
    =============  ==============================================  =========
    rho, w         ``forward_flops``, ``backward_flops``, summed   FLOP
    psi, chi       ``activation_bits``, ``gradient_bits``          bit
    delta          ``parameter_bits``, summed over layers 1..l     bit
    m              ``memory_bits``, summed over layers 1..l        bit
    k              ``optimizer_states``                            1
    f_i, f_s       ``device_flops``, ``server_flops``              FLOP/s
    r^U, r^D       ``uplink_bps``, ``downlink_bps``                bit/s
    r^UF, r^DF     ``fed_uplink_bps``, ``fed_downlink_bps``,       bit/s
                   ``server_fed_uplink_bps``, ``..._downlink_bps``
    M              ``memory_bytes``                                byte
    beta           ``smoothness``                                  any
    sigma^2, G^2   ``gradient_variance``, ``..._second_moment``    any
    vartheta       ``initial_gap``                                 any
    gamma          ``step_size``                                   any
    epsilon        ``target``                                      any
    =============  ==============================================  =========

    Parameters
    ----------
    forward_flops, backward_flops : float64 [L], work of each layer per sample.
    activation_bits, gradient_bits : float64 [L], what crosses a cut after layer l per sample, up and down.
    parameter_bits : float64 [L], parameters of each layer.
    memory_bits : float64 [L], activations of each layer kept for the backward pass, per sample.
    optimizer_states : copies of the parameters that training keeps. Default 3: weights, gradients, momentum.
    device_flops : float64 [N], speed of each device.
    uplink_bps, downlink_bps : float64 [N], rates between each device and the edge server.
    fed_uplink_bps, fed_downlink_bps : float64 [N], rates between each device and the fed server.
    memory_bytes : float64 [N], memory of each device; inf for no limit.
    max_batch : int32 [N], largest batch size of each device. Default 64.
    server_flops : speed of the edge server.
    server_fed_uplink_bps, server_fed_downlink_bps : rates between edge server and fed server.
    smoothness : beta, the Lipschitz constant of the gradient.
    gradient_variance : float64 [L], sigma_j^2, variance of the gradient of layer j on one sample.
    gradient_second_moment : float64 [L], G_j^2, bound on the mean squared norm of the gradient of layer j.
    initial_gap : loss at the start less the least loss.
    step_size : learning rate.
    target : epsilon, the mean squared gradient norm to reach.
    min_interval, max_interval : range of the aggregation interval I; equal for a fixed one. Default 1.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected; also if a device has no memory for any cut.

    Examples
    --------
    >>> problem = SplitTraining.random(num_devices=4, num_layers=6, seed=1)
    >>> plan = SplitPlan(batch_size=[16] * 4, cut_layer=[2] * 4, aggregation_interval=problem.min_interval)
    >>> problem.is_feasible(plan), 0 < problem.objective(plan) < np.inf
    (True, True)
    """

    kind: ClassVar[str] = "split-training"
    sense: ClassVar[Sense] = "min"

    forward_flops: Floats
    backward_flops: Floats
    activation_bits: Floats
    gradient_bits: Floats
    parameter_bits: Floats
    memory_bits: Floats
    optimizer_states: float = 3.0
    device_flops: Floats
    uplink_bps: Floats
    downlink_bps: Floats
    fed_uplink_bps: Floats
    fed_downlink_bps: Floats
    memory_bytes: Floats
    max_batch: NDArray[np.int32] = field(default_factory=lambda: np.array(64, np.int32))
    server_flops: float
    server_fed_uplink_bps: float
    server_fed_downlink_bps: float
    smoothness: float
    gradient_variance: Floats
    gradient_second_moment: Floats
    initial_gap: float
    step_size: float
    target: float
    min_interval: int = 1
    max_interval: int = 1

    def __post_init__(self) -> None:
        sizes = {}
        for axis, name, what in (("L", "forward_flops", "layer"), ("N", "device_flops", "device")):
            sizes[axis] = float_array(name, getattr(self, name), (None,)).size
            if sizes[axis] == 0:
                raise InvalidProblemError(f"{name}: expected at least one {what}")
        check_table("devices x layers", sizes["N"], sizes["L"])
        for name, (axes, positive, unit) in _FLOATS.items():
            value = float_array(
                name, getattr(self, name), tuple(sizes[axis] for axis in axes),
                positive=positive, nonnegative=not positive, finite=name != "memory_bytes", ranged=True, unit=unit,
            )  # fmt: skip
            object.__setattr__(self, name, value if axes else value.item())
        object.__setattr__(self, "max_batch", int_array("max_batch", self.max_batch, (sizes["N"],), low=1))
        least = int_array("min_interval", self.min_interval, (), low=1).item()
        most = int_array("max_interval", self.max_interval, (), low=1).item()
        if most < least:
            raise InvalidProblemError(f"max_interval = {most}: expected at least min_interval = {least}")
        object.__setattr__(self, "min_interval", least)
        object.__setattr__(self, "max_interval", most)
        if (bad := np.flatnonzero(self.batch_limit[:, 0] < 1)).size:
            needed = (self.memory_bits[0] + self.optimizer_states * self.parameter_bits[0]) / 8
            raise InvalidProblemError(
                f"memory_bytes[{bad[0]}] = {self.memory_bytes[bad[0]]:.6g}: device {bad[0]} has no memory for any cut, "
                f"expected at least {needed:.6g} bytes for layer 1 and one sample"
            )

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_devices(self) -> int:
        """Devices, N."""
        return self.device_flops.size

    @property
    def num_layers(self) -> int:
        """Layers of the model, L: a cut is a number from 1 to L."""
        return self.forward_flops.size

    # --- costs; index l - 1 stands for a cut after layer l --------------------------------------------------------

    @property
    def forward_s(self) -> Floats:
        """float64 [N, L], a_i(l): seconds per sample of the forward pass on the device and the way up."""
        work = np.cumsum(self.forward_flops)
        return np.asarray(work / self.device_flops[:, None] + self.activation_bits / self.uplink_bps[:, None])

    @property
    def server_s(self) -> Floats:
        """float64 [L], s(l): seconds per sample of the server's part, not increasing, 0 at l = L."""
        work = self.forward_flops + self.backward_flops
        above = np.append(np.cumsum(work[:0:-1])[::-1], 0.0)  # summed from the top: exactly 0 there
        return np.asarray(above / self.server_flops)

    @property
    def backward_s(self) -> Floats:
        """float64 [N, L], d_i(l): seconds per sample of the way down and the backward pass on the device."""
        work = np.cumsum(self.backward_flops)
        return np.asarray(self.gradient_bits / self.downlink_bps[:, None] + work / self.device_flops[:, None])

    @property
    def client_bits(self) -> Floats:
        """float64 [L], delta_l: bits of the parameters of layers 1 to l."""
        return np.asarray(np.cumsum(self.parameter_bits))

    @property
    def batch_limit(self) -> NDArray[np.int32]:
        """int32 [N, L], largest batch size of each device at each cut, not increasing in the cut; 0 where none fits."""
        return np.minimum(self._memory_limit(), self.max_batch[:, None]).astype(np.int32)

    def _memory_limit(self) -> Floats:
        """Return [N, L]: whole samples that the memory of each device takes at each cut, maybe inf."""
        room = 8 * self.memory_bytes[:, None] * (1 + MEMORY_TOLERANCE) - self.optimizer_states * self.client_bits
        per_sample = np.broadcast_to(np.cumsum(self.memory_bits), room.shape)
        fits = np.where(room >= 0, np.inf, 0.0)
        np.divide(np.maximum(room, 0.0), per_sample, out=fits, where=per_sample > 0)
        return np.floor(fits)

    @property
    def noise_weight(self) -> float:
        """The c of the noise term c sum_i 1 / b_i: beta gamma sum_j sigma_j^2 / N^2."""
        return self.smoothness * self.step_size * float(self.gradient_variance.sum()) / self.num_devices**2

    @property
    def drift_weight(self) -> Floats:
        """float64 [L], 4 beta^2 gamma^2 sum_{j <= Lc} G_j^2: the drift term is I^2 times that at Lc, for I > 1."""
        factor = 2 * self.smoothness * self.step_size
        return np.asarray(factor * factor * np.cumsum(self.gradient_second_moment))

    @property
    def time_scale(self) -> float:
        """The factor 2 vartheta / gamma: rounds times Den."""
        return 2 * self.initial_gap / self.step_size

    def drift(self, deepest_cut: int, interval: int) -> float:
        """Return the bound's drift term for a deepest cut (1 to L) and an aggregation interval; 0 for an interval of 1."""
        return float(self.drift_weight[deepest_cut - 1]) * interval**2 if interval > 1 else 0.0

    # --- objective ---------------------------------------------------------------------------------------------

    def objective(self, solution: SplitPlan) -> float:
        """Return Theta, the seconds to reach the target; inf if the plan never does."""
        return self.report(solution).total_s

    def report(self, plan: SplitPlan) -> SplitReport:
        """Return where the time goes and what each term of the bound takes."""
        self._check_shape(plan)
        if (bad := np.flatnonzero(plan.cut_layer > self.num_layers)).size:
            raise InvalidProblemError(
                f"cut_layer[{bad[0]}] = {plan.cut_layer[bad[0]]}: expected an integer from 1 to {self.num_layers}"
            )
        return report_of(self, plan)

    def violations(self, solution: SplitPlan) -> tuple[Violation, ...]:
        """Return cuts, batch sizes, memory, interval and accuracy that break a limit."""
        self._check_shape(solution)
        cut, num_layers = solution.cut_layer, self.num_layers
        if deep := np.flatnonzero(cut > num_layers).tolist():
            messages = {i: f"cut_layer[{i}] = {cut[i]}: expected an integer from 1 to {num_layers}" for i in deep}
            return tuple(Violation("cut", i, float(cut[i] - num_layers), message) for i, message in messages.items())
        report, found = self.report(solution), []
        for i in np.flatnonzero(solution.batch_size > self.max_batch):
            batch, most = int(solution.batch_size[i]), int(self.max_batch[i])
            message = f"batch_size[{i}] = {batch}: expected at most max_batch[{i}] = {most}"
            found.append(Violation("batch", int(i), float(batch - most), message))
        # the limit itself decides, so that a batch size at the limit never violates it by rounding
        limit = self._memory_limit()[np.arange(self.num_devices), solution.cut_layer - 1]
        for i in np.flatnonzero(solution.batch_size > limit):
            used, given = float(report.memory_bytes[i]), float(self.memory_bytes[i])
            message = f"device {i} needs {used:.6g} bytes at cut {solution.cut_layer[i]}, its memory is {given:.6g}"
            found.append(Violation("memory", int(i), used - given, message))
        interval = solution.aggregation_interval
        if not self.min_interval <= interval <= self.max_interval:
            message = f"aggregation_interval = {interval}: expected {self.min_interval} to {self.max_interval}"
            amount = max(self.min_interval - interval, interval - self.max_interval)
            found.append(Violation("interval", 0, float(amount), message))
        if not np.isfinite(report.total_s):
            noise, drift = (report.accuracy_share[name] * self.target for name in ("gradient noise", "client drift"))
            message = (
                f"the bound cannot reach target = {self.target:.6g}: gradient noise takes {noise:.6g} and client drift "
                f"{drift:.6g}"
            )
            found.append(Violation("accuracy", 0, noise + drift - self.target, message))
        return tuple(found)

    def _check_shape(self, plan: SplitPlan) -> None:
        if not isinstance(plan, SplitPlan):
            raise InvalidProblemError(f"solution: expected a SplitPlan, got {type(plan).__name__}")
        if plan.num_devices != self.num_devices:
            raise InvalidProblemError(f"batch_size: expected shape [{self.num_devices}], got [{plan.num_devices}]")

    # --- infeasible targets --------------------------------------------------------------------------------------

    @property
    def least_target(self) -> float:
        """The infimum of feasible targets: any larger one can be reached.

        At cut 1 for all devices batch sizes may be largest and the drift is least, so both terms of the bound are
        least there, with the smallest interval.
        """
        return sum(self._least_terms())

    def explain_infeasible(self) -> str | None:
        """Return None if the target can be reached, else which term is to blame and what would make it feasible."""
        noise, drift = self._least_terms()
        if self.target - drift - noise > 0:
            return None
        if noise >= drift:
            blame = f"gradient noise, at least {noise:.6g} at the largest batch sizes, is to blame"
            cure = "larger batches or a smaller step size"
        else:
            blame = f"client drift, at least {drift:.6g} at cut 1 and interval {self.min_interval}, is to blame"
            cure = "a smaller min_interval or step size"
        return (
            f"target = {self.target:.6g} cannot be reached: {blame} (gradient noise {noise:.6g} + client drift "
            f"{drift:.6g}); expected a target of at least {reachable_target(noise, drift):f}, or {cure}"
        )

    def _least_terms(self) -> tuple[float, float]:
        batch = self.batch_limit[:, 0].astype(np.float64)
        return self.noise_weight * float((1 / batch).sum()), self.drift(1, self.min_interval)

    # --- plumbing ----------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def solution_from_json(self, document: dict[str, Any]) -> SplitPlan:
        """Return the plan that `SplitPlan.to_json` wrote."""
        given = Fields(document, "solution: ")
        lists: Any = {name: given.entries(name, "a list of numbers") for name in ("batch_size", "cut_layer")}
        plan = SplitPlan(**lists, aggregation_interval=given.integer("aggregation_interval"))
        self._check_shape(plan)
        return plan

    def tiny_like(self) -> Self:
        """Return a tiny problem of the same kind: what solvers warm up on."""
        return type(self).random(num_devices=4, num_layers=4)

    def describe(self) -> dict[str, str | int | float]:
        """Return sizes, speeds and what limits the accuracy as one flat dictionary."""
        noise, drift = self._least_terms()
        low, high = self.min_interval, self.max_interval
        return {
            "kind": self.kind,
            "devices": self.num_devices,
            "layers": self.num_layers,
            "parameters, bytes": float(self.client_bits[-1] / 8),
            "FLOP per sample": float(self.forward_flops.sum() + self.backward_flops.sum()),
            "mean speed of a device, FLOP/s": float(self.device_flops.mean()),
            "fastest device against slowest": float(self.device_flops.max() / self.device_flops.min()),
            "speed of the server, FLOP/s": self.server_flops,
            "mean uplink, bit/s": float(self.uplink_bps.mean()),
            "best uplink against worst": float(self.uplink_bps.max() / self.uplink_bps.min()),
            "largest batch size": int(self.max_batch.max()),
            "aggregation interval": f"{low}" if low == high else f"{low} to {high}",
            "target": self.target,
            "least target, gradient noise": noise,
            "least target, client drift": drift,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SplitTraining):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in (*_ARRAYS, *_SCALARS))

    __hash__ = None  # type: ignore[assignment]

    def to_data(self) -> tuple[dict[str, Any], storage.Arrays]:
        """Return plain values and named arrays."""
        return {name: getattr(self, name) for name in _SCALARS}, {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: storage.Arrays) -> Self:
        """Build the problem from what `to_data` returned."""
        if missing := [name for name in _ARRAYS if name not in arrays]:
            raise InvalidFileError(f"{missing[0]}: array is missing")
        given = Fields(values)
        fields: Any = {name: given.number(name) for name in _SCALARS} | {name: arrays[name] for name in _ARRAYS}
        return cls(**fields)

    @classmethod
    def layout(cls, values: dict[str, Any]) -> storage.Layout:
        """Return which arrays a file may hold."""
        return dict.fromkeys(_ARRAYS, numbers(1))

    @classmethod
    def from_profile(
        cls,
        profile: "ModelProfile",
        network: "EdgeNetwork",
        *,
        server: int = 0,
        fed_rate_bps: float | None = None,
        max_batch: ArrayLike = 64,
        optimizer_states: float = 3.0,
        smoothness: float = 0.02,
        gradient_variance: ArrayLike = 1e5,
        gradient_second_moment: ArrayLike = 1500.0,
        initial_gap: float = 2.3,
        step_size: float = 0.05,
        target: float | None = None,
        interval: int | tuple[int, int] = 8,
    ) -> Self:
        """Build a problem from a measured model and a network; the network's devices take part.

        The fed server sits behind the edge server's link to the cloud, so that a device reaches it at the lower of its
        radio rate and that link's.

        Parameters
        ----------
        profile : the model's layers.
        network : devices, the edge server, rates.
        server : which edge server of the network trains the upper parts.
        fed_rate_bps : rate between edge and fed server, both ways. Default: the server's link to the cloud.
        max_batch, optimizer_states, smoothness, initial_gap, step_size : see the class.
        gradient_variance, gradient_second_moment : float64 [L], or the total over the model, which is spread over the
            layers evenly by one half and by parameters by the other.
        target : see the class. Default: 8 times the least that is feasible.
        interval : the aggregation interval, or its least and largest value.

        Examples
        --------
        >>> from edgeopt import EdgeNetwork
        >>> from edgeopt.profile import model_profile
        >>> problem = SplitTraining.from_profile(model_profile("resnet18"), EdgeNetwork.random(1, 20, seed=1))
        >>> problem.num_devices
        20
        """
        from edgeopt.problems.split_training import build

        return build.from_profile(
            cls, profile, network, server=server, fed_rate_bps=fed_rate_bps, max_batch=max_batch,
            optimizer_states=optimizer_states, smoothness=smoothness, gradient_variance=gradient_variance,
            gradient_second_moment=gradient_second_moment, initial_gap=initial_gap, step_size=step_size,
            target=target, interval=interval,
        )  # type: ignore[return-value]  # fmt: skip

    @classmethod
    def random(
        cls,
        *,
        num_devices: int = 20,
        model: str = "resnet18",
        num_layers: int | None = None,
        target: float | None = None,
        heterogeneity: float = 1.0,
        interval: int | tuple[int, int] = 8,
        max_batch: int = 64,
        seed: int = 0,
    ) -> Self:
        """Build a random problem: devices of unequal speed, rates and memory around one edge server.

        The convergence constants are chosen, not measured, so that noise, drift and latency weigh against one another
        whatever the number of devices.

        Parameters
        ----------
        num_devices : devices of a random network with one server.
        model : name of a bundled profile, see `edgeopt.profile.model_profile`.
        num_layers : draw a random model of so many layers instead.
        target : see the class. Default: 8 times the least that is feasible.
        heterogeneity : exponent on each device's ratio to the geometric mean of its speed, rates and memory: 0 makes
            all devices equal, 1 keeps the random network, 2 squares the differences.
        interval : the aggregation interval, or its least and largest value.
        max_batch : largest batch size.
        seed : same seed, same problem.

        Examples
        --------
        >>> SplitTraining.random(num_layers=8, seed=7) == SplitTraining.random(num_layers=8, seed=7)
        True
        """
        from edgeopt.problems.split_training import build

        return build.random_problem(
            cls, num_devices=num_devices, model=model, num_layers=num_layers, target=target,
            heterogeneity=heterogeneity, interval=interval, max_batch=max_batch, seed=seed,
        )  # type: ignore[return-value]  # fmt: skip


_FLOATS = {  # field: axes, whether it must be positive (else non-negative), unit
    "forward_flops": ("L", False, "FLOP"),
    "backward_flops": ("L", False, "FLOP"),
    "activation_bits": ("L", False, "bit"),
    "gradient_bits": ("L", False, "bit"),
    "parameter_bits": ("L", False, "bit"),
    "memory_bits": ("L", False, "bit"),
    "optimizer_states": ("", False, "copies of the parameters"),
    "device_flops": ("N", True, "FLOP/s"),
    "uplink_bps": ("N", True, "bit/s"),
    "downlink_bps": ("N", True, "bit/s"),
    "fed_uplink_bps": ("N", True, "bit/s"),
    "fed_downlink_bps": ("N", True, "bit/s"),
    "memory_bytes": ("N", False, "byte"),
    "server_flops": ("", True, "FLOP/s"),
    "server_fed_uplink_bps": ("", True, "bit/s"),
    "server_fed_downlink_bps": ("", True, "bit/s"),
    "smoothness": ("", True, ""),
    "gradient_variance": ("L", False, ""),
    "gradient_second_moment": ("L", False, ""),
    "initial_gap": ("", True, ""),
    "step_size": ("", True, ""),
    "target": ("", True, ""),
}
_ARRAYS = (*(name for name, (axes, *_) in _FLOATS.items() if axes), "max_batch")
_SCALARS = (*(name for name, (axes, *_) in _FLOATS.items() if not axes), "min_interval", "max_interval")
