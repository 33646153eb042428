"""Every registered algorithm, whatever a round brings: nobody to train, lost clients, one sample, frozen layers.

What crosses is what is charged, and time is that of the problems. `tests.training.cases` says what there is to train; an
algorithm of split learning whose rounds `SplitTraining` describes has a line in `ROUND_SECONDS` here.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt import RoundPlan
from edgeopt.problems import CostFactors, SplitPlan, SplitTraining
from edgeopt.problems.split_training.report import SplitReport
from edgeopt.solvers.client_selection import SelectionPlanner
from edgeopt.training import (
    Algorithm,
    Codec,
    EdgeTiming,
    FedAlignMoe,
    FlexpSfl,
    HFedMoe,
    History,
    HoSfl,
    ParallelSplit,
    SelectionTiming,
    SplitFed,
    SplitFedV2,
    State,
    Task,
    VanillaSplit,
    ZoSfl,
    train,
)  # fmt: skip
from edgeopt.training.algorithms import ALGORITHMS
from edgeopt.training.messages import kept
from edgeopt.training.states import flatten
from tests.training import split_tasks
from tests.training.cases import (
    ROUNDS,
    SIZES,
    every_case,
    exact_task,
    fitted,
    has,
    interval,
    make,
    make_algorithm,
    plain_task,
    selection,
)
from tests.training.costs.as_reported import assert_as_reported
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, assert_same


def plan_of(kind: type[Algorithm], **options: Any) -> RoundPlan:
    """Return a plan for all clients that differ in whatever a plan may say; where there are servers, they share them."""
    fields: dict[str, Any] = {
        "client": range(len(SIZES)), "server": [0, 1, 0, 1] if has(kind, "num_servers") else 0, "batch_size": [2, 1, 2, 2],
        "cut_layer": [1, 3, 2, 2], "local_steps": [2, 1, 2, 2], "experts": [1, 0, 2, 1],
    }  # fmt: skip
    return RoundPlan(**(fields | options))


def task_of(kind: type[Algorithm], **options: Any) -> Task:
    """Return a task that an algorithm can train, in double precision; options are those of `exact_task`."""
    return fitted(kind, exact_task(**options))


def learn(
    kind: type[Algorithm], codec: type[Codec] | None, *plans: RoundPlan, of: Task | None = None, **options: Any
) -> History:
    return split_tasks.run(task_of(kind) if of is None else of, make_algorithm(kind, codec), *plans, **options)


def has_moved(history: History, of: Task) -> bool:
    """Return whether any model is another than before the first round."""
    start = of.model.state_dict()
    return any(not torch.equal(value, start[name]) for model in history.models for name, value in model.items())


def assert_same_state(server: State, clients: dict[int, State], history: History) -> None:
    """Compare what server and clients remember after a run, bit for bit."""
    expected, found = (
        flatten({"server": own, "clients": {str(client): state for client, state in of.items()}})
        for own, of in ((server, clients), (history.server, history.clients))
    )
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, expected[0][name], err_msg=name, strict=True)


def charged(row: dict[str, Any], runner: Recording) -> dict[str, int]:
    """Return the bytes of a row, by category and direction."""
    return {name: row[name] for name in runner.crossed(1)}


@pytest.mark.sampled(2)
@every_case
def test_an_empty_plan(kind: type[Algorithm], codec: type[Codec] | None):
    """Nothing is sent or charged, and neither server nor clients remember the round; the next one goes on."""
    nobody, some = RoundPlan(client=[]), plan_of(kind, aggregate=interval(kind) == 1)
    runner = Recording()
    first, second, third = (
        learn(kind, codec, nobody, some, nobody, rounds=rounds, runner=runner if rounds == 3 else None)
        for rounds in (1, 2, 3)
    )
    assert_same_state(kept(make_algorithm(kind, codec).start(task_of(kind))), {}, first)
    assert not has_moved(first, task_of(kind))
    assert second.rows[-1]["completed"] == len(SIZES)
    assert_same_state(second.server, second.clients, third)
    assert 0 == runner.ends[0] < runner.ends[1] == runner.ends[2]
    before, row = third.rows[1:]
    for name in ("seconds", "energy_j", "bytes_up", "bytes_down", "accuracy", "test_loss", *runner.crossed(1)):
        assert row[name] == before[name], name
    assert [row[name] for name in ("round_seconds", "planned", "completed", "straggler")] == [0, 0, 0, -1]
    assert np.isnan([row["train_loss"], row["client_peak_bytes"]]).all()


def losing(*clients: int) -> EdgeTiming:
    """Return a timing that loses some clients in round 0."""

    class Losing(EdgeTiming):
        def lost(self, round: int, plan: RoundPlan) -> Any:
            return np.isin(plan.client, clients) & (round == 0)

    return Losing.from_problem(split_tasks.problem_of(exact_task()))


@pytest.mark.sampled(2)
@every_case
def test_a_lost_client(kind: type[Algorithm], codec: type[Codec] | None):
    """Its update does not count and the others' do, as without it; what is sent to it in vain is charged.

    Whether the timing decides it or the runner does not reach it is the same to the bit.
    """
    plan, runner = plan_of(kind), Recording(lost=lambda entry, message: entry == 1)
    history = learn(kind, codec, plan, runner=runner)
    alike = learn(kind, codec, plan, timing=losing(1))
    assert_same_state(history.server, history.clients, alike)
    assert str(history.rows) == str(alike.rows)
    others = learn(kind, codec, plan.take([0, 2, 3]))
    assert has_moved(others, task_of(kind))
    for first, second in zip(history.models, others.models, strict=True):
        assert_near(first, second, 1e-9)
    (row,), (other,) = history.rows, others.rows
    assert (row["planned"], row["completed"], row["train_loss"]) == (4, 3, pytest.approx(other["train_loss"]))
    assert charged(row, runner) == runner.crossed(1)
    assert row["bytes_up"] == other["bytes_up"]
    in_vain = sum(message.nbytes(category) for entry, message, _ in runner.sent if entry == 1 for category in message)
    assert row["bytes_down"] == other["bytes_down"] + in_vain


@pytest.mark.sampled(2)
@every_case
def test_all_clients_lost(kind: type[Algorithm], codec: type[Codec] | None):
    """The models stay, there is no loss, nothing comes up and time goes by; the next round has them all again."""
    for aggregate in {True, interval(kind) == 1}:
        plans, timing = [plan_of(kind, aggregate=aggregate), plan_of(kind)], losing(*range(len(SIZES)))
        first, second = (learn(kind, codec, *plans, rounds=rounds, timing=timing) for rounds in (1, 2))
        (row,) = first.rows
        assert not has_moved(first, task_of(kind))
        assert (row["completed"], row["bytes_up"], np.isnan(row["train_loss"])) == (0, 0, True)
        assert row["seconds"] > 0
        assert second.rows[1]["completed"] == len(SIZES)
        assert has_moved(second, task_of(kind))


@pytest.mark.sampled(2)
@every_case
def test_a_client_with_one_sample(kind: type[Algorithm], codec: type[Codec] | None):
    """It trains on that; a batch larger than the data is all of it, to the bit and in what it costs."""
    sizes = (1, *SIZES[1:])
    of = task_of(kind, sizes=sizes)
    large, exact = (learn(kind, codec, plan_of(kind, batch_size=size), of=of, rounds=2) for size in (100, sizes))
    assert large.column("completed").tolist() == [len(SIZES)] * 2
    assert np.isfinite(large.column("train_loss")).all()
    assert_same_state(large.server, large.clients, exact)
    assert str(large.rows) == str(exact.rows)
    assert has_moved(learn(kind, codec, plan_of(kind, batch_size=100).take([0]), of=of), of)


@functools.cache
def recorded(kind: type[Algorithm], codec: type[Codec] | None) -> tuple[History, Recording]:
    """Return a run whose cuts move, and in which messages are lost at any point of a round."""
    rng = np.random.default_rng(3)
    runner = Recording(lost=lambda entry, message: bool(rng.random() < 0.1))
    cuts = ([1, 3, 2, 2], [2, 1, 3, 1], [3, 1, 3, 4])
    plans = [
        plan_of(kind, cut_layer=cut, aggregate=(number + 1) % interval(kind) == 0) for number, cut in enumerate(cuts)
    ]
    return learn(kind, codec, *plans, runner=runner), runner


TELLING = (HFedMoe, FedAlignMoe)
"""Algorithms whose clients report statistics of their own."""


@every_case
def test_bytes_are_those_of_the_tensors(kind: type[Algorithm], codec: type[Codec] | None):
    """In each round and for each category and direction, the ledger has what a runner saw cross, and nothing else."""
    history, runner = recorded(kind, codec)
    assert any(answer is None for _, _, answer in runner.sent)
    for number, row in enumerate(history.rows, start=1):
        crossed = runner.crossed(number)
        assert charged(row, runner) == crossed
        for direction in ("up", "down"):
            total = sum(size for name, size in crossed.items() if name.endswith(f"_{direction}"))
            assert row[f"bytes_{direction}"] == total > 0
        assert (crossed["statistics_up"] > 0) == (codec is not None or kind in TELLING)


@every_case
def test_memory_of_clients_is_in_the_rows(kind: type[Algorithm], codec: type[Codec] | None):
    """Every round with clients has the most that a message of it takes at its client, and that is more than nothing."""
    history, runner = recorded(kind, codec)
    for row, first, last in zip(history.rows, [0, *runner.ends], runner.ends, strict=False):
        assert row["client_peak_bytes"] == max(message.peak_bytes for _, message, _ in runner.sent[first:last]) > 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("layers", [(0, 1), (1, 2), (0, 1, 2)])
@every_case
def test_frozen_layers_are_nowhere(kind: type[Algorithm], codec: type[Codec] | None, layers: tuple[int, ...]):
    """No state has their weights, no message brings or charges them, and the trained model has them as they were."""
    of, runner = task_of(kind, frozen=layers), Recording()
    frozen = set(of.frozen)
    assert frozen == {name for name in of.layer_of if of.layer_of[name] in layers}
    history = learn(kind, codec, plan_of(kind), plan_of(kind, cut_layer=[2, 1, 3, 1]), of=of, runner=runner)
    for state in (history.server, *history.clients.values()):
        assert frozen.isdisjoint(leaves(state))
    for _, *messages in runner.sent:
        for message in messages:
            assert message is None or frozen.isdisjoint([*message.held, *(n for c in message for n in message[c])])
    assert charged(history.rows[-1], runner) == runner.crossed(2)
    before = of.model.state_dict()
    for weights in (*history.models, *history.personal.values()):
        assert list(weights) == list(before)
        assert_same({name: weights[name] for name in frozen}, {name: before[name] for name in frozen})
    assert has_moved(history, of)


def leaves(state: State) -> Iterator[str]:
    for name, value in state.items():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield name


# --- time is that of the problems -----------------------------------------------------------------------------------


def averaged(problem: SplitTraining, report: SplitReport, cut: int, aggregate: bool) -> float:
    """T_S, and T_A where layers are averaged; that is nothing for algorithms that move no weights."""
    return report.round_s + report.aggregation_s * aggregate


def in_turn(problem: SplitTraining, report: SplitReport, cut: int, aggregate: bool) -> float:
    """All stages of all clients one after another, and their layers there and back again."""
    handed = problem.client_bits[cut - 1] * (1 / problem.downlink_bps + 1 / problem.uplink_bps)
    return float(report.stage_s.sum() + handed.sum())


ROUND_SECONDS: dict[type[Algorithm], Callable[[SplitTraining, SplitReport, int, bool], float]] = {
    VanillaSplit: in_turn, ParallelSplit: averaged, SplitFed: averaged, SplitFedV2: averaged,
    HoSfl: averaged, ZoSfl: averaged, FlexpSfl: averaged,
}  # fmt: skip
"""How long a round of one step with equal cuts lasts, in the terms of the problem with the algorithm's cost factors."""


