"""Files of a vault: PNG files as they were written, bit by bit, and pictures to hide."""

import io
import os
import warnings
from pathlib import Path

import numpy as np

from edgeopt.coding.pictures import Picture, as_picture
from edgeopt.errors import InvalidFileError, quoted
from edgeopt.extras import needs
from edgeopt.files import read_file
from edgeopt.storage import write_atomic

_MOST_BYTES = 4 << 20  # of a container: 256 x 256 pixels take 200 000
_MOST_PIXELS = 1 << 20  # checked before they are decoded
_END = b"IEND\xaeB`\x82"  # the last chunk of a PNG file, and its checksum


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Return the picture of a file, uint8 [H, W, 3]; see `as_picture`."""
    return as_picture(os.fspath(path))


def read_png(path: str | os.PathLike[str]) -> Picture:
    """Return the values uint8 [H, W, 3] of a PNG file of 8-bit RGB.

    Raises
    ------
    InvalidFileError
        If it is another file, its end is missing, or a checksum is wrong.
    """
    with needs("pictures of files", "images"):
        from PIL import Image
    data = read_file(path, _MOST_BYTES)
    try:
        with warnings.catch_warnings(action="ignore"):
            with Image.open(io.BytesIO(data)) as found:
                kind, mode, pixels = found.format, found.mode, found.width * found.height
            if kind != "PNG" or mode != "RGB":
                raise InvalidFileError(f"{path}: {kind} of {mode}: expected a PNG file of 8-bit RGB, as it was written")
            if pixels > _MOST_PIXELS:
                raise InvalidFileError(f"{path}: {pixels} pixels: expected at most {_MOST_PIXELS}")
            if not data.endswith(_END):
                raise InvalidFileError(f"{path}: its end is missing: expected a whole PNG file")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as found:
                found.verify()  # checksums of all chunks; pixels need another look
            with Image.open(io.BytesIO(data), formats=["PNG"]) as found:
                return np.array(found)
    except InvalidFileError:
        raise
    except Exception as error:  # noqa: BLE001 - readers of pillow raise whatever they stumble over in a damaged file
        raise InvalidFileError(f"{path}: not a picture that can be read: {quoted(str(error))[1:-1]}") from None


def write_png(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a picture uint8 [H, W, 3] to a PNG file, atomically; its temporary file holds the same, and never stays.

    Raises
    ------
    InvalidFileError
        If the name does not end in .png.
    """
    with needs("pictures of files", "images"):
        from PIL import Image
    if Path(path).suffix.lower() != ".png":
        raise InvalidFileError(f"{path}: expected a name that ends in .png, whose files keep every bit")
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    write_atomic(path, lambda file: file.write(data.getbuffer()))
