"""Numbers behind the pictures: performance profiles, and the median with a 20-80 % band."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.evaluation.compare.rows import Row, add_gaps, as_rows, flat_row

Metric = Literal["gap", "time"]
BAND = (20.0, 80.0)


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """One solver's line: it is within ``x[i]`` on a share ``share[i]`` of all runs, and on ``share[-1]`` at best.

    Parameters
    ----------
    solver : label.
    x : float64 [P], ascending; the gap to the best known value, or the multiple of the fastest solver's time.
    share : float64 [P], in [0, 1], ascending.
    num_runs : runs that the shares are of, failed and skipped ones included.
    """

    solver: str
    x: NDArray[np.float64]
    share: NDArray[np.float64]
    num_runs: int


def performance_profile(
    data: Any, metric: Metric = "gap", *, time_gap: float = 0.01, least_seconds: float = 1e-3
) -> list[Profile]:
    """Return performance profiles after Dolan and Moré (2002), best solver first.

    Parameters
    ----------
    data : rows of a comparison, its data frame, or its folder.
    metric : ``gap`` for the gap to the best known value, ``time`` for the multiple of the shortest time among the solvers
        that came within `time_gap` of the best known value; others count as never.
    time_gap : what counts as solved when times are compared.
    least_seconds : shorter times count as this long: they measure nothing.

    Notes
    -----
    Failed, skipped and infeasible runs count in the denominator: a solver that gives up cannot look better for it.

    Examples
    --------
    >>> rows = [dict(instance=name, seed=0, sense="max", solver=solver, status="feasible", feasible=True, objective=value)
    ...         for solver, name, value in (("a", "p", 10), ("a", "q", 10), ("b", "p", 9), ("b", "q", 10))]
    >>> [(line.solver, line.x.tolist(), line.share.tolist()) for line in performance_profile(rows)]
    [('a', [0.0], [1.0]), ('b', [0.0, 0.1], [0.5, 1.0])]
    """
    rows = with_gaps(data)
    values = _gaps(rows) if metric == "gap" else _time_ratios(rows, time_gap, least_seconds)
    profiles = []
    for solver, found in values.items():
        x, counts = np.unique([value for value in found if math.isfinite(value)], return_counts=True)
        profiles.append(Profile(solver, x, np.cumsum(counts) / len(found), len(found)))
    return sorted(profiles, key=lambda line: -_area(line, profiles))


def band(values: ArrayLike) -> tuple[float, float, float]:
    """Return the 20 % quantile, the median and the 80 % quantile; NaN for no values.

    Examples
    --------
    >>> [round(float(value), 6) for value in band([1, 2, 3, 4, 5, 6])]
    [2.0, 3.5, 5.0]
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        return math.nan, math.nan, math.nan
    low, middle, high = np.percentile(array, [BAND[0], 50.0, BAND[1]])
    return float(low), float(middle), float(high)


def summarise(data: Any) -> list[dict[str, Any]]:
    """Return one dictionary per (instance, solver): medians over the seeds, and how the runs ended.

    Keys: ``instance``, ``solver``, ``runs``, ``status`` (for example ``optimal`` or ``feasible 2, error 1``),
    ``objective``, ``objective_low``, ``objective_high``, ``bound`` (the best one), ``gap_to_best``, ``gap``, ``guarantee``,
    ``seconds`` (without compilation), ``best_known``, ``sense``, ``messages``. Numbers are None where no run gave one.
    """
    groups: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in with_gaps(data):
        groups.setdefault((row["instance"], row["solver"]), []).append(row)
    return [_summary(group) for group in groups.values()]


def with_gaps(data: Any) -> list[Row]:
    """Return flat rows that have ``gap_to_best``, from anything that `as_rows` takes."""
    rows = [flat_row(row) if "seconds_total" not in row else row for row in as_rows(data)]
    return rows if all("gap_to_best" in row for row in rows) else add_gaps(rows)


