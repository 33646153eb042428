"""Model download: who gets which model over how much bandwidth, running its layers while the rest is still arriving."""

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

import numpy as np
from numpy.typing import NDArray

from edgeopt import storage
from edgeopt.built import Built
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.fields import Fields
from edgeopt.npz import numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.model_download import checks
from edgeopt.problems.model_download.build import profile_fields, random_fields
from edgeopt.problems.model_download.checks import Reason, Refusal
from edgeopt.problems.model_download.instance import CHANNELS, FLOATS, DownloadInstance, refuse_above
from edgeopt.problems.model_download.plan import DownloadPlan, DownloadTimeline

if TYPE_CHECKING:
    from edgeopt.modelling import GenericModel
    from edgeopt.problems.model_download.modelling import DownloadPart


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ModelDownload(DownloadInstance, Problem):
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
        self._check_plan(solution)
        return checks.violations(self, solution, self.simulate(solution))

    def refusals(self) -> tuple[Refusal, ...]:
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
        return checks.refusals(self)

    def count_refusals(self) -> dict[Reason, int]:
        """Return how many `refusals` there are for each reason, without the messages: a tenth of a second for 100,000 users.

        Examples
        --------
        >>> ModelDownload.random(num_users=3, deadline_s=1e-4, seed=1).count_refusals()
        {'deadline': 3}
        """
        return checks.count_refusals(self)

    def refusal_summary(self) -> str:
        """Return one sentence: how many `refusals` there are, for which reasons, and the first; empty if there are none."""
        return checks.refusal_summary(self)

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
        refuse_above("model", solution.model, self.num_models - 1, f"a model from -1 to {self.num_models - 1}")
        total = int(self.plan_indptr(solution.model)[-1])
        if solution.frequency_hz.size != total:
            raise InvalidProblemError(
                f"frequency_hz: expected shape [{total}], one for each layer of the admitted users' models, "
                f"got {list(solution.frequency_hz.shape)}"
            )

    # --- models to take along ----------------------------------------------------------------------------------

    @overload
    def to_cvxpy(self) -> "GenericModel[DownloadPlan]": ...
    @overload
    def to_cvxpy(self, user: int, model: int) -> "GenericModel[DownloadPart]": ...
    def to_cvxpy(self, user: int | None = None, model: int | None = None) -> "GenericModel[Any]":
        r"""Return the problem as a mixed-integer conic programme in cvxpy, or the part of one user with one model.

        Everything is in proportion to whether a user is served with a model, x, so that what is convex stays convex:

        .. math:: \max \sum v x, \quad \sum_i x_{ki} \le 1, \quad \sum b \le 1, \quad
            s_l T + \sum_{j \ge l} (V_j x + d_j) \le x, \quad T \ge x^2 / r, \quad r \le R(b, x), \quad
            d_l^2 w_l \ge w^0_l (d^0_l)^2 x^3, \quad \sum_l w_l \le (1 - e) x

        with T the time of the download and d that of computing each layer, in shares of the deadline; b the share of the band; r the rate over that which takes
        the whole deadline, linear or a relative entropy; w the energy of each layer in shares of the limit, :math:`w^0, d^0` at the highest frequency. Blocks are an
        integer variable, levels a binary for each layer. Variables: ``serve`` and ``bandwidth``, by user and model in the order of ``allowed``, ``transfer``, ``rate``, ``compute``, and where there are any
        ``energy``, ``level``, ``blocks``. It takes a solver of mixed-integer cones; without the integers, any of cones.

        With `user` and `model`, the longest that the download of this pair may take, in seconds. It is a
        linear programme without an energy limit, a conic one with it, and mixed-integer linear with levels.

        Examples
        --------
        >>> problem = ModelDownload.random(num_users=2, num_models=2, seed=1)
        >>> part = problem.to_cvxpy(*np.argwhere(problem.allowed)[0])
        >>> _ = part.problem.solve(solver="CLARABEL")
        >>> bool(0 < part.value < problem.deadline_s[0])
        True
        """
        from edgeopt.problems.model_download.modelling import generic_model, part_model

        if (user is None) != (model is None):
            raise InvalidProblemError("user, model: expected both or neither")
        return generic_model(self) if user is None or model is None else part_model(self, int(user), int(model))

    def write_mps(self, path: str | os.PathLike[str]) -> None:
        """Write who is served with what as an MPS file: a knapsack of the bandwidths that the pairs need by themselves.

        Users meet only in the band, so with the least bandwidth of each pair this is the whole problem. Column ``serve_K_I`` is 1 if
        user K gets model I; pairs that cannot be served have none. Bandwidths are in Hz, in whole blocks if there are any.
        The needs come from the programmes of the pairs, some ten milliseconds each.
        """
        from edgeopt.problems.model_download.needs import linear_programme

        linear_programme(self).write(path)

    # --- plumbing ----------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def tiny_like(self) -> "ModelDownload":
        """Return a tiny problem of the same kind: what solvers warm up on."""
        return type(self).random(num_users=4, num_models=4)

    def describe(self) -> dict[str, str | int | float]:
        """Return sizes, modes, limits, and how many users `refusals` would list, as one flat dictionary."""
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
            "users that cannot be served": f"{sum(refused.values())} ({checks.reasons_text(refused)})"
            if refused
            else "0",
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

    from_profiles = Built(profile_fields)
    random = Built(random_fields)


_OPTIONAL = (*CHANNELS, "frequency_levels")
_ARRAYS = ("layer_indptr", "model_task", "task", *(name for name in FLOATS if name not in CHANNELS))
