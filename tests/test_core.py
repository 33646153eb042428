"""The core: stop criteria, results, the run that solvers report to, progress, random streams, compiled kernels, errors."""

import csv
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import edgeopt
from edgeopt import (
    AnyOf,
    Callback,
    EdgeOptError,
    Heuristic,
    InvalidProblemError,
    Limit,
    MaxIterations,
    MaxTime,
    NoImprovement,
    NoSolutionError,
    Progress,
    ProgressLine,
    Ratio,
    Result,
    Run,
    SolveOptions,
    SolverError,
    Status,
    TargetGap,
    UnsupportedProblemError,
)
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.result import Exact, Record, Seconds, SolveHistory, relative_gap
from edgeopt.rng import stream
from edgeopt.solve import configure
from tests.clock import install

# --- a problem and a solver to misbehave with ---------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    value: float

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value}


@dataclass(frozen=True)
class PickANumber(Problem):
    """Pick a number of at most `limit`; the optimum is the limit itself (for `min`, at least minus the limit)."""

    kind: ClassVar[str] = "pick-a-number"
    sense: Sense = "max"  # type: ignore[misc]
    limit: float = 10.0

    def objective(self, solution: Number) -> float:
        return solution.value

    def violations(self, solution: Number) -> tuple[Violation, ...]:
        excess = abs(solution.value) - self.limit
        return (Violation("limit", 0, excess, f"{solution.value} exceeds {self.limit}"),) if excess > 0 else ()

    def describe(self) -> dict[str, str | int | float]:
        return {"limit": self.limit}

    def to_data(self) -> Any:
        return {"limit": self.limit, "sense": self.sense}, {}

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: Any) -> "PickANumber":
        return cls(**values)


@dataclass(frozen=True)
class Scripted:
    """Does what its script says to a run; the script returns the arguments of `Run.result`."""

    script: Callable[[Run[Number]], dict[str, Any] | None]
    strength: int = 3

    name: ClassVar[str] = "scripted"
    guarantee: ClassVar[Heuristic] = Heuristic()

    def guarantee_for(self, problem: Any) -> Heuristic:
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        return None if isinstance(problem, PickANumber) else f"expected numbers, got {problem.kind}"

    def solve(self, problem: Any, options: SolveOptions) -> Result[Any]:
        arguments = None
        with Run[Number](self, problem, options) as run:
            arguments = self.script(run)
        return run.result(**(arguments or {}))


def play(script: Callable[[Run[Number]], Any], *, sense: Sense = "max", **options: Any) -> Result[Number]:
    return edgeopt.solve(PickANumber(sense=sense), Scripted(script), **options)


def snapshot(**changes: Any) -> Progress:
    values = {"seconds": 1.0, "iteration": 5, "objective": 2.0, "bound": 4.0, "gap": 1.0}
    return Progress(**(values | {"best_seconds": 0.5, "best_iteration": 3} | changes))


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- stop criteria ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "reached", "not_yet", "limit"),
    [
        (MaxTime(1.0), {"seconds": 1.0}, {"seconds": 0.99}, Limit.TIME),
        (MaxIterations(5), {"iteration": 5}, {"iteration": 4}, Limit.ITERATION),
        (TargetGap(0.1), {"gap": 0.1}, {"gap": math.inf}, Limit.GAP),
        (NoImprovement(iterations=2), {"iteration": 5}, {"iteration": 4}, Limit.NO_PROGRESS),
        (NoImprovement(seconds=0.5), {"seconds": 1.0}, {"seconds": 0.9}, Limit.NO_PROGRESS),
        (NoImprovement(iterations=1), {"iteration": 9}, {"iteration": 9, "objective": None}, Limit.NO_PROGRESS),
        (NoImprovement(9, 0.5), {"seconds": 1.0}, {"seconds": 0.9}, Limit.NO_PROGRESS),
    ],
)
def test_a_criterion_names_its_limit_when_reached(criterion, reached, not_yet, limit):
    """Each criterion is silent just before its threshold and names its limit at it."""
    assert criterion.check(snapshot(**not_yet)) is None
    assert criterion.check(snapshot(**reached)) is limit


def test_any_of_returns_the_first_limit():
    """The first criterion that is reached gives the limit; none reached, or none there: go on."""
    assert AnyOf((MaxTime(9), MaxIterations(5), TargetGap(9))).check(snapshot()) is Limit.ITERATION
    assert AnyOf((MaxTime(9),)).check(snapshot()) is None
    assert AnyOf(()).check(snapshot()) is None


