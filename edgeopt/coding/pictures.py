"""Pictures to code: any file or array as 8-bit RGB, the photographs of scikit-image's wheel, and folders of one's own."""

import importlib.resources
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError, quoted
from edgeopt.extras import needs
from edgeopt.files import open_file
from edgeopt.rng import stream
from edgeopt.validate import integer

Picture = NDArray[np.uint8]

TRAINING_PHOTOGRAPHS = ("astronaut.png", "coffee.png", "rocket.jpg", "ihc.png", "motorcycle_left.png")
"""Files of scikit-image that are trained on."""
TEST_PHOTOGRAPHS = ("chelsea.png", "retina.jpg", "motorcycle_right.png")
"""Files of scikit-image that are tested on; the last is the other half of a stereo pair of which one is trained on."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")  # of pillow; for PostScript it would start a program
_MOST_PIXELS = 1 << 26  # of a file: checked before its pixels are decoded


def as_picture(value: Any) -> Picture:
    """Return a picture as uint8 [H, W, 3].

    Grey is repeated three times; what is transparent lies on white; 16 bits are rounded to 8; floating-point numbers are from 0 to 1.

    Parameters
    ----------
    value : path of a PNG, JPEG, WebP, BMP, TIFF, PPM or GIF file, whatever its name, or an array [H, W], [H, W, 1], [H, W, 2], [H, W, 3] or [H, W, 4] of booleans, uint8,
        uint16 or floating-point numbers; the second or fourth channel is opacity.

    Raises
    ------
    InvalidFileError
        If a file is no picture, or too large.
    InvalidProblemError
        If an array is none.

    Examples
    --------
    >>> as_picture(np.array([[[65535, 0, 0, 32768]]], np.uint16)).tolist()  # red, half transparent
    [[[255, 127, 127]]]
    """
    if isinstance(value, str | os.PathLike):
        return _read(Path(value))
    array = np.asarray(value)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise InvalidProblemError(
            f"picture: expected shape [H, W] or [H, W, 1 to 4], at least one pixel, got {list(np.shape(value))}"
        )
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.array(array)
    if array.dtype == bool:
        unit = array.astype(np.float64)
    elif array.dtype in (np.uint8, np.uint16):
        unit = array / np.iinfo(array.dtype).max
    elif array.dtype.kind == "f":
        unit = array.astype(np.float64)
        wrong = ~((unit >= 0) & (unit <= 1))  # NaN among them
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise InvalidProblemError(f"picture{list(index)} = {unit[index]:g}: expected a number from 0 to 1")
    else:
        raise InvalidProblemError(
            f"picture: expected booleans, uint8, uint16 or floating-point numbers, got {array.dtype}"
        )
    if unit.shape[2] in (2, 4):
        opacity = unit[:, :, -1:]
        unit = opacity * unit[:, :, :-1] + 1 - opacity
    if unit.shape[2] == 1:
        unit = unit.repeat(3, 2)
    return np.round(255 * unit).astype(np.uint8)


def photographs(kind: str) -> dict[str, Picture]:
    """Return photographs of scikit-image's wheel by name; nothing is downloaded.

    Parameters
    ----------
    kind : ``train`` or ``test``; no file is both.

    Raises
    ------
    MissingDependencyError
        Without scikit-image: the extra ``images``.
    """
    names = {"train": TRAINING_PHOTOGRAPHS, "test": TEST_PHOTOGRAPHS}
    if kind not in names:
        raise InvalidProblemError(f"kind = {quoted(kind)}: expected 'train' or 'test'")
    with needs("photographs", "images"):
        import skimage
    folder = importlib.resources.files(skimage) / "data"
    return {name.partition(".")[0]: as_picture(str(folder / name)) for name in names[kind]}


def folder_pictures(folder: str | os.PathLike[str]) -> dict[str, Picture]:
    """Return the pictures of a folder by file name, in alphabetical order.

    Raises
    ------
    InvalidFileError
        If there is none, or one cannot be read.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InvalidFileError(f"{folder}: expected files that end in one of {', '.join(SUFFIXES)}")
    return {path.name: as_picture(path) for path in files}


def crops(pictures: dict[str, Picture], count: int, size: int, seed: int) -> Picture:
    """Return squares uint8 [count, size, size, 3], of one picture after another, at places drawn from the seed.

    Examples
    --------
    >>> crops({"a": np.zeros((40, 50, 3), np.uint8)}, count=2, size=32, seed=0).shape
    (2, 32, 32, 3)
    """
    count, size = integer("count", count, low=1), integer("size", size, low=1)
    rng = stream(seed, "crops")
    found = []
    for name in itertools.islice(itertools.cycle(pictures), count):
        picture = pictures[name]
        if min(picture.shape[:2]) < size:
            raise InvalidProblemError(
                f"{name}: {picture.shape[0]} x {picture.shape[1]} pixels: expected at least {size} x {size}"
            )
        y, x = (int(rng.integers(side - size + 1)) for side in picture.shape[:2])
        found.append(picture[y : y + size, x : x + size])
    return np.stack(found)


def _read(path: Path) -> Picture:
    with needs("pictures of files", "images"):
        from PIL import Image, UnidentifiedImageError
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            open_file(path) as raw,
            Image.open(raw, formats=_FORMATS) as file,
        ):  # of tags that say nothing about pixels
            if file.width * file.height > _MOST_PIXELS:
                raise InvalidFileError(f"{path}: {file.width} x {file.height} pixels: expected at most {_MOST_PIXELS}")
            if file.mode in ("I", "F"):
                raise InvalidFileError(f"{path}: numbers of 32 bits: expected 8 or 16 bits per value")
            if file.mode.startswith("I;16"):
                return as_picture(np.asarray(file).astype(np.uint16))
            if file.mode in ("L", "LA", "RGB", "RGBA"):
                return as_picture(np.asarray(file))
            transparent = "transparency" in file.info or "A" in file.mode
            return as_picture(np.asarray(file.convert("RGBA" if transparent else "RGB")))
    except (EdgeOptError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidFileError(f"{path}: not a picture that can be read: {quoted(str(error))[1:-1]}") from None
    except Exception as error:  # noqa: BLE001 - readers of pillow raise whatever they stumble over in a damaged file
        raise InvalidFileError(f"{path}: damaged: {quoted(str(error))[1:-1]}") from None
