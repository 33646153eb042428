"""Model download: who gets which model over how much bandwidth, running its layers while the rest is still arriving."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, check_table
from edgeopt.npz import numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.model_download.build import from_profiles, positive_hz, random_problem
from edgeopt.problems.model_download.plan import DownloadPlan, DownloadTimeline
from edgeopt.validate import float_array, int_array

if TYPE_CHECKING:
    from edgeopt.problems.model_download.checks import Reason, Refusal

TOLERANCE = 1e-9  # relative, by which a plan may miss a limit: rounding in sums over layers and users


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ModelDownload(Problem):
    r"""Admit users who download a model and run it layer by layer while it arrives, each within a deadline.

    Maximise the value of the admitted users, over model, bandwidth :math:`b_k` and frequency :math:`f_{kl}` of each
    layer, such that :math:`\sum_k b_k \le B` and for every admitted user k with model i

    .. math:: t_L \le D_k, \quad t_l = \max\Big(t_{l-1}, \sum_{j \le l} S_j / r_k(b_k)\Big) + V_l + C_{kl} / f_{kl},
        \qquad \sum_l e_k S_l + a_k C_{kl} f_{kl}^2 \le E_k

    with :math:`C_{kl} = n_k \kappa_k W_l` cycles. The rate is linear, :math:`r = b R_k`, or that of a fixed
    transmit power, :math:`r = b \log_2(1 + \gamma_k / b)`. Our formulation, after SLIDE (arXiv 2512.20946).

    ===========  =======================================  ==================
    symbol       field                                    unit
    ===========  =======================================  ==================
    S, V, W [l]  ``layer_bits, _fixed_s, _flops``         bit, s, FLOP
    D, E         ``deadline_s, energy_j``                 s, J
    n, kappa     ``samples, cycles_per_flop``             1, cycle/FLOP
    f            between ``min_`` and ``max_frequency_hz``  Hz
    a, e         ``energy_coefficient, receive_j_per_bit``  J s^2/cycle^3, J/bit
    R or gamma   ``spectral_efficiency`` or ``snr_hz``    bit/s/Hz or Hz
    B            ``bandwidth_hz``                         Hz
    ===========  =======================================  ==================

    Parameters
    ----------
    layer_indptr : int64 [I + 1], the layers of model i are ``layer_indptr[i]:layer_indptr[i + 1]`` of the P in total.
    layer_bits, layer_flops : float64 [P], bits to download and FLOPs per sample of each layer.
    layer_fixed_s : float64 [P], seconds of a layer that no frequency changes: loading, instantiating. Default 0.
    model_names : names of the I models.
    model_task : int32 [I], the task that each model does. Default 0.
    accuracy : float64 [I], in [0, 1]. Default 1.
    model_reward : float64 [I], what serving a user with each model is worth. Default 1.
    task : int32 [K], the task that each user asks for. Default 0.
    min_accuracy : float64 [K], in [0, 1]. Default 0.
    memory_bytes : float64 [K], bytes that a model may take; inf for no limit. Default inf.
    deadline_s : float64 [K], seconds from the request to the last result.
    samples : float64 [K], inputs that each user runs through the model. Default 1.
    cycles_per_flop : float64 [K], cycles of the user's processor for one FLOP.
    min_frequency_hz, max_frequency_hz : float64 [K], range of the user's processor.
    energy_j : float64 [K], energy limit; inf for none. Default inf.
    energy_coefficient : float64 [K], effective switched capacitance a: C cycles at f take a C f^2. Default 1e-27.
    receive_j_per_bit : float64 [K], energy to receive one bit. Default 0.
    spectral_efficiency : float64 [K], bit/s/Hz of a rate linear in bandwidth. Either this or `snr_hz`.
    snr_hz : float64 [K], received power over noise density, for the concave rate at fixed transmit power.
    bandwidth_hz : Hz to share.
    resource_block_hz : Hz of one resource block, if users get whole blocks only.
    frequency_levels : float64 [F], shares of the maximum frequency that processors can be set to, ascending, in (0, 1],
        if they cannot be set freely.
    user_weight : float64 [K], what serving each user is worth; multiplied by `model_reward`. Default 1.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.

    Examples
    --------
    Two layers of 4 Mbit and one second of computing each; the second layer arrives while the first is run:

    >>> problem = ModelDownload(
    ...     layer_indptr=[0, 2], layer_bits=4e6, layer_flops=1e9, model_names=["two layers"], deadline_s=[3.0],
    ...     cycles_per_flop=1.0, min_frequency_hz=1e8, max_frequency_hz=1e9, spectral_efficiency=4.0, bandwidth_hz=1e6)
    >>> plan = DownloadPlan(model=[0], bandwidth_hz=[1e6], frequency_hz=[1e9, 1e9])
    >>> problem.simulate(plan).finish_s
    array([2., 3.])
    >>> problem.is_feasible(plan), problem.objective(plan)
    (True, 1.0)
    """

    kind: ClassVar[str] = "model-download"
    sense: ClassVar[Sense] = "max"

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
            raise InvalidProblemError(f"model_names = {names!r}: expected a sequence of names")
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
        for name, (axis, positive, unit) in _FLOATS.items():
            if (given := getattr(self, name)) is not None or name not in _CHANNELS:
                checked[name] = float_array(
                    name, given, (sizes[axis],),
                    positive=positive, nonnegative=not positive, finite=name not in _MAY_BE_INFINITE, ranged=True,
                    unit=unit,
                )  # fmt: skip
        for name, axis in (("model_task", "I"), ("task", "K")):
            checked[name] = int_array(name, getattr(self, name), (sizes[axis],), low=0)
        for name in ("accuracy", "min_accuracy"):
            _refuse_above(name, checked[name], 1.0, "a number from 0 to 1")
        _refuse_above("min_frequency_hz", checked["min_frequency_hz"], checked["max_frequency_hz"], "at most {} (Hz)")
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

    # --- truth -------------------------------------------------------------------------------------------------

    def objective(self, solution: DownloadPlan) -> float:
        """Return the total value of the admitted users."""
        self._check_plan(solution)
        users = np.flatnonzero(solution.model >= 0)
        return float(self.user_weight[users] @ self.model_reward[solution.model[users]])

    def plan_indptr(self, model: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return int64 [K + 1]: where each user's layers are in ``DownloadPlan.frequency_hz``, given the models [K]."""
        layers = np.where(model >= 0, self.num_layers[model], 0)
        return np.concatenate([[0], np.cumsum(layers)])

    def simulate(self, solution: DownloadPlan) -> DownloadTimeline:
        """Run the recursion: when each layer arrives, starts and finishes, and the energy of each user."""
        from edgeopt.problems.model_download.kernels import recursion  # late: numba takes 0.3 s to import

        self._check_plan(solution)
        model, indptr = solution.model, self.plan_indptr(solution.model)
        first = np.where(model >= 0, self.layer_indptr[model], 0)
        rate = self.rate_bps(solution.bandwidth_hz)
        arrival, start, finish, done, energy = recursion(
            first, first + np.diff(indptr), indptr, rate, np.array(solution.frequency_hz), np.array(self.layer_bits),
            np.array(self.layer_flops), np.array(self.layer_fixed_s), self.cycles_per_layer_flop,
            np.array(self.energy_coefficient), np.array(self.receive_j_per_bit),
        )  # fmt: skip
        begin = np.concatenate([[0.0], arrival[:-1]]) if arrival.size else np.zeros(0)
        begin[indptr[:-1][model >= 0]] = 0.0
        return DownloadTimeline(
            indptr=indptr, download_start_s=begin, download_finish_s=arrival, start_s=start, finish_s=finish,
            completion_s=done, energy_j=energy,
        )  # fmt: skip

    def violations(self, solution: DownloadPlan) -> tuple[Violation, ...]:
        """Return what a plan violates: models, bandwidth, resource blocks, deadlines, energy, frequencies."""
        from edgeopt.problems.model_download.checks import violations

        self._check_plan(solution)
        return violations(self, solution, TOLERANCE)

    def refusals(self) -> "tuple[Refusal, ...]":
        """Return the users who cannot be served even if they were alone, with the reason and its numbers.

        A user is listed if no allowed model meets the deadline at the highest frequency, the energy limit, the ceiling
        of the rate and the bandwidth, each taken by itself. The list is complete without energy limits and resource blocks. With them,
        a user who is not listed may still be one that nobody can serve: the energy limit can ask for more rate than the deadline does,
        and whole blocks for more bandwidth than the rate does. `slide` finds these too, and leaves them out.

        Examples
        --------
        >>> problem = ModelDownload.random(num_users=3, deadline_s=1e-4, seed=1)
        >>> [refusal.reason for refusal in problem.refusals()]
        ['deadline', 'deadline', 'deadline']
        """
        from edgeopt.problems.model_download.checks import refusals

        return refusals(self, TOLERANCE)

    def count_refusals(self) -> "dict[Reason, int]":
        """Return how many `refusals` there are for each reason, without the messages: a tenth of a second for 100,000 users.

        Examples
        --------
        >>> ModelDownload.random(num_users=3, deadline_s=1e-4, seed=1).count_refusals()
        {'deadline': 3}
        """
        from edgeopt.problems.model_download.checks import count_refusals

        return count_refusals(self, TOLERANCE)

    def refusal_summary(self) -> str:
        """Return one sentence: how many `refusals` there are, for which reasons, and the first; empty if there are none."""
        from edgeopt.problems.model_download.checks import refusal_summary

        return refusal_summary(self, TOLERANCE)

    def solution_from_json(self, document: dict[str, Any]) -> DownloadPlan:
        """Return the plan that `DownloadPlan.to_json` wrote."""
        plan = DownloadPlan.from_json(document)
        self._check_plan(plan)
        return plan

    def _check_plan(self, solution: DownloadPlan) -> None:
        if not isinstance(solution, DownloadPlan):
            raise InvalidProblemError(f"solution: expected a DownloadPlan, got {type(solution).__name__}")
        if solution.model.size != self.num_users:
            raise InvalidProblemError(f"model: expected shape [{self.num_users}], got {list(solution.model.shape)}")
        _refuse_above("model", solution.model, self.num_models - 1, f"a model from -1 to {self.num_models - 1}")
        total = int(self.plan_indptr(solution.model)[-1])
        if solution.frequency_hz.size != total:
            raise InvalidProblemError(
                f"frequency_hz: expected shape [{total}], one for each layer of the admitted users' models, "
                f"got {list(solution.frequency_hz.shape)}"
            )

    def _by_model(self, values: Any, sums: Any) -> NDArray[np.float64]:
        return np.concatenate([sums(part) for part in np.split(values, self.layer_indptr[1:-1])])

    # --- plumbing ----------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def tiny_like(self) -> "ModelDownload":
        """Return a tiny problem of the same kind: what solvers warm up on."""
        return type(self).random(num_users=4, num_models=4)

    def describe(self) -> dict[str, str | int | float]:
        """Return sizes, modes, limits, and how many users `refusals` would list, as one flat dictionary."""
        from edgeopt.problems.model_download.checks import reasons_text

        refused = self.count_refusals()
        return {
            "kind": self.kind,
            "users": self.num_users,
            "models": self.num_models,
            "tasks": int(np.unique(self.task).size),
            "layers": int(self.layer_indptr[-1]),
            "bandwidth, Hz": self.bandwidth_hz,
            "rate": "concave" if self.has_concave_rate else "linear",
            "resource block, Hz": "any" if self.resource_block_hz is None else self.resource_block_hz,
            "frequency levels": "any" if self.frequency_levels is None else self.frequency_levels.size,
            "users with an energy limit": int(np.isfinite(self.energy_j).sum()),
            "users that cannot be served": f"{sum(refused.values())} ({reasons_text(refused)})" if refused else "0",
            "value": "one per user" if self.is_unit_value else "per model" if self.has_model_reward else "weighted",
            "mean deadline, s": float(self.deadline_s.mean()),
            "mean size of a model, bit": float(self.model_bits.mean()),
            "mean allowed models of a user": float(self.allowed.sum(axis=1).mean()),
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelDownload):
            return NotImplemented
        (values, arrays), (others, other_arrays) = self.to_data(), other.to_data()
        if values != others or arrays.keys() != other_arrays.keys():
            return False
        return all(np.array_equal(array, other_arrays[name]) for name, array in arrays.items())

    __hash__ = None  # type: ignore[assignment]

    def to_data(self) -> tuple[dict[str, Any], storage.Arrays]:
        """Return plain values and named arrays."""
        arrays = {name: getattr(self, name) for name in (*_ARRAYS, *_OPTIONAL) if getattr(self, name) is not None}
        values = {
            "models": list(self.model_names),
            "bandwidth_hz": self.bandwidth_hz,
            "resource_block_hz": self.resource_block_hz,
        }
        return values, arrays

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: storage.Arrays) -> Self:
        """Build the problem from what `to_data` returned."""
        given = Fields(values)
        if missing := [name for name in _ARRAYS if name not in arrays]:
            raise InvalidFileError(f"{missing[0]}: array is missing")
        if unknown := sorted(arrays.keys() - {*_ARRAYS, *_OPTIONAL}):
            raise InvalidProblemError(f"{unknown[0]}: not an array of {cls.kind}")
        known: Any = dict(arrays)
        return cls(
            model_names=given.texts("models"),
            bandwidth_hz=given.number("bandwidth_hz"),
            resource_block_hz=given.optional_number("resource_block_hz"),
            **known,
        )

    @classmethod
    def layout(cls, values: dict[str, Any]) -> storage.Layout:
        """Return which arrays a file may hold."""
        return dict.fromkeys((*_ARRAYS, *_OPTIONAL), numbers(1))

    from_profiles = classmethod(from_profiles)
    random = classmethod(random_problem)


