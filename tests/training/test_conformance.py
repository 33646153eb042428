"""Every registered algorithm under every planner and runner: a cut run is the long run, and a seed gives one run.

And whatever a round brings: nobody to train, lost clients, a single sample, frozen layers, a failure in the middle; what
crosses is what is charged, and time is that of the problems.

An algorithm gets the tests by being in `ALGORITHMS`, a codec by being in `CODECS`, a planner by a line in `PLANNERS`, a
runner by one in `RUNNERS`; one of split learning whose rounds `SplitTraining` describes also by a line in `ROUND_SECONDS`.
"""

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.data.partition import iid
from edgeopt.experiment.planners import RandomPlanner
from edgeopt.problems import ClientSelection, SplitPlan, SplitTraining
from edgeopt.problems.split_training.report import SplitReport
from edgeopt.schedule import Planner
from edgeopt.solvers.client_selection import PowerOfChoice, SelectionPlanner
from edgeopt.solvers.split_training.planner import HasflPlanner
from edgeopt.tensors import load_tensors
from edgeopt.training import (
    Adam,
    Algorithm,
    ArrayData,
    Codec,
    Compressed,
    EdgeTiming,
    History,
    LocalRunner,
    ParallelSplit,
    SelectionTiming,
    SplitFed,
    SplitFedV2,
    State,
    Task,
    TopK,
    TrainingError,
    VanillaSplit,
    train,
)  # fmt: skip
from edgeopt.training.algorithms import ALGORITHMS
from edgeopt.training.codecs import CODECS
from edgeopt.training.constants import GradientEstimator
from edgeopt.training.loop import Estimator
from edgeopt.training.messages import kept
from edgeopt.training.states import flatten
from tests.training import split_tasks
from tests.training.costs.as_reported import assert_as_reported
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, assert_same, noisy_model, small_task, small_timing

ROUNDS = 4
SIZES = (6, 6, 5, 6)  # samples of the clients
BATCH = 2  # the largest: small, so that clients agree and share batches

OPTIONS: dict[str, Any] = {
    "optimizer": Adam(0.02), "batch_size": BATCH, "cut_layer": 1, "num_servers": 2,
    "share": 0.5, "feedback": 0.5, "rank": 1,
}  # fmt: skip
"""What an algorithm or a codec is given, of the fields that it has."""


def make(kind: Any) -> Any:
    return kind(**{name: value for name, value in OPTIONS.items() if has(kind, name)})


def make_algorithm(kind: type[Algorithm], codec: type[Codec] | None) -> Algorithm:
    return make(kind) if codec is None else Compressed(make(kind), make(codec), report_errors=True)


def has(kind: Any, name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(kind)}


def interval(kind: type[Algorithm]) -> int:
    """Return the rounds between two aggregations; algorithms of whole models take no round without."""
    return 2 if has(kind, "cut_layer") else 1


# --- tasks ----------------------------------------------------------------------------------------------------------


@functools.cache
def plain_task() -> Task:
    return small_task(SIZES)


@functools.cache
def noisy_task() -> Task:
    """Batch normalisation and dropout: buffers, and chance in the layers."""
    return small_task(SIZES, noisy_model())


