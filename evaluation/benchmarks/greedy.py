"""Time the greedy solvers beside two other ways to the same placement: ``python -m edgeopt.evaluation.benchmarks.greedy``.

On instance T (``facility-full``), each server with its own storage: whole calls of `edgeopt.solve`, the greedy alone,
and an incremental greedy in NumPy, written here, from the same arrays. With one budget for all servers together, which
is what submodular libraries can state: our kernel, NumPy, and submodlib's ``LazyGreedy`` where it is installed. Times
count when the values agree.
"""

import argparse
import importlib.util
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edgeopt.evaluation import load_instance
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import KIND, Row, Times, clock, seconds
from edgeopt.jit import CompileTimer
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solve import Run, SolveOptions, solve
from edgeopt.solvers import get_solver
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.greedy import greedy_placement
from edgeopt.solvers.kernels.facility import Picking, best_of, lazy_greedy, marginals

GOAL_MS = 10.0
GOAL_SUBMODLIB = 50.0  # times faster than its lazy greedy
SOLVERS = {"greedy": False, "density-greedy": True}  # name: whether values count per byte

Bools = NDArray[np.bool_]


def numpy_greedy(facility: Facility, *, per_byte: bool, picks: int | None = None, one_budget: bool = False) -> Bools:
    """Return the greedy placement [N, E] by NumPy: after a pick only the same expert's values are computed anew.

    With `one_budget` every expert has size one and no server a limit; `picks` is then the budget.
    """
    num_servers, num_experts = facility.num_servers, facility.num_experts
    size = np.ones(num_experts) if one_budget else facility.size
    left = np.full(num_servers, np.inf) if one_budget else np.array(facility.capacity)
    reach = np.ascontiguousarray(facility.gain.transpose(0, 2, 1))  # (M, N, U)
    values = np.empty((num_servers, num_experts))
    for m in range(reach.shape[0]):
        values[:, facility.model == m] = reach[m] @ facility.weight[facility.model == m].T
    key = values / size if per_byte else values
    key[size > left[:, None]] = -1.0
    best = np.zeros_like(facility.weight)
    cached = np.zeros(key.shape, bool)
    while picks is None or picks > 0:
        n, e = divmod(int(key.argmax()), num_experts)
        if key[n, e] <= 0.0:
            break
        cached[n, e] = True
        left[n] -= size[e]
        of_model = reach[facility.model[e]]
        np.maximum(best[e], of_model[n], out=best[e])
        fresh = np.maximum(of_model - best[e], 0.0) @ facility.weight[e]
        key[:, e] = np.where(key[:, e] < 0.0, -1.0, fresh / size[e] if per_byte else fresh)
        key[n, e] = -1.0
        if not one_budget:
            key[n, size > left[n]] = -1.0
        picks = None if picks is None else picks - 1
    return cached


def kernel_greedy(facility: Facility, picks: int) -> Bools:
    """Return the placement [N, E] of the lazy kernel for one budget of `picks` experts of size one."""
    values = marginals(facility.weight, facility.gain, facility.model, np.zeros_like(facility.weight)).T
    picking = Picking.of(values, np.full(facility.num_servers, np.inf), facility.weight.shape[1])
    gain, size = facility.gain_by_server(), np.ones(facility.num_experts)
    lazy_greedy(picking, picking.heap.size, facility.weight, gain, facility.model, size, False, picks, 1)
    return picking.cached


def value_of(facility: Facility, cached: Bools) -> float:
    """Return the value of a placement, whatever it takes."""
    return float((facility.weight * best_of(cached, facility.gain, facility.model)).sum())