@pytest.mark.parametrize("bad", [-1, -math.inf, math.nan])
@pytest.mark.parametrize("criterion", [MaxTime, MaxIterations, TargetGap, NoImprovement])
def test_criteria_refuse_nonsense(criterion, bad):
    """Negative numbers and NaN are errors that name the value."""
    with pytest.raises(EdgeOptError, match=rf"{criterion.__name__}.*= .*expected a number >= 0"):
        criterion(bad)


def test_no_improvement_needs_a_threshold():
    """Without any threshold it would never stop: that is refused."""
    with pytest.raises(EdgeOptError, match="expected iterations or seconds"):
        NoImprovement()


def test_criteria_keep_no_state():
    """One criterion can serve two runs: the second is not cut short by the first."""
    stop = MaxIterations(3)

    def count(run):
        run.offer(Number(1.0))
        while run.step():
            pass
        return {"message": str(run.iteration)}

    assert [play(count, stop=stop).message for _ in range(2)] == ["3", "3"]


# --- results ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "bound", "gap"),
    [
        (100.0, 101.0, 0.01), (100.0, 99.0, 0.01), (-4.0, -2.0, 0.5), (0.0, 0.0, 0.0), (0.0, 1.0, math.inf),
        (None, 1.0, math.inf), (1.0, math.inf, math.inf), (1.0, -math.inf, math.inf), (5.0, 5.0, 0.0),
    ],
)  # fmt: skip
def test_relative_gap(objective, bound, gap):
    """The gap is relative to the objective, zero only for equality, infinite when either side is missing."""
    assert relative_gap(objective, bound) == pytest.approx(gap)


@pytest.mark.parametrize("capacity", [2, 3, 4, 5, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 100, 1001])
def test_history_thins_but_keeps_both_ends(capacity, count):
    """However many records come, at most `capacity` stay, in order, the first and the last among them."""
    history = SolveHistory(capacity)
    for i in range(count):
        history.append(Record(float(i), i, float(i), None))
    kept = [record.iteration for record in history]
    assert len(history) == len(kept) <= capacity
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept == sorted(set(kept))
    assert history[0].iteration == 0


def test_history_as_csv():
    """CSV has a header, one line per record, and empty cells where there is no value."""
    history = SolveHistory()
    history.append(Record(0.5, 0, None, None))
    history.append(Record(1.5, 3, 2.0, 4.25))
    rows = list(csv.reader(io.StringIO(history.to_csv())))
    assert rows == [["seconds", "iteration", "objective", "bound"], ["0.5", "0", "", ""], ["1.5", "3", "2.0", "4.25"]]


def test_seconds_add_up():
    """The total is the sum of the parts, in JSON as well."""
    assert Seconds(1.0, 2.0, 4.0).to_json() == {"build": 1.0, "compile": 2.0, "solve": 4.0, "total": 7.0}


def test_guarantees_as_text():
    """A ratio shows its text if it has one, else its number."""
    assert [str(g) for g in (Exact(), Ratio(0.5, ""), Ratio(0.5, "", "1/2 (K = 1)"), Heuristic("why"))] == [
        "exact", "0.5", "1/2 (K = 1)", "heuristic",
    ]  # fmt: skip


KEYS = [
    "problem", "solver", "seed", "sense", "status", "limit", "objective", "bound", "gap", "guarantee", "feasible",
    "seconds", "message",
]  # fmt: skip


def test_result_as_json():
    """The keys are the promised ones; without solution and bound the numbers are null, and the text is strict JSON."""
    empty = play(lambda run: None).to_json()
    assert list(empty) == KEYS
    assert (empty["objective"], empty["bound"], empty["gap"], empty["limit"]) == (None, None, None, None)
    assert (empty["status"], empty["feasible"], empty["sense"], empty["seed"]) == ("no-solution", False, "max", 0)
    assert set(empty["seconds"]) == {"build", "compile", "solve", "total"}
    json.dumps(empty, allow_nan=False)


