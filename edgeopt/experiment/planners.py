"""Planners by name: those that need no problem, and those that let a solver decide."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.experiment.config import KINDS, Description
from edgeopt.experiment.options import checked_options, hints_of, unknown_name
from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection, SplitTraining
from edgeopt.rng import stream
from edgeopt.schedule import COLUMNS, Feedback, Planner, RoundPlan, Schedule, StatefulPlanner, StaticPlanner
from edgeopt.solve import Solver, configure, solve
from edgeopt.solvers import get_solver, solvers_of
from edgeopt.storage import Arrays
from edgeopt.validate import int_array

if TYPE_CHECKING:
    from edgeopt.training.constants import Estimator
    from edgeopt.training.costs.timing import Timing
    from edgeopt.training.task import Task

WITHOUT_PROBLEM = ("fixed", "random", "schedule", "energy")
"""Planners that solve no problem."""
OWN_PLANNERS = (*WITHOUT_PROBLEM, "hasfl", "cuts")
"""Planners that are not just a solver's plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPlanner:
    """Draw each client's batch size and cut anew after every aggregation; all clients take part. A baseline.

    A plan depends on the seed and the number of the round only.

    Parameters
    ----------
    max_batch : int32 [N], largest batch size of each client.
    num_layers : cuts are drawn from 1 to one below.
    local_steps : of each client.
    interval : rounds between two aggregations.
    seed : decides the draws.
    """

    max_batch: NDArray[np.int32]
    num_layers: int
    local_steps: int = 1
    interval: int = 1
    seed: int = 0

    __repr__ = one_line

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        rng = stream(self.seed, "random plan", round // self.interval)
        count = self.max_batch.size
        return RoundPlan(
            client=np.arange(count, dtype=np.int32),
            batch_size=rng.integers(1, self.max_batch + 1, dtype=np.int32),
            cut_layer=rng.integers(1, max(2, self.num_layers), count, dtype=np.int32),
            local_steps=np.array(self.local_steps, np.int32),
            aggregate=(round + 1) % self.interval == 0,
        )


def kind_of_solver(name: str) -> str | None:
    """Return the kind of problem whose solver a planner's name is; None for the planners that need no solver.

    ``split-training/fixed`` and ``client-selection/random`` are the solvers whose names planners have already.
    """
    kind, slash, _ = name.partition("/")
    if slash:
        return kind if kind in KINDS else None
    if name in OWN_PLANNERS:
        return None
    return next((k for k in KINDS if any(solver.name == name for solver in solvers_of(k))), None)


def planner_for(
    e: Description, task: "Task", problem: Problem | None, timing: "Timing"
) -> "tuple[Planner, Estimator | None]":
    """Return the planner of an experiment, and what measures the constants for it.

    ==============  =======================================================================================
    name            planner
    ==============  =======================================================================================
    ``fixed``       all clients in every round, with one server; ``interval``, and the columns of a `RoundPlan`:
                    ``batch_size``, ``cut_layer``, ``local_steps``, ...: a number, or a list with one for each client
    ``random``      all clients, batch size and cut drawn anew; ``max_batch``, ``local_steps``, ``interval``.
                    Among several servers: the solver ``random`` of client selection
    ``schedule``    what `edgeopt.schedule.Schedule.save` wrote to ``file``
    ``energy``      `edgeopt.energy.EnergyPlanner`, within batteries and grams of CO2: ``picks``, ``battery_j``, ``energy_j``,
                    ``most_g``, ``levels``, ``batch_size``, ``local_steps``
    ``hasfl``       `HasflPlanner`, which solves again every ``every`` rounds from measured constants, with
                    ``solver`` and ``rate_change``
    ``cuts``        `CutPlanner`, which weighs each device's time against accuracy: ``kappa``, ``accuracy`` (a number for
                    each of ``cuts``), ``cuts``, ``batch_size``, ``local_steps``, ``head_layers``
    split solvers   such as ``exact``: solved once, the plan repeated; options are those of the solver
    selection       such as ``fastest``, ``rl-crp``: every server picks its clients in every round; options of
    solvers         the solver, ``batch_size``, ``local_steps``
    ==============  =======================================================================================
    """
    name = e.planner.name
    if isinstance(problem, ClientSelection) and name not in ("fixed", "schedule"):
        return _selection(e, problem, timing), None
    if name == "fixed":
        if isinstance(problem, ClientSelection) and problem.num_servers > 1:
            names = ", ".join(["schedule", *(solver.name for solver in solvers_of(problem.kind))])
            raise InvalidProblemError(
                f"name = {quoted(name)}: expected one that picks clients for several servers: {names}"
            )
        hints: dict[str, Any] = {"interval": int}
        for column in COLUMNS:
            if column.name not in ("client", "server"):
                one: Any = int if column.dtype is np.int32 else float
                hints[column.name] = one | tuple[one, ...]
        options: Any = checked_options(e.source, "planner", e.planner.options, hints)
        interval = options.pop("interval", 1)
        for name, values in options.items():
            if isinstance(values, list) and len(values) != task.num_clients:
                raise InvalidProblemError(
                    f"{name} = {quoted(values)}: expected one number, or one for each of {task.num_clients} clients"
                )
        return StaticPlanner(RoundPlan(client=np.arange(task.num_clients, dtype=np.int32), **options), interval), None
    if name == "random":
        return _random(e, task, problem), None
    if name == "schedule":
        file = checked_options(e.source, "planner", e.planner.options, {"file": str}).get("file")
        if file is None:
            raise InvalidProblemError("file: expected a saved schedule, got nothing")
        return Schedule.load(file), None
    if name == "energy":
        return _energy(e, task, timing), None
    if name == "cuts":
        assert isinstance(problem, SplitTraining)
        return _cuts(e, problem), None
    kind, _, own = name.rpartition("/")
    if kind not in ("", SplitTraining.kind) or own not in {solver.name for solver in solvers_of(SplitTraining.kind)}:
        known = [*OWN_PLANNERS, *(f"{kind}/{solver.name}" for kind in KINDS for solver in solvers_of(kind))]
        raise unknown_name(e.source, "planner", name, known)
    assert isinstance(problem, SplitTraining)
    return _split(e, problem, own, again=name == "hasfl")


def _random(e: Description, task: "Task", problem: Problem | None) -> RandomPlanner:
    hints = {"max_batch": int, "local_steps": int, "interval": int}
    options = checked_options(e.source, "planner", e.planner.options, hints)
    for key, value in options.items():
        int_array(key, value, (), low=1)
    most = np.clip(task.partition.sizes, 1, options.pop("max_batch", 64))
    if isinstance(problem, SplitTraining):
        most = np.minimum(most, problem.batch_limit[:, -1])
    return RandomPlanner(
        max_batch=np.maximum(most, 1).astype(np.int32), num_layers=task.num_layers, seed=e.seed, **options
    )


def _energy(e: Description, task: "Task", timing: "Timing") -> Planner:
    """Return the planner, which expects of an update what training and sending the whole model takes, unless it is told."""
    from edgeopt.energy import EnergyPlanner
    from edgeopt.experiment.network import series_of
    from edgeopt.training.costs.selection_timing import update_cost
    from edgeopt.training.costs.timing import EdgeTiming

    if not isinstance(timing, EdgeTiming):
        raise InvalidProblemError(f"name = 'energy': expected it with {SplitTraining.kind}")
    work = {"batch_size": int, "local_steps": int}
    hints = {"picks": int, "battery_j": float | list, "energy_j": float | list, "most_g": float, "levels": int} | work
    options = {"picks": task.num_clients} | checked_options(e.source, "planner", e.planner.options, hints)
    energy = options.pop("energy_j", None)
    if energy is None:
        cost = update_cost(task, batch_size=options.get("batch_size") or 16, local_steps=options.get("local_steps", 1))
        plan = RoundPlan(client=np.arange(task.num_clients, dtype=np.int32))
        rate = timing.rates(0, plan)["uplink_bps"]
        sending = timing.device_power_w * cost.payload_bits / np.where(np.isnan(rate), timing.uplink_bps, rate)
        energy = timing.joules_per_flop * cost.work_flops + sending
    carbon: dict[str, Any] = {"carbon": timing.carbon, "available": series_of(e, task.num_clients).get("available")}
    if timing.carbon is not None and timing.carbon.num_columns > 1:
        carbon["site"] = np.arange(task.num_clients)
    return EnergyPlanner(
        energy_j=np.broadcast_to(energy, task.num_clients) if np.ndim(energy) == 0 else energy, **carbon, **options
    )


def _cuts(e: Description, problem: SplitTraining) -> Planner:
    from edgeopt.solvers.split_training.cut_planner import CutPlanner

    several = {"accuracy": float | list, "cuts": list, "batch_size": int | list}
    hints = {"kappa": float, "local_steps": int, "head_layers": int, **several}
    return CutPlanner(problem=problem, **checked_options(e.source, "planner", e.planner.options, hints))


def _split(e: Description, problem: SplitTraining, name: str, *, again: bool) -> "tuple[Planner, Estimator | None]":
    if not again:
        result = solve(problem, _configured(e, get_solver(SplitTraining.kind, name)), seed=e.seed)
        result.raise_for_status()
        planner: Planner = result.solution.planner()  # type: ignore[union-attr]
        return planner, None
    from edgeopt.solvers.split_training.planner import HasflPlanner
    from edgeopt.training.constants import GradientEstimator

    hints = {"every": int, "rate_change": float, "solver": str, "time_limit": float}
    options = checked_options(e.source, "planner", e.planner.options, hints)
    planner = HasflPlanner(problem, seed=e.seed, **options)
    return planner, GradientEstimator(every=planner.every)


def _configured(e: Description, solver: Solver) -> Solver:
    options = checked_options(e.source, "planner", e.planner.options, hints_of(type(solver)))
    return configure(solver, **options)


def _selection(e: Description, problem: ClientSelection, timing: "Timing") -> Planner:
    from edgeopt.solvers.client_selection.planner import SelectionPlanner
    from edgeopt.training.costs.selection_timing import SelectionTiming, selection_schedule

    kind, _, name = e.planner.name.rpartition("/")
    names = [solver.name for solver in solvers_of(ClientSelection.kind)]
    if kind not in ("", ClientSelection.kind) or name not in names:
        raise unknown_name(e.source, "planner", e.planner.name, ["schedule", *names])
    solver: Any = get_solver(ClientSelection.kind, name)
    work_hints = {"batch_size": int, "local_steps": int}
    options = checked_options(e.source, "planner", e.planner.options, hints_of(type(solver)) | work_hints)
    work = {key: options.pop(key) for key in work_hints if key in options}
    solver = configure(solver, **options)
    planner: Planner
    if (policies := solver.policies(problem, e.seed)) is not None:
        latency_s = timing.latency_s if isinstance(timing, SelectionTiming) else None  # channels are measured first
        planner = SelectionPlanner(problem, policies, latency_s)
    else:  # a coordinator that sees all servers plays the problem's own draw of chance, which the timing has too
        found: Any = solve(problem, solver, seed=e.seed).solution
        planner = selection_schedule(found)
    return _WithWork(planner, work) if work else planner


@dataclass(frozen=True, slots=True)
class _WithWork:
    """A planner whose plans say how much work the picked clients do."""

    planner: Planner
    work: dict[str, int]

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        return self.planner.plan(round, feedback).replace(**self.work)

    def state(self) -> Arrays:
        """Return what the planner remembers."""
        return self.planner.state() if isinstance(self.planner, StatefulPlanner) else {}

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` returned."""
        if isinstance(self.planner, StatefulPlanner):
            self.planner.restore(state)
