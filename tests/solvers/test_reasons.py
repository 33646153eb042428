"""Explanations: every conflict cannot hold together and is minimal, every way lets in whom it is for, by oracles of their own."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.explain import Change, Explanation, Limit, Way, all_rounded_up, rounded_down, rounded_up
from edgeopt.problems import (
    PROBLEMS,
    ClientSelection,
    DownloadPlan,
    ExpertBalancing,
    ExpertCaching,
    ModelDownload,
    SelectionPlan,
    SplitTraining,
)
from edgeopt.solvers.expert_balancing import reasons as balancing_reasons
from tests.solvers.doubles import Foreign
from tests.solvers.model_download.instances import hand_made, least, random_problem
from tests.solvers.split_training.brute_force import any_problem

ANY_BATCH = np.iinfo(np.int32).max


def check_form(explanation: Explanation) -> Any:
    """Return the document of an explanation that is strict JSON and has a readable summary."""
    document = json.loads(json.dumps(explanation.to_json(), allow_nan=False))
    lines = explanation.summary().splitlines()
    assert lines[0] == f"{explanation.problem}: {explanation.verdict}"
    assert (document["conflict"] is None) == (explanation.verdict != "infeasible")
    return document


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.kind)
def test_every_kind_explains_itself(kind: Any):
    """A random problem of every kind has solutions, and says so."""
    problem = kind.random(seed=1)
    explanation = problem.explain()
    check_form(explanation)
    assert (explanation.problem, explanation.verdict, explanation.conflict) == (kind.kind, "feasible", None)


def test_what_cannot_be_explained():
    """A kind of a user's own is refused, and so is a solution of a kind whose explanation takes none."""
    with pytest.raises(edgeopt.EdgeOptError, match=r"explain: expected a problem of expert-caching, .* got 'foreign'"):
        Foreign().explain()
    with pytest.raises(edgeopt.EdgeOptError, match="solution: expected None for a problem of split-training"):
        SplitTraining.random(num_devices=2, num_layers=3).explain(3)


# --- split training ----------------------------------------------------------------------------------------------


def with_limits_of(problem: SplitTraining, names: set[str]) -> SplitTraining:
    """Return the problem with all other limits lifted."""
    devices = range(problem.num_devices)
    return problem.replace(
        target=problem.target if "target" in names else 1e30,
        memory_bytes=[problem.memory_bytes[i] if f"memory_bytes[{i}]" in names else np.inf for i in devices],
        max_batch=[problem.max_batch[i] if f"max_batch[{i}]" in names else ANY_BATCH for i in devices],
        min_interval=problem.min_interval if "min_interval" in names else 1,
    )


def reachable(problem: SplitTraining) -> bool:
    """Return whether the target can be reached, from the definition: cut 1, the largest batches that fit, the least interval."""
    first = problem.memory_bits[0] * problem.factors.kept
    fixed = problem.optimizer_states * problem.parameter_bits[0]
    noise = problem.smoothness * problem.step_size * problem.gradient_variance.sum() / problem.num_devices**2
    used = 0.0
    for memory, most in zip(problem.memory_bytes.tolist(), problem.max_batch.tolist(), strict=True):
        fits = math.floor((8 * memory * (1 + 1e-12) - fixed) / first) if math.isfinite(memory) and first > 0 else most
        used += noise / min(fits, most)
    if problem.min_interval > 1:
        drift = 4 * (problem.smoothness * problem.step_size) ** 2 * problem.gradient_second_moment[0]
        used += drift * problem.min_interval**2
    return bool(used < problem.target)


def infeasible_split(rng: np.random.Generator) -> SplitTraining:
    least_interval = int(rng.integers(1, 5))
    while True:
        problem = any_problem(int(rng.integers(2**31)), devices=4, max_batch=20)
        problem = problem.replace(
            min_interval=least_interval,
            max_interval=least_interval + 2,
            gradient_second_moment=problem.gradient_second_moment * rng.uniform(0.0, 50.0),
        )
        if problem.least_target > 0:
            return problem.replace(target=problem.least_target * rng.uniform(0.05, 0.999))


