"""`ExpertCaching`, `RoutedModel` and `Placement`: the objective by its definition, every refusal, files."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.problems import ExpertCaching, Placement, RoutedModel
from tests.solvers.expert_caching.instances import TINY, hand_made, random_problem, two_sizes

seeds = st.integers(0, 2**32 - 1)
LATENCIES = ("sum", "max", "mix")


def any_problem(seed: int) -> ExpertCaching:
    """Return a random problem of two models, three layers in all, any latency, with devices and servers out of reach."""
    rng = np.random.default_rng(seed)
    return random_problem(
        rng, num_servers=3, num_users=4, experts=(6, 4), num_layers=int(rng.integers(1, 3)),
        top_k=(int(rng.integers(1, 4)), int(rng.integers(1, 3))), sizes=(1.0, 2.5), device=0.2,
        latency=LATENCIES[rng.integers(3)], theta=float(rng.choice([0.0, 0.4, 1.0])),
    )  # fmt: skip


def any_placement(problem: ExpertCaching, seed: int) -> Placement:
    """Return any placement, feasible or not."""
    return Placement(np.random.default_rng(seed).random((problem.num_servers, problem.num_experts)) < 0.4)


# --- truth -------------------------------------------------------------------------------------------------------


def naive_latency(problem: ExpertCaching, cached: np.ndarray) -> float:
    """Return the weighted expected seconds per token, by plain loops over users, models, sets and experts."""
    total = 0.0
    for u in range(problem.num_users):
        for m, model in enumerate(problem.models):
            p = problem.profile[u, m]
            for k in range(model.indptr[p], model.indptr[p + 1]):
                times = []
                for local in model.sets[model.indices[k]]:
                    e = problem.first_expert[m] + local
                    if e in problem.holds(u):
                        times.append(float(problem.device_latency_s[m, u]))
                        continue
                    holders = [n for n in range(problem.num_servers) if cached[n, e]]
                    times.append(
                        min([problem.cloud_latency_s[m, u], *(problem.server_latency_s[m, u, n] for n in holders)])
                    )
                mixed = (1 - problem.theta) * sum(times) + problem.theta * len(times) * max(times)
                of_set = {"sum": sum(times), "max": max(times), "mix": mixed}[problem.latency]
                total += problem.user_weight[u] * problem.request[u, m] * model.probability[k] * of_set
    return total


@given(seeds)
@settings(max_examples=60)
def test_objective_is_the_latency_saved(seed):
    """F(x) = latency without a cache - latency with it, both by the definition, for every latency and K."""
    problem = any_problem(seed)
    empty = np.zeros((problem.num_servers, problem.num_experts), bool)
    placement = any_placement(problem, seed)
    expected = naive_latency(problem, empty) - naive_latency(problem, placement.cached)
    assert problem.objective(placement) == pytest.approx(expected, abs=1e-12)
    assert problem.objective(Placement(empty)) == 0.0


@given(seeds)
@settings(max_examples=30)
def test_report_adds_up(seed):
    """Hit ratios sum to one; mean latency is what is left after the saving, and is the definition's."""
    problem, placement = any_problem(seed), any_placement(any_problem(seed), seed)
    report = problem.report(placement)
    assert sum(report.hit_ratio.values()) == pytest.approx(1)
    assert all(share >= 0 for share in report.hit_ratio.values())
    weight = problem.user_weight.sum()
    saving = problem.objective(placement) / weight
    assert report.latency_s == pytest.approx(report.latency_without_cache_s - saving, abs=1e-12)
    assert report.latency_s == pytest.approx(naive_latency(problem, placement.cached) / weight, abs=1e-12)
    np.testing.assert_allclose(report.storage_used, placement.cached @ problem.expert_bytes)


def test_hit_ratio_per_tier():
    """One user, five experts: device, own server, another server that is faster, cloud, a useless server."""
    problem = hand_made(
        sets=[[0], [1], [2], [3], [4]], probability=[0.1, 0.2, 0.3, 0.25, 0.15], num_experts=5,
        server=[0.5, 0.4, 2.0], storage=[5.0, 5.0, 5.0], device_indptr=[0, 1], device_experts=[0], access_server=[0],
    )  # fmt: skip
    cached = np.zeros((3, 5), bool)
    cached[0, [0, 1, 2]] = True
    cached[1, 2] = True
    cached[2, 4] = True
    report = problem.report(Placement(cached))
    assert report.hit_ratio == pytest.approx({"device": 0.1, "own server": 0.2, "other server": 0.3, "cloud": 0.4})
    # 0.9 without a cache (the device takes no time); 0.2 * 0.5 + 0.3 * 0.6 saved
    assert report.latency_without_cache_s == pytest.approx(0.9)
    assert report.latency_s == pytest.approx(0.9 - 0.28)


