"""Run a back end beside the calling thread, so that Ctrl-C, callbacks and limits are heard while it computes."""

import atexit
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from edgeopt.solve import Run

T = TypeVar("T")

TICK_S = 0.05  # between two looks at the limits when the back end is silent
GRACE_S = 0.1  # how long a back end that was told to stop may take before it is left behind
EXIT_S = 1.0  # how long the end of the process waits for back ends left behind

Action = Callable[[], object]


_threads: set[threading.Thread] = set()


class _Told(Exception):
    """Leaves a search that was told to stop."""


class Mailbox:
    """What the back end's thread and the calling thread share."""

    def __init__(self) -> None:
        self._actions: SimpleQueue[Action | None] = SimpleQueue()
        self._stopping = threading.Event()

    def post(self, action: Action | None) -> None:
        """Have an action run by the calling thread; None says that the back end has returned."""
        self._actions.put(action)

    def take(self, timeout_s: float) -> Action | None:
        """Return the next action; raise `queue.Empty` if none comes in time."""
        return self._actions.get(timeout=timeout_s)

    def stop(self) -> None:
        """Ask the back end to stop."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether the back end has been asked to stop."""
        return self._stopping.is_set()

    def check(self) -> None:
        """Leave the search if it has been asked to stop; for those made of many small steps."""
        if self.stopping:
            raise _Told


class Background(Generic[T]):
    """One run of a back end in a thread of its own.

    Python handles Ctrl-C only in the main thread and only between two of its instructions, so a back end that is
    called directly would hold it up until it returns. Here the calling thread waits, runs what the back end posts
    (offers, bounds, iterations: user callbacks therefore stay in the caller's thread) and watches the limits. A back end
    that does not stop within `GRACE_S` is left behind: it runs on to the end of its present step, nothing that it posts is
    heard any more, and it does not keep the process from ending. Building a large model is a search like others.

    Parameters
    ----------
    run : the run to report to.
    search : called with a `Mailbox` in the new thread; polls ``stopping``, calls ``check``, or is stopped by `halt`.
    halt : stops a back end that does not poll; called every `TICK_S` until it has returned.
    """

    def __init__(self, run: Run[Any], search: Callable[[Mailbox], T], halt: Action | None = None) -> None:
        self._run, self._search, self._halt = run, search, halt
        self._mailbox = Mailbox()
        self._outcome: list[T] = []
        self._error: BaseException | None = None

    def wait(self) -> T | None:
        """Run the search to its end, a limit or Ctrl-C; None if it left early, or had to be left behind."""
        thread = threading.Thread(target=self._work, name="edgeopt-back-end", daemon=True)
        _threads.add(thread)
        thread.start()
        try:
            self._pump()
        except KeyboardInterrupt:  # collect what the back end still has, then let the run end quietly
            self._mailbox.stop()
            self._drain()
            raise
        finally:
            self._mailbox.stop()
        if self._error is not None:
            raise self._error
        return self._outcome[0] if self._outcome else None

    def _work(self) -> None:
        try:
            self._outcome.append(self._search(self._mailbox))
        except _Told:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            self._error = error
        finally:
            self._mailbox.post(None)
            _threads.discard(threading.current_thread())

    def _pump(self) -> None:
        while not self._run.stopped():
            try:
                action = self._mailbox.take(min(TICK_S, self._run.remaining))
            except Empty:
                continue
            if action is None:
                return
            action()
        self._mailbox.stop()
        self._drain()

    def _drain(self) -> None:
        """Run what is still posted until the back end has returned, at most `GRACE_S`."""
        deadline = time.monotonic() + GRACE_S
        while (left := deadline - time.monotonic()) > 0:
            if self._halt is not None:
                self._halt()
            try:
                action = self._mailbox.take(min(TICK_S, left))
            except Empty:
                continue
            if action is None:
                return
            try:
                action()
            except KeyboardInterrupt:  # the incumbent was taken before the callback raised
                self._run.stopped()


def left_behind() -> bool:
    """Return whether a back end that was left behind is still running."""
    return any(thread.is_alive() for thread in tuple(_threads))


@atexit.register
def _await_left_behind() -> None:
    """Wait a little for back ends left behind: one that returns while Python is ending takes the process down with it."""
    deadline = time.monotonic() + EXIT_S
    for thread in tuple(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))
