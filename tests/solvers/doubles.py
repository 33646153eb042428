"""What the conformance suites of all kinds of problems play against the solvers."""

from typing import Any

from edgeopt.problem import Problem, Violation
from edgeopt.progress import Callback
from edgeopt.stop import Progress


class Foreign(Problem):
    """A problem of another kind."""

    kind = "foreign"
    sense = "max"

    def objective(self, solution: Any) -> float:
        return 0.0

    def violations(self, solution: Any) -> tuple[Violation, ...]:
        return ()

    def describe(self) -> dict[str, str | int | float]:
        return {}

    def to_data(self) -> Any:
        return {}, {}

    @classmethod
    def from_data(cls, values: Any, arrays: Any) -> Any:
        return cls()


class Stop(Callback):
    """Stops, or interrupts as Ctrl-C does, at the first event of the given kind."""

    def __init__(self, event: str, *, interrupt: bool = False) -> None:
        self.event, self.interrupt, self.ended = event, interrupt, 0

    def _react(self, event: str) -> bool | None:
        if event != self.event:
            return None
        if self.interrupt:
            raise KeyboardInterrupt
        return False

    def on_iteration(self, progress: Progress) -> bool | None:
        return self._react("iteration")

    def on_best(self, progress: Progress) -> bool | None:
        return self._react("best")

    def on_end(self, progress: Progress) -> None:
        self.ended += 1
