"""Ctrl-C at any moment of a solve: the best solution so far comes back, whatever the solver is doing."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt import interrupts
from edgeopt.interrupts import interrupted, interrupts_noted, is_interrupt
from edgeopt.problems import PROBLEMS, ExpertCaching, Placement
from edgeopt.progress import Callback
from edgeopt.result import Result, Status
from edgeopt.solve import Run, SolveOptions, configure
from edgeopt.solvers import KINDS, solvers_of
from edgeopt.solvers.client_selection import RlCrp
from edgeopt.solvers.expert_caching import Greedy
from edgeopt.solvers.model_download.rolling_horizon import rolling_horizon
from edgeopt.solvers.split_training.planner import HasflPlanner
from edgeopt.stop import Limit
from tests.solvers.client_selection import instances as selection
from tests.solvers.expert_balancing import instances as balancing
from tests.solvers.expert_caching import instances as caching
from tests.solvers.model_download import instances as download
from tests.solvers.split_training import instances as split

INSTANCES: dict[str, tuple[Any, ...]] = {
    "expert-caching": (caching.instance("two sizes"), caching.instance("K = 3, max")),
    "model-download": (download.instance("energy"), download.instance("levels and energy")),
    "split-training": (split.instance("varied 13"),),
    "client-selection": (selection.instance("fail, regimes"),),
    "expert-balancing": (balancing.instance("all of it"),),
}


def instances_of(kind: str) -> tuple[Any, ...]:
    """Return the instances above, or what the kind itself calls tiny."""
    (problem,) = (problem for problem in PROBLEMS if problem.kind == kind)
    return INSTANCES.get(kind) or (SimpleNamespace(name="tiny", problem=problem.random(seed=0).tiny_like()),)


MOMENTS = 6  # of each solve
BRIEF: dict[str, dict[str, Any]] = {
    "max-convolution": {"search_work": 1e5, "bound_steps": 3},
    "lagrangian": {"search_work": 1e5, "bound_steps": 3, "max_steps": 30, "rounds": 2},
    **{name: {"iterations": 2, "episodes": 2} for name in ("rl-crp", "rl-crp-plain", "rl-no-crp", "rl-no-fairness")},
}
"""Settings with which solvers have less to do, and all of it still happens."""
PACKAGE = str(Path(edgeopt.__file__).resolve().parent.parent)

Line = tuple[str, int]
"""File and number of a statement."""

pairs = pytest.mark.parametrize(
    ("solver", "tiny"),
    [
        pytest.param(configure(solver, **BRIEF.get(solver.name, {})), tiny, id=f"{kind}-{solver.name}-{tiny.name}")
        for kind in KINDS
        for solver in solvers_of(kind)
        for tiny in instances_of(kind)
        if solver.supports(tiny.problem) is None
    ],
)  # fmt: skip


def press() -> None:
    """Press Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


