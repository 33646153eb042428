"""Faces as latents and back, and a diffusion of latents under an appearance; the U-net and the schedulers are those of diffusers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.extras import needs
from edgeopt.privacy.faces import SIZES
from edgeopt.privacy.recognisers import Residual, reduced

LATENT = (8, 8, 8)
"""Shape of a latent, of faces of both sizes."""
TIMES = 200
"""Steps of the diffusion in training."""
GRID = 10
"""Steps of DDIM from noise to a latent."""


class FaceCoder(nn.Module):
    """A variational autoencoder: faces of 32 and 64 pixels have the same latents, and a second stage draws 64 of 32.

    All layers work on squares of 4 x 4 pixels: on so small faces that is a quarter of the work of layers at every resolution.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        squares = 3 * (SIZES[0] // LATENT[1]) ** 2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(squares, width, 3, padding=1), Residual(width), Residual(width),
            nn.Conv2d(width, 2 * LATENT[0], 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT[0], width, 3, padding=1), Residual(width), Residual(width), Residual(width),
            nn.Conv2d(width, squares, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip
        self.sharpen = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )  # fmt: skip
        self.spread: Tensor
        self.register_buffer("spread", torch.ones(()))

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of variances [B, 8, 8, 8] of latents that are not scaled."""
        mean, log_variance = self.encoder(2 * reduced(pictures) - 1).chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)

    def encode(self, pictures: Tensor) -> Tensor:
        """Return latents [B, 8, 8, 8] of pictures [B, 3, S, S] from 0 to 1, of variance about 1."""
        return self.moments(pictures)[0] / self.spread

    def decode(self, latents: Tensor, size: int = 32) -> Tensor:
        """Return pictures [B, 3, size, size], about from 0 to 1."""
        small: Tensor = self.decoder(latents * self.spread) / 2 + 0.5
        return small if size == SIZES[0] else self.enlarged(small)

    def enlarged(self, small: Tensor) -> Tensor:
        """Return pictures of twice as many pixels along a side."""
        found: Tensor = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False) + self.sharpen(
            small - 0.5
        )
        return found


class Denoiser(nn.Module):
    """A U-net that says how much of a noisy latent is noise, given an appearance or none.

    Parameters
    ----------
    width : channels at the full size of a latent, a multiple of 8.
    """

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        with needs("Denoiser", "faces"):
            from diffusers import UNet2DModel
        self.net = UNet2DModel(
            sample_size=LATENT[1], in_channels=LATENT[0], out_channels=LATENT[0], layers_per_block=1,
            block_out_channels=(width, 2 * width), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8, class_embed_type="identity", attention_head_dim=width // 2,
        )  # fmt: skip
        self.look = nn.Sequential(nn.Linear(7, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    def forward(self, latents: Tensor, times: Tensor | int, appearance: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the noise [B, 8, 8, 8]; appearances [B, 6] count where `known` [B] is 1, by default everywhere."""
        known = torch.ones(len(latents)) if known is None else known
        look = torch.cat([appearance * known[:, None], known[:, None]], 1)
        found: Tensor = self.net(latents, times, class_labels=self.look(look)).sample
        return found


class Diffusion:
    """DDIM there and back with a `Denoiser`, between time 0 and some time.

    Parameters
    ----------
    denoiser : trained with the noise of `noising`.
    share : of all times, up to which latents become noise.
    """

    def __init__(self, denoiser: Denoiser, share: float) -> None:
        with needs("Diffusion", "faces"):
            from diffusers import DDIMInverseScheduler, DDIMScheduler
        self.denoiser = denoiser
        self.forward_scheduler = DDIMScheduler(**_NOISE, **_DDIM)
        self.inverse_scheduler = DDIMInverseScheduler(**_NOISE, **_DDIM)
        self.forward_scheduler.set_timesteps(GRID)
        self.inverse_scheduler.set_timesteps(GRID)
        count = max(1, round(share * GRID))
        self.down = [int(t) for t in self.forward_scheduler.timesteps[GRID - count :]]
        self.up = [int(t) for t in self.inverse_scheduler.timesteps[:count]]

    @torch.no_grad()
    def invert(self, latents: Tensor) -> Tensor:
        """Return the noisy latents from which DDIM without an appearance leads about to these."""
        nothing = torch.zeros(len(latents), 6), torch.zeros(len(latents))
        for time in self.up:
            latents = self.inverse_scheduler.step(self.denoiser(latents, time, *nothing), time, latents).prev_sample
        return latents

    def denoise(self, latents: Tensor, appearance: Tensor, guidance: float, last: int | None = None) -> Tensor:
        """Return latents of time 0, by DDIM with guidance without a classifier.

        Parameters
        ----------
        latents : of the last time.
        appearance : Tensor [B, 6].
        guidance : weight of the appearance: 0 none, 1 as trained.
        last : steps through which gradients flow; through earlier ones they pass as if those did nothing. Default: all.
        """
        passed = latents
        early = 0 if last is None else max(len(self.down) - last, 0)
        with torch.no_grad():
            for time in self.down[:early]:
                passed = self._step(passed, time, appearance, guidance)
        if early:
            passed = passed + latents - latents.detach()
        for time in self.down[early:]:
            passed = self._step(passed, time, appearance, guidance)
        return passed

    def _step(self, latents: Tensor, time: int, appearance: Tensor, guidance: float) -> Tensor:
        if guidance in (0.0, 1.0):
            known = torch.full((len(latents),), guidance)
            noise = self.denoiser(latents, time, appearance, known)
        else:
            known = torch.cat([torch.zeros(len(latents)), torch.ones(len(latents))])
            free, led = self.denoiser(latents.repeat(2, 1, 1, 1), time, appearance.repeat(2, 1), known).chunk(2)
            noise = free + guidance * (led - free)
        found: Tensor = self.forward_scheduler.step(noise, time, latents, eta=0.0).prev_sample
        return found


_NOISE: dict[str, Any] = {
    "num_train_timesteps": TIMES, "beta_start": 1e-3, "beta_end": 0.08, "beta_schedule": "linear", "clip_sample": False,
}  # fmt: skip
_DDIM: dict[str, Any] = {"set_alpha_to_one": True, "timestep_spacing": "leading", "steps_offset": 0}


def noising() -> Tensor:
    """Return how much of a latent's variance is left at each time [TIMES]."""
    return (1 - torch.linspace(_NOISE["beta_start"], _NOISE["beta_end"], TIMES)).cumprod(0)
