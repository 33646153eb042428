"""One run of a comparison, made in a worker: warm the kernels, solve, say what came of it."""

import functools
import inspect
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import storage
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.compare.rows import Row
from edgeopt.installed import versions
from edgeopt.problem import Problem
from edgeopt.solve import Solver, solve
from edgeopt.stop import Limit, StopCriterion

logger = logging.getLogger("edgeopt")

WARM_UP_SECONDS = 10.0
_warm: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Parcel:
    """A problem on its way to a worker: it is unpacked, validated and made read-only again there."""

    problem: Problem

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (type(self.problem), *self.problem.to_data())


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run, a `edgeopt.evaluation.compare.cells.Cell`."""

    key: str
    instance: str
    parcel: Parcel
    solver: Solver
    label: str
    seed: int
    time_limit: float
    stop: StopCriterion | None
    deterministic: bool

    def __str__(self) -> str:
        return f"{self.label} on {self.instance}, seed {self.seed}"

    def run(self) -> Row:
        """Solve; only the solve itself is timed."""
        problem, solver = self.parcel.problem, self.solver
        warm_up(problem, solver)
        result = solve(
            problem,
            solver,
            time_limit=self.time_limit,
            stop=self.stop,
            seed=self.seed,
            deterministic=self.deterministic,
        )
        history = [[r.seconds, r.iteration, r.objective, r.bound] for r in result.history]
        return result.to_json(with_solution=True) | {"history": history}

    def failed(self, status: str, message: str) -> Row:
        """Return what a run says that has no result."""
        return {
            "problem": self.parcel.problem.kind,
            "sense": self.parcel.problem.sense,
            "status": status,
            "limit": None,
            "objective": None,
            "bound": None,
            "gap": None,
            "guarantee": str(self.solver.guarantee),
            "feasible": False,
            "seconds": {"build": None, "compile": None, "solve": None, "total": None},
            "message": message,
            "versions": versions(),
            "solution": None,
            "history": [],
        }

    def common(self) -> Row:
        """Return what every row of the task says, whatever came of it."""
        return {
            "key": self.key,
            "instance": self.instance,
            "solver": self.label,
            "seed": self.seed,
            "time_limit": self.time_limit,
            "facts": self.parcel.problem.describe(),
            "machine": machine(),
        }


def warm_up(problem: Problem, solver: Solver) -> None:
    """Solve a tiny problem of the same kind once per process, so that the run is not charged for compiling kernels."""
    mark = (problem.kind, repr(solver))
    if mark in _warm:
        return
    _warm.add(mark)
    try:
        tiny = tiny_like(problem)
        if tiny is not None and solver.supports(tiny) is None:
            result = solve(tiny, solver, time_limit=WARM_UP_SECONDS)
            if result.limit is Limit.INTERRUPT:  # it is the run that Ctrl-C is meant for
                raise KeyboardInterrupt
            tiny.objective(result.solution)
    except Exception:  # the run itself will say what is wrong
        logger.debug("no warm-up of %s", solver.name, exc_info=True)


def tiny_like(problem: Problem) -> Problem | None:
    """Return a tiny problem of the same kind, or None if its class has no ``random``.

    A problem may offer ``tiny_like()`` itself, to take the same branches of its solvers. Otherwise
    ``random(seed=0)`` is called with every ``num_...`` that has a default lowered to at most four.

    Examples
    --------
    >>> from edgeopt.evaluation import load_instance
    >>> tiny = tiny_like(load_instance("facility-full"))
    >>> tiny is None or tiny.describe()["servers"] < 10
    True
    """
    if (own := getattr(problem, "tiny_like", None)) is not None:
        made: Problem = own()
        return made
    random = getattr(type(problem), "random", None)
    if random is None:
        return None
    numbers = {
        name: min(parameter.default, 4)
        for name, parameter in inspect.signature(random).parameters.items()
        if name.startswith("num_") and isinstance(parameter.default, int)
    }
    try:
        made = random(seed=0, **numbers)
    except EdgeOptError:
        made = random(seed=0)
    return made


@functools.cache
def machine() -> dict[str, str | int]:
    """Return the processor, the cores this process may use, and the operating system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _unpack(kind: type[Problem], values: dict[str, Any], arrays: storage.Arrays) -> Parcel:
    return Parcel(kind.from_data(values, arrays))
