"""Draw the pictures of a comparison: those of the documentation, or those of a folder that ``edgeopt compare`` left.

``python docs/make_images.py`` runs the comparisons behind the documentation and draws into docs/images.
``python docs/make_images.py --rows DIR --out DIR`` only draws.
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from images_expert_balancing import draw_expert_balancing
from images_model_download import draw_model_download
from images_split_training import draw_split_training
from images_what_if import draw_what_if

from edgeopt import EdgeNetwork
from edgeopt.evaluation import comparison_rows, library_names, load_instance, read_rows
from edgeopt.evaluation.compare.performance import with_gaps
from edgeopt.evaluation.compare.solutions import solution_from_json
from edgeopt.evaluation.plots import plot_bounds, plot_gap_against_time, plot_network
from edgeopt.evaluation.plots.solutions import SOLUTION_PICTURES, draw_solution
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, bundled_trace
from edgeopt.solvers import solvers_of
from edgeopt.streams import one_line_messages

IMAGES = Path(__file__).resolve().parent / "images"
TIME_LIMIT = 20.0
BASELINES = ("random", "popularity")  # so far from the rest that they would squeeze the picture


def main() -> None:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, help="folder of a comparison; default: run the documentation's own")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with one_line_messages():
        if options.rows is None:
            draw_documentation(options.out)
        else:
            draw_comparison(options.rows, options.out)


def draw_documentation(out: Path) -> None:
    """Draw what the README and the pages show; training servers for client selection needs torch."""
    from images_client_selection import draw_client_selection

    network = EdgeNetwork.random(num_servers=10, num_devices=100, seed=0)
    problem = ExpertCaching.from_traces(bundled_trace("switch32"), network, storage=0.05)
    names = [solver.name for solver in solvers_of(problem.kind) if solver.name not in BASELINES]
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = comparison_rows({"switch32": problem}, names, time_limit=TIME_LIMIT, jobs=2, out=folder)
    save(plot_bounds(solved(rows)), out / "bounds.png")
    save(plot_gap_against_time(solved(rows)), out / "gap-against-time.png")
    save(plot_network(network), out / "network.png", dpi=90)
    draw_expert_balancing(out)
    draw_what_if(out)
    draw_model_download(out)
    draw_split_training(out)
    draw_client_selection(out)


def draw_comparison(folder: Path, out: Path) -> None:
    """Draw three pictures for every instance of a comparison."""
    rows = with_gaps(read_rows(folder))
    for name in dict.fromkeys(row["instance"] for row in rows):
        own = [row for row in rows if row["instance"] == name]
        save(plot_bounds(own), out / f"{name}-bounds.png")
        save(plot_gap_against_time(own), out / f"{name}-gap-against-time.png")
        if name in library_names():
            draw_best(load_instance(name), own, out / name)


def draw_best(problem: Problem, rows: Iterable[dict[str, Any]], stem: Path) -> None:
    """Draw the best solution among the rows, if there is one, into files whose names start with `stem`."""
    sign = 1.0 if problem.sense == "max" else -1.0
    best = max(solved(rows), key=lambda row: sign * row["objective"], default=None)
    if best is not None:
        solution = solution_from_json(problem, best["solution"])
        for _, function in SOLUTION_PICTURES.get(problem.kind, ()):
            axes = draw_solution(function, problem, solution)
            save(axes, stem.with_name(f"{stem.name}-{function.removeprefix('plot_').replace('_', '-')}.png"))


def solved(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with a feasible solution."""
    return [row for row in rows if row["feasible"] and row.get("solution")]


def save(axes: Any, path: Path, dpi: int = 150) -> None:
    """Write the picture without its time of making, so that equal pictures are equal files."""
    axes.get_figure(root=True).savefig(path, dpi=dpi, metadata={"Software": None})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
