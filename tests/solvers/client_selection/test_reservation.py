"""`reservation` against a second implementation in plain Python, Bayes' rule by enumeration, and its theorem."""

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment, ServerView
from edgeopt.problems.client_selection.scenario import held_out_seeds
from edgeopt.rng import stream
from edgeopt.solvers.client_selection import RandomPicks, Reservation
from edgeopt.solvers.client_selection.reservation import FIT_STEPS, GRID, MOVES, OFTEN, PRIORS, Beliefs, phases_by_rule
from edgeopt.solvers.kernels.reservation import LEAST, fit_loads, hear

PROBLEM = ClientSelection.random(num_servers=4, num_clients=24, picks=3, rounds=40, seed=5)


# --- a second implementation ---------------------------------------------------------------------------------------


class Plain:
    """One server in plain Python, without fits: beliefs in dictionaries, every candidate set scored one by one."""

    def __init__(self, solver: Reservation, problem: ClientSelection, server: int, seed: int) -> None:
        self.solver, self.problem = solver, problem
        self.phases = solver.phases or phases_by_rule(problem)
        self.rng = stream(seed, "reservation", server)
        self.calm: dict[int, float] = {}
        self.q: dict[tuple[int, int], float] = {}
        self.held: set[tuple[int, int]] = set()

    def busy(self, c: int) -> float:
        calm = self.calm.get(c, 2 / 3)
        return float(calm * OFTEN[0] + (1 - calm) * OFTEN[1])

    def pick(self, view: ServerView) -> list[int]:
        if view.round:
            self.hear(view)
        solver, problem, phase = self.solver, self.problem, view.round % self.phases
        unit = max(problem.latency_weight, problem.conflict_weight, problem.fairness_weight)
        noise = solver.noise * self.rng.gumbel(size=len(view.clients))
        rows = []
        for i, c in enumerate(view.clients.tolist()):
            free = (1 - self.busy(c)) * (1 - self.q.get((phase, c), solver.prior))
            late = view.latency_s[i] / problem.timeout_s
            chance = 0.0 if late > 1 else 1 - self.busy(c) if problem.mode == "share" else free
            worth = problem.fairness_weight / unit * view.bonus[i] ** solver.patience * chance
            worth += noise[i] - solver.caution * problem.conflict_weight / unit * (1 - free)
            worth += solver.hold * free if (phase, c) in self.held else 0.0
            rows.append((c, worth, chance, min(1.0, late)))
        sets = []
        for g in GRID:
            order = sorted(
                rows,
                key=lambda row: (
                    -(row[1] + g * problem.latency_weight / unit * (math.log(max(LEAST, row[2])) - row[3])),
                    row[0],
                ),
            )
            best = order[: view.num_picks]
            time = 1 - math.prod(row[2] for row in best) * (1 - max(row[3] for row in best))
            value = sum(row[1] for row in best) / len(best) - problem.latency_weight / unit * time
            sets.append((value, [row[0] for row in best]))
        return max(sets, key=lambda one: one[0])[1]

    def hear(self, view: ServerView) -> None:
        solver, phase = self.solver, (view.round - 1) % self.phases
        for i, c in enumerate(view.clients.tolist()):
            q, calm = self.q.get((phase, c), solver.prior), self.calm.get(c, 2 / 3)
            if (o := view.outcome[i]) >= 0:
                taken_for_sure = o == 1 and view.last[i] == view.round - 1
                # joint chances of (load, busy, taken)
                joint = {
                    (k, b, x): (calm if k == 0 else 1 - calm) * (OFTEN[k] if b else 1 - OFTEN[k]) * (q if x else 1 - q)
                    for k, b, x in product((0, 1), repeat=3)
                }
                left = {
                    key: p for key, p in joint.items() if (key[1] or key[2]) == o and not (taken_for_sure and key[1])
                }
                total = sum(left.values())
                calm = sum(p for key, p in left.items() if key[0] == 0) / total
                q = sum(p for key, p in left.items() if key[2]) / total if o else solver.slip
                if o == 0:
                    self.held.add((phase, c))
                elif q >= 0.5:
                    self.held.discard((phase, c))
            self.q[phase, c] = q + solver.forget * (solver.prior - q)
            self.calm[c] = calm * MOVES[0, 0] + (1 - calm) * MOVES[1, 0]


