"""A renderer of synthetic faces: identity is geometry, appearance is colour, light, hair and glasses, and both are known.

Shapes are signed distances with soft edges, so that pictures are differentiable in all of their numbers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.validate import integer

IDENTITY = ("eye spacing", "eye size", "nose length", "mouth width", "jaw width", "brow height")
"""What the six numbers of an identity are, each from -1 to 1."""
APPEARANCE = ("skin tone", "hair colour", "hair length", "light from the right", "background", "glasses")
"""What the six numbers of an appearance are, each from -1 to 1."""
SIZES = (32, 64)
"""Pixels along a side."""


@dataclass(frozen=True, slots=True)
class View:
    """What differs between two pictures of one person that look alike.

    Parameters
    ----------
    shift : Tensor [B, 2], to the right and down, in halves of a side.
    scale : Tensor [B], logarithm of how much larger the face is.
    turn : Tensor [B], radians.
    smile : Tensor [B], how far the corners of the mouth are up, from -1 to 1.
    noise : standard deviation of what a camera adds to every value.
    """

    shift: Tensor
    scale: Tensor
    turn: Tensor
    smile: Tensor
    noise: float = 0.02

    __repr__ = one_line

    @staticmethod
    def frontal(count: int) -> "View":
        """Return the view without any difference, and without noise."""
        zero = torch.zeros(count)
        return View(torch.zeros(count, 2), zero, zero, zero, 0.0)

    @staticmethod
    def random(count: int, rng: np.random.Generator, noise: float = 0.02) -> "View":
        """Return views drawn at random, independently."""

        def drawn(width: float, *shape: int) -> Tensor:
            return torch.from_numpy((width * rng.uniform(-1, 1, (count, *shape))).astype(np.float32))

        return View(drawn(0.05, 2), drawn(0.05), drawn(0.08), drawn(1.0), noise)


def random_numbers(count: int, rng: np.random.Generator) -> Tensor:
    """Return identities or appearances drawn evenly: float32 [count, 6] from -1 to 1."""
    return torch.from_numpy(rng.uniform(-1, 1, (integer("count", count, low=0), 6)).astype(np.float32))


def check_size(size: int) -> int:
    """Return a number of pixels along a side; refuse others than `SIZES`."""
    if size not in SIZES:
        raise InvalidProblemError(f"size = {quoted(size)}: expected one of {', '.join(map(str, SIZES))}")
    return size


def render(
    identity: Tensor,
    appearance: Tensor,
    view: View | None = None,
    *,
    size: int = 32,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Return pictures float32 [B, 3, size, size] from 0 to 1.

    Parameters
    ----------
    identity : Tensor [B, 6], see `IDENTITY`.
    appearance : Tensor [B, 6], see `APPEARANCE`.
    view : default: frontal.
    size : one of `SIZES`.
    rng : draws the noise of the camera; default: none.

    Raises
    ------
    InvalidProblemError
        If shapes or the size are others.
    """
    check_size(size)
    count = len(identity)
    for name, numbers in (("identity", identity), ("appearance", appearance)):
        if numbers.shape != (count, 6):
            raise InvalidProblemError(f"{name}: expected shape [{count}, 6], got {list(numbers.shape)}")
    view = View.frontal(count) if view is None else view
    canvas = _Canvas(view, size)
    spacing, eye, nose, mouth, jaw, brow = (column[:, None, None] for column in identity.unbind(1))
    tone, hair_colour, hair_length, light, background, glasses = (
        column[:, None, None] for column in appearance.unbind(1)
    )
    x, y = canvas.x, canvas.y  # (B, S, S), right and down, a face is about 1.1 x 1.5

    skin = _between(tone, (0.30, 0.19, 0.13), (0.96, 0.80, 0.70))  # (B, 3, 1, 1)
    hair = _between(hair_colour, (0.07, 0.05, 0.06), (0.90, 0.72, 0.38))
    lips = 0.75 * skin + torch.tensor([0.12, -0.02, 0.0])[None, :, None, None]
    behind = _between(background, (0.08, 0.13, 0.32), (0.86, 0.92, 0.80))

    picture = behind * (1 - 0.12 * canvas.sheet[1])[:, None]
    # a face that is wider or narrower below the eyes, and hair around it
    half = 0.55 + 0.16 * jaw * y.clamp_min(0) + 0.05 * jaw
    face = _ellipse(x * 0.55 / half, y - 0.02, 0.55, 0.74)
    longer = 0.5 + 0.5 * hair_length
    mane = _ellipse(x, y + 0.22 - 0.32 * longer, 0.66 + 0.06 * longer, 0.66 + 0.34 * longer)
    picture = canvas.paint(picture, mane, hair)
    picture = canvas.paint(picture, face, skin)
    fringe = torch.maximum(face - 0.02, y + 0.60 - 0.22 * longer + 0.10 * x)
    picture = canvas.paint(picture, fringe, hair)

    across = 0.23 + 0.08 * spacing
    height = -0.10
    for side in (-1.0, 1.0):
        at = x - side * across
        opening = 0.08 * (1 + 0.45 * eye)
        white = _ellipse(at, y - height, 1.5 * opening, opening)
        picture = canvas.paint(picture, white, _colour(0.95, 0.95, 0.95))
        iris = _ellipse(at, y - height, 0.75 * opening, 0.75 * opening)
        picture = canvas.paint(picture, iris, _colour(0.12, 0.16, 0.20))
        arch = _box(at, y - (height - 0.19 - 0.07 * brow), 0.14, 0.025)
        picture = canvas.paint(picture, arch, 0.4 * hair + 0.15 * skin)
        rim = _ellipse(at, y - height, 0.20, 0.165)
        worn = ((glasses + 0.2) / 0.4).clamp(0, 1)
        dark = (glasses - 0.2).clamp(0, 0.8)
        picture = canvas.paint(picture, rim.abs() - 0.022, _colour(0.05, 0.05, 0.06), worn)
        picture = canvas.paint(picture, rim, _colour(0.10, 0.10, 0.12), dark)
    tip = 0.15 + 0.11 * nose
    ridge = _box(x + 0.015, y - (tip - 0.11), 0.020, 0.10)
    nostrils = _ellipse(x, y - tip, 0.10, 0.035)
    picture = canvas.paint(picture, ridge, 0.80 * skin)
    picture = canvas.paint(picture, nostrils, 0.55 * skin)
    wide = 0.20 * (1 + 0.50 * mouth)
    bent = y - 0.40 + view.smile[:, None, None] * 0.05 * ((x / wide) ** 2).clamp_max(1.5)
    picture = canvas.paint(picture, _ellipse(x, bent, wide, 0.05), lips)

    shade = 1 + 0.45 * light * torch.tanh(2.5 * canvas.sheet[0])  # (B, S, S)
    picture = picture * (1 - 0.3 * light.abs())[:, None] * shade[:, None]
    if view.noise and rng is not None:
        grain = torch.from_numpy(rng.standard_normal(tuple(picture.shape), dtype=np.float32))
        picture = picture + view.noise * grain
    return picture.clamp(0, 1)


