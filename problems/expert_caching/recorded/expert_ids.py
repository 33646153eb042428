"""Arrays of NumPy: ``.npy`` with int [tokens, layers, K]; ``.npz`` with it as ``ids``, and ``user`` and ``mask`` [tokens] beside it."""

import os
from pathlib import Path

import numpy as np

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.files import open_file
from edgeopt.npz import Form, read_array_header, shaped
from edgeopt.problems.expert_caching.recorded.content import MAX_BYTES, Choices, Hints, RoutingFormat
from edgeopt.storage import read_arrays

_LAYOUT = {"ids": Form("iu", (3,)), "user": Form("iu", (1,)), "mask": Form("b", (1,))}


def read(path: Path, hints: Hints) -> Choices:
    """Return the choices of those tokens that the mask leaves."""
    if path.suffix == ".npy":
        return Choices(_array(path))
    arrays = read_arrays(path, _LAYOUT)
    if "ids" not in arrays or arrays["ids"].ndim != 3:
        raise InvalidFileError(f"{path}: ids: expected an array [tokens, layers, K]")
    ids, user, mask = arrays["ids"], arrays.get("user"), arrays.get("mask")
    for name, column in (("user", user), ("mask", mask)):
        if column is not None and column.shape != ids.shape[:1]:
            raise InvalidFileError(f"{path}: {name}: shape {list(column.shape)}, expected [{len(ids)}] as in ids")
    if mask is None:
        return Choices(ids, user)
    return Choices(ids[mask], None if user is None else user[mask])


def _array(path: Path) -> np.ndarray:
    with open_file(path) as file:
        shape, fortran, dtype = read_array_header(os.fspath(path), file)
        if dtype.kind not in "iu" or len(shape) != 3 or min(shape) < 0:
            raise InvalidFileError(f"{path}: expected integers [tokens, layers, K], got {dtype} {quoted(list(shape))}")
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        if size > MAX_BYTES or len(data := file.read(size + 1)) != size:
            raise InvalidFileError(f"{path}: shape {quoted(list(shape))} does not fit the file")
    return shaped(os.fspath(path), data, shape, fortran, dtype)


EXPERT_IDS = RoutingFormat(
    name="expert-ids",
    suffixes=(".npy", ".npz"),
    holds="arrays of NumPy: ids [tokens, layers, K], with `user` and `mask`",
    read=read,
)
