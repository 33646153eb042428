"""`hasfl`: batch sizes, cuts and the aggregation interval in turn, each for the others fixed."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import (
    Costs,
    arrays_of,
    check_count,
    finish,
    offer_feasible,
    plan_of,
    safest,
    supports_split_training,
)
from edgeopt.solvers.split_training.descent import TOLERANCE, Point, descend, follow, kick, repaired, uniform
from edgeopt.solvers.split_training.steps import MAX_BOXES, BatchUpdate, relaxed_point


@dataclass(frozen=True, slots=True, kw_only=True)
class Hasfl:
    """Descend from uniform cuts: the best batch sizes for the cuts, the best cuts for the batch sizes, the interval.

    HASFL's block coordinate descent (arXiv 2506.08426). Every step returns what it was given unless it finds better,
    so the objective never rises along a descent, and it ends, since there are finitely many plans. It may end at a
    plan that only a change of batch sizes and cuts at once improves; the joint step (ours) finds many of these.
    Nothing is promised.

    Batch sizes: real ones by Dinkelbach's method, the whole ones by branch and bound over the slowest times (ours).
    Cuts: branch and bound over the slowest times (ours; HASFL solves a mixed-integer program per step). Both are exact
    unless `max_boxes` runs out, cuts up to `tolerance`. One iteration is one step. A box costs O(N) for batch sizes and
    O(N L) for cuts; the up to 2 L starts are ranked by their real batch sizes in O(N) per pair of times tried, and ranking
    one is an iteration too.

    Parameters
    ----------
    starts : uniform cuts to descend from, those with the best relaxed batch sizes; there are up to L. Where the target is
        out of reach at some of these, one more start has each device's cut no deeper than its largest batch allows.
    max_boxes : boxes of slowest times examined per step.
    tolerance : relative; the step over cuts ends when none can be better by more.
    batch_update : ``dinkelbach`` or HASFL's ``newton-jacobi``; both end at the same batch sizes.
    joint : whether to change batch sizes and cuts together where the descent ends, and go on from there.
    """

    starts: int = 4
    max_boxes: int = MAX_BOXES
    tolerance: float = TOLERANCE
    batch_update: BatchUpdate = "dinkelbach"
    joint: bool = True

    name: ClassVar[str] = "hasfl"
    guarantee: ClassVar[Guarantee] = Heuristic("local search")

    def __post_init__(self) -> None:
        for name in ("starts", "max_boxes"):
            check_count(name, getattr(self, name))
        if not 0 <= self.tolerance < 1:
            raise EdgeOptError(f"tolerance = {quoted(self.tolerance)}: expected a number from 0 to 1")
        if self.batch_update not in ("dinkelbach", "newton-jacobi"):
            raise EdgeOptError(f"batch_update = {quoted(self.batch_update)}: expected 'dinkelbach' or 'newton-jacobi'")

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by block coordinate descent."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            self.search(run, problem, costs)
        return finish(run, problem)

    def search(self, run: Run[SplitPlan], problem: SplitTraining, costs: Costs) -> None:
        """Rank the starts and descend from the best, within a run of this solver or another."""
        offer_feasible(run, plan_of(*safest(costs, problem.min_interval)))
        seen: set[bytes] = set()
        points = self._starts(run, problem, costs)
        while points and not run.stopped():
            steps = descend(
                costs, problem, points.pop(0), joint=self.joint, max_boxes=self.max_boxes, tolerance=self.tolerance,
                batch_update=self.batch_update, seen=seen,
            )  # fmt: skip
            follow(run, steps)
            if self.joint and not points and run.solution is not None and not run.stopped():
                batch, cut, interval = arrays_of(run.solution)
                best = costs.objective(batch, cut, interval), batch, cut, interval
                if (better := kick(costs, best, self.batch_update, self.max_boxes)) is not None:
                    points.append(better)

    def _starts(self, run: Run[SplitPlan], problem: SplitTraining, costs: Costs) -> list[Point]:
        """Return the points to descend from: the initial solution, then the best cuts of two kinds, offered as ranked.

        All cuts are after the same layer, or as deep as a device has memory: for one sample; and, where that misses the
        target at some layer, for its largest batch, for one more descent (ours).
        """
        points = []
        if run.options.initial_solution is not None:
            batch, cut, interval = arrays_of(run.options.initial_solution)
            points.append((costs.objective(batch, cut, interval), batch, cut, interval))
        for samples, count in ((uniform(costs, 1), self.starts), (costs.limit[:, 0], 1)):
            deepest, ranked = costs.deepest(samples), []
            for k in range(int(deepest.max()) + 1):
                if run.stopped():
                    return points
                cut = np.minimum(k, deepest)
                start = repaired(costs, problem, costs.limit_at(cut), cut)
                if start is not None and (start[2] == cut).all():
                    relaxed, rounded = relaxed_point(costs, cut, start[3])
                    start = min(start, rounded, key=lambda point: point[0])
                    ranked.append((relaxed, k, start))
                    follow(run, iter((start,)))
            points += [start for *_, start in sorted(ranked, key=lambda one: one[:2])[:count]]
            if len(ranked) == costs.num_layers:
                break
        return points
