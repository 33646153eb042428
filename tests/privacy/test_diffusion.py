"""Latents of faces, and DDIM there and back."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from edgeopt.privacy import Denoiser, Diffusion, FaceModels, random_numbers, ssim
from edgeopt.privacy.diffusion import GRID, TIMES, noising
from edgeopt.privacy.training import views
from edgeopt.rng import stream
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


@pytest.fixture(scope="module")
def models() -> FaceModels:
    return FaceModels.pretrained()


@pytest.fixture(scope="module")
def faces(models: FaceModels) -> torch.Tensor:
    return views(models.faces, models.faces.people("test", 6, 0), stream(0, "faces"))[0]


def test_schedule():
    """What is left of a latent falls from all of it to nothing; DDIM takes every twentieth time."""
    kept = noising()
    assert kept.shape == (TIMES,)
    assert (kept.diff() < 0).all()
    assert kept[0] > 0.99
    assert kept[-1] < 1e-3
    diffusion = Diffusion(Denoiser(), 0.5)
    assert diffusion.down == list(range(TIMES // 2 - TIMES // GRID, -1, -TIMES // GRID))
    assert diffusion.up == diffusion.down[::-1]


@torch.no_grad()
def test_steps_by_hand(models: FaceModels):
    """Every step is DDIM's formula with guided noise, written down anew; without noise of its own."""
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.standard_normal((2, 8, 8, 8), np.float32))
    look, diffusion = random_numbers(2, rng), Diffusion(models.denoiser, 0.3)
    kept = noising()
    z = start
    for time, after in zip(diffusion.down, [*diffusion.down[1:], None], strict=True):
        free = models.denoiser(z, time, look, torch.zeros(2))
        noise = free + 2.5 * (models.denoiser(z, time, look) - free)
        clean = (z - (1 - kept[time]).sqrt() * noise) / kept[time].sqrt()
        left = torch.tensor(1.0) if after is None else kept[after]
        z = left.sqrt() * clean + (1 - left).sqrt() * noise
    torch.testing.assert_close(diffusion.denoise(start, look, 2.5), z, atol=1e-4, rtol=1e-4)
    free, led = models.denoiser(start, 50, look, torch.zeros(2)), models.denoiser(start, 50, look)
    torch.testing.assert_close(free, models.denoiser(start, 50, random_numbers(2, rng), torch.zeros(2)))
    assert (free - led).abs().max() > 0.01


@torch.no_grad()
def test_inversion(models: FaceModels, faces: torch.Tensor):
    """Denoised without an appearance, inverted latents are about the latents again, and far from them as noise of the same strength."""
    latents = models.coder.encode(faces)
    diffusion = Diffusion(models.denoiser, 0.5)
    noisy = diffusion.invert(latents)
    nothing = torch.zeros(len(faces), 6)
    back = diffusion.denoise(noisy, nothing, 0.0)
    assert (noisy - latents).square().mean() > 0.2
    assert (back - latents).square().mean() < 0.1 * latents.square().mean()


def test_gradients_pass_straight(models: FaceModels):
    """Fewer steps of gradients change no value; all steps give the derivative; one step and the straight pass give that of the last step."""
    rng = np.random.default_rng(0)
    start, look = torch.from_numpy(rng.standard_normal((1, 8, 8, 8), np.float32)), random_numbers(1, rng)
    diffusion = Diffusion(models.denoiser, 0.3)
    weights = torch.from_numpy(rng.standard_normal((1, 8, 8, 8), np.float32))

    def gradient(last: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        at = start.clone().requires_grad_()
        made = diffusion.denoise(at, look, 2.0, last)
        return made.detach(), torch.autograd.grad((weights * made).sum(), at)[0]

    (whole, exact), (short, straight) = gradient(None), gradient(1)
    torch.testing.assert_close(whole, short)
    direction = torch.from_numpy(rng.standard_normal((1, 8, 8, 8), np.float32))
    with torch.no_grad():
        ends = [diffusion.denoise(start + h * direction, look, 2.0) for h in (1e-2, -1e-2)]
    difference = float((weights * (ends[0] - ends[1])).sum()) / 2e-2
    assert float((exact * direction).sum()) == pytest.approx(difference, rel=0.05)
    before = start
    with torch.no_grad():
        for time in diffusion.down[:-1]:
            before = diffusion._step(before, time, look, 2.0)
    at = before.requires_grad_()
    (last,) = torch.autograd.grad((weights * diffusion._step(at, diffusion.down[-1], look, 2.0)).sum(), at)
    torch.testing.assert_close(straight, last)


@torch.no_grad()
def test_coder(models: FaceModels, faces: torch.Tensor):
    """Faces come back as they looked; 64 pixels have the latents of their average; latents have variance about 1."""
    latents = models.coder.encode(faces)
    assert latents.shape == (6, 8, 8, 8)
    assert 0.5 < latents.var() < 2
    assert ssim(models.coder.decode(latents).clamp(0, 1), faces).min() > 0.7
    large = faces.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(models.coder.encode(large), latents, atol=1e-5, rtol=1e-5)
    assert models.coder.decode(latents, 64).shape == (6, 3, 64, 64)
