"""Frozen weights: they belong to the task, and are neither sent, averaged, kept per client, nor charged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import RoundPlan
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.profile import ModelProfile
from edgeopt.training import (
    Algorithm,
    FedAvg,
    GradientEstimator,
    LocalRunner,
    ParallelSplit,
    Sgd,
    SplitFed,
    SplitFedV2,
    Task,
    VanillaSplit,
)  # fmt: skip
from edgeopt.training.costs.selection_timing import update_cost
from tests.training.small_tasks import assert_near, assert_same
from tests.training.split_tasks import model, run, task

CUT = 2
SPLIT: tuple[Algorithm, ...] = (
    VanillaSplit(Sgd(0.3)), ParallelSplit(Sgd(0.3)), SplitFed(Sgd(0.3, momentum=0.5)), SplitFedV2(Sgd(0.3))
)  # fmt: skip


def frozen(*layers: int) -> Task:
    """Return the task with some layers frozen."""
    net = model()
    for layer in layers:
        net[layer].requires_grad_(False)
    return task(model=net)


def plans(**options: Any) -> RoundPlan:
    return RoundPlan(**({"client": [0, 1, 2], "batch_size": [4, 3, 4], "cut_layer": CUT, "local_steps": 2} | options))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("algorithm", [FedAvg(Sgd(0.3)), *SPLIT], ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("layers", [(0, 1), (1,), (2, 3)])
def test_training_is_that_of_a_model_whose_gradients_are_zero_there(algorithm: Algorithm, layers: tuple[int, ...]):
    """The other layers learn what they learn in plain training, in which the frozen ones' gradients are set to zero."""
    own = frozen(*layers)
    held = set(own.frozen)

    class Masking(Sgd):
        def step(self, parameters: Any, gradients: Any, state: Any) -> Any:
            zeroed = {n: torch.zeros_like(g) if n in held else g for n, g in gradients.items()}
            return Sgd.step(self, parameters, zeroed, state)

    masked = type(algorithm)(Masking(algorithm.optimizer.lr, algorithm.optimizer.momentum))
    for runner in (LocalRunner(batched=True), LocalRunner(batched=False)):
        first = run(own, algorithm, *[plans()] * 3, runner=runner)
        second = run(task(), masked, *[plans()] * 3, runner=runner)
        for mine, other in zip(first.models, second.models, strict=False):
            assert_near(mine, other, 1e-9)
        assert first.column("train_loss") == pytest.approx(second.column("train_loss"))


def test_bytes_and_work_of_fedavg_are_those_of_what_is_trained():
    """Bytes are those of the free weights; backward FLOPs are those of torch's own counter with the layers frozen."""
    own, whole = frozen(0, 1), task()
    row, other = (run(of, FedAvg(), plans()).rows[0] for of in (own, whole))
    free = sum(value.nbytes for value in own.initial_weights().values())
    assert row["weights_up"] == row["weights_down"] == 3 * free
    assert other["weights_up"] == row["weights_up"] + 3 * sum(value.nbytes for value in own.frozen.values())
    assert row["seconds"] < other["seconds"]
    assert update_cost(own, batch_size=4).payload_bits == 8 * free


@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_backward_work_is_what_torch_does(layers: tuple[int, ...]):
    """Layer by layer: a gradient of the weights where they are trained, one of the inputs where one below is trained."""
    sizes = [(6, 5), (5, 4), (4, 3)]
    net = nn.Sequential(*(nn.Linear(*size) for size in sizes))
    for layer in layers:
        net[layer].requires_grad_(False)
    profile = ModelProfile.from_module(net, torch.zeros(1, 6))
    for layer, (inputs, outputs) in enumerate(sizes):
        below = any(index not in layers for index in range(layer))
        product = 2 * inputs * outputs
        assert profile.forward_flops[layer] == product
        assert profile.backward_flops[layer] == product * ((layer not in layers) + below)
    assert profile.parameter_bytes.tolist() == [4 * (i * o + o) for i, o in sizes]
    free = ModelProfile.from_module(nn.Sequential(*(nn.Linear(*size) for size in sizes)), torch.zeros(1, 6))
    assert profile.activation_bytes.tolist() == free.activation_bytes.tolist()


@pytest.mark.parametrize("algorithm", SPLIT, ids=lambda algorithm: algorithm.name)
def test_a_client_with_nothing_to_train_gets_no_gradient(algorithm: Algorithm):
    """Where its layers are frozen, it sends activations and gets nothing back; the others do."""
    history = run(frozen(0, 1), algorithm, plans(cut_layer=[2, 2, 3]))
    row = history.rows[0]
    assert row["gradients_down"] == 2 * 4 * 5 * 8  # two steps, four samples, five outputs in float64: the third client
    assert row["activations_up"] > row["gradients_down"]
    assert row["completed"] == 3
    alone = run(frozen(0, 1), algorithm, plans()).rows[0]
    assert alone["gradients_down"] == alone["weights_up"] == 0


def test_the_profile_of_what_is_sent():
    """Bytes are those of the free weights, layer by layer; all else is that of the profile."""
    own = frozen(0, 2)
    sent = own.sent_profile()
    free = [sum(p.nbytes for p in layer.parameters() if p.requires_grad) for layer in own.model]
    assert sent.parameter_bytes.tolist() == free
    assert free[0] == free[2] == 0 < free[1]
    assert sent.forward_flops.tolist() == own.profile.forward_flops.tolist()


def test_resuming_with_other_frozen_weights_is_refused(tmp_path: Path):
    """A checkpoint belongs to the weights that were frozen, their values and which they are; with the same it goes on."""
    path = tmp_path / "run.safetensors"
    options: dict[str, Any] = {"checkpoint": path, "resume": True}
    run(frozen(0), FedAvg(), *[plans()] * 2, **options)
    parts, long = run(frozen(0), FedAvg(), *[plans()] * 4, **options), run(frozen(0), FedAvg(), *[plans()] * 4)
    assert_same(parts.models[0], long.models[0])
    net = model()
    net[0].requires_grad_(False)
    with torch.no_grad():
        next(net[0].parameters(), next(net[1].parameters())).add_(1)
    for other in (frozen(1), task(), frozen(0, 1)):
        with pytest.raises(InvalidFileError, match="frozen = "):
            run(other, FedAvg(), *[plans()] * 4, **options)


def test_the_convergence_constants_of_a_model_with_frozen_layers():
    """They are measured over what is trained; frozen layers have no gradient."""
    own = frozen(0, 1)
    found = GradientEstimator(num_clients=3).measure(own, [own.initial_weights()], 0)
    assert found is not None
    assert found.gradient_second_moment is not None
    assert np.all(found.gradient_second_moment.value[:2] == 0)
    assert np.all(found.gradient_second_moment.value[2:] > 0)


def test_a_wholly_frozen_model_is_refused():
    """There is nothing to train; the message says what is expected."""
    with pytest.raises(
        InvalidProblemError, match="model: none of its parameters requires gradients, expected at least"
    ):
        frozen(0, 1, 2, 3)
