"""The mixed-integer programme against the definition, an independent linear programme and enumeration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import EdgeOptError, UnsupportedProblemError
from edgeopt.problems import ExpertCaching, Placement, RoutedModel
from edgeopt.problems.expert_caching.terms import Columns, Terms, count_nonzeros, distinct_rows
from edgeopt.result import Status
from edgeopt.solvers import highs
from edgeopt.solvers.expert_caching import milp
from edgeopt.solvers.expert_caching.milp import Milp, build_model
from edgeopt.stop import Limit
from tests.solvers.expert_caching.instances import brute_force, device_caps, instance, max_trap, random_problem
from tests.solvers.expert_caching.relaxation import lp_bound

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=15)


def any_problem(seed: int, *, pairs: int = 12) -> ExpertCaching:
    """Return a random problem of any latency, K, number of models and servers, small enough to enumerate."""
    rng = np.random.default_rng(seed)
    num_servers = int(rng.integers(1, 4))
    total = pairs // num_servers
    first = int(rng.integers(1, total + 1))
    experts = (first, total - first) if first < total else (total,)
    return random_problem(
        rng,
        num_servers=num_servers,
        num_users=int(rng.integers(1, 5)),
        experts=experts,
        top_k=tuple(int(rng.integers(1, min(3, count) + 1)) for count in experts),
        sizes=((1.0,), (1.0, 2.0), (3.0, 2.0))[rng.integers(3)],
        latency=("sum", "max", "mix")[rng.integers(3)],
        theta=float(rng.choice([0.0, 0.3, 1.0])),
        device=float(rng.choice([0.0, 0.3])),
        storage=float(rng.uniform(0.2, 0.8)),
    )


def random_placement(problem: ExpertCaching, rng: np.random.Generator) -> Placement:
    """Return any placement, feasible or not."""
    return Placement(rng.random((problem.num_servers, problem.num_experts)) < rng.random())


@given(seeds)
@settings(max_examples=100)
def test_terms_are_the_objective(seed):
    """The sum of products of the terms is the problem's objective on any placement, for every K and latency."""
    problem = any_problem(seed, pairs=24)
    terms = Terms.of(problem)
    assert (terms.value > 0).all()
    rng = np.random.default_rng(seed)
    for _ in range(5):
        placement = random_placement(problem, rng)
        assert terms.objective(placement.cached) == pytest.approx(problem.objective(placement), abs=1e-12)


@given(seeds)
@few
def test_columns_of_a_placement_fit_the_programme(seed):
    """The columns of a feasible placement satisfy every row and bound, and cost its scaled objective."""
    problem = any_problem(seed)
    best = brute_force(problem)[1]
    model = build_model(problem)
    values = model.columns.values(best.cached).astype(float)
    used = model.upper
    values[: used.size] = np.minimum(values, used)  # experts that save nothing are not placed
    assert model.cost @ values == pytest.approx(model.objective_scale * problem.objective(best), rel=1e-12)
    assert (model.rows @ values <= model.row_upper + 1e-9).all()


@given(seeds)
@few
def test_count_bounds_the_nonzeros(seed):
    """The count made beforehand is never below the nonzeros of the model."""
    problem = any_problem(seed, pairs=24)
    assert build_model(problem).rows.nnz <= count_nonzeros(problem)


@given(seeds)
@few
def test_finds_the_enumerated_optimum(seed):
    """The optimum is proved and is the best of all feasible placements, with and without a greedy start."""
    problem = any_problem(seed)
    optimum, _ = brute_force(problem)
    for solver in (Milp(), Milp(threads=1, greedy_start=False)):
        result = edgeopt.solve(problem, solver)
        assert result.status is Status.OPTIMAL, result.message
        assert result.objective == pytest.approx(optimum, rel=1e-9, abs=1e-9)
        assert result.bound == result.objective


def relaxation(problem: ExpertCaching) -> float:
    """Return the linear relaxation as one would write it down: an assignment per user, server and expert.

    A set under the maximum saves at most what each of its experts off the device saves, and at most what a slower
    device-held expert of the set leaves to save.
    """
    import cvxpy as cp

    fits = problem.expert_bytes <= problem.storage_bytes[:, None] * (1 + 1e-9)
    x = cp.Variable((problem.num_servers, problem.num_experts), nonneg=True)
    constraints = [x <= fits.astype(float), x @ problem.expert_bytes <= problem.storage_bytes]
    total: cp.Expression = cp.Constant(0.0)
    for m, model in enumerate(problem.models):
        share = {"sum": (1.0, 0.0), "max": (0.0, 1.0), "mix": (1 - problem.theta, problem.theta * model.top_k)}
        of_sum, of_max = share[problem.latency]
        for u in range(problem.num_users):
            z = cp.Variable((problem.num_servers, model.num_experts), nonneg=True)
            here = x[:, problem.first_expert[m] : problem.first_expert[m + 1]]
            constraints += [z <= here, cp.sum(z, axis=0) <= 1]
            saving = problem.gain_s[m, u] @ z
            held = set(problem.holds(u) - problem.first_expert[m])
            weight = problem.user_weight[u] * problem.request[u, m]
            entries = range(*model.indptr[problem.profile[u, m] : problem.profile[u, m] + 2])
            for entry in entries:
                members = model.sets[model.indices[entry]].tolist()
                remote = [e for e in members if e not in held]
                if not remote:
                    continue
                least = cp.Variable()
                constraints += [least <= saving[e] for e in remote]
                if len(remote) < len(members):
                    cap = problem.cloud_latency_s[m, u] - problem.device_latency_s[m, u]
                    constraints.append(least <= max(0.0, cap))
                of_set = of_sum * sum(saving[e] for e in remote) + of_max * least
                total = total + weight * model.probability[entry] * of_set
    task = cp.Problem(cp.Maximize(total), constraints)
    return float(task.solve(solver=cp.CLARABEL))


