"""Arguments of public calls: what stands for a number or a list does, the rest is refused by name in one line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeopt import EdgeNetwork, RoundPlan, Schedule, StaticPlanner, model_profile
from edgeopt.errors import EdgeOptError
from edgeopt.problems import (
    ClientSelection,
    ExpertCaching,
    ModelDownload,
    MoEModel,
    Placement,
    RoutedModel,
    SelectionPlan,
    SplitTraining,
    bundled_trace,
)
from edgeopt.solvers.client_selection.hmm import CategoricalHMM

NETWORK = EdgeNetwork.random(2, 6, seed=1)
SWITCH = bundled_trace("switch32")


def caching(**changes: Any) -> ExpertCaching:
    sizes = {
        "num_servers": 2,
        "num_users": 3,
        "num_layers": 2,
        "experts_per_layer": 4,
        "top_k": 2,
        "tokens": 20,
        "seed": 1,
    }
    return ExpertCaching.random(**sizes | changes)


def moe(**changes: Any) -> MoEModel:
    sizes = {"num_layers": 2, "experts_per_layer": 4, "top_k": 1, "d_model": 8, "d_ff": 16}
    return MoEModel(name="m", gated=False, source="test", **sizes | changes)


@pytest.mark.parametrize(
    ("make", "usual", "other"),
    [
        (lambda x: EdgeNetwork.random(x, 4, seed=1).server_flops.tolist(), 3, np.int64(3)),
        (lambda x: EdgeNetwork.random(2, 4, seed=1, server_flops=x).server_flops.tolist(), (1e9, 2e9), np.array([1e9, 2e9])),
        (lambda x: EdgeNetwork.random(2, 4, seed=1, server_flops=x).server_flops.tolist(), (1e9, 2e9), [1e9, 2e9]),
        (lambda x: caching(top_k=x).top_k, 2, np.uint8(2)),
        (lambda x: caching(tokens=x, num_profiles=x).models, 20, np.array(20)),
        (lambda x: caching(theta=x).theta, 0.5, np.float32(0.5)),
        (lambda x: ExpertCaching.from_traces(x, NETWORK), SWITCH, (trace for trace in [SWITCH])),
        (lambda x: ExpertCaching.from_traces(SWITCH, NETWORK, models=x), ["switch-base-32"], "switch-base-32"),
        (lambda x: ModelDownload.from_profiles(x, NETWORK), ["resnet18"], np.array(["resnet18"])),
        (lambda x: ModelDownload.from_profiles(x, NETWORK), [model_profile("resnet18")], model_profile("resnet18")),
        (lambda x: SplitTraining.random(num_devices=3, num_layers=x, seed=1), 4, np.int32(4)),
        (lambda x: SplitTraining.random(num_devices=3, num_layers=4, seed=1, interval=x), (2, 5), np.array([2, 5])),
        (lambda x: SplitTraining.random(num_devices=3, num_layers=4, seed=1, interval=x), 3, np.int64(3)),
        (lambda x: moe(top_k=x), 2, np.int64(2)),
        (lambda x: CategoricalHMM.random(x, 3, seed=1), 2, np.int64(2)),
        (lambda x: Schedule(x).rounds, [RoundPlan(client=[0])], RoundPlan(client=[0])),
        (lambda x: RoundPlan(client=[0, 1], aggregate=x), True, np.True_),
        (lambda x: RoundPlan(client=x), [0, 1], range(2)),
        (lambda x: StaticPlanner(RoundPlan(client=[0]), interval=x).interval, 2, np.int64(2)),
        (Placement, [[True, False]], np.array([[True, False]], object)),
        (SelectionPlan.from_mask, [[[True, False]]], np.array([[[True, False]]], object)),
    ],
)  # fmt: skip
def test_what_stands_for_a_number_or_a_list(make: Callable[[Any], Any], usual: Any, other: Any):
    """Numbers of NumPy, arrays, generators and single items give what Python's numbers and lists give."""
    assert make(other) == make(usual)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EdgeNetwork.random("3", 4, seed=1), "num_servers = '3': expected an integer >= 1"),
        (lambda: EdgeNetwork.random(True, 4, seed=1), "num_servers = True: expected an integer >= 1"),
        (lambda: EdgeNetwork.random(2, 4, seed=1, server_flops="fast"), r"server_flops = 'fast'"),
        (lambda: EdgeNetwork.random(2, 4, seed=1, carrier_ghz="3.5"), "carrier_ghz = '3.5': expected a finite number"),
        (lambda: caching(top_k="2"), "top_k = '2': expected an integer >= 1"),
        (lambda: caching(num_models=True), "num_models = True: expected an integer >= 1"),
        (lambda: caching(theta="0.5"), "theta = '0.5': expected a finite number"),
        (lambda: ExpertCaching.from_traces(5, NETWORK), "traces = 5: expected a list"),
        (lambda: caching().replace(models=5), "models = 5: expected a list"),
        (lambda: caching().replace(models=["a"]), r"models\[0\]: expected a RoutedModel, got 'a'"),
        (lambda: ModelDownload.from_profiles(5, NETWORK), "profiles = 5: expected a list"),
        (lambda: ModelDownload.from_profiles(np.array([]), NETWORK), "profiles: expected at least one model"),
        (lambda: SplitTraining.random(num_devices="3", seed=1), "num_devices = '3': expected an integer >= 1"),
        (lambda: SplitTraining.random(num_devices=3, seed=1, interval="8"), "interval = '8': expected a list"),
        (lambda: moe(top_k=True), "m: top_k = True: expected an integer >= 1"),
        (lambda: CategoricalHMM.random("2", 3), "num_states = '2': expected an integer >= 1"),
        (lambda: CategoricalHMM.random(2, 3, seed="a"), "seed = 'a': expected an integer >= 0"),
        (lambda: CategoricalHMM.random(2, 3, seed=-1), "seed = -1: expected an integer >= 0"),
        (lambda: Schedule([5]), r"rounds\[0\]: expected a RoundPlan, got 5"),
        (lambda: RoundPlan(client=[0], aggregate=1), "aggregate = 1: expected True or False"),
        (lambda: RoundPlan(client=np.ma.masked_equal([0, 1], 1)), r"client\[1\] is masked: expected a value"),
        (lambda: Placement([[True], [True, False]]), r"cached\[1\]: expected 1 entries as in cached\[0\], got 2"),
        (lambda: CategoricalHMM([0.5, 0.5], [[0.5, 0.5], [0.5, 0.50000002]], [[1.0], [1.0]]),
         r"transition\[1\] sums to 1.00000002: expected probabilities that sum to 1"),
    ],
)  # fmt: skip
def test_what_is_no_number_and_no_list(make: Callable[[], Any], message: str):
    """The message names the argument, what was given, and what was expected."""
    with pytest.raises(EdgeOptError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("size", [3, 7, 100])
def test_models_with_probabilities_in_float32(size: int):
    """Distributions that were computed in float32 are accepted wherever distributions are, and sum to 1 afterwards."""
    rng = np.random.default_rng(size)
    rows = rng.random((size, size), np.float32)
    rows /= rows.sum(axis=1, keepdims=True)
    model = CategoricalHMM(rows[0], rows, rows)
    for found in (model.start, model.transition, model.emission):
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=0, atol=1e-9)
    routed = RoutedModel(
        name="r", expert_layer=np.zeros(size, int), expert_bytes=1.0, sets=np.arange(size)[:, None], indptr=[0, size],
        indices=np.arange(size), probability=rows[0],
    )  # fmt: skip
    np.testing.assert_allclose(routed.uses[0], rows[0], rtol=1e-6)
    problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=3, seed=1)
    changed = problem.replace(regime_transition=rows[:2, :2] / rows[:2, :2].sum(axis=1, keepdims=True))
    np.testing.assert_allclose(changed.regime_transition.sum(axis=1), 1, rtol=0, atol=1e-9)
