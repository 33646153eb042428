"""Checkpoints: a run that was cut anywhere and went on equals one long run, bit for bit; bad files are refused."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.convergence import ConvergenceEstimate, Estimate
from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.problems import ClientSelection, SplitTraining
from edgeopt.schedule import Feedback, Schedule
from edgeopt.solvers.client_selection import PowerOfChoice, SelectionPlanner
from edgeopt.solvers.split_training.planner import HasflPlanner
from edgeopt.storage import Arrays
from edgeopt.tensors import load_tensors, save_tensors
from edgeopt.training import Adam, FedAvg, FedProx, History, LocalRunner, Sgd, SplitFed, Task, train
from edgeopt.training.interrupts import uninterrupted
from edgeopt.training.messages import State
from tests.training.small_tasks import (
    assert_same,
    noisy_model,
    small_model,
    small_plan,
    small_task,
    small_timing,
)  # fmt: skip
from tests.training.test_loop import Counting

FEDAVG = FedAvg(Sgd(0.3))


def constants(value: float) -> ConvergenceEstimate:
    layers = np.full(3, value)
    return ConvergenceEstimate(
        gradient_variance=Estimate(layers, layers - 0.1, layers + 0.1),
        gradient_second_moment=Estimate(2 * layers, layers, 3 * layers),
        smoothness=None,
        confidence=0.9,
    )


class Drifting:
    """An estimator with memory: what it says depends on how often it was asked."""

    def __init__(self) -> None:
        self.asked = np.array(0)

    def measure(self, task: Task, models: Any, round: int) -> ConvergenceEstimate | None:
        self.asked = self.asked + 1
        return constants(1.0 + float(self.asked)) if round % 2 else None

    def state(self) -> Arrays:
        return {"asked": self.asked}

    def restore(self, state: Arrays) -> None:
        self.asked = state["asked"]


class Wandering:
    """A planner with memory that listens: clients, and how much they do, depend on all that it has heard."""

    def __init__(self) -> None:
        self.sum = np.array(0.0)

    def plan(self, round: int, feedback: Feedback | None) -> RoundPlan:
        if feedback is not None:
            self.sum = self.sum + feedback.seconds + np.nansum(feedback.uplink_bps) + feedback.completed.sum()
            if feedback.constants is not None:
                self.sum = self.sum + feedback.constants.gradient_variance.value[0]
        rng = np.random.default_rng(int(1e6 * self.sum) % 2**32)
        self.sum = self.sum + rng.random()
        return small_plan(client=rng.permutation(3)[:2], local_steps=rng.integers(1, 4, 2))

    def state(self) -> Arrays:
        return {"sum": self.sum}

    def restore(self, state: Arrays) -> None:
        self.sum = state["sum"]


def static() -> StaticPlanner:
    return StaticPlanner(small_plan())


def hasfl() -> HasflPlanner:
    problem = SplitTraining.random(num_devices=3, num_layers=3, interval=2, seed=1)
    return HasflPlanner(problem, every=2)


def selection() -> SelectionPlanner:
    problem = ClientSelection.random(num_servers=2, num_clients=3, picks=1, seed=0)
    return SelectionPlanner(problem, [PowerOfChoice().policy(server, seed=4) for server in range(2)])


def run(
    rounds: int, folder: Path, make: Callable[[], Any] = static, task: Task | None = None, **options: Any
) -> History:
    fields: dict[str, Any] = {
        "algorithm": FEDAVG,
        "timing": small_timing(rate_sigma=0.4, failure_probability=0.2, seed=5),
        "checkpoint": folder / "run.safetensors",
        "resume": True,
        "evaluate_every": 3,
    }
    task = small_task() if task is None else task
    return train(task, planner=make(), rounds=rounds, **(fields | options))


def assert_equal_runs(first: History, second: History, cut: int | None = None) -> None:
    """Compare weights, client states and rows; the row before the cut may have one more evaluation."""
    for a, b in zip(first.models, second.models, strict=True):
        assert_same(a, b)
    assert_same_states(first.server, second.server)
    assert first.clients.keys() == second.clients.keys()
    for client, state in first.clients.items():
        assert_same_states(state, second.clients[client])
    for a, b in zip(first.rows, second.rows, strict=True):
        extra = {"test_loss", "accuracy"} if a["round"] == (cut or 0) - 1 else set()
        for name in a.keys() - extra:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_same_states(first: State, second: State) -> None:
    assert list(first) == list(second)  # the order decides about bits: of sums, and of who shares a batch
    for name, value in first.items():
        other = second[name]
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
            assert value.dtype == other.dtype
            assert torch.equal(value, other)
        else:
            assert not isinstance(value, torch.Tensor)
            assert not isinstance(other, torch.Tensor)
            assert_same_states(value, other)


# --- one long run -------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cut", [1, 4, 6])
@pytest.mark.parametrize("make", [static, Wandering])
@pytest.mark.parametrize("algorithm", [FEDAVG, FedProx(0.3, Adam(0.02)), Counting()])
def test_resumed_is_one_long_run(cut: int, make: Any, algorithm: Any, tmp_path: Path):
    """Wherever it was cut, also between two evaluations; with memory in planner, estimator and clients."""
    options: dict[str, Any] = {"algorithm": algorithm, "make": make}
    run(cut, tmp_path, estimator=Drifting(), **options)
    parts = run(7, tmp_path, estimator=Drifting(), **options)
    long = run(7, tmp_path, estimator=Drifting(), checkpoint=None, resume=False, **options)
    assert_equal_runs(long, parts, cut)


@pytest.mark.parametrize("make", [hasfl, selection])
def test_the_packages_planners_may_stop_in_the_first_round(make: Any, tmp_path: Path):
    """A run that was stopped before its first round was complete starts again from what its planner knew then."""

    class Impatient(Counting):
        __slots__ = ()

        def models(self, task: Task, state: State, clients: Any) -> Any:
            if int(state["rounds"]) == 1:
                raise KeyboardInterrupt
            return {}

        def __repr__(self) -> str:
            return repr(Counting())

    assert run(3, tmp_path, make, algorithm=Impatient(), evaluate_every=1).rows == []
    parts = run(3, tmp_path, make, algorithm=Counting())
    assert_equal_runs(run(3, tmp_path, make, algorithm=Counting(), checkpoint=None, resume=False), parts)


def test_clients_that_join_after_the_resumption(tmp_path: Path):
    """Clients with a state from the file and new ones share batches as in one long run: names keep their order."""
    options: dict[str, Any] = {
        "algorithm": SplitFed(Adam(0.02)),
        "make": lambda: Schedule(
            [small_plan(2, aggregate=False), small_plan(2), *[small_plan(cut_layer=[1, 3, 3])] * 3]
        ),
    }
    run(2, tmp_path, **options)
    parts = run(5, tmp_path, **options)
    assert_equal_runs(run(5, tmp_path, checkpoint=None, resume=False, **options), parts, 2)


def test_random_layers_and_buffers_resume(tmp_path: Path):
    """Batch normalisation and dropout, with counters of type int64, continue as in one long run."""
    run(2, tmp_path, task=small_task(model=noisy_model()))
    torch.manual_seed(99)
    parts = run(5, tmp_path, task=small_task(model=noisy_model()))
    long = run(5, tmp_path, task=small_task(model=noisy_model()), checkpoint=None, resume=False)
    assert parts.models[0]["1.num_batches_tracked"].dtype == torch.int64
    assert_equal_runs(long, parts, 2)


def test_layers_of_any_name_and_type_resume(tmp_path: Path):
    """Names with slashes and per cents, and weights in bfloat16, survive the file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.add_module("a/b%2F é", nn.Linear(4, 5))
        model.add_module("b", nn.Linear(5, 3).bfloat16())
        model.add_module("c", nn.Linear(3, 3))
    options = {"task": small_task(model=model, precision="bf16")}
    run(2, tmp_path, **options)
    parts = run(4, tmp_path, **options)
    assert parts.models[0]["b.weight"].dtype == torch.bfloat16
    assert_equal_runs(run(4, tmp_path, checkpoint=None, resume=False, **options), parts, 2)