def test_saved_result(tmp_path: Path):
    """The file has the solution and the versions beside the promised keys."""

    def script(run):
        run.offer(Number(8.0))
        run.tighten(10.0)

    result = play(script, seed=3)
    result.save(tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    assert list(document) == [*KEYS, "versions", "solution"]
    assert document["solution"] == {"value": 8.0}
    assert (document["objective"], document["bound"], document["gap"], document["seed"]) == (8.0, 10.0, 0.25, 3)
    assert set(document["versions"]) >= {"python", "edgeopt", "numpy", "numba"}
    assert "objective 8 (max)" in result.summary()
    assert "gap 25 %" in result.summary()


def test_asking_for_what_is_not_there():
    """Without a solution the objective is an error that says which solver and why; the gap is infinite."""
    result = play(lambda run: {"message": "nothing fits"})
    assert result.status is Status.NO_SOLUTION
    assert result.gap == math.inf
    for ask in (lambda: result.objective, result.raise_for_status):
        with pytest.raises(NoSolutionError, match=r"scripted found no solution \(no-solution\): nothing fits"):
            ask()


def test_raise_for_status():
    """A good result returns itself, a failed one raises with the words of the back end."""

    def good(run):
        run.offer(Number(1.0))

    result = play(good)
    assert result.raise_for_status() is result
    with pytest.raises(SolverError, match="scripted: licence expired"):
        play(lambda run: {"error": "licence expired"}).raise_for_status()


# --- solve --------------------------------------------------------------------------------------------------------


def test_the_best_offer_wins():
    """Worse and equal offers are refused; for minimisation better means smaller."""
    for sense, best in (("max", 7.0), ("min", 1.0)):
        taken = []

        def script(run, taken=taken):
            taken += [run.offer(Number(value)) for value in (3.0, 1.0, 7.0, 7.0, 1.0)]

        result = play(script, sense=sense)
        assert result.objective == best
        assert taken == ([True, False, True, False, False] if sense == "max" else [True, True, False, False, False])


def test_the_best_bound_is_kept():
    """A looser bound does not replace a tighter one, in either sense; the gap is taken from it."""
    for sense, bounds, best in (("max", (10.0, 8.0, 9.0), 8.0), ("min", (0.0, 1.0, 0.5), 1.0)):

        def script(run, bounds=bounds):
            run.offer(Number(4.0))
            for bound in bounds:
                run.tighten(bound)

        result = play(script, sense=sense)
        assert (result.bound, result.gap) == (best, abs(best - 4.0) / 4.0)


def test_meeting_the_bound_is_optimal():
    """Objective equal to the bound up to rounding means optimal, and the bound is then the objective."""

    def script(run):
        run.offer(Number(4.0))
        run.tighten(4.0 + 1e-12)

    result = play(script)
    assert (result.status, result.bound, result.gap) == (Status.OPTIMAL, 4.0, 0.0)


def test_a_claim_of_optimality_closes_the_gap():
    """A solver that proves optimality needs no bound of its own."""

    def script(run):
        run.offer(Number(4.0))
        return {"optimal": True}

    result = play(script)
    assert (result.status, result.bound, result.gap) == (Status.OPTIMAL, 4.0, 0.0)


def test_proved_infeasible():
    """Infeasible is a status, not an error."""
    assert play(lambda run: {"infeasible": True}).status is Status.INFEASIBLE


def test_a_wrong_objective_is_caught():
    """An objective that the problem does not confirm is an error; the result shows the true one."""

    def script(run):
        run.offer(Number(4.0), objective=5.0)

    result = play(script)
    assert result.status is Status.ERROR
    assert result.objective == 4.0
    assert "reported objective 5.0, the problem says 4.0" in result.message


def test_an_objective_that_is_no_number_is_caught():
    """NaN is neither better nor worse than anything, so it must not become the incumbent."""
    with pytest.raises(SolverError, match="scripted reported a solution with objective nan"):
        play(lambda run: run.offer(Number(1.0), objective=math.nan))


@pytest.mark.parametrize("unit", [2.0**-300, 1e-40, 1.0, 1e40])
@pytest.mark.parametrize(
    ("bound", "status"),
    [(2.0, Status.FEASIBLE), (1.0 + 1e-6, Status.FEASIBLE), (1.0 + 1e-12, Status.OPTIMAL), (0.5, Status.ERROR)],
)
def test_gaps_and_contradictions_have_no_unit(unit: float, bound: float, status: Status):
    """A bound is reached, beaten or contradicted relative to the objective, however small or large that is."""

    def script(run):
        run.offer(Number(unit))
        run.tighten(bound * unit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PickANumber, "violations", lambda self, solution: ())
        assert play(script).status is status


@pytest.mark.parametrize(("terms", "status"), [(0.0, Status.ERROR), (3.0, Status.OPTIMAL)])
def test_terms_that_cancel_round(terms: float, status: Status):
    """An objective of 0 that is left of terms of size 3 is as exact as they are; one of terms of one sign is exact."""

    def script(run):
        run.offer(Number(0.0))
        run.tighten(-1e-16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PickANumber, "largest_term", terms)
        assert play(script).status is status


def test_an_infeasible_solution_is_caught():
    """A solution that violates a constraint is an error, never optimal, and takes no bound with it."""

    def script(run):
        run.offer(Number(11.0))
        run.tighten(12.0)
        return {"optimal": True}

    result = play(script)
    assert (result.status, result.feasible, result.bound) == (Status.ERROR, False, math.inf)
    assert "11.0 exceeds 10.0" in result.message


@pytest.mark.parametrize(("sense", "bound"), [("max", 3.0), ("min", 5.0)])
def test_an_invalid_bound_is_caught(sense, bound):
    """A bound that the solver's own solution beats is an error, in either sense."""

    def script(run):
        run.offer(Number(4.0))
        run.tighten(bound)

    result = play(script, sense=sense)
    assert result.status is Status.ERROR
    assert f"reported the bound {bound}" in result.message


def test_a_bound_missed_by_rounding_is_mended():
    """A bound that the objective beats by rounding only never contradicts it."""

    def script(run):
        run.offer(Number(4.0))
        run.tighten(4.0 - 2e-8)

    result = play(script)
    assert result.status is Status.FEASIBLE
    assert result.bound >= result.objective


def test_a_time_limit_is_not_an_error(monkeypatch):
    """The best solution so far comes back, in the step in which the time is over; time zero stops at once."""
    clock = install(monkeypatch)

    def script(run):
        run.offer(Number(1.0))
        while run.step():
            clock.advance(0.25)

    result = play(script, time_limit=1.0)
    assert (result.status, result.limit) == (Status.FEASIBLE, Limit.TIME)
    assert result.seconds.total == 1.0
    result = play(script, time_limit=0)
    assert (result.limit, result.seconds.total) == (Limit.TIME, 0.0)


def test_remaining_seconds(monkeypatch):
    """What is left is never negative, and infinite without a limit."""
    clock = install(monkeypatch)

    def script(run):
        clock.advance(2.0)
        return {"message": str(run.remaining)}

    for time_limit, left in ((math.inf, "inf"), (60, "58.0"), (2, "0.0"), (0, "0.0")):
        assert play(script, time_limit=time_limit).message == left


@pytest.mark.parametrize("bad", [-1.0, math.nan, -math.inf])
def test_bad_time_limits(bad):
    """A limit that cannot be is refused before the work."""
    with pytest.raises(EdgeOptError, match=r"time_limit = .*expected seconds >= 0"):
        play(lambda run: None, time_limit=bad)


@pytest.mark.parametrize("bad", [-1, 1.5, "7"])
def test_bad_seeds(bad):
    """Seeds are whole numbers >= 0."""
    with pytest.raises(EdgeOptError, match=r"seed = .*expected an integer >= 0 or None"):
        play(lambda run: None, seed=bad)


def test_seed_none_is_drawn_and_reported():
    """None draws a fresh seed each time; the run and the result know it."""
    results = [play(lambda run: {"message": str(run.seed)}, seed=None) for _ in range(3)]
    assert len({result.seed for result in results}) == 3
    assert all(result.message == str(result.seed) for result in results)


def test_numpy_seed_reaches_json():
    """A seed taken from an array works, and the result can still be written."""
    assert json.loads(json.dumps(play(lambda run: None, seed=np.int64(5)).to_json()))["seed"] == 5


def test_unknown_solver_suggests_one():
    """A mistyped name is answered with the closest one and the list."""
    problem = edgeopt.problems.ExpertCaching.random(num_servers=1, num_users=1, experts_per_layer=2, num_layers=1)
    with pytest.raises(EdgeOptError, match=r"did you mean 'greedy'\?.*density-greedy"):
        edgeopt.solve(problem, "gredy")


def test_unsupported_problem():
    """A problem of another kind is refused with the solver's own sentence."""
    problem = edgeopt.problems.ExpertCaching.random(num_servers=1, num_users=1, experts_per_layer=2, num_layers=1)
    with pytest.raises(UnsupportedProblemError, match="scripted: expected numbers, got expert-caching"):
        edgeopt.solve(problem, Scripted(lambda run: None))


def test_warm_start():
    """The initial solution is the first incumbent; an infeasible one is refused before the work."""
    assert play(lambda run: None, initial_solution=Number(6.0)).objective == 6.0
    with pytest.raises(InvalidProblemError, match=r"initial_solution: 11.0 exceeds 10.0"):
        play(lambda run: None, initial_solution=Number(11.0))


@pytest.mark.parametrize("inside_a_kernel", [False, True])
def test_interrupt_keeps_the_incumbent(inside_a_kernel: bool):
    """Ctrl-C inside a solver leaves the best solution so far, with limit `interrupt`; also as numba passes it on."""

    def script(run):
        run.offer(Number(2.0))
        if inside_a_kernel:
            raise SystemError("returned a result with an exception set") from KeyboardInterrupt()
        raise KeyboardInterrupt

    result = play(script)
    assert (result.objective, result.limit, result.status) == (2.0, Limit.INTERRUPT, Status.FEASIBLE)


def test_other_exceptions_pass():
    """A failure of the solver is not swallowed, and callbacks still hear of the end."""
    log = Log()

    def script(run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play(script, callback=log)
    assert log.calls == ["start", "end"]

    def other(run):
        raise SystemError("of another cause")

    with pytest.raises(SystemError):
        play(other)


def test_build_time_is_charged_apart(monkeypatch):
    """What happens while building counts as building, the rest as solving, and the parts add up to the total."""
    clock = install(monkeypatch)

    def script(run):
        with run.building():
            clock.advance(2.0)
        clock.advance(1.0)
        run.offer(Number(1.0))

    assert play(script).seconds == Seconds(build=2.0, compile=0.0, solve=1.0)


def test_history_of_a_run():
    """Every better solution and bound is recorded, times ascending, the last record being the result."""

    def script(run):
        for value in range(5):
            run.offer(Number(float(value)))
            run.tighten(9.0 - value)
            run.step()

    result = play(script)
    records = list(result.history)
    assert [r.objective for r in records][-1] == 4.0
    assert records[-1].bound == 5.0
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(records))


def test_configure():
    """Parameters are changed on a copy; unknown ones are errors that list the known."""
    solver = Scripted(print)
    assert configure(solver, strength=5).strength == 5  # type: ignore[attr-defined]
    assert solver.strength == 3
    with pytest.raises(EdgeOptError, match="scripted has no parameter 'power'; it has script, strength"):
        configure(solver, power=1)


# --- progress -----------------------------------------------------------------------------------------------------


@dataclass
class Log(Callback):
    """Writes down what it is told and stops where it should."""

    stop_at: str = ""
    calls: list[str] = field(default_factory=list)

    def on_start(self, solver: str, problem: str) -> None:
        self.calls.append("start")

    def on_iteration(self, progress: Progress) -> bool | None:
        self.calls.append("iteration")
        return False if self.stop_at == "iteration" else None

    def on_best(self, progress: Progress) -> bool | None:
        self.calls.append("best")
        return False if self.stop_at == "best" else None

    def on_end(self, progress: Progress) -> None:
        self.calls.append("end")


def climb(run: Run[Number]) -> None:
    for value in (1.0, 2.0):
        run.offer(Number(value))
        if not run.step():
            break


@pytest.mark.parametrize(
    ("stop_at", "calls"),
    [
        ("", ["start", "best", "iteration", "best", "iteration", "end"]),
        ("iteration", ["start", "best", "iteration", "end"]),
        ("best", ["start", "best", "iteration", "end"]),
    ],
)
def test_callbacks(stop_at, calls):
    """Callbacks hear of everything in order, and False stops the run with limit `callback`."""
    log = Log(stop_at)
    result = play(climb, callback=log)
    assert log.calls == calls
    assert result.limit is (Limit.CALLBACK if stop_at else None)


def test_a_plain_callback_does_nothing():
    """The base class can be used as it is."""
    assert play(climb, callback=Callback()).objective == 2.0


def test_display_is_silent_off_a_terminal(capfd):
    """In a pipe or a log file the progress line writes nothing at all."""
    assert play(climb, display=True).objective == 2.0
    assert capfd.readouterr() == ("", "")


def test_display_on_a_terminal(monkeypatch):
    """On a terminal the line shows objective, bound and gap, on standard error."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    line = ProgressLine()
    line.on_start("scripted", "pick-a-number")
    line.on_iteration(snapshot(gap=0.5))
    line.on_end(snapshot())
    assert "objective 2  bound 4  gap 50 %" in terminal.getvalue()


# --- random streams -----------------------------------------------------------------------------------------------


def test_streams():
    """Equal seed and keys give equal numbers; another seed, key, order or depth gives others."""
    names: list[tuple[int, tuple[int | str, ...]]] = [
        (0, ()), (0, ("a",)), (0, ("b",)), (1, ("a",)), (0, ("a", 1)), (0, ("a", 2)), (0, (1, "a")), (0, ("a", "b")),
        (0, ("b", "a")), (0, (1,)), (0, ("1",)),
    ]  # fmt: skip
    drawn = [stream(seed, *keys).random(4).tolist() for seed, keys in names]
    assert drawn == [stream(seed, *keys).random(4).tolist() for seed, keys in names]
    assert len({tuple(numbers) for numbers in drawn}) == len(names)


def test_streams_are_uncorrelated():
    """Streams of one seed do not resemble each other."""
    numbers = np.array([stream(7, "fading", i).standard_normal(2000) for i in range(8)])
    correlation = np.corrcoef(numbers) - np.eye(8)
    assert np.abs(correlation).max() < 0.1


def test_streams_leave_the_global_state_alone():
    """Nothing is drawn from numpy's global generator."""
    code = (
        "import numpy as np; before = np.random.get_state()[1].copy(); "
        "from edgeopt.rng import stream; stream(0, 'x').random(9); print((before == np.random.get_state()[1]).all())"
    )
    assert run_python(code).strip() == "True"


# --- compiled kernels ---------------------------------------------------------------------------------------------

USE_A_KERNEL = """
import numpy as np
import edgeopt
from edgeopt.jit import CompileTimer
from edgeopt.problems import ExpertCaching, Placement
problem = ExpertCaching.from_facility(gain=[[1.0]], weight=[[1.0]], size=[1], capacity=[1])
with CompileTimer() as timer:
    print(problem.objective(Placement([[True]])))
assert timer.seconds > 0
"""


def test_kernels_are_cached_where_they_should_be(tmp_path: Path):
    """EDGEOPT_CACHE_DIR decides where compiled kernels go; nothing is written into the package."""
    package = Path(edgeopt.problems.__file__).parent
    before = sorted(package.rglob("*.nb[ic]"))
    assert run_python(USE_A_KERNEL, EDGEOPT_CACHE_DIR=str(tmp_path / "kernels")).strip() == "1.0"
    assert list((tmp_path / "kernels").rglob("*.nbi"))
    assert sorted(package.rglob("*.nb[ic]")) == before


def test_default_cache(tmp_path: Path):
    """Without the variable it is ~/.cache/edgeopt/numba; an empty variable counts as none."""
    code = "from edgeopt.jit import cache_dir; print(cache_dir())"
    out = run_python(code, EDGEOPT_CACHE_DIR="", HOME=str(tmp_path))
    assert out.strip() == str(tmp_path / ".cache" / "edgeopt" / "numba")


def test_an_unwritable_cache_costs_time_only(tmp_path: Path):
    """Where nothing can be written, kernels are compiled in the process and work."""
    (tmp_path / "file").write_text("not a folder")
    assert run_python(USE_A_KERNEL, EDGEOPT_CACHE_DIR=str(tmp_path / "file" / "inside")).strip() == "1.0"


def test_no_home_costs_time_only(tmp_path: Path):
    """A user without a home folder, as in some containers, can still solve."""
    code = "import pathlib\ndef home():\n    raise RuntimeError('no home')\npathlib.Path.home = home\n" + USE_A_KERNEL
    assert run_python(code, EDGEOPT_CACHE_DIR="").strip() == "1.0"


def test_other_packages_caches_are_left_alone(tmp_path: Path):
    """Numba's own setting is the same before and after."""
    code = (
        "from numba.core import config; before = config.CACHE_DIR; from edgeopt.problems.expert_caching import kernels; "
        "print(before == config.CACHE_DIR)"
    )
    assert run_python(code, EDGEOPT_CACHE_DIR=str(tmp_path)).strip() == "True"


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "also"),
    [
        ("InvalidProblemError", ValueError), ("InvalidFileError", edgeopt.InvalidProblemError),
        ("UnsupportedProblemError", TypeError), ("NoSolutionError", edgeopt.EdgeOptError),
        ("SolverError", edgeopt.EdgeOptError), ("MissingDependencyError", ImportError),
    ],
)  # fmt: skip
def test_errors_can_be_caught_by_what_they_are(error, also):
    """All errors share one base and are also the builtin that fits."""
    assert issubclass(getattr(edgeopt, error), edgeopt.EdgeOptError)
    assert issubclass(getattr(edgeopt, error), also)


