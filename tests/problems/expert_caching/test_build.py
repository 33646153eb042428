"""Building expert-caching problems from traces, networks and random numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import InvalidProblemError
from edgeopt.network import EdgeNetwork
from edgeopt.problems import ExpertCaching, RoutedModel, RoutingTrace, bundled_trace, moe_model

NETWORK = EdgeNetwork.random(3, 7, seed=1)


def trace(
    num_users: int = 3, *, top_k: int = 1, num_experts: int = 4, seed: int = 0, name: str = "tiny"
) -> RoutingTrace:
    """Return a trace of random tokens over two layers, with the dimensions of a small model in its meta data."""
    logits = np.random.default_rng(seed).random((num_users, 20, 2, num_experts))
    drawn = RoutingTrace.from_router_logits(logits, top_k, name=name)
    arrays = {key: getattr(drawn, key) for key in ("set_user", "set_layer", "set_experts", "set_count")}
    return RoutingTrace(
        name=name, num_layers=2, num_experts=num_experts, tokens_per_user=drawn.tokens_per_user,
        meta={"d_model": 8, "d_ff": 16, "bytes_per_expert_fp16": 512}, **arrays,
    )  # fmt: skip


# --- from traces -------------------------------------------------------------------------------------------------


def test_sizes_and_latencies_follow_from_the_trace() -> None:
    """Models, expert sizes and latencies are those of the trace's own model on the network, by the documented formula."""
    problem = ExpertCaching.from_traces(trace(), NETWORK)
    assert (problem.num_servers, problem.num_users, problem.num_experts) == (3, 7, 8)
    assert problem.expert_bytes.tolist() == [512.0] * 8
    assert problem.models[0] == trace().to_model()
    flops = 2 * 2 * 8 * 16  # two matrices, a multiply-add counts as two
    server, cloud = NETWORK.offload_latency_s(16 * 8, 16 * 8, flops)
    assert np.array_equal(problem.server_latency_s[0], server)
    assert np.array_equal(problem.cloud_latency_s[0], cloud)
    assert np.array_equal(problem.device_latency_s[0], NETWORK.device_latency_s(flops))
    assert np.array_equal(problem.access_server, NETWORK.access_server)
    assert problem.storage_bytes.tolist() == pytest.approx([0.1 * 8 * 512] * 3)


def test_users_behave_like_the_trace_in_turn() -> None:
    """By default device u behaves like user u mod G of each trace, G being the users of that trace."""
    problem = ExpertCaching.from_traces([trace(3), trace(2, name="other")], NETWORK)
    assert problem.profile.tolist() == [[u % 3, u % 2] for u in range(7)]
    assert problem.request.tolist() == [[0.5, 0.5]] * 7
    given = [[2, 1]] * 7
    problem = ExpertCaching.from_traces([trace(3), trace(2)], NETWORK, assignment=given, request=[[0.25, 0.75]] * 7)
    assert problem.profile.tolist() == given
    assert problem.request.tolist() == [[0.25, 0.75]] * 7


def test_models_by_name() -> None:
    """A model's name or itself sets sizes, hidden states and FLOPs; None keeps the trace's own."""
    model = moe_model("switch-base-8")
    by_name = ExpertCaching.from_traces([trace(), trace()], NETWORK, models=["switch-base-8", None])
    assert by_name == ExpertCaching.from_traces([trace(), trace()], NETWORK, models=[model, None])
    assert by_name.expert_bytes.tolist() == [model.expert_bytes] * 8 + [512.0] * 8
    server, _ = NETWORK.offload_latency_s(model.hidden_bits, model.hidden_bits, model.flops_per_token)
    assert np.array_equal(by_name.server_latency_s[0], server)
    assert (by_name.server_latency_s[1] <= by_name.server_latency_s[0]).all()