def test_a_loss_beyond_all_numbers_resumes(tmp_path: Path):
    """A model whose loss on the test samples is infinite is kept like any other, and trains on."""
    task = small_task(loss=lambda outputs, targets: F.cross_entropy(outputs, targets) / torch.is_grad_enabled())
    run(2, tmp_path, task=task, evaluate_every=1)
    parts = run(4, tmp_path, task=task, evaluate_every=1)
    assert {row["test_loss"] for row in parts.rows} == {float("inf")}
    assert_equal_runs(run(4, tmp_path, task=task, evaluate_every=1, checkpoint=None, resume=False), parts)


def test_a_finished_run_stays_finished(tmp_path: Path):
    """Resuming what has reached its rounds, its accuracy or its time does nothing more."""
    first = run(5, tmp_path)
    assert_equal_runs(run(5, tmp_path), first)
    assert len(run(50, tmp_path, until_seconds=first.rows[-1]["seconds"]).rows) == 5
    assert len(run(50, tmp_path, until_accuracy=0.0).rows) == 5
    assert run(50, tmp_path, until_accuracy=0.0).reason == "accuracy 0 is reached"


def test_without_a_file_resume_starts(tmp_path: Path):
    """``resume`` may be given from the start; without it a run begins anew."""
    first = run(3, tmp_path)
    assert len(first.rows) == 3
    assert_equal_runs(run(3, tmp_path, resume=False), first)