def test_unknown_attribute():
    """A name that is not there is an AttributeError like any other; lazy names are listed."""
    with pytest.raises(AttributeError, match="module 'edgeopt' has no attribute 'nothing'"):
        _ = edgeopt.nothing
    assert {"solvers", "problems", "evaluation", "EdgeNetwork", "load", "solve"} <= set(dir(edgeopt))


# --- arguments of other types -----------------------------------------------------------------------------------------


def test_no_time_limit():
    """None is no limit, as infinity is; a limit may be any kind of number."""
    assert SolveOptions(time_limit=None).time_limit == math.inf
    for limit in (3, np.float32(3), np.int64(3), np.array(3.0)):
        assert SolveOptions(time_limit=limit).time_limit == 3.0
    assert play(lambda run: {"message": str(run.remaining)}, time_limit=None).message == "inf"


@pytest.mark.parametrize("seed", [np.int64(7), np.array(7), 7.0, 2**70])
def test_seeds_of_any_type(seed):
    """Seeds are kept as Python's integers, however large."""
    options = SolveOptions(seed=seed)
    assert type(options.seed) is int
    assert options.seed == seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_limit": "5"}, "time_limit = '5': expected seconds >= 0, or None for no limit"),
        ({"time_limit": True}, "time_limit = True: expected seconds >= 0, or None for no limit"),
        ({"time_limit": [5]}, "time_limit = [5]: expected seconds >= 0, or None for no limit"),
        ({"seed": True}, "seed = True: expected an integer >= 0 or None"),
        ({"seed": np.arange(2)}, "seed = array([0, 1]): expected an integer >= 0 or None"),
        ({"stop": 5}, "stop: expected a StopCriterion, got 5"),
        ({"stop": MaxTime}, "stop: expected a StopCriterion, got the class MaxTime"),
        ({"callback": print}, "callback: expected a Callback, got <built-in function print>"),
        ({"deterministic": 1}, "deterministic = 1: expected True or False"),
        ({"display": "no"}, "display = 'no': expected True or False"),
    ],
)
def test_options_of_the_wrong_type(options, message):
    """What cannot be an option is refused in one line before any work."""
    with pytest.raises(EdgeOptError, match=f"^{re.escape(message)}$"):
        SolveOptions(**options)


