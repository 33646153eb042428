"""What goes wrong in a model is told with round, client and layer, in one line and in our words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import StaticPlanner
from edgeopt.data.partition import iid
from edgeopt.errors import InvalidProblemError
from edgeopt.models import mlp, moe_decoder, small_cnn
from edgeopt.profile import ModelProfile
from edgeopt.training import (
    Algorithm,
    ArrayData,
    Batches,
    FedAvg,
    FedProx,
    History,
    LocalRunner,
    MultiServerFedAvg,
    ParallelSplit,
    SplitFed,
    SplitFedV2,
    Task,
    TrainingError,
    VanillaSplit,
    train,
)  # fmt: skip
from tests.training.small_tasks import noisy_model, small_plan, small_task, small_timing

WHOLE = [FedAvg(), FedProx(), MultiServerFedAvg()]
SPLIT = [SplitFed(), SplitFedV2(), ParallelSplit(), VanillaSplit()]


def run(task: Task, algorithm: Algorithm = WHOLE[0], **options: Any) -> History:
    """Train three rounds with clients 2 and 1; client 1 is the one in trouble."""
    planner = StaticPlanner(small_plan(client=[2, 1], **options.pop("plan", {})))
    return train(task, algorithm, planner, small_timing(), rounds=3, **options)


# --- while training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("algorithm", WHOLE, ids=lambda algorithm: algorithm.name)
def test_batch_normalisation_of_one_sample_at_a_client(algorithm: Algorithm, batched: bool):
    """The message names round, client, layer, what it got and what it expected; torch's own error is the cause."""
    message = (
        rf"^round 0, client 1, {algorithm.name}, message 'train': layer '1' \(BatchNorm1d\) got \[1, 6\] float32: "
        r"expected more than one value per channel: a mini-batch of at least 2 samples$"
    )
    with pytest.raises(TrainingError, match=message) as caught:
        run(small_task((6, 1, 4), model=noisy_model()), algorithm, runner=LocalRunner(batched=batched))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("algorithm", SPLIT, ids=lambda algorithm: algorithm.name)
def test_batch_normalisation_of_one_sample_at_the_server(algorithm: Algorithm):
    """The same above the cut: the server says whose samples they were."""
    message = (
        rf"^round 0, {algorithm.name}, client 1, layers above cut 1 at the server: layer '1' \(BatchNorm1d\) got "
        r"\[1, 6\] float32: expected more than one value per channel: a mini-batch of at least 2 samples$"
    )
    with pytest.raises(TrainingError, match=message):
        run(small_task((6, 1, 4), model=noisy_model()), algorithm, plan={"cut_layer": 1})


@pytest.mark.parametrize("algorithm", SPLIT, ids=lambda algorithm: algorithm.name)
def test_batch_normalisation_of_one_sample_below_the_cut(algorithm: Algorithm):
    """The same below the cut, at the client."""
    message = rf"^round 0, client 1, {algorithm.name}, message 'forward': layer '1' \(BatchNorm1d\) got \[1, 6\]"
    with pytest.raises(TrainingError, match=message):
        run(small_task((6, 1, 4), model=noisy_model()), algorithm, plan={"cut_layer": 2})


class Fussy(nn.Module):
    """A layer that raises in training, from a round on."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, or raise."""
        if self.training and x.device.type != "meta":
            raise self.error
        return x


def fussy_task(error: BaseException) -> Task:
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Tanh(), Fussy(error)), nn.Linear(5, 3))
    return small_task(model=model, profile=ModelProfile.from_module(small_task().model, torch.ones(2, 4)))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("algorithm", [*WHOLE, *SPLIT], ids=lambda algorithm: algorithm.name)
def test_errors_of_a_users_layer(algorithm: Algorithm, batched: bool):
    """An error of any type and length, from a layer of the user's own, comes in one line with the layer's name."""
    task = fussy_task(KeyError("one\ntwo" * 500))
    with pytest.raises(
        TrainingError, match=r"^round 0, .*client 2.* layer '1.1' \(Fussy\) got \[2, 5\] float32: KeyError"
    ) as caught:
        run(task, algorithm, runner=LocalRunner(batched=batched), plan={"cut_layer": 1})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("error", [MemoryError("4 GiB"), torch.OutOfMemoryError("4 GiB"), KeyboardInterrupt()])
