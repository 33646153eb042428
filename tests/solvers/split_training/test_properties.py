"""What must hold for the optimum of any split-training problem: more of anything never hurts, names do not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.problems import SplitPlan, SplitTraining
from tests.solvers.split_training.instances import enumerate_plans, varied

few = settings(max_examples=25)
seeds = st.integers(0, 10**6)

PER_DEVICE = (
    "device_flops", "uplink_bps", "downlink_bps", "fed_uplink_bps", "fed_downlink_bps", "memory_bytes", "max_batch",
)  # fmt: skip
SHARED = ("server_flops", "server_fed_uplink_bps", "server_fed_downlink_bps", "target")


def small(seed: int) -> SplitTraining:
    return varied(seed, layers=3, max_batch=5)


@few
@given(seeds, st.sampled_from([*PER_DEVICE, *SHARED]), st.sampled_from([2.0, 10.0]))
def test_more_never_hurts(seed: int, name: str, factor: float):
    """More compute, bandwidth, memory, batch size of one device or of the servers, or an easier target: no more seconds."""
    problem = small(seed)
    value = getattr(problem, name)
    if name in PER_DEVICE:
        more = value.copy()
        more[seed % problem.num_devices] *= int(factor)
    else:
        more = value * factor
    before, plan = enumerate_plans(problem)
    better = problem.replace(**{name: more})
    assert better.is_feasible(plan)
    assert enumerate_plans(better)[0] <= before * (1 + 1e-12)


@few
@given(seeds, st.sampled_from(["gradient_variance", "gradient_second_moment", "initial_gap", "optimizer_states"]))
def test_less_noise_drift_and_state_never_hurt(seed: int, name: str):
    """Half the noise, drift, initial gap or state per parameter: no more seconds."""
    problem = small(seed)
    better = problem.replace(**{name: getattr(problem, name) / 2})
    assert enumerate_plans(better)[0] <= enumerate_plans(problem)[0] * (1 + 1e-12)


@few
@given(seeds)
def test_devices_have_no_order(seed: int):
    """Renumbering the devices renumbers the plans and leaves their objective, for any plan and the exact optimum."""
    problem = small(seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(problem.num_devices)
    other = problem.replace(**{name: getattr(problem, name)[order] for name in PER_DEVICE})
    batch, cut = rng.integers(1, 6, problem.num_devices), rng.integers(1, 4, problem.num_devices)
    one, two = (
        SplitPlan(batch_size=batch[index], cut_layer=cut[index], aggregation_interval=3)
        for index in (slice(None), order)
    )
    assert other.objective(two) == pytest.approx(problem.objective(one), rel=1e-12)
    values = [edgeopt.solve(p, "exact").objective for p in (problem, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-7)


@few
@given(seeds, st.sampled_from([1e-3, 7.0]))
def test_time_has_no_unit(seed: int, factor: float):
    """All speeds and rates times a factor: all plans take the time divided by it, so the best one stays the best."""
    problem = small(seed)
    names = [name for name in (*PER_DEVICE, *SHARED) if name not in ("memory_bytes", "max_batch", "target")]
    other = problem.replace(**{name: getattr(problem, name) * factor for name in names})
    before, plan = enumerate_plans(problem)
    assert other.objective(plan) == pytest.approx(before / factor, rel=1e-9)
    assert enumerate_plans(other)[0] == pytest.approx(before / factor, rel=1e-9)
    found = [edgeopt.solve(p, "hasfl").objective for p in (problem, other)]
    assert found[1] == pytest.approx(found[0] / factor, rel=1e-6)
