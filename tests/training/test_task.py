"""A task: layers as pure functions of weights, mini-batches as a function of seed, client and round."""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeopt import ClientPlan, ModelProfile
from edgeopt.data.partition import iid
from edgeopt.errors import InvalidProblemError
from edgeopt.training import ArrayData, Batches, Task
from edgeopt.training.rules.gradients import gradients
from tests.training.small_tasks import CLASSES, FEATURES, assert_same, noisy_model, samples, small_model, small_task

SHUFFLED = small_task((7, 5, 1))


class Subclass(nn.Sequential):
    """A sequential model whose constructor takes no layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, CLASSES))


class OwnForward(Subclass):
    """Layers that do not just run one after another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Odd(nn.Module):
    """A whole model in one layer, of which nothing can be measured."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(FEATURES, CLASSES)
        if kind == "unused":
            self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> Any:
        """Look at values, or return more than one tensor."""
        y = self.inner(x)
        if self.kind == "tuple":
            return y, y
        return -y if self.kind == "value" and y.sum() > 0 else y


# --- forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [small_model(), Subclass(), nn.Sequential(OrderedDict(a=nn.Linear(4, 3)))])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_layers_in_parts_are_the_model(model: nn.Sequential, cut: int):
    """Running up to a cut and on from there gives what the module gives, also for subclasses of Sequential."""
    task = small_task(model=model)
    weights, cut, inputs = task.initial_weights(), min(cut, len(model)), task.test.inputs
    below = task.forward(task.part(weights, 0, cut), inputs, 0, cut).outputs
    above = task.forward(task.part(weights, cut), below, cut).outputs
    torch.testing.assert_close(above, model(inputs), rtol=0, atol=0)
    assert {*task.part(weights, 0, cut), *task.part(weights, cut)} == set(weights)


def test_training_mode_and_buffers():
    """Training updates the running means that are returned, evaluation uses those given; nothing is changed in place."""
    task = small_task(model=noisy_model())
    weights = task.initial_weights()
    before = {name: value.clone() for name, value in weights.items()}
    norm = nn.BatchNorm1d(6)
    hidden = task.forward(weights, task.test.inputs, 0, 1).outputs
    norm(hidden)
    buffers = task.forward(weights, hidden, 1, 2).buffers
    assert_same({name.removeprefix("1."): value for name, value in buffers.items()}, dict(norm.named_buffers()))
    first, second = (task.forward(weights, task.test.inputs, training=False).outputs for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # no dropout
    torch.testing.assert_close(first, noisy_model().eval()(task.test.inputs), rtol=0, atol=0)
    assert_same(weights, before)


def test_caching_parts_does_not_mix_modes():
    """The same layers in training and in evaluation mode, asked for in any order, keep their modes."""
    task = small_task(model=noisy_model())
    weights, ones = task.initial_weights(), torch.ones(200, 6)
    for _ in range(2):
        assert (task.forward(weights, ones, 3, 4, training=True).outputs == 0).any()
        assert (task.forward(weights, ones, 3, 4, training=False).outputs == 1).all()
        assert task.forward(weights, task.test.inputs, training=False).outputs.shape == (9, CLASSES)


def test_the_callers_model_stays_as_it_is():
    """Mode, weights and gradients of the given module do not change, and changing it later changes no task."""
    model = noisy_model().eval()
    task = small_task(model=model)
    weights = task.initial_weights()
    task.batch_loss(weights, task.test.inputs, task.test.targets)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    outputs = task.forward(weights, task.test.inputs, training=False).outputs
    with torch.no_grad():
        model[0].weight.zero_()
    torch.testing.assert_close(task.forward(weights, task.test.inputs, training=False).outputs, outputs)


def test_frozen_parameters_are_not_trained():
    """Parameters without gradients are weights, but not among those that are trained."""
    model = small_model()
    model[0].weight.requires_grad_(False)
    task = small_task(model=model)
    assert set(task.trained(task.initial_weights())) == {"0.bias", "2.weight", "2.bias"}


def test_evaluation_is_the_mean_over_all_samples(monkeypatch: pytest.MonkeyPatch):
    """Loss and accuracy do not depend on how many samples are taken at once; they are the model's."""
    task = small_task()
    outputs = task.model(task.test.inputs).detach()
    expected = nn.functional.cross_entropy(outputs, task.test.targets)
    right = (outputs.argmax(1) == task.test.targets).float().mean()
    for size in (2, 512):
        monkeypatch.setattr("edgeopt.training.task._EVALUATED_AT_ONCE", size)
        score = task.evaluate(task.initial_weights())
        assert score == pytest.approx((float(expected), float(right)))
    assert task.evaluate(task.initial_weights(), samples(4, seed=5)).accuracy in (0, 0.25, 0.5, 0.75, 1)