@pytest.mark.parametrize("algorithm", [FedAvg(), SplitFed()], ids=lambda algorithm: algorithm.name)
def test_memory_and_ctrl_c_are_no_trouble_of_the_model(algorithm: Algorithm, error: BaseException):
    """Running out of memory stays what it is, with a note where it was, and Ctrl-C ends the run as ever."""
    if isinstance(error, KeyboardInterrupt):
        history = run(fussy_task(error), algorithm, plan={"cut_layer": 1})
        assert history.interrupted
        assert history.rows == []
        return
    with pytest.raises(type(error), match="4 GiB") as caught:
        run(fussy_task(error), algorithm, plan={"cut_layer": 1})
    assert type(caught.value) is type(error)
    assert any(note.startswith("round 0, ") for note in caught.value.__notes__)


def test_a_loss_that_fails():
    """The loss is no layer: its error comes as it is, after round and client."""

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("no classes")

    with pytest.raises(
        TrainingError, match=r"^round 0, client 2, fedavg, message 'train': ZeroDivisionError: no classes$"
    ):
        run(small_task(loss=loss))


def test_a_client_without_samples_has_a_round():
    """Our own errors keep their type, and get the round where they lack it."""
    with pytest.raises(InvalidProblemError, match=r"^round 0, fedavg, client 1: has no samples to train on"):
        run(small_task((4, 0, 3)))


def test_mini_batches_of_nothing():
    """A client that has samples and is asked for none: the mini-batch is at fault, not the client."""
    with pytest.raises(InvalidProblemError, match=r"^client 1: mini-batches of 0 samples: expected at least one$"):
        small_task().batch(1, Batches(0, 0, 1, 0))


def test_more_local_steps_than_there_is_memory():
    """The number of steps alone does not decide how much memory is taken: a bound is told before anything is drawn."""
    message = r"^round 0, fedavg, client 2: 2000000000 mini-batches of 2 samples take \d+ bytes: expected at most \d+, with fewer"
    with pytest.raises(InvalidProblemError, match=message):
        run(small_task(), plan={"local_steps": 2_000_000_000})


def test_evaluation():
    """A model that cannot be judged on the test samples is told with the round, too."""
    task = small_task()
    bad = ArrayData(torch.ones(3, 5), torch.zeros(3, dtype=torch.int64), 3, "wider")
    object.__setattr__(task, "test", bad)
    with pytest.raises(TrainingError, match=r"^round 0, fedavg, evaluation: layer '0' \(Linear\) got \[3, 5\]"):
        run(task)


# --- before training ----------------------------------------------------------------------------------------------