def test_storage_of_the_network() -> None:
    """Storage None takes the servers' bytes; numbers are shares of the bytes of all experts, one or one per server."""
    assert np.array_equal(
        ExpertCaching.from_traces(trace(), NETWORK, storage=None).storage_bytes, NETWORK.server_storage_bytes
    )
    shares = [0.0, 0.25, 1.0]
    problem = ExpertCaching.from_traces(trace(), NETWORK, storage=shares)
    assert problem.storage_bytes.tolist() == [0.0, 1024.0, 4096.0]


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.3, 0.55, 1.0]), st.sampled_from([1, 2]))
def test_devices_hold_their_own_most_used_experts(seed: int, share: float, top_k: int) -> None:
    """What a device holds fits its share, no expert left out is used more per byte, and no further one would fit."""
    traces = [trace(3, seed=seed, top_k=top_k), trace(4, seed=seed + 1, top_k=top_k, num_experts=6)]
    problem = ExpertCaching.from_traces(
        traces, NETWORK, models=[None, "switch-base-8"], device_storage=share, request=[[0.3, 0.7]] * 7
    )
    size = problem.expert_bytes
    room = share * size.sum()
    for u in range(problem.num_users):
        uses = np.concatenate(
            [problem.request[u, m] * model.uses[problem.profile[u, m]] for m, model in enumerate(problem.models)]
        )
        held = problem.device_mask()[u]
        assert held.sum() == problem.holds(u).size
        assert size[held].sum() <= room
        if held.any() and not held.all():
            density = uses / size
            assert density[held].min() >= density[~held].max()
        if not held.all():  # it stops at the first of them that does not fit
            following = np.flatnonzero(~held)[np.argmax((uses / size)[~held])]
            assert size[held].sum() + size[following] > room * (1 - 1e-12)


def test_uncovered_devices_are_refused() -> None:
    """A device that no server covers is named: it would reach neither edge nor cloud."""
    covered = np.ones((7, 3), bool)
    covered[4] = False
    with pytest.raises(InvalidProblemError, match="device 4 is covered by no server"):
        ExpertCaching.from_traces(trace(), NETWORK.replace(coverage=covered))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"traces": []}, "expected at least one routing trace"),
        ({"models": [None, None]}, r"models: expected one per trace \(1\), got 2"),
        ({"models": ["no such model"]}, "no such model"),
        ({"request": [[0.5]] * 7}, r"request\[0\] sums to 0.5"),
        ({"request": [[1.0]] * 6}, "request"),
        ({"request": [[0.5, 0.5]] * 7}, "request"),
        ({"assignment": [[0]] * 6}, "assignment"),
        ({"assignment": [[-1]] * 7}, "assignment"),
        ({"assignment": [[3]] * 7}, "profile.* tiny has 3 profiles"),
        ({"storage": [0.1, 0.1]}, "storage"),
        ({"storage": -0.1}, "storage"),
        ({"latency": "mean"}, "latency = 'mean'"),
        ({"latency": "mix", "theta": 1.5}, "theta = 1.5"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    """Wrong counts, ranges and sums are errors that name the argument."""
    traces = options.pop("traces", trace()) if "traces" in options else trace()
    with pytest.raises(InvalidProblemError, match=message):
        ExpertCaching.from_traces(traces, NETWORK, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"assignment": [[3]] * 7}, "tiny has 3 profiles"), ({"request": [1.0] * 7}, "request")],
)
def test_bad_arguments_are_named_with_devices_too(options: dict[str, object], message: str) -> None:
    """The same errors when devices hold experts."""
    with pytest.raises(InvalidProblemError, match=message):
        ExpertCaching.from_traces(trace(), NETWORK, device_storage=0.2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [-0.1, np.nan])
def test_bad_device_storage_is_named(share: float) -> None:
    """A negative or undefined share per device is an error, as it is for servers."""
    with pytest.raises(InvalidProblemError, match="device_storage"):
        ExpertCaching.from_traces(trace(), NETWORK, device_storage=share)


def test_traces_without_dimensions_need_a_model() -> None:
    """Without d_model and d_ff the error says to pass a model; with one the trace is fine."""
    bare = RoutingTrace.from_router_logits(np.random.default_rng(0).random((1, 5, 1, 3)), 1)
    with pytest.raises(InvalidProblemError):
        ExpertCaching.from_traces(bare, NETWORK)
    assert ExpertCaching.from_traces(bare, NETWORK, models=["switch-base-8"]).num_experts == 3


@pytest.mark.parametrize("name", edgeopt.problems.BUNDLED_TRACES)
def test_bundled_traces_build(name: str) -> None:
    """Every bundled trace gives a problem that greedy improves."""
    problem = ExpertCaching.from_traces(bundled_trace(name), NETWORK)
    assert edgeopt.solve(problem, "greedy").objective > 0.0


# --- random ------------------------------------------------------------------------------------------------------


def probabilities(model: RoutedModel) -> np.ndarray:
    """Return [P, L]: the sums of the probabilities of each profile and layer."""
    sums = np.zeros((model.num_profiles, model.num_layers))
    np.add.at(sums, (model.entry_profile, model.expert_layer[model.sets[model.indices, 0]]), model.probability)
    return sums


