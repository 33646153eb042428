"""Reading and writing data files: JSON, or NPZ with a JSON header. Files from others are data, never code.

Nothing is unpickled, sizes are checked before memory is taken, and a file appears under its name only when it is whole.
"""

import contextlib
import json
import math
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError
from edgeopt.locks import try_lock

Arrays = dict[str, NDArray[Any]]

MAX_BYTES = 8 << 30  # refuse files whose contents would take more memory than this
_HEADER = "header"
_PARTIAL = ".part"
_FOREIGN = 0x1 | 0x20 | 0x40  # flags of a zip member: encrypted, patched, strongly encrypted
_BAD_ZIP = (  # what `zipfile` raises on damaged archives
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, RuntimeError, ValueError,
)  # fmt: skip


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


def save(path: str | os.PathLike[str], header: dict[str, Any], arrays: Arrays) -> None:
    """Write a header and named arrays to `path`, ``.json`` or ``.npz`` by its suffix, atomically."""
    suffix = Path(path).suffix
    if suffix == ".json":
        document = header | {"arrays": {name: _to_lists(array) for name, array in arrays.items()}}
        write_text(path, json.dumps(document, allow_nan=False) + "\n")
    elif suffix == ".npz":
        packed = np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)
        write_atomic(path, lambda file: write_arrays(file, {_HEADER: packed} | arrays))
    else:
        raise InvalidFileError(f"{path}: expected a name that ends in .json or .npz")


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Arrays]:
    """Read what `save` wrote.

    Raises
    ------
    InvalidFileError
        If the file is corrupt, truncated, too large, holds objects, or is neither JSON nor NPZ.
    """
    suffix = Path(path).suffix
    if suffix == ".json":
        document = read_json(path)
        arrays = document.pop("arrays", None)
        if not isinstance(arrays, dict):
            raise InvalidFileError(f"{path}: arrays: expected an object of arrays, got {type(arrays).__name__}")
        return document, {name: _from_lists(path, name, value) for name, value in arrays.items()}
    if suffix == ".npz":
        arrays = read_arrays(path)
        if _HEADER not in arrays:
            raise InvalidFileError(f"{path}: no array {_HEADER!r}: not a file written by edgeopt")
        return parse_json_object(path, arrays.pop(_HEADER)), arrays
    raise InvalidFileError(f"{path}: expected a name that ends in .json or .npz")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object from a file."""
    if (size := os.stat(path).st_size) > MAX_BYTES // 8:  # a parsed number takes several times its text
        raise InvalidFileError(f"{path}: {size} bytes of JSON, expected at most {MAX_BYTES // 8}; use .npz")
    return parse_json_object(path, Path(path).read_bytes())


def parse_json_object(path: str | os.PathLike[str], data: bytes | NDArray[Any]) -> dict[str, Any]:
    """Parse the bytes of a JSON object that was read from `path`."""
    try:
        document = json.loads(bytes(data))
    except (ValueError, RecursionError, TypeError) as error:
        raise InvalidFileError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidFileError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def write_arrays(file: BinaryIO, arrays: Arrays) -> None:
    """Write plain arrays to an open file as a compressed ``.npz``; the same arrays give the same bytes.

    `numpy.savez_compressed` can refuse objects only since NumPy 2.2, and takes some names for options of its own.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), version=(1, 0), allow_pickle=False)


def read_arrays(path: str | os.PathLike[str]) -> Arrays:
    """Read the plain arrays of an ``.npz`` file, checking every declared size first."""
    with open(path, "rb") as file:  # outside: a missing file is an OSError, a seek to nowhere is a bad file
        try:
            with zipfile.ZipFile(file) as archive:
                return _read_members(path, archive)
        except InvalidFileError:
            raise
        except _BAD_ZIP as error:
            raise InvalidFileError(f"{path}: not a readable .npz file: {error}") from None


def _read_members(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> Arrays:
    members = archive.infolist()
    if (total := sum(member.file_size for member in members)) > MAX_BYTES:
        raise InvalidFileError(f"{path}: arrays of {total} bytes, expected at most {MAX_BYTES}")
    arrays: Arrays = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & _FOREIGN:
            raise InvalidFileError(
                f"{path}: {name}: expected plain or deflated data, not encrypted or packed otherwise"
            )
        if name in arrays:
            raise InvalidFileError(f"{path}: {name}: the array is there twice")
        with archive.open(member) as file:
            shape, fortran, dtype = _read_array_header(path, name, file)
            size = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or file.tell() + size != member.file_size:  # before the memory is taken
                raise InvalidFileError(f"{path}: {name}: shape {shape} does not fit {member.file_size} bytes")
            if len(data := file.read(size)) != size:
                raise InvalidFileError(f"{path}: {name}: {len(data)} bytes of data, expected {size}")
        array = np.frombuffer(data, dtype)
        arrays[name] = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    return arrays


def _read_array_header(
    path: str | os.PathLike[str], name: str, file: IO[bytes]
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        if (version := np.lib.format.read_magic(file)) != (1, 0):  # later versions allow headers of gigabytes
            raise ValueError(f"version {version}, expected (1, 0)")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # noqa: BLE001 - on hostile text NumPy's parser raises half a dozen kinds
        raise InvalidFileError(f"{path}: {name}: not a plain array: {' '.join(str(error).split())[:200]}") from None
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InvalidFileError(f"{path}: {name}: expected numbers, got dtype {dtype}")
    return shape, fortran, dtype


def _to_lists(array: NDArray[Any]) -> Any:
    if array.dtype.kind == "f" and not np.isfinite(array).all():  # JSON has no infinity
        return np.where(np.isfinite(array), array.astype(object), array.astype(str).astype(object)).tolist()
    return array.tolist()


def _from_lists(path: str | os.PathLike[str], name: str, value: Any) -> NDArray[Any]:
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
