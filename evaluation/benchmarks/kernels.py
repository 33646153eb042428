"""Time the knapsack and (max,+) kernels beside other ways to do the same: ``python -m edgeopt.evaluation.benchmarks.kernels``.

Every row is the least of several repeats, in this process, one after another; results are checked to be equal before
a time counts. Compilation happens before the clock and is reported apart.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgeopt.solvers.back_ends import knapsack_module
from edgeopt.solvers.kernels import Floats, Ints, knapsack, max_plus
from edgeopt.streams import reserve_stdout

Row = dict[str, Any]

NUM_ITEMS = 384
CAPACITIES = (1_000, 10_000, 100_000)
SIZES = (1_000, 10_000, 50_000)
GROWTH = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
NUMPY_LIMIT = 10_000  # longest input of the numpy loop
STRIDE = 8
ORTOOLS = {
    "B&B": "KNAPSACK_MULTIDIMENSION_BRANCH_AND_BOUND_SOLVER",
    "divide & conquer": "KNAPSACK_DIVIDE_AND_CONQUER_SOLVER",
    "dynamic programming": "KNAPSACK_DYNAMIC_PROGRAMMING_SOLVER",
}


def best_ms(function: Callable[..., Any], *arguments: Any, repeats: int = 9) -> float:
    """Least milliseconds of a call over several repeats; slow calls are repeated less."""
    best = math.inf
    spent = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        function(*arguments)
        seconds = time.perf_counter() - start
        best = min(best, seconds)
        spent += seconds
        if spent > 2.0:
            break
    return best * 1e3


def items(kind: str, capacity: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Whole values and weights, about half of which fit."""
    largest = 4 * capacity // NUM_ITEMS
    weights = rng.integers(1, largest + 1, NUM_ITEMS)
    if kind == "uncorrelated":
        values = rng.integers(1, largest + 1, NUM_ITEMS)
    elif kind == "strongly correlated":
        values = weights + largest // 10
    else:  # inverse strongly correlated: the weight is the value plus a constant
        values, weights = weights, weights + largest // 10
    return values, weights


def run_ortools(method: str, values: Ints, weights: Ints, capacity: int, limit: float) -> tuple[float, float, bool]:
    """Milliseconds, value, and whether it is proved to be the best.

    The clock covers ``init`` and ``solve``, not the conversion to lists: ``init`` alone already solves easy instances.
    """
    ortools = knapsack_module()
    profits, loads = values.tolist(), [weights.tolist()]
    best, value, proved = math.inf, 0.0, False
    for _ in range(5):
        solver = ortools.KnapsackSolver(getattr(ortools.SolverType, ORTOOLS[method]), "benchmark")
        solver.set_time_limit(limit)
        start = time.perf_counter()
        solver.init(profits, loads, [capacity])
        value = float(solver.solve())
        milliseconds = (time.perf_counter() - start) * 1e3
        best, proved = min(best, milliseconds), bool(solver.is_solution_optimal())
        if milliseconds > 300.0:
            break
    return best, value, proved


def knapsack_rows(limit: float, seed: int) -> list[Row]:
    """One row per capacity and kind of instance."""
    rows = []
    for capacity in CAPACITIES:
        for kind in ("uncorrelated", "strongly correlated", "inverse strongly correlated"):
            values, weights = items(kind, capacity, np.random.default_rng(seed))
            real = values.astype(np.float64)
            profile = knapsack.knapsack_profile(real, weights, capacity)
            optimum, chosen = knapsack.knapsack(real, weights, capacity)
            equal = optimum == profile[-1] == real[chosen].sum() and weights[chosen].sum() <= capacity
            row: Row = {
                "capacity": capacity,
                "kind": kind,
                "profile_ms": best_ms(knapsack.knapsack_profile, real, weights, capacity),
                "choice_ms": best_ms(knapsack.knapsack, real, weights, capacity),
            }
            for method in ORTOOLS:
                ms, value, proved = run_ortools(method, values, weights, capacity, limit)
                row[f"{method} ms"] = ms
                row[f"{method} ratio"] = ms / row["choice_ms"]
                row[f"{method} proved"] = proved
                row[f"{method} quality"] = value / optimum
                equal = equal and (value == optimum if proved else value <= optimum)
            row["equal"] = bool(equal)
            rows.append(row)
    return rows


def numpy_loop(a: Floats, b: Floats) -> Floats:
    """Values of the convolution by one vector operation per level."""
    out = np.full(a.size + b.size - 1, -np.inf)
    for k in range(b.size):
        part = out[k : k + a.size]
        np.maximum(part, a + b[k], out=part)
    return out


