"""Cuts by time, memory and accuracy: brute force, the virtual time of real rounds, and what happens at the ends."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from edgeopt import RoundPlan
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import SplitTraining
from edgeopt.solvers.split_training.cut_planner import CutPlanner
from edgeopt.training import FlexpSfl, Sgd, client_peak_bytes
from tests.training.split_tasks import problem_of, run, task

LAYERS = 5


def random_problem(seed: int, tight: float = 1.0) -> SplitTraining:
    """Return four unequal devices; some have no memory for all cuts."""
    problem = SplitTraining.random(num_devices=4, num_layers=LAYERS, seed=seed)
    at_cut = (16 * np.cumsum(problem.memory_bits) + 3 * problem.client_bits) / 8
    room = np.random.default_rng(seed).uniform(at_cut[0], tight * at_cut[-1] + at_cut[0], 4)
    return problem.replace(memory_bytes=room)


def cost(problem: SplitTraining, device: int, cut: int, planner: CutPlanner) -> float:
    """Return the objective of one cut of one device from the formula; inf without memory for it."""
    p, b = problem, int(planner.batch_size[device])

    def seconds(cut: int) -> float:
        forward, backward = p.forward_flops, p.backward_flops
        return b * float(
            forward[:cut].sum() / p.device_flops[device]
            + p.activation_bits[cut - 1] / p.uplink_bps[device]
            + (forward[cut:].sum() + backward[cut:].sum()) / p.server_flops
            + p.gradient_bits[cut - 1] / p.downlink_bps[device]
            + backward[:cut].sum() / p.device_flops[device]
        )

    cuts = [int(c) for c in planner.cuts]  # type: ignore[union-attr]
    held = (b * p.memory_bits[:cut].sum() + p.optimizer_states * p.parameter_bits[:cut].sum()) / 8
    if held > p.memory_bytes[device] * (1 + 1e-12):
        return np.inf
    time = seconds(cut) / max(map(seconds, cuts))
    return planner.kappa * time + (1 - planner.kappa) * (1 - float(planner.accuracy[cuts.index(cut)]))


@settings(max_examples=60)
@given(
    st.integers(0, 10_000), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=LAYERS - 1, max_size=LAYERS - 1),
    st.sampled_from([None, [1], [1, 3], [1, 2, 4]]), st.lists(st.integers(1, 16), min_size=4, max_size=4),
)  # fmt: skip
def test_no_cuts_of_all_are_better(seed: int, kappa: float, accuracy: list[float], cuts: Any, batch: list[int]):
    """Of all combinations of cuts, none has a smaller sum of the objective, and memory is kept to."""
    problem, known = random_problem(seed), accuracy[: len(cuts or accuracy)]
    planner = CutPlanner(problem=problem, accuracy=known, kappa=kappa, cuts=cuts, batch_size=batch)
    chosen = planner.plan(0).cut_layer.tolist()
    costs = [{c: cost(problem, i, c, planner) for c in (cuts or range(1, LAYERS))} for i in range(4)]
    best = min(
        sum(costs[i][c] for i, c in enumerate(of)) for of in itertools.product(cuts or range(1, LAYERS), repeat=4)
    )
    assert sum(costs[i][c] for i, c in enumerate(chosen)) == pytest.approx(best, abs=1e-12)
    assert all(np.isfinite(costs[i][c]) for i, c in enumerate(chosen))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_devices_do_not_depend_on_each_other(seed: int, order: list[int]):
    """In another order they have the same cuts; more memory never makes the objective larger."""
    problem, table = random_problem(seed), [0.2, 0.5, 0.6, 0.9]
    planner = CutPlanner(problem=problem, accuracy=table)
    names = (
        "device_flops",
        "uplink_bps",
        "downlink_bps",
        "fed_uplink_bps",
        "fed_downlink_bps",
        "memory_bytes",
        "max_batch",
    )
    turned = problem.replace(**{name: getattr(problem, name)[order] for name in names})
    cuts = planner.plan(0).cut_layer
    assert CutPlanner(problem=turned, accuracy=table).plan(0).cut_layer.tolist() == cuts[order].tolist()
    roomy = CutPlanner(problem=problem.replace(memory_bytes=np.inf), accuracy=table)
    for device, (own, free) in enumerate(zip(cuts, roomy.plan(0).cut_layer, strict=True)):
        assert cost(roomy.problem, device, int(free), roomy) <= cost(problem, device, int(own), planner)


def test_the_ends_of_the_weight():
    """With kappa = 1 the fastest cut that fits, with 0 the most accurate, of equal ones the lowest."""
    problem = random_problem(3).replace(memory_bytes=np.inf)
    fastest = CutPlanner(problem=problem, kappa=1.0)
    assert fastest.plan(7).cut_layer.tolist() == (fastest.seconds.argmin(axis=1) + 1).tolist()
    best = CutPlanner(problem=problem, kappa=0.0, accuracy=[0.5, 0.9, 0.9, 0.1], local_steps=3, batch_size=4)
    expected = RoundPlan(client=range(4), batch_size=4, cut_layer=2, local_steps=3)
    assert best.plan(0) == best.plan(1) == expected


@pytest.mark.parametrize("head", [0, 1, 2])
def test_seconds_are_those_of_a_round_of_a_device_alone(head: int):
    """What a mini-batch takes at every cut is what the round lasts in virtual time; in the U shape too."""
    own = task(dtype=torch.float32)
    planner = CutPlanner(problem=problem_of(own), batch_size=[2, 3, 4], head_layers=head)
    for device, (size, row) in enumerate(zip((2, 3, 4), planner.seconds, strict=True)):
        for cut, seconds in enumerate(row, start=1):
            plan = RoundPlan(client=[device], batch_size=size, cut_layer=cut)
            history = run(own, FlexpSfl(Sgd(0.1), alignment="none", head_layers=head), plan)
            assert history.rows[0]["round_seconds"] == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("head", [0, 1])
def test_memory_is_what_rounds_charge(head: int):
    """As `client_peak_bytes` has it with momentum, but for what the loss keeps of a head."""
    own = task(dtype=torch.float32)
    planner = CutPlanner(problem=problem_of(own), batch_size=[2, 3, 4], head_layers=head)
    for size, row in zip((2, 3, 4), planner.memory_bytes, strict=True):
        for cut, held in enumerate(row, start=1):
            charged = client_peak_bytes(own, size, Sgd(0.1, momentum=0.5), cut=cut, head=head)
            if head:
                assert held <= charged
                assert charged - held < 100 * size
            else:
                assert held == charged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 1.5}, r"kappa = 1\.5: expected a number from 0 to 1"),
        ({"kappa": float("nan")}, "kappa = nan"),
        ({"accuracy": [0.1, 0.2]}, r"accuracy: expected shape \[4\], got \[2\]"),
        ({"accuracy": [0.1, 0.2, 1.5, 0.3]}, r"accuracy\[2\] = 1\.5: expected a number from 0 to 1"),
        ({"accuracy": -0.1}, r"accuracy\[0\] = -0\.1: expected a non-negative number"),
        ({"cuts": [2, 1]}, r"cuts = \[2, 1\]: expected different ones, ascending"),
        ({"cuts": []}, "expected different ones, ascending, at least one"),
        ({"cuts": [5]}, r"cuts\[0\] = 5: expected an integer from 1 to 4"),
        ({"cuts": [4], "head_layers": 1}, r"cuts\[0\] = 4: expected an integer from 1 to 3"),
        ({"head_layers": 4}, "head_layers = 4: expected an integer from 0 to 3"),
        ({"batch_size": 0}, r"batch_size\[0\] = 0: expected an integer >= 1"),
        ({"local_steps": 0}, "local_steps = 0: expected an integer >= 1"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], message: str):
    """It is refused with name, place, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        CutPlanner(problem=random_problem(0).replace(memory_bytes=np.inf), **options)


def test_a_device_without_memory():
    """It is named, with what it would need."""
    problem = random_problem(0).replace(memory_bytes=np.inf)
    needed = CutPlanner(problem=problem, batch_size=16).memory_bytes[2, 1]
    small = problem.replace(memory_bytes=[np.inf, np.inf, 0.99 * needed, np.inf])
    CutPlanner(problem=small)
    with pytest.raises(
        InvalidProblemError,
        match=r"device 2 has no memory for any of the cuts \[2, 3\] with 16 samples: expected at least "
        + re.escape(f"{needed:.6g} bytes"),
    ):
        CutPlanner(problem=small, cuts=[2, 3])
