"""HiGHS and CP-SAT: how runs end, what is not trusted, and back ends one after another in one process."""

import functools
import itertools
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.problems import ExpertCaching
from edgeopt.result import Status
from edgeopt.solvers.back_ends import highs_class, highs_module, knapsack_module
from edgeopt.solvers.background import Mailbox
from edgeopt.solvers.ending import End, Ending
from edgeopt.solvers.expert_caching.cp_sat import CpSat
from edgeopt.solvers.expert_caching.milp import Milp
from edgeopt.solvers.highs import end_of_run, new_highs, own_scheduler, run_highs
from edgeopt.stop import Limit
from tests.solvers.expert_caching.instances import brute_force
from tests.solvers.expert_caching.relaxation import lp_bound
from tests.solvers.expert_caching.test_milp import any_problem
from tests.solvers.expert_caching.test_properties import Form

VALUES = np.array([3.0, 4.0, 5.0])


def knapsack() -> Any:
    """Return max 3 a + 4 b + 5 c, 2 a + 3 b + 4 c <= 5, binary: a and b are worth 7."""
    highspy = highs_module()
    lp = highspy.HighsLp()
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.num_col_, lp.num_row_ = 3, 1
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = VALUES, np.zeros(3), np.ones(3)
    lp.row_lower_, lp.row_upper_ = np.array([-np.inf]), np.array([5.0])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.num_row_, lp.a_matrix_.num_col_ = 1, 3
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = [0, 3], [0, 1, 2], [2.0, 3.0, 4.0]
    lp.integrality_ = [highspy.HighsVarType.kInteger] * 3
    return lp


class Quiet:
    """Hears bounds and solutions, and keeps them."""

    def __init__(self) -> None:
        self.bounds: list[float] = []
        self.solutions: list[Any] = []

    def bound(self, value: float) -> None:
        self.bounds.append(value)

    def solution(self, values: Any) -> None:
        self.solutions.append(values)


class Scripted(highs_class()):  # type: ignore[misc]
    """HiGHS whose runs end as a script says: a status, and what it claims that the true optimum is worth."""

    script: list[tuple[Any, float]]
    cleared = 0

    def run(self) -> Any:
        super().run()
        self.now = self.script.pop(0)
        return highs_module().HighsStatus.kOk

    def getModelStatus(self) -> Any:
        return self.now[0]

    def getInfo(self) -> Any:
        return types.SimpleNamespace(objective_function_value=self.now[1], mip_dual_bound=self.now[1])

    def clearSolver(self) -> Any:
        self.cleared += 1
        return super().clearSolver()


def scripted(*script: tuple[Any, float]) -> Scripted:
    highs = Scripted()
    highs.passModel(knapsack())
    highs.script = list(script)
    return highs


KNOWN = {
    "kOptimal": End.OPTIMAL, "kModelEmpty": End.OPTIMAL, "kInfeasible": End.INFEASIBLE, "kTimeLimit": End.TIME,
    "kInterrupt": End.STOPPED, "kSolutionLimit": End.STOPPED,
}  # fmt: skip


def test_every_status_of_highs_has_an_end_and_its_own_words():
    """Nothing is guessed: what is not known is a failure in HiGHS's words, for every status that there is."""
    kinds = highs_module().HighsModelStatus
    for name, status in kinds.__members__.items():
        highs = scripted((status, 7.0))
        with own_scheduler():
            ending = end_of_run(highs)
        assert ending.end is KNOWN.get(name, End.FAILED), name
        assert ending.message == f"HiGHS: {highs.modelStatusToString(status)}"


@pytest.mark.parametrize("claimed", [6.9, 7.1, np.nan, np.inf])
def test_a_claim_that_its_solution_does_not_bear_out_is_a_failure(claimed: float):
    """The optimum is worth 7 by its own costs, whatever HiGHS says it is worth."""
    highs = scripted((highs_module().HighsModelStatus.kOptimal, claimed))
    with own_scheduler():
        ending = end_of_run(highs)
    assert ending.end is End.FAILED
    assert ending.message == f"HiGHS: Optimal, but it takes a solution for {claimed!r} that is worth 7.0"