@functools.cache
def turned_task() -> Task:
    """Weights and samples whose axes lie in memory in other orders than usual."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolution = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        linear = nn.Linear(4 * 16, 3)
        inputs = torch.randn(24, 2, 4, 4).to(memory_format=torch.channels_last)
    linear.weight = nn.Parameter(linear.weight.detach().T.contiguous().T)
    data = ArrayData(inputs, torch.arange(24) % 3, 3, "turned")
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), linear)
    return Task(model=model, train=data, test=data, partition=iid(24, len(SIZES), seed=0))


@functools.cache
def exact_task(sizes: tuple[int, ...] = SIZES, frozen: tuple[int, ...] = ()) -> Task:
    """Four layers in double precision, so that rounding stays small; some layers may be frozen."""
    net = split_tasks.model()
    for layer in frozen:
        net[layer].requires_grad_(False)
    return split_tasks.task(sizes=sizes, **({"model": net} if frozen else {}))


# --- planners, new ones for each run, and what measures for them ----------------------------------------------------

Planning = tuple[Planner, Estimator | None]


def static(kind: type[Algorithm]) -> Planning:
    """Several steps, and two cuts where there are any."""
    plan = RoundPlan(client=range(len(SIZES)), batch_size=BATCH, cut_layer=[1, 2, 2, 1], local_steps=[2, 1, 2, 2])
    return StaticPlanner(plan, interval(kind)), None


def random(kind: type[Algorithm]) -> Planning:
    most = np.full(len(SIZES), BATCH, np.int32)
    return RandomPlanner(max_batch=most, num_layers=4, interval=interval(kind), seed=1), None


def hasfl(kind: type[Algorithm]) -> Planning:
    """Solves again after two rounds, from rates that fade and from gradients."""
    problem = SplitTraining.random(
        num_devices=len(SIZES), num_layers=3, interval=interval(kind), max_batch=BATCH, heterogeneity=0.0, seed=1
    )
    return HasflPlanner(problem, every=2), GradientEstimator(every=2, batch_size=BATCH, num_clients=2)


def selection(kind: type[Algorithm]) -> Planning:
    """Policies with memory and chance of their own pick clients; several servers may pick the same one."""
    servers = OPTIONS["num_servers"] if has(kind, "num_servers") else 1
    problem = ClientSelection.random(num_servers=servers, num_clients=len(SIZES), picks=2, seed=0)
    return SelectionPlanner(problem, [PowerOfChoice().policy(server, seed=4) for server in range(servers)]), None


PLANNERS: dict[str, Callable[[type[Algorithm]], Planning]] = {
    "static": static,
    "random": random,
    "hasfl": hasfl,
    "selection": selection,
}
RUNNERS: dict[str, Callable[[], LocalRunner]] = {
    "sequential": functools.partial(LocalRunner, batched=False),
    "batched": LocalRunner,
}

every_algorithm = pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.name)
every_coded = pytest.mark.parametrize(
    ("kind", "codec"),
    [(kind, TopK) for kind in ALGORITHMS if has(kind, "cut_layer")]
    + [(SplitFed, kind) for kind in CODECS if kind != TopK],
    ids=lambda kind: kind.name,
)
"""Every algorithm with the codec that remembers most, and every codec around one algorithm."""
CASES: list[tuple[type[Algorithm], type[Codec] | None]] = [
    *((kind, None) for kind in ALGORITHMS),
    *((kind, TopK) for kind in ALGORITHMS if has(kind, "cut_layer")),
]
every_case = pytest.mark.parametrize(
    ("kind", "codec"), CASES, ids=[kind.name + (f" with {codec.name}" if codec else "") for kind, codec in CASES]
)
"""Every algorithm as it is, and with a codec where it has a cut."""
every_planner = pytest.mark.parametrize("planner", PLANNERS)
every_runner = pytest.mark.parametrize("runner", RUNNERS)


# --- runs -----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is trained, under which plans, where."""

    kind: type[Algorithm]
    planner: str = "static"
    runner: str = "batched"
    task: Callable[[], Task] = plain_task
    codec: type[Codec] | None = None

    def train(self, file: Path, rounds: int = ROUNDS, **options: Any) -> History:
        """Train from where the file is, with new objects of all that remembers; some of the clients fail."""
        planner, estimator = PLANNERS[self.planner](self.kind)
        timing = small_timing(len(SIZES), rate_sigma=0.4, failure_probability=0.2, seed=5)
        options = {"runner": RUNNERS[self.runner]()} | options
        return train(
            self.task(), make_algorithm(self.kind, self.codec), planner, timing, rounds=rounds, estimator=estimator,
            checkpoint=file, resume=True, **options,
        )  # fmt: skip


class LongRun(NamedTuple):
    """A run without interruption, and its checkpoints after 0, 1, ... rounds."""

    history: History
    files: list[Path]