def check_split(problem: SplitTraining, *, fewest: bool) -> None:
    explanation = problem.explain()
    check_form(explanation)
    assert explanation.verdict == "infeasible"
    assert explanation.conflict is not None
    assert not reachable(problem)
    limits = {limit.name: limit for limit in explanation.conflict.limits}
    names = set(limits)
    assert len(limits) == len(explanation.conflict.limits)
    assert not reachable(with_limits_of(problem, names))
    for name in names:
        assert reachable(with_limits_of(problem, names - {name})), f"without {name} the others still conflict"
    for name, limit in limits.items():
        check_enough(problem, name, limit)
    if fewest:
        devices = range(problem.num_devices)
        others = ["min_interval", *(f"{of}[{i}]" for of in ("memory_bytes", "max_batch") for i in devices)]
        for chosen in itertools.combinations(others, len(names) - 2):
            assert reachable(with_limits_of(problem, {"target", *chosen})), f"{chosen} are fewer"


def check_enough(problem: SplitTraining, name: str, limit: Limit) -> None:
    """Where a value of one limit is said to be enough, it is, and a clearly smaller change is not."""
    field, _, index = name.rstrip("]").partition("[")
    values = np.array(getattr(problem, field), float)
    place = int(index) if index else ()
    assert limit.value == values[place]

    def changed(value: float) -> SplitTraining:
        values[place] = value
        given: Any = values.astype(int) if field in ("max_batch", "min_interval") else values
        more = {"max_interval": max(int(value), problem.max_interval)} if field == "min_interval" else {}
        return problem.replace(**{field: given if index else given.item()}, **more)

    if limit.enough is None:
        extreme = {"max_batch": ANY_BATCH, "memory_bytes": np.inf, "min_interval": 1}
        assert not reachable(changed(extreme[field]))
        return
    assert reachable(changed(limit.enough))
    if field in ("max_batch", "min_interval"):
        assert not reachable(changed(limit.enough + (1 if field == "min_interval" else -1)))
    else:
        assert not reachable(changed(limit.enough * (1 - 1e-4)))


@pytest.mark.parametrize("seed", range(3))
def test_conflicts_of_split_training(seed: int):
    """Of 300 in all, the limits cannot hold together, without any one they can, and what is said to be enough is enough.

    Of some, every smaller set is tried.
    """
    rng = np.random.default_rng(seed)
    for place in range(100):
        check_split(infeasible_split(rng), fewest=place < 10)


@pytest.mark.slow
def test_a_thousand_conflicts_of_split_training():
    """The same of a thousand more, in the sizes that are brute-forced."""
    rng = np.random.default_rng(10_000)
    for _ in range(1000):
        check_split(infeasible_split(rng), fewest=True)


def test_a_conflict_by_hand():
    """Noise 0.9 of device 1 (batch 1) and 0.3 of device 0 (batch 3) against 1: both take part, and each alone could give."""
    made = SplitTraining(
        forward_flops=[1.0, 1.0], backward_flops=[1.0, 1.0], activation_bits=[1.0, 0.0], gradient_bits=[1.0, 0.0],
        parameter_bits=[8.0, 8.0], memory_bits=[8.0, 8.0], device_flops=[1.0, 1.0], uplink_bps=1.0, downlink_bps=1.0,
        fed_uplink_bps=1.0, fed_downlink_bps=1.0, memory_bytes=[np.inf, 4.5], max_batch=[3, 10], server_flops=1.0,
        server_fed_uplink_bps=1.0, server_fed_downlink_bps=1.0, smoothness=1.0, gradient_variance=[1.8, 1.8],
        gradient_second_moment=0.0, initial_gap=1.0, step_size=1.0, target=1.0,
    )  # fmt: skip
    explanation = made.explain()
    assert explanation.conflict is not None
    found = [(limit.name, limit.value, limit.enough) for limit in explanation.conflict.limits]
    assert found == [("target", 1.0, 1.20001), ("max_batch[0]", 3.0, 10.0), ("memory_bytes[1]", 4.5, 5.0)]
    assert "max_batch of device 0 leaves gradient noise of at least 0.3" in explanation.conflict.message


# --- expert balancing --------------------------------------------------------------------------------------------


def can_be_packed(size: list[int], room: list[int]) -> bool:
    """Return whether groups fit into rooms, by trying every way."""
    for where in itertools.product(range(len(room)), repeat=len(size)):
        used = [0] * len(room)
        for group, there in enumerate(where):
            used[there] += size[group]
        if all(need <= have for need, have in zip(used, room, strict=True)):
            return True
    return False


