import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt import EdgeNetwork, solve
from edgeopt.errors import InvalidProblemError
from edgeopt.inference.distributed import TIERS, simulate_inference
from edgeopt.inference.routing import RoutingRecord
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.problems.expert_caching.routed_model import RoutedModel

MODES = [("sum", 0.5), ("max", 0.5), ("mix", 0.3)]


def record_of(
    seed: int, users: int, tokens: int, layers: int = 2, experts: int = 6, top_k: int = 2, *, start: int = 0
) -> RoutingRecord:
    """Return draws from fixed tastes: with the same `seed` and another `start`, other tokens of the same users."""
    taste = np.random.default_rng(seed).normal(size=(users, 1, layers, experts))
    noise = np.random.default_rng((seed, 1 + start)).gumbel(size=(users, tokens, layers, experts))
    chosen = np.sort((-(taste + noise)).argsort(axis=-1)[..., :top_k], axis=-1)
    meta = {"d_model": 64, "d_ff": 128, "bytes_per_expert_fp16": 1000}
    return RoutingRecord(name=f"drawn{seed}", num_experts=experts, experts=chosen, meta=meta)


def problem_of(records, latency="sum", theta=0.5, users=5, device_storage=0.1, seed=0) -> ExpertCaching:
    """Return a problem with uneven traffic, uneven requests and some experts on the devices."""
    rng = np.random.default_rng(seed)
    problem = ExpertCaching.from_traces(
        [record.to_trace() for record in records], EdgeNetwork.random(3, users, seed=seed), storage=0.3,
        device_storage=device_storage, request=rng.dirichlet(np.ones(len(records)), users), latency=latency,
        theta=theta,
    )  # fmt: skip
    return problem.replace(user_weight=rng.uniform(0.1, 3.0, users))


def random_placement(problem: ExpertCaching, seed: int) -> Placement:
    return Placement(np.random.default_rng(seed).random((problem.num_servers, problem.num_experts)) < 0.3)


def check_against_the_report(problem, placement, records):
    run, report = simulate_inference(problem, placement, records), problem.report(placement)
    assert run.mean_s == pytest.approx(report.latency_s, rel=1e-9)
    assert run.hit_ratio == pytest.approx(report.hit_ratio, rel=1e-9)


# --- the same tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latency", "theta"), MODES)
@pytest.mark.parametrize("sizes", [(2,), (1,), (2, 3)], ids=["top-2", "top-1", "two models"])
def test_mean_is_the_objective_of_the_problem(latency, theta, sizes):
    """On the tokens that a trace was counted from, mean and hit ratios are those of the report, for any placement."""
    records = [record_of(k, users=2 + k, tokens=50, top_k=k, layers=1 + k) for k in sizes]
    problem = problem_of(records, latency, theta)
    greedy = solve(problem, "greedy").solution
    nothing = Placement(np.zeros((problem.num_servers, problem.num_experts), bool))
    for placement in (greedy, nothing, Placement(~nothing.cached), *(random_placement(problem, s) for s in range(3))):
        check_against_the_report(problem, placement, records)


def test_objective_is_time_saved():
    """The mean without a cache less the mean of a placement is the objective over the users' total weight."""
    records = [record_of(1, users=3, tokens=40)]
    problem = problem_of(records, "max")
    placement = random_placement(problem, 0)
    nothing = Placement(np.zeros((problem.num_servers, problem.num_experts), bool))
    saved = (
        simulate_inference(problem, nothing, records).mean_s - simulate_inference(problem, placement, records).mean_s
    )
    assert saved == pytest.approx(problem.objective(placement) / problem.user_weight.sum(), rel=1e-9)


def test_users_without_any_weight_count_evenly():
    """If no user has traffic, the mean is that over all users, as in the report."""
    records = [record_of(1, users=3, tokens=40)]
    problem = problem_of(records).replace(user_weight=0.0)
    placement = random_placement(problem, 0)
    run = simulate_inference(problem, placement, records)
    assert run.mean_s == pytest.approx(problem.report(placement).latency_s, rel=1e-9)
    assert run.mean_s == pytest.approx(run.seconds[0].mean(), rel=1e-12)


