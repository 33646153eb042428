"""`blind-matching`: a coordinator of all servers that does not see who is busy; what no server alone can beat by much."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.problems.client_selection.scenario import stationary
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.client_selection.forecaster import ConflictForecaster
from edgeopt.solvers.client_selection.hmm import CategoricalHMM
from edgeopt.solvers.client_selection.matching import disjoint_picks
from edgeopt.solvers.client_selection.policy import play, supports_client_selection


@dataclass(frozen=True, slots=True)
class BlindMatching:
    r"""As `matching`, but who is busy is known from past outcomes alone, those of all servers together.

    The coordinator knows the process of regimes where the problem has one, and keeps the exact distribution of every
    client's regime given all outcomes so far; without one it fits a hidden Markov model to them. With b the chance that a
    client is busy, a pick counts :math:`(w_f a (1 - b) - w_c b - w_l (t (1 - b) + b)) / m_s`, a being the fairness of a
    delivery and t its latency as a share of the time-out; the disjoint picks of the largest sum are taken.

    It tells how much of what servers lose is due to others, and how much to busy clients that nobody can see: a server
    alone knows less. It does not look ahead, so that nothing is proved by its figures. What is proved: in a round, a
    client is busy with a chance of at least the least of :math:`\sum_j A_{kj} b_j` over regimes k, A being the moves and
    b how often clients are busy, since even to know everyone's regime in the round before would leave that.

    O(T P S) time mostly, P being the picks of all servers in a round. One iteration is one round.
    """

    name: ClassVar[str] = "blind-matching"
    guarantee: ClassVar[Guarantee] = Heuristic("a reference")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Solve round by round."""
        with Run[SelectionPlan](self, problem, options) as run:
            beliefs = _beliefs(problem)

            def choose(environment: SelectionEnvironment) -> NDArray[np.int32]:
                if environment.now:
                    beliefs.update(_heard(environment))
                busy = beliefs.covered_probability[0, 0]
                value = expected_values(environment, busy)
                wasted = -(problem.latency_weight + problem.conflict_weight) / problem.picks
                return disjoint_picks(problem, value, value - wasted[:, None])

            play(run, problem, choose)
        return run.result()

    def policies(self, problem: ClientSelection, seed: int) -> None:
        """Return None: the servers do not decide alone."""


def least_busy(problem: ClientSelection) -> float:
    """Return a lower bound on the chance that a client is busy, given all that happened before; 0 without regimes.

    Examples
    --------
    >>> round(least_busy(ClientSelection.random()), 3)
    0.071
    """
    if problem.regime_transition is None or problem.busy_probability is None:
        return 0.0
    return float((problem.regime_transition @ problem.busy_probability).min())


def expected_values(environment: SelectionEnvironment, busy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [S, C]: what picking a client, busy with some chance [C], adds to the reward if nobody else does; -inf if not covered."""
    problem = environment.problem
    share = environment.latency_s[0] / problem.timeout_s
    fair = problem.fairness_weight * np.where(share <= 1, environment.bonus[0], 0.0) * (1 - busy)
    time = problem.latency_weight * (np.minimum(share, 1) * (1 - busy) + busy)
    value = fair - time - problem.conflict_weight * busy
    return np.asarray(np.where(problem.coverage, value / problem.picks[:, None], -np.inf))


def _beliefs(problem: ClientSelection) -> ConflictForecaster:
    """Return one belief per client, as if one server covered all."""
    everyone = np.ones((1, problem.num_clients), bool)
    if problem.regime_transition is None or problem.busy_probability is None:
        return ConflictForecaster(everyone)
    often = problem.busy_probability
    emission = np.column_stack([1 - often, often])
    model = CategoricalHMM(stationary(problem.regime_transition), problem.regime_transition, emission)
    return ConflictForecaster(everyone, models=[model], refit_every=None)


def _heard(environment: SelectionEnvironment) -> NDArray[np.int8]:
    """Return int8 [1, 1, C]: whether those picked by one server were busy in the last round; -1 for all others."""
    outcome = environment.outcome[0]
    return np.where((outcome >= 0).sum(axis=0) == 1, outcome.max(axis=0), -1).astype(np.int8)[None, None]
