"""The picture of docs/what-if.md, for docs/make_images.py."""

from pathlib import Path

from edgeopt.evaluation import what_if
from edgeopt.evaluation.plots import plot_what_if
from edgeopt.problems import ModelDownload


def draw_what_if(out: Path) -> None:
    """Draw the curves of the page's command, as a PNG file."""
    problem = ModelDownload.random(num_users=40, bandwidth_hz=100e6, seed=1)
    rows, _ = what_if(problem, ["bandwidth=50..200MHz/7", "deadline=x0.5..x2/5"])
    path = out / "what-if.png"
    plot_what_if(rows).get_figure(root=True).savefig(path, dpi=110, metadata={"Software": None})  # type: ignore[union-attr]
    print(f"wrote {path}")
