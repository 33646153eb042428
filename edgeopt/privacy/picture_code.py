"""A code of small square pictures: an invertible network, rounding to a step, and a range coder whose chances were learnt.

What is written depends on integers alone once numbers are rounded, so that a file is read bit for bit on every machine; sums of floating
point differ by machine by less than a grey level of the picture.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.fields import Fields, in_file
from edgeopt.models.weight_files import load_weights, save_weights
from edgeopt.npz import Form
from edgeopt.privacy.hiding import HaarNetwork, levels_of
from edgeopt.privacy.range_coder import WHOLE, Decoder, Encoder

Picture = NDArray[np.uint8]
Integers = NDArray[np.int64]
Rows = list[list[int]]

STEPS = tuple(2.0 ** (k / 6) for k in range(40))
"""What numbers may be rounded to multiples of, from 1 to 90 grey levels."""

_AROUND = (
    0,
    1,
    2,
    3,
    3,
    4,
    4,
    5,
    5,
    5,
    *(6,) * 5,
    *(7,) * 8,
    *(8,) * 18,
    9,
)  # classes of the magnitudes around a number
_CLASSES, _KINDS, _LEVELS, _UNARY = 10, 5, 3, 14
_LARGE = 24  # bits of a magnitude at most
# where the contexts of each purpose start
_ZERO = 0
_MORE = _ZERO + _LEVELS * _KINDS * _CLASSES
_SUMS = _MORE + 2 * _CLASSES * _UNARY
_ESCAPE = _SUMS + 2 * _LARGE
_SIGN = _ESCAPE + 2 * _LARGE
CONTEXTS = _SIGN + 1
"""Contexts of the range coder."""

Bit = Callable[[int, bool], bool]


@dataclass(frozen=True, eq=False)
class PictureCode:
    """A lossy code of pictures uint8 [S, S, 3], S even.

    Parameters
    ----------
    network : of pictures to numbers.
    chances : int64 [CONTEXTS], of a zero in each context at the start, parts of 65536.
    """

    network: HaarNetwork
    chances: Integers

    def __repr__(self) -> str:
        return f"PictureCode(width={self.network.width})"

    def numbers(self, picture: Picture, step: int) -> list[Integers]:
        """Return the numbers of a picture, in steps: sums [3, s, s], then differences [3, 3, h, h] of each level."""
        sums, differences = self.network(_tensor(picture), torch.tensor([STEPS[step]]))
        return [made[0].round().to(torch.int64).numpy() for made in (sums, *differences)]

    def picture(self, numbers: Sequence[Integers], step: int) -> Picture:
        """Return the picture of numbers."""
        tensors = [torch.from_numpy(made).to(torch.float32)[None] for made in numbers]
        found = self.network.inverse(tensors[0], tensors[1:], torch.tensor([STEPS[step]]))
        return found[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def write(self, numbers: Sequence[Integers]) -> bytes:
        """Return the bytes of numbers; zeros at their end are left out."""
        encoder = Encoder(self.chances.tolist())
        _walk(encoder.bit, [made.shape for made in numbers], numbers)
        return encoder.finish()

    def read(self, data: bytes, size: int) -> list[Integers]:
        """Return the numbers of a picture of `size` pixels along a side from what `write` returned, or that and zeros after it."""
        decoder = Decoder(self.chances.tolist(), data)
        return _walk(decoder.bit, _shapes(size), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt to a ``.safetensors`` file, in 16 bits."""
        header = {"kind": _KIND, "schema_version": _SCHEMA_VERSION, "width": self.network.width}
        save_weights(path, header, self.network, {"chances": self.chances.astype(np.float32)}, half=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If it is no such file, or damaged.
        """

        def build(header: Fields) -> HaarNetwork:
            return HaarNetwork(header.integer("width", low=1, high=512))

        network, others = load_weights(path, _KIND, _SCHEMA_VERSION, build, others={"chances": Form("f", (1,))})
        chances = others["chances"]
        with in_file(path):
            if chances.shape != (CONTEXTS,):
                raise InvalidFileError(f"chances: expected shape [{CONTEXTS}]")
            if ((chances < 0) | (chances > WHOLE)).any():
                raise InvalidFileError(f"chances: expected numbers from 0 to {WHOLE}")
        return cls(network, chances.astype(np.int64))

    @classmethod
    def pretrained(cls) -> "PictureCode":
        """Return the code that comes with the package."""
        return _pretrained()


_KIND, _SCHEMA_VERSION = "edgeopt.privacy.picture-code", 1


@cache
def _pretrained() -> PictureCode:
    return PictureCode.load(Path(str(files("edgeopt.privacy") / "files" / "hiding.safetensors")))


def _tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]  # (1, 3, S, S)


def _shapes(size: int) -> list[tuple[int, ...]]:
    levels = levels_of(size)
    side = size >> levels
    return [(3, side, side), *((3, 3, side << k, side << k) for k in range(levels))]


def count_bits(numbers: Sequence[Integers], zeros: Integers, ones: Integers) -> None:
    """Add to `zeros` and `ones` [CONTEXTS] how often each context had which bit: what chances are learnt from."""

    def bit(context: int, value: bool) -> bool:
        (ones if value else zeros)[context] += 1
        return value

    _walk(bit, [made.shape for made in numbers], numbers)


def _walk(bit: Bit, shapes: Sequence[tuple[int, ...]], numbers: Sequence[Integers] | None) -> list[Integers]:
    """Go through all numbers in the order in which they are written; `bit` writes bits that it is given, or returns those that it reads."""
    made = [_walk_sums(bit, shapes[0], None if numbers is None else numbers[0])]
    coarser = np.zeros((3, 3, *shapes[0][1:]), np.int64)
    for k, shape in enumerate(shapes[1:]):
        side, level = shape[-1], min(len(shapes) - 2 - k, _LEVELS - 1)
        parents = np.abs(coarser)
        if side != parents.shape[-1]:
            parents = parents.repeat(2, 2).repeat(2, 3)
        found = np.zeros(shape, np.int64)
        size = np.zeros(shape, np.int64)  # magnitudes
        for colour in range(3):
            for band in range(3):
                around = parents[band, colour] + size[:band, colour].sum(0) + 2 * size[band, :colour].sum(0)
                kind = band if colour == 0 else 2 + colour
                given = None if numbers is None else numbers[1 + k][band, colour].tolist()
                zero = _ZERO + (level * _KINDS + kind) * _CLASSES
                more = _MORE + (colour > 0) * _CLASSES * _UNARY
                found[band, colour] = _walk_band(bit, zero, more, around.tolist(), given)
                size[band, colour] = np.abs(found[band, colour])
        made.append(found)
        coarser = found
    return made


def _walk_sums(bit: Bit, shape: tuple[int, ...], given: Integers | None) -> Integers:
    """Each sum less the one to its left, or above it."""
    found = np.zeros(shape, np.int64)
    for colour, y, x in np.ndindex(*shape):
        before = found[colour, y, x - 1] if x else found[colour, y - 1, x] if y else 0
        left = 0 if given is None else int(given[colour, y, x] - before)
        size = _magnitude(bit, _SUMS, abs(left))
        found[colour, y, x] = before + (-size if size and bit(_SIGN, left < 0) else size)
    return found


def _walk_band(bit: Bit, zero: int, more: int, around: Rows, given: Rows | None) -> Rows:
    width, last = len(around[0]), len(_AROUND) - 1
    found: Rows = []
    above = [0] * (width + 2)  # magnitudes of the row above, one pixel more at each end
    for y, known in enumerate(around):
        row, sizes = [0] * width, [0] * (width + 2)
        values = row if given is None else given[y]
        for x in range(width):
            near = known[x] + 2 * (sizes[x] + above[x + 1]) + above[x] + above[x + 2]
            kind = _AROUND[min(near, last)]
            value = values[x]
            if not bit(zero + kind, value != 0):
                continue
            negative = bit(_SIGN, value < 0)
            left, size, context = abs(value), 1, more + kind * _UNARY
            while size < _UNARY and bit(context + size, left > size):
                size += 1
            if size == _UNARY:
                size += _magnitude(bit, _ESCAPE, left - _UNARY)
            sizes[x + 1] = size
            row[x] = -size if negative else size
        above = sizes
        found.append(row)
    return found


def _magnitude(bit: Bit, context: int, value: int) -> int:
    """Walk through an integer of at least 0: how many bits value + 1 has, then these, the highest one left out."""
    value = max(value, 0) + 1
    length = 1
    while bit(context + length - 1, value >> length > 0):
        length += 1
        if length >= _LARGE:
            raise InvalidProblemError("picture: a number is too large to be one of a picture")
    found = 1
    for place in reversed(range(length - 1)):
        found = found << 1 | bit(context + _LARGE + place, bool(value >> place & 1))
    return found - 1
