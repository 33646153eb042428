"""A solver that misbehaves on demand. Worker processes import it, so it lives in a module of its own."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeopt.errors import MissingDependencyError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions

NUM_USERS = 3


@dataclass(frozen=True)
class Fake:
    """Behave as `mode` says: fine, raise, lack, exit, kill, hang, interrupt, interrupt-inside, environment.

    With ``once-`` before it, the first time only.
    """

    name: ClassVar[str] = "fake"
    guarantee: ClassVar[Guarantee] = Heuristic()

    mode: str = "fine"
    folder: str = ""

    def guarantee_for(self, problem: Problem) -> Guarantee:
        """Promise nothing."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Refuse everything but `tiny_problem`, which also keeps warm-ups from being counted."""
        if self.mode == "skip" or not isinstance(problem, ExpertCaching) or problem.num_users != NUM_USERS:
            return "expected three users and good will"
        return None

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Note the call in `folder`, then behave."""
        calls = Path(self.folder) / f"{self.mode}-{options.seed}"
        if self.folder:
            with calls.open("a") as file:
                file.write("x")
        mode = self.mode
        if mode.startswith("once-"):
            mode = mode.removeprefix("once-") if len(calls.read_text()) == 1 else "fine"
        if mode == "raise":
            raise RuntimeError("a fault\nof two lines")
        if mode == "lack":
            raise MissingDependencyError("fake needs a package: pip install it")
        if mode == "exit":
            raise SystemExit("no more")
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "hang":
            threading.Event().wait()
        if mode == "interrupt":
            raise KeyboardInterrupt
        if mode == "environment":
            raise RuntimeError(f"threads {os.environ.get('OMP_NUM_THREADS')} process {os.getpid()}")
        with Run[Placement](self, problem, options) as run:
            run.offer(Placement(np.eye(NUM_USERS, dtype=bool)))
            run.tighten(10.0)
            if mode == "interrupt-inside":
                raise KeyboardInterrupt
        return run.result()


def tiny_problem(scale: float = 1.0) -> ExpertCaching:
    """Three servers that each help one user, three experts, room for one: `Fake` saves 3 * scale."""
    return ExpertCaching.from_facility(scale * np.eye(NUM_USERS), np.eye(NUM_USERS), [1] * NUM_USERS, [1] * NUM_USERS)


def calls(folder: Path) -> dict[str, int]:
    """Return how often each (mode, seed) was called."""
    return {path.name: len(path.read_text()) for path in sorted(folder.iterdir())}


def meet(here: Path, there: Path) -> int:
    """Write the id of this process to one file, wait for another one, and return the id."""
    partial = here.with_name(f"{here.name}.new")
    partial.write_text(str(os.getpid()))
    partial.replace(here)
    while not there.exists():
        time.sleep(0.02)
    return os.getpid()