def test_report_without_any_weight():
    """If no user counts, the report takes all users evenly instead of dividing by zero."""
    report = BASE.replace(user_weight=0.0).report(Placement(np.zeros((2, 4), bool)))
    even = BASE.replace(user_weight=1.0).report(Placement(np.zeros((2, 4), bool)))
    assert report.latency_s == even.latency_s
    assert sum(report.hit_ratio.values()) == pytest.approx(1.0)


def test_violations_name_server_and_excess():
    """Each server over its storage is named with the excess in bytes; a server exactly full is feasible."""
    problem = two_sizes()  # experts of 1, 1, 3, 3 bytes; storages of 3 and 1
    cached = np.array([[True, True, True, False], [True, True, False, False]])
    first, second = problem.violations(Placement(cached))
    assert (first.constraint, first.index, first.amount) == ("storage", 0, 2.0)
    assert (second.constraint, second.index, second.amount) == ("storage", 1, 1.0)
    assert first.message == "server 0 holds 5 bytes of experts, its storage is 3"
    full = Placement(np.array([[False, False, True, False], [True, False, False, False]]))
    assert problem.violations(full) == ()
    assert problem.is_feasible(full)
    assert not problem.is_feasible(Placement(cached))


@pytest.mark.parametrize("call", ["objective", "violations", "report"])
def test_solutions_of_the_wrong_kind_are_refused(call):
    """The problem checks type and shape before it says anything about a solution."""
    problem = two_sizes()
    with pytest.raises(InvalidProblemError, match=r"cached: expected shape \[2, 4\], got \[2, 3\]"):
        getattr(problem, call)(Placement(np.zeros((2, 3), bool)))
    with pytest.raises(InvalidProblemError, match="solution: expected a Placement, got ndarray"):
        getattr(problem, call)(np.zeros((2, 4), bool))


@given(seeds)
@settings(max_examples=30)
def test_more_copies_never_hurt(seed):
    """F is monotone: adding any copies to a placement never lowers it."""
    problem = any_problem(seed)
    some = any_placement(problem, seed)
    more = Placement(some.cached | any_placement(problem, seed + 1).cached)
    assert problem.objective(more) >= problem.objective(some) - 1e-12


# --- facility form -----------------------------------------------------------------------------------------------


@given(seeds)
@settings(max_examples=30)
def test_from_facility_is_the_formula(seed):
    """The objective is the sum of weight times the largest gain of a holder; users without weight count nothing."""
    rng = np.random.default_rng(seed)
    gain = rng.random((4, 3)) * (rng.random((4, 3)) < 0.7)
    weight = rng.random((4, 5)) * (rng.random((4, 5)) < 0.7)
    weight[0] = 0.0
    problem = ExpertCaching.from_facility(gain, weight, rng.random(5) + 0.1, rng.random(3))
    cached = rng.random((3, 5)) < 0.5
    best = np.where(cached[None], gain[:, :, None], 0.0).max(axis=1)  # (U, E)
    assert problem.objective(Placement(cached)) == pytest.approx((weight * best).sum(), abs=1e-12)
    assert problem.is_modular_per_set


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": [[1.0, -1.0]]}, "gain[0, 1] = -1.0: expected a non-negative number"),
        ({"weight": [[np.nan, 1.0]]}, "weight[0, 0] = nan: expected a non-negative number"),
        ({"weight": np.ones((2, 2))}, "weight: expected shape [1, any], got [2, 2]"),
        ({"weight": np.ones((1, 0))}, "weight: expected users and experts, got shape [1, 0]"),
        ({"gain": np.ones((0, 2)), "weight": np.ones((0, 2))}, "weight: expected users and experts"),
        ({"size": [1.0, 0.0]}, "expert_bytes[1] = 0.0: expected a positive number (bytes)"),
        ({"capacity": [1.0, -1.0]}, "storage_bytes[1] = -1.0: expected a non-negative number (bytes)"),
    ],
)
def test_from_facility_refuses(change, message):
    """Every field of the facility form is checked."""
    fields: dict[str, Any] = {"gain": [[1.0, 2.0]], "weight": [[1.0, 2.0]], "size": [1.0, 1.0], "capacity": [1.0, 1.0]}
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        ExpertCaching.from_facility(**(fields | change))