def made(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> ArrayData:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(8, *shape, generator=generator)
    inputs = drawn.to(dtype) if dtype.is_floating_point else (9 * drawn).to(dtype)
    return ArrayData(inputs, torch.arange(8) % 3, 3, "made")


def pictures(channels: int) -> Callable[[], nn.Sequential]:
    return lambda: small_cnn(in_channels=channels, image_size=8, num_classes=3)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (pictures(3), made((8, 8, 3)), r"layer 'conv1.0' \(Conv2d\) got \[2, 8, 8, 3\] float32: expected \[B, 3, H, W\]; its "),
        (pictures(3), made((8, 8, 3)), r"its channels are last: move them with inputs.movedim\(-1, 1\)$"),
        (pictures(1), made((8, 8, 1)), r"expected \[B, 1, H, W\]; its channels are last"),
        (pictures(1), made((8, 8)), r"got \[2, 8, 8\] float32: expected \[B, 1, H, W\]; it has no axis of channels"),
        (pictures(3), made((192,)), r"got \[2, 192\] float32: expected \[B, 3, H, W\]"),
        (pictures(3), made((1, 8, 8)), r"got \[2, 1, 8, 8\] float32: expected \[B, 3, H, W\]"),
        (lambda: mlp(9, num_classes=3), made((8,)), r"layer 'hidden1.1' \(Linear\) got \[2, 8\] float32: expected 9 features"),
        (lambda: mlp(8, num_classes=3), made((8,), torch.float64), r"got \[2, 8\] float64: expected float32 as its weights"),
        (lambda: mlp(8, num_classes=3), made((8,), torch.int64), r"got \[2, 8\] int64: expected float32 as its weights"),
        (lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(16, 3)), made((8,), torch.int64),
         r"layer '0' \(Embedding\) got \[2, 8\] int64: expected token ids from 0 to 4, found [5-8]"),
        (lambda: moe_decoder(context=8, width=4, heads=2, depth=1, hidden=4), made((8,)), r"Embedding\) got \[2, 8\] float32: expected token ids"),
        (lambda: nn.Sequential(nn.LayerNorm(7), nn.Linear(8, 3)), made((8,)), r"got \[2, 8\] float32: expected \[7\] in the last axes"),
        (lambda: nn.Sequential(nn.BatchNorm1d(7), nn.Linear(8, 3)), made((8,)), r"got \[2, 8\] float32: expected \[B, 7\] or \[B, 7, L\]"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit_the_model(model: Callable[[], nn.Sequential], data: ArrayData, message: str):
    """A task says which layer does not fit the samples, what it got, and what it expected."""
    with pytest.raises(InvalidProblemError, match=rf"^model: does not run on samples of train: .*{message}") as caught:
        Task(model=model(), train=data, partition=iid(8, 2), test=data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Flatten(), nn.LazyLinear(3)], r"layer '1' \(LazyLinear\) has no shape of weight yet"),
        ([nn.LazyConv2d(2, 3), nn.Flatten(), nn.Linear(72, 3)], r"layer '0' \(LazyConv2d\) has no shape of weight yet"),
        ([nn.Sequential(nn.LazyBatchNorm2d()), nn.Flatten(), nn.Linear(64, 3)], r"layer '0.0' \(LazyBatchNorm2d\) has no shape"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers(layers: list[nn.Module], message: str):
    """Weights without a shape are refused by task and profile; once the model has seen a sample, it is a model."""
    model, data = nn.Sequential(*layers), made((1, 8, 8))
    for make in (
        lambda: Task(model=model, train=data, partition=iid(8, 2), test=data),
        lambda: ModelProfile.from_module(model, data.inputs),
    ):
        with pytest.raises(InvalidProblemError, match=rf"^model: {message}.*run the model once on a sample first$"):
            make()
    model(data.inputs)
    assert Task(model=model, train=data, partition=iid(8, 2), test=data).num_layers == len(layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": torch.ones(8, 4)}, r"train: expected ArrayData, got torch.float32 of shape \[8, 4\]"),
        ({"partition": [[0, 1]]}, "partition: expected Partition, got list of length 1"),
        ({"loss": None}, "loss = None: expected a function"),
        ({"balance": "a"}, "balance = 'a': expected a finite number"),
        ({"seed": -1}, "seed = -1: expected an integer >= 0"),
        ({"seed": "1"}, "seed = '1': expected an integer >= 0"),
        ({"device": "meta"}, "device = 'meta': expected one that holds values"),
        ({"device": ["cpu"]}, r"device = \['cpu'\]: expected one that torch can use"),
        ({"model": nn.Sequential(nn.Linear(4, 3, device="meta"))}, "model: 0.weight is on the meta device"),
        ({"model": nn.Sequential(nn.LSTM(4, 3))}, "model: returns a tuple: expected one tensor of scores"),
    ],
)
def test_arguments_of_a_task(change: dict[str, Any], message: str):
    """What is no model, no data or no number is refused by name."""
    data = made((4,))
    fields: dict[str, Any] = {
        "model": nn.Sequential(nn.Linear(4, 3)),
        "train": data,
        "partition": iid(8, 2),
        "test": data,
    }
    with pytest.raises(InvalidProblemError, match=f"^{message}"):
        Task(**fields | change)
    assert Task(**fields, seed=np.int64(3)).seed == 3


class Unstarted:
    """An algorithm, but for one method."""

    name, round, client, models = "unstarted", FedAvg.round, FedAvg.client, FedAvg.models


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": FedAvg}, "algorithm: expected an Algorithm, got the class FedAvg"),
        ({"algorithm": "fedavg"}, "algorithm: expected an Algorithm, got 'fedavg'"),
        ({"algorithm": Unstarted()}, r"algorithm: expected an Algorithm, got .*Unstarted.* without 'start'$"),
        ({"planner": None}, "planner: expected a Planner, got None"),
        ({"timing": 5}, "timing: expected a Timing, got 5"),
        ({"task": None}, "task: expected a Task, got None"),
        ({"rounds": True}, "rounds = True: expected an integer >= 1"),
        ({"rounds": "3"}, "rounds = '3': expected an integer >= 1"),
        ({"until_accuracy": "high"}, "until_accuracy = 'high': expected a finite number"),
        ({"on_round": 5}, "on_round = 5: expected a list"),
    ],
)
def test_arguments_of_training(change: dict[str, Any], message: str):
    """What is no algorithm, no planner or no number is refused by name before anything is trained."""
    fields: dict[str, Any] = {
        "task": small_task(), "algorithm": FedAvg(), "planner": StaticPlanner(small_plan()), "timing": small_timing(),
        "rounds": 1,
    }  # fmt: skip
    with pytest.raises(InvalidProblemError, match=f"^{message}"):
        train(**fields | change)
    usual = fields | {"rounds": np.int64(1), "on_round": None, "until_seconds": np.float32(np.inf)}
    assert len(train(**usual).rows) == 1
