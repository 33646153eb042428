"""How well client selection works on episodes that nobody was trained on: rows per seed, means with 95 % intervals.

A learner is trained once for each seed, on a problem, and its policy is played on other episodes of the problem: other
busy clients, other fading. All solvers meet the same episodes under the same seed.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.statistics import Interval, interval
from edgeopt.problems import ClientSelection, SelectionReport
from edgeopt.problems.client_selection.scenario import held_out_seeds
from edgeopt.rng import stream
from edgeopt.solve import Solver, solve

if TYPE_CHECKING:
    from edgeopt.solvers.client_selection import TrainedPolicy

Row = dict[str, Any]
Forecasts = dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]

METRICS = (
    "mean_reward", "conflict_rate", "collision_rate", "busy_rate", "mean_round_s", "tail_round_s", "jain_index",
    "mean_staleness", "max_staleness", "bytes_sent", "bytes_wasted",
)  # fmt: skip
"""Columns of a row, as in `SelectionReport`: means over the held-out episodes of one seed."""

SETTINGS: dict[str, dict[str, Any]] = {
    "fail": {},
    "share": {"mode": "share"},
    "no memory": {"regime_transition": ((2 / 3, 1 / 3), (2 / 3, 1 / 3))},
}
"""Arguments of `ClientSelection.random`. Without memory, clients are as often busy as by default, but whether one is
busy says nothing about the next round."""
SEEN = 0.35


def evaluate(problem: ClientSelection, solver: Solver, seed: int, *, episodes: int = 20) -> Row:
    """Train a learner, if the solver is one, play on held-out episodes, and return means of `METRICS`.

    Parameters
    ----------
    problem : its own seed is used for nothing.
    solver : a solver of client selection.
    seed : of training, of chance in the solver, and of the choice of episodes.
    episodes : held-out episodes.

    Returns
    -------
    dict with ``solver``, ``seed``, ``fairness_weight`` of the problem, ``train_s`` and ``train_cpu_s`` (None for what is
    not trained), and `METRICS`.
    """
    from edgeopt.solvers.client_selection import RlCrp

    row: Row = {"solver": solver.name, "seed": seed, "fairness_weight": problem.fairness_weight}
    row |= {"train_s": None, "train_cpu_s": None}
    policy = None
    if isinstance(solver, RlCrp):
        wall, cpu = time.perf_counter(), time.process_time()
        policy = solver.train(problem, seed=seed)
        row |= {"train_s": time.perf_counter() - wall, "train_cpu_s": time.process_time() - cpu}
    return row | play_held_out(problem, solver if policy is None else policy, seed, episodes)


def play_held_out(problem: ClientSelection, player: "Solver | TrainedPolicy", seed: int, episodes: int) -> Row:
    """Return means of `METRICS` over held-out episodes that a solver or a trained policy plays."""
    from edgeopt.solvers.client_selection import TrainedPolicy
    from edgeopt.solvers.client_selection.rl import play_policy

    reports = []
    for other in held_out_seeds(seed, episodes):
        played = problem.replace(seed=other)
        plan: Any = (
            play_policy(played, player)
            if isinstance(player, TrainedPolicy)
            else solve(played, player, seed=seed).raise_for_status().solution
        )
        reports.append(played.report(plan))
    return metrics(reports)


def metrics(reports: Sequence[SelectionReport]) -> dict[str, float]:
    """Return the means of `METRICS` over reports."""
    return {name: float(np.mean([getattr(report, name) for report in reports])) for name in METRICS}


def difference(rows: Sequence[Mapping[str, Any]], first: str, second: str, metric: str) -> Interval:
    """Return the mean of first - second over seeds that both have, with its interval: episodes are the same for both."""
    values = {(row["solver"], row["seed"]): row[metric] for row in rows}
    both = [seed for solver, seed in values if solver == first and (second, seed) in values]
    return interval(values[first, seed] - values[second, seed] for seed in both)


# --- forecasts ---------------------------------------------------------------------------------------------------


def gapped_forecasts(num: int = 200, length: int = 400, *, seen: float = SEEN, seed: int = 1) -> Forecasts:
    """Return forecasts on a two-regime process of which a share is seen, each with what happened.

    A model is fitted to half of the sequences; the other half is forecast. Beside it the process itself (the oracle)
    and the share of ones.
    """
    from edgeopt.solvers.client_selection.forecaster import START
    from edgeopt.solvers.client_selection.hmm import CategoricalHMM

    true = CategoricalHMM(
        np.array([0.67, 0.33]), np.array([[0.95, 0.05], [0.1, 0.9]]), np.array([[0.9, 0.1], [0.2, 0.8]])
    )
    full, _ = true.sample(num, length, seed=seed)
    data = np.where(stream(seed, "seen").random(full.shape) < seen, full, -1)
    train, test = data[: num // 2], data[num // 2 :]
    known = test >= 0
    happened = test[known] == 1
    fitted, _ = START.fit(train, iterations=200, prior=1.0)
    chances = {
        "oracle": true.forecasts(test)[..., 1][known],
        "fitted": fitted.forecasts(test)[..., 1][known],
        "base rate": np.full(happened.size, (train[train >= 0] == 1).mean()),
    }
    return {name: (chance, happened) for name, chance in chances.items()}


def played_forecasts(problem: ClientSelection, *, episodes: int = 16, seed: int = 0) -> Forecasts:
    """Return forecasts of the conflicts of random picks in the environment, each with what happened.

    Every server's model is fitted to its outcomes in some episodes; others are forecast, server by server. Beside it
    the mean of a Beta distribution of each client's conflicts so far, and the share of conflicts of each server.
    """
    from edgeopt.problems.client_selection.environment import SelectionEnvironment
    from edgeopt.solvers.client_selection.features import top_picks
    from edgeopt.solvers.client_selection.forecaster import START, ConflictForecaster

    rng = stream(seed, "played-forecasts")
    start = [START] * problem.num_servers
    rounds = problem.rounds
    learning = ConflictForecaster(
        problem.coverage, episodes, models=start, refit_every=rounds, window=rounds, iterations=200
    )
    counting = ConflictForecaster(problem.coverage, episodes, refit_every=None)
    chances: dict[str, list[NDArray[np.float64]]] = {"fitted": [], "counted": [], "base rate": []}
    happened: list[NDArray[np.bool_]] = []
    rates = np.zeros(problem.num_servers)
    for part in ("train", "test"):
        environment = SelectionEnvironment(problem, stream(seed, part).integers(2**31, size=episodes).tolist())
        outcomes = []
        learning.reset(episodes)
        while not environment.done:
            ahead, counted = learning.probability, counting.probability
            scores = rng.random(environment.last.shape)
            outcome = environment.step(top_picks(scores, problem.coverage, problem.picks)).outcome
            learning.update(outcome)
            outcomes.append(outcome)
            if part == "test":
                counting.update(outcome)
                e, s, c = np.nonzero(outcome >= 0)
                happened.append(outcome[e, s, c] == 1)
                chances["fitted"].append(ahead[e, s, c])
                chances["counted"].append(counted[e, s, c])
                chances["base rate"].append(rates[s])
        if part == "train":
            seen = np.stack(outcomes)
            rates = (seen == 1).sum(axis=(0, 1, 3)) / (seen >= 0).sum(axis=(0, 1, 3))
    truth = np.concatenate(happened)
    return {name: (np.concatenate(parts), truth) for name, parts in chances.items()}
