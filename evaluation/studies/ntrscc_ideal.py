"""What NTRSCC is held against: source coding followed by an ideal channel code, which works up to capacity and not at all beyond."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from edgeopt.coding import Ntrscc
from edgeopt.coding.pictures import Picture
from edgeopt.extras import needs

Codes = Callable[[float], Picture]
"""From a number of bits that get through to the picture that arrives."""
_QUALITIES = {"webp": (0, 100), "jpeg": (1, 95)}


def image_codec(kind: str, picture: Picture) -> Codes:
    """Return the code that sends the largest file of JPEG or WebP that fits; none fits, and the picture is its mean colour.

    Parameters
    ----------
    kind : ``jpeg`` or ``webp``.
    picture : that is sent.
    """
    lowest, highest = _QUALITIES[kind]
    files = {}
    for quality in range(lowest, highest + 1, 3):
        files[quality] = _packed(kind, picture, quality)
    return partial(_largest, files, picture)


def _packed(kind: str, picture: Picture, quality: int) -> bytes:
    with needs("JPEG and WebP", "images"):
        from PIL import Image
    file = io.BytesIO()
    options: dict[str, Any] = {"method": 4} if kind == "webp" else {"optimize": True}
    Image.fromarray(picture).save(file, format=kind.upper(), quality=quality, **options)
    return file.getvalue()


def _largest(files: dict[int, bytes], picture: Picture, bits: float) -> Picture:
    from PIL import Image

    fitting = [(len(data), data) for data in files.values() if 8 * len(data) <= bits]
    if not fitting:
        return np.broadcast_to(picture.mean((0, 1)).round().astype(np.uint8), picture.shape).copy()
    with Image.open(io.BytesIO(max(fitting)[1])) as image:
        return np.asarray(image.convert("RGB"))


def hyperprior(system: Ntrscc, picture: Picture) -> Codes:
    """Return the code that sends the numbers of the transforms at their entropy: all of them get through, or the header alone.

    Parameters
    ----------
    system : whose transforms and hyperprior they are.
    picture : that is sent.
    """
    sent = system.encode(picture, seed=0)
    receiver = system.receiver(sent.header, 0)
    whole, nothing = receiver.picture(40 * (1.0 - 2.0 * sent.bits)), receiver.picture()
    least = sent.source_bits + sent.header_bits
    return lambda bits: whole if bits >= least else nothing