@pytest.mark.parametrize("kind", ROUND_SECONDS, ids=lambda kind: kind.name)
def test_seconds_of_split_training_are_those_of_the_problem(kind: type[Algorithm]):
    """Rounds last as long as `SplitTraining` says of the plan; over an interval, those of its objective."""
    of, cut = split_tasks.task(sizes=SIZES, dtype=torch.float32), 2
    problem = split_tasks.problem_of(of).replace(factors=getattr(make(kind), "cost_factors", CostFactors()))
    split = SplitPlan(batch_size=[2, 5, 3, 4], cut_layer=[cut] * len(SIZES), aggregation_interval=3)
    report, planner = problem.report(split), split.planner()
    history = learn(kind, None, *(planner.plan(number) for number in range(3)), of=of)
    expected = [ROUND_SECONDS[kind](problem, report, cut, number == 2) for number in range(3)]
    np.testing.assert_allclose(history.column("round_seconds"), expected, rtol=1e-9)
    if ROUND_SECONDS[kind] is averaged:
        assert history.rows[-1]["seconds"] / 3 * report.rounds == pytest.approx(problem.objective(split), rel=1e-9)


SEVERAL_EXCHANGES = (FedAlignMoe,)
"""Algorithms of whole models with more than one exchange a round, of which `ClientSelection` has no time."""


@pytest.mark.parametrize(
    "kind",
    [kind for kind in ALGORITHMS if not has(kind, "cut_layer") and kind not in SEVERAL_EXCHANGES],
    ids=lambda kind: kind.name,
)
def test_seconds_of_whole_models_are_those_of_client_selection(kind: type[Algorithm]):
    """Seconds, conflicts, deliveries and rewards of the rounds are what `ClientSelection` reports of the picks."""
    planner, _ = selection(kind)
    assert isinstance(planner, SelectionPlanner)
    problem, records = planner.problem.replace(rounds=ROUNDS), []
    history = train(
        fitted(kind, plain_task()),
        make(kind),
        planner,
        SelectionTiming(problem=problem),
        rounds=ROUNDS,
        on_round=records.append,
    )
    assert_as_reported(problem, records, history)
