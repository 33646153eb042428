"""Every registered algorithm under every planner and runner: a cut run is the long run, and a seed gives one run.

`tests.training.cases` says what there is to train; `tests.training.test_conformance_of_rounds` has what a round may bring.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgeopt.tensors import load_tensors
from edgeopt.training import (
    Algorithm,
    Codec,
    History,
    Task,
    TrainingError,
    train,
)  # fmt: skip
from edgeopt.training.algorithms import ALGORITHMS
from tests.training.cases import (
    PLANNERS,
    ROUNDS,
    RUNNERS,
    SIZES,
    adapted_task,
    every_algorithm,
    every_case,
    every_coded,
    every_runner,
    exact_task,
    fitted,
    make_algorithm,
    noisy_task,
    plain_task,
    turned_task,
)
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, small_timing

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
            fitted(self.kind, self.task()), make_algorithm(self.kind, self.codec), planner, timing, rounds=rounds, estimator=estimator,
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
    """From each file to the next, and once to the end: what is not in a file may come to light a round later."""
    for cut in range(ROUNDS):
        file, rounds = folder / f"cut after {cut} rounds", ROUNDS if cut == 1 else cut + 1
        shutil.copy(long.files[cut], file)
        assert len(case.train(file, rounds).rows) == rounds
        assert_same_files(file, long.files[rounds])


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("planner", "runner"), [*((planner, "batched") for planner in PLANNERS), ("static", "sequential")]
)
@every_algorithm
def test_resumed_after_any_round_is_the_long_run(
    kind: type[Algorithm], planner: str, runner: str, long_run: LongRuns, tmp_path: Path
):
    """Cut before the first round or after any other, and continued from the file: the next file has the same bytes.

    Every planner with one runner and every runner with one planner: neither knows of the other.
    """
    case = Case(kind, planner, runner)
    assert_every_cut_is_the_long_run(case, long_run(case), tmp_path)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("task", [noisy_task, turned_task, adapted_task])
@every_algorithm
def test_resumed_whatever_the_layers(
    kind: type[Algorithm], task: Callable[[], Task], long_run: LongRuns, tmp_path: Path
):
    """The same for buffers and chance in layers, whatever the order in which tensors lie in memory, and for adapters."""
    case = Case(kind, task=task)
    assert_every_cut_is_the_long_run(case, long_run(case), tmp_path)


@pytest.mark.sampled(2)
@every_coded
def test_resumed_with_a_codec(kind: type[Algorithm], codec: type[Codec], long_run: LongRuns, tmp_path: Path):
    """The same with what codecs remember on both sides of a cut, and what they draw."""
    case = Case(kind, codec=codec)
    assert_every_cut_is_the_long_run(case, long_run(case), tmp_path)


@pytest.mark.sampled(2)
@every_runner
@every_algorithm
def test_same_seed_same_run(kind: type[Algorithm], runner: str, long_run: LongRuns, tmp_path: Path):
    """A second run with equal parameters writes the same bytes."""
    case = Case(kind, runner=runner)
    case.train(tmp_path / "again")
    assert_same_files(tmp_path / "again", long_run(case).files[ROUNDS])


@pytest.mark.sampled(2)
@every_coded
def test_same_seed_same_run_with_a_codec(kind: type[Algorithm], codec: type[Codec], long_run: LongRuns, tmp_path: Path):
    """The same with what codecs draw."""
    case = Case(kind, codec=codec)
    case.train(tmp_path / "again")
    assert_same_files(tmp_path / "again", long_run(case).files[ROUNDS])


@pytest.mark.sampled(2)
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


@pytest.mark.sampled(2)
@every_case
def test_a_failure_in_the_middle_of_a_round(
    kind: type[Algorithm], codec: type[Codec] | None, long_run: LongRuns, tmp_path: Path
):
    """An error or Ctrl-C in the first or last delivery of a round, its work done: all is as after the round before.

    The file stays that of the round before, and with the same runner the run goes on to the end of the undisturbed one.
    """
    case, file = Case(kind, codec=codec), tmp_path / "run"
    long, runner = long_run(case), Recording(batched=True)
    shutil.copy(long.files[1], file)
    case.train(file, rounds=2, runner=runner)
    last = runner.deliveries
    shutil.copy(long.files[1], file)
    for fails_at in (1, last):
        for error in (KeyboardInterrupt(), ConnectionError("gone")):
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
