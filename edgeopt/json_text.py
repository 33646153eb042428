"""JSON from others: an object whose memory is known to be bounded before it is parsed."""

import json
import os
import re
from typing import Any

from edgeopt.errors import InvalidFileError, quoted

MAX_DEPTH = 100
"""Objects and lists inside each other."""
_FREE_BYTES = 96 << 20  # every document may take this much memory once it is parsed,
_MOST_TIMES = 8  # a larger one so many times its text: numbers of a few digits do not take more
_MEMORY = {
    b",": 32,
    b":": 160,
    b"[": 80,
    b"{": 80,
}  # bytes that what follows takes: a number, a name, a list, an object
_WIDE = 8  # bytes that a character may take, twice four, once there is one beyond ASCII


def memory_of(data: bytes) -> int:
    """Return about how many bytes the parsed text takes, from counting its punctuation.

    Examples
    --------
    >>> memory_of(b'{"a": [1, 2]}')
    352
    """
    text = 0 if data.isascii() else _WIDE * len(data)
    return text + sum(size * data.count(character) for character, size in _MEMORY.items())


def fits(data: bytes) -> bool:
    """Return whether a text is read at all."""
    return memory_of(data) <= max(_FREE_BYTES, _MOST_TIMES * len(data))


def parse_json_object(path: str | os.PathLike[str], data: bytes) -> dict[str, Any]:
    """Parse the bytes of a JSON object that was read from `path`.

    Raises
    ------
    InvalidFileError
        If it is no JSON, no object, nested too deeply, or would take many times the memory of its text.
    """
    if not fits(data):
        raise InvalidFileError(
            f"{path}: {len(data)} bytes of JSON would take {memory_of(data)} bytes of memory,"
            f" expected at most {max(_FREE_BYTES, _MOST_TIMES * len(data))}; use .npz for large arrays"
        )
    has_surrogates = re.search(rb"\\u[dD]", data) is not None
    try:
        text = data.decode("utf-8-sig")
        del data  # of large files there is no room for several copies
        document = json.loads(text, parse_constant=lambda text: _refuse_constant(path, text))
        if has_surrogates:  # half of a surrogate pair is no text: it cannot be written again
            json.dumps(document, ensure_ascii=False).encode()
    except InvalidFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{path}: not valid JSON: {_reason(error)}") from None
    if not isinstance(document, dict):
        raise InvalidFileError(f"{path}: expected a JSON object, got {type(document).__name__}")
    _check_depth(path, document)
    return document


def _check_depth(path: str | os.PathLike[str], document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
        if not level:
            return
    raise InvalidFileError(f"{path}: not valid JSON: expected at most {MAX_DEPTH} objects and lists inside each other")


def _refuse_constant(path: str | os.PathLike[str], text: str) -> None:
    raise InvalidFileError(f"{path}: expected JSON values, {text} is none")


def _reason(error: Exception) -> str:
    return (
        "not all of it is UTF-8"
        if isinstance(error, UnicodeDecodeError | UnicodeEncodeError)
        else quoted(str(error))[1:-1]
    )
