"""Judging a selection plan: it is played in the environment, and what happened is summed up."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.problems.client_selection.instance import SelectionInstance
from edgeopt.problems.client_selection.kernels import BUSY, COLLISIONS, CONFLICTS, DELIVERED, SENT
from edgeopt.problems.client_selection.plan import SelectionPlan
from edgeopt.problems.client_selection.report import SelectionReport

TAIL = 0.95


def replay(problem: SelectionInstance, plan: SelectionPlan) -> SelectionReport:
    """Play a plan whose shape and ids have been checked, and sum up."""
    environment = SelectionEnvironment(problem)
    shape = (problem.rounds, problem.num_servers)
    reward, round_s = np.empty(shape), np.empty(shape)
    tally = np.empty((*shape, 5), np.int64)
    staleness, oldest = 0.0, 0
    for t in range(problem.rounds):
        result = environment.replay(plan.picks[t : t + 1])
        reward[t], round_s[t], tally[t] = result.reward[0], result.round_s[0], result.tally[0]
        stale = t - environment.last[0].max(axis=0)
        staleness += float(stale.mean())
        oldest = max(oldest, int(stale.max()))
    picks, sums = int((plan.picks >= 0).sum()), tally.sum(axis=(0, 1))
    deliveries = environment.delivered[0].sum(axis=0, dtype=np.int64)
    payload = problem.payload_bits / 8
    return SelectionReport(
        mean_reward=float(reward.mean()),
        conflict_rate=_share(sums[CONFLICTS], picks),
        collision_rate=_share(sums[COLLISIONS], picks),
        busy_rate=_share(sums[BUSY], picks),
        delivery_rate=_share(sums[DELIVERED], picks),
        mean_round_s=float(round_s.mean()),
        tail_round_s=float(np.quantile(round_s, TAIL)),
        total_s=round_s.sum(axis=0),
        jain_index=jain_index(deliveries),
        mean_staleness=staleness / problem.rounds,
        max_staleness=oldest,
        bytes_sent=float(sums[SENT] * payload),
        bytes_wasted=float((sums[SENT] - sums[DELIVERED]) * payload),
        deliveries=deliveries,
        reward=reward,
        round_s=round_s,
        conflicts=tally[:, :, CONFLICTS].astype(np.int32),
    )


def jain_index(amounts: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """Return Jain's fairness index of non-negative amounts, (sum x)^2 / (n sum x^2); 0 if all are 0.

    Examples
    --------
    >>> jain_index(np.array([2, 2, 2])), jain_index(np.array([0, 0, 3, 3]))
    (1.0, 0.5)
    """
    squares = float(np.square(amounts, dtype=np.float64).sum())
    return float(amounts.sum()) ** 2 / (len(amounts) * squares) if squares > 0 else 0.0


def _share(count: float, total: int) -> float:
    return float(count / total) if total else 0.0
