"""Faces at the edges: 8-bit pictures in and out, and how alike two pictures look."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgeopt.errors import InvalidProblemError
from edgeopt.privacy.faces import SIZES

_WINDOW = 7


def as_face(value: Any) -> NDArray[np.uint8]:
    """Return a face as uint8 [S, S, 3], S one of `SIZES`.

    Parameters
    ----------
    value : path of a picture, or an array, see `edgeopt.coding.as_picture`.

    Raises
    ------
    InvalidFileError
        If a file is no picture.
    InvalidProblemError
        If it has another size.
    """
    from edgeopt.coding.pictures import as_picture

    picture = as_picture(value)
    if picture.shape[0] != picture.shape[1] or picture.shape[0] not in SIZES:
        expected = " or ".join(f"{side} x {side}" for side in SIZES)
        raise InvalidProblemError(f"face: {picture.shape[0]} x {picture.shape[1]} pixels: expected {expected}")
    return picture


def to_tensor(faces: NDArray[np.uint8]) -> Tensor:
    """Return 8-bit faces [B, S, S, 3] as float32 [B, 3, S, S] from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(faces)).permute(0, 3, 1, 2).float() / 255


def to_array(pictures: Tensor) -> NDArray[np.uint8]:
    """Return pictures [B, 3, S, S] from 0 to 1 as 8-bit ones [B, S, S, 3]."""
    rounded = (255 * pictures.detach()).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).numpy())


def check_faces(pictures: Tensor) -> Tensor:
    """Return pictures float32 [B, 3, S, S] from 0 to 1; refuse others."""
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[1] != 3:
        got = list(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise InvalidProblemError(f"faces: expected a tensor [B, 3, S, S], got {got}")
    if pictures.shape[2] != pictures.shape[3] or pictures.shape[2] not in SIZES:
        sides = " x ".join(map(str, pictures.shape[2:]))
        raise InvalidProblemError(
            f"faces: {sides} pixels: expected {' or '.join(f'{side} x {side}' for side in SIZES)}"
        )
    if not len(pictures):
        raise InvalidProblemError("faces: expected at least one, got none")
    if not pictures.is_floating_point():
        raise InvalidProblemError(
            f"faces: expected floating-point numbers from 0 to 1, got {pictures.dtype}: to_tensor makes them of 8-bit pictures"
        )
    pictures = pictures.detach().float()
    wrong = ~((pictures >= 0) & (pictures <= 1))  # NaN among them
    if wrong.any():
        index = [int(i) for i in wrong.nonzero()[0]]
        raise InvalidProblemError(f"faces{index} = {float(pictures[tuple(index)]):g}: expected a number from 0 to 1")
    return pictures


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Return the structural similarity [B] of pictures [B, C, H, W] from 0 to 1, windows of 7 x 7 pixels.

    Differentiable, and the number of ``skimage.metrics.structural_similarity`` with ``channel_axis`` and ``data_range=1``.

    References
    ----------
    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE Trans. Image Process. 13, 2004.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, _WINDOW, stride=1)

    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    a, b = mean(one), mean(other)
    va, vb = unbiased * (mean(one * one) - a * a), unbiased * (mean(other * other) - b * b)
    vab = unbiased * (mean(one * other) - a * b)
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * a * b + c1) * (2 * vab + c2) / ((a * a + b * b + c1) * (va + vb + c2))
    return found.mean((1, 2, 3))
