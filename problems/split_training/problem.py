"""Split training: batch sizes and cut layers of split federated learning, for the least time to a target accuracy."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from edgeopt import storage
from edgeopt.built import Built
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.fields import Fields
from edgeopt.npz import numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.split_training.build import profile_fields, random_fields
from edgeopt.problems.split_training.factors import CostFactors
from edgeopt.problems.split_training.instance import FLOATS, SplitInstance
from edgeopt.problems.split_training.limits import reachable_target
from edgeopt.problems.split_training.plan import SplitPlan
from edgeopt.problems.split_training.report import SplitReport, report_of

if TYPE_CHECKING:
    from edgeopt.modelling import GenericModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SplitTraining(SplitInstance, Problem):
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
    factors : what a round of the algorithm that is planned for has more or less of than one of SplitFed: they multiply
        the terms of T_S, T_A and the memory. The bound stays as it is. Default: SplitFed's.

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

    def explain_infeasible(self) -> str | None:
        """Return None if the target can be reached, else which term is to blame and what would make it feasible."""
        noise, drift = self.least_terms()
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

    # --- models to take along ----------------------------------------------------------------------------------

    def to_cvxpy(self, *, interval: int, deepest: int, ratio: float) -> "GenericModel[SplitPlan]":
        r"""Return the part for one aggregation interval and one limit on the deepest cut, as a mixed-integer linear programme in cvxpy.

        The objective is a ratio, so it takes a sequence of programmes (Dinkelbach): the least of

        .. math:: T_S + T_A / I - \theta \, Den

        over batch sizes and cuts up to `deepest` is below zero if and only if some plan has a ratio below :math:`\theta`. One binary for
        each device, cut and batch size, one variable for each maximum; the drift and :math:`\Lambda` are those of `deepest`, never below a plan's own.
        Variables: ``chosen``, ``up``, ``down``, ``upload``, ``download``. What depends on the interval and on theta is in parameters.

        Parameters
        ----------
        interval : I.
        deepest : deepest cut allowed, from 1 to L.
        ratio : theta to begin with, seconds per unit of Den; `time_scale` times it are the seconds until the target.

        Examples
        --------
        >>> problem = SplitTraining.random(num_devices=3, num_layers=3, max_batch=8, seed=1)
        >>> model = problem.to_cvxpy(interval=problem.min_interval, deepest=3, ratio=1e9)
        >>> _ = model.problem.solve(solver="HIGHS")
        >>> model.value < 0 and problem.is_feasible(model.solution())
        True
        """
        from edgeopt.problems.split_training.modelling import generic_model

        return generic_model(self, interval, deepest, ratio)

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
        noise, drift = self.least_terms()
        low, high, changed = self.min_interval, self.max_interval, self.factors.changed()
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
            **({"cost factors": ", ".join(f"{name} {value:g}" for name, value in changed.items())} if changed else {}),
            "least target, gradient noise": noise,
            "least target, client drift": drift,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SplitTraining):
            return NotImplemented
        same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in (*_ARRAYS, *_SCALARS))
        return same and self.factors == other.factors

    __hash__ = None  # type: ignore[assignment]

    def to_data(self) -> tuple[dict[str, Any], storage.Arrays]:
        """Return plain values and named arrays."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _SCALARS}
        if changed := self.factors.changed():  # left out otherwise: files without are those of SplitFed
            values["factors"] = changed
        return values, {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: storage.Arrays) -> Self:
        """Build the problem from what `to_data` returned."""
        if missing := [name for name in _ARRAYS if name not in arrays]:
            raise InvalidFileError(f"{missing[0]}: array is missing")
        given = Fields(values)
        fields: Any = {name: given.number(name) for name in _SCALARS} | {name: arrays[name] for name in _ARRAYS}
        if "factors" in given:
            fields["factors"] = CostFactors.from_changed(given.table("factors"))
        return cls(**fields)

    @classmethod
    def layout(cls, values: dict[str, Any]) -> storage.Layout:
        """Return which arrays a file may hold."""
        return dict.fromkeys(_ARRAYS, numbers(1))

    from_profile = Built(profile_fields)
    random = Built(random_fields)


_ARRAYS = (*(name for name, (axes, *_) in FLOATS.items() if axes), "max_batch")
_SCALARS = (*(name for name, (axes, *_) in FLOATS.items() if not axes), "min_interval", "max_interval")
