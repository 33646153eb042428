"""Measure Top-K caching with `max` and `mix` latency on the bundled traces: ``python -m edgeopt.evaluation.benchmarks.top_k``.

First the whole traces, Top-2 of 8 and Top-4 of 64 experts: what each solver reaches in a time limit, against the least
certified bound of all. Then parts of the traces that exact solvers may finish: what the same solvers reach, against the
proved optimum. Every objective is checked against every bound.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, percent, seconds
from edgeopt.network import EdgeNetwork
from edgeopt.problems import ExpertCaching, RoutingTrace, bundled_trace
from edgeopt.result import relative_gap

SOLVERS = ("greedy", "density-greedy", "successive", "max-convolution", "lagrangian")
BEST_OF = ("max-convolution", "lagrangian")
EXACT = ("milp", "cp-sat")
LATENCIES: dict[str, dict[str, Any]] = {"max": {"latency": "max"}, "mix:0.5": {"latency": "mix", "theta": 0.5}}
GOAL_GAP = 0.02  # to the certified bound, whole traces
GOAL_TO_OPTIMUM = 0.001  # to the optimum, parts of traces


@dataclass(frozen=True, slots=True)
class Part:
    """A bundled trace, or a part of it, on a random network with two devices per user of the trace.

    Parameters
    ----------
    trace : name of the bundled trace.
    servers : servers of the network.
    users, layers : how many of the trace to keep, from the first; None: all.
    experts : keep the tokens whose experts are all among so many most used ones; only with one layer. None: all.
    storage : share of all experts per server.
    """

    trace: str
    servers: int
    users: int | None = None
    layers: int | None = None
    experts: int | None = None
    storage: float = 0.2

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        kept = {"users": self.users, "layers": self.layers, "experts": self.experts, "servers": self.servers}
        return f"{self.trace}: " + ", ".join(f"{value} {key}" for key, value in kept.items() if value is not None)

    def problem(self, latency: str) -> ExpertCaching:
        """Return the problem with one of `LATENCIES`."""
        trace = restrict(bundled_trace(self.trace), self.users, self.layers, self.experts)
        network = EdgeNetwork.random(self.servers, 2 * trace.num_users, seed=1)
        return ExpertCaching.from_traces(trace, network, storage=self.storage, **LATENCIES[latency])


WHOLE = (Part("mixtral8", 6), Part("fine64", 6))
PARTS = (
    Part("mixtral8", 2, users=3, layers=1, storage=0.25),
    Part("mixtral8", 3, users=4, layers=1, storage=0.25),
    Part("mixtral8", 2, users=3, layers=2, storage=0.25),
    Part("mixtral8", 3, users=4, layers=2, storage=0.2),
    Part("fine64", 2, users=2, layers=1, experts=10, storage=0.3),
    Part("fine64", 2, users=3, layers=1, experts=12, storage=0.3),
    Part("fine64", 3, users=4, layers=1, experts=16, storage=0.25),
)
QUICK_WHOLE, QUICK_PARTS = (Part("mixtral8", 2, users=3, layers=2),), PARTS[:1]


def restrict(trace: RoutingTrace, users: int | None, layers: int | None, experts: int | None) -> RoutingTrace:
    """Return a part of a trace, see `Part`; the experts kept are numbered anew.

    Examples
    --------
    >>> restrict(bundled_trace("fine64"), users=2, layers=1, experts=12).statistics()["experts"]
    12
    """
    users, layers = users or trace.num_users, layers or trace.num_layers
    keep = (trace.set_user < users) & (trace.set_layer < layers)
    kept = np.arange(trace.num_experts)
    tokens = trace.tokens_per_user[:users]
    if experts is not None:
        if layers != 1:
            raise ValueError(f"layers = {layers}: expected 1, since tokens are kept by their experts in one layer")
        counts = np.repeat(trace.set_count[keep], trace.top_k)
        uses = np.bincount(trace.set_experts[keep].ravel(), weights=counts, minlength=trace.num_experts)
        kept = np.sort(np.argsort(-uses, kind="stable")[:experts])
        keep &= np.isin(trace.set_experts, kept).all(axis=1)
        tokens = np.bincount(trace.set_user[keep], weights=trace.set_count[keep], minlength=users).astype(np.int64)
    meta = {key: trace.meta[key] for key in ("d_model", "d_ff", "expert_kind", "bytes_per_expert_fp16")}
    return RoutingTrace(
        name=trace.name,
        num_layers=layers,
        num_experts=kept.size,
        set_user=trace.set_user[keep],
        set_layer=trace.set_layer[keep],
        set_experts=np.searchsorted(kept, trace.set_experts[keep]).astype(np.int32),
        set_count=trace.set_count[keep],
        tokens_per_user=tokens,
        meta=meta,
    )


def run(part: Part, latency: str, limit: float, exact_limit: float | None) -> Row:
    """Run all solvers, the exact ones too if they have a limit; return the row with their gaps."""
    problem = part.problem(latency)
    solvers = common.available((*SOLVERS, *(EXACT if exact_limit else ())))
    rows: list[Row] = []
    for name in solvers:
        common.say(f"{part.name}, {latency}: {name}")
        exact = name in EXACT
        compile_s = common.warm(problem, name, full=not exact)
        timed = common.timed_solve(problem, name, time_limit=exact_limit if exact else limit)
        rows.append({"solver": name, "exact": exact, "warm_up_compile_s": compile_s} | timed.to_json())
    bound = min((row["bound"] for row in rows if row["bound"] is not None), default=math.inf)
    optimum = next((row["objective"] for row in rows if row["exact"] and row["status"] == "optimal"), None)
    for row in rows:
        row["gap_to_bound"] = relative_gap(row["objective"], bound)
        row["gap_to_optimum"] = _gap_to_optimum(row["objective"], optimum)
    best = max(
        (row for row in rows if row["solver"] in BEST_OF and row["objective"] is not None),
        key=lambda row: row["objective"], default=None,
    )  # fmt: skip
    return {
        "instance": part.name,
        "latency": latency,
        "facts": problem.describe(),
        "bound": bound,
        "optimum": optimum,
        "best": None if best is None else best["solver"],
        "gap_to_bound": math.inf if best is None else best["gap_to_bound"],
        "gap_to_optimum": None if best is None else best["gap_to_optimum"],
        "solvers": rows,
        "valid": common.consistent((row["objective"] for row in rows), (row["bound"] for row in rows))
        and all(row["status"] != "error" for row in rows),
    }


def _gap_to_optimum(objective: float | None, optimum: float | None) -> float | None:
    """Return by how much an objective misses a proved optimum, as a share; negative by no more than its tolerance."""
    return None if objective is None or optimum is None else (optimum - objective) / max(abs(optimum), 1e-300)


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    limit, exact_limit = (2.0, 5.0) if options.quick else (options.limit, options.exact_limit)
    whole, parts = (QUICK_WHOLE, QUICK_PARTS) if options.quick else (WHOLE, PARTS)
    rows = [run(part, latency, limit, None) for part in whole for latency in LATENCIES]
    small = [run(part, latency, limit, exact_limit) for part in parts for latency in LATENCIES]
    return {
        "limit_s": limit,
        "exact_limit_s": exact_limit,
        "rows": rows,
        "parts": small,
        "valid": all(row["valid"] for row in rows + small),
        "goals": _goals(rows, small),
    }


def _goals(rows: Sequence[Row], parts: Sequence[Row]) -> list[Row]:
    goals = [
        common.goal(
            f"{row['instance']}, {row['latency']}: gap to the certified bound", 100 * GOAL_GAP,
            100 * row["gap_to_bound"], "%", note=row["best"] or "",
        )
        for row in rows
    ]  # fmt: skip
    gaps = [row["gap_to_optimum"] for row in parts if row["gap_to_optimum"] is not None]
    note = f"{len(gaps)} of {len(parts)} parts proved optimal"
    worst = max(0.0, 100 * max(gaps)) if gaps else None
    return [
        *goals,
        common.goal("parts of traces: largest gap to the optimum", 100 * GOAL_TO_OPTIMUM, worst, "%", note=note),
    ]


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    for title, rows in (("whole traces", report["rows"]), ("parts of traces", report["parts"])):
        lines = []
        for row in rows:
            for solver in row["solvers"]:
                objective = "-" if solver["objective"] is None else f"{solver['objective']:.6g}"
                mark = " *" if solver["solver"] == row["best"] else ""
                lines.append([
                    row["instance"], row["latency"], solver["solver"] + mark, objective, percent(solver["gap_to_bound"]),
                    percent(solver["gap"]), percent(solver["gap_to_optimum"]), seconds(solver["seconds"]),
                    solver["message"] or solver["status"], "yes" if row["valid"] else "NO",
                ])  # fmt: skip
        limits = f"{report['limit_s']:g} s each, exact solvers {report['exact_limit_s']:g} s"
        common.show_table(
            console, f"{title} ({limits}; * best of {' and '.join(BEST_OF)})",
            ("instance", "latency", "solver", "objective", "gap to least bound", "own certified gap", "gap to optimum",
             "seconds", "", "valid"), lines,
        )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--limit", type=float, default=10.0, help="seconds per run")
    parser.add_argument("--exact-limit", type=float, default=60.0, help="seconds per run of an exact solver")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("top_k", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
