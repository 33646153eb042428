"""Ways to spoil a valid file: its values, its arrays, its bytes. The same state of chance spoils it in the same way."""

import gzip
import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e-300, 1e300, -1e300, 1.7e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", "x", "0", "1e999", "nan", "x" * 5000, "a\nb", "\x00", "\ud800", "é/../", [],
    {}, [[]], [3, []], [None], [1, 2.5], ["a"], [[1], [2, 3]], {"a": 1}, {"": {}}, {"format": 1}, list(range(300)),
    [[0.0] * 40] * 40, {str(i): i for i in range(50)},
]  # fmt: skip
"""What stands in for any value of a document."""
DTYPES = (
    "?", "i1", "u1", "<i2", ">i4", "<i8", "<u8", "<f2", "<f4", ">f8", "<c8", "<U3", "S2", "M8[D]", "O", "i4,f8", "V3",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 127, 2**31, 2**62, 0.5, 1e-300, 1e300, 1.7e308, float("nan"), float("inf"), float("-inf"))
SHAPES = ((2**40,), (2**20, 2**20), (2**62, 2**62), (0, 2**63), (10**9, 1), (-1,), (-1, 3), (True,), (1,) * 40)
"""What the header of an array claims."""
LITERALS = (
    "0", "-1", "1e300", "1.7e308", "nan", "inf", "-inf", "true", '""', '"x"', "[]", "[1, 2]", '["a", []]', "{}", "{ name = 1 }",
    "1" * 400, "10" + "0" * 30, "2000-01-01", "07:00:00", "'''a\nb'''", "[[[[[[1]]]]]]", "[1, 1.5, 'a']", '"\\u0000"',
    "9223372036854775807", "1_000_000_000_000", '"no/such/file.npz"',
)  # fmt: skip
"""What stands in for any value of a TOML file."""
NUMBER = re.compile(rb"[-+]?[0-9]+(?:[.,][0-9]+)?")
IN_TEXT = (
    b"0", b"0", b"0.0", b"-0", b"1", b"-1", b"0.5", b"1e300", b"-1e300", b"1.7e308", b"1e-300", b"1e999", b"nan", b"inf", b"-inf", b"",
    b"x", b"2147483648", b"9223372036854775808", b"1" + b"0" * 400,
)  # fmt: skip
"""What stands in for any number of a table or another text; sizes and counts are as often 0."""


def spoilt(rng: Random, name: str, data: bytes) -> bytes:
    """Return the bytes of a valid file, spoilt in one way or several; the suffix of its name says in which."""
    suffix = PurePath(name).suffix
    if suffix in _BY_SUFFIX and rng.randrange(5):
        return _BY_SUFFIX[suffix](rng, data)
    if suffix == ".gz" and rng.random() < 0.5:
        return gzip.compress(_bytes(rng, gzip.decompress(data)), mtime=0)
    return _bytes(rng, data)


# --- documents ---------------------------------------------------------------------------------------------------


def _document(rng: Random, document: Any) -> Any:
    for _ in range(rng.randint(1, 2)):
        document = _edited(rng, document)
    return document


def _edited(rng: Random, value: Any) -> Any:
    """Change something at or below a value."""
    if isinstance(value, dict) and value and rng.randrange(10):
        key = rng.choice(sorted(value))
        how = rng.choice(("below", "below", "below", "delete", "rename", "swap"))
        if how == "below":
            return value | {key: _edited(rng, value[key])}
        if how == "swap":
            other = rng.choice(sorted(value))
            return value | {key: value[other], other: value[key]}
        rest = {name: entry for name, entry in value.items() if name != key}
        return rest if how == "delete" else rest | {rng.choice(("", "x", "kind", key + "s")): value[key]}
    if isinstance(value, list) and value and rng.randrange(10):
        at = rng.randrange(len(value))
        how = rng.choice(("below", "below", "delete", "double", "all"))
        if how == "all":
            return [rng.choice(VALUES)] * len(value)
        return [
            *value[:at],
            *{"below": [_edited(rng, value[at])], "delete": [], "double": [value[at]] * 2}[how],
            *value[at + 1 :],
        ]
    how = rng.choice(("other", "other", "other", "none", "text", "list", "deep"))
    if how == "none":  # the least there is of its kind: a size or a count of 0
        return 0 if value is None else type(value)()
    if how == "deep":
        for _ in range(rng.choice((3, 40, 99, 300))):
            value = [value]
        return value
    return {"other": rng.choice(VALUES), "text": str(value), "list": [value]}[how]


