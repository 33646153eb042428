"""`local-search`: replicas swapped, added and dropped while that takes load from the device with most."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertBalancing, Replicas
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_balancing.common import (
    NO_FIT,
    Ints,
    all_packed,
    empty_slots,
    groups_as_placed,
    laid_out,
    layer_value,
    parts_of,
    put,
    supports_expert_balancing,
)
from edgeopt.solvers.kernels.balancing import descend, kick

STRENGTH = 3  # pairs of slots that a kick changes


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSearch:
    """Take load from the device with most until no step does: swap two replicas, or fill one slot anew.

    How many replicas there are and where they are is thus decided together, unlike by `eplb`, where the descent starts. It
    starts again from the best placement, with a few slots changed at random. Where there is a present placement, it starts
    from that first, devices are given the new placement so that as few replicas move as possible, and of all placements
    on the way the one is kept whose load and moves together are least; so it does from an initial solution. Ours. One iteration
    is one layer; limits count between descents as well. A step of a descent takes O(S D (S D + E)) time.

    Parameters
    ----------
    kicks : how often each layer starts again; twice as often from a present placement without an initial solution.
    """

    kicks: int = 20

    name: ClassVar[str] = "local-search"
    guarantee: ClassVar[Guarantee] = Heuristic("local search")

    def __post_init__(self) -> None:
        if self.kicks < 0:
            raise EdgeOptError(f"kicks = {self.kicks}: expected an integer >= 0")

    def guarantee_for(self, problem: ExpertBalancing) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-balancing problem."""
        return supports_expert_balancing(problem)

    def solve(self, problem: ExpertBalancing, options: SolveOptions) -> Result[Any]:
        """Solve by descents."""
        with Run[Replicas](self, problem, options) as run:
            run.tighten(problem.lower_bound)
            improve(run, problem, self.kicks)
        return run.result(message=NO_FIT if run.solution is None else "")


def improve(run: Run[Replicas], problem: ExpertBalancing, kicks: int) -> None:
    """Offer what is packed and what is there, then the best of descents from each, kicked, layer by layer."""
    starts = _starts(run, problem)
    for start in starts:
        run.offer(start)
    if run.solution is None:
        return
    present = problem.present_counts()
    first = starts if len(starts) > 1 else []  # descended from once, before the best of them is kicked
    boards = [(_arranged(problem, start), groups_as_placed(problem, start)) for start in (*first, run.solution)]
    board, groups = boards[-1]
    counts = run.solution.counts(problem.num_experts)
    if run.options.initial_solution is None:
        kicks *= len(starts)  # which start leads furthest is not known: as many descents as if each were kicked
    for layer in range(problem.num_layers):
        if run.stopped():
            return
        value = layer_value(problem, layer, counts[layer], present[layer])
        for other, other_groups in boards:  # the last is by then the best of them
            found, own_groups = other[layer].copy(), other_groups[layer].copy()
            least = _improve_layer(
                run, problem, layer, own_groups, found, present[layer], kicks if other is board else 0
            )
            if least < value:
                value, board[layer], groups[layer] = least, found, own_groups
                run.offer(Replicas(board))
        run.step()


def _starts(run: Run[Replicas], problem: ExpertBalancing) -> list[Replicas]:
    """Return the feasible placements to descend from, what is there before what is packed: it is nearer to its end."""
    given = [run.solution, None if problem.present is None else Replicas(problem.present), all_packed(problem)]
    return [start for start in given if start is not None and problem.is_feasible(start)]


def _arranged(problem: ExpertBalancing, placement: Replicas) -> Ints:
    """Return the slots of a placement, int64 [L, D, S], those without an expert last."""
    experts = empty_slots(problem)
    for layer, counts in enumerate(placement.counts(problem.num_experts)):
        experts[layer] = laid_out(counts, experts.shape[2])
    return experts


def _improve_layer(
    run: Run[Replicas], problem: ExpertBalancing, layer: int, groups: Ints, experts: Ints, present: Ints, kicks: int
) -> float:
    """Improve the slots [D, S] of a layer in place; return its largest load and the cost of its moves."""
    floor, cost = 0.0, 0.0
    for part in parts_of(problem, layer, groups):
        own = np.ascontiguousarray(present[np.ix_(part.devices, part.experts)])
        number = np.full(problem.num_experts + 1, -1)  # of an expert in the part; the last entry is that of no expert
        number[part.experts] = np.arange(part.experts.size)
        placed = number[experts[part.devices]]
        numbers = stream(run.seed, "kicks", layer, int(part.devices[0])).random((kicks, STRENGTH, 4))
        if problem.present is not None:
            placed = _renamed(placed, own, part.slots)
        _search(
            run, partial(descend, part.load, part.slots, own, problem.move_cost, floor), part.slots, placed, numbers
        )
        if problem.present is not None:
            placed = _renamed(placed, own, part.slots)
            counts = np.stack([np.bincount(row[row >= 0], minlength=part.load.size) for row in placed])
            cost += problem.move_cost * float(np.maximum(counts - own, 0).sum())
        floor = max(floor, part.largest(placed))
        put(experts, part, placed)
    return floor + cost


def _search(
    run: Run[Replicas], descent: Callable[[Ints], float], slots: Ints, placed: Ints, numbers: NDArray[np.float64]
) -> None:
    """Descend from a placement, and again from the best one kicked, once for each of the random numbers [kicks, any, 4].

    `placed` becomes the best placement. A descent goes to its end; limits count between them.
    """
    best = descent(placed)
    for some in numbers:
        if run.stopped():
            return
        trial = placed.copy()
        kick(slots, trial, some)
        reached = descent(trial)
        if reached < best:
            best = reached
            placed[:] = trial


def _renamed(placed: Ints, present: Ints, slots: Ints) -> Ints:
    """Return the same rows [D, S] on other devices with as many slots, so that the fewest replicas move."""
    counts = np.stack([np.bincount(row[row >= 0], minlength=present.shape[1]) for row in placed])
    stay = np.minimum(counts[:, None, :], present[None, :, :]).sum(axis=2)  # [row, device]
    row, device = linear_sum_assignment(
        np.where(slots[:, None] == slots[None, :], stay, -stay.sum() - 1), maximize=True
    )
    found = np.empty_like(placed)
    found[device] = placed[row]
    return found