# --- validation --------------------------------------------------------------------------------------------------

BASE = two_sizes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ()}, "models: expected at least one model"),
        ({"storage_bytes": []}, "storage_bytes: expected at least one server"),
        ({"storage_bytes": [1.0, -2.0]}, "storage_bytes[1] = -2.0: expected a non-negative number (bytes)"),
        ({"storage_bytes": [1.0, np.inf]}, "storage_bytes[1] = inf: expected a non-negative number (bytes)"),
        ({"request": np.ones((0, 2))}, "request: expected at least one user"),
        ({"request": [[1.0]]}, "request: expected shape [any, 2], got [1, 1]"),
        ({"request": [[0.5, 0.4]]}, "request[0] sums to 0.9: expected probabilities that sum to 1"),
        ({"request": [[1.5, -0.5]]}, "request[0, 1] = -0.5: expected a non-negative number"),
        ({"profile": [[0, 1]]}, "profile[0, 1] = 1: 3.0 bytes has 1 profiles"),
        ({"profile": [[0, -1]]}, "profile[0, 1] = -1: expected an integer >= 0"),
        ({"profile": [[0]]}, "profile: expected shape [1, 2], got [1, 1]"),
        ({"server_latency_s": np.full((2, 1, 2), -1.0)}, "server_latency_s[0, 0, 0] = -1.0: expected a non-negative"),
        ({"server_latency_s": np.full((2, 1, 2), np.nan)}, "server_latency_s[0, 0, 0] = nan: expected"),
        ({"server_latency_s": np.full((2, 1, 2), -np.inf)}, "server_latency_s[0, 0, 0] = -inf: expected"),
        ({"server_latency_s": np.ones((2, 2, 1))}, "server_latency_s: expected shape [2, 1, 2], got [2, 2, 1]"),
        ({"cloud_latency_s": [[1.0], [np.inf]]}, "cloud_latency_s[1, 0] = inf: expected a non-negative number (s)"),
        ({"device_latency_s": [[-1.0], [0.0]]}, "device_latency_s[0, 0] = -1.0: expected a non-negative number (s)"),
        ({"device_indptr": [0, 1], "device_experts": [4]}, "device_experts[0] = 4: expected an integer from 0 to 3"),
        ({"device_indptr": [0, 2], "device_experts": [1]}, "device_indptr[1] = 2: expected an integer from 0 to 1"),
        ({"device_indptr": [0, 0], "device_experts": [1]}, "device_indptr: expected starts ascending from 0 to 1"),
        ({"device_indptr": [1, 1], "device_experts": [1]}, "device_indptr: expected starts ascending from 0 to 1"),
        ({"device_indptr": [0], "device_experts": []}, "device_indptr: expected shape [2], got [1]"),
        ({"device_indptr": None, "device_experts": [1]}, "device_indptr, device_experts: expected both or neither"),
        ({"device_indptr": [0, 1], "device_experts": None}, "device_indptr, device_experts: expected both or neither"),
        ({"user_weight": [-1.0]}, "user_weight[0] = -1.0: expected a non-negative number"),
        ({"access_server": [2]}, "access_server[0] = 2: expected an integer from -1 to 1"),
        ({"latency": "min"}, "latency = 'min': expected 'sum', 'max' or 'mix'"),
        ({"theta": 1.5}, "theta = 1.5: expected a number from 0 to 1"),
        ({"theta": float("nan")}, "theta = nan: expected a finite number"),
    ],
)  # fmt: skip
def test_problem_refuses(change, message):
    """Each bad field is named with index, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        BASE.replace(**change)


MODEL: dict[str, Any] = {
    "name": "model", "expert_layer": [0, 0, 1, 1], "expert_bytes": 1.0, "sets": [[0], [1], [2], [3]],
    "indptr": [0, 2, 5], "indices": [0, 2, 0, 1, 3], "probability": [1.0, 1.0, 0.5, 0.5, 1.0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_layer": []}, "expert_layer: expected at least one expert"),
        ({"expert_layer": [0, 0, 2, 2]}, "expert_layer[2] = 2: expected layers to ascend from 0 without holes"),
        ({"expert_layer": [1, 1, 1, 1]}, "expert_layer[0] = 1: expected layers to ascend from 0 without holes"),
        ({"expert_layer": [0, 1, 0, 1]}, "expert_layer[2] = 0: expected layers to ascend from 0 without holes"),
        ({"expert_bytes": [1.0, 1.0, 0.0, 1.0]}, "expert_bytes[2] = 0.0: expected a positive number (bytes)"),
        ({"expert_bytes": [1.0]}, "expert_bytes: expected shape [4], got [1]"),
        ({"sets": [[0], [1], [2], [4]]}, "sets[3, 0] = 4: expected an integer from 0 to 3"),
        ({"sets": np.zeros((4, 0), int)}, "sets: expected at least one expert per set, got 0 columns"),
        ({"sets": [[0, 1, 2]]}, "sets: K = 3 experts per set, but a layer has at most 2"),
        ({"sets": [[1, 0], [2, 3]]}, "sets[0] = [1, 0]: expected distinct experts, ascending"),
        ({"sets": [[0, 1], [2, 2]]}, "sets[1] = [2, 2]: expected distinct experts, ascending"),
        ({"sets": [[0, 1], [1, 2]]}, "sets[1] = [1, 2]: expected experts of one layer"),
        ({"indices": [0, 2, 0, 1, 4]}, "indices[4] = 4: expected an integer from 0 to 3"),
        ({"probability": [1.0, 1.0, 0.5, 0.5]}, "probability: expected shape [5], got [4]"),
        ({"probability": [1.0, 1.0, 1.5, -0.5, 1.0]}, "probability[3] = -0.5: expected a non-negative number"),
        ({"probability": [1.0, 1.0, 0.5, 0.4, 1.0]}, "probability: profile 1, layer 0 sums to 0.9, expected 1"),
        ({"indptr": [0, 2, 4]}, "indptr: expected profile starts ascending from 0 to 5, at least one profile"),
        ({"indptr": [0, 6, 5]}, "indptr: expected profile starts ascending from 0 to 5"),
        ({"indptr": [1, 2, 5]}, "indptr: expected profile starts ascending from 0 to 5"),
        ({"indptr": [5]}, "indptr: expected profile starts ascending from 0 to 5, at least one profile"),
        ({"indptr": [0, 1, 5]}, "probability: profile 0, layer 1 sums to 0, expected 1"),
    ],
)  # fmt: skip
def test_model_refuses(change, message):
    """Each bad field of a routed model is named with index, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        RoutedModel(**(MODEL | change))


