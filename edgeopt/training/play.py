"""One round: the conversation of an algorithm with its clients, each exchange delivered and charged."""

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Algorithm, Outcome
from edgeopt.training.checks import check_entries, check_measured, check_phase, check_scalar, check_state
from edgeopt.training.costs.ledger import Ledger
from edgeopt.training.costs.timing import PhaseTime, Timing, Traffic, idle
from edgeopt.training.history import COLUMNS_OF_ROWS, SOMETIMES
from edgeopt.training.keys import fold_in
from edgeopt.training.messages import Message, Phase, Replies, kept
from edgeopt.training.round_result import RoundResult
from edgeopt.training.run_state import RunState
from edgeopt.training.runners.local import Runner, seeded_layers
from edgeopt.training.task import Task
from edgeopt.training.trouble import TrainingError, blaming, described


def play_round(
    task: Task, algorithm: Algorithm, run: RunState, plan: RoundPlan, runner: Runner, timing: Timing
) -> RoundResult:
    """Play the conversation of one round; nothing of it counts until `RunState.advance`."""
    if (unknown := np.flatnonzero(plan.client >= task.num_clients)).size:
        raise InvalidProblemError(
            f"round {run.round}: client[{unknown[0]}] = {plan.client[unknown[0]]}: "
            f"expected 0 to {task.num_clients - 1}, the clients of the partition"
        )
    lost = timing.lost(run.round, plan)
    ledger = Ledger(task.num_clients)
    phases: list[PhaseTime] = []
    peak_bytes = np.full(len(plan), np.nan)
    start = 0.0
    where = f"round {run.round}, {algorithm.name}"
    with blaming(where):
        conversation = _conversation(algorithm.round(task, run.server, plan, run.round))
    replies: Replies | None = None
    while True:
        try:
            with blaming(where), seeded_layers(task, "server", run.round, len(phases)):
                phase = next(conversation) if replies is None else conversation.send(replies)
        except StopIteration as end:
            with blaming(where):
                outcome = _checked(end.value, plan)
            break
        with blaming(where):
            check_phase(phase, plan)
            phase = replace(phase, messages=_with_keys(task, phase, plan, run.round, len(phases)))
            replies, traffic = _exchange(task, algorithm, phase, plan, lost, runner, ledger)
        charged = [message.peak_bytes or np.nan for message in phase.messages.values()]
        peak_bytes[traffic.entry] = np.fmax(peak_bytes[traffic.entry], charged)
        phases.append(timing.phase(run.round, plan, phase.name, start, traffic))
        start += phases[-1].seconds
    if not len(plan) and (idle_s := getattr(timing, "idle_s", 0.0)):
        phases.append(idle(start, idle_s))
    loss = dict(zip(outcome.loss, _finite(outcome, plan, run.round), strict=True))
    measured = {name: float(value) for name, value in outcome.measured.items()}
    return RoundResult(kept(outcome.state), tuple(phases), loss, peak_bytes, ledger.bytes, measured)


def _conversation(begun: object) -> Generator[Phase, Replies, Outcome]:
    """Return a round that has begun; refuse what does not yield."""
    if not isinstance(begun, Generator):
        raise TrainingError(f"the round returned {described(begun)}: expected a generator, it has to yield its phases")
    return begun


def _with_keys(task: Task, phase: Phase, plan: RoundPlan, number: int, index: int) -> dict[int, Message]:
    """Return the messages of a phase with a key for each client, which seed, round and phase decide."""
    seed = torch.tensor(int(stream(task.seed, "keys of clients", number, index).integers(1 << 62)))
    entries = list(phase.messages)
    keys = fold_in(seed, torch.from_numpy(plan.client[entries]), torch.from_numpy(plan.server[entries]))
    moved = keys.to(task.device).unbind()
    return {entry: replace(phase.messages[entry], key=key) for entry, key in zip(entries, moved, strict=True)}


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
    found = runner.deliver(algorithm, task, plan, reached, phase.take)
    replies = {e: found[e] for e in reached if e in found}  # in the order of the plan, wherever they come from
    clients = plan.client[entry]
    traffic = Traffic(
        entry=entry,
        down_bytes=ledger.charge(clients, "down", list(phase.messages.values())),
        up_bytes=ledger.charge(clients, "up", [replies.get(e) for e in phase.messages]),
        flops=np.array([_work(plan.client[e], m, replies.get(e)) for e, m in phase.messages.items()], np.float64),
        server_flops=np.array([phase.server_flops.get(e, 0.0) for e in replies], np.float64),
        served=np.fromiter(replies, np.int64, len(replies)),
        lost=np.array([e not in replies for e in phase.messages], np.bool_),
        link=phase.link,
        server_up_bytes=phase.server_up_bytes,
        server_down_bytes=phase.server_down_bytes,
    )
    return replies, traffic


def _work(client: int, message: Message, answer: Message | None) -> float:
    """Return the FLOPs of a client: what it says that it has computed, or what it was asked to."""
    said = 0.0 if answer is None else float(answer.flops)
    if not 0 <= said < np.inf:
        raise TrainingError(
            f"client {client}: reply to {message.kind!r}: flops = {said}: expected a finite number >= 0"
        )
    return said or float(message.flops)


def _checked(outcome: object, plan: RoundPlan) -> Outcome:
    """Return what a round has returned; refuse what is no outcome of this plan."""
    if not isinstance(outcome, Outcome):
        raise TrainingError(f"the round returned {described(outcome)}: expected an Outcome")
    check_state(outcome.state)
    check_entries("loss", outcome.loss, plan)
    for entry, loss in outcome.loss.items():
        check_scalar(f"client {plan.client[entry]}: loss", loss)
    check_measured(outcome.measured, (*COLUMNS_OF_ROWS, *SOMETIMES))
    return outcome


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