def test_a_run_that_fails_is_made_again_without_the_start_and_then_without_presolve():
    """Two false claims, then the truth; each time HiGHS forgets what it was given to start from."""
    optimal = highs_module().HighsModelStatus.kOptimal
    highs = scripted((optimal, 8.0), (highs_module().HighsModelStatus.kUnknown, 0.0), (optimal, 7.0))
    ending = run_highs(highs, Mailbox(), Quiet())
    assert (ending.end, ending.objective, highs.cleared) == (End.OPTIMAL, 7.0, 2)
    assert highs.getOptionValue("presolve")[1] == "off"
    never = scripted(*[(optimal, 8.0)] * 3)
    assert run_highs(never, Mailbox(), Quiet()).end is End.FAILED
    assert never.script == []


def test_a_run_that_is_told_to_stop_is_not_made_again():
    """Whoever stops it does not wait for another try."""
    mailbox = Mailbox()
    mailbox.stop()
    highs = scripted((highs_module().HighsModelStatus.kUnknown, 0.0))
    assert run_highs(highs, mailbox, Quiet()).end is End.FAILED


def test_an_ending_says_what_failed():
    """A time limit and a stop that the run knows of are no failures; all else is, in the back end's words."""
    run = types.SimpleNamespace(limit=None)
    assert Ending(End.OPTIMAL, "x").failure(run) == ""
    assert Ending(End.STOPPED, "stopped by whom?").failure(run) == "stopped by whom?"
    assert Ending(End.INFEASIBLE, "infeasible").failure(run) == "infeasible"
    assert Ending(End.TIME, "x").failure(run) == ""
    assert run.limit is Limit.TIME
    assert Ending(End.STOPPED, "x").failure(run) == ""
    assert Ending(End.FAILED, "failed").failure(run) == "failed"


@pytest.mark.parametrize("seed", [69, 140, 201, 226, 298, 3227402])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_start_that_presolve_misreads(seed: int, threads: int):
    """Tiny programmes whose greedy start HiGHS 1.16 takes for better than anything: the enumerated optimum is proved."""
    problem = any_problem(seed)
    result = edgeopt.solve(problem, Milp(threads=threads))
    assert (result.status, result.message) == (Status.OPTIMAL, "")
    assert result.objective == pytest.approx(brute_force(problem)[0], rel=1e-9)


@pytest.mark.parametrize(
    ("solver", "seed"), [("milp", 295), ("lagrangian", 18), ("lagrangian", 49), ("lagrangian", 66)]
)
def test_a_start_that_presolve_misreads_in_facility_form(solver: str, seed: int):
    """The same of `milp` and of the finish of `lagrangian`."""
    form = Form(seed)
    if solver == "milp":
        form.capacity[form.rng.integers(form.capacity.size)] += 1.0
    problem = ExpertCaching.from_facility(form.gain, form.weight, form.size, form.capacity)
    result = edgeopt.solve(problem, solver)
    assert (result.status, result.message) == (Status.OPTIMAL, "")
    assert result.objective == pytest.approx(brute_force(problem)[0], rel=1e-9)


@pytest.mark.parametrize("solver", [Milp(threads=1), CpSat(workers=1)], ids=lambda solver: solver.name)
def test_a_false_optimum_is_not_believed(solver: Any, monkeypatch: pytest.MonkeyPatch):
    """A back end that claims more than any placement is worth: the placement stays, unproved, and the message says why."""
    problem = any_problem(1)
    optimum, _ = brute_force(problem)
    module = sys.modules[type(solver).__module__]

    class Boasting(module.Background):  # type: ignore[name-defined, misc]
        def wait(self) -> Any:
            true = super().wait()
            if not isinstance(true, Ending):  # a model that was built
                return true
            return Ending(true.end, true.message, 2.0 * true.objective)

    monkeypatch.setattr(module, "Background", Boasting)
    monkeypatch.setattr(module, "offer_bound", lambda *_: None)
    result = edgeopt.solve(problem, solver)
    assert optimum > 0
    assert (result.status, result.objective) == (Status.FEASIBLE, pytest.approx(optimum))
    assert "but only within its tolerance" in result.message


# --- one after another in one process --------------------------------------------------------------------------


@functools.cache
def caching() -> tuple[ExpertCaching, float]:
    """Return a problem and its optimum."""
    problem = any_problem(1)
    return problem, brute_force(problem)[0]


def call_solver(solver: Any) -> None:
    problem, optimum = caching()
    result = edgeopt.solve(problem, solver)
    assert result.status is Status.OPTIMAL, result.message
    assert result.objective == pytest.approx(optimum)


def call_lp_bound() -> None:
    problem, optimum = caching()
    assert lp_bound(problem) >= optimum - 1e-9


