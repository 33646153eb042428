"""NPZ archives: arrays as NumPy writes them, read so that a file of others costs no more than it may.

Every size is known before memory is taken: first the directory, then the headers of the arrays that are wanted, then
their contents. Other arrays are not unpacked at all.
"""

import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.files import open_file

Arrays = dict[str, NDArray[Any]]

FREE_NUMBERS = 5 << 20
"""Numbers that any archive may hold, however small its file."""
NUMBERS_PER_BYTE = 4
"""Numbers beyond those that an archive may hold for each byte of its file; `write_arrays` keeps to it."""
_MAX_DIRECTORY = 1 << 20  # bytes of the directory: some ten thousand arrays
_FOREIGN = 0x1 | 0x20 | 0x40  # flags of a zip member: encrypted, patched, strongly encrypted
_BAD_ZIP = (  # what `zipfile` raises on damaged archives
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, RuntimeError, ValueError,
)  # fmt: skip
_KINDS = {"b": "booleans", "iu": "integers", "u": "bytes", "fiu": "numbers", "biuf": "numbers or booleans"}


class Form(NamedTuple):
    """What an array of a file has to be: kinds of its numbers, as in ``dtype.kind``, and numbers of its dimensions."""

    kinds: str = "biuf"
    dimensions: tuple[int, ...] | None = None

    def check(self, path: str | os.PathLike[str], name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Raise `InvalidFileError` unless an array is like this; a single number may stand for a whole array."""
        if dtype.kind not in self.kinds and 0 not in shape:
            raise InvalidFileError(f"{path}: {name}: expected {_KINDS.get(self.kinds, self.kinds)}, got {dtype}")
        if self.dimensions is not None and len(shape) not in (0, *self.dimensions) and 0 not in shape:
            wanted = " or ".join(map(str, self.dimensions))
            raise InvalidFileError(f"{path}: {name}: expected {wanted} dimensions, got shape {quoted(list(shape))}")


def flags(*dimensions: int) -> Form:
    """Return the form of an array of truth values with so many dimensions."""
    return Form("b", dimensions)


def numbers(*dimensions: int) -> Form:
    """Return the form of an array of numbers with so many dimensions, by default any; the reader finds out more."""
    return Form("fiu", dimensions or None)


Layout = Mapping[str, Form]
"""The arrays that a kind of file may hold, by name."""


class Archive:
    """The members of an open archive by the names of their arrays."""

    def __init__(self, path: str | os.PathLike[str], archive: zipfile.ZipFile, size: int, most_bytes: int) -> None:
        self._path, self._archive, self._size, self._most_bytes = path, archive, size, most_bytes
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise InvalidFileError(f"{path}: {name}: the array is there twice")
            self._members[name] = member

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays that there are."""
        return tuple(self._members)

    def read(self, layout: Layout) -> Arrays:
        """Return those arrays that are there and in the layout."""
        path = self._path
        members = {name: member for name, member in self._members.items() if name in layout}
        if (total := sum(member.file_size for member in members.values())) > self._most_bytes:
            raise InvalidFileError(f"{path}: arrays of {total} bytes, expected at most {self._most_bytes}")
        declared = {name: self._declared(name, member) for name, member in members.items()}
        for name, found in declared.items():
            layout[name].check(path, name, found.dtype, found.shape)
        count = sum(math.prod(found.shape) for found in declared.values())
        if count > (most := _most_numbers(self._size)):
            raise InvalidFileError(
                f"{path}: arrays of {count} numbers in a file of {self._size} bytes, expected at most {most}"
            )
        return {name: self._content(name, members[name], found) for name, found in declared.items()}

    def _declared(self, name: str, member: zipfile.ZipInfo) -> "_Declared":
        path = self._path
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & _FOREIGN:
            raise InvalidFileError(
                f"{path}: {name}: expected plain or deflated data, not encrypted or packed otherwise"
            )
        with self._archive.open(member) as file:
            shape, fortran, dtype = read_array_header(f"{path}: {name}", file)
            start = file.tell()
        if min(shape, default=0) < 0 or start + math.prod(shape) * dtype.itemsize != member.file_size:
            raise InvalidFileError(f"{path}: {name}: shape {quoted(shape)} does not fit {member.file_size} bytes")
        return _Declared(shape, fortran, dtype, start)

    def _content(self, name: str, member: zipfile.ZipInfo, declared: "_Declared") -> NDArray[Any]:
        size = math.prod(declared.shape) * declared.dtype.itemsize
        with self._archive.open(member) as file:
            file.read(declared.start)
            if len(data := file.read(size)) != size:
                raise InvalidFileError(f"{self._path}: {name}: {len(data)} bytes of data, expected {size}")
        return shaped(f"{self._path}: {name}", data, declared.shape, declared.fortran, declared.dtype)


@dataclass(frozen=True, slots=True)
class _Declared:
    """What the header of an array says, and where its content starts."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


class _Reader(io.BufferedReader):
    """A file of which little is read at once, as long as a directory is being read."""

    in_directory = True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `io.BufferedReader` does."""
        if not self.in_directory:
            return super().read(size)
        data = super().read(_MAX_DIRECTORY + 1 if size is None or size < 0 else min(size, _MAX_DIRECTORY + 1))
        if len(data) > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of more than {_MAX_DIRECTORY} bytes")
        return data


@contextmanager
def open_archive(path: str | os.PathLike[str], most_bytes: int) -> Iterator[Archive]:
    """Open an archive whose arrays take at most `most_bytes`.

    Raises
    ------
    InvalidFileError
        If it is none, or damaged; also for whatever goes wrong inside the block.
    """
    with _Reader(open_file(path)) as file:  # outside: a missing file is an OSError, a seek to nowhere is a bad file
        try:
            with zipfile.ZipFile(file) as archive:
                file.in_directory = False
                yield Archive(path, archive, os.fstat(file.fileno()).st_size, most_bytes)
        except InvalidFileError:
            raise
        except _BAD_ZIP as error:
            raise InvalidFileError(f"{path}: not a readable .npz file: {quoted(str(error))[1:-1]}") from None


def write_arrays(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write plain arrays to an open file as an ``.npz``; the same arrays give the same bytes.

    They are compressed, unless so well that the file could not be told from one that is made to fill the memory.
    `numpy.savez_compressed` can refuse objects only since NumPy 2.2, and takes some names for options of its own.
    """
    count = sum(np.asanyarray(array).size for array in arrays.values())
    if count > FREE_NUMBERS and not file.seekable():
        _write_archive(file, arrays, zipfile.ZIP_STORED)
        return
    start = file.tell() if file.seekable() else 0
    _write_archive(file, arrays, zipfile.ZIP_DEFLATED)
    if count > FREE_NUMBERS and count > _most_numbers(file.tell() - start):
        file.seek(start)
        file.truncate()
        _write_archive(file, arrays, zipfile.ZIP_STORED)


def _most_numbers(size: int) -> int:
    return max(FREE_NUMBERS, NUMBERS_PER_BYTE * size)


def _write_archive(file: BinaryIO, arrays: Mapping[str, NDArray[Any]], compression: int) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), version=(1, 0), allow_pickle=False)


def read_array_header(where: str, file: IO[bytes] | io.RawIOBase) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return what the header of an array in the format of NumPy says: shape, whether in Fortran's order, and type.

    Raises
    ------
    InvalidFileError
        If it is none, or of anything but booleans and numbers; the message starts with `where`.
    """
    try:
        if (version := np.lib.format.read_magic(file)) != (1, 0):  # later versions allow headers of gigabytes
            raise ValueError(f"version {version}, expected (1, 0)")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # noqa: BLE001 - on hostile text NumPy's parser raises half a dozen kinds
        raise InvalidFileError(f"{where}: not a plain array: {quoted(str(error))[1:-1]}") from None
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InvalidFileError(f"{where}: expected numbers, got dtype {dtype}")
    return shape, fortran, dtype


def shaped(where: str, data: bytes, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array of bytes that are as many as its shape says.

    Raises
    ------
    InvalidFileError
        If NumPy has no such shape: truth values, too many dimensions, or too long ones beside one of 0.
    """
    array = np.frombuffer(data, dtype)
    try:
        return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    except (TypeError, ValueError, OverflowError):
        raise InvalidFileError(f"{where}: shape {quoted(shape)} does not fit an array") from None
