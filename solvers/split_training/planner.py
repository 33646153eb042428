"""`HasflPlanner`: solve split training again while the model trains, with what the rounds measure."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeopt.display import one_line
from edgeopt.errors import EdgeOptError, InvalidProblemError, quoted
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Status
from edgeopt.schedule import RATES, Feedback, RoundPlan
from edgeopt.solve import Solver, solve
from edgeopt.solvers.split_training.common import check_count
from edgeopt.stop import Limit
from edgeopt.storage import Arrays
from edgeopt.validate import float_array, int_array

_DECISIONS = ("batch_size", "cut_layer", "aggregation_interval")
_CONSTANTS = ("smoothness", "gradient_variance", "gradient_second_moment")

logger = logging.getLogger("edgeopt")


@dataclass(slots=True)
class HasflPlanner:
    """Plan the rounds of split training, and plan anew when measurements say so.

    Device i of the problem is client i. Every round's feedback replaces the rates, and the constants of the bound where
    they were estimated. The problem is solved again when something was measured and either `every` rounds have passed
    or some speed or rate has changed by more than `rate_change` since the last solve, up or down. That waits for the end
    of an aggregation interval: only then do all devices hold the same model, so that cuts can move. The last plan is the
    initial solution of the next solve. If there is no solution any more, the last plan stays; a warning is logged, and
    `message` says why. [After HASFL, arXiv 2506.08426, which decides anew after aggregations; the triggers are ours.]

    The initial gap only scales the objective, so it needs no estimate.

    Parameters
    ----------
    problem : the problem with what is known at the start; `problem` is the current one later.
    solver : name or solver. Default ``hasfl``.
    every : rounds after which new measurements are worth a solve, >= 1.
    rate_change : relative change of a speed or rate that is worth a solve at once, > 0; inf for never.
    seed, time_limit : of each solve, see `edgeopt.solve`.

    Examples
    --------
    >>> problem = SplitTraining.random(num_devices=4, num_layers=6, seed=1)
    >>> planner = HasflPlanner(problem, "fixed")
    >>> [entry.batch_size for entry in planner.plan(0, None)] == planner.split_plan.batch_size.tolist()
    True
    """

    problem: SplitTraining
    solver: str | Solver = "hasfl"
    every: int = 10
    rate_change: float = 0.2
    seed: int = 0
    time_limit: float = math.inf
    split_plan: SplitPlan | None = field(init=False, default=None)
    """The plan in force; None before the first round."""
    message: str = field(init=False, default="")
    """Why the last solve brought nothing; empty if it did."""
    _solved: Arrays = field(init=False, default_factory=dict, repr=False)  # the rates at the last solve
    _solved_round: int = field(init=False, default=0)
    _since_aggregation: int = field(init=False, default=0)
    _news: bool = field(init=False, default=False)  # whether anything was measured since the last solve

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_count("every", self.every)
        if not self.rate_change > 0:
            raise EdgeOptError(f"rate_change = {quoted(self.rate_change)}: expected a number > 0")

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round.

        Raises
        ------
        NoSolutionError
            If not even the first solve brings a plan.
        """
        if feedback is not None:
            self._learn(feedback)
        if self.split_plan is None or (self._since_aggregation == 0 and self._is_due(round)):
            self._solve(round)
        assert self.split_plan is not None  # _solve has raised otherwise
        self._since_aggregation += 1
        aggregate = self._since_aggregation >= self.split_plan.aggregation_interval
        if aggregate:
            self._since_aggregation = 0
        return self.split_plan.round_plan(aggregate=aggregate)

    def _learn(self, feedback: Feedback) -> None:
        changes: dict[str, Any] = {}
        client = feedback.plan.client
        if (bad := np.flatnonzero(client >= self.problem.num_devices)).size:
            raise InvalidProblemError(
                f"client[{bad[0]}] = {client[bad[0]]}: the problem has devices 0 to {self.problem.num_devices - 1}"
            )
        for name in RATES:
            measured = getattr(feedback, name)
            if (known := ~np.isnan(measured)).any():
                changes[name] = np.array(getattr(self.problem, name))
                changes[name][client[known]] = measured[known]
        if (constants := feedback.constants) is not None:
            changes["gradient_variance"] = constants.gradient_variance.value
            changes["gradient_second_moment"] = constants.gradient_second_moment.value
            if constants.smoothness is not None and constants.smoothness.value > 0:
                changes["smoothness"] = float(constants.smoothness.value)
        if any(not np.array_equal(value, getattr(self.problem, name)) for name, value in changes.items()):
            self.problem = self.problem.replace(**changes)
            self._news = True

    def _is_due(self, round: int) -> bool:
        if not self._news:
            return False
        if round - self._solved_round >= self.every:
            return True
        change = max(np.abs(np.log(getattr(self.problem, name) / self._solved[name])).max() for name in RATES)
        return bool(change > math.log1p(self.rate_change))

    def _solve(self, round: int) -> None:
        last = self.split_plan
        start = last if last is not None and self.problem.is_feasible(last) else None
        result = solve(self.problem, self.solver, time_limit=self.time_limit, seed=self.seed, initial_solution=start)
        if result.limit is Limit.INTERRUPT:  # the training's to handle: it has rounds to keep
            raise KeyboardInterrupt
        if last is None:
            result.raise_for_status()
        self._solved = {name: getattr(self.problem, name) for name in RATES}
        self._solved_round, self._news, self.message = round, False, ""
        if result.solution is not None and result.status is not Status.ERROR:
            self.split_plan = result.solution
        else:
            reason = self.problem.explain_infeasible() or result.message or result.status
            self.message = f"round {round}: the last plan stays: {reason}"
            logger.warning("%s", self.message)

    def state(self) -> Arrays:
        """Return the plan, what was measured, and the counters."""
        arrays = {name: np.array(getattr(self.problem, name)) for name in (*RATES, *_CONSTANTS)}
        counters = [self._solved_round, self._since_aggregation, self._news]
        arrays["counters"] = np.array(counters, np.int64)
        if self.split_plan is not None:
            arrays |= {f"solved.{name}": np.array(values) for name, values in self._solved.items()}
            arrays |= {name: np.array(getattr(self.split_plan, name)) for name in _DECISIONS}
        return arrays

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` returned.

        Raises
        ------
        EdgeOptError
            If arrays are missing or do not fit the problem; nothing has changed then.
        """
        has_plan = "batch_size" in state
        wanted = [*RATES, *_CONSTANTS, "counters", *_DECISIONS, *(f"solved.{name}" for name in RATES)]
        wanted = wanted if has_plan else wanted[: len(RATES) + len(_CONSTANTS) + 1]
        if missing := [name for name in wanted if name not in state]:
            raise EdgeOptError(f"state: {missing[0]}: array is missing")
        problem = self.problem.replace(**{name: state[name] for name in (*RATES, *_CONSTANTS)})
        decisions: Any = {name: state[name] for name in _DECISIONS if has_plan}
        plan = SplitPlan(**decisions) if has_plan else None
        if plan is not None:
            problem.report(plan)  # refuses a plan of another problem
        done, since, news = int_array("counters", state["counters"], (3,), low=0)
        size = (problem.num_devices,)
        rates = {name: float_array(f"solved.{name}", state[f"solved.{name}"], size) for name in RATES if has_plan}
        self._solved_round, self._since_aggregation, self._news = int(done), int(since), bool(news)
        self.problem, self.split_plan, self._solved, self.message = problem, plan, rates, ""