def test_what_is_no_problem_and_no_solver():
    """A file name in place of a problem, or a class in place of a solver, is told as that."""
    problem = edgeopt.problems.ExpertCaching.random(num_servers=2, num_users=3, seed=1)
    greedy = edgeopt.solvers.get_solver("expert-caching", "greedy")
    with pytest.raises(EdgeOptError, match=r"^problem: expected a problem, got 'caching.json'$"):
        edgeopt.solve("caching.json", "greedy")
    with pytest.raises(EdgeOptError, match=r"^solver: expected a Solver, got the class Greedy"):
        edgeopt.solve(problem, type(greedy))
    with pytest.raises(EdgeOptError, match=r"^solver: expected a Solver, got 5$"):
        edgeopt.solve(problem, 5)


def test_criteria_of_any_iterable():
    """Criteria may come from a generator, and are looked at as often as there are steps."""
    stop = AnyOf(MaxIterations(limit) for limit in (np.int64(4), 2))
    assert [stop.check(progress(iteration)) for iteration in (1, 2, 3)] == [None, Limit.ITERATION, Limit.ITERATION]
    for wrong in (MaxTime(1), [MaxTime], "time", [5]):
        with pytest.raises(EdgeOptError, match=r"^AnyOf.criteria"):
            AnyOf(wrong)
    with pytest.raises(EdgeOptError, match=r"^MaxIterations.iterations = '5': expected a number >= 0$"):
        MaxIterations("5")


def progress(iteration: int) -> Progress:
    return Progress(0.0, iteration, None, math.inf, math.inf, 0.0, 0)
