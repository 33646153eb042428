"""`matching`: a coordinator that knows everything about a round assigns clients to servers without a conflict."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.problems.client_selection.instance import SelectionInstance
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.client_selection.policy import play, supports_client_selection
from edgeopt.solvers.kernels.selection import match

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Matching:
    r"""In every round, the b-matching of servers and clients of most reward, with the mean time of picks for the longest.

    The coordinator knows latencies, staleness and who is busy in the present round, nothing of later ones: no server
    alone could know that much. A delivery of client c to server s counts
    :math:`v_{sc} = (w_f \min(1, a_{sc} m_s / n_s) - w_l t_{sc} / T_{max}) / m_s`, a pick that is wasted
    :math:`-(w_l + w_c) / m_s`. The picks of a round maximise the sum of these values over all disjoint picks; where there
    are none, places that the best matching leaves empty go to clients that are taken. The picks do not look ahead, and the round time is the longest time of a pick, not the mean: nothing is promised for the objective.

    The bound is proved. The longest time is at least the mean and the fairness of a delivery at most 1, so that the
    reward of a round is at most the sum of v with 1 in place of the minimum over the picks that deliver, and of wasted
    picks over the others. In the mode ``fail``, picks that deliver are disjoint: the sum is at most that of the best
    matching. In the mode ``share``, a pick that is shared loses :math:`w_c / m_s` and takes no less time than alone: it
    counts as a wasted pick that is worth as much as the server's best client less that. Hence the mean over rounds of
    the value of the best matching, which does not depend on the plan, bounds the objective of every plan.

    O(T P S) time mostly, P being the picks of all servers in a round. One iteration is one round.
    """

    name: ClassVar[str] = "matching"
    guarantee: ClassVar[Guarantee] = Heuristic("each round by itself is optimal with mean for longest time")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised beforehand; the bound tells afterwards."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Solve round by round."""
        with Run[SelectionPlan](self, problem, options) as run:
            bounds: list[float] = []

            def choose(environment: SelectionEnvironment) -> NDArray[np.int32]:
                bounds.append(round_bound(environment))
                return round_picks(environment)

            if play(run, problem, choose):
                run.tighten(float(np.mean(bounds)) / problem.num_servers)
        return run.result()

    def policies(self, problem: ClientSelection, seed: int) -> None:
        """Return None: the servers do not decide alone."""


def round_picks(environment: SelectionEnvironment) -> NDArray[np.int32]:
    """Return the picks int32 [S, M] of the coming round, episode 0."""
    value = delivery_values(environment, environment.bonus[0])
    return disjoint_picks(environment.problem, value, value - _wasted(environment.problem)[:, None])


def disjoint_picks(problem: SelectionInstance, value: Floats, gain: Floats) -> NDArray[np.int32]:
    """Return the picks int32 [S, M] of most gain [S, C] of which no two are equal; where that leaves places, see `_filled`."""
    picks = _filled(problem, value, _matched(gain, problem.picks))
    places = int(problem.picks.sum())
    if np.unique(picks[picks >= 0]).size < places:  # a collision: is there a way round it?
        together = float(problem.picks @ np.maximum(gain.max(axis=1), 0.0))
        prize = 2 * together if together > 0 else 1.0  # more than all gains together
        owner = _matched(np.where(problem.coverage, np.maximum(gain, 0.0) + prize, -np.inf), problem.picks)
        if (owner >= 0).sum() == places:
            picks = _filled(problem, value, owner)
    return picks


def _filled(problem: SelectionInstance, value: Floats, owner: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the picks int32 [S, M] of a matching; places left empty go to clients that nobody owns, if there are any."""
    picks = np.full((problem.num_servers, problem.max_picks), -1, np.int32)
    demand = (owner >= 0).astype(np.int64)
    for s, count in enumerate(problem.picks.tolist()):
        own = np.flatnonzero(owner == s)
        if (missing := count - len(own)) > 0:  # those that the fewest have taken, the best first
            others = np.flatnonzero(problem.coverage[s] & (owner != s))
            order = np.lexsort((-value[s, others], demand[others]))
            spare = others[order[:missing]]
            demand[spare] += 1
            own = np.concatenate([own, spare])
        picks[s, :count] = own
    return picks


def round_bound(environment: SelectionEnvironment) -> float:
    """Return an upper bound on the sum of the servers' rewards in the coming round, whatever was picked before."""
    problem = environment.problem
    value = delivery_values(environment, np.ones(problem.coverage.shape))
    wasted = _wasted(problem)
    if problem.mode == "share":
        wasted = np.maximum(wasted, value.max(axis=1) - problem.conflict_weight / problem.picks)
    owner = _matched(value - wasted[:, None], problem.picks)
    clients = np.flatnonzero(owner >= 0)
    delivered = value[owner[clients], clients] - wasted[owner[clients]]
    return float(problem.picks @ wasted + delivered.sum())


def delivery_values(environment: SelectionEnvironment, bonus: Floats) -> Floats:
    """Return [S, C]: what picking a client adds to the reward if nobody else does; -inf if not covered or busy."""
    problem = environment.problem
    share = environment.latency_s[0] / problem.timeout_s
    value = problem.fairness_weight * np.where(share <= 1, bonus, 0.0) - problem.latency_weight * np.minimum(share, 1)
    usable = problem.coverage & ~environment.busy[0]
    return np.asarray(np.where(usable, value / problem.picks[:, None], -np.inf))


def _wasted(problem: SelectionInstance) -> Floats:
    """Return [S]: what a pick adds that conflicts and delivers nothing."""
    return np.asarray(-(problem.latency_weight + problem.conflict_weight) / problem.picks)


def _matched(gain: Floats, picks: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the server [C] of each client in the matching of most gain [S, C], -1 for none; gains <= 0 are not used."""
    owner: NDArray[np.int64] = match(gain, np.argsort(-gain, axis=1, kind="stable"), picks.astype(np.int64))
    return owner