LongRuns = Callable[[Case], LongRun]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> LongRuns:
    """Return the long run of a case; the tests share it."""

    @functools.cache
    def made(case: Case) -> LongRun:
        folder = tmp_path_factory.mktemp("long")
        file, files = folder / "run", [folder / str(number) for number in range(ROUNDS + 1)]
        case.train(files[0], until_seconds=0.0)  # nothing has happened

        def keep(record: Any) -> None:
            shutil.copy(file, files[record.number + 1])

        return LongRun(case.train(file, checkpoint_every=1, on_round=keep), files)

    return made


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files need not outlive a loss of power here; a slow disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def assert_same_files(found: Path, expected: Path) -> None:
    """Weights, states of clients, planner and estimator, rows, ledger, feedback: bit for bit, in the same order."""
    if found.read_bytes() != expected.read_bytes():
        (header, arrays), (expected_header, expected_arrays) = (load_tensors(f, "training") for f in (found, expected))
        assert arrays.keys() == expected_arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected_arrays[name], err_msg=name, strict=True)
        assert header == expected_header
        pytest.fail("the same content in another order")


def assert_every_cut_is_the_long_run(case: Case, long: LongRun, folder: Path) -> None:
    for cut in range(ROUNDS):
        file = folder / f"cut after {cut} rounds"
        shutil.copy(long.files[cut], file)
        assert len(case.train(file).rows) == ROUNDS
        assert_same_files(file, long.files[ROUNDS])


# --- properties -----------------------------------------------------------------------------------------------------


@every_runner
@every_planner
@every_algorithm
def test_resumed_after_any_round_is_the_long_run(
    kind: type[Algorithm], planner: str, runner: str, long_run: LongRuns, tmp_path: Path
):
    """Cut before the first round or after any other, and continued from the file: the last file has the same bytes."""
    case = Case(kind, planner, runner)
    assert_every_cut_is_the_long_run(case, long_run(case), tmp_path)


@pytest.mark.parametrize("task", [noisy_task, turned_task])
@every_algorithm
def test_resumed_whatever_the_layers(
    kind: type[Algorithm], task: Callable[[], Task], long_run: LongRuns, tmp_path: Path
):
    """The same for buffers and chance in layers, and whatever the order in which tensors lie in memory."""
    case = Case(kind, task=task)
    assert_every_cut_is_the_long_run(case, long_run(case), tmp_path)


@every_coded
def test_resumed_with_a_codec(kind: type[Algorithm], codec: type[Codec], long_run: LongRuns, tmp_path: Path):
    """The same with what codecs remember on both sides of a cut, and what they draw."""
    case = Case(kind, codec=codec)
    assert_every_cut_is_the_long_run(case, long_run(case), tmp_path)


@every_runner
@every_algorithm
def test_same_seed_same_run(kind: type[Algorithm], runner: str, long_run: LongRuns, tmp_path: Path):
    """A second run with equal parameters writes the same bytes."""
    case = Case(kind, runner=runner)
    case.train(tmp_path / "again")
    assert_same_files(tmp_path / "again", long_run(case).files[ROUNDS])


@every_coded
def test_same_seed_same_run_with_a_codec(kind: type[Algorithm], codec: type[Codec], long_run: LongRuns, tmp_path: Path):
    """The same with what codecs draw."""
    case = Case(kind, codec=codec)
    case.train(tmp_path / "again")
    assert_same_files(tmp_path / "again", long_run(case).files[ROUNDS])


@pytest.mark.parametrize(
    ("kind", "codec"),
    [(kind, None) for kind in ALGORITHMS] + every_coded.args[1],
    ids=lambda kind: getattr(kind, "name", ""),
)
def test_batched_is_one_after_another(kind: type[Algorithm], codec: type[Codec] | None, tmp_path: Path):
    """As a batch or one after another, clients learn the same up to rounding, and cost the same."""
    batched, alone = (Case(kind, "static", runner, exact_task, codec).train(tmp_path / runner) for runner in RUNNERS)
    for first, second in zip(batched.models, alone.models, strict=True):
        assert_near(first, second, 1e-9)
    for row, other in zip(batched.rows, alone.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-9, nan_ok=True)


# --- whatever a round brings ----------------------------------------------------------------------------------------


def plan_of(kind: type[Algorithm], **options: Any) -> RoundPlan:
    """Return a plan for all clients that differ in whatever a plan may say; where there are servers, they share them."""
    fields: dict[str, Any] = {
        "client": range(len(SIZES)), "server": [0, 1, 0, 1] if has(kind, "num_servers") else 0, "batch_size": [2, 1, 2, 2],
        "cut_layer": [1, 3, 2, 2], "local_steps": [2, 1, 2, 2],
    }  # fmt: skip
    return RoundPlan(**(fields | options))


