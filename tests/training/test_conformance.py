"""Every registered algorithm under every planner and runner: a cut run is the long run, and a seed gives one run.

An algorithm gets the tests by being in `ALGORITHMS`, a codec by being in `CODECS`, a planner by a line in `PLANNERS`, a
runner by one in `RUNNERS`.
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
from edgeopt.problems import ClientSelection, SplitTraining
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
    History,
    LocalRunner,
    SplitFed,
    Task,
    TopK,
    train,
)  # fmt: skip
from edgeopt.training.algorithms import ALGORITHMS
from edgeopt.training.codecs import CODECS
from edgeopt.training.constants import Estimator, GradientEstimator
from tests.training import split_tasks
from tests.training.small_tasks import assert_near, noisy_model, small_task, small_timing

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
        return train(
            self.task(), make_algorithm(self.kind, self.codec), planner, timing, rounds=rounds, runner=RUNNERS[self.runner](),
            estimator=estimator, checkpoint=file, resume=True, **options,
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
    task = functools.cache(lambda: split_tasks.task(sizes=SIZES))  # in double precision: rounding stays small
    batched, alone = (Case(kind, "static", runner, task, codec).train(tmp_path / runner) for runner in RUNNERS)
    for first, second in zip(batched.models, alone.models, strict=True):
        assert_near(first, second, 1e-9)
    for row, other in zip(batched.rows, alone.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-9, nan_ok=True)
