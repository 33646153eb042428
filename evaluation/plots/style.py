"""What all pictures share: a palette for every eye, quiet axes, names in full, a legend that covers nothing."""

import io
import os
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt import storage
from edgeopt.extras import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito's palette without its yellow, which vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
MAX_NAME = 48  # characters of a name; those of longer ones that are left out are in the middle
MAX_BANDS = 10  # lines; bands and error bars of more of them would be one grey mass
MARKER_STEP = 0.1  # of the diagonal of the axes, between markers of one line
MARKER_GAP = 0.382  # of that step, from line to line: the golden section keeps any number of them apart
LETTERS_PER_INCH = 13.5  # of titles
BESIDE = 0.3  # of the figure's width: a wider legend goes below the axes
_OWN = "edgeopt"


def new_axes(ax: "Axes | None" = None, *, width: float = 9.0, height: float = 4.2) -> "Axes":
    """Return `ax`, or the axes of a new figure of this size in inches, made without pyplot.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    if ax is not None:
        return ax
    with needs("a picture", "report"):
        from matplotlib.figure import Figure as NewFigure
    figure = NewFigure(figsize=(width, height), dpi=100, layout="constrained")
    figure.set_label(_OWN)
    axes: Axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def save_picture(axes: "Axes", path: str | os.PathLike[str], *, dpi: int = 120) -> None:
    """Write the figure of some axes to a file, atomically; its suffix says how."""
    figure: Any = axes.figure
    data = io.BytesIO()  # a picture that writes its file itself does not say why it cannot
    figure.savefig(data, format=os.path.splitext(path)[1].removeprefix("."), dpi=dpi)
    storage.write_atomic(path, lambda file: file.write(data.getvalue()))


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour, dash and marker of each name, by the order in which names first appear: 196 are told apart.

    All pictures of one comparison therefore draw a solver alike. Colour is never all that tells two names apart.

    Examples
    --------
    >>> styles = line_styles(["greedy", "random", "greedy"])
    >>> styles["greedy"]["color"], styles["random"]["marker"]
    ('#0072B2', 's')
    """
    return {
        name: {
            "color": COLOURS[position % len(COLOURS)],
            "linestyle": LINES[position // len(COLOURS) % len(LINES)],
            "marker": MARKERS[(position + position // len(COLOURS)) % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.8,
        }
        for position, name in enumerate(dict.fromkeys(names))
    }


def curve_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return `line_styles` for lines with many points: a marker every tenth of the picture, at other places on each line."""
    return {
        name: style | {"markevery": (MARKER_GAP * position % 1.0 * MARKER_STEP, MARKER_STEP)}
        for position, (name, style) in enumerate(line_styles(names).items())
    }


def shown(name: str) -> str:
    """Return a name as pictures show it: on one line, and at most `MAX_NAME` characters.

    Set it with ``parse_math=False``, or two dollar signs would make a formula.

    Examples
    --------
    >>> shown("greedy"), shown("a" * 30 + "b" * 30)
    ('greedy', 'aaaaaaaaaaaaaaaaaaaaaaaa…bbbbbbbbbbbbbbbbbbbbbbb')
    """
    line = " ".join(name.split())
    return line if len(line) <= MAX_NAME else f"{line[: MAX_NAME // 2]}…{line[len(line) - (MAX_NAME - 1) // 2 :]}"


def whole_ticks(*axes: "Axis") -> None:
    """Let axes of things that are counted have whole numbers for ticks."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def plain_log_ticks(axis: "Axis") -> None:
    """Label a logarithmic axis 0.1, 1, 10, and between them where it has few of those."""
    from matplotlib.ticker import NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    if low <= 0 or high > 30 * low:
        axis.set_minor_formatter(NullFormatter())
    else:
        every = high <= 5 * low
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if every or f"{value:e}"[0] in "25" else "")


def by_height(drawn: Mapping[str, tuple[float, Any]]) -> dict[str, Any]:
    """Return lines by name, from pairs of height at the right end and line: the legend lists them from top to bottom."""
    return {name: line for name, (_, line) in sorted(drawn.items(), key=lambda item: -item[1][0])}


def legend_outside(ax: "Axes", entries: Mapping[str, Any], *, title: str | None = None) -> None:
    """Name the entries in their order: to the right of the axes where they fit, else in columns below.

    A figure of `new_axes` grows by what goes below, so that the axes keep their size. Call it when all else is drawn.

    Parameters
    ----------
    ax : the axes.
    entries : artists by name.
    title : of the legend.
    """
    if not entries:
        return
    figure = _settled(ax)
    box = _legend(ax, entries, title, loc="upper left", bbox_to_anchor=(1.01, 1.0)).get_window_extent()
    if box.width <= BESIDE * figure.bbox.width and box.height <= ax.bbox.height:
        return
    from matplotlib.transforms import ScaledTranslation

    room = ax.xaxis.get_tightbbox()  # ticks and label
    down = (ax.bbox.y0 - room.y0 if room else 0.0) / figure.dpi + 0.08
    below = ax.transAxes + ScaledTranslation(0, -down, figure.dpi_scale_trans)
    columns = int(min(len(entries), ax.bbox.width / box.width))
    legend = _legend(
        ax, entries, title, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=max(1, columns),
        fontsize=9,
    )  # fmt: skip
    box = legend.get_window_extent()
    if figure.get_label() == _OWN:
        figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def legend_above(ax: "Axes", entries: Mapping[str, Any], *, title: str = "") -> None:
    """Name a few entries over the axes, in as many columns as fit, and put the title on top of them.

    Parameters
    ----------
    ax : the axes.
    entries : artists by name.
    title : of the axes; long ones take several lines.
    """
    figure, height = _settled(ax), 0.0
    for columns in range(len(entries), 0, -1):
        legend = _legend(
            ax, entries, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9, handlelength=1.4,
            columnspacing=1.4,
        )  # fmt: skip
        box = legend.get_window_extent()
        height = 72 * box.height / figure.dpi
        if box.width <= ax.bbox.width:
            break
    title_left(ax, title, pad=height + 2)


def title_left(ax: "Axes", text: str, *, pad: float | None = None) -> None:
    """Set a title that starts at the left edge of the axes, in as many lines as it needs; `pad` is in points."""
    lines = textwrap.fill(text, int(ax.bbox.width / ax.figure.dpi * LETTERS_PER_INCH))
    ax.set_title(lines, fontsize=10, loc="left", pad=pad, parse_math=False)


def _settled(ax: "Axes") -> "Figure":
    """Return the figure of the axes, laid out: what is measured then is what will be drawn."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    return figure


def _legend(ax: "Axes", entries: Mapping[str, Any], title: str | None = None, **options: Any) -> "Legend":
    # given as labels, names with an underscore in front would be left out
    legend = ax.legend(
        list(entries.values()), ["-"] * len(entries), title=title, borderaxespad=0.0, frameon=False, **options
    )
    for text, name in zip(legend.get_texts(), entries, strict=True):
        text.set_text(shown(name))
        text.set_parse_math(False)
    return legend