@pytest.mark.filterwarnings("ignore:Objective contains too many subexpressions")  # the oracle is written plainly
@given(seeds)
@few
def test_bound_of_the_relaxation(seed):
    """The relaxation is between the optimum and the one written down independently; equal to it for modular sets."""
    problem = any_problem(seed)
    unit = np.gcd.reduce(problem.expert_bytes.astype(int))  # storage beyond whole units is of no use
    problem = problem.replace(storage_bytes=np.floor(problem.storage_bytes / unit) * unit)
    bound, other = lp_bound(problem), relaxation(problem)
    assert bound >= brute_force(problem)[0] - 1e-9
    assert bound <= other + 1e-6 * max(1.0, other)
    if problem.is_modular_per_set:
        assert bound == pytest.approx(other, rel=1e-6, abs=1e-7)


def optimum(problem: ExpertCaching) -> float:
    """Return the proved optimum."""
    result = edgeopt.solve(problem, Milp())
    assert result.status is Status.OPTIMAL
    return result.objective


@given(seeds)
@few
def test_more_storage_never_hurts(seed):
    """The optimum does not fall when a server gets more storage."""
    problem = any_problem(seed, pairs=14)
    larger = problem.replace(storage_bytes=problem.storage_bytes + np.random.default_rng(seed).integers(0, 3))
    assert optimum(larger) >= optimum(problem) - 1e-9


@given(seeds)
@few
def test_faster_servers_never_hurt(seed):
    """The optimum does not fall when servers answer faster."""
    problem = any_problem(seed, pairs=14)
    faster = problem.replace(server_latency_s=0.9 * problem.server_latency_s)
    assert optimum(faster) >= optimum(problem) - 1e-9


@given(seeds, st.sampled_from([1e-6, 0.125, 1e3]))
@few
def test_scaling_latencies_scales_the_optimum(seed, factor):
    """All latencies times a factor give the optimum times that factor, also far from one second."""
    problem = any_problem(seed)
    scaled = problem.replace(
        server_latency_s=factor * problem.server_latency_s,
        cloud_latency_s=factor * problem.cloud_latency_s,
        device_latency_s=factor * problem.device_latency_s,
    )
    assert optimum(scaled) == pytest.approx(factor * optimum(problem), rel=1e-7)


@given(seeds)
@few
def test_names_do_not_matter(seed):
    """Renumbering servers, users and the experts of a model leaves the optimum as it is."""
    problem = any_problem(seed)
    rng = np.random.default_rng(seed)
    servers, users = rng.permutation(problem.num_servers), rng.permutation(problem.num_users)
    held, models, first = problem.device_mask(), [], problem.first_expert
    renamed = held.copy()
    for m, model in enumerate(problem.models):
        new = rng.permutation(model.num_experts)  # one layer: any order will do
        models.append(
            RoutedModel(
                name=model.name, expert_layer=model.expert_layer, expert_bytes=model.expert_bytes,
                sets=np.sort(new[model.sets], axis=1), indptr=model.indptr, indices=model.indices,
                probability=model.probability,
            )
        )  # fmt: skip
        renamed[:, first[m] + new] = held[:, first[m] : first[m + 1]]
    renamed = renamed[users]
    other = ExpertCaching(
        models=tuple(models), latency=problem.latency, theta=problem.theta,
        storage_bytes=problem.storage_bytes[servers], request=problem.request[users], profile=problem.profile[users],
        server_latency_s=problem.server_latency_s[:, users][:, :, servers],
        cloud_latency_s=problem.cloud_latency_s[:, users], device_latency_s=problem.device_latency_s[:, users],
        device_indptr=np.append(0, np.cumsum(renamed.sum(axis=1))), device_experts=np.nonzero(renamed)[1],
        user_weight=problem.user_weight[users],
    )  # fmt: skip
    assert optimum(other) == pytest.approx(optimum(problem), rel=1e-9, abs=1e-12)


