"""Every picture is readable with one, ten and thirty names: laid out in full, nothing is squeezed, cut off or on top of another."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from edgeopt.evaluation import plots
from edgeopt.evaluation.plots.style import MAX_NAME, curve_styles, legend_above, legend_outside, line_styles, shown
from tests.evaluation.plots.drawings import COUNTED, NAMED, comparison, long_names, odd_names, profile, short_names

pytest.importorskip("torch")

LEAST_SHARE = 0.3  # of the figure, for the axes and what belongs to them
SLACK = 1.5  # pixels: letters have room around them


def boxes(ax: Axes) -> dict[str, Bbox]:
    """Return where words are: title, labels of axes, labels of ticks in view, and the entries of the legend."""
    texts = [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax._left_title, *_ticks(ax)]  # type: ignore[attr-defined]
    if legend := ax.get_legend():
        texts += [*legend.get_texts(), legend.get_title()]
    found = {}
    for text in texts:
        if text.get_visible() and text.get_text() and not isinstance(text, Annotation):
            found[f"{len(found)} {text.get_text()}"] = text.get_window_extent()
    return found


def _ticks(ax: Axes) -> list[Text]:
    found: list[Text] = []
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if low <= tick.get_loc() <= high:
                found += [tick.label1, tick.label2]
    return found


def overlaps(one: Bbox, other: Bbox) -> bool:
    """Say whether two boxes share more than a rim."""
    return (
        min(one.x1, other.x1) - max(one.x0, other.x0) > SLACK and min(one.y1, other.y1) - max(one.y0, other.y0) > SLACK
    )


def check(drawn: Axes) -> None:
    """Lay the figure out and measure it."""
    figure = drawn.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    page = figure.bbox.padded(SLACK)
    area = drawn.get_window_extent()
    right = drawn.get_figure().axes[-1].get_window_extent()  # the shares beside a latency
    whole = Bbox.union([area, right])
    assert whole.width * whole.height >= LEAST_SHARE * figure.bbox.width * figure.bbox.height
    for ax in figure.axes:
        words = boxes(ax)
        for name, box in words.items():
            assert page.x0 <= box.x0 <= box.x1 <= page.x1, f"{name!r} leaves the picture"
            assert page.y0 <= box.y0 <= box.y1 <= page.y1, f"{name!r} leaves the picture"
        for (name, box), (other, second) in combinations(words.items(), 2):
            assert not overlaps(box, second), f"{name!r} and {other!r} are on top of each other"
        if legend := ax.get_legend():
            assert not overlaps(legend.get_window_extent(), ax.get_window_extent()), "the legend covers data"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("draw", COUNTED, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("count", [1, 10, 30])
def test_any_number(draw: Callable[..., Any], count: int):
    """Axes keep their share, no words are cut off or overlap, the legend is beside the data; warnings are errors."""
    check(draw(short_names(count)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("draw", NAMED, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(
    "names", [short_names(1), odd_names(10), long_names(30)], ids=["one", "ten odd", "thirty long"]
)
def test_any_names(draw: Callable[..., Any], names: list[str]):
    """The same for names of forty letters, and for accents, underscores in front, pairs of dollars and line breaks."""
    check(draw(names))


@pytest.mark.parametrize("names", [short_names(30), long_names(30), odd_names(30), ["a"]])
def test_legend_names_everybody(names: list[str]):
    """Each name is in the legend once, as it is, with its own line, best first: the first name always has gap 0."""
    ax = profile(names)
    legend = ax.get_legend()
    found = [text.get_text() for text in legend.get_texts()]
    assert sorted(found) == sorted(map(shown, names))
    assert found[0] == shown(names[0])
    assert not any(text.get_parse_math() for text in legend.get_texts())
    looks = {(h.get_color(), h.get_linestyle(), h.get_marker()) for h in legend.legend_handles}
    assert len(looks) == len(names)


@pytest.mark.parametrize("styles", [line_styles, curve_styles])
def test_every_name_has_a_look_of_its_own(styles: Callable[..., dict[str, dict[str, Any]]]):
    """No two of 196 share colour, dash and marker, and neighbours of one colour differ in dash and in marker."""
    looks = [(s["color"], s["linestyle"], s["marker"]) for s in styles(map(str, range(196))).values()]
    assert len(set(looks)) == len(looks)
    for first, second in zip(looks, looks[7:], strict=False):
        assert first[0] == second[0]
        assert first[1] != second[1]
        assert first[2] != second[2]


def test_names_are_cut_in_the_middle():
    """What tells long names apart is often at their end; lines become one."""
    assert shown("x" * MAX_NAME) == "x" * MAX_NAME
    cut = shown("begin" + "x" * 200 + "end")
    assert len(cut) == MAX_NAME
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert shown("a\n b") == "a b"


def test_a_legend_on_given_axes_leaves_the_figure_as_it_is():
    """Only figures that were made for the picture grow; the others lay the legend out in what they have."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    plots.plot_performance_profile(comparison(short_names(30)), figure.add_subplot())
    assert figure.get_size_inches().tolist() == [7, 5]
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert not overlaps(ax.get_legend().get_window_extent(), ax.get_window_extent())


def test_nothing_to_name():
    """Without entries there is no legend."""
    ax = Figure().add_subplot()
    legend_outside(ax, {})
    legend_above(ax, {}, title="nothing")
    assert ax.get_legend() is None
    assert ax.get_title(loc="left") == "nothing"
