"""Reading and writing weights and checkpoints: safetensors files with a JSON header. Needs the package safetensors."""

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import storage
from edgeopt.errors import InvalidFileError, quoted
from edgeopt.extras import needs
from edgeopt.fields import Fields, in_file
from edgeopt.files import open_file
from edgeopt.npz import Form

if TYPE_CHECKING:
    import torch

_HEADER = "edgeopt"  # the key of safetensors' own metadata that holds our header as JSON text
Shapes = Mapping[str, tuple[int, ...]]
LayoutOf = Callable[[dict[str, Any], Shapes], storage.Layout]
_MAX_HEADER_BYTES = 32 << 20
_DTYPES = {
    "F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4",
    "U16": "u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


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


def load_tensors(
    path: str | os.PathLike[str], kind: str, layout: LayoutOf | None = None
) -> tuple[dict[str, Any], storage.Arrays]:
    """Read what `save_tensors` wrote with ``header["kind"]`` = `kind`.

    Parameters
    ----------
    layout : says from the header, and the shapes of the arrays by name, which of them the file may hold; others are refused before any array is read.
        Default: those that there are.

    Raises
    ------
    InvalidFileError
        If it is no such file, corrupt, or too large; the message starts with the path.
    MissingDependencyError
        Without safetensors.
    """
    require_safetensors()
    from safetensors import safe_open

    _check_length(path)
    try:
        with safe_open(os.fspath(path), "numpy") as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise InvalidFileError(f"{path}: not a safetensors file of edgeopt: no {quoted(_HEADER)} in its header")
            header = storage.parse_json_object(path, text.encode())
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            with in_file(path):
                Fields(header).expect("kind", kind)
                wanted = None if layout is None else storage.known(path, names, layout(header, shapes))
            for name in names:
                _check_form(path, name, file.get_slice(name), Form() if wanted is None else wanted[name])
            return header, {name: file.get_tensor(name) for name in names}
    except (_errors(), UnicodeError) as error:
        raise InvalidFileError(f"{path}: not a safetensors file of edgeopt: {quoted(str(error))[1:-1]}") from None


def load_any_tensors(path: str | os.PathLike[str]) -> "dict[str, torch.Tensor]":
    """Read the tensors of any safetensors file, on the CPU.

    Raises
    ------
    InvalidFileError
        If it is none, corrupt, or too large; the message starts with the path.
    MissingDependencyError
        Without safetensors.
    """
    with needs("a file of weights", "train"):
        from safetensors.torch import load_file
    _check_length(path)
    try:
        return load_file(os.fspath(path))
    except (_errors(), UnicodeError, ValueError) as error:
        raise InvalidFileError(f"{path}: not a safetensors file: {quoted(str(error))[1:-1]}") from None


def _check_length(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, and headers that are long enough to fill the memory."""
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > storage.MAX_BYTES:
            raise InvalidFileError(f"{path}: {size} bytes: expected at most {storage.MAX_BYTES}")
        if (length := int.from_bytes(file.read(8), "little")) > min(_MAX_HEADER_BYTES, max(size - 8, 0)):
            raise InvalidFileError(f"{path}: not a safetensors file of edgeopt: a header of {length} bytes")


def _check_form(path: str | os.PathLike[str], name: str, found: Any, form: Form) -> None:
    if (dtype := _DTYPES.get(found.get_dtype())) is None:
        raise InvalidFileError(f"{path}: {name}: expected numbers, got {found.get_dtype()}")
    form.check(path, name, np.dtype(dtype), tuple(found.get_shape()))


def _errors() -> type[Exception]:
    from safetensors import SafetensorError

    found: type[Exception] = SafetensorError
    return found


def require_safetensors() -> Any:
    """Return the module `safetensors.numpy`, or say how to install it."""
    with needs("a file of weights", "train"):
        from safetensors import numpy
    return numpy
