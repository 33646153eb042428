"""What a what-if varies: a field of a problem, over values with units, or over multiples of what it is."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.problem import Problem

POINTS = 9  # of a range that says none
MAX_POINTS = 10_000
SUFFIXES = ("hz", "bytes", "s", "j", "bps", "flops", "bits")
"""What names of fields end in that have a unit; a name may be given without it."""
_SI = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS: dict[str, dict[str, float]] = {
    "hz": {f"{prefix}Hz": factor for prefix, factor in _SI.items()},
    "bytes": {f"{prefix}B": factor for prefix, factor in _SI.items()}
    | {"KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3},
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0},
    "j": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "kJ": 1e3},
    "bps": {f"{prefix}bit/s": factor for prefix, factor in _SI.items()},
    "flops": {f"{prefix}FLOP/s": factor for prefix, factor in _SI.items()},
    "bits": {f"{prefix}bit": factor for prefix, factor in _SI.items()},
}
"""Units that values of a field may have, by what its name ends in."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_VALUE = re.compile(rf"(x?)({_NUMBER})\s*([a-zA-Z/%]*)")


@dataclass(frozen=True, slots=True)
class Axis:
    """A field of a problem, and the values that it takes in turn.

    Parameters
    ----------
    field : name of the field, in full.
    index : which entry of it; None for all of them, or where it is one number.
    values : rising; in the unit of the field, or multiples of what it is.
    multiples : whether they are multiples.
    """

    field: str
    index: int | None
    values: tuple[float, ...]
    multiples: bool

    @property
    def name(self) -> str:
        """What the axis is called."""
        name = self.field if self.index is None else f"{self.field}[{self.index}]"
        return f"{name}, times what it is" if self.multiples else name

    def applied(self, problem: Any, value: float) -> Any:
        """Return the problem with the field at a value; whole numbers are rounded to."""
        given = getattr(problem, self.field)
        whole = isinstance(given, int) or getattr(given, "dtype", np.dtype(float)).kind == "i"
        changed: NDArray[np.float64] = np.array(given, np.float64)
        where = ... if self.index is None else self.index
        changed[where] = changed[where] * value if self.multiples else value
        new: Any = np.rint(changed).astype(np.int64) if whole else changed
        return problem.replace(**{self.field: new if np.ndim(given) else new.item()})


def read_axis(problem: Problem, text: str) -> Axis:
    """Return the axis that ``NAME=LOW..HIGH``, ``NAME=LOW..HIGH/POINTS`` or ``NAME=A,B,C`` asks for.

    Values may have a unit, the last one's for those without; ``x0.5`` and ``50%`` are multiples of what the field is. A name may leave
    out the unit that a field's name ends in, and name one entry, as in ``storage[3]``.

    Examples
    --------
    >>> from edgeopt.problems import ModelDownload
    >>> problem = ModelDownload.random(num_users=3, seed=1)
    >>> read_axis(problem, "bandwidth=50..200MHz/4")
    Axis(field='bandwidth_hz', index=None, values=(50000000.0, 100000000.0, 150000000.0, 200000000.0), multiples=False)
    >>> read_axis(problem, "deadline[2]=x0.5,x1").name
    'deadline_s[2], times what it is'
    """
    name, equals, given = text.partition("=")
    found = re.fullmatch(r"\s*(\w+)\s*(?:\[(\d+)\])?\s*", name)
    if not equals or found is None:
        raise EdgeOptError(f"--vary = {quoted(text)}: expected NAME=LOW..HIGH or NAME=A,B,C")
    field = field_of(problem, found[1])
    index = _index(problem, field, found[2])
    body, slash, count = given.rpartition("/")
    if not slash or not count.strip().isdigit():  # a unit may have a slash
        body, count = given, str(POINTS)
    parts = body.split("..")
    if len(parts) not in (1, 2) or (len(parts) == 2 and not 2 <= int(count) <= MAX_POINTS):
        raise EdgeOptError(f"--vary = {quoted(text)}: expected LOW..HIGH with 2 to {MAX_POINTS} points")
    values, multiples = _values(field, parts if len(parts) == 2 else body.split(","), text)
    if len(parts) == 2:
        values = np.linspace(values[0], values[1], int(count)).tolist()
    return Axis(field, index, tuple(sorted(set(values))), multiples)


def field_of(problem: Problem, name: str) -> str:
    """Return the field of numbers that a name is of, in full or without its unit."""
    fields = [field.name for field in dataclasses.fields(problem) if field.init and _is_numeric(problem, field.name)]  # type: ignore[arg-type]
    for candidate in (name, *(f"{name}_{suffix}" for suffix in SUFFIXES)):
        if candidate in fields:
            return candidate
    raise EdgeOptError(f"--vary: {problem.kind} has no numbers called {quoted(name)}; it has {', '.join(fields)}")


def _is_numeric(problem: Problem, name: str) -> bool:
    value = getattr(problem, name)
    kind = getattr(value, "dtype", None)
    if kind is not None:
        return bool(kind.kind in "if")
    return isinstance(value, int | float) and not isinstance(value, bool)


def _index(problem: Problem, field: str, given: str | None) -> int | None:
    if given is None:
        return None
    value = getattr(problem, field)
    if np.ndim(value) != 1 or int(given) >= len(value):
        size = f"{len(value)} entries" if np.ndim(value) == 1 else "no list of entries"
        raise EdgeOptError(f"--vary: {field}[{given}]: {field} has {size}")
    return int(given)


def _values(field: str, parts: list[str], text: str) -> tuple[list[float], bool]:
    units = UNITS.get(field.rsplit("_", 1)[-1], {})
    found = [_VALUE.fullmatch(part.strip()) for part in parts]
    if not all(found):
        raise EdgeOptError(f"--vary = {quoted(text)}: expected numbers, each with a unit or none")
    last = next((match[3] for match in reversed(found) if match is not None and match[3]), "")
    values, kinds = [], set()
    for match in found:
        assert match is not None
        unit = match[3] or ("" if match[1] else last)
        if unit not in ("", "%") and unit not in units:
            known = ", ".join(units) or "none"
            raise EdgeOptError(f"--vary = {quoted(text)}: {quoted(unit)} is no unit of {field}; expected {known}, or %")
        kinds.add(bool(match[1]) or unit == "%")
        factor = 0.01 if unit == "%" else units.get(unit, 1.0)
        value = float(match[2]) * factor
        if not np.isfinite(value):
            raise EdgeOptError(f"--vary = {quoted(text)}: expected finite numbers")
        values.append(value)
    if len(kinds) > 1:
        raise EdgeOptError(f"--vary = {quoted(text)}: expected values or multiples, not both")
    return values, kinds.pop()
