"""Values out of parsed documents: each is asked for by name and type, and an error says where it stands and what it is.

Whatever is read from a file (JSON, TOML, headers of arrays) goes through here before anything is computed with it.
"""

import math
import os
from collections.abc import Collection, Iterator, KeysView, Mapping
from contextlib import contextmanager
from typing import Any

from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted

MAX_TABLE = 1 << 28
"""Entries of a table that is computed from the sides of a problem, such as users x models."""
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # whole numbers that files may hold
_NOTHING: Any = object()


def check_table(what: str, *lengths: int) -> None:
    """Refuse tables that no memory holds, before they are made from files that only give their sides.

    Examples
    --------
    >>> check_table("devices x layers", 10**6, 10**6)
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: 1000000 x 1000000 devices x layers: expected at most 268435456 of them
    """
    if math.prod(lengths) > MAX_TABLE:
        raise InvalidProblemError(f"{' x '.join(map(str, lengths))} {what}: expected at most {MAX_TABLE} of them")


@contextmanager
def in_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in which file the cause of an error is; errors that say so stay as they are."""
    try:
        yield
    except InvalidProblemError as error:
        if isinstance(error, InvalidFileError) and str(error).startswith(f"{os.fspath(path)}: "):
            raise
        raise InvalidFileError(f"{os.fspath(path)}: {error}") from None


class Fields:
    """The values of a parsed object, which are taken out by name.

    Parameters
    ----------
    values : what the parser returned; anything but an object is refused.
    prefix : of the names in messages, such as ``"solution: "``.

    Examples
    --------
    >>> plan = Fields({"rounds": 3, "rate": {"sigma": []}})
    >>> plan.integer("rounds", low=1)
    3
    >>> plan.table("rate").number("sigma")
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidFileError: rate.sigma = []: expected a number
    """

    __slots__ = ("_prefix", "_values")

    def __init__(self, values: object, prefix: str = "") -> None:
        if not isinstance(values, Mapping):
            raise InvalidFileError(f"{prefix.rstrip(': .') or 'document'}: expected an object, got {quoted(values)}")
        self._values: Mapping[str, Any] = values
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def keys(self) -> KeysView[str]:
        """Return the names, so that ``dict(fields)`` has all values."""
        return self._values.keys()

    def __getitem__(self, name: str) -> Any:
        return self.value(name)

    def wrong(self, name: str, expected: str) -> InvalidFileError:
        """Return the error about a value: what it is, and what was expected."""
        if name not in self._values:
            return InvalidFileError(f"{self._prefix}{name}: value is missing: expected {expected}")
        return InvalidFileError(f"{self._prefix}{name} = {quoted(self._values[name])}: expected {expected}")

    def value(self, name: str, expected: str = "a value") -> Any:
        """Return a value of any type, which must be there."""
        if name not in self._values:
            raise self.wrong(name, expected)
        return self._values[name]

    def text(self, name: str) -> str:
        """Return a text."""
        if not isinstance(found := self.value(name, "a string"), str):
            raise self.wrong(name, "a string")
        return found

    def choice(self, name: str, options: Collection[str]) -> str:
        """Return one of some texts."""
        *others, last = map(repr, options)
        expected = (
            f"one of {', '.join(options)}"
            if len(others) > 2
            else " or ".join([", ".join(others)] * bool(others) + [last])
        )
        if not isinstance(found := self.value(name, expected), str) or found not in options:
            raise self.wrong(name, expected)
        return found

    def integer(self, name: str, *, low: int = _LEAST, high: int = _MOST) -> int:
        """Return an integer from `low` to `high`; a truth value is none."""
        expected = "an integer"
        if (low, high) != (_LEAST, _MOST):
            expected += f" >= {low}" if high == _MOST else f" from {low} to {high}"
        if type(found := self.value(name, expected)) is not int or not low <= found <= high:
            raise self.wrong(name, expected)
        return found

    def number(self, name: str, *, low: float = -math.inf, finite: bool = True) -> float:
        """Return a number of at least `low`."""
        expected = "a number" + ("" if low == -math.inf else f" >= {low:g}")
        found = self.value(name, expected)
        if type(found) is int and _LEAST <= found <= _MOST:
            found = float(found)
        if type(found) is not float or not found >= low or (finite and math.isinf(found)):  # nan is not >= anything
            raise self.wrong(name, expected)
        return found

    def optional_number(self, name: str, *, low: float = -math.inf) -> float | None:
        """Return a number, or None where there is none."""
        return None if self._values.get(name) is None else self.number(name, low=low)

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        if not isinstance(found := self.value(name, "true or false"), bool):
            raise self.wrong(name, "true or false")
        return found

    def entries(self, name: str, expected: str = "a list") -> list[Any]:
        """Return a list."""
        if not isinstance(found := self.value(name, expected), list):
            raise self.wrong(name, expected)
        return found

    def numbers(self, name: str) -> list[float]:
        """Return a list of finite numbers."""
        found = dict(enumerate(self.entries(name, "a list of numbers")))
        inner = Fields({str(i): value for i, value in found.items()}, f"{self._prefix}{name}.")
        return [inner.number(str(i)) for i in found]

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        found = self.entries(name, "a list of names")
        if (bad := next((i for i, entry in enumerate(found) if not isinstance(entry, str)), None)) is not None:
            raise InvalidFileError(f"{self._prefix}{name}[{bad}] = {quoted(found[bad])}: expected a string")
        return tuple(found)

    def table(self, name: str) -> "Fields":
        """Return the object of a name."""
        if not isinstance(found := self.value(name, "an object"), Mapping):
            raise self.wrong(name, "an object")
        return Fields(found, f"{self._prefix}{name}.")

    def tables(self, name: str) -> "list[Fields]":
        """Return a list of objects."""
        found = self.entries(name, "a list of objects")
        return [Fields(entry, f"{self._prefix}{name}[{i}].") for i, entry in enumerate(found)]

    def expect(self, name: str, value: str | int) -> None:
        """Refuse any other value, such as another version of a format."""
        if type(found := self.value(name, repr(value))) is not type(value) or found != value:
            raise self.wrong(name, repr(value))
