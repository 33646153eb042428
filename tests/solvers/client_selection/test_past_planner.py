"""Planners that know the past: what each rule expects, by a second implementation; nothing is seen beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ClientSelection
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.solvers.client_selection import Fastest, PastPlanner, RandomPicks

CLIENTS, PICKS = 5, 2


def problem(**changes) -> ClientSelection:
    return ClientSelection(
        **{"coverage": np.ones((1, CLIENTS), bool), "picks": PICKS, "compute_s": 1.0, "payload_bits": 1.0, "rate_bps": 1.0,
           "timeout_s": 1.0, "rounds": 99} | changes
    )  # fmt: skip


def expected(rule: str, seen: dict[int, list[tuple[float, float]]], now: float, memory: float) -> list[float]:
    """Return expected seconds, from lists of (virtual second, seconds) of each client."""
    found = []
    logs = {c: [float(np.log(s)) for _, s in own] for c, own in seen.items()}
    tries = sum(map(len, logs.values()))
    spare = sum(max(len(own) - 1, 0) for own in logs.values())
    spread = (sum(float(np.var(own)) * len(own) for own in logs.values() if own) / spare) ** 0.5 if spare else 0.0
    for c in range(CLIENTS):
        if not (own := logs[c]):
            found.append(0.0)
            continue
        mean = float(np.mean(own))
        log = {
            "last": own[-1],
            "mean": mean,
            "optimistic": mean - spread * (2 * np.log(max(tries, 1)) / len(own)) ** 0.5,
            "ageing": mean + (own[-1] - mean) * np.exp(-(now - seen[c][-1][0]) / memory),
        }[rule]
        found.append(float(np.exp(log)))
    return found


@pytest.mark.parametrize("rule", ["last", "mean", "optimistic", "ageing"])
@given(seed=st.integers(0, 1000))
def test_picks_are_the_expected_fastest(rule: str, seed: int):
    """Round after round, those who are expected to take least; who was never picked takes nothing."""
    rng = np.random.default_rng(seed)
    planner = PastPlanner(problem(), [Fastest().policy(0, 0)], rule, memory_s=7.0)
    seen: dict[int, list[tuple[float, float]]] = {c: [] for c in range(CLIENTS)}
    now, feedback = 0.0, None
    for round in range(8):
        plan = planner.plan(round, feedback)
        wanted = expected(rule, seen, now, 7.0)
        chosen = sorted(wanted[c] for c in plan.client)
        assert chosen == pytest.approx(sorted(wanted)[:PICKS])
        took = rng.lognormal(size=PICKS)
        now += took.max()
        feedback = Feedback(round=round, plan=plan, seconds=took.max(), client_seconds=took, now_s=now)
        for c, s in zip(plan.client.tolist(), took.tolist(), strict=True):
            seen[c].append((now, s))


def test_a_restored_planner_goes_on():
    """What it has seen, and what its policies draw, is carried over."""

    def new() -> PastPlanner:
        return PastPlanner(problem(), [RandomPicks().policy(0, 3)], "ageing")

    def told(planner: PastPlanner, rounds: range, feedback: Feedback | None) -> list[list[int]]:
        picks = []
        for round in rounds:
            plan = planner.plan(round, feedback)
            picks.append(plan.client.tolist())
            feedback = Feedback(round=round, plan=plan, seconds=1, client_seconds=[1.0 + round, 2.0], now_s=round + 1)
        told.last = feedback  # type: ignore[attr-defined]
        return picks

    whole = told(new(), range(6), None)
    first = new()
    begun = told(first, range(3), None)
    second = new()
    second.restore(first.state())
    assert begun + told(second, range(3, 6), told.last) == whole  # type: ignore[attr-defined]
    state = first.state()
    del state["seen_mean"]
    with pytest.raises(InvalidProblemError, match="state: seen_mean: array is missing"):
        new().restore(state)


def test_what_was_not_measured_is_not_noted():
    """A client without a time stays unknown, and one that two servers picked counts once."""
    planner = PastPlanner(
        problem(coverage=np.ones((2, CLIENTS), bool)), [Fastest().policy(s, 0) for s in range(2)], "last"
    )
    planner.plan(0)
    plan = RoundPlan(client=[0, 1, 1, 2], server=[0, 0, 1, 1])
    told = Feedback(round=0, plan=plan, seconds=1, client_seconds=[3, 4, 5, np.nan])
    assert planner.plan(1, told).client.tolist() == [2, 3, 2, 3]
    with pytest.raises(InvalidProblemError, match="rule = 'luck': expected one of last, mean, optimistic, ageing"):
        PastPlanner(problem(), [Fastest().policy(0, 0)], "luck")
