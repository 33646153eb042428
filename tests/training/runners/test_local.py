"""Where clients run: what is chosen, what is kept of a phase, dropout in a batch, threads."""

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.training import (
    FedAvg,
    LocalRunner,
    Message,
    MultiServerFedAvg,
    Phase,
    Sgd,
    SplitFed,
    Task,
    TrainingError,
    train,
)
from edgeopt.training.chance import KeyedDropout, drawing
from edgeopt.training.messages import Tensors
from edgeopt.training.rules.average import RunningAverage, weighted_average
from edgeopt.training.runners.choice import choose_chunk
from tests.training.small_tasks import CLASSES, FEATURES, assert_near, assert_same, small_plan, small_task, small_timing


def dropping(task_seed: int = 0) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(FEATURES, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, CLASSES)).double()
    task = small_task((6, 6, 6, 5), seed=task_seed)
    inputs = {
        name: type(data)(data.inputs.double(), data.targets, CLASSES, "small")
        for name, data in (("train", task.train), ("test", task.test))
    }
    return task.replace(model=model, **inputs)


def run(task: Task, algorithm: Any, runner: LocalRunner, plan: RoundPlan, rounds: int = 2) -> Any:
    return train(task, algorithm, StaticPlanner(plan), small_timing(4), rounds=rounds, runner=runner)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("algorithm", [FedAvg(Sgd(0.3)), SplitFed(Sgd(0.3)), SplitFed(Sgd(0.3), cut_layer=2)])
def test_dropout_runs_in_a_batch(algorithm: Any):
    """At clients and at the server, the masks are those of one after another; other seeds give others."""
    plan = small_plan(4, local_steps=3)
    batched, alone = (run(dropping(), algorithm, LocalRunner(batched=b), plan) for b in (True, False))
    assert_near(batched.models[0], alone.models[0], 1e-12)
    assert batched.column("train_loss") == pytest.approx(alone.column("train_loss"), rel=1e-12)
    other = run(dropping(1), algorithm, LocalRunner(batched=False), plan)
    assert not torch.equal(other.models[0]["0.weight"], alone.models[0]["0.weight"])


def test_masks_are_fair_and_never_twice_the_same():
    """A share p is dropped, the mean stays, whole channels go together; outside of a run torch's own layer is at work."""
    x = torch.ones(40, 20, 3, 3)
    for plain in (nn.Dropout(0.25), nn.Dropout2d(0.25)):
        layer = KeyedDropout(plain)
        with drawing(torch.tensor(3)):
            first, second = layer(x), layer(x)
        with drawing(torch.tensor(3)):
            again = layer(x)
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        assert first.unique().tolist() == pytest.approx([0, 4 / 3])
        assert float(first.mean()) == pytest.approx(1, abs=0.1)
        together = set((first == 0).float().mean((2, 3)).unique().tolist()) == {0.0, 1.0}
        assert together == isinstance(plain, nn.Dropout2d)
        torch.manual_seed(0)
        outside = layer(x)
        torch.manual_seed(0)
        assert torch.equal(outside, plain(x))
        assert torch.equal(layer.eval()(x), x)


# --- what a phase takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False])
def test_taken_replies_are_not_kept(batched: bool):
    """Weights go to the phase in the order of the plan and are then gone; their bytes are charged all the same."""
    task, seen = small_task((6, 6, 6, 6)), []
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Watching(FedAvg):
        def round(self, task: Task, state: Any, plan: RoundPlan, number: int) -> Any:
            conversation = FedAvg.round(self, task, state, plan, number)
            phase = next(conversation)

            def take(entries: Sequence[int], weights: Tensors) -> None:
                nonlocal most
                seen.extend(entries)
                gc.collect()
                alive.append(weakref.ref(weights["0.weight"].untyped_storage()))
                most = max(most, sum(ref() is not None for ref in alive))
                phase.take["weights"](entries, weights)

            replies = yield Phase(phase.name, phase.messages, take={"weights": take})
            assert all(value.is_meta for reply in replies.values() for value in reply["weights"].values())
            try:
                conversation.send(replies)
            except StopIteration as end:
                return end.value

    plan = small_plan(4)
    history = run(task, Watching(Sgd(0.3)), LocalRunner(batched=batched, chunk=2 if batched else None), plan, rounds=1)
    plain = run(task, FedAvg(Sgd(0.3)), LocalRunner(batched=False), plan, rounds=1)
    assert_near(history.models[0], plain.models[0])
    assert seen == [0, 1, 2, 3]
    assert most <= 2
    assert history.rows[0]["weights_up"] == 4 * sum(value.nbytes for value in task.initial_weights().values())


