"""`SelectionEnvironment`: many episodes against plain Python, and what each server is told."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection import kernels
from edgeopt.problems.client_selection.environment import SelectionEnvironment, ServerView
from edgeopt.rng import stream
from edgeopt.solvers.client_selection.policy import Policy
from tests.solvers.client_selection.instances import hand_made, random_plan, random_problem, simulate

few = settings(max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def padded(problem: ClientSelection, of_episodes: list[list[list[int]]]) -> np.ndarray:
    """Return picks[e][s] as int32 [E, S, M]."""
    picks = np.full((len(of_episodes), problem.num_servers, problem.max_picks), -1, np.int32)
    for e, of_round in enumerate(of_episodes):
        for s, clients in enumerate(of_round):
            picks[e, s, : len(clients)] = clients
    return picks


@given(seeds)
@few
def test_episodes_are_what_the_plain_model_says(seed: int):
    """Three episodes of different chance and picks at once: rewards, times, outcomes and all memory as in plain Python."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    chance = rng.integers(0, 2**31, 3).tolist()
    plans = [random_plan(problem, rng) for _ in chance]
    played = [simulate(problem, plan, one) for plan, one in zip(plans, chance, strict=True)]
    environment = SelectionEnvironment(problem, chance)
    for t in range(problem.rounds):
        assert (environment.now, environment.done) == (t, False)
        result = environment.step(padded(problem, [plan[t] for plan in plans]))
        for e, one in enumerate(played):
            np.testing.assert_allclose(result.reward[e], one.reward[t], atol=1e-12)
            np.testing.assert_allclose(result.round_s[e], one.round_s[t], atol=1e-12)
            np.testing.assert_array_equal(result.tally[e, :, kernels.CONFLICTS], one.conflicts[t])
            expected = np.full(problem.coverage.shape, -1)
            for pair, conflict in one.outcome[t].items():
                expected[pair] = conflict
            np.testing.assert_array_equal(result.outcome[e], expected)
    assert environment.done
    for e, (one, plan) in enumerate(zip(played, plans, strict=True)):
        for s, c in np.ndindex(*problem.coverage.shape):
            assert environment.last[e, s, c] == one.last.get((s, c), -1)
            assert environment.picked[e, s, c] == sum(c in row[s] for row in plan)
            assert environment.delivered[e, s, c] == sum(pair[1:] == (s, c) for pair in one.delivered)


@given(seeds)
@few
def test_views_are_rows_of_the_arrays(seed: int):
    """What a server is told is its own row of latency, staleness, fairness and memory, for the clients it covers."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, rounds=4, rate_bps=1e6, busy=None, regime_transition=None, busy_probability=None)
    environment = SelectionEnvironment(problem, [1, 2])
    plans = [random_plan(problem, rng) for _ in range(2)]
    for t in range(4):
        for e, s in np.ndindex(2, problem.num_servers):
            view = environment.view(s, e)
            clients = np.flatnonzero(problem.coverage[s])
            assert (view.server, view.round, view.num_picks) == (s, t, problem.picks[s])
            np.testing.assert_array_equal(view.clients, clients)
            np.testing.assert_allclose(view.latency_s, environment.latency_s[e, s, clients], rtol=1e-14)
            np.testing.assert_array_equal(view.staleness, environment.staleness[e, s, clients])
            np.testing.assert_allclose(view.bonus, environment.bonus[e, s, clients], rtol=1e-14)
            for name in ("picked", "delivered", "outcome"):
                np.testing.assert_array_equal(getattr(view, name), getattr(environment, name)[e, s, clients])
        environment.step(padded(problem, [plan[t] for plan in plans]))
    assert np.isinf(environment_latency_outside(problem)).all()


def environment_latency_outside(problem: ClientSelection) -> np.ndarray:
    """Return the latencies of pairs that are not covered."""
    return SelectionEnvironment(problem).latency_s[0][~problem.coverage]


class Recorder:
    """Picks at random and remembers every view as plain values."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.views = inner, []

    def pick(self, view: ServerView) -> Any:
        self.views.append(plain(view))
        return self.inner.pick(view)


def plain(view: ServerView) -> dict[str, Any]:
    """Return a view as plain values."""
    fields = (
        "server", "round", "num_picks", "clients", "latency_s", "last", "staleness", "bonus", "picked", "delivered", "outcome",
    )  # fmt: skip
    assert {name for name in dir(view) if not name.startswith("_")} == set(fields)
    return {name: np.asarray(getattr(view, name)).tolist() for name in fields}


def test_servers_see_their_own_history_alone():
    """Two runs in which server 1 does different things, but never takes what server 0 takes: server 0 sees no difference.

    And it does see a difference as soon as server 1 gets in its way.
    """
    coverage = [[True] * 4 + [False] * 2, [False] + [True] * 5]
    problem = hand_made(coverage=coverage, compute_s=1.0, rounds=12, rate_sigma=0.3, mode="fail",
                        regime_transition=[[0.9, 0.1], [0.2, 0.8]], busy_probability=[0.1, 0.8])  # fmt: skip
    rng = stream(1, "picks")
    own = [int(rng.integers(0, 4)) for _ in range(12)]
    others = {
        "one way": [next(c for c in (4, 5) if c != mine) for mine in own],
        "another way": [next(c for c in (1, 2, 3, 5) if c != mine) for mine in own],
        "in the way": [max(1, mine) for mine in own],
    }
    seen: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for name, picks in others.items():
        environment = SelectionEnvironment(problem)
        seen[name] = {0: [], 1: []}
        for mine, theirs in zip(own, picks, strict=True):
            for s in (0, 1):
                seen[name][s].append(plain(environment.view(s)))
            environment.step(np.array([[[mine], [theirs]]], np.int32))
    assert seen["one way"][0] == seen["another way"][0]
    assert seen["one way"][1] != seen["another way"][1]
    assert seen["one way"][0] != seen["in the way"][0]


