"""The picture of docs/expert-balancing.md, for docs/make_images.py."""

from pathlib import Path

import edgeopt
from edgeopt.evaluation.plots import plot_balance
from edgeopt.problems import ExpertBalancing, bundled_trace


def draw_expert_balancing(out: Path) -> None:
    """Draw the loads of devices under the placement of the page's first example, as a PNG file."""
    problem = ExpertBalancing.from_trace(bundled_trace("fine64"), num_devices=8)
    axes = plot_balance(problem, edgeopt.solve(problem, "local-search").solution)
    path = out / "expert-balancing.png"
    axes.get_figure(root=True).savefig(path, dpi=110, metadata={"Software": None})  # type: ignore[union-attr]
    print(f"wrote {path}")
