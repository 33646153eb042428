"""`DownloadInstance`: the data of model download, checked, and what follows from them; `ModelDownload` judges plans on it."""

from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fields import check_table
from edgeopt.validate import float_array, int_array

TOLERANCE = 1e-9  # relative, by which a plan may miss a limit: rounding in sums over layers and users
FLOATS = {  # field: axis, whether it must be positive (else non-negative), unit
    "layer_bits": ("P", True, "bit"),
    "layer_flops": ("P", False, "FLOP"),
    "layer_fixed_s": ("P", False, "s"),
    "accuracy": ("I", False, ""),
    "model_reward": ("I", True, ""),
    "min_accuracy": ("K", False, ""),
    "memory_bytes": ("K", False, "byte"),
    "deadline_s": ("K", True, "s"),
    "samples": ("K", True, ""),
    "cycles_per_flop": ("K", True, "cycle/FLOP"),
    "min_frequency_hz": ("K", True, "Hz"),
    "max_frequency_hz": ("K", True, "Hz"),
    "energy_j": ("K", True, "J"),
    "energy_coefficient": ("K", True, "J s^2/cycle^3"),
    "receive_j_per_bit": ("K", False, "J/bit"),
    "spectral_efficiency": ("K", True, "bit/s/Hz"),
    "snr_hz": ("K", True, "Hz"),
    "user_weight": ("K", True, ""),
}
CHANNELS = ("spectral_efficiency", "snr_hz")  # exactly one of them
_MAY_BE_INFINITE = ("memory_bytes", "energy_j")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class DownloadInstance:
    """Fields of `ModelDownload`, where they are described, and the sizes, values and rates that its checks are made of."""

    layer_indptr: NDArray[np.int64]
    layer_bits: NDArray[np.float64]
    layer_flops: NDArray[np.float64]
    layer_fixed_s: NDArray[np.float64] = field(default_factory=lambda: np.array(0.0))
    model_names: tuple[str, ...]
    model_task: NDArray[np.int32] = field(default_factory=lambda: np.array(0))
    accuracy: NDArray[np.float64] = field(default_factory=lambda: np.array(1.0))
    model_reward: NDArray[np.float64] = field(default_factory=lambda: np.array(1.0))
    task: NDArray[np.int32] = field(default_factory=lambda: np.array(0))
    min_accuracy: NDArray[np.float64] = field(default_factory=lambda: np.array(0.0))
    memory_bytes: NDArray[np.float64] = field(default_factory=lambda: np.array(np.inf))
    deadline_s: NDArray[np.float64]
    samples: NDArray[np.float64] = field(default_factory=lambda: np.array(1.0))
    cycles_per_flop: NDArray[np.float64]
    min_frequency_hz: NDArray[np.float64]
    max_frequency_hz: NDArray[np.float64]
    energy_j: NDArray[np.float64] = field(default_factory=lambda: np.array(np.inf))
    energy_coefficient: NDArray[np.float64] = field(default_factory=lambda: np.array(1e-27))
    receive_j_per_bit: NDArray[np.float64] = field(default_factory=lambda: np.array(0.0))
    spectral_efficiency: NDArray[np.float64] | None = None
    snr_hz: NDArray[np.float64] | None = None
    bandwidth_hz: float
    resource_block_hz: float | None = None
    frequency_levels: NDArray[np.float64] | None = None
    user_weight: NDArray[np.float64] = field(default_factory=lambda: np.array(1.0))
    allowed: NDArray[np.bool_] = field(init=False, repr=False)
    """bool [K, I], whether user k may get model i: it does the task, is accurate enough and fits the memory."""

    def __post_init__(self) -> None:
        names: Any = self.model_names
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise InvalidProblemError(f"model_names = {quoted(names)}: expected a sequence of names")
        if not names:
            raise InvalidProblemError("model_names: expected at least one model")
        indptr = int_array("layer_indptr", self.layer_indptr, (len(names) + 1,), low=0, dtype=np.int64)
        if indptr[0] != 0:
            raise InvalidProblemError(f"layer_indptr[0] = {indptr[0]}: expected 0")
        if (bad := np.flatnonzero(np.diff(indptr) < 1)).size:
            raise InvalidProblemError(
                f"layer_indptr[{bad[0] + 1}] = {indptr[bad[0] + 1]}: expected more than {indptr[bad[0]]}, "
                f"{names[bad[0]]} needs a layer"
            )
        deadline = float_array("deadline_s", self.deadline_s, (None,), positive=True, unit="s")
        if deadline.size == 0:
            raise InvalidProblemError("deadline_s: expected at least one user")
        sizes = {"K": deadline.size, "I": len(names), "P": int(indptr[-1])}
        checked: dict[str, Any] = {"model_names": tuple(names), "layer_indptr": indptr}
        for name, (axis, positive, unit) in FLOATS.items():
            if (given := getattr(self, name)) is not None or name not in CHANNELS:
                checked[name] = float_array(
                    name, given, (sizes[axis],),
                    positive=positive, nonnegative=not positive, finite=name not in _MAY_BE_INFINITE, ranged=True,
                    unit=unit,
                )  # fmt: skip
        for name, axis in (("model_task", "I"), ("task", "K")):
            checked[name] = int_array(name, getattr(self, name), (sizes[axis],), low=0)
        for name in ("accuracy", "min_accuracy"):
            refuse_above(name, checked[name], 1.0, "a number from 0 to 1")
        refuse_above("min_frequency_hz", checked["min_frequency_hz"], checked["max_frequency_hz"], "at most {} (Hz)")
        checked["bandwidth_hz"] = positive_hz("bandwidth_hz", self.bandwidth_hz)
        if (block := self.resource_block_hz) is not None:
            checked["resource_block_hz"] = positive_hz("resource_block_hz", block)
        if (self.spectral_efficiency is None) == (self.snr_hz is None):
            raise InvalidProblemError("spectral_efficiency, snr_hz: expected exactly one of them")
        if self.frequency_levels is not None:
            checked["frequency_levels"] = _checked_levels(
                self.frequency_levels, checked["min_frequency_hz"], checked["max_frequency_hz"]
            )
        check_table("users x models", sizes["K"], sizes["I"])
        model_bytes = np.add.reduceat(checked["layer_bits"], indptr[:-1]) / 8
        allowed = checked["task"][:, None] == checked["model_task"]
        allowed &= checked["min_accuracy"][:, None] <= checked["accuracy"]
        allowed &= model_bytes <= checked["memory_bytes"][:, None]
        allowed.flags.writeable = False
        for name, value in (checked | {"allowed": allowed}).items():
            object.__setattr__(self, name, value)

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_users(self) -> int:
        """Users, K."""
        return self.deadline_s.size

    @property
    def num_models(self) -> int:
        """Models, I."""
        return len(self.model_names)

    @property
    def num_layers(self) -> NDArray[np.int64]:
        """int64 [I], layers of each model."""
        return np.diff(self.layer_indptr)

    @property
    def model_bits(self) -> NDArray[np.float64]:
        """float64 [I], bits of each model."""
        return np.add.reduceat(self.layer_bits, self.layer_indptr[:-1])

    @property
    def cycles_per_layer_flop(self) -> NDArray[np.float64]:
        """float64 [K], cycles for one FLOP of a layer over all samples: ``samples * cycles_per_flop``."""
        return np.asarray(self.samples * self.cycles_per_flop)

    @property
    def prefix_bits(self) -> NDArray[np.float64]:
        """float64 [P], bits of a model up to and including each layer."""
        return self._by_model(self.layer_bits, lambda part: np.cumsum(part))

    @property
    def suffix_flops(self) -> NDArray[np.float64]:
        """float64 [P], FLOPs per sample of a model from each layer to its last."""
        return self._by_model(self.layer_flops, _suffix_sums)

    @property
    def suffix_fixed_s(self) -> NDArray[np.float64]:
        """float64 [P], fixed seconds of a model from each layer to its last."""
        return self._by_model(self.layer_fixed_s, _suffix_sums)

    @property
    def value(self) -> NDArray[np.float64]:
        """float64 [K, I], what serving user k with model i is worth."""
        return np.asarray(np.multiply.outer(self.user_weight, self.model_reward))

    @property
    def is_unit_value(self) -> bool:
        """Whether all users and all models are worth the same."""
        return bool(np.ptp(self.user_weight) == 0 and np.ptp(self.model_reward) == 0)

    @property
    def has_model_reward(self) -> bool:
        """Whether what a user is worth depends on the model: some task has models of different rewards."""
        return any(np.ptp(self.model_reward[self.model_task == task]) > 0 for task in np.unique(self.model_task))

    @property
    def is_energy_limited(self) -> bool:
        """Whether some user has an energy limit."""
        return bool(np.isfinite(self.energy_j).any())

    @property
    def has_concave_rate(self) -> bool:
        """Whether rates are concave in bandwidth, at fixed transmit power."""
        return self.snr_hz is not None

    @property
    def top_frequency_hz(self) -> NDArray[np.float64]:
        """float64 [K], highest frequency that each processor can be set to: the maximum, or its highest level."""
        top = 1.0 if self.frequency_levels is None else self.frequency_levels[-1]
        return self.max_frequency_hz * top

    @property
    def bandwidth_limit_hz(self) -> float:
        """What the bandwidths of a plan may add up to: `bandwidth_hz` and 1e-9 of it for rounding."""
        return self.bandwidth_hz * (1 + TOLERANCE)

    def rate_bps(self, bandwidth_hz: ArrayLike) -> NDArray[np.float64]:
        """Return the rate [K] in bit/s of each user over a bandwidth, one number or [K].

        Examples
        --------
        >>> from edgeopt.problems import ModelDownload
        >>> ModelDownload.random(num_users=3, seed=1).rate_bps(0.0)
        array([0., 0., 0.])
        """
        bandwidth = float_array("bandwidth_hz", bandwidth_hz, (self.num_users,), nonnegative=True, unit="Hz")
        if self.snr_hz is None:
            assert self.spectral_efficiency is not None  # checked when built
            return bandwidth * self.spectral_efficiency
        snr = np.divide(self.snr_hz, bandwidth, out=np.zeros_like(bandwidth), where=bandwidth > 0)
        return np.asarray(bandwidth * np.log1p(snr) / np.log(2))

    @property
    def rate_ceiling_bps(self) -> NDArray[np.float64]:
        """float64 [K], the rate that no bandwidth exceeds: snr_hz / ln 2 at fixed transmit power, else inf."""
        return np.full(self.num_users, np.inf) if self.snr_hz is None else self.snr_hz / np.log(2)

    def _by_model(self, values: Any, sums: Any) -> NDArray[np.float64]:
        return np.concatenate([sums(part) for part in np.split(values, self.layer_indptr[1:-1])])


