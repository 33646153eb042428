"""The inner network of a vault: additive couplings on Haar sub-bands that take pictures to numbers that are small, and back exactly."""

import math

import torch
from torch import Tensor, nn

from edgeopt.privacy.haar import haar, unhaar

_COLOURS = (  # orthonormal: brightness, blue against red, green against both
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (-1 / math.sqrt(6), 2 / math.sqrt(6), -1 / math.sqrt(6)),
)
_SETS = 3
"""Sets of couplings: the finest level's, the next one's, and those of all coarser levels."""


def levels_of(size: int) -> int:
    """Return how often a side is halved: as long as it is even.

    Examples
    --------
    >>> levels_of(32), levels_of(48), levels_of(50)
    (5, 4, 1)
    """
    return (size & -size).bit_length() - 1


class _Coupling(nn.Module):
    """Foresees sub-bands from what is known: two layers of 3 x 3 windows after another, none of which sees beyond the edge."""

    def __init__(self, given: int, made: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(given + 1, width, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")
        self.last = nn.Conv2d(width, made, 1)
        for weights in self.last.parameters():  # the plain Haar transform at first
            nn.init.zeros_(weights)

    def forward(self, known: Tensor, step: Tensor) -> Tensor:
        """Return [B, made, h, w] of what is known [B, given, h, w] and the step [B, 1, 1, 1] that it was rounded with."""
        x = torch.cat([known, step.expand(-1, 1, *known.shape[-2:])], 1)
        x = nn.functional.gelu(self.first(x))
        x = x + nn.functional.gelu(self.second(x))
        return self.last(x)  # type: ignore[no-any-return]


class HaarNetwork(nn.Module):
    """An invertible network of the Haar sub-bands of square pictures, which a vault codes instead of pixels.

    At each level, from the coarsest, differences b less what two couplings foresee: of brightness from the sums a, then of colours from
    sums and brightness, b2 = b1 - eta(a). Both ways compute eta of the same numbers, so it is invertible whatever eta is. With a step,
    numbers are rounded to its multiples as they are made, and what is finer is foreseen from the rounded, so that the error of each
    number stays its own: transforms are orthonormal, and the squared error of the picture is the sum of those of its numbers.

    Ours: the paper names nested invertible networks and gives no layout.

    Parameters
    ----------
    width : channels between the layers of a coupling.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.brightness = nn.ModuleList(_Coupling(3, 3, width) for _ in range(_SETS))
        self.colours = nn.ModuleList(_Coupling(6, 6, width) for _ in range(_SETS))

    def forward(self, pictures: Tensor, step: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the numbers of pictures.

        Parameters
        ----------
        pictures : [B, 3, S, S], from 0 to 255, S even.
        step : [B], that numbers are rounded to multiples of. Default: not rounded.

        Returns
        -------
        Sums of the coarsest level [B, 3, s, s]; differences of each level, the coarsest first, [B, 3, 3, h, h]: of columns, rows and
        diagonals, of brightness and two colours. With a step, in steps.
        """
        sums, differences = self.before_rounding(pictures, step)
        return _rounded(sums, step), [_rounded(made, step) for made in differences]

    def before_rounding(self, pictures: Tensor, step: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the numbers as `forward` does, but themselves not rounded: what they are less of was foreseen from rounded ones."""
        x = torch.einsum("dc,bchw->bdhw", pictures.new_tensor(_COLOURS), pictures)
        bands = []
        for _ in range(levels_of(pictures.shape[-1])):
            split = haar(x)  # (B, 4, 3, h, h)
            x, rest = split[:, 0], split[:, 1:]
            bands.append(rest)
        sums, made = x, []
        x = _restored(_rounded(x, step), step)
        for level in reversed(range(len(bands))):
            rest = bands[level]
            bright = self._foreseen(self.brightness, x, None, level, step)  # (B, 3, h, h)
            left = rest[:, :, 0] - bright
            known = (_restored(_rounded(left, step), step) + bright).detach()
            colour = self._foreseen(self.colours, x, known, level, step).reshape(
                len(x), 3, 2, *x.shape[2:]
            )  # (B, 3, 2, h, h)
            lefts = rest[:, :, 1:] - colour
            made.append(torch.cat([left[:, :, None], lefts], 2))
            x = self._joined(x, known, (_restored(_rounded(lefts, step), step) + colour).detach())
        return sums, made

    def inverse(self, sums: Tensor, differences: list[Tensor], step: Tensor | None = None) -> Tensor:
        """Return the pictures [B, 3, S, S] of what `forward` returned."""
        x = _restored(sums, step)
        for level, made in zip(reversed(range(len(differences))), differences, strict=True):
            known = _restored(made[:, :, 0], step) + self._foreseen(self.brightness, x, None, level, step)
            colour = self._foreseen(self.colours, x, known, level, step).reshape(len(x), 3, 2, *x.shape[2:])
            x = self._joined(x, known, _restored(made[:, :, 1:], step) + colour)
        return torch.einsum("dc,bdhw->bchw", sums.new_tensor(_COLOURS), x)

    def _foreseen(
        self, couplings: nn.ModuleList, sums: Tensor, bright: Tensor | None, level: int, step: Tensor | None
    ) -> Tensor:
        """Return what couplings of a level, 0 for the finest, foresee."""
        scale = 2.0 ** (level + 1)  # a sum of this level is as many times the mean of its pixels
        centre = sums.new_tensor([128 * math.sqrt(3), 0, 0])[:, None, None]
        known = [(sums / scale - centre) / 64]
        if bright is not None:
            known.append(bright / (16 * scale))
        coarse = sums.new_zeros(len(sums)) if step is None else step
        told = (coarse / scale + 1).log2()[:, None, None, None] / 4
        found: Tensor = couplings[min(level, _SETS - 1)](torch.cat(known, 1), told)
        return 16 * scale * found

    @staticmethod
    def _joined(sums: Tensor, bright: Tensor, colours: Tensor) -> Tensor:
        rest = torch.cat([bright[:, :, None], colours], 2)  # (B, 3, 3, h, h)
        return unhaar(torch.cat([sums[:, None], rest], 1))


_DEAD = 0.08
"""By how much more than half a step a number must be for the next multiple: zeros are cheap."""


def _rounded(x: Tensor, step: Tensor | None) -> Tensor:
    if step is None:
        return x
    shape = (-1,) + (1,) * (x.ndim - 1)
    y = x / step.view(shape)
    return y.sign() * (y.abs() + 0.5 - _DEAD).floor()


def _restored(x: Tensor, step: Tensor | None) -> Tensor:
    return x if step is None else x * step.view((-1,) + (1,) * (x.ndim - 1))
