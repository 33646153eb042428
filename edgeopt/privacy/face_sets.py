"""What networks are trained and tried on: persons that can be shown in any appearance and view, parts of them never trained on."""

import importlib.resources
from functools import cache
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.extras import needs
from edgeopt.privacy.faces import APPEARANCE, View, check_size, render
from edgeopt.rng import stream
from edgeopt.validate import by_name, integer

Part = Literal["train", "other", "calibrate", "test"]
"""Who is trained on, by the recogniser that is held out, who sets thresholds, and who is never trained on."""
LFW_APPEARANCE = ("brightness", "warmth", "light from above", "light from the right", "background", "glasses")
"""What the six numbers of an appearance of a photograph are, each from -1 to 1."""
_LFW_PARTS = {"train": (0, 60), "other": (0, 60), "calibrate": (60, 75), "test": (75, 100)}
_LFW_FACES = 100  # the second half of the file shows no faces


class FaceSet(Protocol):
    """Persons and how they are shown."""

    name: ClassVar[str]
    appearance: ClassVar[tuple[str, ...]]
    sizes: ClassVar[tuple[int, ...]]

    def people(self, part: Part, count: int, seed: int) -> Tensor:
        """Return persons float32 [count, n], drawn from the seed; those of two parts are different ones."""
        ...

    def traits(self, people: Tensor) -> Tensor:
        """Return numbers [count, m] of variance about 1 that say what persons [count, n] look like in any appearance."""
        ...

    def show(
        self, people: Tensor, appearance: Tensor, view: View, size: int, rng: np.random.Generator | None
    ) -> Tensor:
        """Return pictures [B, 3, size, size] of persons [B, n] in appearances [B, 6]; a generator draws the camera's noise."""
        ...


class SyntheticFaces:
    """Faces of `edgeopt.privacy.render`; a person is its six numbers."""

    name: ClassVar[str] = "synthetic"
    appearance: ClassVar[tuple[str, ...]] = APPEARANCE
    sizes: ClassVar[tuple[int, ...]] = (32, 64)

    def people(self, part: Part, count: int, seed: int) -> Tensor:
        """Return identities [count, 6], drawn evenly."""
        rng = stream(seed, "people", part)
        return torch.from_numpy(rng.uniform(-1, 1, (integer("count", count, low=0), 6)).astype(np.float32))

    def traits(self, people: Tensor) -> Tensor:
        """Return the six numbers."""
        return 3**0.5 * people

    def show(
        self, people: Tensor, appearance: Tensor, view: View, size: int, rng: np.random.Generator | None
    ) -> Tensor:
        """Render."""
        return render(people, appearance, view, size=size, rng=rng)


class LfwFaces:
    """The 100 grey faces of scikit-image's wheel, 25 pixels wide, in the middle of 32; a person is the number of a photograph.

    No photograph says whose it is: each counts as a person of its own, and its views are made from it. Appearance is light, colour, what is
    behind the face, and glasses.

    Raises
    ------
    MissingDependencyError
        Without scikit-image: the extra ``faces``.
    """

    name: ClassVar[str] = "lfw"
    appearance: ClassVar[tuple[str, ...]] = LFW_APPEARANCE
    sizes: ClassVar[tuple[int, ...]] = (32,)

    def people(self, part: Part, count: int, seed: int) -> Tensor:
        """Return numbers of photographs [count, 1], none twice."""
        low, high = by_name("part", part, _LFW_PARTS)
        if integer("count", count, low=0) > high - low:
            raise InvalidProblemError(f"count = {count}: expected at most {high - low} photographs to {part}")
        order = stream(seed, "photographs", part).permutation(high - low)[:count]
        return torch.from_numpy((low + order).astype(np.float32))[:, None]

    def traits(self, people: Tensor) -> Tensor:
        """Return the brightness of 36 squares of the middle of each photograph, whatever its mean and contrast."""
        squares = F.avg_pool2d(_photographs()[people[:, 0].long(), None, 4:28, 4:28], 4).flatten(1)
        squares = squares - squares.mean(1, keepdim=True)
        return squares / squares.std(1, keepdim=True).clamp_min(1e-6)

    def show(
        self, people: Tensor, appearance: Tensor, view: View, size: int, rng: np.random.Generator | None
    ) -> Tensor:
        """Return photographs, moved, lit, coloured, in front of another background, with glasses."""
        if check_size(size) != 32:
            raise InvalidProblemError("size = 64: expected 32, photographs are 25 pixels wide")
        grey = _photographs()[people[:, 0].long()]  # (B, 32, 32)
        brightness, warmth, above, right, background, glasses = (n[:, None, None] for n in appearance.unbind(1))
        at = (torch.arange(size) + 0.5) * (2 / size) - 1
        x, y = at[None, None, :], at[None, :, None]
        gain = (
            (0.45 * brightness).exp()
            * (1 + 0.45 * right * torch.tanh(2.5 * x))
            * (1 - 0.35 * above * torch.tanh(2.5 * y))
        )
        tint = torch.stack([1 + 0.25 * warmth, torch.ones_like(warmth), 1 - 0.35 * warmth], 1)  # (B, 3, 1, 1)
        picture = (grey * gain)[:, None] * tint
        for side in (-0.3, 0.3):
            rim = (((x - side) ** 2 + (y + 0.2) ** 2).sqrt() - 0.21) / 0.04
            worn = ((glasses + 0.2) / 0.4).clamp(0, 1) * torch.sigmoid(-(rim.abs() - 0.8) * 4)
            dark = (glasses - 0.2).clamp(0, 0.8) * torch.sigmoid(-rim * 4)
            picture = picture * (1 - torch.maximum(worn, dark))[:, None]
        oval = torch.sigmoid(20 * (((x / 0.72) ** 2 + (y / 0.92) ** 2).sqrt() - 1))
        low, high = torch.tensor([0.08, 0.13, 0.32]), torch.tensor([0.86, 0.92, 0.80])
        behind = low + (0.5 + 0.5 * background) * (high - low)  # (B, 1, 3)
        picture = picture + oval[:, None] * (behind.permute(0, 2, 1)[..., None] - picture)
        cos, sin, grown = view.turn.cos(), view.turn.sin(), (-view.scale).exp()
        turned = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1) * grown[:, None, None]
        moved = -(turned @ view.shift[..., None])
        grid = F.affine_grid(torch.cat([turned, moved], 2), [len(people), 3, size, size], align_corners=False)
        picture = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
        if view.noise and rng is not None:
            picture = picture + view.noise * torch.from_numpy(
                rng.standard_normal(tuple(picture.shape), dtype=np.float32)
            )
        return picture.clamp(0, 1)


FACE_SETS: dict[str, FaceSet] = {"synthetic": SyntheticFaces(), "lfw": LfwFaces()}
"""The sets by name; networks for each come with the package."""


@cache
def _photographs() -> Tensor:
    """Return the grey faces float32 [100, 32, 32], surrounded by their edges."""
    with needs("photographs of faces", "faces"):
        import skimage
    path = importlib.resources.files(skimage) / "data" / "lfw_subset.npy"
    with importlib.resources.as_file(path) as file:
        stack = np.load(file, allow_pickle=False)
    if stack.shape != (200, 25, 25):
        raise InvalidFileError(f"{path}: expected an array [200, 25, 25], got {list(stack.shape)}")
    unit = torch.from_numpy(stack[:_LFW_FACES].astype(np.float32))
    unit = unit / (255 if stack.dtype == np.uint8 else 1)
    return F.pad(unit[:, None], (3, 4, 4, 3), mode="replicate")[:, 0]
