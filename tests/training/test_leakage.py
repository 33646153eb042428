"""What crosses a cut gives away: all of it where it is the sample itself, nothing where it is the same for all."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.data.partition import iid
from edgeopt.errors import InvalidProblemError
from edgeopt.training import CODECS, ArrayData, Quantise, Task, TopK, leakage
from edgeopt.training.codecs import AcpCodec
from edgeopt.training.leakage import _WEIGHTS, _Ridge

FEATURES, CLASSES = 6, 3


class Same(nn.Module):
    """Returns the same of every sample."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * x + 2


class Folded(nn.Module):
    """Loses the sign of the first number, of which a linear probe needs to know nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1].abs(), x[:, 1:]], 1)


def task(first: nn.Module, samples: int = 240) -> Task:
    """Return a task whose classes are a linear function of its inputs, and whose first layer is given."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2 * samples, FEATURES)).astype(np.float32)
    targets = (inputs @ rng.normal(size=(FEATURES, CLASSES))).argmax(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(first, nn.Linear(FEATURES, CLASSES))
    known, held_out = (
        ArrayData(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]), CLASSES, "made")
        for rows in (slice(None, samples), slice(samples, None))
    )
    return Task(model=model, train=known, partition=iid(len(known), 2, seed=0), test=held_out)