# --- interruptions ------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", [static, Wandering])
@pytest.mark.parametrize("where", ["callback", "client", "first client", "plan", "commit", "models"])
def test_interrupted_and_resumed_is_one_long_run(
    where: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C loses at most the round it comes in: complete rounds are kept, incomplete ones leave nothing behind."""
    options: dict[str, Any] = {"algorithm": Counting() if where == "commit" else FEDAVG, "make": make}
    calls = 0

    def interrupt_at(count: int, function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                signal.raise_signal(signal.SIGINT)
            return function(*arguments)

        return called

    estimator = Drifting()
    with monkeypatch.context() as patch:
        if where == "callback":
            options["on_round"] = interrupt_at(4, lambda record: None)
        elif "client" in where:
            patch.setattr(Task, "rows", interrupt_at(1 if "first" in where else 8, Task.rows))
        elif where == "plan":
            options["make"] = planning = type("Planning", (make,), {}) if make is Wandering else make
            target = planning if make is Wandering else StaticPlanner
            patch.setattr(target, "plan", interrupt_at(3, target.plan))
            if make is Wandering:
                planning.__name__ = "Wandering"
        elif where == "commit":
            patch.setattr(LocalRunner, "commit", interrupt_at(3, LocalRunner.commit))
        else:
            patch.setattr(FedAvg, "models", interrupt_at(3, FedAvg.models))
        stopped = run(7, tmp_path, estimator=estimator, **options)
    assert stopped.interrupted
    assert stopped.reason == "interrupted"
    assert len(stopped.rows) == {"callback": 4, "client": len(stopped.rows), "first client": 0, "commit": 3}.get(
        where, 2
    )
    options.pop("on_round", None)
    options["make"] = make
    resumed = run(7, tmp_path, estimator=Drifting(), **options)
    long = run(7, tmp_path, estimator=Drifting(), checkpoint=None, resume=False, **options)
    assert_equal_runs(long, resumed)


def test_ctrl_c_in_a_compiled_kernel(tmp_path: Path):
    """What numba makes of Ctrl-C ends the run as Ctrl-C does; other system errors are raised."""

    def interrupted(record: Any) -> None:
        raise SystemError("a kernel returned a result with an exception set") from KeyboardInterrupt()

    def broken(record: Any) -> None:
        raise SystemError("something else")

    assert run(3, tmp_path, on_round=interrupted).interrupted
    with pytest.raises(SystemError, match="something else"):
        run(3, tmp_path, on_round=broken)


def test_a_second_ctrl_c_gets_through():
    """The first is held back to the end of the block, the second is not."""
    done = []

    def press(times: int) -> None:
        with uninterrupted():
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            done.append(times)

    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            press(times)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_in_another_thread(tmp_path: Path):
    """Where signals cannot be handled, training works all the same."""
    found: list[History] = []
    thread = threading.Thread(target=lambda: found.append(run(2, tmp_path)))
    thread.start()
    thread.join()
    assert_equal_runs(found[0], run(2, tmp_path, checkpoint=None, resume=False))


# --- files --------------------------------------------------------------------------------------------------------


def test_written_every_few_rounds(tmp_path: Path):
    """The file holds the last multiple of ``checkpoint_every``, and at the end everything."""
    seen = []
    path = tmp_path / "run.safetensors"

    def look(record: Any) -> None:
        seen.append(load_tensors(path, "training")[0]["round"] if path.exists() else 0)

    run(5, tmp_path, checkpoint_every=2, on_round=look)
    assert seen == [0, 2, 2, 4, 4]
    assert load_tensors(path, "training")[0]["round"] == 5


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When writing fails half-way, the file is that of before, nothing lies around, and the error names it."""
    first = run(2, tmp_path)
    before = (tmp_path / "run.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*run.safetensors"):
            run(4, tmp_path)
    assert (tmp_path / "run.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["run.safetensors"]
    assert_equal_runs(run(2, tmp_path), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": FedAvg(Sgd(0.2))}, r'algorithm = "FedAvg\(optimizer=Sgd\(lr=0.3.*this run has .*lr=0.2'),
        ({"make": Wandering}, "planner = 'StaticPlanner': this run has 'Wandering'"),
        ({"estimator": Drifting()}, "estimator = 'NoneType': this run has 'Drifting'"),
        ({"task": small_task(seed=3)}, "seed = 0: this run has 3"),
        ({"task": small_task((6, 6, 6))}, "partition = "),
        ({"task": small_task((9, 9))}, "clients = 3: this run has 2"),
        ({"task": small_task((9, 9, 9))}, "samples = 18: this run has 27"),
        ({"task": small_task(model=noisy_model())}, "weights = "),
        ({"task": small_task(precision="bf16")}, "precision = 'fp32': this run has 'bf16'"),
    ],
)
def test_checkpoints_of_other_runs_are_refused(options: dict[str, Any], message: str, tmp_path: Path):
    """The message names the file and what differs; the file stays as it is."""
    run(1, tmp_path)
    before = (tmp_path / "run.safetensors").read_bytes()
    with pytest.raises(InvalidFileError, match=f"run.safetensors: {message}"):
        run(2, tmp_path, **options)
    assert (tmp_path / "run.safetensors").read_bytes() == before


def test_damaged_files_are_refused(tmp_path: Path):
    """Cut short, empty, or with other bytes at the start: the message names the file."""
    run(2, tmp_path)
    path = tmp_path / "run.safetensors"
    good = path.read_bytes()
    for bad in (good[:-1], good[:40], b"", b"\xff" * 100, b"{}"):
        path.write_bytes(bad)
        with pytest.raises(InvalidFileError, match=r"run\.safetensors: not a safetensors file"):
            run(3, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, arrays: header.update(schema_version=9), "schema_version = 9"),
        (lambda header, arrays: header.update(identity=[]), "not a complete checkpoint"),
        (
            lambda header, arrays: header["identity"].pop("seed"),
            "not a complete checkpoint: identity.seed: value is missing",
        ),
        (lambda header, arrays: header.update(rows=header["rows"][:-1]), "1 rows, expected 2"),
        (lambda header, arrays: header.update(rows=3), "not a complete checkpoint"),
        (lambda header, arrays: header.update(rows=[[1], 2]), "not a complete checkpoint"),
        (lambda header, arrays: header.update(seconds="long"), "not a complete checkpoint"),
        (lambda header, arrays: header.update(state=3), "not a complete checkpoint"),
        (lambda header, arrays: header["state"]["server"]["weights"].update(x="float32"), "server/weights/x"),
        (
            lambda header, arrays: header["state"]["server"]["weights"].update({"0.bias": "bfloat16"}),
            "float32, expected",
        ),
        (lambda header, arrays: header.pop("feedback"), "feedback"),
        (lambda header, arrays: arrays.pop("ledger"), "ledger"),
        (lambda header, arrays: arrays.update(ledger=np.zeros(3)), "ledger: expected integers, got float64"),
        (lambda header, arrays: arrays.pop("feedback/client"), "feedback|client"),
        (lambda header, arrays: arrays.update({"feedback/client": np.array([0, 0, 0])}), "client"),
        (lambda header, arrays: [arrays.pop(name) for name in list(arrays) if "server" in name], "server"),
        (lambda header, arrays: header.update(kind="policy"), "kind = 'policy': expected 'training'"),
    ],
)
def test_incomplete_checkpoints_are_refused(change: Any, message: str, tmp_path: Path):
    """Whatever is missing or of another form, the message names the file and what is wrong."""
    run(2, tmp_path)
    path = tmp_path / "run.safetensors"
    header, arrays = load_tensors(path, "training")
    change(header, arrays)
    save_tensors(path, header, arrays)
    with pytest.raises(EdgeOptError, match=rf"run\.safetensors: .*({message})"):
        run(3, tmp_path)


def test_a_planner_that_has_planned_is_not_wound_back(tmp_path: Path):
    """A planner that cannot be wound back says so instead of planning on from the wrong place."""
    planner = selection()
    run(2, tmp_path, lambda: planner, algorithm=Counting())
    with pytest.raises(EdgeOptError, match="restore a new one"):
        run(3, tmp_path, lambda: planner, algorithm=Counting())


def test_headers_are_plain(tmp_path: Path):
    """The file is data: weights by name, and a header that any JSON reader understands."""
    run(2, tmp_path)
    header, arrays = load_tensors(tmp_path / "run.safetensors", "training")
    assert json.loads(json.dumps(header, allow_nan=False)) == header
    assert {f"server/weights/{name}" for name in small_model().state_dict()} <= set(arrays)
