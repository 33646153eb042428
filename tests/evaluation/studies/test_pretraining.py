"""Pre-training, then fine-tuning: the other domain, and training that is torch's own on the same mini-batches."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeopt.data import load_data
from edgeopt.errors import InvalidProblemError
from edgeopt.evaluation.studies.learning import learning_task
from edgeopt.evaluation.studies.pretraining import DOMAINS, other_domain, pretrained
from edgeopt.rng import stream
from tests.training.small_tasks import assert_near, assert_same, noisy_model, small_task


@pytest.mark.parametrize("name", DOMAINS)
def test_the_other_domain_is_the_training_samples_seen_otherwise(name: str):
    """Labels are the same, inputs are turned or run backwards, and back again they are those of the data set."""
    data, other = load_data(name, seed=3).train, other_domain(name, seed=3)
    assert torch.equal(other.targets, data.targets)
    assert not torch.equal(other.inputs, data.inputs)
    times = 4 if name == "digits" else 2
    for _ in range(times - 1):
        other = DOMAINS[name](other if isinstance(other, torch.Tensor) else other.inputs)
    assert torch.equal(other, data.inputs)


def test_pretraining_is_training_with_torch():
    """The weights are those of `torch.optim.Adam` on the mini-batches that the seed draws; the task stays as it is."""
    task = learning_task("digits-0.5", 10, seed=1)
    data, before = other_domain("digits", seed=1), copy.deepcopy(task.model.state_dict())
    found = pretrained(task, data, steps=6, batch_size=32)
    net, rng = copy.deepcopy(task.model), stream(1, "pre-training")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    for _ in range(6):
        rows = rng.choice(len(data), 32, replace=False)
        optimizer.zero_grad()
        F.cross_entropy(net(data.inputs[rows]), data.targets[rows]).backward()
        optimizer.step()
    assert_near(dict(found.state_dict()), dict(net.state_dict()), 1e-5)
    assert_same(dict(task.model.state_dict()), before)


def test_a_pretrained_model_knows_the_other_domain_alone():
    """On its own side a digit is known, upright it is not: there is something to fine-tune."""
    task = learning_task("digits-0.5", 10, seed=0)
    data = other_domain("digits", seed=0)
    weights = pretrained(task, data, steps=300).state_dict()
    assert task.evaluate(dict(weights), data).accuracy > 0.9
    assert task.evaluate(dict(weights)).accuracy < 0.4


def test_frozen_weights_stay_and_buffers_move():
    """A layer that is frozen before pre-training keeps its weights; running means are those of the other data."""
    net = noisy_model()
    net[0].requires_grad_(False)
    task = small_task(model=net)
    found = pretrained(task, task.train, steps=3, batch_size=4).state_dict()
    assert torch.equal(found["0.weight"], net[0].weight)
    assert int(found["1.num_batches_tracked"]) == 3
    assert not np.array_equal(found["4.weight"], net[4].weight.detach())


def test_what_cannot_be():
    """An unknown data set, and a batch larger than the data, are told in one line."""
    with pytest.raises(InvalidProblemError, match=r"^data = 'faces': expected one of digits, mnist-1d$"):
        other_domain("faces", seed=0)
    task = small_task()
    with pytest.raises(InvalidProblemError, match=r"^batch_size = 99"):
        pretrained(task, task.train, batch_size=99)
