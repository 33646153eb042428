"""Ways to spoil a valid file: its values, its arrays, its bytes. Chance is drawn from hypothesis, which shrinks failures."""

import gzip
import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Arrays = dict[str, np.ndarray]

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e-300, 1e300, -1e300, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", "x", "0", "1e999", "nan", "x" * 5000, "a\nb", "\x00", "\ud800", "é/../", [],
    {}, [[]], [3, []], [None], [1, 2.5], ["a"], [[1], [2, 3]], {"a": 1}, {"": {}}, {"format": 1}, list(range(300)),
    [[0.0] * 40] * 40, {str(i): i for i in range(50)},
]  # fmt: skip
"""What stands in for any value of a document."""
DTYPES = (
    "?", "i1", "u1", "<i2", ">i4", "<i8", "<u8", "<f2", "<f4", ">f8", "<c8", "<U3", "S2", "M8[D]", "O", "i4,f8", "V3",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 127, 2**31, 2**62, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
LITERALS = (
    "0", "-1", "1e300", "nan", "inf", "-inf", "true", '""', '"x"', "[]", "[1, 2]", '["a", []]', "{}", "{ name = 1 }",
    "1" * 400, "10" + "0" * 30, "2000-01-01", "07:00:00", "'''a\nb'''", "[[[[[[1]]]]]]", "[1, 1.5, 'a']", '"\\u0000"',
    "9223372036854775807", "1_000_000_000_000", '"no/such/file.npz"',
)  # fmt: skip
"""What stands in for any value of a TOML file."""
NUMBER = re.compile(rb"[-+]?[0-9]+(?:[.,][0-9]+)?")
IN_TEXT = (
    b"0", b"0", b"0.0", b"-0", b"1", b"-1", b"0.5", b"1e300", b"-1e300", b"1e-300", b"1e999", b"nan", b"inf", b"-inf", b"",
    b"x", b"2147483648", b"9223372036854775808", b"1" + b"0" * 400,
)  # fmt: skip
"""What stands in for any number of a table or another text; sizes and counts are as often 0."""


def spoilt(draw: Draw, path: Path) -> bytes:
    """Return the bytes of a valid file, spoilt in one way or several."""
    data = path.read_bytes()
    if path.suffix in _BY_SUFFIX and draw(st.integers(0, 4)):
        return _BY_SUFFIX[path.suffix](draw, data)
    if path.suffix == ".gz" and draw(st.booleans()):
        return gzip.compress(_bytes(draw, gzip.decompress(data)))
    return _bytes(draw, data)


# --- documents ---------------------------------------------------------------------------------------------------


def _document(draw: Draw, document: Any) -> Any:
    for _ in range(draw(st.integers(1, 2))):
        document = _edited(draw, document)
    return document


def _edited(draw: Draw, value: Any) -> Any:
    """Change something at or below a value."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(("below", "below", "below", "delete", "rename", "swap")))
        if how == "below":
            return value | {key: _edited(draw, value[key])}
        if how == "swap":
            other = draw(st.sampled_from(sorted(value)))
            return value | {key: value[other], other: value[key]}
        rest = {name: entry for name, entry in value.items() if name != key}
        return rest if how == "delete" else rest | {draw(st.sampled_from(("", "x", "kind", key + "s"))): value[key]}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        how = draw(st.sampled_from(("below", "below", "delete", "double", "all")))
        if how == "all":
            return [draw(st.sampled_from(VALUES))] * len(value)
        return [
            *value[:at],
            *{"below": [_edited(draw, value[at])], "delete": [], "double": [value[at]] * 2}[how],
            *value[at + 1 :],
        ]
    how = draw(st.sampled_from(("other", "other", "other", "none", "text", "list", "deep")))
    if how == "none":  # the least there is of its kind: a size or a count of 0
        return 0 if value is None else type(value)()
    if how == "deep":
        for _ in range(draw(st.sampled_from((3, 40, 99, 300)))):
            value = [value]
        return value
    return {"other": draw(st.sampled_from(VALUES)), "text": str(value), "list": [value]}[how]


def _json(draw: Draw, data: bytes) -> bytes:
    try:
        document = json.loads(data)
    except ValueError:  # spoilt before, as an array
        return _bytes(draw, data)
    return json.dumps(_document(draw, document)).encode("utf-8", "surrogatepass")


def _lines(draw: Draw, data: bytes) -> bytes:
    """Spoil one line, a document of its own."""
    lines = data.splitlines() or [b""]
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = _json(draw, lines[at])
    return b"\n".join(lines)


def _text(draw: Draw, data: bytes) -> bytes:
    """Put other numbers into a text."""
    for _ in range(draw(st.integers(1, 3))):
        if not (found := list(NUMBER.finditer(data))):
            break
        number = draw(st.sampled_from(found))
        data = data[: number.start()] + draw(st.sampled_from(IN_TEXT)) + data[number.end() :]
    return data


def _toml(draw: Draw, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(("value", "value", "value", "delete", "double", "key")))
        name, equals, _ = lines[at].partition("=")
        if how == "value" and equals:
            lines[at] = f"{name}= {draw(st.sampled_from(LITERALS))}"
        elif how == "key" and equals:
            lines[at] = f"{draw(st.sampled_from(('x', 'name', 'a.b', 'seed')))} ={lines[at].partition('=')[2]}"
        elif how == "double":
            lines.insert(at, lines[at])
        else:
            del lines[at : at + 1]
            lines = lines or [""]
    return "\n".join(lines).encode()


# --- arrays ------------------------------------------------------------------------------------------------------


def _array(draw: Draw, array: np.ndarray) -> np.ndarray:
    array = np.atleast_1d(array)
    how = draw(st.sampled_from(("dtype", "shape", "values", "values", "text")))
    if how == "text" and array.dtype == np.uint8 and array.ndim == 1:  # a document inside
        return np.frombuffer(_json(draw, array.tobytes()), np.uint8)
    if how == "dtype":
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            plain = dtype.names is None and not {dtype.kind, array.dtype.kind} & set("MV")  # dates fit no short text
            try:
                return array.astype(dtype) if plain else np.zeros(array.shape, dtype)
            except ValueError:  # a text that is no number
                return np.zeros(array.shape, dtype)
    if how == "shape":
        return draw(
            st.sampled_from(
                (array[None], array.ravel(), array.T, array[:0], array[:1], array[..., None], np.asarray(array.flat[0] if array.size else 0),
                 np.concatenate([array, array]) if array.ndim else array, np.zeros((0, 3)), np.zeros(3), np.ones((2, 2, 2), bool))
            )
        )  # fmt: skip
    changed = np.array(array)
    if array.size:
        number = draw(st.sampled_from(NUMBERS))
        if array.dtype.kind in "iu" and draw(st.integers(0, 4)) == 0:  # sizes and counts of 0
            return np.zeros_like(array)
        with np.errstate(all="ignore"):
            fits = array.dtype.kind == "f" or (
                array.dtype.kind in "iu" and np.iinfo(array.dtype).min <= number <= np.iinfo(array.dtype).max
            )
            if fits and not np.isnan(number):
                changed.flat[draw(st.integers(0, array.size - 1))] = number
            elif array.dtype.kind == "f":
                changed.flat[0] = number
            else:
                changed.flat[0] = 0
    return changed


def _arrays(draw: Draw, arrays: Arrays) -> Arrays:
    for _ in range(draw(st.integers(1, 2))):
        if not arrays:
            break
        name = draw(st.sampled_from(sorted(arrays)))
        how = draw(st.sampled_from(("below", "below", "below", "below", "delete", "rename", "swap")))
        if how == "below":
            arrays = arrays | {name: _array(draw, arrays[name])}
        elif how == "swap":
            other = draw(st.sampled_from(sorted(arrays)))
            arrays = arrays | {name: arrays[other], other: arrays[name]}
        else:
            changed = {key: array for key, array in arrays.items() if key != name}
            arrays = changed if how == "delete" else changed | {f"{name}x": arrays[name]}
    return arrays


def _npz(draw: Draw, data: bytes) -> bytes:
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    header = arrays.get("header")
    if header is not None and draw(st.booleans()):
        arrays["header"] = np.frombuffer(_json(draw, header.tobytes()), np.uint8)
    else:
        arrays = _arrays(draw, arrays)
    file_ = io.BytesIO()
    with zipfile.ZipFile(file_, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=True)
    return file_.getvalue()


def _safetensors(draw: Draw, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, content = json.loads(data[8 : 8 + length]), data[8 + length :]
    ours = "edgeopt" in header.get("__metadata__", {})  # those of others have no document inside
    how = draw(st.sampled_from(("document", "document", "arrays", "header") if ours else ("arrays", "header")))
    if how == "header":
        return _with_header(_json(draw, data[8 : 8 + length]), content)
    if how == "document":
        inner = header["__metadata__"]
        text = _json(draw, inner["edgeopt"].encode()).decode("utf-8", "replace")
        return _with_header(json.dumps(header | {"__metadata__": inner | {"edgeopt": text}}).encode(), content)
    from safetensors import numpy

    meta = header.pop("__metadata__")
    arrays = {name: array for name, array in _arrays(draw, numpy.load(data)).items() if array.dtype.kind in "biuf"}
    return numpy.save({name: np.asarray(a, a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()}, meta)


def _with_header(header: bytes, content: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + content


# --- bytes -------------------------------------------------------------------------------------------------------


def _bytes(draw: Draw, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        how = draw(st.sampled_from(("cut", "flip", "flip", "insert", "fill", "drop")))
        if how == "cut":
            del changed[at:]
        elif how == "flip" and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif how == "fill":
            changed[at : at + 8] = draw(st.sampled_from((b"\xff", b"\x00", b"[", b'"'))) * len(changed[at : at + 8])
        else:
            del changed[at : at + draw(st.integers(1, 16))]
    return bytes(changed)


_BY_SUFFIX: dict[str, Callable[[Draw, bytes], bytes]] = {
    ".json": _json, ".geojson": _json, ".jsonl": _lines, ".npz": _npz, ".safetensors": _safetensors, ".toml": _toml,
    ".csv": _text, ".tsv": _text, ".up": _text, ".log": _text, ".graphml": _text,
}  # fmt: skip
