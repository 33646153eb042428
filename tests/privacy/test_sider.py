"""Protected faces: known to recognisers, and looking like others."""

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from torch.nn import functional as F

from edgeopt.errors import InvalidProblemError
from edgeopt.privacy import (
    HELD_OUT,
    Diffusion,
    FaceModels,
    Goals,
    Objective,
    PixelPgd,
    Sider,
    appearance_swap,
    random_numbers,
    ssim,
)
from edgeopt.privacy.pictures import to_array, to_tensor
from edgeopt.privacy.sider import other_appearances, shifted
from edgeopt.privacy.training import views
from edgeopt.rng import stream
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


@pytest.fixture(scope="module")
def models() -> FaceModels:
    return FaceModels.pretrained()


@pytest.fixture(scope="module")
def faces(models: FaceModels) -> torch.Tensor:
    pictures, _ = views(models.faces, models.faces.people("test", 3, 0), stream(0, "faces"))
    return to_tensor(to_array(pictures))


@pytest.mark.parametrize("size", [32, 64])
def test_one_face_end_to_end(models: FaceModels, size: int):
    """What is returned as reached is: recognised by all that were optimised with, another look, the appearance aimed at."""
    people = models.faces.people("test", 2, 1)
    original = to_tensor(to_array(views(models.faces, people, stream(1, "faces"), size)[0]))
    sider = Sider(models=models, iterations=12, goals=Goals(margin=0.05))
    made = sider.protect(original)
    assert made.pictures.shape == original.shape
    assert 0 <= made.pictures.min() <= made.pictures.max() <= 1
    assert made.reached.any()
    cosines = models.similarity(made.pictures, original)
    read = F.cosine_similarity(models.reader(made.pictures), made.targets, dim=1)
    held = (ssim(made.pictures, original) <= 1 - sider.goals.unlike + 1e-5) & (read >= sider.goals.read - 1e-5)
    for name in models.ensemble:
        held &= cosines[name] >= models.thresholds[name].cosine + sider.goals.margin - 1e-5
    assert held[made.reached].all()
    assert (made.iterations[~made.reached] == 12).all()


def test_faces_of_a_batch_are_apart(models: FaceModels, faces: torch.Tensor):
    """A face becomes the same alone and beside others; another seed gives another one, the same seed the same."""
    sider = Sider(models=models, iterations=2, stop=False)
    targets = other_appearances(models, faces, 0)
    whole = sider.protect(faces, targets).pictures
    alone = sider.protect(faces[:1], targets[:1]).pictures
    torch.testing.assert_close(whole[:1], alone, atol=2e-3, rtol=0)
    assert torch.equal(sider.protect(faces, targets).pictures, whole)
    assert (sider.protect(faces, targets, seed=1).pictures - whole).abs().mean() > 1e-3


def test_steps_by_hand(models: FaceModels, faces: torch.Tensor):
    """Two steps written down anew: balanced gradients, momentum, length; all latents of the result follow from them."""
    face, targets = faces[:1], other_appearances(models, faces[:1], 5)
    sider = Sider(models=models, iterations=2, balance=0.7, momentum=0.8, step=0.03, stop=False, through=5)
    diffusion = Diffusion(models.denoiser, sider.share)
    first = sider.first(diffusion, face, 5)
    z, g = first.clone(), torch.zeros_like(first)
    known = {name: net(face) for name, net in models.ensemble.items()}
    for i in range(2):
        at = z.clone().requires_grad_()
        made = models.coder.decode(diffusion.denoise(at, targets, sider.guidance)).clamp(0, 1)
        moved = shifted(made, stream(5, "moved", i))
        identity = sum((1 - models.recognisers[name](moved) @ known[name].T).sum() for name in known)
        read = models.reader(made)[0]
        look = 1 - (read @ targets[0]) / (read.norm() * targets[0].norm())
        look = look + max(ssim(made, face)[0] - (1 - sider.goals.unlike), torch.zeros(()))
        look = look + 1e-3 * ((at - first) ** 2).mean()
        one, other = (torch.autograd.grad(loss, at, retain_graph=True)[0] for loss in (identity, look))
        g = 0.8 * g + one / one.abs().sum() + 0.7 * other / other.abs().sum()
        z = z - 0.03 * first.norm() * g / g.norm()
    with torch.no_grad():
        wanted = models.coder.decode(diffusion.denoise(z, targets, sider.guidance)).clamp(0, 1)
    torch.testing.assert_close(sider.protect(face, targets, seed=5).pictures, wanted, atol=2e-3, rtol=0)


