"""A back end in a thread of its own: what it posts arrives, and limits and Ctrl-C are heard while it runs."""

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

from edgeopt.problems import ExpertCaching, Placement
from edgeopt.progress import Callback
from edgeopt.result import Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers import background
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.expert_caching.random_fill import RandomFill
from edgeopt.stop import Limit
from tests.clock import Clock, install

PROBLEM = ExpertCaching.from_facility([[1.0]], [[0.75, 0.25]], [1.0, 1.0], [1.0])
GOOD, BETTER = Placement([[False, True]]), Placement([[True, False]])
WAIT_S = 60  # longer than any test takes: a wait that fails the test instead of hanging it


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of limits and of the grace time; it stands still unless a test moves it."""
    return install(monkeypatch, "edgeopt.solvers.background")


def solve(search: Any, *, halt: Any = None, **options: Any) -> tuple[Result[Any], Any]:
    """Run a search in the background of a run; return the result and what the search returned."""
    found = None
    with Run[Placement](RandomFill(), PROBLEM, SolveOptions(**options)) as run:
        found = Background(run, lambda mailbox: search(run, mailbox), halt).wait()
    return run.result(), found


def until_told(mailbox: Mailbox) -> None:
    """Compute until told to stop."""
    while not mailbox.stopping:
        threading.Event().wait(0.005)


def test_posts_arrive_in_order_in_the_calling_thread():
    """Every posted action runs in the thread that waits, and the value of the search is returned."""
    seen = []

    def search(run: Run[Placement], mailbox: Mailbox) -> str:
        seen.append(threading.current_thread() is threading.main_thread())
        for placement in (GOOD, BETTER):
            mailbox.post(lambda placement=placement: run.offer(placement))
        mailbox.post(lambda: seen.append(threading.current_thread() is threading.main_thread()))
        return "done"

    result, found = solve(search)
    assert (found, seen) == ("done", [False, True])
    assert (result.objective, result.limit) == (0.75, None)


def test_errors_of_the_search_are_raised():
    """An error in the thread is raised where the caller waits."""

    def search(run: Run[Placement], mailbox: Mailbox) -> None:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        solve(search)


def test_time_limit_stops_a_silent_back_end(clock: Clock):
    """The limit is watched although nothing is posted; what was posted before is kept, what comes after is taken."""

    def search(run: Run[Placement], mailbox: Mailbox) -> str:
        mailbox.post(lambda: run.offer(GOOD))
        clock.advance(1.0)
        until_told(mailbox)
        mailbox.post(lambda: run.offer(BETTER))
        return "stopped"

    result, found = solve(search, time_limit=1.0)
    assert (found, result.limit, result.objective) == ("stopped", Limit.TIME, 0.75)


def test_halt_is_called_until_the_back_end_returns(clock: Clock):
    """A back end that does not poll is stopped by `halt`."""
    halted = threading.Event()

    def search(run: Run[Placement], mailbox: Mailbox) -> str:
        clock.advance(1.0)
        assert halted.wait(WAIT_S)
        return "stopped"

    result, found = solve(search, halt=halted.set, time_limit=1.0)
    assert (found, result.limit) == ("stopped", Limit.TIME)


def test_interrupt_keeps_what_was_found():
    """Ctrl-C while the back end computes stops it, takes its last solution and ends the run quietly."""

    def search(run: Run[Placement], mailbox: Mailbox) -> None:
        mailbox.post(lambda: run.offer(GOOD))
        mailbox.post(lambda: os.kill(os.getpid(), signal.SIGINT))
        until_told(mailbox)
        mailbox.post(lambda: run.offer(BETTER))

    result, found = solve(search)
    assert (result.limit, result.objective, found) == (Limit.INTERRUPT, 0.75, None)


def test_interrupts_of_callbacks_while_it_ends():
    """A callback that interrupts at every solution still leaves the best one."""

    class Interrupt(Callback):
        def on_best(self, progress: Any) -> None:
            raise KeyboardInterrupt

    def search(run: Run[Placement], mailbox: Mailbox) -> None:
        mailbox.post(lambda: run.offer(GOOD))
        until_told(mailbox)
        mailbox.post(lambda: run.offer(BETTER))

    result, _ = solve(search, callback=Interrupt())
    assert (result.limit, result.objective) == (Limit.INTERRUPT, 0.75)


def test_checks_leave_the_search(clock: Clock):
    """A search of many small steps ends at its next check once it is told to stop; that is no error."""
    steps = []

    def search(run: Run[Placement], mailbox: Mailbox) -> str:
        mailbox.post(lambda: clock.advance(1.0))
        while True:
            steps.append(mailbox.stopping)
            mailbox.check()
            threading.Event().wait(0.005)

    result, found = solve(search, time_limit=1.0)
    assert (found, result.limit) == (None, Limit.TIME)
    assert steps[-1]
    assert not any(steps[:-1])


def test_the_end_of_the_process_waits_a_little(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """Back ends left behind are awaited when the process ends, but not for ever: those that are deaf are not."""
    release = threading.Event()

    def search(run: Run[Placement], mailbox: Mailbox) -> None:
        mailbox.post(lambda: clock.advance(1.0))
        release.wait(WAIT_S)

    solve(search, halt=lambda: clock.advance(background.GRACE_S), time_limit=1.0)
    (thread,) = background._threads
    monkeypatch.setattr(background, "EXIT_S", 0.0)
    background._await_left_behind()
    assert thread.is_alive()
    monkeypatch.setattr(background, "EXIT_S", WAIT_S)
    threading.Timer(0.05, release.set).start()
    background._await_left_behind()
    assert not thread.is_alive()
    assert not background._threads


def test_deaf_back_end_is_left_behind(clock: Clock):
    """A back end that does not stop is left to itself after the grace time: the time limit holds."""
    release, ended = threading.Event(), threading.Event()

    def search(run: Run[Placement], mailbox: Mailbox) -> str:
        mailbox.post(lambda: run.offer(GOOD))
        mailbox.post(lambda: clock.advance(1.0))  # only after the solution was taken
        release.wait(WAIT_S)
        ended.set()
        return "too late"

    def halt() -> None:  # called with every look at the mailbox while the grace time lasts
        clock.advance(background.GRACE_S / 4)

    result, found = solve(search, halt=halt, time_limit=1.0)
    assert clock.now == pytest.approx(1.0 + background.GRACE_S, abs=background.GRACE_S / 3)  # to one look
    release.set()
    assert (found, result.limit, result.objective) == (None, Limit.TIME, 0.25)
    assert ended.wait(WAIT_S)
    assert np.isinf(result.bound)
