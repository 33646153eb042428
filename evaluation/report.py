"""One HTML file that says what a comparison found: it opens without a network and holds its pictures itself."""

import io
import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeopt import storage
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.compare.performance import summarise, with_gaps
from edgeopt.evaluation.compare.rows import Row, merged
from edgeopt.extras import needs
from edgeopt.problem import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_VECTOR_BYTES = 300_000  # a picture larger than this as SVG goes in as PNG


def write_report(
    rows: Any,
    path: str | os.PathLike[str],
    problems: Mapping[str, Problem] | None = None,
    *,
    title: str = "Comparison of solvers",
) -> None:
    """Write a report: per kind of problem profiles, per instance facts, table, pictures, failures; then the machine.

    A kind has profiles where its solvers have more than one run each.

    Parameters
    ----------
    rows : rows of a comparison, its data frame, or its folder. Data frames have no histories: fewer pictures.
    path : the HTML file, written atomically.
    problems : instances by name; with them, the best solution of each is drawn where there is a picture for its kind.
    title : heading.

    Raises
    ------
    EdgeOptError
        Without rows.
    MissingDependencyError
        Without jinja2 or matplotlib.
    """
    check_packages()
    flat = [
        row | {name: _printable(row[name]) for name in ("instance", "solver", "problem")} for row in with_gaps(rows)
    ]
    problems = {_printable(name): problem for name, problem in (problems or {}).items()}
    if not flat:
        raise EdgeOptError("rows: expected at least one run to report on")
    text = rendered(
        "report.html",
        title=title,
        num_runs=len(flat),
        num_solvers=len({row["solver"] for row in flat}),
        num_failed=len(failures(flat)),
        num_instances=len({row["instance"] for row in flat}),
        kinds=[_kind(name, own, problems) for name, own in _groups(flat, "problem").items()],
        versions=merged(flat, "versions"),
        machine=merged(flat, "machine"),
        limits=sorted({"none" if row.get("time_limit") is None else f"{row['time_limit']:g} s" for row in flat}),
    )
    storage.write_text(path, text)


def check_packages() -> None:
    """Refuse to begin without the packages that a report needs: missing now is better than missing halfway.

    Raises
    ------
    MissingDependencyError
        Without jinja2 or matplotlib.
    """
    with needs("a report", "report"):
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401


def rendered(template: str, **values: Any) -> str:
    """Return a template of this package filled in."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeopt.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "fact": fact}
    return environment.get_template(template).render(**values)


def failures(rows: list[Row]) -> list[Row]:
    """Return the runs that gave no feasible solution, and those that were skipped or ended in an error."""
    return [row for row in rows if not row["feasible"] or row["status"] == "error"]


def number(value: float | None, digits: int = 6) -> str:
    """Return a number for a table, a dash for None.

    Examples
    --------
    >>> number(None), number(1234567.0)
    ('–', '1.23457e+06')
    """
    return "–" if value is None else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """Return a share in per cent.

    Examples
    --------
    >>> percent(0.01234), percent(0.0)
    ('1.234 %', '0 %')
    """
    return "–" if value is None else f"{100 * value:.4g} %"


def fact(value: Any) -> str:
    """Return a fact of an instance as text.

    Examples
    --------
    >>> fact(0.1234567891), fact(12)
    ('0.123457', '12')
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _kind(name: str, rows: list[Row], problems: Mapping[str, Problem]) -> dict[str, Any]:
    """Return what a report says of one kind of problem: profiles if a solver has several runs, and every instance."""
    from edgeopt.evaluation.plots.comparison.performance_profile import plot_performance_profile

    profiles = []
    if len({(row["instance"], row["seed"]) for row in rows}) > 1:
        profiles = [
            picture("Share of runs within a gap to the best known value", lambda: plot_performance_profile(rows)),
            picture("Share of runs by time", lambda: plot_performance_profile(rows, metric="time")),
        ]
    sections = [_section(instance, own, problems) for instance, own in _groups(rows, "instance").items()]
    return {"name": name, "pictures": profiles, "sections": sections}


def _groups(rows: list[Row], name: str) -> dict[str, list[Row]]:
    """Return rows by a column, in the order in which its values first appear."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _section(name: str, rows: list[Row], problems: Mapping[str, Problem]) -> dict[str, Any]:
    from edgeopt.evaluation.plots.comparison.bounds import plot_bounds
    from edgeopt.evaluation.plots.comparison.gap_against_time import plot_gap_against_time

    pictures = []
    if any(row["feasible"] for row in rows):
        pictures.append(picture("Objective and certified bound", lambda: plot_bounds(rows)))
        if any(row.get("history") for row in rows):
            pictures.append(picture("Gap to the best known value against time", lambda: plot_gap_against_time(rows)))
        if name in problems:
            pictures += _solution_pictures(problems[name], rows)
    facts = problems[name].describe() if name in problems else next((r["facts"] for r in rows if r.get("facts")), {})
    return {
        "name": name,
        "facts": facts,
        "sense": "maximise" if rows[0]["sense"] == "max" else "minimise",
        "best_known": rows[0]["best_known"],
        "table": summarise(rows),
        "pictures": pictures,
        "failures": failures(rows),
    }


def _solution_pictures(problem: Problem, rows: list[Row]) -> list[dict[str, str]]:
    """Draw the best solution of an instance, for the kinds of problems that have a picture."""
    from edgeopt.evaluation.compare.solutions import solution_from_json
    from edgeopt.evaluation.plots.solutions import SOLUTION_PICTURES, draw_solution

    best = min(
        (r for r in rows if r["feasible"] and r.get("solution")), key=lambda r: r["gap_to_best"] or 0, default=None
    )
    if best is None:
        return []
    solution = solution_from_json(problem, best["solution"])
    return [
        picture(f"{caption}, by {best['solver']}", partial(draw_solution, function, problem, solution))
        for caption, function in SOLUTION_PICTURES.get(problem.kind, ())
    ]


def picture(caption: str, draw: Callable[[], "Axes"]) -> dict[str, str]:
    """Return caption and inline markup: SVG, or PNG where that is much smaller."""
    import base64

    import matplotlib

    text, data = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": caption, "svg.fonttype": "path"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # of a name's letters that the font lacks: boxes
        figure = draw().get_figure(root=True)
        assert figure is not None
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        if len(text.getvalue()) > MAX_VECTOR_BYTES:
            figure.savefig(data, format="png", dpi=150)
    svg = text.getvalue()
    if data.getvalue():
        encoded = base64.b64encode(data.getvalue()).decode()
        return {"caption": caption, "png": encoded, "svg": ""}
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return {"caption": caption, "svg": svg, "png": ""}


def _printable(name: str) -> str:
    """Return a name with what no file can hold escaped, as bytes of a file name that are no text."""
    return name.encode(errors="backslashreplace").decode()
