"""What joint control is worth: each baseline against `hasfl` as devices become more unequal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.evaluation.compare import comparison_rows
from edgeopt.evaluation.compare.performance import band
from edgeopt.evaluation.compare.rows import Row, as_rows
from edgeopt.evaluation.plots.style import (
    GREY,
    MAX_BANDS,
    by_height,
    legend_outside,
    line_styles,
    new_axes,
    plain_log_ticks,
    shown,
)
from edgeopt.problems import SplitTraining

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_UNIT = 20  # letters of a reference that have room beside the axis
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0)


def heterogeneity_rows(
    levels: Sequence[float] = LEVELS,
    seeds: Sequence[int] = tuple(range(10)),
    solvers: Sequence[str] | None = None,
    *,
    num_devices: int = 20,
    model: str = "resnet18",
    jobs: int = 1,
) -> list[Row]:
    """Run solvers on random problems of rising heterogeneity; each row has a further key ``heterogeneity``.

    Parameters
    ----------
    levels : values of `SplitTraining.random`'s ``heterogeneity``.
    seeds : one problem for each level and seed; the seed also is that of the solvers' random choices.
    solvers : names. Default: all of split training but ``exact``.
    num_devices, model : of the problems.
    jobs : worker processes.
    """
    from edgeopt.solvers import solvers_of

    names = [solver.name for solver in solvers_of(SplitTraining.kind)] if solvers is None else list(solvers)
    rows: list[Row] = []
    for seed in seeds:
        problems = {
            f"heterogeneity {level:g}, seed {seed}": SplitTraining.random(
                num_devices=num_devices, model=model, heterogeneity=level, seed=seed
            )
            for level in levels
        }
        of_problem = dict(zip(problems, levels, strict=True))
        chosen = [name for name in names if name != "exact" or solvers is not None]
        found, _ = comparison_rows(
            problems, chosen, seeds=(seed,), executor=None if jobs > 1 else "serial", jobs=jobs, display=False
        )
        rows += [row | {"heterogeneity": of_problem[row["instance"]]} for row in found]
    return rows


def plot_split_heterogeneity(rows: Sequence[Row], ax: "Axes | None" = None, *, reference: str = "hasfl") -> "Axes":
    """Draw each solver's seconds over those of the reference on the same problem: median, and 20-80 % band over seeds of up to ten.

    Parameters
    ----------
    rows : what `heterogeneity_rows` returned.
    ax : axes to draw on; a new figure without.
    reference : solver that is 1.

    Raises
    ------
    EdgeOptError
        If no row is the reference's.
    """
    rows = as_rows(rows)
    base = {row["instance"]: row["objective"] for row in rows if row["solver"] == reference and row["feasible"]}
    if not base:
        raise EdgeOptError(f"reference = {quoted(reference)}: expected a solver with a solution among the rows")
    ratios: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["solver"] != reference and row["feasible"] and row["instance"] in base:
            levels = ratios.setdefault(row["solver"], {})
            levels.setdefault(row["heterogeneity"], []).append(row["objective"] / base[row["instance"]])
    ax = new_axes(ax)
    styles = line_styles(row["solver"] for row in rows)
    drawn: dict[str, tuple[float, Any]] = {}  # height at the right end and line
    for solver, points in ratios.items():
        x = np.array(sorted(points))
        low, middle, high = np.array([band(points[level]) for level in x]).T
        (line,) = ax.plot(x, middle, label=solver, **styles[solver])
        drawn[solver] = float(middle[-1]), line
        if len(ratios) <= MAX_BANDS:
            ax.fill_between(x, low, high, color=styles[solver]["color"], alpha=0.15, linewidth=0)
    drawn[reference] = 1.0, ax.axhline(1.0, color=GREY, linewidth=1.2, linestyle="--", label=reference)
    ax.set_yscale("log")
    plain_log_ticks(ax.yaxis)
    ax.set_xticks(sorted({row["heterogeneity"] for row in rows}))
    ax.set_xlabel("heterogeneity: exponent on the devices' ratios of speed, rates and memory")
    unit = reference if len(reference) <= MAX_UNIT else "the dashed line"
    ax.set_ylabel(f"seconds to target, multiple of {shown(unit)}", parse_math=False)
    ax.margins(x=0.03)
    legend_outside(ax, by_height(drawn))
    return ax
