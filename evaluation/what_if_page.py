"""One HTML file of a what-if: sliders over the points that were computed, curves, all points; it opens without a network."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from edgeopt import storage
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.compare.rows import Row, merged
from edgeopt.evaluation.plots.what_if import plot_what_if
from edgeopt.evaluation.report import check_packages, picture, rendered
from edgeopt.problem import Problem


def write_what_if(
    rows: Sequence[Row], path: str | os.PathLike[str], problem: Problem, *, title: str = "What if"
) -> None:
    """Write the page, atomically.

    Parameters
    ----------
    rows : rows of a what-if, those of one run.
    path : the HTML file.
    problem : the problem that is varied.
    title : heading.

    Raises
    ------
    EdgeOptError
        Without rows.
    MissingDependencyError
        Without jinja2 or matplotlib.
    """
    check_packages()
    if not rows:
        raise EdgeOptError("rows: expected at least one point to show")
    names = rows[0]["axes"]
    axes = [{"name": name, "values": sorted({row["values"][i] for row in rows})} for i, name in enumerate(names)]
    solved = any(row["feasible"] for row in rows)
    caption = "Objective along {}: from each curve to the end of its band the optimum lies"
    pictures = [
        picture(caption.format(name), partial(plot_what_if, rows, along=i)) for i, name in enumerate(names) if solved
    ]
    text = rendered(
        "what_if.html",
        title=title,
        solver=rows[0]["solver"],
        sense=rows[0]["sense"],
        num_points=len(rows),
        num_failed=sum(not row["feasible"] for row in rows),
        axes=axes,
        rows=[row | {"text": decided(row)} for row in rows],
        pictures=pictures,
        facts_of=problem.describe(),
        data={"axes": axes, "points": [_point(row, axes) for row in rows]},
        versions=merged(rows, "versions"),
        machine=merged(rows, "machine"),
    )
    storage.write_text(path, text)


def decided(row: Row) -> str:
    """Return the decisions of a point as words, or why there are none."""
    if not row["decisions"]:
        return str(row["message"] or "")
    return ", ".join(
        f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row["decisions"].items()
    )


def _point(row: Row, axes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the page knows of a point; its place is counted in the values of the page."""
    place = [axis["values"].index(value) for axis, value in zip(axes, row["values"], strict=True)]
    keys = ("objective", "bound", "gap") if row["feasible"] else ()
    numbers = dict.fromkeys(("objective", "bound", "gap")) | {key: row[key] for key in keys}
    return {
        "place": place,
        "status": row["status"],
        "message": row["message"],
        "decisions": row["decisions"],
        **numbers,
    }