def solver_rows(instance: str, repeats: int) -> list[Row]:
    """Return one row per greedy solver: whole call, greedy alone, NumPy."""
    problem: Any = load_instance(instance)
    assert isinstance(problem, ExpertCaching)
    rows = []
    for name, per_byte in SOLVERS.items():
        common.say(f"{name} on {instance}")
        solver = get_solver(KIND, name)
        facility = Facility.of(problem)

        def alone(solver: Any = solver, facility: Facility = facility, per_byte: bool = per_byte) -> Bools:
            run = Run[Placement](solver, problem, SolveOptions())
            with run:
                return greedy_placement(run, facility, per_byte=per_byte)
            raise KeyboardInterrupt  # the run swallows it

        compile_s = common.warm(problem, solver)
        with CompileTimer() as timer:
            ours, reference = alone(), numpy_greedy(facility, per_byte=per_byte)
            result = solve(problem, solver)
        values = [problem.objective(Placement(cached)) for cached in (ours, reference)]
        whole = clock(lambda solver=solver: solve(problem, solver), repeats)  # type: ignore[misc]
        kernel = clock(alone, repeats)
        numpy = clock(lambda f=facility, b=per_byte: numpy_greedy(f, per_byte=b), repeats)  # type: ignore[misc]
        rows.append(
            {
                "solver": name,
                "instance": instance,
                "compile_s": compile_s + timer.seconds,
                "whole": whole.to_json(),
                "kernel": kernel.to_json(),
                "numpy": numpy.to_json(),
                "ratio": numpy.median / kernel.median,
                "objective": result.objective,
                "value": values[0],
                "numpy_value": values[1],
                "picks": int(ours.sum()),
                "equal": _equal(*values) and result.objective >= values[0] * (1 - common.SLACK),
            }
        )
    return rows


def one_budget_row(instance: str, repeats: int, *, submodlib: bool) -> Row:
    """Return one row of the one-budget form; the budget is about what all storages hold together."""
    problem: Any = load_instance(instance)
    facility = Facility.of(problem)
    budget = int(np.floor(facility.capacity / facility.size.mean()).sum())
    common.say(f"one budget on {instance}{', submodlib' if submodlib else ''}")
    with CompileTimer() as timer:
        ours = kernel_greedy(facility, budget)
        value = value_of(facility, ours)
    reference = value_of(facility, numpy_greedy(facility, per_byte=False, picks=budget, one_budget=True))
    kernel = clock(lambda: kernel_greedy(facility, budget), repeats)
    numpy = clock(lambda: numpy_greedy(facility, per_byte=False, picks=budget, one_budget=True), repeats)
    row: Row = {
        "instance": instance,
        "items": facility.num_servers * facility.num_experts,
        "clients": facility.weight.size,
        "budget": budget,
        "compile_s": timer.seconds,
        "kernel": kernel.to_json(),
        "numpy": numpy.to_json(),
        "ratio": numpy.median / kernel.median,
        "value": value,
        "numpy_value": reference,
        "equal": _equal(value, reference) and int(ours.sum()) == budget,
    }
    if submodlib:
        row |= _submodlib(facility, budget, repeats, value, kernel)
    return row


def _submodlib(facility: Facility, budget: int, repeats: int, value: float, kernel: Times) -> Row:
    """Run submodlib's lazy greedy on the dense matrix of clients (expert, user) and items (server, expert)."""
    import submodlib  # type: ignore[import-not-found, unused-ignore]

    num_servers, (num_experts, num_users) = facility.num_servers, facility.weight.shape
    blocks = np.zeros((num_experts, num_users, num_servers, num_experts))
    for e in range(num_experts):
        blocks[e, :, :, e] = facility.weight[e][:, None] * facility.gain[facility.model[e]]
    similarity = blocks.reshape(num_experts * num_users, num_servers * num_experts)

    def build() -> Any:
        return submodlib.FacilityLocationFunction(
            n=similarity.shape[1], mode="dense", separate_rep=True, n_rep=similarity.shape[0], sijs=similarity
        )

    def run() -> Any:
        return objective.maximize(
            budget=budget, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
        )

    objective: Any = build()
    built = clock(build, min(repeats, 3))
    cached = np.zeros(num_servers * num_experts, bool)
    cached[[item for item, _ in run()]] = True
    found = value_of(facility, cached.reshape(num_servers, num_experts))
    times = clock(run, repeats)
    return {
        "submodlib": times.to_json(),
        "submodlib_build": built.to_json(),
        "submodlib_value": found,
        "submodlib_ratio": times.median / kernel.median,
        "submodlib_equal": _equal(value, found),
    }


