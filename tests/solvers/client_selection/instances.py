"""Tiny instances of client selection with known optima, random small ones, and the model in plain Python."""

import functools
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.scenario import draw_scenarios
from tests.solvers.tiny import Tiny, by_name

MOST_PLANS = 50_000


# --- the model in plain Python -----------------------------------------------------------------------------------


@dataclass
class Played:
    """What `simulate` saw: per round a list over servers, and the memory at the end, keyed by (server, client)."""

    reward: list[list[float]]
    round_s: list[list[float]]
    conflicts: list[list[int]]
    outcome: list[dict[tuple[int, int], int]]
    last: dict[tuple[int, int], int]
    sent: int
    delivered: list[tuple[int, int, int]]

    @property
    def objective(self) -> float:
        """Mean reward per server and round."""
        return float(np.mean(self.reward))


def simulate(problem: ClientSelection, picks: list[list[list[int]]], seed: int | None = None) -> Played:
    """Play ``picks[t][s]`` by the definition of the model, one pick after another."""
    chance = draw_scenarios(problem, [problem.seed if seed is None else seed])
    played = Played([], [], [], [], {}, 0, [])
    for t, of_round in enumerate(picks):
        rewards, times, counts, outcome = [], [], [], {}
        deliveries = []
        for s, clients in enumerate(of_round):
            m, n = int(problem.picks[s]), int(problem.coverage[s].sum())
            longest, conflicts, fair = 0.0, 0, 0.0
            for c in clients:
                takers = sum(c in others for others in of_round)
                busy = bool(chance.busy[0, t, c])
                rate = problem.rate_at(t)[s, c] * chance.fading[0, t, c]
                seconds = problem.compute_s[c] + takers * problem.payload_bits / rate
                lost = busy or (problem.mode == "fail" and takers > 1) or seconds > problem.timeout_s
                conflict = busy or takers > 1
                blocked = busy or (problem.mode == "fail" and takers > 1)
                longest = max(longest, problem.timeout_s if blocked else min(seconds, problem.timeout_s))
                conflicts += conflict
                outcome[s, c] = int(conflict)
                played.sent += not busy
                if not lost:
                    gap = t - played.last[s, c] if (s, c) in played.last else np.inf
                    fair += min(1.0, gap * m / n)
                    deliveries.append((s, c))
            rewards.append(
                problem.fairness_weight * fair / m
                - problem.latency_weight * longest / problem.timeout_s
                - problem.conflict_weight * conflicts / m
            )
            times.append(longest)
            counts.append(conflicts)
        for pair in deliveries:
            played.last[pair] = t
            played.delivered.append((t, *pair))
        played.reward.append(rewards)
        played.round_s.append(times)
        played.conflicts.append(counts)
        played.outcome.append(outcome)
    return played


def choices(problem: ClientSelection) -> list[tuple[tuple[int, ...], ...]]:
    """Return all picks of one round: one tuple of clients per server."""
    of_server = [
        list(combinations(np.flatnonzero(row).tolist(), int(count)))
        for row, count in zip(problem.coverage, problem.picks, strict=True)
    ]
    return list(product(*of_server))


def brute_force(problem: ClientSelection) -> tuple[float, SelectionPlan]:
    """Return the optimum and a plan that attains it, by playing every plan."""
    rounds = choices(problem)
    if len(rounds) ** problem.rounds > MOST_PLANS:
        raise ValueError(f"{len(rounds)} ** {problem.rounds} plans are too many to enumerate")
    best_value, best = -np.inf, None
    for plan in product(rounds, repeat=problem.rounds):
        value = simulate(problem, plan).objective
        if value > best_value:
            best_value, best = value, plan
    return best_value, SelectionPlan.from_lists([[list(c) for c in of_round] for of_round in best])


# --- problems ----------------------------------------------------------------------------------------------------


def hand_made(**changes: object) -> ClientSelection:
    """Return two servers that share client 1 of three; one pick, two rounds, 2 of at most 4 seconds."""
    fields: dict[str, object] = {
        "coverage": [[True, True, False], [False, True, True]], "picks": 1, "compute_s": 1.0, "payload_bits": 1e6,
        "rate_bps": 1e6, "timeout_s": 4.0, "rounds": 2,
    }  # fmt: skip
    return ClientSelection(**(fields | changes))