class _Canvas:
    """Coordinates of the pixels, of the sheet and of the face on it, and paint with soft edges."""

    def __init__(self, view: View, size: int) -> None:
        at = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
        right, down = at[None, None, :], at[None, :, None]
        self.sheet = (right.expand(1, size, size), down.expand(1, size, size))
        self.soft = 1.2 / size  # of an edge: it fades over about two pixels
        right, down = right - view.shift[:, 0, None, None], down - view.shift[:, 1, None, None]
        cos, sin = view.turn.cos()[:, None, None], view.turn.sin()[:, None, None]
        grown = view.scale.exp()[:, None, None]
        self.x = (cos * right + sin * down) / grown
        self.y = (cos * down - sin * right) / grown

    def paint(self, picture: Tensor, distance: Tensor, colour: Tensor, opacity: Tensor | None = None) -> Tensor:
        """Return the picture with a shape on it: where the distance is negative."""
        covered = torch.sigmoid(-distance / self.soft)
        covered = (covered if opacity is None else covered * opacity)[:, None]
        return picture + covered * (colour - picture)


def _ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Return about the distance to an ellipse around the origin, of first order at its edge and exact in sign."""
    away = ((x / a) ** 2 + (y / b) ** 2 + 1e-6).sqrt()
    steep = ((x / (a * a)) ** 2 + (y / (b * b)) ** 2 + 1e-6).sqrt()
    return away * (away - 1) / steep


def _box(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(x.abs() - a, y.abs() - b)


def _colour(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])[None, :, None, None]


def _between(at: Tensor, low: tuple[float, float, float], high: tuple[float, float, float]) -> Tensor:
    """Return colours [B, 3, 1, 1] between those at -1 and at 1."""
    share = (0.5 + 0.5 * at)[:, None]
    return _colour(*low) + share * (_colour(*high) - _colour(*low))