def learn(
    kind: type[Algorithm], codec: type[Codec] | None, *plans: RoundPlan, of: Task | None = None, **options: Any
) -> History:
    return split_tasks.run(exact_task() if of is None else of, make_algorithm(kind, codec), *plans, **options)


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


@every_case
def test_an_empty_plan(kind: type[Algorithm], codec: type[Codec] | None):
    """Nothing is sent or charged, and neither server nor clients remember the round; the next one goes on."""
    nobody, some = RoundPlan(client=[]), plan_of(kind, aggregate=interval(kind) == 1)
    runner = Recording()
    first, second, third = (
        learn(kind, codec, nobody, some, nobody, rounds=rounds, runner=runner if rounds == 3 else None)
        for rounds in (1, 2, 3)
    )
    assert_same_state(kept(make_algorithm(kind, codec).start(exact_task())), {}, first)
    assert not has_moved(first, exact_task())
    assert second.rows[-1]["completed"] == len(SIZES)
    assert_same_state(second.server, second.clients, third)
    assert 0 == runner.ends[0] < runner.ends[1] == runner.ends[2]
    before, row = third.rows[1:]
    for name in ("seconds", "energy_j", "bytes_up", "bytes_down", "accuracy", "test_loss", *runner.crossed(1)):
        assert row[name] == before[name], name
    assert [row[name] for name in ("round_seconds", "planned", "completed", "straggler")] == [0, 0, 0, -1]
    assert np.isnan([row["train_loss"], row["client_peak_bytes"]]).all()


@every_case
def test_a_lost_client(kind: type[Algorithm], codec: type[Codec] | None):
    """Its update does not count and the others' do, as without it; what is sent to it in vain is charged.

    Whether the timing decides it or the runner does not reach it is the same to the bit.
    """

    class Losing(EdgeTiming):
        def lost(self, round: int, plan: RoundPlan) -> Any:
            return plan.client == 1

    plan, runner = plan_of(kind), Recording(lost=lambda entry, message: entry == 1)
    history = learn(kind, codec, plan, runner=runner)
    alike = learn(kind, codec, plan, timing=Losing.from_problem(split_tasks.problem_of(exact_task())))
    assert_same_state(history.server, history.clients, alike)
    assert str(history.rows) == str(alike.rows)
    others = learn(kind, codec, plan.take([0, 2, 3]))
    assert has_moved(others, exact_task())
    for first, second in zip(history.models, others.models, strict=True):
        assert_near(first, second, 1e-9)
    (row,), (other,) = history.rows, others.rows
    assert (row["planned"], row["completed"], row["train_loss"]) == (4, 3, pytest.approx(other["train_loss"]))
    assert charged(row, runner) == runner.crossed(1)
    assert row["bytes_up"] == other["bytes_up"]
    in_vain = sum(message.nbytes(category) for entry, message, _ in runner.sent if entry == 1 for category in message)
    assert row["bytes_down"] == other["bytes_down"] + in_vain


@every_case
def test_a_client_with_one_sample(kind: type[Algorithm], codec: type[Codec] | None):
    """It trains on that; a batch larger than the data is all of it, to the bit and in what it costs."""
    sizes = (1, *SIZES[1:])
    of = exact_task(sizes)
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
        assert (crossed["statistics_up"] > 0) == (codec is not None)


@every_case
def test_memory_of_clients_is_in_the_rows(kind: type[Algorithm], codec: type[Codec] | None):
    """Every round with clients has the most that a message of it takes at its client, and that is more than nothing."""
    history, runner = recorded(kind, codec)
    for row, first, last in zip(history.rows, [0, *runner.ends], runner.ends, strict=False):
        assert row["client_peak_bytes"] == max(message.peak_bytes for _, message, _ in runner.sent[first:last]) > 0


@pytest.mark.parametrize("layers", [(0, 1), (1, 2), (0, 1, 2)])
@every_case
def test_frozen_layers_are_nowhere(kind: type[Algorithm], codec: type[Codec] | None, layers: tuple[int, ...]):
    """No state has their weights, no message brings or charges them, and the trained model has them as they were."""
    of, runner = exact_task(frozen=layers), Recording()
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


