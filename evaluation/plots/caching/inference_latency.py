"""What tokens wait for experts under each solver's placement, and where the experts are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InvalidProblemError
from edgeopt.evaluation.compare.rows import as_rows
from edgeopt.evaluation.plots.style import COLOURS, GREY, legend_above, new_axes, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIERS = {"device": COLOURS[4], "own server": COLOURS[2], "other server": COLOURS[5], "cloud": "#CCCCCC"}
COLUMNS = ("solver", "predicted_ms", "unseen_ms", "unseen_error_ms", "z", *TIERS)


def plot_inference_latency(rows: Sequence[Mapping[str, Any]], ax: "Axes | None" = None) -> "Axes":
    """Draw predicted and simulated milliseconds per token, with two standard errors, and who served the experts.

    Parameters
    ----------
    rows : one per solver with the columns solver, predicted_ms, unseen_ms, unseen_error_ms, z, and the share of expert
        uses at each tier: device, own server, other server, cloud.
    ax : a subplot; a new figure without. The shares take the right part of its place.

    Raises
    ------
    InvalidProblemError
        If a column is missing, there are no rows, or `ax` is no subplot.
    """
    found = as_rows(rows)
    if not found:
        raise InvalidProblemError("rows: expected at least one solver")
    for each in found:
        if missing := [name for name in COLUMNS if name not in each]:
            raise InvalidProblemError(f"rows: expected columns {', '.join(COLUMNS)}; {missing[0]} is missing")
    rows = sorted(found, key=lambda row: row["predicted_ms"])
    places = range(len(rows))
    ax = new_axes(ax, width=11.0, height=1.6 + 0.3 * max(3, len(rows)))
    simulated = ax.errorbar(
        [row["unseen_ms"] for row in rows], places, xerr=[2 * row["unseen_error_ms"] for row in rows], fmt="o",
        color=COLOURS[0], markersize=5, capsize=3, linewidth=1.4,
    )  # fmt: skip
    predicted = ax.scatter(
        [row["predicted_ms"] for row in rows], places, marker="|", s=170, linewidths=2.4, color=COLOURS[1], zorder=3
    )
    ax.set_yticks(list(places), [shown(row["solver"]) for row in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("ms per token spent on experts")
    for y, row in enumerate(rows):
        ax.annotate(
            f"z = {row['z']:+.1f}", (row["unseen_ms"] + 2 * row["unseen_error_ms"], y), (7, 0), textcoords="offset points", va="center", fontsize=8,
            color=GREY,
        )  # fmt: skip
    ax.margins(x=0.14)
    if (place := ax.get_subplotspec()) is None:
        raise InvalidProblemError("ax: expected a subplot, got axes that are in no grid")
    halves = place.subgridspec(1, 2, width_ratios=(4, 3))
    ax.set_subplotspec(halves[0])
    shares = ax.figure.add_subplot(halves[1])
    shares.spines[["top", "right", "left"]].set_visible(False)
    left, drawn = [0.0] * len(rows), {}
    for tier, colour in TIERS.items():
        if not any(width := [100 * row[tier] for row in rows]):
            continue
        drawn[tier] = shares.barh(places, width, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.6)
        for y, (start, share) in enumerate(zip(left, width, strict=True)):
            if share >= 8:  # a narrower bar has no room for a number
                shares.text(start + share / 2, y, f"{share:.0f}", ha="center", va="center", fontsize=8)
        left = [start + share for start, share in zip(left, width, strict=True)]
    shares.set_yticks([])
    shares.set_ylim(ax.get_ylim())
    shares.set_xlim(0.0, 100.0)
    shares.set_xlabel("% of expert uses, by who serves them")
    entries = {"simulated on unseen text, ±2 standard errors": simulated, "predicted by the problem": predicted}
    legend_above(ax, entries)
    legend_above(shares, drawn)
    return ax
