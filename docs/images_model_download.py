"""The pictures of docs/model-download.md, for docs/make_images.py."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeopt
from edgeopt.evaluation.plots import (
    download_throughput,
    plot_bandwidth_bars,
    plot_download_throughput,
    plot_download_timeline,
    plot_rolling,
)
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.solvers.model_download import poisson_arrivals, rolling_horizon

COMPARED = ("slide", "download-then-infer", "equal-bandwidth", "fixed-frequency", "random")
NUM_SHOWN = 6
LOADS = (2.5, 5.0, 10.0, 20.0, 40.0)  # arrivals per second
SEEDS = tuple(range(10))


def draw_model_download(out: Path) -> None:
    """Draw timeline, bandwidth, throughput against three numbers, and the rolling horizon, as PNG files."""
    problem = ModelDownload.random(num_users=30, bandwidth_hz=200e6, seed=0)
    plans = {name: edgeopt.solve(problem, name).solution for name in COMPARED[:2]}
    gained = np.flatnonzero(plans["slide"].admitted & ~plans["download-then-infer"].admitted)
    both = np.flatnonzero(plans["slide"].admitted & plans["download-then-infer"].admitted)
    both = both[np.argsort(-_seconds_of_computing(problem, plans["slide"])[both], kind="stable")]
    shown = sorted([*gained[:3].tolist(), *both[: NUM_SHOWN - min(3, gained.size)].tolist()])
    _save(plot_download_timeline(problem, plans, users=shown), out / "model-download-timeline.png")
    _save(plot_bandwidth_bars(problem, plans["slide"]), out / "model-download-bandwidth.png")
    for x, values in (
        ("bandwidth_hz", np.arange(50e6, 401e6, 50e6)),
        ("deadline_s", np.arange(0.5, 3.1, 0.5)),
        ("num_users", range(10, 61, 10)),
    ):
        rows = download_throughput(x, values, COMPARED, seeds=SEEDS)  # type: ignore[arg-type]
        _save(
            plot_download_throughput(rows),
            out / f"model-download-against-{x.split('_')[0].replace('num', 'users')}.png",
        )
    rows = rolling_rows()
    _save(plot_download_throughput(rows, x="per_s", value="share_done"), out / "model-download-rolling-load.png")
    requests = ModelDownload.random(num_users=300, seed=0)
    _save(plot_rolling(rolling_horizon(requests, poisson_arrivals(300, 30.0))), out / "model-download-rolling.png")


def rolling_rows() -> list[dict[str, Any]]:
    """Return the summary of a rolling horizon for each load, seed and solver."""
    rows = []
    for per_s in LOADS:
        for seed in SEEDS[:5]:
            requests, arrival_s = (
                ModelDownload.random(num_users=400, seed=seed),
                poisson_arrivals(400, per_s, seed=seed),
            )
            for name in COMPARED[:2]:
                rows.append({"per_s": per_s, **rolling_horizon(requests, arrival_s, name).summary()})
    return rows


def _seconds_of_computing(problem: ModelDownload, plan: DownloadPlan) -> NDArray[np.float64]:
    timeline = problem.simulate(plan)
    total = np.concatenate([[0.0], np.cumsum(timeline.finish_s - timeline.start_s)])
    return np.diff(total[timeline.indptr])


def _save(axes: Any, path: Path) -> None:
    axes.get_figure(root=True).savefig(path, dpi=110, metadata={"Software": None})
    print(f"wrote {path}")
