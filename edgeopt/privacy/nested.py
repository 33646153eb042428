"""Hiding by a network alone: what a vault would be without its cipher. A control; it keeps nothing secret.

After HiNet (J. Jing et al., ICCV 2021), as the paper names nested invertible networks and gives no layout: affine couplings of the Haar
sub-bands of a carrier and a secret, whose second half, the residual, is dropped, and is taken to be zeros on the way back. The loss is ours.
"""

import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.fields import Fields
from edgeopt.models.weight_files import load_weights, save_weights
from edgeopt.privacy.haar import haar, unhaar
from edgeopt.privacy.hiding_training import Row, training_pictures, training_squares
from edgeopt.privacy.picture_code import Picture
from edgeopt.rng import stream
from edgeopt.validate import integer

_BANDS = 12  # four of three colours
_SIDE, _BATCH = 32, 8


def _layers(width: int) -> nn.Sequential:
    last = nn.Conv2d(width, _BANDS, 3, padding=1)
    for weights in last.parameters():  # nothing changes at first
        nn.init.zeros_(weights)
    return nn.Sequential(nn.Conv2d(_BANDS, width, 3, padding=1), nn.GELU(), last)


class _Coupling(nn.Module):
    """a2 = a1 + phi(b1); b2 = b1 exp(1.5 (2 sigmoid(rho(a2)) - 1)) + eta(a2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.phi, self.rho, self.eta = _layers(width), _layers(width), _layers(width)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return both halves [B, 12, h, w]."""
        a = a + self.phi(b)
        return a, b * self._scale(a).exp() + self.eta(a)

    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` was given."""
        b = (b - self.eta(a)) * (-self._scale(a)).exp()
        return a - self.phi(b), b

    def _scale(self, a: Tensor) -> Tensor:
        return 1.5 * (2 * torch.sigmoid(self.rho(a)) - 1)


class NestedNetwork(nn.Module):
    """Hides a picture in another one, for anybody to bring back who has the network.

    Parameters
    ----------
    blocks : couplings.
    width : channels between the layers of each.
    """

    def __init__(self, blocks: int = 8, width: int = 24) -> None:
        super().__init__()
        self.shape = {"blocks": blocks, "width": width}
        self.couplings = nn.ModuleList(_Coupling(width) for _ in range(blocks))

    def forward(self, carriers: Tensor, secrets: Tensor) -> tuple[Tensor, Tensor]:
        """Return containers and residuals [B, 3, S, S] of carriers and secrets, from 0 to 1, S even."""
        a, b = haar(carriers).flatten(1, 2), haar(secrets).flatten(1, 2)  # (B, 12, S / 2, S / 2)
        for coupling in self.couplings:
            a, b = coupling(a, b)
        return unhaar(_bands(a)), unhaar(_bands(b))

    def inverse(self, containers: Tensor, residuals: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return carriers and secrets; without residuals, that is with zeros in their place, more or less."""
        a = haar(containers).flatten(1, 2)
        b = torch.zeros_like(a) if residuals is None else haar(residuals).flatten(1, 2)
        for coupling in reversed(self.couplings):
            a, b = coupling.inverse(a, b)  # type: ignore[operator]
        return unhaar(_bands(a)), unhaar(_bands(b))

    def hide(self, carrier: Picture, secret: Picture) -> Picture:
        """Return the container uint8 [S, S, 3] of two pictures uint8 [S, S, 3]."""
        with torch.no_grad():
            return _bytes(self(_unit(carrier), _unit(secret))[0])

    def reveal(self, container: Picture) -> Picture:
        """Return the secret uint8 [S, S, 3] of a container: no password is asked for."""
        with torch.no_grad():
            return _bytes(self.inverse(_unit(container))[1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt to a ``.safetensors`` file, in 16 bits."""
        save_weights(path, {"kind": _KIND, "schema_version": _SCHEMA_VERSION, **self.shape}, self, half=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NestedNetwork":
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If it is no such file, or damaged.
        """

        def build(header: Fields) -> NestedNetwork:
            return cls(**{name: header.integer(name, low=1, high=512) for name in ("blocks", "width")})

        return load_weights(path, _KIND, _SCHEMA_VERSION, build)[0]

    @classmethod
    def pretrained(cls) -> "NestedNetwork":
        """Return the network that comes with the package."""
        return cls.load(Path(str(files("edgeopt.privacy") / "files" / "nested.safetensors")))


_KIND, _SCHEMA_VERSION = "edgeopt.privacy.nested-network", 1


def train_nested(
    pictures: Sequence[Picture] | None = None,
    *,
    steps: int = 500,
    blocks: int = 8,
    width: int = 24,
    noise: bool = False,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> NestedNetwork:
    """Return a network that hides pictures in others.

    The loss: squared errors of the container, of its sums of 2 x 2 pixels, and twice those of the secret that is brought back from the
    container rounded to 8 bits.

    Parameters
    ----------
    pictures : uint8 [H, W, 3], at least 32 pixels along a side. Default: as of `edgeopt.privacy.pretrain_hiding`.
    steps : mini-batches.
    noise : secrets are random bits, as an enciphered picture is: 0 or 1 for each value.
    seed : of weights and draws.
    on_row : is called with the loss, every 100 mini-batches.
    """
    known = training_pictures(seed) if pictures is None else list(pictures)
    rng = stream(seed, "nested")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NestedNetwork(integer("blocks", blocks, low=1), integer("width", width, low=1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, integer("steps", steps, low=1))
    for step in range(1, steps + 1):
        both = training_squares(known, 2 * _BATCH, _SIDE, rng) / 255
        carriers, secrets = both[:_BATCH], both[_BATCH:]
        if noise:
            secrets = torch.from_numpy(rng.integers(0, 2, tuple(secrets.shape)).astype(np.float32))
        containers, _ = network(carriers, secrets)
        rounding = torch.from_numpy(rng.uniform(-0.5, 0.5, tuple(containers.shape)).astype(np.float32)) / 255
        _, found = network.inverse(containers + rounding)
        sums = (haar(containers)[:, 0] - haar(carriers)[:, 0]).square().mean()
        loss = (containers - carriers).square().mean() + sums + 2 * (found - secrets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        if on_row is not None and step % 100 == 0:
            on_row({"step": step, "loss": loss.item()})
    return network.requires_grad_(False)


def _bands(halves: Tensor) -> Tensor:
    return halves.reshape(len(halves), 4, 3, *halves.shape[2:])  # (B, 4, 3, h, w)


def _unit(picture: Picture) -> Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]  # (1, 3, S, S)


def _bytes(found: Tensor) -> Picture:
    return (255 * found[0]).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