def test_views_tell_nothing_of_who_is_busy():
    """Before the first pick, two scenarios that differ in who is busy look the same to every server."""
    calm = hand_made(busy=np.zeros((2, 3), bool))
    loaded = hand_made(busy=np.ones((2, 3), bool))
    for s in (0, 1):
        views = [plain(SelectionEnvironment(problem).view(s)) for problem in (calm, loaded)]
        assert views[0] == views[1]


@pytest.mark.parametrize(
    ("picks", "message"),
    [
        ([[[0], [0]]], "picks[0, 1, 0] = 0: expected another client that server 1 covers"),
        ([[[3], [1]]], "picks[0, 0, 0] = 3: expected another client that server 0 covers"),
        ([[[-2], [1]]], "picks[0, 0, 0] = -2: expected another client that server 0 covers"),
        ([[[0, 0], [1, -1]]], "picks[0, 0, 1] = 0: expected another client that server 0 covers"),
        ([[[0, 1], [1, -1]]], "picks[0, 0]: server 0 picks 2 clients, expected 1"),
        ([[[-1], [1]]], "picks[0, 0]: server 0 picks 0 clients, expected 1"),
        ([[[0], [1]]] * 2, "picks: expected shape [1, 2, any], got [2, 2, 1]"),
        ([[[0.5], [1]]], "picks[0, 0, 0] = 0.5: expected an integer"),
    ],
)
@pytest.mark.parametrize("dtype", [None, np.int32])
def test_bad_picks_are_named(picks: Any, message: str, dtype: Any):
    """Picks are checked before they are played, whatever type they come in."""
    environment = SelectionEnvironment(hand_made())
    if dtype is not None and "0.5" not in message:
        picks = np.array(picks, dtype)
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        environment.step(picks)
    assert environment.now == 0
    assert not environment.picked.any()


def test_the_horizon_ends_and_starts_over():
    """After the last round nothing can be played or seen; a reset forgets everything but the problem."""
    environment = SelectionEnvironment(hand_made())
    first = environment.step([[[0], [1]]])
    environment.step([[[1], [2]]])
    assert environment.done
    for call in (lambda: environment.step([[[0], [1]]]), lambda: environment.view(0), lambda: environment.busy):
        with pytest.raises(InvalidProblemError, match="round 2: the horizon of 2 rounds is reached"):
            call()
    environment.reset([0, 1])
    assert (environment.now, environment.num_episodes) == (0, 2)
    assert not environment.picked.any()
    assert (environment.last == -1).all()
    np.testing.assert_array_equal(environment.step([[[0], [1]]] * 2).reward[0], first.reward[0])
    with pytest.raises(InvalidProblemError, match="seeds: expected at least one"):
        environment.reset([])


def test_results_are_the_callers_own():
    """A later round does not change the arrays that an earlier one returned."""
    environment = SelectionEnvironment(hand_made())
    result = environment.step([[[0], [1]]])
    before = result.outcome.copy()
    environment.step([[[1], [2]]])
    np.testing.assert_array_equal(result.outcome, before)


def test_compiled_is_uncompiled():
    """The compiled kernels give the bits of the Python functions."""
    rng = np.random.default_rng(3)
    problem = ClientSelection.random(num_servers=3, num_clients=12, picks=2, mode="share", rounds=5, seed=2)
    arrays = []
    for kernel in (kernels.play_round, getattr(kernels.play_round, "py_func", kernels.play_round)):
        environment = SelectionEnvironment(problem, [4, 5])
        picks = padded(problem, [random_plan(problem, np.random.default_rng(6))[0]] * 2)
        shape = (2, 3)
        out = [np.empty(shape), np.empty(shape), np.empty((*shape, 5), np.int32)]
        memory = [environment.last, environment.picked, environment.delivered, environment.outcome]
        kernel(
            picks, problem.picks.copy(), problem.num_covered, environment.busy.copy(),
            environment.scenarios.fading[:, 0].copy(), problem.compute_s.copy(), problem.rate_bps.copy(),
            problem.payload_bits, problem.timeout_s, True, np.array([1.0, 0.5, 0.25]), 0, *memory, *out,
        )  # fmt: skip
        arrays.append([*memory, *out])
    for ours, python in zip(*arrays, strict=True):
        np.testing.assert_array_equal(ours, python)
    bonus = [np.empty((2, 3, 12)) for _ in range(2)]
    last = rng.integers(-1, 5, (2, 3, 12)).astype(np.int32)
    for kernel, out in zip((kernels.bonuses, getattr(kernels.bonuses, "py_func", kernels.bonuses)), bonus, strict=True):
        kernel(5, last, problem.picks.copy(), problem.num_covered, out)
    np.testing.assert_array_equal(*bonus)
    checks = (kernels.first_wrong_pick, getattr(kernels.first_wrong_pick, "py_func", kernels.first_wrong_pick))
    assert len({tuple(check(picks, problem.picks.copy(), problem.coverage.copy())) for check in checks}) == 1
