"""Measure belief propagation: ``python -m edgeopt.evaluation.benchmarks.fountain``.

4,096 bits, parities of about 10,000 edges, 20 iterations on one thread: decoding once, against 10 ms; beside it what reading and
writing the same messages takes at the bandwidth that this machine has for arrays of that size and of the larger graph, and the time of the
same messages in torch. Times are the least of several runs.
"""

import argparse
import sys

import numpy as np
import torch
from rich.console import Console

from edgeopt.coding import Awgn, BeliefPropagation, LtCode
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds

MOST_S, FLOOR = 0.010, 2.0
_DEGREES, _CHANCES = (1, 2, 3, 4, 8), (0.1, 0.55, 0.2, 0.1, 0.05)
_BYTES = 9 * 8
"""Per edge and iteration: a neighbour's number twice, a message, a factor and a product written and read, a belief read and changed."""


def measure_graph(bits: int, edges: int, iterations: int, repeats: int) -> Row:
    """Return times of one graph."""
    rng = np.random.default_rng(0)
    code = LtCode(_DEGREES, _CHANCES, seed=1)
    graph = code.graph(bits, round(edges / code.mean_degree))
    word = (rng.random(bits) < 0.2).astype(np.uint8)
    channel = Awgn(3.0).receive(graph.encode(word), rng)
    prior = np.full(bits, float(np.log(4.0)))
    decoder = BeliefPropagation(graph)
    decoder.decode(channel, prior, 1)
    found = common.clock(lambda: decoder.decode(channel, prior, iterations), repeats).least
    tensors = torch.from_numpy(channel), torch.from_numpy(prior)
    decoder.propagate(*tensors, 1)
    in_torch = common.clock(lambda: decoder.propagate(*tensors, iterations), max(1, repeats // 4)).least
    drawn = common.clock(lambda: code.graph(bits, graph.num_symbols), repeats).least
    floor = _BYTES * graph.num_edges * iterations / bandwidth(_BYTES * graph.num_edges // 2, repeats)
    same = np.allclose(decoder.decode(channel, prior, iterations), decoder.propagate(*tensors, iterations), atol=1e-6)
    return {
        "bits": bits, "edges": graph.num_edges, "iterations": iterations, "decode": found, "torch": in_torch, "graph": drawn,
        "floor": floor, "per_edge_ns": 1e9 * found / iterations / graph.num_edges, "equal": bool(same),
    }  # fmt: skip


def bandwidth(size: int, repeats: int) -> float:
    """Return bytes per second, read and written, of copying an array of so many bytes."""
    source = np.ones(max(1, size // 8))
    target = np.empty_like(source)
    times = max(1, 10_000_000 // max(1, size))

    def copy() -> None:
        for _ in range(times):
            np.copyto(target, source)

    return 2 * 8 * len(source) * times / common.clock(copy, repeats).least


def measure(options: argparse.Namespace) -> Row:
    """Measure both graphs on one thread."""
    if options.quick:
        options.repeats = 2
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [measure_graph(4096, 10_000, 20, options.repeats)]
        if not options.quick:
            rows.append(measure_graph(393_216, 960_000, 20, max(2, options.repeats // 5)))
    finally:
        torch.set_num_threads(before)
    first = rows[0]
    goals = [common.goal("decoding 4,096 bits, 10,000 edges, 20 iterations", MOST_S, first["decode"], "s")]
    goals += [
        common.goal(f"belief propagation over the floor of memory, {row['bits']:,} bits", FLOOR, row["decode"] / row["floor"], "x")
        for row in rows
    ]  # fmt: skip
    return {"rows": rows, "valid": all(row["equal"] for row in rows), "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, "Belief propagation, one thread",
        ("bits", "edges", "iterations", "decoding", "per edge and iteration", "floor of memory", "in torch", "drawing the graph"),
        [
            [f"{row['bits']:,}", f"{row['edges']:,}", str(row["iterations"]), seconds(row["decode"]), f"{row['per_edge_ns']:.1f} ns",
             *(seconds(row[name]) for name in ("floor", "torch", "graph"))]
            for row in report["rows"]
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=20, help="repeats of every run; the least counts")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("fountain", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