def test_double_precision_is_kept():
    """A model and inputs in float64 have a loss in float64."""
    small = small_task()
    train, test = (replace(data, inputs=data.inputs.double()) for data in (small.train, small.test))
    task = small.replace(model=small_model().double(), train=train, test=test)
    loss, _ = task.batch_loss(task.initial_weights(), task.test.inputs, task.test.targets)
    assert loss.dtype == torch.float64


# --- batches ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2), st.integers(0, 5), st.integers(0, 6), st.integers(1, 6), st.integers(1, 9))
def test_mini_batches(client: int, round: int, first: int, count: int, size: int):
    """A slice of steps is the slice of the round; samples are the client's own, and none comes twice in an epoch."""
    task = SHUFFLED
    own = set(task.partition.indices[client].tolist())
    whole = task.rows(client, Batches(round, 0, first + count, size))
    part = task.rows(client, Batches(round, first, count, size))
    np.testing.assert_array_equal(whole[first:], part)
    assert whole.shape == (first + count, min(size, len(own)))
    assert task.samples(client, size) == whole.shape[1]
    per_epoch = len(own) // whole.shape[1]
    for start in range(0, len(whole), per_epoch):
        epoch = whole[start : start + per_epoch].ravel().tolist()
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= own


def test_mini_batches_differ_by_round_client_and_seed():
    """Another round, client or seed shuffles differently; the same ones alike."""
    task, same, other = small_task((40, 40)), small_task((40, 40)), small_task((40, 40), seed=1)
    order = task.rows(0, Batches(0, 0, 1, 40)).tolist()
    assert same.rows(0, Batches(0, 0, 1, 40)).tolist() == order
    assert task.rows(0, Batches(1, 0, 1, 40)).tolist() != order
    assert other.rows(0, Batches(0, 0, 1, 40)).tolist() != order
    assert (task.rows(1, Batches(0, 0, 1, 40)) - 40).tolist() != order


def test_a_client_without_samples():
    """It cannot train, and the message says who."""
    with pytest.raises(InvalidProblemError, match="client 1: has no samples"):
        small_task((4, 0, 3)).batch(1, Batches(0, 0, 1, 2))


# --- fields -------------------------------------------------------------------------------------------------------