def test_model_facts():
    """Sizes, expected uses and equality of a routed model."""
    model = RoutedModel(**MODEL)
    assert (model.num_experts, model.num_layers, model.num_profiles, model.top_k) == (4, 2, 2, 1)
    assert model.entry_profile.tolist() == [0, 0, 1, 1, 1]
    assert model.uses.tolist() == [[1.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 1.0]]
    assert model == RoutedModel(**MODEL)
    assert model != RoutedModel(**(MODEL | {"expert_bytes": 2.0}))
    assert model != "model"


def test_uses_count_every_expert_of_a_set():
    """With K experts per set the uses of a layer add up to K."""
    for tiny in TINY:
        for model in tiny.problem.models:
            np.testing.assert_allclose(model.uses.sum(axis=1), model.top_k * model.num_layers, rtol=1e-5)


@pytest.mark.parametrize(
    ("cached", "got"),
    [([[1, 0]], "int64 [1, 2]"), ([True, False], "bool [2]"), ([[0.5]], "float64 [1, 1]")],
)
def test_placement_refuses(cached, got):
    """A placement is a boolean matrix, and nothing is converted to one."""
    with pytest.raises(InvalidProblemError, match=re.escape(f"expected a boolean array [servers, experts], got {got}")):
        Placement(np.array(cached))


def test_placement_from_lists():
    """What `to_json` writes comes back; ids out of range are refused with the server."""
    placement = Placement([[True, False, True], [False, False, False]])
    assert placement.to_json() == {"cached": [[0, 2], []]}
    assert Placement.from_lists([[0, 2], []], 3) == placement
    assert placement.num_copies == 2
    assert placement != "placement"
    with pytest.raises(InvalidProblemError, match="server 1: expert 3: expected an id from 0 to 2"):
        Placement.from_lists([[0], [3]], 3)
    with pytest.raises(ValueError, match="read-only"):
        placement.cached[0, 0] = False


# --- plumbing ----------------------------------------------------------------------------------------------------