@every_case
def test_a_failure_in_the_middle_of_a_round(
    kind: type[Algorithm], codec: type[Codec] | None, long_run: LongRuns, tmp_path: Path
):
    """An error or Ctrl-C in the first or last delivery of a round, its work done: all is as after the round before.

    The file stays that of the round before, and with the same runner the run goes on to the end of the undisturbed one.
    """
    case, file = Case(kind, codec=codec), tmp_path / "run"
    long, runner = long_run(case), Recording()
    shutil.copy(long.files[1], file)
    case.train(file, rounds=2, runner=runner)
    last = runner.deliveries
    shutil.copy(long.files[1], file)
    for fails_at in (1, last):
        for error in (ConnectionError("gone"), KeyboardInterrupt()):
            runner.error, runner.fails_at, runner.deliveries = error, fails_at, 0
            if isinstance(error, KeyboardInterrupt):
                assert case.train(file, checkpoint_every=1, runner=runner).interrupted
            else:
                with pytest.raises(TrainingError, match=f"^round 1, {kind.name}.*: ConnectionError: gone$"):
                    case.train(file, checkpoint_every=1, runner=runner)
            assert_same_files(file, long.files[1])
    runner.error = None
    case.train(file, runner=runner)
    assert_same_files(file, long.files[ROUNDS])


# --- time is that of the problems -----------------------------------------------------------------------------------


def together(problem: SplitTraining, report: SplitReport, cut: int, aggregate: bool) -> float:
    """T_S: all clients at once, which keep their layers."""
    return report.round_s


def averaged(problem: SplitTraining, report: SplitReport, cut: int, aggregate: bool) -> float:
    """T_S, and T_A where layers are averaged."""
    return report.round_s + report.aggregation_s * aggregate


def in_turn(problem: SplitTraining, report: SplitReport, cut: int, aggregate: bool) -> float:
    """All stages of all clients one after another, and their layers there and back again."""
    handed = problem.client_bits[cut - 1] * (1 / problem.downlink_bps + 1 / problem.uplink_bps)
    return float(report.stage_s.sum() + handed.sum())


ROUND_SECONDS: dict[type[Algorithm], Callable[[SplitTraining, SplitReport, int, bool], float]] = {
    VanillaSplit: in_turn, ParallelSplit: together, SplitFed: averaged, SplitFedV2: averaged,
}  # fmt: skip
"""How long a round of one step with equal cuts lasts, in the terms of the problem."""


@pytest.mark.parametrize("kind", ROUND_SECONDS, ids=lambda kind: kind.name)
def test_seconds_of_split_training_are_those_of_the_problem(kind: type[Algorithm]):
    """Rounds last as long as `SplitTraining` says of the plan; over an interval, those of its objective."""
    of, cut = split_tasks.task(sizes=SIZES, dtype=torch.float32), 2
    problem = split_tasks.problem_of(of)
    split = SplitPlan(batch_size=[2, 5, 3, 4], cut_layer=[cut] * len(SIZES), aggregation_interval=3)
    report, planner = problem.report(split), split.planner()
    history = learn(kind, None, *(planner.plan(number) for number in range(3)), of=of)
    expected = [ROUND_SECONDS[kind](problem, report, cut, number == 2) for number in range(3)]
    np.testing.assert_allclose(history.column("round_seconds"), expected, rtol=1e-9)
    if ROUND_SECONDS[kind] is averaged:
        assert history.rows[-1]["seconds"] / 3 * report.rounds == pytest.approx(problem.objective(split), rel=1e-9)


@pytest.mark.parametrize(
    "kind", [kind for kind in ALGORITHMS if not has(kind, "cut_layer")], ids=lambda kind: kind.name
)
def test_seconds_of_whole_models_are_those_of_client_selection(kind: type[Algorithm]):
    """Seconds, conflicts, deliveries and rewards of the rounds are what `ClientSelection` reports of the picks."""
    planner, _ = selection(kind)
    assert isinstance(planner, SelectionPlanner)
    problem, records = planner.problem.replace(rounds=ROUNDS), []
    history = train(
        plain_task(), make(kind), planner, SelectionTiming(problem=problem), rounds=ROUNDS, on_round=records.append
    )
    assert_as_reported(problem, records, history)