def test_identity_is_maximised(models: FaceModels, faces: torch.Tensor):
    """The sign: with the identity alone, faces end up closer to their originals than another appearance is, for every recogniser together."""
    targets = other_appearances(models, faces, 0)
    before = models.similarity(appearance_swap(models, faces, targets).pictures, faces)
    sider = Sider(models=models, iterations=8, balance=0.0, stop=False)
    after = models.similarity(sider.protect(faces, targets).pictures, faces)
    for name in models.ensemble:
        assert after[name].mean() > before[name].mean()


def test_losses_by_hand(models: FaceModels, faces: torch.Tensor):
    """In NumPy, from what the networks say."""
    made = faces.flip(0)
    objective = Objective.of(models, faces, None, 3)
    losses = objective.losses(made, 4)
    moved = shifted(made, stream(3, "moved", 4))
    with torch.no_grad():
        seen = {name: [net(x).numpy() for x in (moved, made, faces)] for name, net in models.ensemble.items()}
        said = models.reader(made).numpy()
    assert set(seen) == set(models.recognisers) - {HELD_OUT}
    identity = sum(1 - (a * c).sum(1) for a, _, c in seen.values())
    aim = objective.targets.numpy()
    read = (said * aim).sum(1) / np.linalg.norm(said, axis=1) / np.linalg.norm(aim, axis=1)
    alike = np.maximum(ssim(made, faces).numpy() - 0.4, 0)
    np.testing.assert_allclose(losses.identity.detach(), identity, atol=1e-5)
    np.testing.assert_allclose(losses.semantic.detach(), 1 - read + alike, atol=1e-5)
    short = [np.maximum(models.thresholds[name].cosine + 0.2 - (b * c).sum(1), 0) for name, (_, b, c) in seen.items()]
    np.testing.assert_allclose(losses.shortfall, np.sum(short, 0) + alike + np.maximum(0.8 - read, 0), atol=1e-5)


def test_pixels_stay_in_the_ball(models: FaceModels, faces: torch.Tensor):
    """No pixel moves farther than the radius, some move that far, and losses fall."""
    pgd = PixelPgd(models=models, iterations=6)
    made = pgd.protect(faces, seed=2)
    away = (made.pictures - faces).abs().max()
    assert pgd.radius - 1e-6 <= away <= pgd.radius + 1e-6
    objective = Objective.of(models, faces, made.targets, 2)
    with torch.no_grad():
        before, after = (objective.losses(x, 99) for x in (faces, made.pictures))
    assert after.semantic.mean() < before.semantic.mean()


def test_targets(models: FaceModels, faces: torch.Tensor):
    """Drawn ones are far from what is read, equal for equal seeds; faces of two seeds have different ones."""
    targets = other_appearances(models, faces, 0)
    assert torch.equal(targets, other_appearances(models, faces, 0))
    assert (targets != other_appearances(models, faces, 1)).any(1).all()
    with torch.no_grad():
        away = (targets - models.reader(faces)).norm(dim=1)
        usual = (random_numbers(200, stream(0, "usual"))[:, None] - models.reader(faces)).norm(dim=2).mean(0)
    assert (away > usual).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 1.0}, "momentum = 1: expected at least 0 and below 1"),
        ({"balance": -1.0}, "balance = -1: expected at least 0"),
        ({"share": 0.0}, "share = 0: expected above 0 and at most 1"),
        ({"iterations": -1}, "iterations = -1: expected an integer >= 0"),
        ({"recognisers": ("other",)}, "recognisers: 'other': expected some of plain, wide, separable, residual"),
    ],
)
def test_bad_parameters(models: FaceModels, changes: dict[str, Any], message: str):
    with pytest.raises(InvalidProblemError, match=message):
        Sider(models=models, **changes)
    with pytest.raises(InvalidProblemError, match="radius = 0: expected above 0 and at most 1"):
        PixelPgd(models=models, radius=0.0)
    with pytest.raises(InvalidProblemError, match="balance = -1"):
        PixelPgd(models=models, balance=-1.0)


def test_bad_faces_and_targets(models: FaceModels, faces: torch.Tensor):
    sider = dataclasses.replace(Sider(models=models), iterations=0)
    with pytest.raises(InvalidProblemError, match="faces: 48 x 48 pixels: expected 32 x 32 or 64 x 64"):
        sider.protect(torch.zeros(1, 3, 48, 48))
    with pytest.raises(InvalidProblemError, match=r"targets: expected a tensor \[3, 6\], got \[1, 6\]"):
        sider.protect(faces, torch.zeros(1, 6))
    with pytest.raises(InvalidProblemError, match="targets: expected numbers from -1 to 1"):
        sider.protect(faces, torch.full((3, 6), 2.0))