@pytest.mark.parametrize("top_k", [1, 2])
def test_random_problems_are_well_formed(top_k: int) -> None:
    """Counts are as asked for, probabilities sum to one, a token uses K experts per layer, requests sum to one."""
    problem = ExpertCaching.random(
        num_servers=4, num_users=9, num_models=3, num_layers=2, experts_per_layer=6, top_k=top_k, num_profiles=5, seed=3
    )
    assert (problem.num_servers, problem.num_users, problem.num_experts, problem.top_k) == (4, 9, 36, top_k)
    for model in problem.models:
        assert model.num_profiles == 5
        assert probabilities(model) == pytest.approx(1.0)
        assert model.uses.sum(axis=1) == pytest.approx(2 * top_k)
    assert problem.request.sum(axis=1) == pytest.approx(1.0)
    assert len(set(problem.expert_bytes[problem.first_expert[:-1]])) > 1, "models differ in size"


def test_same_seed_same_problem() -> None:
    """The seed alone decides; another seed gives another problem, and a given network is taken as it is."""
    options = {"num_users": 8, "num_servers": 3, "top_k": 2, "experts_per_layer": 8, "num_layers": 1}
    one = ExpertCaching.random(seed=4, **options)  # type: ignore[arg-type]
    assert one == ExpertCaching.random(seed=4, **options)  # type: ignore[arg-type]
    assert one != ExpertCaching.random(seed=5, **options)  # type: ignore[arg-type]
    given = ExpertCaching.random(seed=4, network=NETWORK, **options)  # type: ignore[arg-type]
    assert (given.num_servers, given.num_users) == (3, 7)
    assert np.array_equal(given.access_server, NETWORK.access_server)
    assert given.models[0].num_profiles == 7


def test_no_taste_no_difference() -> None:
    """With ``taste=0`` all profiles use the experts alike; with taste they do not."""
    options = {"num_users": 10, "num_layers": 2, "experts_per_layer": 8, "seed": 1, "network": NETWORK}
    same, different = (ExpertCaching.random(taste=taste, **options).models[0].uses for taste in (0.0, 1.0))  # type: ignore[arg-type]
    assert (same == same[0]).all()
    assert (different != different[0]).any()


def test_zipf_sets_the_popularity() -> None:
    """Use by rank falls as a power law with the given exponent; exponent 0 is even."""
    for zipf in (0.0, 0.8, 2.0):
        problem = ExpertCaching.random(zipf=zipf, num_layers=1, experts_per_layer=16, seed=2, network=NETWORK)
        ranked = -np.sort(-problem.models[0].uses, axis=1)
        assert ranked / ranked[:, :1] == pytest.approx(np.tile(np.arange(1, 17) ** -zipf, (len(ranked), 1)))


def test_co_activation_concentrates_the_sets() -> None:
    """The stronger experts fire together, the likelier is a token's most likely pair, at even popularity."""
    likeliest = []
    for strength in (0.0, 2.0, 6.0):
        problem = ExpertCaching.random(
            zipf=0.0, co_activation=strength, top_k=2, num_layers=1, experts_per_layer=24, tokens=4000, num_profiles=1,
            seed=3, network=NETWORK,
        )  # fmt: skip
        probability = -np.sort(-problem.models[0].probability)
        likeliest.append(probability[:40].sum())
    assert likeliest[0] * 1.3 < likeliest[1]
    assert likeliest[1] * 1.1 < likeliest[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5, "experts_per_layer": 4}, "top_k = 5: expected at most experts_per_layer = 4"),
        *(({name: 0}, f"{name} = 0") for name in ("num_models", "num_layers", "experts_per_layer", "top_k", "tokens")),
        ({"num_profiles": 0}, "num_profiles = 0"),
        ({"storage": [0.1]}, "storage"),
    ],
)
def test_bad_random_arguments_are_named(options: dict[str, object], message: str) -> None:
    """Counts below one and more activated experts than there are, are errors that name the argument."""
    with pytest.raises(InvalidProblemError, match=message):
        ExpertCaching.random(network=NETWORK, **options)  # type: ignore[arg-type]


def test_large_problem_builds_and_solves() -> None:
    """50 servers, 200 users and 2,000 experts build and are solved greedily within storage and bound."""
    problem = ExpertCaching.random(num_servers=50, num_users=200, num_layers=20, experts_per_layer=100, seed=1)
    assert problem.num_experts == 2000
    result = edgeopt.solve(problem, "density-greedy")
    assert result.feasible
    assert 0.0 < result.objective <= result.bound <= 2.0 * result.objective
