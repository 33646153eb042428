"""Recognisers of faces: four small networks of different shapes, and what reads appearances. Three are trained against, one is held out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEEN = 32
"""Pixels along a side that recognisers see; larger pictures are averaged."""
FEATURES = 64
RECOGNISERS = ("plain", "wide", "separable", "residual")
HELD_OUT = "residual"
"""The recogniser that nothing is optimised against."""


class Recogniser(nn.Module):
    """A network that maps faces to unit vectors; those of one person are close.

    Parameters
    ----------
    shape : one of `RECOGNISERS`.
    """

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.shape = shape
        self.body = nn.Sequential(*_BODIES[shape]())
        with torch.no_grad():
            width = self.body(torch.zeros(1, 3, SEEN, SEEN)).numel()
        # normalised over the batch: at first all faces lie in one direction, and no classifier would part them
        self.head = nn.Sequential(nn.Linear(width, FEATURES), nn.BatchNorm1d(FEATURES))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return unit vectors [B, 64] of pictures [B, 3, S, S] from 0 to 1."""
        return F.normalize(self.features(pictures), dim=1)

    def features(self, pictures: Tensor) -> Tensor:
        """Return the vectors before they are brought to length 1."""
        found: Tensor = self.head(self.body(reduced(pictures) - 0.5).flatten(1))
        return found


class AppearanceReader(nn.Module):
    """A network that reads the six numbers of an appearance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, 16, 3, 2), nn.GELU(), _conv(16, 32, 3, 2), nn.GELU(), _conv(32, 32, 3, 2), nn.GELU(), nn.Flatten(),
            nn.Linear(512, 64), nn.GELU(), nn.Linear(64, 6),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """Return numbers [B, 6] of pictures [B, 3, S, S] from 0 to 1."""
        found: Tensor = self.body(reduced(pictures) - 0.5)
        return found


@dataclass(frozen=True, slots=True)
class Threshold:
    """From which cosine on two faces count as one person, so that a share `far` of pairs of two persons do wrongly."""

    cosine: float
    far: float


def threshold_at(impostors: Tensor, far: float) -> Threshold:
    """Return the least threshold that at most a share `far` of the cosines of pairs of two persons exceed.

    Examples
    --------
    >>> threshold_at(torch.arange(100) / 100, far=0.01).cosine
    0.98
    """
    ordered = impostors.flatten().sort().values
    keep = len(ordered) - int(far * len(ordered)) - 1
    return Threshold(round(float(ordered[max(keep, 0)]), 6), far)


def reduced(pictures: Tensor) -> Tensor:
    """Return pictures averaged to 32 pixels along a side."""
    return F.avg_pool2d(pictures, ratio) if (ratio := pictures.shape[-1] // SEEN) > 1 else pictures


class Residual(nn.Module):
    """Two convolutions around which the input is passed on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _norm(width), nn.SiLU(), _conv(width, width), _norm(width), nn.SiLU(), _conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum [B, C, H, W]."""
        found: Tensor = x + self.inner(x)
        return found


def _conv(inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(4, width)


def _plain() -> list[nn.Module]:
    return [
        _conv(3, 24, 3, 2), _norm(24), nn.ReLU(), _conv(24, 24), _norm(24), nn.ReLU(), _conv(24, 48, 3, 2), _norm(48), nn.ReLU(),
        _conv(48, 48, 3, 2), _norm(48), nn.ReLU(),
    ]  # fmt: skip


def _wide() -> list[nn.Module]:
    return [
        _conv(3, 32, 7, 2), _norm(32), nn.GELU(), _conv(32, 40, 5, 2), _norm(40), nn.GELU(), _conv(40, 40, 3, 2), nn.GELU(),
    ]  # fmt: skip


def _separable() -> list[nn.Module]:
    found: list[nn.Module] = [_conv(3, 32, 4, 2), nn.SiLU()]
    for stride in (2, 1, 2):
        found += [_conv(32, 32, 5, stride, groups=32), _norm(32), _conv(32, 64, 1), nn.SiLU(), _conv(64, 32, 1)]
    return [*found, _norm(32), nn.SiLU()]


def _residual() -> list[nn.Module]:
    return [
        _conv(3, 24, 3, 2), Residual(24), nn.AvgPool2d(2), _conv(24, 48, 1), Residual(48), nn.AvgPool2d(2), _conv(48, 48, 1),
        _norm(48), nn.SiLU(),
    ]  # fmt: skip


_BODIES = {"plain": _plain, "wide": _wide, "separable": _separable, "residual": _residual}