def test_a_running_average_is_the_average():
    """Whatever comes together, of floating-point numbers, halves and counters; nobody, or nobody that counts, is refused."""
    generator = torch.Generator().manual_seed(0)
    models: list[Tensors] = [
        {
            "a": torch.randn(3, 2, generator=generator, dtype=torch.float64),
            "h": torch.randn(4, generator=generator).half(),
            "n": torch.randint(9, (), generator=generator),
        }
        for _ in range(7)
    ]
    weights = [3.0, 0.0, 1.5, 2.0, 7.0, 1.0, 4.0]
    expected = weighted_average(models, weights)
    for sizes in ([7], [1] * 7, [2, 4, 1]):
        average, start = RunningAverage(), 0
        for size in sizes:
            some = models[start : start + size]
            stacked = {name: torch.stack([model[name] for model in some]) for name in some[0]}
            average.add(stacked, weights[start : start + size])
            start += size
        found = average.mean()
        assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in expected.items()}
        torch.testing.assert_close(found["a"], expected["a"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["h"], expected["h"], rtol=2e-3, atol=2e-3)
        assert torch.equal(found["n"], expected["n"])
    with pytest.raises(ValueError, match="expected a model with a weight > 0"):
        RunningAverage().mean()


def test_servers_take_their_own():
    """In one batch for several servers, each averages the clients that it has."""
    plan = RoundPlan(client=[0, 1, 2, 3, 0], server=[0, 1, 0, 1, 1], batch_size=2)
    task = small_task((6, 6, 6, 6))
    runs = [run(task, MultiServerFedAvg(2, Sgd(0.3)), LocalRunner(batched=b), plan) for b in (True, False)]
    for first, second in zip(runs[0].models, runs[1].models, strict=True):
        assert_near(first, second)
    assert not torch.equal(runs[0].models[0]["0.weight"], runs[0].models[1]["0.weight"])


# --- choice and threads -----------------------------------------------------------------------------------------------


def test_the_choice_is_in_the_history_and_can_be_fixed():
    """Small models run as a batch; what is given counts instead."""
    task, plan = small_task((6, 6, 6, 6)), small_plan(4)
    assert run(task, FedAvg(), LocalRunner(), plan).ways == ["train: 4 at once"]
    assert run(task, FedAvg(), LocalRunner(batched=False), plan).ways == ["train: one after another"]
    assert run(task, FedAvg(), LocalRunner(chunk=3), plan).ways == ["train: 3 at once"]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("algorithm", [FedAvg(Sgd(0.3)), SplitFed(Sgd(0.3))])
def test_threads_give_the_same_result(algorithm: Any, batched: bool):
    """Bit for bit, with dropout, and the number of torch's threads stays."""
    plan, threads = small_plan(4), torch.get_num_threads()
    chunk = 2 if batched else None
    runs = [run(dropping(), algorithm, LocalRunner(batched, chunk, workers), plan) for workers in (1, 2)]
    assert_same(runs[0].models[0], runs[1].models[0])
    assert runs[0].rows == runs[1].rows
    assert torch.get_num_threads() == threads


class Drawing(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize("fails", [False, True])
def test_what_threads_cannot_do_is_an_error(fails: bool):
    """Layers that draw from torch's generator would get other numbers each time; an error names the client as ever."""
    model = nn.Sequential(nn.Linear(FEATURES, CLASSES) if fails else Drawing(FEATURES, CLASSES))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise ValueError("broken")

    task = small_task((6, 6, 6, 6), model, **({"loss": loss} if fails else {}))
    expected = (
        "round 0, client 0, .*: ValueError: broken"
        if fails
        else "2 workers: a layer or loss drew .*: expected 1 worker"
    )
    with pytest.raises(TrainingError, match=expected):
        run(task, FedAvg(), LocalRunner(batched=False, workers=2), small_plan(4))


def test_the_rule_is_of_sizes_alone():
    """As many as fit into the room; where fewer than four do, or are there, one after another."""
    task = small_task()
    for peak, count, expected in (
        (1 << 20, 100, 32), (1 << 20, 9, 9), (9 << 20, 100, 1), (8 << 20, 100, 4), (1 << 20, 3, 1), (1 << 20, 1, 1),
        (1 << 30, 9, 1), (0, 100, 100), (float("nan"), 5, 5),
    ):  # fmt: skip
        message = Message("train", peak_bytes=peak)
        assert choose_chunk(task, message, count) == expected
    assert choose_chunk(task, Message("train", peak_bytes=1 << 20), 100, 8.0) == 8
