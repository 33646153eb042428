"""`SplitInstance`: the data of split training, checked, and what follows from them; `SplitTraining` judges plans on it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fields import check_table
from edgeopt.problems.split_training.factors import CostFactors
from edgeopt.validate import float_array, int_array

Floats = NDArray[np.float64]

MEMORY_TOLERANCE = 1e-12  # relative

FLOATS = {  # field: axes, whether it must be positive (else non-negative), unit
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SplitInstance:
    """Fields of `SplitTraining`, where they are described, and the costs that its report and its builders are made of."""

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
    factors: CostFactors = field(default_factory=CostFactors)

    def __post_init__(self) -> None:
        if not isinstance(self.factors, CostFactors):
            raise InvalidProblemError(f"factors = {quoted(self.factors)}: expected CostFactors")
        sizes = {}
        for axis, name, what in (("L", "forward_flops", "layer"), ("N", "device_flops", "device")):
            sizes[axis] = float_array(name, getattr(self, name), (None,)).size
            if sizes[axis] == 0:
                raise InvalidProblemError(f"{name}: expected at least one {what}")
        check_table("devices x layers", sizes["N"], sizes["L"])
        for name, (axes, positive, unit) in FLOATS.items():
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
            needed = (self.kept_bits[0] + self.optimizer_states * self.parameter_bits[0]) / 8
            others = f"; nor have {bad.size - 1} other devices" if bad.size > 1 else ""
            raise InvalidProblemError(
                f"memory_bytes[{bad[0]}] = {self.memory_bytes[bad[0]]:.6g}: device {bad[0]} has no memory for any cut, "
                f"expected at least {needed:.6g} bytes for layer 1 and one sample{others}"
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
    def work_before(self) -> Floats:
        """float64 [L], FLOP per sample on a device before the server's turn."""
        return np.asarray(self.factors.device_forward * np.cumsum(self.forward_flops))

    @property
    def work_after(self) -> Floats:
        """float64 [L], FLOP per sample on a device after it."""
        forward, backward = np.cumsum(self.forward_flops), np.cumsum(self.backward_flops)
        return np.asarray(self.factors.device_backward * backward + self.factors.device_probes * forward)

    @property
    def forward_s(self) -> Floats:
        """float64 [N, L], a_i(l): seconds per sample of the forward pass on the device and the way up."""
        work, sent = self.work_before, self.factors.uplink * self.activation_bits
        return np.asarray(work / self.device_flops[:, None] + sent / self.uplink_bps[:, None])

    @property
    def server_s(self) -> Floats:
        """float64 [L], s(l): seconds per sample of the server's part, not increasing, 0 at l = L."""
        factors = self.factors
        work = factors.server_forward * self.forward_flops + factors.server_backward * self.backward_flops
        above = np.append(np.cumsum(work[:0:-1])[::-1], 0.0)  # summed from the top: exactly 0 there
        return np.asarray(above / self.server_flops)

    @property
    def backward_s(self) -> Floats:
        """float64 [N, L], d_i(l): seconds per sample of the way down and of the work on the device after it."""
        work, sent = self.work_after, self.factors.downlink * self.gradient_bits
        return np.asarray(sent / self.downlink_bps[:, None] + work / self.device_flops[:, None])

    @property
    def client_bits(self) -> Floats:
        """float64 [L], delta_l: bits of the parameters of layers 1 to l."""
        return np.asarray(np.cumsum(self.parameter_bits))

    @property
    def averaged_bits(self) -> Floats:
        """float64 [L], bits of them that cross in an aggregation."""
        return np.asarray(self.factors.aggregation * self.client_bits)

    @property
    def kept_bits(self) -> Floats:
        """float64 [L], m_l: bits of activations that a device keeps per sample."""
        return np.asarray(self.factors.kept * np.cumsum(self.memory_bits))

    @property
    def batch_limit(self) -> NDArray[np.int32]:
        """int32 [N, L], largest batch size of each device at each cut, not increasing in the cut; 0 where none fits."""
        return np.minimum(self._memory_limit(), self.max_batch[:, None]).astype(np.int32)

    def _memory_limit(self) -> Floats:
        """Return [N, L]: whole samples that the memory of each device takes at each cut, maybe inf."""
        room = 8 * self.memory_bytes[:, None] * (1 + MEMORY_TOLERANCE) - self.optimizer_states * self.client_bits
        per_sample = np.broadcast_to(self.kept_bits, room.shape)
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

    @property
    def least_target(self) -> float:
        """The infimum of feasible targets: any larger one can be reached.

        At cut 1 for all devices batch sizes may be largest and the drift is least, so both terms of the bound are
        least there, with the smallest interval.
        """
        return sum(self.least_terms())

    def least_terms(self) -> tuple[float, float]:
        """Return the least gradient noise and the least client drift of any plan: both are at cut 1, see `least_target`."""
        batch = self.batch_limit[:, 0].astype(np.float64)
        return self.noise_weight * float((1 / batch).sum()), self.drift(1, self.min_interval)
