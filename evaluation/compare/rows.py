"""Rows of a comparison: how they are named, kept on disk one file each, and turned into a data frame."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.extras import needs
from edgeopt.fields import Fields, in_file
from edgeopt.problem import Sense
from edgeopt.validate import listed

if TYPE_CHECKING:
    import os

    import pandas as pd

Row = dict[str, Any]
"""One run: the keys of ``Result.to_json`` and those of `COLUMNS`, plain JSON values only."""

COLUMNS = (
    "instance", "problem", "sense", "solver", "seed", "status", "limit", "objective", "bound", "gap", "guarantee",
    "feasible", "best_known", "gap_to_best", "seconds_build", "seconds_compile", "seconds_solve", "seconds_total",
    "message",
)  # fmt: skip
"""Columns of the data frame of a comparison."""

Check = Callable[[Row], None]
"""What refuses a document that is no row of its kind."""

FORMAT = 1

logger = logging.getLogger("edgeopt")


def check_row(document: Row) -> None:
    """Refuse what is no row of a comparison."""
    row = Fields(document, "not a row of a comparison: ")
    row.expect("format", FORMAT)
    for name in ("key", "instance", "problem", "solver", "status"):
        row.text(name)
    row.choice("sense", ("max", "min"))
    row.integer("seed")
    row.flag("feasible")
    for name in ("limit", "guarantee", "message"):
        if name in row and row.value(name) is not None:
            row.text(name)
    for name in ("objective", "bound", "gap", "time_limit"):
        row.optional_number(name)
    row.value("objective")
    for name in ("versions", "machine", "facts", "seconds"):
        if name in row:
            row.table(name)
    for name in (seconds := row.table("seconds")):
        seconds.optional_number(name)
    for i, point in enumerate(row.entries("history")):
        if not isinstance(point, list) or len(point) != 4:
            raise InvalidFileError(f"history[{i}] = {quoted(point)}: expected seconds, iteration, objective, bound")
        line = Fields(dict(zip(("seconds", "iteration", "objective", "bound"), point, strict=True)), f"history[{i}].")
        for name in line:
            line.optional_number(name)


class RowStore:
    """A folder with one JSON file per finished run, each written whole or not at all.

    Parameters
    ----------
    folder : made if it is not there.
    check : refuses rows that lack something.

    Examples
    --------
    >>> import tempfile
    >>> store = RowStore(tempfile.mkdtemp())
    >>> store.get("0123") is None
    True
    """

    def __init__(self, folder: "str | os.PathLike[str]", check: Check = check_row) -> None:
        self.folder = storage.open_folder(folder)
        self._check = check

    def path(self, key: str) -> Path:
        """Return the file of a row."""
        return self.folder / f"{key}.json"

    def get(self, key: str) -> Row | None:
        """Return a stored row, or None if there is none or its file is damaged."""
        try:
            row = read_row(self.path(key), self._check)
        except FileNotFoundError:
            return None
        except (OSError, InvalidFileError) as error:
            logger.warning("this run is repeated: %s", error)
            return None
        return row if row["key"] == key else None

    def put(self, row: Row) -> None:
        """Write a row at once; whoever reads sees all of it or nothing."""
        storage.write_text(self.path(row["key"]), storage.dumps({"format": FORMAT, **row}) + "\n")


def row_key(*parts: object) -> str:
    """Return a file name that is equal for equal parts.

    Examples
    --------
    >>> row_key("instance", 1) == row_key("instance", 1) != row_key("instance", 2)
    True
    """
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:24]


def read_row(path: "str | os.PathLike[str]", check: Check = check_row) -> Row:
    """Read one row file.

    Parameters
    ----------
    path : the file.
    check : refuses rows that lack something, by default those that are none of a comparison.

    Raises
    ------
    InvalidFileError
        If the file is truncated or lacks something.
    """
    row = storage.read_json(path)
    with in_file(path):
        check(row)
    del row["format"]
    return row


def read_rows(folder: "str | os.PathLike[str]") -> list[Row]:
    """Read all rows of a comparison from its ``out`` folder, sorted; damaged files are left out with a warning."""
    inner = Path(folder) / "rows"
    rows = []
    for path in sorted((inner if inner.is_dir() else Path(folder)).glob("*.json")):
        try:
            rows.append(read_row(path))
        except (InvalidFileError, OSError) as error:
            logger.warning("left out: %s", error)
    return sorted(rows, key=lambda row: (str(row.get("instance")), row["solver"], row["seed"]))


def as_rows(data: Any) -> list[Row]:
    """Return rows from rows, from a data frame of `compare`, or from the ``out`` folder of a comparison.

    Examples
    --------
    >>> as_rows([{"solver": "greedy"}])
    [{'solver': 'greedy'}]
    """
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return [dict(storage.plain(record)) for record in data.to_dict("records")]
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        return add_gaps(read_rows(data))
    rows = listed("rows", data, single=Mapping)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidProblemError(f"rows[{i}] = {quoted(row)}: expected a row, a mapping of columns to values")
    return [dict(row) for row in rows]


def public_row(row: Row) -> Row:
    """Return what ``edgeopt compare --json`` says about a run."""
    keys = (
        "instance", "problem", "solver", "seed", "sense", "status", "limit", "objective", "bound", "gap", "guarantee",
        "feasible", "best_known", "gap_to_best", "seconds", "message",
    )  # fmt: skip
    return {key: row.get(key) for key in keys}


def add_gaps(rows: Iterable[Row], references: Mapping[str, float] | None = None) -> list[Row]:
    """Return the rows with ``best_known`` and ``gap_to_best``.

    The best known value of an instance is the best of its reference and of all its feasible rows; the gap is
    ``|best - objective| / |best|``, None without a feasible solution.

    Examples
    --------
    >>> rows = [{"instance": "a", "sense": "max", "feasible": True, "objective": value} for value in (4.0, 5.0)]
    >>> [row["gap_to_best"] for row in add_gaps(rows)]
    [0.2, 0.0]
    """
    rows = list(rows)
    best: dict[str, float] = dict(references or {})
    for row in rows:
        if row["feasible"] and row["objective"] is not None:
            known = best.get(row["instance"])
            best[row["instance"]] = (
                row["objective"] if known is None else _better(row["sense"], known, row["objective"])
            )
    return [{**row, **_gap_to_best(row, best.get(row["instance"]))} for row in rows]


def rows_frame(rows: Iterable[Row]) -> "pd.DataFrame":
    """Return one tidy data frame, one line per row, with the `COLUMNS`.

    Raises
    ------
    MissingDependencyError
        Without pandas.
    """
    with needs("a data frame", "report"):
        import pandas as pd
    records = [flat_row(row) for row in rows]
    frame = pd.DataFrame({name: [record.get(name) for record in records] for name in COLUMNS})
    numbers = [name for name in COLUMNS if name.startswith("seconds_")]
    numbers += ["objective", "bound", "gap", "best_known", "gap_to_best"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def flat_row(row: Row) -> Row:
    """Return the row with ``seconds`` as ``seconds_build``, ``seconds_compile``, ``seconds_solve``, ``seconds_total``."""
    seconds = row.get("seconds") or {}
    return row | {f"seconds_{part}": seconds.get(part) for part in ("build", "compile", "solve", "total")}


def merged(rows: Iterable[Row], name: str) -> dict[str, str]:
    """Return the values of a dictionary over all rows; where rows differ, all of them."""
    values: dict[str, list[str]] = {}
    for row in rows:
        for key, value in (row.get(name) or {}).items():
            if str(value) not in values.setdefault(key, []):
                values[key].append(str(value))
    return {key: ", ".join(found) for key, found in values.items()}


def _better(sense: Sense, first: float, second: float) -> float:
    return max(first, second) if sense == "max" else min(first, second)


def _gap_to_best(row: Row, best: float | None) -> Row:
    objective = row["objective"] if row["feasible"] else None
    if best is None or objective is None:
        gap = None
    elif objective == best:
        gap = 0.0
    else:
        gap = abs(best - objective) / abs(best) if best else None
    return {"best_known": best, "gap_to_best": gap}
