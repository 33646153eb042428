"""Faces that are drawn: what the numbers mean, and sets of persons."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from edgeopt.errors import InvalidProblemError
from edgeopt.privacy import APPEARANCE, FACE_SETS, IDENTITY, View, random_numbers, render, ssim
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

NUMBERS = st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6)


@given(NUMBERS, NUMBERS, st.integers(0, 2**32))
@settings(max_examples=10)
def test_pictures_are_pictures(identity: list[float], appearance: list[float], seed: int):
    """From 0 to 1 for all numbers and views; a face does not depend on the others of the batch."""
    rng = np.random.default_rng(seed)
    who, look = torch.tensor([identity, [0.0] * 6]), torch.tensor([appearance, [0.5] * 6])
    view = View.random(2, rng)
    made = render(who, look, view)
    assert made.shape == (2, 3, 32, 32)
    assert 0 <= made.min() <= made.max() <= 1
    one = View(view.shift[:1], view.scale[:1], view.turn[:1], view.smile[:1])
    torch.testing.assert_close(render(who[:1], look[:1], one), made[:1], atol=1e-6, rtol=0)


def test_gradients():
    """Derivatives by all twelve numbers are those of small differences."""
    rng = np.random.default_rng(0)
    who, look = random_numbers(1, rng).double(), random_numbers(1, rng).double()
    weights = torch.from_numpy(rng.standard_normal((3, 32, 32)))
    assert torch.autograd.gradcheck(
        lambda a, b: (weights * render(a, b)).sum(), (who.requires_grad_(), look.requires_grad_()), eps=1e-6, atol=1e-3
    )


def test_both_sizes_show_one_face():
    """Averaged, 64 pixels look like 32, but for edges that are softer there: most of all twelve persons like the same one."""
    rng = np.random.default_rng(0)
    who, look = random_numbers(12, rng), random_numbers(1, rng).expand(12, 6)
    large, small = F.avg_pool2d(render(who, look, size=64), 2), render(who, look)
    alike = torch.stack([ssim(large, face.expand_as(large)) for face in small], 1)
    assert alike.argmax(1).tolist() == list(range(12))
    assert alike.diag().min() > 0.95


def explained(pictures: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the share of the variance of each number that a ridge regression explains on the second half."""
    x = np.concatenate([pictures, np.ones((len(pictures), 1))], 1)
    half = len(x) // 2
    kernel = x[:half] @ x[:half].T
    found = x[half:] @ (x[:half].T @ np.linalg.solve(kernel + 0.3 * np.eye(half), numbers[:half]))
    left = ((numbers[half:] - found) ** 2).mean(0)
    return 1 - left / numbers[half:].var(0)


def test_the_numbers_can_be_read():
    """All of an appearance are seen by a linear regression for any identity, those of an identity under one appearance."""
    rng = np.random.default_rng(0)
    who, look = random_numbers(600, rng), random_numbers(600, rng)
    read = explained(render(who, look).flatten(1).numpy().astype(float), look.numpy())
    assert dict(zip(APPEARANCE, read, strict=True)) == pytest.approx(dict.fromkeys(APPEARANCE, 0.8), abs=0.2)
    same = torch.tensor([[0.5, -0.5, 0.0, 0.0, 0.0, -1.0]]).expand(600, 6)
    read = explained(render(who, same).flatten(1).numpy().astype(float), who.numpy())
    assert dict(zip(IDENTITY, read, strict=True)) == pytest.approx(dict.fromkeys(IDENTITY, 0.8), abs=0.2)


@pytest.mark.parametrize(
    ("identity", "appearance", "size", "message"),
    [
        ((2, 6), (2, 6), 48, "size = 48: expected one of 32, 64"),
        ((2, 5), (2, 6), 32, r"identity: expected shape \[2, 6\], got \[2, 5\]"),
        ((2, 6), (1, 6), 32, r"appearance: expected shape \[2, 6\], got \[1, 6\]"),
    ],
)
def test_bad_numbers(identity: tuple[int, ...], appearance: tuple[int, ...], size: int, message: str):
    with pytest.raises(InvalidProblemError, match=message):
        render(torch.zeros(identity), torch.zeros(appearance), size=size)


@pytest.mark.parametrize("name", FACE_SETS)
def test_sets(name: str):
    """Who is tested is not trained on, nor sets thresholds; same seed, same persons and pictures; appearances change pictures."""
    if name == "lfw":
        pytest.importorskip("skimage")
    faces = FACE_SETS[name]
    parts = {part: faces.people(part, 15, 0) for part in ("train", "calibrate", "test")}
    rows = [tuple(person.tolist()) for people in parts.values() for person in people]
    assert len(set(rows)) == len(rows)
    people = parts["test"]
    assert torch.equal(people, faces.people("test", 15, 0))

    def shown(seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return faces.show(people, random_numbers(15, rng), View.random(15, rng), 32, rng)

    assert torch.equal(shown(0), shown(0))
    assert shown(0).shape == (15, 3, 32, 32)
    assert 0 <= shown(0).min() <= shown(0).max() <= 1
    frontal, rng = View.frontal(15), None
    plain = faces.show(people, torch.zeros(15, 6), frontal, 32, rng)
    assert len(faces.appearance) == 6
    for i in range(6):
        look = torch.zeros(15, 6)
        look[:, i] = 1
        assert (faces.show(people, look, frontal, 32, rng) - plain).abs().mean() > 0.005, faces.appearance[i]


def test_photographs_that_there_are_not():
    pytest.importorskip("skimage")
    with pytest.raises(InvalidProblemError, match="count = 26: expected at most 25 photographs to test"):
        FACE_SETS["lfw"].people("test", 26, 0)
    with pytest.raises(InvalidProblemError, match="size = 64: expected 32"):
        FACE_SETS["lfw"].show(torch.zeros(1, 1), torch.zeros(1, 6), View.frontal(1), 64, None)