def _suffix_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(values[::-1])[::-1]


def _refuse_above(name: str, values: NDArray[Any], limit: Any, expected: str) -> None:
    """Raise `InvalidProblemError` naming the first value above its limit; ``{}`` in `expected` stands for the limit."""
    if (bad := np.flatnonzero(values > limit)).size:
        at = np.broadcast_to(limit, values.shape)[bad[0]]
        raise InvalidProblemError(f"{name}[{bad[0]}] = {values[bad[0]].item()!r}: expected {expected.format(at)}")


def _checked_levels(levels: Any, low_hz: NDArray[np.float64], high_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the levels, ascending shares of the maximum such that every processor has one in its range."""
    checked = float_array("frequency_levels", levels, (None,), positive=True, ranged=True)
    if checked.size == 0:
        raise InvalidProblemError("frequency_levels: expected at least one level, or None")
    _refuse_above("frequency_levels", checked, 1.0, "a share of the maximum frequency, in (0, 1]")
    if (bad := np.flatnonzero(np.diff(checked) <= 0)).size:
        level = checked[bad[0] + 1].item()
        raise InvalidProblemError(f"frequency_levels[{bad[0] + 1}] = {quoted(level)}: expected ascending levels")
    _refuse_above("min_frequency_hz", low_hz, high_hz * checked[-1], "at most the highest level, {} (Hz)")
    return checked


_FLOATS = {  # field: axis, whether it must be positive (else non-negative), unit
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
_CHANNELS = ("spectral_efficiency", "snr_hz")  # exactly one of them
_MAY_BE_INFINITE = ("memory_bytes", "energy_j")
_OPTIONAL = (*_CHANNELS, "frequency_levels")
_ARRAYS = ("layer_indptr", "model_task", "task", *(name for name in _FLOATS if name not in _CHANNELS))
