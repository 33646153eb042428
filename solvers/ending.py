"""How the run of a back end ended, in words that are common to all of them."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edgeopt.solve import Run
from edgeopt.stop import Limit


class End(StrEnum):
    """What a back end's own status comes to. What is not known to be one of the others is `FAILED`, never a guess."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    TIME = "time"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ending:
    """How one run of a back end ended.

    Parameters
    ----------
    end : optimal or infeasible, as the back end claims; its time limit; stopped from outside or by a limit of work; failed.
    message : what the back end said.
    objective : what it claims that its optimum is worth, in its own units; nan unless optimal.
    """

    end: End
    message: str
    objective: float = math.nan

    @property
    def doubt(self) -> str:
        """What to say where no solution is worth what the back end claims, by the problem's own rules."""
        return f"{self.message}, but only within its tolerance: nothing found that fits is worth as much"

    def failure(self, run: Run[Any]) -> str:
        """Take over the limit that ended it, for a programme that has solutions; return what failed, empty if nothing did."""
        if self.end is End.TIME:
            run.limit = run.limit or Limit.TIME
        if self.end in (End.OPTIMAL, End.TIME) or (self.end is End.STOPPED and run.limit is not None):
            return ""
        return self.message