def test_arrays_are_copied_and_read_only():
    """A problem cannot be changed through the arrays it was made of, nor through its own."""
    storage = np.array([3.0, 1.0])
    problem = BASE.replace(storage_bytes=storage)
    storage[0] = 99.0
    assert problem.storage_bytes[0] == 3.0
    for name in ("storage_bytes", "request", "server_latency_s", "cloud_latency_s", "user_weight", "access_server"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(problem, name)[...] = 0


def test_shape_of_a_problem():
    """Experts are numbered through all models, layers through all groups."""
    assert (BASE.num_servers, BASE.num_users, BASE.num_experts, BASE.top_k) == (2, 1, 4, 1)
    assert BASE.expert_bytes.tolist() == [1.0, 1.0, 3.0, 3.0]
    assert BASE.expert_model.tolist() == [0, 0, 1, 1]
    assert BASE.expert_group.tolist() == [0, 0, 1, 1]
    assert BASE.first_expert.tolist() == [0, 2, 4]
    assert BASE.gain_s[0].tolist() == [[2.0, 1.5]]
    assert BASE.describe()["bytes of all experts"] == 8.0


@pytest.mark.parametrize(
    ("latency", "theta", "top_k", "modular"),
    [
        ("sum", 0.5, 2, True),
        ("max", 0.5, 1, True),
        ("max", 0.5, 2, False),
        ("mix", 0.0, 2, True),
        ("mix", 0.1, 2, False),
    ],
)
def test_when_sets_are_modular(latency, theta, top_k, modular):
    """Sets are modular for K = 1, for the sum, and for a mix without maximum."""
    problem = random_problem(np.random.default_rng(0), top_k=top_k, latency=latency, theta=theta)
    assert problem.is_modular_per_set is modular


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)
def test_files_round_trip(tmp_path, tiny, suffix):
    """A saved problem is read back equal, infinities included."""
    path = tmp_path / f"problem{suffix}"
    tiny.problem.save(path)
    loaded = edgeopt.load(path)
    assert loaded == tiny.problem
    assert loaded.fingerprint() == tiny.problem.fingerprint()
    assert loaded.objective(tiny.best) == tiny.problem.objective(tiny.best)


def test_equality_sees_every_field():
    """Changing any field makes another problem, with another fingerprint."""
    assert two_sizes() == BASE
    assert BASE != "problem"
    changes: list[dict[str, Any]] = [
        {"storage_bytes": [3.0, 2.0]}, {"request": [[0.25, 0.75]]}, {"server_latency_s": 1.0}, {"cloud_latency_s": 3.0},
        {"device_latency_s": 1.0}, {"device_indptr": [0, 1], "device_experts": [2]}, {"user_weight": 2.0},
        {"access_server": [1]}, {"latency": "max"}, {"theta": 0.25}, {"models": BASE.models[::-1]},
    ]  # fmt: skip
    for change in changes:
        other = BASE.replace(**change)
        assert other != BASE, change
        assert other.fingerprint() != BASE.fingerprint(), change


def edited(tmp_path: Any, **changes: Any) -> Any:
    """Return the path of a saved problem whose JSON document was changed; None removes a key."""
    path = tmp_path / "problem.json"
    BASE.save(path)
    document = json.loads(path.read_text())
    for key, value in changes.items():
        place = document["arrays"] if key in document["arrays"] else document
        place[key] = value
        if value is None:
            del place[key]
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "knapsack"}, "kind = 'knapsack': expected one of expert-caching"),
        ({"kind": None}, "kind: value is missing: expected one of expert-caching"),
        ({"schema_version": 99}, "schema_version = 99: expected 1"),
        ({"schema_version": None}, "schema_version: value is missing: expected 1"),
        ({"models": "two"}, "models = 'two': expected a list of names"),
        ({"models": [1, 2]}, "models[0] = 1: expected a string"),
        ({"models": ["a", "b", "c"]}, "model2.expert_layer: array is missing"),
        ({"request": None}, "request: array is missing"),
        ({"theta": "half"}, "theta = 'half': expected a number"),
        ({"latency": "mean"}, "latency = 'mean': expected 'sum', 'max' or 'mix'"),
        ({"storage_bytes": [1.0, -1.0]}, "storage_bytes[1] = -1.0: expected a non-negative number (bytes)"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_refused(tmp_path, changes, message):
    """What is wrong with a file is said after its path."""
    path = edited(tmp_path, **changes)
    with pytest.raises(InvalidFileError, match=re.escape(message)) as error:
        edgeopt.load(path)
    assert str(error.value).startswith(str(path))
