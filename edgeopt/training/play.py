"""One round: the conversation of an algorithm with its clients, each exchange delivered and charged."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.convergence import ConvergenceEstimate
from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.training.algorithms.base import Algorithm, Outcome
from edgeopt.training.costs.ledger import Ledger
from edgeopt.training.costs.timing import PhaseTime, Timing, Traffic
from edgeopt.training.history import client_seconds
from edgeopt.training.messages import Phase, Replies, State, kept
from edgeopt.training.run_state import RunState
from edgeopt.training.runners.local import Runner, seeded_layers
from edgeopt.training.task import Task
from edgeopt.training.trouble import TrainingError, blaming


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """A round that was played, before it counts.

    Parameters
    ----------
    state : of the server, after the round.
    phases : in the order of time.
    loss : by entry whose update arrived.
    bytes : int64 [N, 2, 5], see `edgeopt.training.Ledger`.
    """

    state: State
    phases: tuple[PhaseTime, ...]
    loss: dict[int, float]
    bytes: NDArray[np.int64]

    __repr__ = one_line

    def feedback(self, number: int, plan: RoundPlan, timing: Timing, constants: ConvergenceEstimate | None) -> Feedback:
        """Return what a planner may know of the round."""
        seconds = client_seconds(plan, self.phases)
        return Feedback(
            round=number,
            plan=plan,
            seconds=sum(phase.seconds for phase in self.phases),
            client_seconds=np.where(seconds > 0, seconds, np.nan),
            completed=np.isin(np.arange(len(plan)), list(self.loss)),
            conflict=timing.conflicts(number, plan),
            constants=constants,
            **timing.rates(number, plan),
        )


def play_round(
    task: Task, algorithm: Algorithm, run: RunState, plan: RoundPlan, runner: Runner, timing: Timing
) -> Played:
    """Play the conversation of one round; nothing of it counts until `RunState.advance`."""
    if (unknown := np.flatnonzero(plan.client >= task.num_clients)).size:
        raise InvalidProblemError(
            f"round {run.round}: client[{unknown[0]}] = {plan.client[unknown[0]]}: "
            f"expected 0 to {task.num_clients - 1}, the clients of the partition"
        )
    lost = timing.lost(run.round, plan)
    ledger = Ledger(task.num_clients)
    phases: list[PhaseTime] = []
    start = 0.0
    conversation = algorithm.round(task, run.server, plan, run.round)
    replies: Replies | None = None
    where = f"round {run.round}, {algorithm.name}"
    while True:
        try:
            with blaming(where), seeded_layers(task, "server", run.round, len(phases)):
                phase = next(conversation) if replies is None else conversation.send(replies)
        except StopIteration as end:
            outcome: Outcome = end.value
            break
        with blaming(where):
            replies, traffic = _exchange(task, algorithm, phase, plan, lost, runner, ledger)
        phases.append(timing.phase(run.round, plan, phase.name, start, traffic))
        start += phases[-1].seconds
    loss = dict(zip(outcome.loss, _finite(outcome, plan, run.round), strict=True))
    return Played(kept(outcome.state), tuple(phases), loss, ledger.bytes)


def _exchange(
    task: Task,
    algorithm: Algorithm,
    phase: Phase,
    plan: RoundPlan,
    lost: NDArray[np.bool_],
    runner: Runner,
    ledger: Ledger,
) -> tuple[Replies, Traffic]:
    """Deliver the messages of a phase; charge what crosses."""
    entry = np.fromiter(phase.messages, np.int64, len(phase.messages))
    reached = {e: message for e, message in phase.messages.items() if not lost[e]}
    found = runner.deliver(algorithm, task, plan, reached)
    replies = {e: found[e] for e in reached if e in found}  # in the order of the plan, wherever they come from
    clients = plan.client[entry]
    traffic = Traffic(
        entry=entry,
        down_bytes=ledger.charge(clients, "down", list(phase.messages.values())),
        up_bytes=ledger.charge(clients, "up", [replies.get(e) for e in phase.messages]),
        flops=np.array([message.flops for message in phase.messages.values()], np.float64),
        server_flops=np.array([phase.server_flops.get(e, 0.0) for e in replies], np.float64),
        served=np.fromiter(replies, np.int64, len(replies)),
        lost=np.array([e not in replies for e in phase.messages], np.bool_),
        link=phase.link,
        server_up_bytes=phase.server_up_bytes,
        server_down_bytes=phase.server_down_bytes,
    )
    return replies, traffic


def _finite(outcome: Outcome, plan: RoundPlan, number: int) -> list[float]:
    if not outcome.loss:
        return []
    found: list[float] = torch.stack([loss.detach().float() for loss in outcome.loss.values()]).tolist()
    for entry, loss in zip(outcome.loss, found, strict=True):
        if not np.isfinite(loss):
            raise TrainingError(
                f"round {number}, client {plan.client[entry]}: the loss is {loss}, expected a finite number; "
                "a smaller step size may help"
            )
    return found