def _equal(first: float, second: float) -> bool:
    return abs(first - second) <= common.SLACK * max(1.0, abs(first))


def has_submodlib() -> bool:
    """Whether submodlib is installed."""
    return importlib.util.find_spec("submodlib") is not None


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    repeats = 2 if options.quick else options.repeats
    rows = solver_rows("facility-small" if options.quick else "facility-full", repeats)
    budgets = [
        one_budget_row(name, repeats, submodlib=has_submodlib() and name != "facility-full")
        for name in (["facility-small"] if options.quick else ["facility-small", "facility-mid", "facility-full"])
    ]
    goals = []
    for row in rows:
        title = f"{row['solver']} on {row['instance']}"
        goals.append(common.goal(f"{title}, whole call, median", GOAL_MS, 1e3 * row["whole"]["median_s"], "ms"))
        goals.append(common.goal(f"{title}, greedy alone, median", GOAL_MS, 1e3 * row["kernel"]["median_s"], "ms"))
        ratio = row["ratio"] if row["equal"] else None
        goals.append(common.goal(f"{title}, faster than NumPy", 1.0, ratio, "x", at_least=True))
    return {
        "rows": rows,
        "one_budget": budgets,
        "valid": all(row["equal"] and row.get("submodlib_equal", True) for row in rows + budgets),
        "goals": goals + submodlib_goals(budgets),
    }


def submodlib_goals(rows: list[Row]) -> list[Row]:
    """Return one goal per row that submodlib took part in."""
    return [
        common.goal(
            f"one budget, {row['instance']}: faster than submodlib LazyGreedy", GOAL_SUBMODLIB,
            row["submodlib_ratio"] if row["submodlib_equal"] else None, "x", at_least=True,
            note=f"its building of the function, {seconds(row['submodlib_build']['median_s'])}, not counted",
        )
        for row in rows
        if "submodlib" in row
    ]  # fmt: skip


def show(report: Row, console: Console) -> None:
    """Print the tables; a ratio only where the values agree."""
    if report.get("rows"):
        common.show_table(
            console, "a storage per server: min / median", ("solver", "compiled before", "whole call", "greedy alone",
            "NumPy", "ratio", "value", "picks"),
            [
                [row["solver"], seconds(row["compile_s"]), *(_cell(row[key]) for key in ("whole", "kernel", "numpy")),
                 _ratio(row["ratio"], row["equal"]), f"{row['value']:.6f}", str(row["picks"])]
                for row in report["rows"]
            ],
        )  # fmt: skip
    show_one_budget(report["one_budget"], console)


def show_one_budget(rows: list[Row], console: Console) -> None:
    """Print the one-budget table."""
    lines = []
    for row in rows:
        size = f"{row['items']:,} x {row['clients']:,}"
        cells = [row["instance"], size, str(row["budget"]), _cell(row["kernel"]), _cell(row["numpy"])]
        cells.append(_ratio(row["ratio"], row["equal"]))
        if "submodlib" in row:
            cells += [_cell(row["submodlib"]), _cell(row["submodlib_build"])]
            cells.append(_ratio(row["submodlib_ratio"], row["submodlib_equal"]))
        else:
            cells += ["-"] * 3
        lines.append([*cells, f"{row['value']:.6f}"])
    common.show_table(
        console, "one budget for all servers: min / median",
        ("instance", "items x clients", "budget", "ours", "NumPy", "ratio", "submodlib LazyGreedy", "its build", "ratio",
         "value"), lines,
    )  # fmt: skip


def _cell(times: Row) -> str:
    return f"{seconds(times['min_s'])} / {seconds(times['median_s'])}"


def _ratio(ratio: float, equal: bool) -> str:
    return f"{ratio:.3g}x" if equal else "values differ"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=25, help="repeats of every clock, within ten seconds each")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("greedy", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