def test_users_with_one_ranking_share_variables():
    """A hundred users with equal gains need the model of one."""
    gain, weight = np.tile([[1.0, 0.5]], (100, 1)), np.random.default_rng(0).random((100, 4))
    many = ExpertCaching.from_facility(gain, weight, np.ones(4), [2, 1])
    one = ExpertCaching.from_facility(gain[:1], weight.sum(axis=0, keepdims=True), np.ones(4), [2, 1])
    models = [build_model(problem).rows.shape for problem in (many, one)]
    assert models[0][1] == models[1][1] == 2 * 4 + 4  # x, and z for {0, 1}; {0} alone is an x
    assert optimum(many) == pytest.approx(optimum(one), rel=1e-12)


def test_pure_maximum_needs_both_experts():
    """In the trap the objective is one product: both experts, each at either server, or both at the fast one."""
    terms = Terms.of(max_trap())
    assert terms.experts.tolist() == [[0, 1], [0, 1]]
    assert sorted(zip(terms.holds[terms.server_set].tolist(), terms.value.tolist(), strict=True)) == [
        ([True, False], 0.25),
        ([True, True], 0.5),
    ]


def test_slow_device_leaves_no_term():
    """A set with an expert that the device runs slower than the cloud has no term."""
    terms = Terms.of(device_caps(1.5))
    assert {tuple(row) for row in terms.experts.tolist()} == {(1, 2)}


def test_nothing_to_gain():
    """Without any term there is nothing to place, and the bound is 0."""
    problem = instance("unreachable").problem
    assert Columns.of(problem).num_columns == 2
    assert lp_bound(problem) == 0.0
    result = edgeopt.solve(problem, Milp(greedy_start=False))
    assert (result.status, result.objective, result.bound) == (Status.OPTIMAL, 0.0, 0.0)


def test_places_nothing_useless():
    """Experts that help nobody are not cached, even where they fit."""
    problem = ExpertCaching.from_facility([[1.0, 0.0]], [[1.0, 0.0]], [1.0, 1.0], [2.0, 2.0])
    assert edgeopt.solve(problem, Milp(greedy_start=False)).solution.num_copies == 1


def test_refuses_large_models():
    """A model beyond the limit is refused with both numbers."""
    problem = instance("K = 2, mix").problem
    with pytest.raises(UnsupportedProblemError, match=r"may have \d+ nonzeros, expected at most max_nonzeros = 10$"):
        edgeopt.solve(problem, Milp(max_nonzeros=10))


def test_a_model_in_pieces_is_the_same(monkeypatch):
    """HiGHS given a few nonzeros at a time has the rows of the model, and finds the optimum."""
    monkeypatch.setattr(highs, "PIECE", 7)
    problem = instance("K = 2, mix").problem
    model = build_model(problem)
    given = highs.new_highs(model.arguments(), {}).getLp().a_matrix_
    assert (given.start_, given.index_) == (model.rows.indptr.tolist(), model.rows.indices.tolist())
    assert given.value_ == model.rows.data.tolist()
    assert edgeopt.solve(problem, Milp()).objective == pytest.approx(brute_force(problem)[0])


@pytest.mark.parametrize("looks", range(1, 8))
def test_building_is_left_between_parts(monkeypatch, looks):
    """Whoever has to stop is asked often, whether terms, rows or HiGHS have their turn."""
    monkeypatch.setattr(highs, "PIECE", 30)
    left = iter(range(looks))

    def check():
        if next(left, None) is None:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        highs.new_highs(build_model(instance("K = 2, mix").problem, check).arguments(), {}, check)


def test_too_little_time_to_build(monkeypatch):
    """Where building would take longer than there is, the greedy placement comes at once, and the message says why."""
    monkeypatch.setattr(milp, "SECONDS_PER_NONZERO", 1e6)
    monkeypatch.setattr(milp, "build_model", None)
    result = edgeopt.solve(instance("K = 2, mix").problem, Milp(), time_limit=1000)
    assert (result.status, result.limit) == (Status.FEASIBLE, Limit.TIME)
    assert "nonzeros, more than can be put together in the time left" in result.message


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([3, 200, 2**31]))
def test_distinct_rows(seed, width, num_experts):
    """As numbers and as rows, in the same order."""
    rng = np.random.default_rng(seed)
    experts = rng.choice([-1, 0, 1, num_experts - 1], (int(rng.integers(0, 9)), width))
    distinct, ids = distinct_rows(experts, num_experts)
    assert list(map(tuple, distinct.tolist())) == sorted(set(map(tuple, experts.tolist())))
    assert (distinct[ids] == experts).all()


@pytest.mark.parametrize("field", ["threads", "max_nonzeros"])
def test_fields_are_checked(field):
    """Hyper-parameters below one are refused by name."""
    with pytest.raises(EdgeOptError, match=f"{field} = 0: expected an integer >= 1"):
        Milp(**{field: 0})
