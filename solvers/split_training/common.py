"""What the solvers of split training share: the costs of a problem as plain arrays, and how a run begins and ends."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Result
from edgeopt.solve import Run
from edgeopt.validate import integer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Costs:
    """The numbers of a problem that its solvers work with; cuts are counted from 0, a cut at L - 1 is after layer L.

    Parameters
    ----------
    forward, backward : float64 [N, L], seconds per sample of each device before and after the server's work.
    server : float64 [L], seconds per sample at the server.
    limit : int64 [N, L], largest batch size, not increasing along a row.
    client_bits : float64 [L], bits of the devices' part of the model, as an aggregation moves them.
    fed_up, fed_down : float64 [N], seconds per bit between each device and the fed server.
    server_up, server_down : seconds per bit between the edge server and the fed server.
    noise : c, the noise term of the bound is c sum_i 1 / b_i.
    drift : float64 [L], the drift term is I^2 times that at the deepest cut, for I > 1.
    target, scale : epsilon and 2 vartheta / gamma.
    """

    forward: Floats
    backward: Floats
    server: Floats
    limit: Ints
    client_bits: Floats
    fed_up: Floats
    fed_down: Floats
    server_up: float
    server_down: float
    noise: float
    drift: Floats
    target: float
    scale: float

    @classmethod
    def of(cls, problem: SplitTraining) -> "Costs":
        """Return the costs of a problem, in writable arrays: kernels compile once more for read-only ones."""
        return cls(
            forward=problem.forward_s,
            backward=problem.backward_s,
            server=problem.server_s,
            limit=problem.batch_limit.astype(np.int64),
            client_bits=problem.averaged_bits,
            fed_up=1 / problem.fed_uplink_bps,
            fed_down=1 / problem.fed_downlink_bps,
            server_up=1 / problem.server_fed_uplink_bps,
            server_down=1 / problem.server_fed_downlink_bps,
            noise=problem.noise_weight,
            drift=problem.drift_weight,
            target=problem.target,
            scale=problem.time_scale,
        )

    @property
    def num_devices(self) -> int:
        """Devices, N."""
        return int(self.forward.shape[0])

    @property
    def num_layers(self) -> int:
        """Layers, L."""
        return self.server.size

    def deepest(self, batch: Ints) -> Ints:
        """Return int64 [N]: the deepest cut at which each device has memory for its batch."""
        return np.asarray((self.limit >= batch[:, None]).sum(axis=1) - 1, np.int64)

    def limit_at(self, cut: Ints) -> Ints:
        """Return int64 [N]: the largest batch size of each device at its cut."""
        return np.asarray(self.limit[np.arange(self.num_devices), cut], np.int64)

    def left(self, interval: int) -> Floats:
        """Return float64 [L]: what the drift leaves of the target for each deepest cut, maybe nothing."""
        return np.asarray(self.target - (self.drift * interval**2 if interval > 1 else 0.0 * self.drift))

    def round_and_aggregation(self, batch: Ints, cut: Ints) -> tuple[float, float]:
        """Return T_S and T_A of batch sizes and cuts, in seconds."""
        device = np.arange(self.num_devices)
        round_s = (batch * self.forward[device, cut]).max() + (batch * self.backward[device, cut]).max()
        return float(round_s + batch @ self.server[cut]), self.aggregation(cut)

    def aggregation(self, cut: Ints) -> float:
        """Return T_A of cuts, in seconds."""
        held = self.client_bits[cut]
        extra = float((held.max() - held).sum())
        up = max(float((held * self.fed_up).max()), extra * self.server_up)
        return up + max(float((held * self.fed_down).max()), extra * self.server_down)

    def objective(self, batch: Ints, cut: Ints, interval: int) -> float:
        """Return Theta, inf where the bound never reaches the target."""
        left = float(self.left(interval)[cut.max()]) - self.noise * float((1 / batch).sum())
        round_s, aggregation_s = self.round_and_aggregation(batch, cut)
        return self.scale * (round_s + aggregation_s / interval) / left if left > 0 else np.inf


def safest(costs: Costs, interval: int) -> tuple[Ints, Ints, int]:
    """Return the largest batch sizes at cut 0: both noise and drift are least, so that it reaches any feasible target."""
    return costs.limit[:, 0].copy(), np.zeros(costs.num_devices, np.int64), interval


def plan_of(batch: Ints, cut: Ints, interval: int) -> SplitPlan:
    """Return the plan of batch sizes, cuts counted from 0, and an interval."""
    layer = (cut + 1).astype(np.int32)
    return SplitPlan(batch_size=batch.astype(np.int32), cut_layer=layer, aggregation_interval=interval)


def arrays_of(plan: SplitPlan) -> tuple[Ints, Ints, int]:
    """Return batch sizes, cuts counted from 0, and the interval of a plan."""
    return plan.batch_size.astype(np.int64), plan.cut_layer.astype(np.int64) - 1, plan.aggregation_interval


def check_count(name: str, value: object) -> None:
    """Refuse a setting that is no integer >= 1."""
    integer(name, value, low=1)


def supports_split_training(problem: Problem) -> str | None:
    """Return None for a `SplitTraining` problem, else what was expected."""
    return None if isinstance(problem, SplitTraining) else f"expected a split-training problem, got {problem.kind}"


def offer_feasible(run: Run[SplitPlan], plan: SplitPlan) -> bool:
    """Offer a plan unless the problem refuses it; return whether it is better than what there was."""
    return run.problem.is_feasible(plan) and run.offer(plan)


def finish(run: Run[SplitPlan], problem: SplitTraining, message: str = "") -> Result[Any]:
    """Return the result; without a plan, say which term keeps the target out of reach."""
    reason = problem.explain_infeasible() if run.solution is None else None
    return run.result(infeasible=reason is not None, message=reason or message)