def numbers(of: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return two numbers of each sample that follow from its inputs."""
    mix = np.array([[1.0, 0], [2, 0], [0, 1], [0, 0], [0, 0], [0, -1]])
    first, second = (data.inputs.numpy().astype(float) @ mix for data in (of.train, of.test))
    return first, second


def test_identity_leaks_everything():
    """Inputs and what is linear in them are found to the last digit; classes as well as a linear probe can."""
    given = task(nn.Identity())
    found = leakage(given, 1, attributes={"mix": numbers(given)}, steps=50)
    assert (found.cut, found.codec, found.bytes_per_sample, found.samples) == (1, "identity", 4 * FEATURES, (240, 240))
    assert found.leaks["inputs"].linear > 1 - 1e-9
    assert found.leaks["mix"].linear > 1 - 1e-9
    assert found.leaks["inputs"].network > 0.5
    assert found.leaks["labels"].linear > 0.85
    assert found.leaks["labels"].chance < 0.5
    assert {name: leak.kind for name, leak in found.leaks.items()} == {
        "labels": "accuracy",
        "inputs": "r2",
        "mix": "r2",
    }


@pytest.mark.parametrize("codec", [None, Quantise()])
def test_constant_leaks_nothing(codec: Quantise | None):
    """Probes can do no better than the most frequent class, and the mean."""
    given = task(Same())
    found = leakage(given, 1, codec=codec, attributes={"mix": numbers(given)}, steps=50)
    for name in ("inputs", "mix"):
        assert found.leaks[name].linear == pytest.approx(0, abs=1e-12)
        assert found.leaks[name].network == pytest.approx(0, abs=0.05)
    assert found.leaks["labels"].linear == found.leaks["labels"].chance


def test_what_is_lost_does_not_leak():
    """The sign of the first number is gone and all others are there: R^2 of these is 1, of it 0, for both probes."""
    given = task(Folded())
    columns = {
        f"number {k}": tuple(data.inputs[:, k].numpy() for data in (given.train, given.test)) for k in range(FEATURES)
    }
    found = leakage(given, 1, attributes=columns, steps=40)  # type: ignore[arg-type]
    assert found.leaks["number 0"].linear < 0.1
    assert found.leaks["number 0"].network < 0.1
    assert all(found.leaks[f"number {k}"].linear > 0.999 for k in range(1, FEATURES))


def test_a_network_finds_what_a_line_does_not():
    """Whether a number is far from 0 is no linear function of it."""
    given = task(nn.Identity())
    far = tuple((data.inputs[:, 0].abs() > 0.7).long().numpy() for data in (given.train, given.test))
    leak = leakage(given, 1, attributes={"far": far}, steps=200).leaks["far"]  # type: ignore[dict-item]
    assert leak.network > leak.linear + 0.1
    assert leak.kind == "accuracy"


def test_codecs_leak_what_they_carry():
    """Eight bits carry more than four, these more than one of six numbers; bytes are those of the coded tensors."""
    given = task(nn.Identity())
    found = [leakage(given, 1, codec=codec, steps=1) for codec in (Quantise(8), Quantise(4), TopK(1 / FEATURES))]
    inputs = [each.leaks["inputs"].linear for each in found]
    assert inputs[0] > inputs[1] > inputs[2]
    assert [each.bytes_per_sample for each in found] == [FEATURES + 8, FEATURES / 2 + 8, 4 + 1]
    assert found[0].codec == "quantise"


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec: type):
    """All of the package are looked through, with what they remember from one mini-batch to the next."""
    found = leakage(task(nn.Identity(), 70), 1, codec=codec(), batch_size=16, steps=1)
    assert found.codec == codec.name
    assert found.bytes_per_sample > 0


def test_ridge_is_the_closed_form():
    """The weights solve the normal equations with the weight that leaves out one best, by the generalised score, written out."""
    rng = np.random.default_rng(3)
    x, others = rng.normal(size=(60, 30)), rng.normal(size=(5, 30))
    y = x[:, :2] + 2 * rng.normal(size=(60, 2))
    one, centred = np.ones((60, 1)), x - x.mean(0)
    scale = np.trace(centred @ centred.T) / 60
    scores = []
    for weight in _WEIGHTS * scale:
        hat = one @ one.T / 60 + centred @ np.linalg.solve(centred.T @ centred + weight * np.eye(30), centred.T)
        scores.append(np.square(y - hat @ y).sum() / (1 - np.trace(hat) / 60) ** 2)
    weight = _WEIGHTS[np.argmin(scores)] * scale
    assert 0 < np.argmin(scores) < len(_WEIGHTS) - 1
    solved = np.linalg.solve(centred.T @ centred + weight * np.eye(30), centred.T @ (y - y.mean(0)))
    np.testing.assert_allclose(_Ridge(x).fit(y, others), y.mean(0) + (others - x.mean(0)) @ solved, atol=1e-8)


def test_repeats():
    """A seed repeats itself, to the bit, with a codec that draws."""
    one, other = (leakage(task(nn.Identity(), 60), 1, codec=Quantise(4), steps=20, seed=3) for _ in range(2))
    assert one == other
    assert one != leakage(task(nn.Identity(), 60), 1, codec=Quantise(4), steps=20, seed=4)


def test_trained_weights():
    """Weights that are given are those of the layers below the cut."""
    given = task(nn.Linear(FEATURES, FEATURES))
    blind = {name: torch.zeros_like(value) for name, value in given.initial_weights().items()}
    assert leakage(given, 1, weights=blind, steps=1).leaks["inputs"].linear == pytest.approx(0, abs=1e-12)
    assert leakage(given, 1, steps=1).leaks["inputs"].linear > 0.999


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"cut": 0}, r"cut = 0: expected 1 to 2"),
        ({"cut": 3}, r"cut = 3: expected 1 to 2"),
        ({"samples": 1}, r"samples = 1: expected an integer >= 2"),
        (
            {"attributes": {"a": (np.zeros(3), np.zeros(60))}},
            r"attributes\['a'\]: of train: expected numbers of 60 samples",
        ),
        ({"attributes": {"a": (np.zeros(60), np.full(60, np.nan))}}, r"attributes\['a'\]: of test: expected finite"),
        ({"attributes": {"a": (np.zeros((60, 2), int), np.zeros((60, 2), int))}}, r"classes from 0, integers \[n\]"),
        ({"attributes": {"labels": (np.zeros(60), np.zeros(60))}}, "expected another name"),
        ({"codec": AcpCodec(), "budget_bytes": 0}, r"budget_bytes = 0: nothing fits that acp can send"),
    ],
)
def test_refused(arguments: dict, told: str):
    """What does not fit the task says what would."""
    given = {"cut": 1, "steps": 1} | arguments
    with pytest.raises(InvalidProblemError, match=told):
        leakage(task(nn.Identity(), 60), given.pop("cut"), **given)
