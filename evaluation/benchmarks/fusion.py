"""Measure fusion by uncertainty: ``python -m edgeopt.evaluation.benchmarks.fusion``.

DUAL-Health of the default size on the simulated subjects: training with the defaults of `fit`, and inference as steps come in, one thread. A
window is the step that completes it: its answer looks back over the whole context. Times of inference are the least of several runs.
"""

import argparse
import sys
import time
from typing import Any

import torch
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row
from edgeopt.fusion import DualHealth, Packing, fit, health_recordings

WINDOWS_PER_S = 1000.0
MINUTES = 15.0
_LENGTH, _STRIDE = 16, 8


def streaming(model: DualHealth, x: torch.Tensor, repeats: int) -> float:
    """Return answers per second, one step of every recording [B, T, F + M] at a time."""

    @torch.inference_mode()
    def run() -> None:
        state: Any = None
        for t in range(x.shape[1]):
            _, state = model.run(x[:, t : t + 1], state)

    return x.shape[0] * x.shape[1] / common.clock(run, repeats).least


def measure(options: argparse.Namespace) -> Row:
    """Measure everything on one thread."""
    if options.quick:
        options.epochs, options.repeats, options.subjects = 1, 1, 2
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recordings = health_recordings()
        windows = recordings.windows(_LENGTH, stride=_STRIDE, subjects=range(options.subjects))
        packing = Packing.of(windows)
        model = DualHealth(recordings.modalities, 4, context=_LENGTH)
        common.say("training")
        start = time.perf_counter()
        fit(model, packing, windows, epochs=options.epochs)
        minutes = (time.perf_counter() - start) / 60
        x = packing.pack(recordings.windows(int(recordings.steps or 1), subjects=range(options.subjects)))
        rows = []
        for streams in options.streams:
            common.say(f"{streams} streams")
            parts = x[torch.arange(streams) % len(x)]
            rows.append({"streams": streams, "windows_per_s": streaming(model, parts, options.repeats)})
    finally:
        torch.set_num_threads(before)
    goals = [
        common.goal(
            f"windows per second, {row['streams']} streams", WINDOWS_PER_S, row["windows_per_s"], "1/s", at_least=True
        )
        for row in rows
    ]
    goals.append(common.goal("training of the default", MINUTES, minutes, "min"))
    return {"rows": rows, "minutes": minutes, "valid": True, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, "Inference as steps come in, one thread", ("streams", "windows per second"),
        [[str(row["streams"]), f"{row['windows_per_s']:.0f}"] for row in report["rows"]],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--subjects", type=int, default=30, help="that are trained with")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 8, 64], help="recordings at once, one number or several"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repeats of inference; the least counts")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("fusion", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