def _json(rng: Random, data: bytes) -> bytes:
    try:
        document = json.loads(data)
    except ValueError:  # spoilt before, as an array
        return _bytes(rng, data)
    return json.dumps(_document(rng, document)).encode("utf-8", "surrogatepass")


def _lines(rng: Random, data: bytes) -> bytes:
    """Spoil one line, a document of its own."""
    lines = data.splitlines() or [b""]
    at = rng.randrange(len(lines))
    lines[at] = _json(rng, lines[at])
    return b"\n".join(lines)


def _text(rng: Random, data: bytes) -> bytes:
    """Put other numbers into a text."""
    for _ in range(rng.randint(1, 3)):
        if not (found := list(NUMBER.finditer(data))):
            break
        number = rng.choice(found)
        data = data[: number.start()] + rng.choice(IN_TEXT) + data[number.end() :]
    return data


def _toml(rng: Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        how = rng.choice(("value", "value", "value", "delete", "double", "key"))
        name, equals, _ = lines[at].partition("=")
        if how == "value" and equals:
            lines[at] = f"{name}= {rng.choice(LITERALS)}"
        elif how == "key" and equals:
            lines[at] = f"{rng.choice(('x', 'name', 'a.b', 'seed'))} ={lines[at].partition('=')[2]}"
        elif how == "double":
            lines.insert(at, lines[at])
        else:
            del lines[at : at + 1]
            lines = lines or [""]
    return "\n".join(lines).encode()


# --- arrays ------------------------------------------------------------------------------------------------------


def _array(rng: Random, array: np.ndarray) -> np.ndarray:
    array = np.atleast_1d(array)
    how = rng.choice(("dtype", "shape", "values", "values", "text"))
    if how == "text" and array.dtype == np.uint8 and array.ndim == 1:  # a document inside
        return np.frombuffer(_json(rng, array.tobytes()), np.uint8)
    if how == "dtype":
        dtype = np.dtype(rng.choice(DTYPES))
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            plain = dtype.names is None and not {dtype.kind, array.dtype.kind} & set("MV")  # dates fit no short text
            try:
                return array.astype(dtype) if plain else np.zeros(array.shape, dtype)
            except ValueError:  # a text that is no number
                return np.zeros(array.shape, dtype)
    if how == "shape":
        return rng.choice(
            (array[None], array.ravel(), array.T, array[:0], array[:1], array[..., None], np.asarray(array.flat[0] if array.size else 0),
             np.concatenate([array, array]) if array.ndim else array, np.zeros((0, 3)), np.zeros(3), np.ones((2, 2, 2), bool))
        )  # fmt: skip
    changed = np.array(array)
    if array.size:
        number = rng.choice(NUMBERS)
        if array.dtype.kind in "iu" and rng.randrange(5) == 0:  # sizes and counts of 0
            return np.zeros_like(array)
        with np.errstate(all="ignore"):
            fits = array.dtype.kind == "f" or (
                array.dtype.kind in "iu" and np.iinfo(array.dtype).min <= number <= np.iinfo(array.dtype).max
            )
            if fits and not np.isnan(number):
                changed.flat[rng.randrange(array.size)] = number
            elif array.dtype.kind == "f":
                changed.flat[0] = number
            elif array.dtype.kind in "biufc":
                changed.flat[0] = 0
            else:  # texts, dates, records
                return np.zeros_like(array)
    return changed


def _arrays(rng: Random, arrays: Arrays) -> Arrays:
    for _ in range(rng.randint(1, 2)):
        if not arrays:
            break
        name = rng.choice(sorted(arrays))
        how = rng.choice(("below", "below", "below", "below", "delete", "rename", "swap"))
        if how == "below":
            arrays = arrays | {name: _array(rng, arrays[name])}
        elif how == "swap":
            other = rng.choice(sorted(arrays))
            arrays = arrays | {name: arrays[other], other: arrays[name]}
        else:
            changed = {key: array for key, array in arrays.items() if key != name}
            arrays = changed if how == "delete" else changed | {f"{name}x": arrays[name]}
    return arrays


def _npz(rng: Random, data: bytes) -> bytes:
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    header = arrays.get("header")
    if header is not None and rng.random() < 0.5:
        arrays["header"] = np.frombuffer(_json(rng, header.tobytes()), np.uint8)
    else:
        arrays = _arrays(rng, arrays)
    file_ = io.BytesIO()
    with zipfile.ZipFile(file_, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in arrays.items():
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy"), _written(rng, array), archive.compression
            )  # without the time
    return file_.getvalue()


def _npy(rng: Random, data: bytes) -> bytes:
    return _written(rng, _array(rng, np.load(io.BytesIO(data))))


def _written(rng: Random, array: np.ndarray) -> bytes:
    """Write an array; now and then its header says that there is more."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    if rng.randrange(10):
        return file.getvalue()
    claimed = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | {"shape": rng.choice(SHAPES)}
    np.lib.format.write_array_header_1_0(claimed, header)
    return claimed.getvalue() + array.tobytes()


def _safetensors(rng: Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, content = json.loads(data[8 : 8 + length]), data[8 + length :]
    ours = "edgeopt" in header.get("__metadata__", {})  # those of others have no document inside
    how = rng.choice(("document", "document", "arrays", "header") if ours else ("arrays", "header"))
    if how == "header":
        return _with_header(_json(rng, data[8 : 8 + length]), content)
    if how == "document":
        inner = header["__metadata__"]
        text = _json(rng, inner["edgeopt"].encode()).decode("utf-8", "replace")
        return _with_header(json.dumps(header | {"__metadata__": inner | {"edgeopt": text}}).encode(), content)
    from safetensors import numpy

    meta = header.pop("__metadata__")
    arrays = {name: array for name, array in _arrays(rng, numpy.load(data)).items() if array.dtype.kind in "biuf"}
    return numpy.save({name: np.asarray(a, a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()}, meta)


def _with_header(header: bytes, content: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def _png(rng: Random, data: bytes) -> bytes:
    """Spoil one chunk of a picture, or another size of it, under a checksum that is right."""
    chunks, at = [], 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    if kind == b"IHDR" and rng.random() < 0.5:
        content = struct.pack(">II", *(rng.choice((0, 1, 9, 2**16, 2**31 - 1)) for _ in range(2))) + content[8:]
    elif kind == b"IDAT" and rng.random() < 0.5:
        content = zlib.compress(_bytes(rng, zlib.decompress(content)))
    else:
        content = _bytes(rng, content)
    chunks[number] = kind, content
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


# --- bytes -------------------------------------------------------------------------------------------------------


def _bytes(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, len(changed)))
        how = rng.choice(("cut", "flip", "flip", "insert", "fill", "drop"))
        if how == "cut":
            del changed[at:]
        elif how == "flip" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == "insert":
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        elif how == "fill":
            changed[at : at + 8] = rng.choice((b"\xff", b"\x00", b"[", b'"')) * len(changed[at : at + 8])
        else:
            del changed[at : at + rng.randint(1, 16)]
    return bytes(changed)


_BY_SUFFIX: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": _json, ".geojson": _json, ".jsonl": _lines, ".npz": _npz, ".npy": _npy, ".png": _png, ".safetensors": _safetensors, ".toml": _toml,
    ".csv": _text, ".tsv": _text, ".up": _text, ".log": _text, ".graphml": _text,
}  # fmt: skip