def _suffix_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(values[::-1])[::-1]


def refuse_above(name: str, values: NDArray[Any], limit: Any, expected: str) -> None:
    """Raise `InvalidProblemError` naming the first value above its limit; ``{}`` in `expected` stands for the limit."""
    if (bad := np.flatnonzero(values > limit)).size:
        at = np.broadcast_to(limit, values.shape)[bad[0]]
        raise InvalidProblemError(f"{name}[{bad[0]}] = {quoted(values[bad[0]].item())}: expected {expected.format(at)}")


def _checked_levels(levels: Any, low_hz: NDArray[np.float64], high_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the levels, ascending shares of the maximum such that every processor has one in its range."""
    checked = float_array("frequency_levels", levels, (None,), positive=True, ranged=True)
    if checked.size == 0:
        raise InvalidProblemError("frequency_levels: expected at least one level, or None")
    refuse_above("frequency_levels", checked, 1.0, "a share of the maximum frequency, in (0, 1]")
    if (bad := np.flatnonzero(np.diff(checked) <= 0)).size:
        level = checked[bad[0] + 1].item()
        raise InvalidProblemError(f"frequency_levels[{bad[0] + 1}] = {quoted(level)}: expected ascending levels")
    refuse_above("min_frequency_hz", low_hz, high_hz * checked[-1], "at most the highest level, {} (Hz)")
    return checked


def positive_hz(name: str, value: Any) -> float:
    """Return a positive number of hertz; nothing, truth values, text and arrays are no numbers."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < np.inf:
        raise InvalidProblemError(f"{name} = {quoted(value)}: expected a positive number (Hz)")
    return float_array(name, float(value), (), positive=True, ranged=True, unit="Hz").item()
