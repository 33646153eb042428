"""Names and shapes of the tensors in a GGUF file, from its header alone; versions 2 and 3, little-endian.

Layout: magic, version, numbers of tensors and of pairs; the pairs, each a key, a type and a value; then of each tensor name,
dimensions, type and offset. Texts have their length before them. After llama.cpp's description of the format.
"""

import io
import os
import struct
from pathlib import Path

from edgeopt.errors import InvalidFileError
from edgeopt.files import open_file

Shapes = dict[str, tuple[int, ...]]

_MAGIC = b"GGUF"
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a value, by its type
_TEXT, _ARRAY = 8, 9
_DEPTH = 4  # of arrays inside arrays
_LONGEST = 1 << 16  # of a name, in bytes
_DIMENSIONS = 8
_MOST_TENSORS = 1 << 20


def gguf_shapes(path: Path) -> Shapes:
    """Return the shape of each tensor as torch has it: the axis that varies slowest first, which is the one of experts.

    Raises
    ------
    InvalidFileError
        If it is no such file, or its header is damaged.
    """
    with io.BufferedReader(open_file(path)) as file:
        reader = _Reader(path, file)
        if reader.take(len(_MAGIC)) != _MAGIC:
            raise InvalidFileError(f"{path}: not a GGUF file: expected it to start with {_MAGIC.decode()}")
        if (version := reader.number("<I")) not in (2, 3):
            raise InvalidFileError(f"{path}: version {version} of GGUF: expected 2 or 3")
        tensors, pairs = reader.number("<Q"), reader.number("<Q")
        if max(tensors, pairs) > _MOST_TENSORS:
            raise reader.wrong(f"{tensors} tensors and {pairs} pairs, expected at most {_MOST_TENSORS}")
        for _ in range(pairs):
            reader.skip(reader.number("<Q"))
            reader.skip_value(reader.number("<I"), _DEPTH)
        shapes: Shapes = {}
        for _ in range(tensors):
            name = reader.name()
            if (axes := reader.number("<I")) > _DIMENSIONS:
                raise reader.wrong(f"a tensor with {axes} dimensions, expected at most {_DIMENSIONS}")
            shapes[name] = tuple(reader.number("<Q") for _ in range(axes))[::-1]
            reader.skip(4 + 8)  # type, offset
    return shapes


class _Reader:
    """Takes values out of a file, none of them from beyond its end."""

    def __init__(self, path: Path, file: "io.BufferedReader[io.FileIO]") -> None:
        self._path, self._file = path, file
        self._left = os.fstat(file.fileno()).st_size

    def wrong(self, what: str) -> InvalidFileError:
        return InvalidFileError(f"{self._path}: damaged header: {what}")

    def _reserve(self, count: int) -> None:
        if count > self._left:
            raise self.wrong(f"it ends {count - self._left} bytes too early")
        self._left -= count

    def take(self, count: int) -> bytes:
        self._reserve(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._reserve(count)
        self._file.seek(count, os.SEEK_CUR)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def name(self) -> str:
        if (length := self.number("<Q")) > _LONGEST:
            raise self.wrong(f"a name of {length} bytes, expected at most {_LONGEST}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.wrong("a name that is not UTF-8") from None

    def skip_value(self, kind: int, depth: int) -> None:
        if kind in _BYTES:
            self.skip(_BYTES[kind])
        elif kind == _TEXT:
            self.skip(self.number("<Q"))
        elif kind == _ARRAY and depth:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _BYTES:
                self.skip(count * _BYTES[inner])
                return
            self._reserve(8 * count if inner == _TEXT else 12 * count)  # they have at least their lengths
            self._left += 8 * count if inner == _TEXT else 12 * count
            for _ in range(count):
                self.skip_value(inner, depth - 1)
        else:
            raise self.wrong(f"a value of type {kind}, expected 0 to 12")