@contextmanager
def at_every_statement(act: Callable[[Line], object]) -> Iterator[None]:
    """Call `act` before every statement of the package that this thread runs while Ctrl-C is noted, until it says False."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_filename == interrupts.__file__:
            return None
        is_noted = signal.getsignal(signal.SIGINT) is interrupts._note
        if event == "line" and is_noted and act((frame.f_code.co_filename, frame.f_lineno)) is False:
            sys.settrace(None)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class Press(Callback):
    """Presses Ctrl-C, some times, when the run starts."""

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def on_start(self, solver: str, problem: str) -> None:
        for _ in range(self.times):
            press()


def check(result: Result[Any], tiny: Any) -> None:
    """Check that a solve was interrupted and has a solution that the problem itself accepts."""
    assert result.limit is Limit.INTERRUPT
    assert result.status in (Status.FEASIBLE, Status.OPTIMAL), result.message
    assert tiny.problem.violations(result.solution) == ()
    assert result.objective == tiny.problem.objective(result.solution)


@pytest.mark.sampled(3)
@pairs
def test_ctrl_c_at_many_statements(solver: Any, tiny: Any):
    """A signal before statements all over the solve, the first and the last among them: a solution every time.

    Statements are found by a first run without a signal and taken at equal distances, in the order of their first turn.
    """
    edgeopt.solve(tiny.problem, solver)  # what is loaded and kept on the way
    seen: dict[Line, None] = {}
    with at_every_statement(lambda line: seen.setdefault(line)):
        assert edgeopt.solve(tiny.problem, solver).limit is None
    lines = list(seen)
    for moment in {round(k) for k in np.linspace(0, len(lines) - 1, MOMENTS)}:
        pressed: list[Line] = []

        def act(line: Line, wanted: Line = lines[moment], pressed: list[Line] = pressed) -> bool:
            if line == wanted:
                pressed.append(line)
                press()
            return not pressed

        with at_every_statement(act):
            result = edgeopt.solve(tiny.problem, solver)
        if pressed:  # how often a back end is looked after depends on the clock
            check(result, tiny)
        else:
            assert "background" in lines[moment][0] or solver.name in ("milp", "cp-sat", "lagrangian"), lines[moment]


@pairs
def test_ctrl_c_at_the_start(solver: Any, tiny: Any):
    """The first thing that a run sees is Ctrl-C: there is a solution all the same, worth something, to be written down."""
    result = edgeopt.solve(tiny.problem, solver, callback=Press())
    check(result, tiny)
    assert tiny.problem.sense == "min" or tiny.problem.kind == "client-selection" or result.objective > 0
    assert result.to_json(with_solution=True)["limit"] == "interrupt"


@pytest.mark.parametrize("name", ["one large", "energy", "levels and energy"])
def test_early_ctrl_c_at_slide(name: str):
    """Users whose least rates are not found yet are served as without overlap, if that can serve them."""
    problem = download.instance(name).problem
    found, other = (edgeopt.solve(problem, name, callback=Press()) for name in ("slide", "download-then-infer"))
    assert found.objective >= other.objective > 0


def test_ctrl_c_after_the_last_look():
    """A solver that is done before it looks again returns what it found, and Ctrl-C is still told of."""
    tiny = INSTANCES["expert-caching"][0]

    class Late(Callback):
        def on_end(self, progress: Any) -> None:
            press()

    result = edgeopt.solve(tiny.problem, "milp", callback=Late())
    check(result, tiny)
    assert result.status is Status.OPTIMAL


def test_ctrl_c_in_nested_kernels():
    """Every kernel around the one that was interrupted makes another SystemError of it; other errors are no Ctrl-C."""

    def wrapped(error: BaseException, times: int) -> BaseException:
        for _ in range(times):
            outer = SystemError("a kernel returned a result with an exception set")
            outer.__cause__, error = error, outer
        return error

    for times in range(4):
        assert is_interrupt(wrapped(KeyboardInterrupt(), times))
        assert not is_interrupt(wrapped(ValueError(), times))
    assert not is_interrupt(None)
    assert not is_interrupt(SystemError())

    class Nested(Callback):
        def on_best(self, progress: Any) -> bool | None:
            raise wrapped(KeyboardInterrupt(), 2)

    tiny = INSTANCES["expert-caching"][0]
    check(edgeopt.solve(tiny.problem, "greedy", callback=Nested()), tiny)


# --- whose Ctrl-C it is ------------------------------------------------------------------------------------------


def test_a_second_ctrl_c_is_raised():
    """In the run it ends the run, which keeps what it has; a solver that never looks is left that way too."""
    tiny = INSTANCES["expert-caching"][0]

    class Twice(Callback):
        def on_best(self, progress: Any) -> bool | None:
            press()
            press()
            pytest.fail("the second one was not raised")

    check(edgeopt.solve(tiny.problem, "greedy", callback=Twice()), tiny)
    heard = []

    def noted_twice() -> None:
        with interrupts_noted():
            press()
            heard.append(interrupted())
            press()

    with pytest.raises(KeyboardInterrupt):
        noted_twice()
    assert heard == [True]
    assert not interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_python_s_again_afterwards():
    """After a solve, also one that fails, Ctrl-C is raised as ever, and nothing of an earlier one is left."""
    tiny = INSTANCES["expert-caching"][0]
    check(edgeopt.solve(tiny.problem, "greedy", callback=Press()), tiny)
    assert edgeopt.solve(tiny.problem, "greedy").limit is None
    with pytest.raises(edgeopt.errors.EdgeOptError):
        edgeopt.solve(tiny.problem, "nonsense")
    with pytest.raises(KeyboardInterrupt):
        press()


def test_a_handler_of_the_caller_is_asked():
    """Where the caller handles Ctrl-C itself, a solve leaves that to it, and goes on if it does."""
    tiny, heard = INSTANCES["expert-caching"][0], []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        result = edgeopt.solve(tiny.problem, "greedy", callback=Press(2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT] * 2
    assert result.limit is None


def test_solves_within_a_solve():
    """Ctrl-C in a solve that a callback of another one makes ends both, each with what it has."""
    tiny = INSTANCES["expert-caching"][0]
    inner: list[Result[Any]] = []

    class Nest(Callback):
        def on_best(self, progress: Any) -> bool | None:
            if not inner:
                inner.append(edgeopt.solve(tiny.problem, "lagrangian", callback=Press()))
            return None

    check(edgeopt.solve(tiny.problem, "greedy", callback=Nest()), tiny)
    check(inner[0], tiny)


def test_solves_in_other_threads():
    """Only the main thread hears of Ctrl-C: a solve in another one is not ended by it, and leaves its handler alone."""
    tiny, results = INSTANCES["expert-caching"][0], []
    with interrupts_noted():
        press()
        thread = threading.Thread(target=lambda: results.append(edgeopt.solve(tiny.problem, "greedy")))
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGINT) is interrupts._note
    assert results[0].limit is None


def test_runs_without_solve():
    """A solver called past `solve` lets Ctrl-C through as an exception, which its run takes as before."""
    tiny = INSTANCES["expert-caching"][0]
    with Run[Placement](Greedy(), tiny.problem, SolveOptions()) as run:
        run.offer(tiny.best)
        press()
        pytest.fail("not raised")
    check(run.result(), tiny)


# --- solves that others make -------------------------------------------------------------------------------------


def solved_after(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Have Ctrl-C pressed in every solve that a module makes."""
    solve = edgeopt.solve
    monkeypatch.setattr(
        sys.modules[module], "solve", lambda *given, **options: solve(*given, callback=Press(), **options)
    )