def random_groups(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Return sizes and rooms that a problem may have: enough slots in all, and for the largest group."""
    while True:
        size = rng.integers(1, 7, rng.integers(2, 6)).tolist()
        room = rng.integers(3, 12, rng.integers(2, 4)).tolist()
        if sum(size) <= sum(room) <= sum(size) + 2 and max(size) <= max(room):
            return size, room


def grouped(size: list[int], room: list[int]) -> ExpertBalancing:
    experts = np.repeat(np.arange(len(size)), size)
    return ExpertBalancing(
        load=np.ones((2, experts.size)), slots=room, expert_group=experts, device_group=range(len(room))
    )


def check_balancing(size: list[int], room: list[int]) -> bool:
    """Check the explanation, and return whether it was infeasible."""
    explanation = grouped(size, room).explain()
    check_form(explanation)
    assert (explanation.verdict == "feasible") == can_be_packed(size, room)
    if explanation.conflict is None:
        return False
    names = [limit.name for limit in explanation.conflict.limits]
    groups = [int(name.split()[-1]) for name in names if name.startswith("expert_group")]
    assert [name for name in names if name.startswith("slots")] == [
        f"slots of device group {d}" for d in range(len(room))
    ]
    assert not can_be_packed([size[g] for g in groups], room)
    for left_out in groups:
        assert can_be_packed([size[g] for g in groups if g != left_out], room)
    for limit in explanation.conflict.limits:
        if limit.name.startswith("slots"):
            node = int(limit.name.split()[-1])
            assert limit.enough is not None
            for more, fits in ((int(limit.enough), True), (int(limit.enough) - 1, False)):
                assert can_be_packed(size, [*room[:node], more, *room[node + 1 :]]) == fits
    return True


def test_conflicts_of_expert_balancing():
    """Of 800 random ones, the 130 and more whose groups cannot be packed name groups of which none can be left out."""
    rng = np.random.default_rng(1)
    found = sum(check_balancing(*random_groups(rng)) for _ in range(800))
    assert found >= 130


def test_packing_at_the_size_of_real_systems():
    """64 groups of 4 on 8 nodes: with 33 slots each they fit, with one node of 31 and the rest 32 one group finds no room."""
    size = np.full(64, 4)
    assert balancing_reasons.packs(size, np.full(8, 33)) is True
    assert balancing_reasons.packs(size, np.array([31] + [32] * 7)) is False


def test_a_search_that_is_cut_short_claims_nothing(monkeypatch: pytest.MonkeyPatch):
    """Beyond the steps that a decision may take, the verdict is unknown."""
    monkeypatch.setattr(balancing_reasons, "MAX_STEPS", 0)
    explanation = grouped([3, 3, 3], [5, 5]).explain()
    assert (explanation.verdict, explanation.conflict) == ("unknown", None)


# --- model download ----------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {}, {"energy": 0.7}, {"energy": 1.0, "concave": True, "fixed": True}, {"block": 0.5, "tasks": 3, "num_models": 4},
    {"energy": 0.5, "block": 0.3, "num_models": 3}, {"weighted": True, "rewarded": True, "num_models": 3},
]  # fmt: skip


def served(problem: ModelDownload, user: int, room: float) -> bool:
    """Return whether a user can be served over so much bandwidth, by the slow oracle."""
    bandwidth = min(least(problem, user, i)[0] for i in range(problem.num_models))
    return bandwidth <= room * (1 + 1e-9)


def changed(problem: ModelDownload, way: Way, *, nearly: bool = False) -> tuple[ModelDownload, float]:
    """Return the problem with the changes of a way, or a bit less of each, and the Hz that the bandwidth grows by."""
    extra = 0.0
    for change in way.changes:
        field, _, index = change.name.rstrip("]").partition("[")
        value = change.needed
        if nearly:  # by more than what rounding to six digits adds
            less = min(abs(value - change.value), max(1e-3 * abs(value - change.value), 2e-5 * abs(value)))
            value -= math.copysign(less, value - change.value)
        if not index:
            extra = value - change.value
            continue
        values = getattr(problem, field).copy()
        values[int(index)] = value
        problem = problem.replace(**{field: values})
    return problem, extra


def check_download(problem: ModelDownload, plan: DownloadPlan | None) -> int:
    """Check all who are refused, and return how many they are."""
    explanation = problem.explain(plan)
    check_form(explanation)
    users = range(problem.num_users)
    needs = [[least(problem, k, i)[0] for i in range(problem.num_models)] for k in users]
    room, expected = problem.bandwidth_hz, {k for k in users if min(needs[k]) > problem.bandwidth_hz * (1 + 1e-9)}
    if plan is not None:
        expected = {k for k in users if plan.model[k] < 0}
        room -= sum(needs[k][plan.model[k]] for k in users if plan.model[k] >= 0)
    assert {refused.index for refused in explanation.refused} == expected
    for refused in explanation.refused:
        assert [way.relative for way in refused.ways] == sorted(way.relative for way in refused.ways)
        sizes = {len(way.changes) for way in refused.ways}
        assert len(sizes) <= 1
        for way in refused.ways:
            fits, extra = changed(problem, way)
            assert served(fits, refused.index, room + extra), f"{refused.message}: {way} is not enough"
            if not way.changes:
                continue
            nearly, extra = changed(problem, way, nearly=True)
            assert not served(nearly, refused.index, room + extra), f"{refused.message}: less than {way} is enough"
            for left_out in way.changes if len(way.changes) > 1 else ():
                some, extra = changed(problem, Way(tuple(change for change in way.changes if change != left_out)))
                assert not served(some, refused.index, room + extra), f"{way}: without {left_out.name} it is enough"
        if not refused.ways:
            lifted = problem.replace(
                min_accuracy=0.0, memory_bytes=np.inf, deadline_s=problem.deadline_s * 1e9, energy_j=np.inf
            )
            assert not served(lifted, refused.index, np.inf)
    return len(expected)


@pytest.mark.parametrize("number", range(len(VARIANTS)))
def test_ways_of_model_download(number: int):
    """Each way is enough by an oracle of its own, a bit less is not, and none of several changes can be left out."""
    rng = np.random.default_rng(number)
    refused = 0
    for _ in range(4):
        problem = random_problem(rng, **{"num_users": 3, "max_layers": 3, "band": 0.4} | VARIANTS[number])
        hurried = problem.replace(deadline_s=problem.deadline_s * rng.uniform(0.2, 1.0, problem.num_users))
        refused += check_download(hurried, None)
        refused += check_download(problem, edgeopt.solve(problem, "slide").solution)
    assert refused >= 5


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(VARIANTS)))
def test_more_ways_of_model_download(number: int):
    """The same of many more."""
    rng = np.random.default_rng(1000 + number)
    refused = 0
    while refused < 170:
        problem = random_problem(rng, **{"num_users": 4, "max_layers": 3, "band": 0.4} | VARIANTS[number])
        hurried = problem.replace(deadline_s=problem.deadline_s * rng.uniform(0.2, 1.0, problem.num_users))
        refused += check_download(hurried, None)
        refused += check_download(problem, edgeopt.solve(problem, "slide").solution)


def test_ways_by_hand():
    """Two users need 4 of 6 Hz each; the second needs 8 in all, or a deadline at which 2 Hz are enough: 8 bit / 2 Hz + 1 s."""
    problem = hand_made(bandwidth_hz=6.0)
    explanation = problem.explain(edgeopt.solve(problem, "slide").solution)
    (refused,) = explanation.refused
    assert (refused.what, refused.index) == ("user", 1)
    found = [(change.name, change.value, change.needed) for way in refused.ways for change in way.changes]
    assert found == [("bandwidth_hz", 6.0, pytest.approx(8.0)), ("deadline_s[1]", 3.0, pytest.approx(5.0, rel=1e-5))]
    assert str(refused.ways[0]) == "bandwidth_hz = 6 would have to be 8 (+33.3 %)"
    assert "never infeasible" in explanation.message


def test_a_plan_that_leaves_out_whom_it_could_serve():
    """Nothing would have to change, and the message says so."""
    explanation = hand_made().explain(DownloadPlan.refuse_all(2))
    assert [refused.ways for refused in explanation.refused] == [(Way(()),)] * 2
    assert "it could be served as things are" in explanation.refused[0].message


def test_entries_are_those_of_any_order():
    """Those refused are a sequence: from the end, in slices, and again, entries are the same."""
    problem = random_problem(np.random.default_rng(0), num_users=6, band=0.2)
    plan = DownloadPlan.refuse_all(6)
    explanation = problem.explain(plan)
    entries = list(explanation.refused)
    assert [entry.index for entry in entries] == list(range(6))
    assert [explanation.refused[place] for place in range(-1, -7, -1)] == entries[::-1]
    assert explanation.refused[1:5:2] == (entries[1], entries[3])
    assert explanation == problem.explain(plan)
    with pytest.raises(IndexError):
        explanation.refused[6]


def test_nothing_helps_a_task_without_a_model():
    """No limit that gives brings a model for the task."""
    (refused,) = hand_made(task=[0, 1]).explain().refused
    assert refused.ways == ()
    assert refused.message == "user 1: task = 1, no model does it"


def test_plans_that_do_not_fit():
    """Of another kind, and infeasible."""
    with pytest.raises(edgeopt.InvalidProblemError, match="solution: expected a DownloadPlan, got int"):
        hand_made().explain(3)
    broken = DownloadPlan(model=[0, -1], bandwidth_hz=[1.0, 0.0], frequency_hz=[1.0, 1.0])
    with pytest.raises(edgeopt.InvalidProblemError, match="solution: user 0 is done after"):
        hand_made().explain(broken)


# --- client selection --------------------------------------------------------------------------------------------


def delivers(problem: ClientSelection, client: int) -> bool:
    """Return whether a client delivers in some round to some server that alone picks it, as the environment plays it."""
    for server in np.flatnonzero(problem.coverage[:, client]).tolist():
        picks = np.full((problem.rounds, problem.num_servers, 1), -1)
        picks[:, server] = client
        if problem.report(SelectionPlan(picks)).deliveries[client]:
            return True
    return False


@pytest.mark.parametrize("seed", range(6))
def test_clients_who_never_deliver(seed: int):
    """Exactly those are named whom the environment lets deliver nowhere; each way changes that, and nine tenths of it do not."""
    rng = np.random.default_rng(seed)
    problem = ClientSelection.random(num_servers=2, num_clients=8, picks=1, rounds=6, seed=seed)
    problem = problem.replace(timeout_s=problem.timeout_s * rng.uniform(0.1, 0.35))
    explanation = problem.explain()
    check_form(explanation)
    refused = {entry.index: entry for entry in explanation.refused}
    for client in range(problem.num_clients):
        assert (client in refused) == (not delivers(problem, client))
    assert refused
    for client, entry in refused.items():
        for way in entry.ways:
            (change,) = way.changes
            for share, expected in ((1.0, True), (0.9, False)):
                value = change.value + share * (change.needed - change.value)
                field, _, index = change.name.partition("[")
                given: Any = value
                if index:
                    given = problem.compute_s.copy()
                    given[client] = value
                assert delivers(problem.replace(**{field: given}), client) == expected


def test_a_client_that_is_always_busy():
    """No limit helps it."""
    problem = ClientSelection(
        coverage=[[True, True]], picks=1, compute_s=1.0, payload_bits=1e6, rate_bps=1e6, timeout_s=4.0, rounds=2,
        busy=[[True, False], [True, False]],
    )  # fmt: skip
    (refused,) = problem.explain().refused
    assert (refused.index, refused.ways) == (0, ())


# --- expert caching ----------------------------------------------------------------------------------------------


def test_experts_too_large_for_any_server():
    """The expert of 5 bytes fits on no server of at most 4; 5 bytes on the larger one would be enough."""
    problem = ExpertCaching.from_facility(gain=[[1.0, 1.0]], weight=[[1.0, 1.0]], size=[5, 2], capacity=[3, 4])
    explanation = problem.explain()
    (refused,) = explanation.refused
    assert (refused.what, refused.index) == ("expert", 0)
    assert refused.ways == (Way((Change(name="storage_bytes[1]", value=4.0, needed=5.0),)),)
    assert "never infeasible" in explanation.message


# --- numbers and words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, 0.1, 1.23456789, 2e-30, 9.999999999, 123456789.0])
def test_rounding(value: float):
    """Up is never less, down never more, and neither by more than a unit of the sixth digit."""
    assert value <= rounded_up(value) <= value * (1 + 1e-5)
    assert value * (1 - 1e-5) <= rounded_down(value) <= value


@pytest.mark.parametrize("digits", [6, 9])
def test_many_are_rounded_as_each(digits: int):
    """Together, and one by one, but for numbers of so few digits, which stay."""
    rng = np.random.default_rng(digits)
    values = np.concatenate([10.0 ** rng.uniform(-25, 25, 500), [0.0, 1e-300, 1e300, -1.23456789e3]])
    assert all_rounded_up(values, digits).tolist() == [rounded_up(value, digits) for value in values.tolist()]
    short = np.array([0.1, 1.1, 123.0, 0.007, 5e12, np.inf])
    assert all_rounded_up(short, digits).tolist() == short.tolist()


def test_long_lists_are_cut():
    """A summary names the first, and says how many more there are."""
    lines = hand_made(deadline_s=[1.0, 1.0]).explain().summary(most=1).splitlines()
    assert lines[-1] == "  and 1 more refused"
    problem = SplitTraining.random(num_devices=30, num_layers=3, seed=1)
    text = problem.replace(target=0.9 * problem.least_target).explain().summary(most=3)
    assert "more limits" in text