def _summary(group: Sequence[Row]) -> dict[str, Any]:
    first = group[0]
    solved = [row for row in group if row["feasible"]]
    low, middle, high = band([row["objective"] for row in solved])
    bounds = [row["bound"] for row in group if row.get("bound") is not None]
    counts: dict[str, int] = {}
    for row in group:
        counts[_status(row)] = counts.get(_status(row), 0) + 1
    one = len(counts) == 1
    return {
        "instance": first["instance"],
        "solver": first["solver"],
        "runs": len(group),
        "status": next(iter(counts)) if one else ", ".join(f"{status} {count}" for status, count in counts.items()),
        "objective": _number(middle),
        "objective_low": _number(low),
        "objective_high": _number(high),
        "bound": (min(bounds) if first["sense"] == "max" else max(bounds)) if bounds else None,
        "gap_to_best": _median(row.get("gap_to_best") for row in solved),
        "gap": _median(row.get("gap") for row in solved),
        "guarantee": first.get("guarantee"),
        "seconds": _median(uncompiled_seconds(row) for row in group),
        "best_known": first.get("best_known"),
        "sense": first["sense"],
        "messages": list(dict.fromkeys(row["message"] for row in group if row.get("message"))),
    }


def _status(row: Row) -> str:
    return f"{row['status']} ({row['limit']} limit)" if row.get("limit") else str(row["status"])


def _median(values: Iterable[Any]) -> float | None:
    return _number(band([value for value in values if value is not None and math.isfinite(value)])[1])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _gaps(rows: Iterable[Row]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in rows:
        gap = row["gap_to_best"] if row["feasible"] else None
        values.setdefault(row["solver"], []).append(math.inf if gap is None or math.isnan(gap) else gap)
    return values


def _time_ratios(rows: Sequence[Row], time_gap: float, least_seconds: float) -> dict[str, list[float]]:
    if time_gap < 0:
        raise EdgeOptError(f"time_gap = {quoted(time_gap)}: expected a number >= 0")
    fastest: dict[tuple[str, int], float] = {}
    for row, seconds in timed(rows, time_gap, least_seconds):
        run = (row["instance"], row["seed"])
        fastest[run] = min(fastest.get(run, math.inf), seconds)
    values: dict[str, list[float]] = {}
    for row, seconds in timed(rows, time_gap, least_seconds):
        best = fastest[row["instance"], row["seed"]]
        values.setdefault(row["solver"], []).append(seconds / best if math.isfinite(best) else math.inf)
    return values


def timed(rows: Iterable[Mapping[str, Any]], time_gap: float, least_seconds: float) -> list[tuple[Row, float]]:
    """Return each row with its seconds (compilation left out), infinite if it did not come within `time_gap`."""
    found = []
    for row in rows:
        gap, total = row["gap_to_best"], row.get("seconds_total")
        if row["feasible"] and gap is not None and gap <= time_gap and total is not None:
            found.append((dict(row), max(least_seconds, uncompiled_seconds(row) or 0.0)))
        else:
            found.append((dict(row), math.inf))
    return found


def uncompiled_seconds(row: Mapping[str, Any]) -> float | None:
    """Return the seconds of a run without compilation, None if it did not finish.

    Examples
    --------
    >>> uncompiled_seconds({"seconds_total": 3.0, "seconds_compile": 1.0})
    2.0
    """
    total = row.get("seconds_total")
    return None if total is None else float(total) - float(row.get("seconds_compile") or 0.0)


def _area(line: Profile, lines: Sequence[Profile]) -> float:
    """Area under the line up to the largest x of all lines: what the order of the legend goes by."""
    end = max((other.x[-1] for other in lines if other.x.size), default=0.0)
    widths = np.diff(np.append(line.x, end))
    return float(line.share @ widths + 1e-9 * (line.share[-1] if line.share.size else 0.0))
