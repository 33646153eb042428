"""Measure the protection of faces: ``python -m edgeopt.evaluation.benchmarks.sider``.

Seconds, of the machine and of the process, to protect faces with the defaults: one and several, all iterations and as many as it takes,
with one thread and with as many as torch takes.
"""

import argparse
import sys
import time
from itertools import product

import torch
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row
from edgeopt.privacy.face_models import FaceModels
from edgeopt.privacy.faces import SIZES, View, random_numbers, render
from edgeopt.privacy.sider import Sider
from edgeopt.rng import stream

SECONDS = 60.0
"""Goal for one face of 64 pixels and all iterations."""


def protecting(models: FaceModels, size: int, count: int, *, stop: bool, threads: int, quick: bool) -> Row:
    """Return seconds to protect so many rendered faces, and the iterations that they took."""
    rng = stream(2, "sider", size)
    faces = render(random_numbers(count, rng), random_numbers(count, rng), View.random(count, rng), size=size, rng=rng)
    sider = Sider(models=models, stop=stop, iterations=1) if quick else Sider(models=models, stop=stop)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        start = time.perf_counter(), time.process_time()
        done = sider.protect(faces)
        end = time.perf_counter(), time.process_time()
    finally:
        torch.set_num_threads(before)
    return {
        "size": size, "faces": count, "stop": stop, "threads": threads, "seconds": end[0] - start[0], "cpu_s": end[1] - start[1],
        "iterations": int(done.iterations.max()), "reached": int(done.reached.sum()), "valid": bool(done.pictures.isfinite().all()),
    }  # fmt: skip


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    models = FaceModels.pretrained()
    rows = []
    for threads in sorted({1, torch.get_num_threads()}):
        protecting(models, SIZES[0], 1, stop=False, threads=threads, quick=True)  # what torch loads and keeps
        for size, count, stop in product(SIZES, (1, options.faces), (True, False)):
            common.say(f"{count} of {size} pixels, {threads} threads")
            rows.append(protecting(models, size, count, stop=stop, threads=threads, quick=options.quick))
    goals = [
        common.goal(f"protect one face of 64 pixels, {row['threads']} threads", SECONDS, row["seconds"], "s")
        for row in rows
        if (row["size"], row["faces"], row["stop"]) == (64, 1, False)
    ]
    return {"rows": rows, "valid": all(row["valid"] for row in rows), "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, "Protecting faces", ("pixels", "faces", "threads", "stops early", "iterations", "seconds", "CPU s", "goals reached"),
        [
            [
                str(row["size"]), str(row["faces"]), str(row["threads"]), "yes" if row["stop"] else "no", str(row["iterations"]),
                f"{row['seconds']:.2f}", f"{row['cpu_s']:.2f}", f"{row['reached']} of {row['faces']}",
            ]
            for row in report["rows"]
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--faces", type=int, default=8, help="that are protected together")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("sider", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