@settings(max_examples=30)
@given(
    st.integers(0, 10**6), st.sampled_from(MODES), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3),
    st.integers(1, 4), st.data(),
)  # fmt: skip
def test_every_token_is_that_of_a_plain_loop(seed, mode, users, tokens, layers, experts, data):
    """Token by token, seconds and tiers are those of a loop that asks device, own server, other servers and cloud."""
    record = record_of(seed, 2, tokens, layers, experts, data.draw(st.integers(1, experts)))
    problem = problem_of([record], *mode, users=users, device_storage=data.draw(st.sampled_from([0, 0.3])), seed=seed)
    placement = random_placement(problem, seed)
    run = simulate_inference(problem, placement, record)
    for user in range(users):
        held, uses = set(problem.holds(user).tolist()), dict.fromkeys(TIERS, 0)
        for token in range(tokens):
            total = 0.0
            for layer in range(layers):
                times = []
                for expert in record.experts[user % 2, token, layer].tolist():
                    e = layer * experts + expert
                    if e in held:
                        best, tier = problem.device_latency_s[0, user], "device"
                    else:
                        best, tier = problem.cloud_latency_s[0, user], "cloud"
                        own = int(problem.access_server[user])
                        for server in sorted(range(problem.num_servers), key=lambda n: n != own):
                            if placement.cached[server, e] and problem.server_latency_s[0, user, server] < best:
                                best = problem.server_latency_s[0, user, server]
                                tier = "own server" if server == own else "other server"
                    times.append(best)
                    uses[tier] += 1
                share = {"sum": 0.0, "max": 1.0 / len(times), "mix": mode[1]}[mode[0]]
                total += (mode[0] != "max") * (1 - share) * sum(times) + share * len(times) * max(times)
            assert run.seconds[0][user, token] == pytest.approx(total, rel=1e-12)
        assert dict(zip(TIERS, run.uses[0][user].tolist(), strict=True)) == uses


def test_equally_fast_tiers():
    """A server that is no faster than the cloud counts as cloud; of servers that are, the own one comes first."""
    record = record_of(1, users=3, tokens=8)
    problem = problem_of([record], device_storage=0.0)
    everywhere = Placement(np.ones((problem.num_servers, problem.num_experts), bool))
    cloud = np.repeat(problem.cloud_latency_s[:, :, None], problem.num_servers, axis=2)
    for factor, tier in ((1.0, "cloud"), (0.5, "own server")):
        same = problem.replace(server_latency_s=factor * cloud)
        check_against_the_report(same, everywhere, [record])
        assert simulate_inference(same, everywhere, record).hit_ratio[tier] == 1


# --- other tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latency", "theta"), MODES)
def test_other_tokens_agree_within_sampling_error(latency, theta):
    """Tokens drawn anew from the same users differ in the mean by no more than chance allows (3 standard errors)."""
    counted, other = (record_of(4, users=4, tokens=10_000, start=start) for start in (0, 1))
    problem = problem_of([counted], latency, theta, users=9)
    placement = solve(problem, "greedy").solution
    runs = [simulate_inference(problem, placement, record) for record in (counted, other)]
    assert runs[0].mean_s == pytest.approx(problem.report(placement).latency_s, rel=1e-9)
    error = np.hypot(*(run.standard_error_s() for run in runs))
    assert 0 < abs(runs[1].mean_s - runs[0].mean_s) <= 3 * error
    assert error < 0.02 * runs[0].mean_s


def test_other_users_do_not_agree():
    """The bound of three standard errors is not empty: tokens of users with other tastes break it."""
    counted, strange = record_of(4, users=4, tokens=2000), record_of(5, users=4, tokens=2000)
    problem = problem_of([counted], users=9)
    placement = solve(problem, "greedy").solution
    runs = [simulate_inference(problem, placement, record) for record in (counted, strange)]
    assert abs(runs[1].mean_s - runs[0].mean_s) > 3 * np.hypot(*(run.standard_error_s() for run in runs))