def call_highs(threads: int) -> None:
    """HiGHS in the calling thread, as a caller of `own_scheduler` runs it."""
    highs = new_highs(knapsack(), {"threads": threads})
    with own_scheduler():
        assert end_of_run(highs).objective == pytest.approx(7.0)


def call_cvxpy() -> None:
    """HiGHS as cvxpy calls it, in the calling thread, with as many threads as no other call here."""
    import cvxpy as cp

    x = cp.Variable(3, boolean=True)
    programme = cp.Problem(cp.Maximize(VALUES @ x), [np.array([2.0, 3.0, 4.0]) @ x <= 5])
    assert programme.solve(solver=cp.HIGHS, threads=1) == pytest.approx(7.0)


def call_scipy() -> None:
    """SciPy's own HiGHS."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows = LinearConstraint([[2.0, 3.0, 4.0]], ub=5.0)
    assert milp(-VALUES, constraints=rows, integrality=np.ones(3), bounds=Bounds(0, 1)).fun == pytest.approx(-7.0)


def call_knapsack() -> None:
    module = knapsack_module()
    solver = module.KnapsackSolver(module.SolverType.KNAPSACK_DYNAMIC_PROGRAMMING_SOLVER, "test")
    solver.init([3, 4, 5], [[2, 3, 4]], [5])
    assert solver.solve() == 7


CALLS: dict[str, Any] = {
    "milp, 1 thread": lambda: call_solver(Milp(threads=1)), "milp, 2 threads": lambda: call_solver(Milp(threads=2)),
    "relaxation": call_lp_bound, "HiGHS, 1 thread": lambda: call_highs(1), "HiGHS, 2 threads": lambda: call_highs(2),
    "CP-SAT": lambda: call_solver(CpSat(workers=1)), "knapsack": call_knapsack, "SciPy": call_scipy, "cvxpy": call_cvxpy,
}  # fmt: skip


def every_pair(names: list[str]) -> list[str]:
    """Return names in an order in which each comes right after each, itself included: a circuit (Hierholzer 1873)."""
    left = {name: list(names) for name in names}
    path, found = [names[0]], []
    while path:
        if left[path[-1]]:
            path.append(left[path[-1]].pop())
        else:
            found.append(path.pop())
    return found[::-1]


def test_back_ends_in_every_order():
    """Each back end right after each other and after itself, in one process: every one finds its optimum."""
    order = every_pair(list(CALLS))
    assert len(set(itertools.pairwise(order))) == len(CALLS) ** 2
    for k, name in enumerate(order):
        try:
            CALLS[name]()
        except Exception as error:
            raise AssertionError(f"{name} after {order[:k]}") from error


@pytest.mark.parametrize("threads", [1, 2])
def test_what_ran_before_in_the_thread_does_not_matter(threads: int):
    """A caller's own run of HiGHS leaves a scheduler of some width behind: ours of another width run all the same."""
    highs = highs_class()()
    highs.setOptionValue("threads", threads)
    highs.passModel(knapsack())
    highs.run()
    call_highs(3 - threads)
    call_lp_bound()
    call_solver(Milp(threads=3 - threads))
    again = highs_class()()
    again.setOptionValue("threads", 3 - threads)  # and none is left for the caller's next run
    again.passModel(knapsack())
    again.run()
    assert again.getInfo().objective_function_value == pytest.approx(7.0)
    highs_module().Highs.resetGlobalScheduler(True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("first", ["ortools.sat.python.cp_model", "cvxpy"])
def test_whatever_is_loaded_first(first: str):
    """Back ends that share the name of a library: each may be imported first, and all of them then solve.

    Until 1.16 highspy must come before OR-Tools: there the message says so.
    """
    is_old = tuple(map(int, highs_class()().version().split(".")[:2])) < (1, 16)
    code = f"import {first}\nfrom tests.solvers import test_highs\nfor call in test_highs.CALLS.values():\n    call()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    if is_old and first.startswith("ortools"):
        assert "import highspy (or solve once with HiGHS) before ortools is imported" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_models_in_cvxpy_are_solved_without_output() -> None:
    """HiGHS introduces itself to standard output wherever it is made, also by cvxpy; not here, and it is itself again afterwards."""
    code = (
        "import edgeopt, highspy; loud = highspy.Highs; from edgeopt.evaluation.instances import load_instance;"
        " result = edgeopt.solve(load_instance('facility-tiny'), 'generic'); assert highspy.Highs is loud; print(result.status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert (done.stdout, done.stderr, done.returncode) == ("optimal\n", "", 0)
