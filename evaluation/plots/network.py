"""`plot_network`: where servers and devices are, and who talks to whom."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import COLOURS, GREY, new_axes
from edgeopt.network import EdgeNetwork

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABELS = 20  # more labels than this cover each other
MANY_DEVICES = 300  # more devices than this are drawn small and faint
BACKHAUL = "#3B4252"
NO_COVERAGE = "#B5B5B5"


def plot_network(
    network: EdgeNetwork,
    ax: "Axes | None" = None,
    *,
    coverage: bool = True,
    delays: bool | None = None,
    legend: bool = True,
) -> "Axes":
    """Draw servers, devices in the colour of their access server, wireless coverage and the backhaul.

    Parameters
    ----------
    network : what to draw.
    ax : axes to draw on; a new figure without.
    coverage : draw a line for each device and each server that covers it.
    delays : write the delay of each backhaul link, without payload. Default: if servers and links are at most 20.
    legend : put a legend to the right of the axes.

    Returns
    -------
    The axes, in metres, both directions to the same scale.

    Examples
    --------
    >>> ax = plot_network(EdgeNetwork.random(6, 40, seed=0))
    >>> ax.figure.savefig("network.png")  # doctest: +SKIP
    """
    from matplotlib.collections import LineCollection

    ax = new_axes(ax, width=8.4, height=6.2)
    access, servers = network.access_server, network.server_position_m
    colours = _spread_colours(servers)
    small, crowded = network.num_devices > MANY_DEVICES, network.num_servers > MAX_LABELS
    if coverage:
        _draw_coverage(ax, network, access, colours, scale=0.5 if small else 1.0)
    ends = servers[network.link_servers]  # [B, 2, 2]
    ax.add_collection(LineCollection(list(ends), colors=BACKHAUL, linewidths=2.6, capstyle="round", zorder=2))
    x, y = network.device_position_m.T
    dots = [colours[n] if n >= 0 else NO_COVERAGE for n in access]
    ax.scatter(x, y, s=7 if small else 28, c=dots, edgecolors="white", linewidths=0.2 if small else 0.6, zorder=3)
    x, y = servers.T
    ax.scatter(
        x, y, s=70 if crowded else 230, c=colours, marker="s", edgecolors=BACKHAUL, linewidths=1.6, zorder=5
    )  # fmt: skip
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    if not crowded:
        for n, (x, y) in enumerate(servers):
            ax.text(x, y, str(n), fontsize=9, weight="bold", color="white", zorder=6, **centred)
    if delays if delays is not None else not crowded and network.num_links <= MAX_LABELS:
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
        for (x, y), delay in zip(ends.mean(axis=1), network.link_delay_s, strict=True):
            ax.text(x, y, f"{1000 * delay:.2f} ms", fontsize=7.5, color=BACKHAUL, bbox=box, zorder=4, **centred)
    ax.set_aspect("equal", adjustable="box")
    ax.autoscale_view()
    ax.set(xlabel="x (m)", ylabel="y (m)")
    ax.set_title(f"{network.num_servers} servers, {network.num_devices} devices", fontsize=10, loc="left")
    if legend:
        _add_legend(ax, coverage=coverage, backhaul=network.num_links > 0, uncovered=bool((access < 0).any()))
    return ax


def _draw_coverage(
    ax: "Axes", network: EdgeNetwork, access: NDArray[np.int32], colours: list[str], scale: float
) -> None:
    from matplotlib.collections import LineCollection

    device, server = np.nonzero(network.coverage)
    lines = np.stack([network.device_position_m[device], network.server_position_m[server]], axis=1)  # [links, 2, 2]
    own = access[device] == server
    for chosen, width, alpha in ((~own, 0.6, 0.3), (own, 1.0, 0.65)):
        tints = [colours[n] for n in server[chosen]]
        ax.add_collection(
            LineCollection(list(lines[chosen]), colors=tints, linewidths=scale * width, alpha=scale * alpha, zorder=1)
        )


def _add_legend(ax: "Axes", *, coverage: bool, backhaul: bool, uncovered: bool) -> None:
    from matplotlib.lines import Line2D

    tint = COLOURS[0]
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6, "markeredgecolor": "white"}
    handles = [
        Line2D([], [], linestyle="", marker="s", markersize=10, color=tint, markeredgecolor=BACKHAUL, label="server"),
        Line2D([], [], color=tint, label="device, in the colour\nof its access server", **dot),
    ]
    if uncovered:
        handles.append(Line2D([], [], color=NO_COVERAGE, label="device without coverage", **dot))
    if backhaul:
        handles.append(Line2D([], [], color=BACKHAUL, linewidth=2.6, label="backhaul link"))
    if coverage:
        handles.append(Line2D([], [], color=tint, linewidth=1.2, alpha=0.8, label="access link"))
        handles.append(Line2D([], [], color=GREY, linewidth=0.6, alpha=0.6, label="other coverage"))
    beside: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.01, 1.0),
        "borderaxespad": 0.0,
        "frameon": False,
    }
    ax.legend(handles=handles, fontsize=9, labelspacing=0.8, **beside)


def _spread_colours(position_m: NDArray[np.float64]) -> list[str]:
    """Return a colour per server: the one whose nearest bearer is farthest away, so that neighbours differ."""
    distance = np.full((len(COLOURS), len(position_m)), np.inf)  # [colour, server], to the nearest server of the colour
    chosen = []
    for n, position in enumerate(position_m):
        chosen.append(int(distance[:, n].argmax()))
        np.minimum(distance[chosen[-1]], np.hypot(*(position_m - position).T), out=distance[chosen[-1]])
    return [COLOURS[colour] for colour in chosen]
