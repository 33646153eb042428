"""`RoundResult`: what a round has brought, before it counts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.convergence import ConvergenceEstimate
from edgeopt.display import one_line
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.training.costs.timing import PhaseTime, Timing
from edgeopt.training.history import client_seconds
from edgeopt.training.messages import State


@dataclass(frozen=True, slots=True, eq=False)
class RoundResult:
    """What a round has brought, before it counts.

    Parameters
    ----------
    state : of the server, after the round.
    phases : in the order of time.
    loss : by entry whose update arrived.
    peak_bytes : float64 [M], memory of each entry's client at the peak of its work; nan where none is charged.
    bytes : int64 [N, 2, 6], see `edgeopt.training.Ledger`.
    measured : what the algorithm reports, by name.
    """

    state: State
    phases: tuple[PhaseTime, ...]
    loss: dict[int, float]
    peak_bytes: NDArray[np.float64]
    bytes: NDArray[np.int64]
    measured: dict[str, float]

    __repr__ = one_line

    def feedback(
        self, number: int, plan: RoundPlan, timing: Timing, constants: ConvergenceEstimate | None, start_s: float
    ) -> Feedback:
        """Return what a planner may know of the round, which began at a virtual second."""
        took = sum(phase.seconds for phase in self.phases)
        seconds, energy = client_seconds(plan, self.phases), np.zeros(len(plan))
        for phase in self.phases:
            np.add.at(energy, phase.entry, phase.energy_j)
        return Feedback(
            round=number,
            plan=plan,
            seconds=took,
            now_s=start_s + took,
            client_seconds=np.where(seconds > 0, seconds, np.nan),
            completed=np.isin(np.arange(len(plan)), list(self.loss)),
            client_peak_bytes=self.peak_bytes,
            client_energy_j=np.where(energy > 0, energy, np.nan),
            conflict=timing.conflicts(number, plan),
            constants=constants,
            measured=self.measured,
            **timing.rates(number, plan),
        )
