"""Why there is no solution, or why somebody is left out: what `Problem.explain` returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line

Verdict = Literal["feasible", "infeasible", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit that takes part in a conflict.

    Parameters
    ----------
    name : the field and index, as in ``memory_bytes[3]``, or in words where it is no single number of the problem.
    value : what it is.
    enough : what it would have to be for the problem to have a solution, all else unchanged; None where no value of this
        limit alone is enough.
    message : what the limit does, with its numbers.
    """

    name: str
    value: float
    enough: float | None
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "value": _plain(self.value), "enough": self.enough, "message": self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One limit with another value.

    Parameters
    ----------
    name : the field and index, as in ``deadline_s[3]``.
    value : what it is.
    needed : what it would have to be, all else unchanged.
    """

    name: str
    value: float
    needed: float

    @property
    def relative(self) -> float:
        """How much of itself the value would have to change; inf from 0."""
        if self.needed == self.value:
            return 0.0
        return abs(self.needed - self.value) / abs(self.value) if self.value else math.inf

    def __str__(self) -> str:
        share = f" ({100 * (self.needed / self.value - 1):+.3g} %)" if self.value else ""
        return f"{self.name} = {self.value:.6g} would have to be {self.needed:.6g}{share}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "value": self.value, "needed": self.needed}


@dataclass(frozen=True, slots=True)
class Way:
    """Changes that together would let somebody in; none of them can be left out."""

    changes: tuple[Change, ...]

    @property
    def relative(self) -> float:
        """The largest relative change; 0 without any."""
        return max((change.relative for change in self.changes), default=0.0)

    def __str__(self) -> str:
        return " and ".join(map(str, self.changes)) if self.changes else "nothing would have to change"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Limits that cannot hold together, while without any one of them the others can.

    Parameters
    ----------
    message : one sentence with the numbers.
    limits : its members.
    """

    message: str
    limits: tuple[Limit, ...]

    __repr__ = one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Somebody or something that is left out.

    Parameters
    ----------
    what : ``user``, ``client`` or ``expert``.
    index : which one.
    message : why, with the numbers.
    ways : what would have to give, the least relative change first; empty where nothing would help.
    """

    what: str
    index: int
    message: str
    ways: tuple[Way, ...]

    __repr__ = one_line

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        ways = [[change.to_json() for change in way.changes] for way in self.ways]
        return {"what": self.what, "index": self.index, "message": self.message, "ways": ways}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a problem has no solution, and who is left out.

    Parameters
    ----------
    problem : its kind.
    verdict : whether it has a solution at all: ``feasible``, ``infeasible``, or ``unknown`` where that was not decided.
    message : one sentence.
    conflict : limits that cannot hold together, of an infeasible problem.
    refused : who cannot take part, though the problem has solutions: a sequence, whose entries may be made as they are asked for.

    Examples
    --------
    >>> from edgeopt.problems import SplitTraining
    >>> problem = SplitTraining.random(num_devices=4, num_layers=6, seed=1)
    >>> problem.explain().verdict, problem.replace(target=0.1 * problem.least_target).explain().verdict
    ('feasible', 'infeasible')
    """

    problem: str
    verdict: Verdict
    message: str
    conflict: Conflict | None = None
    refused: Sequence[Refused] = ()

    __repr__ = one_line

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        conflict = None
        if self.conflict is not None:
            limits = [limit.to_json() for limit in self.conflict.limits]
            conflict = {"message": self.conflict.message, "limits": limits}
        return {
            "problem": self.problem,
            "verdict": self.verdict,
            "message": self.message,
            "conflict": conflict,
            "refused": [entry.to_json() for entry in self.refused],
        }

    def summary(self, most: int = 20) -> str:
        """Return lines for people, of at most so many limits and so many who are refused."""
        lines = [f"{self.problem}: {self.verdict}", f"  {self.message}"]
        if self.conflict is not None:
            lines += ["  These limits cannot hold together; without any one of them the others can:"]
            for limit in self.conflict.limits[:most]:
                lines.append(f"    {limit.name}: {limit.message}{_cure(limit)}")
            lines += _more(len(self.conflict.limits) - most, "limits")
        for entry in self.refused[:most]:
            lines.append(f"  {entry.message}")
            for place, way in enumerate(entry.ways):
                lines.append(f"    {'or ' if place else ''}{way}")
            if not entry.ways:
                lines.append("    no limit that gives would help")
        return "\n".join(lines + _more(len(self.refused) - most, "refused"))


def rounded_up(value: float, digits: int = 6) -> float:
    """Return the least number of so many digits that is not less than a finite value.

    Examples
    --------
    >>> rounded_up(1.23456789), rounded_up(2e9)
    (1.23457, 2000000000.0)
    """
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal_from_float(value))


def all_rounded_up(values: NDArray[np.float64], digits: int = 6) -> NDArray[np.float64]:
    """Return for each value the least number of so many digits, at most nine, that is not less, as floats compare.

    Those that are very large or very small go one by one; what is not finite stays.

    Examples
    --------
    >>> all_rounded_up(np.array([1.23456789, 2e9, 0.1, np.inf])).tolist()
    [1.23457, 2000000000.0, 0.1, inf]
    """
    rounded = values.copy()
    usual = (values >= 1e-12) & (values < 1e22)  # then all powers of ten are exact
    exact = values[usual]
    exponent = digits - 1 - np.floor(np.log10(exact))
    power = 10.0 ** np.abs(exponent)

    def as_floats(whole: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.where(exponent >= 0, whole / power, whole * power))

    whole = np.ceil(np.where(exponent >= 0, exact * power, exact / power)) - 1  # products are rounded, to either side
    for _ in range(2):
        whole += as_floats(whole) < exact
    rounded[usual] = as_floats(whole)
    for at in np.flatnonzero(np.isfinite(values) & ~usual).tolist():
        rounded[at] = rounded_up(float(values[at]), digits)
    return rounded


def rounded_down(value: float, digits: int = 6) -> float:
    """Return the largest number of so many digits that is not more than a finite value.

    Examples
    --------
    >>> rounded_down(1.23456789)
    1.23456
    """
    return float(Context(prec=digits, rounding=ROUND_FLOOR).create_decimal_from_float(value))


def _cure(limit: Limit) -> str:
    return "" if limit.enough is None else f"; {limit.enough:.9g} would be enough"


def _more(count: int, what: str) -> list[str]:
    return [f"  and {count} more {what}"] if count > 0 else []


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
