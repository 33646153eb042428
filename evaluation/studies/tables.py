"""Tables of studies: as Markdown on the terminal, as CSV in files, as cells of a page."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from edgeopt.evaluation.statistics import interval

Row = dict[str, Any]


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV text; the columns are those of all rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; numbers have four digits.

    Examples
    --------
    >>> print(markdown([{"solver": "slide", "seconds": 0.123456}]))
    | solver | seconds |
    |---|---:|
    | slide | 0.1235 |
    """
    if not rows:
        return "(no rows)"
    names = columns(rows)
    head, rule, *body = [
        names,
        ["---:" if is_number(rows, name) else "---" for name in names],
        *([cell(row.get(name)) for name in names] for row in rows),
    ]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(line)} |" for line in body)])


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the names of all columns, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def is_number(rows: Sequence[Row], name: str) -> bool:
    """Return whether a column holds a number where it first holds anything."""
    value = next((row[name] for row in rows if row.get(name) is not None), None)
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: Any) -> str:
    """Return a value as it stands in a table; a dash for what there is not.

    Examples
    --------
    >>> cell(True), cell(0.123456), cell(None), cell(7)
    ('yes', '0.1235', '-', '7')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plus_minus(values: Sequence[float]) -> str:
    """Return the mean of values of independent seeds with half of its 95 % interval; a dash for none.

    Examples
    --------
    >>> plus_minus([1.0, 2.0, 3.0]), plus_minus([2.0]), plus_minus([])
    ('2 ± 2.5', '2', '-')
    """
    if not values:
        return "-"
    found = interval(values)
    return f"{found.mean:.3g}" + ("" if math.isnan(found.low) else f" ± {found.mean - found.low:.2g}")
