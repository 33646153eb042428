"""Measure a layer of experts that computes the chosen ones alone, beside computing all: ``python -m edgeopt.evaluation.benchmarks.experts``.

For several sizes and numbers of tokens, the seconds of a pass without gradients and of one with them, both ways, on one
thread of the same process. The outputs are compared before the ratio is told.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row
from edgeopt.models.moe import Experts, every_expert

GOAL = 2.0  # times faster, where E = 16 and K = 2 and there is something to save
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Case:
    """A layer, and how many tokens it is given.

    Parameters
    ----------
    width, hidden, experts, top_k : of `Experts`.
    tokens : in one pass.
    goal : whether the goal is about it.
    """

    width: int
    hidden: int
    experts: int
    top_k: int
    tokens: int
    goal: bool = False

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        return f"{self.width} x {self.hidden}, {self.top_k} of {self.experts}, {self.tokens} tokens"


CASES = (
    Case(32, 32, 8, 2, 512), Case(64, 128, 16, 2, 16), Case(64, 128, 16, 2, 1024, goal=True), Case(256, 512, 16, 2, 1),
    Case(256, 512, 16, 2, 1024, goal=True), Case(256, 256, 64, 4, 1024),
)  # fmt: skip
QUICK = (Case(32, 64, 16, 2, 1024, goal=True),)


def run(case: Case, repeats: int) -> Row:
    """Return the row of a case."""
    torch.manual_seed(0)
    layer, x = Experts(case.width, case.hidden, case.experts, case.top_k), torch.randn(case.tokens, case.width)
    parameters = list(layer.parameters())

    def forward(all_: bool) -> torch.Tensor:
        with torch.inference_mode(), every_expert() if all_ else nullcontext():
            y: torch.Tensor = layer(x)
        return y

    def both(all_: bool) -> list[torch.Tensor]:
        with every_expert() if all_ else nullcontext():
            return list(torch.autograd.grad(layer(x).sin().sum(), parameters))

    pairs = [(forward(True), forward(False)), *zip(both(True), both(False), strict=True)]
    error = max(float((b - a).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
    row: Row = {"case": case.name, "goal": case.goal, "relative_error": error, "valid": error < TOLERANCE}
    passes: dict[str, Callable[[bool], Any]] = {"forward": forward, "both": both}
    for name, work in passes.items():
        work(True), work(False)
        all_s, chosen_s = (common.clock(lambda w=work, a=a: w(a), repeats).least for a in (True, False))  # type: ignore[misc]
        row |= {f"{name}_all_s": all_s, f"{name}_chosen_s": chosen_s, f"{name}_ratio": all_s / chosen_s}
    return row


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [run(case, 3 if options.quick else options.repeats) for case in (QUICK if options.quick else CASES)]
    finally:
        torch.set_num_threads(threads)
    return {
        "rows": rows,
        "valid": all(row["valid"] for row in rows),
        "goals": [
            common.goal(
                f"experts, {row['case']}, {what}: faster than all", GOAL, row[f"{name}_ratio"], "x", at_least=True
            )
            for row in rows
            if row["goal"]
            for name, what in (("forward", "without gradients"), ("both", "with gradients"))
        ],
    }


def show(report: Row, console: Console) -> None:
    """Print the table."""
    lines = [
        [
            row["case"],
            *(
                f"{1e3 * row[f'{name}_all_s']:.3g} / {1e3 * row[f'{name}_chosen_s']:.3g} ({row[f'{name}_ratio']:.1f}x)"
                for name in ("forward", "both")
            ),
            f"{row['relative_error']:.1e}",
            "yes" if row["valid"] else "NO",
        ]
        for row in report["rows"]
    ]
    columns = ("layer", "without gradients, ms: all / chosen", "with gradients, ms", "relative error", "valid")
    common.show_table(console, "experts that compute the tokens that use them (one thread)", columns, lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=20, help="repeats of each pass")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("experts", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