def tied_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": nn.Linear(4, 3)}, "expected an nn.Sequential with layers, got Linear"),
        ({"model": nn.Sequential()}, "expected an nn.Sequential with layers"),
        ({"model": OwnForward()}, "OwnForward has a forward of its own"),
        ({"model": tied_model()}, "0.weight and 1.weight are the same tensor"),
        ({"model": nn.Sequential(nn.Linear(4, 2))}, "scores 2 classes, the samples have 3"),
        (
            {"model": nn.Sequential(nn.Linear(4, 3).double())},
            r"does not run on samples of train: layer '0' \(Linear\) got \[2, 4\] float32: expected float64 as its weights",
        ),
        (
            {"model": nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1)))},
            r"shape \[2, 3, 1\] for targets of shape \[2\]",
        ),
        (
            {"model": nn.Sequential(Odd("value"))},
            "model: its layers cannot be measured: .*; expected one that can, or a profile",
        ),
        (
            {"model": nn.Sequential(Odd("unused"))},
            "model: its layers cannot be measured: 0.unused: expected a parameter",
        ),
        ({"model": nn.Sequential(Odd("tuple"))}, "model: returns a tuple: expected one tensor of scores"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"device": "abacus"}, "device = 'abacus': expected one that torch can use here"),
        ({"profile": ModelProfile.from_module(nn.Sequential(nn.Linear(4, 3)), torch.ones(1, 4))}, "profile: 1 layers"),
    ],
)
def test_bad_fields_are_refused(options: dict[str, Any], message: str):
    """The message says what was given and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        small_task(**options)


def test_data_must_fit():
    """The partition must be of the training data, and there must be something to test with."""
    with pytest.raises(InvalidProblemError, match="partition: made for 18 samples, train has 5"):
        small_task().replace(train=samples(5))
    with pytest.raises(InvalidProblemError, match="test: expected at least one sample"):
        small_task().replace(test=samples(3).take([]))


def test_a_new_model_gets_its_own_profile():
    """Replacing the model measures it, unless a profile is given; other changes keep the profile."""
    task = small_task()
    wide = nn.Sequential(nn.Linear(FEATURES, 50), nn.Tanh(), nn.Linear(50, CLASSES))
    assert task.replace(model=wide).profile.forward_flops[0] == 10 * task.profile.forward_flops[0]
    assert task.replace(model=wide, profile=task.profile).profile is task.profile
    assert task.replace(seed=3).profile is task.profile


@pytest.mark.parametrize(
    ("client", "size", "epochs", "sizes"),
    [(0, 2, 1, (2, 2, 2, 1)), (0, 2, 2, (2, 2, 2, 1) * 2), (2, 5, 3, (1,) * 3), (1, 9, 2, (5, 5)), (0, 4, 1, (4, 3))],
)
def test_an_epoch_takes_every_sample_once(client: int, size: int, epochs: int, sizes: tuple[int, ...]):
    """7 samples in batches of 2 are three of two and one of one; from wherever one looks, the mini-batches are the same."""
    own = SHUFFLED.partition.indices[client]
    count = SHUFFLED.steps(ClientPlan(client, local_steps=99, local_epochs=epochs), size)
    whole = Batches(0, 0, count, size, whole=False)
    assert SHUFFLED.sizes(client, whole) == sizes
    for first in range(count):
        part = Batches(0, first, count - first, size, whole=False)
        assert SHUFFLED.num_samples(client, part) == sum(SHUFFLED.sizes(client, part)) == sum(sizes[first:])
    rows = [row[:n] for row, n in zip(SHUFFLED.rows(client, whole).tolist(), sizes, strict=True)]
    per_epoch = len(sizes) // epochs
    for epoch in range(epochs):
        seen = [row for some in rows[epoch * per_epoch : (epoch + 1) * per_epoch] for row in some]
        assert sorted(seen) == own.tolist()
    for step, some in enumerate(rows):
        assert SHUFFLED.rows(client, Batches(0, step, 1, size, whole=False)).tolist() == [some]
    for (inputs, targets), some in zip(SHUFFLED.batch(client, whole).steps(), rows, strict=True):
        assert torch.equal(inputs, SHUFFLED.train.inputs[some])
        assert torch.equal(targets, SHUFFLED.train.targets[some])
    assert SHUFFLED.steps(ClientPlan(client, local_steps=5), size) == 5
    assert SHUFFLED.sizes(client, Batches(0, 0, 2, size)) == (min(size, own.size),) * 2


def test_work_of_layers():
    """FLOPs are the profile's, per sample, of the layers asked for, with or without the way back."""
    task = small_task()
    profile = task.profile
    assert task.flops(3) == 3 * (profile.forward_flops.sum() + profile.backward_flops.sum())
    assert task.flops(2, 1, 3, backward=False) == 2 * profile.forward_flops[1:3].sum()
    assert task.flops(5, 2, 2) == 0


class Viewing(nn.Module):
    """Layers that look at their input as it lies in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], -1)


@pytest.mark.parametrize(("flat", "turned"), [(nn.Flatten(), True), (Viewing(), False)])
def test_images_have_their_channels_last_where_the_layers_take_it(flat: nn.Module, turned: bool):
    """The loss and its gradients are those of the plain module, and layers that would fail are given what they expect."""
    generator = torch.Generator().manual_seed(0)
    data = ArrayData(torch.randn(6, 2, 4, 4, generator=generator), torch.arange(6) % 3, 3, "images")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), flat, nn.Linear(16, 3))
    task = Task(model=model, train=data, test=data, partition=iid(6, 2, seed=0))
    assert task.channels_last == turned
    slopes, loss = gradients(
        lambda w: (found := task.batch_loss(w, data.inputs, data.targets)[0], found), task.initial_weights()
    )
    expected = nn.functional.cross_entropy(model(data.inputs), data.targets)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, value in model.named_parameters():
        torch.testing.assert_close(slopes[name], value.grad, msg=name)