def test_rolling_horizon(monkeypatch: pytest.MonkeyPatch):
    """A simulation over many solves ends at Ctrl-C instead of going on with a worse decision."""
    solved_after(monkeypatch, "edgeopt.solvers.model_download.rolling_horizon")
    problem = download.instance("one large").problem
    with pytest.raises(KeyboardInterrupt):
        rolling_horizon(problem, np.zeros(problem.num_users))


def test_planner(monkeypatch: pytest.MonkeyPatch):
    """A planner hands Ctrl-C on to the training, which has rounds to keep, and is as it was before."""
    planner = HasflPlanner(split.instance("varied 13").problem)
    with monkeypatch.context() as patch:
        solved_after(patch, "edgeopt.solvers.split_training.planner")
        with pytest.raises(KeyboardInterrupt):
            planner.plan(0)
    assert planner.split_plan is None
    assert len(planner.plan(0).client) == planner.problem.num_devices


# --- time limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "solver", "where"),
    [
        ("expert-caching", "milp", "edgeopt.solvers.expert_caching.milp.build_model"),
        ("expert-caching", "cp-sat", "edgeopt.solvers.expert_caching.cp_sat.build_cp_model"),
        ("model-download", "milp", "edgeopt.solvers.model_download.milp.DownloadModel"),
        ("model-download", "milp", "edgeopt.solvers.model_download.milp.new_highs"),
    ],
)
def test_building_is_left_behind(monkeypatch: pytest.MonkeyPatch, kind: str, solver: str, where: str):
    """A model that takes for ever to build keeps neither the time limit nor Ctrl-C waiting; the start is the result."""
    tiny, release = INSTANCES[kind][0], threading.Event()

    def endless(*_: Any) -> None:
        release.wait()
        raise ZeroDivisionError("nobody hears of it")

    monkeypatch.setattr(where, endless)
    try:
        assert edgeopt.solve(tiny.problem, solver, time_limit=0.05).limit is Limit.TIME
        timer = threading.Timer(0.05, press)
        timer.start()
        check(edgeopt.solve(tiny.problem, solver), tiny)
    finally:
        release.set()


def test_checking_what_is_supported_counts(monkeypatch: pytest.MonkeyPatch):
    """The clock starts with the call: what `supports` takes is part of the time limit and of the seconds told."""
    now = iter(np.arange(0.0, 1e6, 10.0).tolist())
    problem = ExpertCaching.from_facility([[1.0]], [[0.75, 0.25]], [1.0, 1.0], [1.0])

    class Slow(Greedy):
        def supports(self, problem: Any) -> str | None:
            next(now)
            return None

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return next(now)

    monkeypatch.setattr(sys.modules["edgeopt.solve"], "time", Clock)
    result = edgeopt.solve(problem, Slow(), time_limit=15.0)
    assert result.limit is Limit.TIME


def test_training_leaves_time_to_play(monkeypatch: pytest.MonkeyPatch):
    """A learner stops early enough to play what it has learned, on a clock by which all takes long, within the limit."""
    from edgeopt.solvers.client_selection import rl
    from edgeopt.solvers.client_selection.learner import Learner

    clock = {"now": 0.0}
    play, step = rl.play_policy, Learner.step
    policies: list[Any] = []

    def slow_play(problem: Any, trained: Any, *stopped: Any) -> Any:
        clock["now"] += 5.0
        policies.append(trained)
        return play(problem, trained)

    def slow_step(self: Learner, stopped: Any) -> Any:
        done = step(self, stopped)
        clock["now"] += 1.0 if done else 0.0
        return done

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return clock["now"]

    monkeypatch.setattr(rl, "play_policy", slow_play)
    monkeypatch.setattr(Learner, "step", slow_step)
    monkeypatch.setattr(sys.modules["edgeopt.solve"], "time", Clock)
    tiny = INSTANCES["client-selection"][0]
    result = edgeopt.solve(tiny.problem, RlCrp(episodes=2), time_limit=20.0)
    assert result.limit is Limit.TIME
    assert [policy.facts["iterations"] for policy in policies] == [0, 10]
    assert clock["now"] == 5 + 10 * 1 + 5
    assert result.solution == play(tiny.problem, policies[-1])
