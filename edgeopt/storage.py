"""Reading and writing data files: JSON, or NPZ with a JSON header. Files from others are data, never code.

Nothing is unpickled, sizes are checked before memory is taken, and a file appears under its name only when it is whole.
"""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.fields import in_file
from edgeopt.files import open_file
from edgeopt.json_text import fits, parse_json_object
from edgeopt.locks import try_lock
from edgeopt.npz import Arrays, Form, Layout, open_archive, write_arrays

__all__ = [
    "Arrays", "Layout", "LayoutOf", "dumps", "known", "load", "parse_json_object", "plain", "read_arrays", "read_json", "save",
    "write_arrays", "write_atomic", "write_text",
]  # fmt: skip

LayoutOf = Callable[[dict[str, Any]], Layout]
"""What says from the header of a file which arrays it may hold."""

MAX_BYTES = 8 << 30  # refuse files whose contents would take more memory than this
_HEADER = "header"
_PARTIAL = ".part"


def write_atomic(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then put it in place; on any error `path` is as before.

    Links are followed. Pipes and devices are written through: they must not be replaced by a file.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb") as device:
                write(device)
        else:
            _write_beside(path.resolve(), write)
    except OSError as error:  # a full disk does not say for which file
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def _write_beside(path: Path, write: Callable[[BinaryIO], object]) -> None:
    file, temporary = _open_partial(path)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # under its lock, which tells `open_folder` that the file is no leftover
                _put(temporary, path)
        if os.name == "nt":  # there, an open file can be neither moved nor taken for a leftover
            _put(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _open_partial(path: Path) -> tuple[BinaryIO, str]:
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
        file = os.fdopen(handle, "wb")
        if os.name == "nt":
            return file, temporary
        try_lock(file)
        if os.fstat(handle).st_nlink:
            return file, temporary
        file.close()  # it was taken for a leftover before it was locked


def _put(temporary: str, path: Path) -> None:
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)


def open_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder if it is not there, and remove what killed processes have left half written in it."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "nt":
        for leftover in folder.glob(f".*.????????{_PARTIAL}"):
            with contextlib.suppress(OSError):  # another has just removed or finished it, or it is not ours to remove
                if leftover.is_file():
                    with open(leftover, "r+b") as file:
                        if try_lock(file):  # nobody writes it
                            leftover.unlink()
    return folder


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically; what UTF-8 cannot hold, such as bytes of a strange file name, is escaped."""
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def plain(value: Any) -> Any:
    """Return the value made of JSON types only: arrays become lists, numbers that are not finite become None.

    Examples
    --------
    >>> plain({"gap": float("inf"), "cached": np.arange(2), "bound": np.float64(1.5)})
    {'gap': None, 'cached': [0, 1], 'bound': 1.5}
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return str(value)


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return JSON text without NaN or infinity."""
    return json.dumps(plain(value), allow_nan=False, indent=indent)


def save(path: str | os.PathLike[str], header: dict[str, Any], arrays: Arrays) -> None:
    """Write a header and named arrays to `path`, ``.json`` or ``.npz`` by its suffix, atomically."""
    suffix = Path(path).suffix
    if suffix == ".json":
        document = header | {"arrays": {name: _to_lists(array) for name, array in arrays.items()}}
        text = f"{json.dumps(document, allow_nan=False)}\n".encode()
        if not fits(text):
            raise InvalidFileError(f"{path}: too many numbers for JSON: expected a name that ends in .npz")
        write_atomic(path, lambda file: file.write(text))
    elif suffix == ".npz":
        packed = np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)
        write_atomic(path, lambda file: write_arrays(file, {_HEADER: packed} | arrays))
    else:
        raise InvalidFileError(f"{path}: expected a name that ends in .json or .npz")


def load(path: str | os.PathLike[str], layout: LayoutOf | None = None) -> tuple[dict[str, Any], Arrays]:
    """Read what `save` wrote.

    Parameters
    ----------
    layout : says from the header which arrays the file may hold; others are refused before any array is read.
        Default: those that there are.

    Raises
    ------
    InvalidFileError
        If the file is corrupt, truncated, too large, holds objects or arrays that are not in the layout, or is neither
        JSON nor NPZ.
    """
    suffix = Path(path).suffix
    if suffix == ".json":
        document = read_json(path)
        lists = document.pop("arrays", None)
        if not isinstance(lists, dict):
            raise InvalidFileError(f"{path}: arrays: expected an object of arrays, got {type(lists).__name__}")
        wanted = _wanted(path, layout, document, lists)
        return document, {name: _from_lists(path, name, value, wanted[name]) for name, value in lists.items()}
    if suffix == ".npz":
        with open_archive(path, MAX_BYTES) as archive:
            if _HEADER not in archive.names:
                raise InvalidFileError(f"{path}: no array {quoted(_HEADER)}: not a file written by edgeopt")
            header = parse_json_object(path, archive.read({_HEADER: Form("u", (1,))})[_HEADER].tobytes())
            return header, archive.read(_wanted(path, layout, header, [n for n in archive.names if n != _HEADER]))
    raise InvalidFileError(f"{path}: expected a name that ends in .json or .npz")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object from a file."""
    with open_file(path) as file:
        size, most = os.fstat(file.fileno()).st_size, MAX_BYTES // 8  # a parsed number takes several times its text
        if size > most:
            raise InvalidFileError(f"{path}: {size} bytes of JSON, expected at most {most}; use .npz")
        return parse_json_object(path, file.read(size))


def read_arrays(path: str | os.PathLike[str], layout: Layout | None = None) -> Arrays:
    """Read those plain arrays of an ``.npz`` file that are in the layout, by default all."""
    with open_archive(path, MAX_BYTES) as archive:
        return archive.read(dict.fromkeys(archive.names, Form()) if layout is None else layout)


def known(path: str | os.PathLike[str], names: Iterable[str], layout: Layout) -> Layout:
    """Return the layout; refuse arrays that it does not have."""
    if unknown := sorted(set(names) - set(layout)):
        expected = quoted(", ".join(layout))[1:-1]
        raise InvalidFileError(f"{path}: {quoted(unknown[0])}: unknown array, expected {expected}")
    return layout


def _wanted(
    path: str | os.PathLike[str], layout: LayoutOf | None, header: dict[str, Any], names: Collection[str]
) -> Layout:
    if layout is None:
        return dict.fromkeys(names, Form())
    with in_file(path):
        return known(path, names, layout(header))


def _to_lists(array: NDArray[Any]) -> Any:
    if array.dtype.kind == "f" and not np.isfinite(array).all():  # JSON has no infinity
        return np.where(np.isfinite(array), array.astype(object), array.astype(str).astype(object)).tolist()
    return array.tolist()


def _from_lists(path: str | os.PathLike[str], name: str, value: Any, form: Form) -> NDArray[Any]:
    try:
        types = _leaf_types(value)
        if not types <= {bool, int, float, str}:
            raise TypeError(f"found {', '.join(sorted(kind.__name__ for kind in types))}")
        # infinities are strings: read as numbers at once, since an array of strings is as wide as its longest
        array = np.array(value, np.float64 if str in types else None)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidFileError(f"{path}: {name}: not a rectangular array of numbers: {str(error)[:200]}") from None
    if array.dtype.kind not in "biuf":
        raise InvalidFileError(f"{path}: {name}: expected numbers, got {array.dtype}")
    form.check(path, name, array.dtype, array.shape)
    return array


def _leaf_types(value: Any) -> set[type]:
    if not isinstance(value, list):
        return {type(value)}
    types: set[type] = set(map(type, value))
    if list in types:
        types = (types - {list}).union(*(_leaf_types(item) for item in value if isinstance(item, list)))
    return types


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