def random_problem(rng: np.random.Generator, **changes: object) -> ClientSelection:
    """Return a small random problem: any mode, any kind of availability and rates, random weights."""
    num_servers, num_clients, rounds = (int(rng.integers(1, 4)), int(rng.integers(3, 7)), int(rng.integers(1, 6)))
    coverage = rng.random((num_servers, num_clients)) < 0.7
    coverage[rng.integers(0, num_servers, num_clients), np.arange(num_clients)] = True
    for row in coverage:
        row[rng.integers(0, num_clients)] = True
    fields: dict[str, object] = {
        "coverage": coverage, "picks": [int(rng.integers(1, n + 1)) for n in coverage.sum(axis=1)],
        "compute_s": rng.uniform(0.0, 2.0, num_clients), "payload_bits": 1e6,
        "rate_bps": rng.uniform(0.2e6, 2e6, (rounds, *coverage.shape) if rng.random() < 0.5 else coverage.shape),
        "timeout_s": float(rng.uniform(2.0, 6.0)), "rounds": rounds, "mode": str(rng.choice(["fail", "share"])),
        "rate_sigma": float(rng.choice([0.0, 0.5])), "latency_weight": float(rng.random()),
        "conflict_weight": float(rng.random()), "fairness_weight": float(rng.random()),
        "seed": int(rng.integers(2**31)),
    }  # fmt: skip
    if (kind := rng.integers(3)) == 1:
        fields["busy"] = rng.random((rounds, num_clients)) < 0.3
    elif kind == 2:
        fields |= {"regime_transition": [[0.8, 0.2], [0.4, 0.6]], "busy_probability": [0.1, 0.8]}
    return ClientSelection(**(fields | changes))


def random_plan(problem: ClientSelection, rng: np.random.Generator) -> list[list[list[int]]]:
    """Return random feasible picks[t][s]."""
    return [
        [
            sorted(rng.permutation(np.flatnonzero(row))[:count].tolist())
            for row, count in zip(problem.coverage, problem.picks, strict=True)
        ]
        for _ in range(problem.rounds)
    ]


def _random(seed: int, **options: object) -> ClientSelection:
    """Return a random problem of two servers and four clients, two rounds."""
    rng = np.random.default_rng(seed)
    fields: dict[str, object] = {
        "coverage": [[True, True, True, False], [False, True, True, True]], "picks": [2, 1],
        "compute_s": rng.uniform(0.5, 2.0, 4), "rate_bps": rng.uniform(0.3e6, 2e6, (2, 4)), "seed": seed,
    }  # fmt: skip
    return hand_made(**(fields | options))


REGIMES: dict[str, object] = {
    "regime_transition": [[0.7, 0.3], [0.3, 0.7]],
    "busy_probability": [0.1, 0.9],
    "rate_sigma": 0.4,
}

Instance = functools.partial(Tiny, brute_force)

TINY: tuple[Tiny, ...] = (
    # server 0 takes 0 then 1, server 1 takes 1 then 2: never a conflict, always a first delivery, 1 - 2/4
    Instance("shared client", hand_made(), 0.5),
    # client 2 is always busy, so server 1 wants 1 in both rounds and server 0 is left with 0: first deliveries earn
    # 1 - 1/2 each; the second after one round of a cycle of two earns 1/2 - 1/2
    Instance("busy client", hand_made(busy=[[False, False, True]] * 2), 0.25),
    # both must take the only client: nothing arrives, -1 for the time-out and -1 for the conflict
    Instance("one client, fail", hand_made(coverage=[[True], [True]]), -2.0),
    # shared: 1 + 2 * 1 of 4 seconds, -3/4; conflict -1; every delivery counts in full, as the cycle has one round
    Instance("one client, share", hand_made(coverage=[[True], [True]], mode="share"), -0.75),
    # client 1 takes 5 s, which is late: it costs -1 and brings nothing; 0 and 2 bring 1/2 then 0
    Instance("late client", hand_made(compute_s=[1.0, 4.0, 1.0]), 0.25),
    # all covered clients are picked: nothing to choose. 3 s and 2 s alternate in the table: 1 - 3/4, 1 - 2/4
    Instance(
        "no choice, recorded rates",
        hand_made(coverage=[[True, True]], picks=2, rate_bps=[[[1e6, 0.5e6]], [[1e6, 1e6]]]),
        0.375,
    ),
    # nothing matters
    Instance("no weights", hand_made(latency_weight=0.0, conflict_weight=0.0, fairness_weight=0.0), 0.0),
    Instance("fail, regimes", _random(1, **REGIMES)),
    Instance("share, regimes", _random(2, mode="share", **REGIMES)),
    Instance("fail, only fairness", _random(3, latency_weight=0.0, conflict_weight=0.0)),
    Instance("share, sharing pays", _random(4, mode="share", conflict_weight=0.05, busy=[[True, False, False, True]] * 2)),
    Instance("fail, only latency", _random(5, conflict_weight=0.0, fairness_weight=0.0, **REGIMES)),
)  # fmt: skip

instance = functools.partial(by_name, TINY)