@pytest.mark.parametrize("mode", ["fail", "share"])
@pytest.mark.parametrize("changes", [{}, {"phases": 3, "hold": 0.1, "caution": 1.0, "patience": 1.0, "noise": 0.05}])
def test_picks_are_those_of_a_plain_implementation(mode: Any, changes: dict[str, Any]):
    """Beliefs, worth and sets agree round by round, each server from its own views."""
    problem = PROBLEM.replace(mode=mode, latency_weight=0.5)
    solver = Reservation(fit_at=1000, **changes)
    environment = SelectionEnvironment(problem)
    plain = [Plain(solver, problem, s, seed=7) for s in range(4)]
    policies = solver.policies(problem, seed=7)
    while not environment.done:
        views = [environment.view(s) for s in range(4)]
        picks = [sorted(policy.pick(view).tolist()) for policy, view in zip(policies, views, strict=True)]
        assert picks == [sorted(one.pick(view)) for one, view in zip(plain, views, strict=True)]
        environment.step([picks])


def test_many_episodes_at_once_are_each_alone():
    """The batch picks what every policy picks from its own views, fits included; uneven numbers of picks."""
    problem = PROBLEM.replace(picks=[1, 2, 3, 4])
    solver = Reservation(fit_at=10)
    environment = SelectionEnvironment(problem, [5, 6, 7])
    beliefs = Beliefs(solver, problem, seeds=[0, 1, 2])
    policies = [solver.policies(problem, seed=e) for e in range(3)]
    while not environment.done:
        picks = beliefs.picks(environment)
        for e, s in product(range(3), range(4)):
            alone = policies[e][s].pick(environment.view(s, e))
            assert sorted(alone.tolist()) == sorted(picks[e, s][picks[e, s] >= 0].tolist())
        environment.step(picks)
        beliefs.update(environment)


def test_the_plan_is_feasible_and_repeats():
    first, again = (edgeopt.solve(PROBLEM, "reservation", seed=3) for _ in range(2))
    assert first.feasible
    np.testing.assert_array_equal(first.solution.picks, again.solution.picks)
    other = edgeopt.solve(PROBLEM, "reservation", seed=4).solution.picks
    assert (other != first.solution.picks).any()


def test_the_unit_of_the_weights_does_not_matter():
    scaled = PROBLEM.replace(latency_weight=7.0, conflict_weight=7.0, fairness_weight=7.0)
    plans = [edgeopt.solve(problem, "reservation").solution.picks for problem in (PROBLEM, scaled)]
    np.testing.assert_array_equal(*plans)


# --- beliefs -------------------------------------------------------------------------------------------------------


def test_an_update_that_arrives_in_a_conflict_was_taken():
    """In the mode `share` such a client was idle, and certainly taken; the load is that of an idle client."""
    load, busy, taken = np.array([[[[0.5, 0.5]]]]), np.zeros((1, 1, 1)), np.full((1, 1, 1, 1), 0.3)
    held, often = np.ones((1, 1, 1, 1), bool), np.array([[[0.2, 0.6]]])
    stays = np.eye(2)[None, None]
    hear(
        np.zeros(1, np.int32), np.ones(1, np.int32), np.ones((1, 1, 1), np.int8), np.ones((1, 1, 1), bool), 0.01, 0.3,
        0.0, stays, often, load, busy, taken, held,
    )  # fmt: skip
    assert taken.item() == 1.0
    assert not held.item()
    np.testing.assert_allclose(load[0, 0, 0], [0.8 / 1.2, 0.4 / 1.2])