def profiles(size: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """One arbitrary and two concave profiles."""
    a, b = (np.append(0.0, np.cumsum(np.sort(rng.random(size - 1))[::-1])) for _ in range(2))
    return rng.random(size) * size, a, b


def max_plus_rows(seed: int) -> list[Row]:
    """One row per length; ratios are against our own dense kernel, which is exact for any profile."""
    rows = []
    for size in SIZES:
        h, a, b = profiles(size, np.random.default_rng(seed))
        exact = max_plus.max_plus_dense(h, b)[0]
        merged = max_plus.max_plus_concave_concave(a, b)[0]
        equal = np.allclose(max_plus.max_plus_concave(h, b)[0], exact, rtol=1e-13, atol=0.0)
        equal &= np.allclose(merged, max_plus.max_plus_concave(a, b)[0], rtol=1e-13, atol=1e-13)
        strided = max_plus.max_plus_strided_dense(h, b, STRIDE)[0]
        equal &= np.allclose(max_plus.max_plus_strided(h, b, STRIDE)[0], strided, rtol=1e-13, atol=0.0)
        row: Row = {"size": size, "numpy_ms": None}
        if size <= NUMPY_LIMIT:
            equal &= np.array_equal(numpy_loop(h, b), exact)
            row["numpy_ms"] = best_ms(numpy_loop, h, b, repeats=3)
        row["dense_ms"] = best_ms(max_plus.max_plus_dense, h, b)
        row["dense_gops"] = size * size / row["dense_ms"] / 1e6
        row["concave_ms"] = best_ms(max_plus.max_plus_concave, h, b, repeats=25)
        row["strided_ms"] = best_ms(max_plus.max_plus_strided, h, b, STRIDE, repeats=25)
        row["concave_concave_ms"] = best_ms(max_plus.max_plus_concave_concave, a, b, repeats=25)
        row["equal"] = bool(equal)
        rows.append(row)
    return rows


def growth(seed: int) -> Row:
    """Return times up to a million levels, and the power of n log n that fits them (1: exactly n log n)."""
    times = []
    for size in GROWTH:
        h, _, b = profiles(size, np.random.default_rng(seed))
        times.append(best_ms(max_plus.max_plus_concave, h, b))
    n = np.array(GROWTH, dtype=np.float64)
    exponent = float(np.polyfit(np.log(n * np.log(n)), np.log(times), 1)[0])
    return {"sizes": list(GROWTH), "concave_ms": times, "exponent_of_n_log_n": exponent}


def measure(limit: float, seed: int) -> Row:
    """Run everything; the compile seconds are the first calls of all kernels, or their loading from the cache."""
    start = time.perf_counter()
    knapsack.warm_up()
    max_plus.warm_up()
    compiled = time.perf_counter() - start
    return {
        "compile_seconds": compiled,
        "seed": seed,
        "num_items": NUM_ITEMS,
        "knapsack": knapsack_rows(limit, seed),
        "max_plus": max_plus_rows(seed),
        "growth": growth(seed),
    }


def _other(row: Row, method: str) -> str:
    flag = "" if row[f"{method} proved"] else f", unproved, {row[f'{method} quality']:.2%}"
    return f"{row[f'{method} ms']:.3g} ({row[f'{method} ratio']:.1f}x{flag})"


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    console.print(f"first calls (compile or load from cache): {report['compile_seconds']:.2f} s")
    table = Table(title=f"0/1 knapsack, {NUM_ITEMS} items, ms (ratio to ours with choice)")
    for name in ("capacity", "instance", "profile", "with choice", *(f"ortools {x}" for x in ORTOOLS), "equal"):
        table.add_column(name, justify="left" if name == "instance" else "right")
    for row in report["knapsack"]:
        others = [_other(row, method) for method in ORTOOLS]
        own = [f"{row['profile_ms']:.3f}", f"{row['choice_ms']:.3f}"]
        table.add_row(f"{row['capacity']:,}", row["kind"], *own, *others, "yes" if row["equal"] else "NO")
    console.print(table)
    table = Table(title=f"(max,+) convolution, ms (ratio to dense); strided: stride {STRIDE}")
    for name in ("length", "numpy loop", "dense", "G max-adds/s", "concave", "strided", "concave+concave", "equal"):
        table.add_column(name, justify="right")
    for row in report["max_plus"]:
        dense = row["dense_ms"]
        loop = "-" if row["numpy_ms"] is None else f"{row['numpy_ms']:.2f} ({row['numpy_ms'] / dense:.1f}x)"
        fast = [f"{row[x]:.3f} ({row[x] / dense:.3f}x)" for x in ("concave_ms", "strided_ms", "concave_concave_ms")]
        cells = [loop, f"{dense:.2f}", f"{row['dense_gops']:.1f}", *fast, "yes" if row["equal"] else "NO"]
        table.add_row(f"{row['size']:,}", *cells)
    console.print(table)
    grown = report["growth"]
    pairs = zip(grown["sizes"], grown["concave_ms"], strict=True)
    console.print("concave, ms: " + ", ".join(f"{size:,}: {ms:.3f}" for size, ms in pairs))
    console.print(f"grows like (n log n)^{grown['exponent_of_n_log_n']:.3f}")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if any two results differ."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.evaluation.benchmarks.kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds per run of an ortools solver")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instances")
    options = parser.parse_args(arguments)
    if options.json:
        reserve_stdout()
    report = measure(options.time_limit, options.seed)
    if options.json:
        print(json.dumps(report))
    else:
        show(report, Console(width=None if sys.stdout.isatty() else 160))
    return 0 if all(row["equal"] for row in report["knapsack"] + report["max_plus"]) else 1


if __name__ == "__main__":
    sys.exit(main())
