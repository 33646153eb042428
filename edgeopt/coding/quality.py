"""How close pictures are: PSNR, and the structural similarity of several scales."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from edgeopt.errors import InvalidProblemError

Floats = NDArray[np.float64]

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of scales, of Wang et al.
_WINDOW = 11


def psnr_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return 10 log10(255^2 / mean squared error) of two pictures uint8; 100 dB where they are equal.

    Examples
    --------
    >>> psnr_db(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    0.0
    """
    _alike(one, other)
    error = float(np.square(one.astype(np.float64) - other).mean())
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def ms_ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the structural similarity over scales of two pictures uint8 [H, W] or [H, W, C], at most 1.

    At every scale, sides are half as long. There are five, or as many as have 11 pixels along the shorter side; weights of fewer are
    scaled to sum to 1.

    References
    ----------
    Z. Wang, E. Simoncelli and A. Bovik, Asilomar 2003; windows are Gaussian, sigma 1.5.
    """
    _alike(one, other)
    x, y = (np.atleast_3d(picture).astype(np.float64) for picture in (one, other))
    scales = min(len(_WEIGHTS), int(np.log2(max(min(x.shape[:2]) / _WINDOW, 0.5))) + 1)
    if scales < 1 or min(x.shape[:2]) < _WINDOW:
        raise InvalidProblemError(
            f"picture: {x.shape[0]} x {x.shape[1]} pixels: expected at least {_WINDOW} along a side"
        )
    weights = np.array(_WEIGHTS[:scales])
    weights /= weights.sum()
    found = 1.0
    for scale in range(scales):
        whole, contrast = _similarity(x, y)
        value = whole if scale == scales - 1 else contrast
        found *= max(value, 0.0) ** weights[scale]
        x, y = _halved(x), _halved(y)
    return float(found)


def _similarity(x: Floats, y: Floats) -> tuple[float, float]:
    """Return the means of similarity, and of its part without brightness, where windows fit."""
    at = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(at**2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(z: Floats) -> Floats:
        inside = slice(_WINDOW // 2, -(_WINDOW // 2))
        return np.asarray(convolve1d(convolve1d(z, window, axis=0), window, axis=1)[inside, inside])

    mx, my = blurred(x), blurred(y)
    vx, vy, vxy = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    contrast = (2 * vxy + c2) / (vx + vy + c2)
    whole = (2 * mx * my + c1) / (mx * mx + my * my + c1) * contrast
    return float(whole.mean()), float(contrast.mean())


def _halved(x: Floats) -> Floats:
    even = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4)


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    if one.shape != other.shape or one.dtype != np.uint8 or other.dtype != np.uint8:
        raise InvalidProblemError(
            f"pictures: {one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}: expected uint8 of equal shapes"
        )