def test_fits_are_expectation_maximisation():
    """One step against expected counts over all hidden paths, enumerated; the beliefs against those of the paths."""
    rng, rounds, clients = np.random.default_rng(1), 6, 5
    outcomes = rng.choice([-1, 0, 1], size=(1, 1, clients, rounds), p=[0.4, 0.3, 0.3]).astype(np.int8)
    outcomes[0, 0, 0] = -1
    others = rng.uniform(0.0, 0.9, size=outcomes.shape).astype(np.float32)
    a, b = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0.15, 0.55])
    pi = np.array([0.6, 0.4])

    def paths(i: int, a: Any, b: Any) -> tuple[int, dict[tuple[int, ...], float]]:
        seen = outcomes[0, 0, i]
        first = int(np.argmax(seen >= 0))
        start = np.array([a[1, 0], a[0, 1]]) / (a[0, 1] + a[1, 0])
        found = {}
        for path in product((0, 1), repeat=rounds - first + 1):
            p = start[path[0]] * math.prod(a[j, k] for j, k in pairwise(path))
            for t, k in zip(range(first, rounds), path, strict=False):
                free = (1 - b[k]) * (1 - float(others[0, 0, i, t]))
                p *= {-1: 1.0, 0: free, 1: 1 - free}[int(seen[t])]
            found[path] = p
        total = sum(found.values())
        return first, {path: p / total for path, p in found.items()}

    moves, was = PRIORS[:2].copy(), PRIORS[2:].copy()
    for i in range(1, clients):
        first, found = paths(i, a, b)
        last = int(np.flatnonzero(outcomes[0, 0, i] >= 0)[-1])
        for path, p in found.items():
            for t, k in zip(range(first, rounds), path, strict=False):
                if t < last:
                    moves[k, path[t - first + 1]] += p
                if (o := outcomes[0, 0, i, t]) >= 0:
                    busy = b[k] / (1 - (1 - b[k]) * (1 - float(others[0, 0, i, t]))) if o == 1 else 0.0
                    was[k] += p * np.array([busy, 1 - busy])
    transition, often = a[None, None].copy(), b[None, None].copy()
    load, busy = np.zeros((1, 1, clients, 2)), np.zeros((1, 1, clients))
    fit_loads(rounds, np.array([clients], np.int32), outcomes, others, 1, PRIORS, transition, often, load, busy)
    np.testing.assert_allclose(transition[0, 0], moves / moves.sum(axis=1, keepdims=True), rtol=1e-10)
    np.testing.assert_allclose(often[0, 0], was[:, 0] / was.sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(pi, [a[1, 0] / 0.5, a[0, 1] / 0.5])
    for i in range(1, clients):
        _, found = paths(i, transition[0, 0], often[0, 0])
        calm = sum(p for path, p in found.items() if path[-1] == 0)
        np.testing.assert_allclose(load[0, 0, i], [calm, 1 - calm], rtol=1e-10)
        np.testing.assert_allclose(busy[0, 0, i], load[0, 0, i] @ often[0, 0], rtol=1e-12)


def test_fits_tell_loaded_clients_from_calm_ones():
    """What is fitted to many clients that were always alone comes near to the process that drew them."""
    rng = np.random.default_rng(2)
    true, often = np.array([[0.97, 0.03], [0.06, 0.94]]), np.array([0.05, 0.75])
    loaded = rng.random(300) < 1 / 3
    outcomes = np.empty((1, 1, 300, 100), np.int8)
    for t in range(100):
        outcomes[0, 0, :, t] = np.where(rng.random(300) < 0.5, rng.random(300) < often[loaded.astype(int)], -1)
        loaded = rng.random(300) < true[loaded.astype(int), 1]
    beliefs = {"transition": MOVES[None, None].copy(), "often": OFTEN[None, None].copy()}
    load, busy = np.zeros((1, 1, 300, 2)), np.zeros((1, 1, 300))
    fit_loads(
        100, np.array([300], np.int32), outcomes, np.zeros(outcomes.shape, np.float32), 20 * FIT_STEPS, PRIORS,
        beliefs["transition"], beliefs["often"], load, busy,
    )  # fmt: skip
    np.testing.assert_allclose(beliefs["often"][0, 0], often, atol=0.03)
    np.testing.assert_allclose(beliefs["transition"][0, 0], true, atol=0.015)


# --- what is promised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fail", "share"])
@pytest.mark.parametrize("phases", [1, 3])
def test_conflicts_end_where_nobody_is_busy_and_there_is_room(mode: Any, phases: int):
    """With held clients first: in 40 episodes all conflicts end, and from the first clean turn of a phase it stays clean."""
    coverage = np.zeros((5, 20), bool)
    for s in range(5):
        coverage[s, np.arange(4 * s, 4 * s + 12) % 20] = True  # 12 clients, shared with all others: 3 + 3 x 3 <= 12
    problem = ClientSelection(
        coverage=coverage, picks=[3, 2, 3, 2, 2], compute_s=1.0, payload_bits=1e6, rate_bps=1e6, timeout_s=5.0,
        rounds=150 * phases, rate_sigma=0.3, mode=mode,
    )  # fmt: skip
    assert (problem.num_covered >= problem.picks.sum()).all()  # there is room
    environment = SelectionEnvironment(problem, range(40))
    beliefs = Beliefs(Reservation(hold=math.inf, phases=phases, noise=0.1, fit_at=1000), problem, range(40))
    clean = np.zeros((phases, 40), bool)
    while not environment.done:
        phase = environment.now % phases
        result = environment.step(beliefs.picks(environment))
        beliefs.update(environment)
        none = result.tally[:, :, 0].sum(axis=1) == 0
        assert none[clean[phase]].all()
        clean[phase] |= none
    assert clean.all()


def test_held_sets_are_disjoint_and_no_larger_than_the_picks():
    """Steps (i) and (ii) of the proof, where there is no room either."""
    problem = PROBLEM.replace(regime_transition=None, busy_probability=None, rounds=60)
    environment = SelectionEnvironment(problem, range(10))
    beliefs = Beliefs(Reservation(hold=math.inf, fit_at=1000), problem, range(10))
    while not environment.done:
        environment.step(beliefs.picks(environment))
        beliefs.update(environment)
        for e, phase in product(range(10), range(beliefs.held.shape[2])):
            owners = np.zeros(problem.num_clients, int)
            for s in range(problem.num_servers):
                mine = np.flatnonzero(problem.coverage[s])[beliefs.held[e, s, phase, : problem.num_covered[s]]]
                assert len(mine) <= problem.picks[s]
                owners[mine] += 1
            assert owners.max() <= 1


def test_it_beats_random_picks_on_episodes_of_the_default_problem():
    problem = ClientSelection.random()
    for seed in held_out_seeds(0, 3):
        played = problem.replace(seed=seed)
        own, other = (
            played.report(edgeopt.solve(played, solver).solution) for solver in (Reservation(), RandomPicks())
        )
        assert own.mean_reward > other.mean_reward + 0.2
        assert own.conflict_rate < 0.7 * other.conflict_rate


def test_phases_by_rule_grow_with_the_rounds_between_turns():
    assert phases_by_rule(ClientSelection.random()) == 2
    assert phases_by_rule(ClientSelection.random(num_servers=20, num_clients=1000, picks=10)) == 7
    assert phases_by_rule(PROBLEM.replace(picks=PROBLEM.num_covered)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": 0}, r"phases = 0: expected an integer from 1 to 64 or None"),
        ({"prior": 1.0}, r"prior = 1\.0: expected a number above 0 and below 1"),
        ({"slip": 0.0}, r"slip = 0\.0: expected a number above 0 and below 1"),
        ({"forget": -0.1}, r"forget = -0\.1: expected a number from 0 to 1"),
        ({"hold": -1.0}, r"hold = -1\.0: expected a number >= 0, inf for held clients first"),
        ({"hold": math.nan}, r"hold = nan: expected a number >= 0"),
        ({"noise": math.inf}, r"noise = inf: expected a number >= 0"),
        ({"fit_at": 0}, r"fit_at = 0: expected an integer >= 1"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(EdgeOptError, match=message):
        Reservation(**changes)