@pytest.mark.parametrize("block", [1, 10])
def test_standard_error_is_the_spread_of_means(block):
    """Over 200 draws of the tokens, the means spread as the standard error says; users that share a text included."""
    problem = problem_of([record_of(4, users=3, tokens=100)], users=8)
    placement = random_placement(problem, 1)
    runs = [simulate_inference(problem, placement, record_of(4, 3, 100, start=i)) for i in range(200)]
    spread = np.std([run.mean_s for run in runs], ddof=1)
    stated = np.sqrt(np.mean([run.standard_error_s(block) ** 2 for run in runs]))
    assert stated == pytest.approx(spread, rel=0.2)  # a spread of 200 draws is known to 5 %


def test_blocks_see_dependent_tokens():
    """Where every token comes ten times in a row, blocks of ten give the error that the distinct ones have."""
    record = record_of(4, users=3, tokens=60)
    repeated = RoutingRecord(name="r", num_experts=6, experts=record.experts.repeat(10, axis=1), meta=record.meta)
    problem = problem_of([record])
    placement = random_placement(problem, 1)
    honest = simulate_inference(problem, placement, record).standard_error_s()
    run = simulate_inference(problem, placement, repeated)
    assert run.standard_error_s(block=10) == pytest.approx(honest, rel=1e-9)
    assert run.standard_error_s() < 0.4 * honest


# --- what does not fit --------------------------------------------------------------------------------------------


def test_repr_is_short():
    """A run prints its sizes and its mean, not its arrays."""
    record = record_of(1, users=3, tokens=8)
    problem = problem_of([record])
    run = simulate_inference(problem, random_placement(problem, 0), record)
    assert repr(run) == f"InferenceRun(users=5, tokens=(8,), mean_s={run.mean_s:.6g})"


def test_wrong_arguments():
    """Records and placements of other sizes, and blocks without a spread, are refused."""
    record = record_of(1, users=3, tokens=8)
    problem = problem_of([record])
    placement = random_placement(problem, 0)
    with pytest.raises(InvalidProblemError, match=r"records: expected one per model \(1\), got 2"):
        simulate_inference(problem, placement, [record, record])
    with pytest.raises(InvalidProblemError, match=r"\(2, 7, 2\): expected \(2, 6, 2\) of model drawn1"):
        simulate_inference(problem, placement, record_of(1, users=3, tokens=8, experts=7))
    with pytest.raises(InvalidProblemError, match="2 users, expected at least 3"):
        simulate_inference(problem, placement, record_of(1, users=2, tokens=8))
    with pytest.raises(InvalidProblemError, match=r"cached: expected shape \[3, 12\], got \[1, 12\]"):
        simulate_inference(problem, Placement(placement.cached[:1]), record)
    run = simulate_inference(problem, placement, record)
    for block in (0, 5):
        with pytest.raises(InvalidProblemError, match=f"block = {block}: expected 1 to half of the 8 tokens"):
            run.standard_error_s(block)


def test_layers_of_different_size():
    """A record has as many experts in each layer; a model that has not, and agrees in the largest, is refused."""
    record = record_of(1, users=1, tokens=8, layers=2, experts=3, top_k=1)
    uneven = RoutedModel(
        name="uneven", expert_layer=[0, 0, 1, 1, 1], expert_bytes=8.0, sets=[[0], [2]], indptr=[0, 2], indices=[0, 1],
        probability=[1.0, 1.0],
    )  # fmt: skip
    problem = ExpertCaching(
        models=(uneven,), storage_bytes=[8.0], request=[[1.0]], profile=[[0]], server_latency_s=[[[0.1]]],
        cloud_latency_s=[[1.0]], device_latency_s=[[1.0]],
    )  # fmt: skip
    with pytest.raises(InvalidProblemError, match="experts of uneven are not numbered layer by layer, 3 in each"):
        simulate_inference(problem, Placement(np.zeros((1, 5), bool)), record)
