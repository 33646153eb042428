"""Reading and writing weights and checkpoints: safetensors files with a JSON header. Needs the package safetensors."""

import json
import os
from typing import Any

import numpy as np

from edgeopt import storage
from edgeopt.errors import InvalidFileError
from edgeopt.extras import needs

_HEADER = "edgeopt"  # the key of safetensors' own metadata that holds our header as JSON text


def save_tensors(path: str | os.PathLike[str], header: dict[str, Any], arrays: storage.Arrays) -> None:
    """Write plain values and named arrays to a ``.safetensors`` file, atomically.

    Raises
    ------
    MissingDependencyError
        Without safetensors.
    """
    numpy = require_safetensors()
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # keeps scalars scalars
    data = numpy.save(whole, metadata={_HEADER: json.dumps(header, allow_nan=False)})
    storage.write_atomic(path, lambda file: file.write(data))


def load_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], storage.Arrays]:
    """Read what `save_tensors` wrote with ``header["kind"]`` = `kind`.

    Raises
    ------
    InvalidFileError
        If it is no such file, corrupt, or too large; the message starts with the path.
    MissingDependencyError
        Without safetensors.
    """
    numpy = require_safetensors()
    if (size := os.path.getsize(path)) > storage.MAX_BYTES:
        raise InvalidFileError(f"{path}: {size} bytes: expected at most {storage.MAX_BYTES}")
    with open(path, "rb") as file:
        data = file.read()
    try:
        arrays: storage.Arrays = numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length])["__metadata__"][_HEADER]
    except (_errors(), ValueError, KeyError, TypeError) as error:
        raise InvalidFileError(f"{path}: not a safetensors file of edgeopt: {error}") from None
    header = storage.parse_json_object(path, text.encode())
    if header.get("kind") != kind:
        raise InvalidFileError(f"{path}: kind = {header.get('kind')!r}: expected {kind!r}")
    return header, arrays


def _errors() -> type[Exception]:
    from safetensors import SafetensorError

    found: type[Exception] = SafetensorError
    return found


def require_safetensors() -> Any:
    """Return the module `safetensors.numpy`, or say how to install it."""
    with needs("a file of weights", "train"):
        from safetensors import numpy
    return numpy
