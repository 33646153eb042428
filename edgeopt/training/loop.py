"""The training loop: plan, exchange messages with the clients, charge time, energy and bytes, evaluate, report back."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fields import in_file
from edgeopt.interrupts import is_interrupt
from edgeopt.progress import TrainingBar
from edgeopt.schedule import Planner, at_time
from edgeopt.solve import refuse_other
from edgeopt.tensors import require_safetensors
from edgeopt.training.algorithm import Algorithm
from edgeopt.training.constants import Estimator
from edgeopt.training.costs.timing import Timing
from edgeopt.training.history import History, RoundRecord, Row
from edgeopt.training.interrupts import uninterrupted
from edgeopt.training.judging import Scores, judged, models_of, personal, score
from edgeopt.training.play import play_round
from edgeopt.training.run_state import RunState
from edgeopt.training.runners.local import LocalRunner, Runner
from edgeopt.training.task import Task
from edgeopt.training.trouble import blaming
from edgeopt.validate import integer, listed, real

OnRound = Callable[[RoundRecord], bool | None]
"""Called after every round; returning False ends the run."""


def train(
    task: Task,
    algorithm: Algorithm,
    planner: Planner,
    timing: Timing,
    *,
    rounds: int,
    evaluate_every: int = 1,
    until_accuracy: float | None = None,
    until_seconds: float | None = None,
    runner: Runner | None = None,
    estimator: Estimator | None = None,
    on_round: OnRound | Iterable[OnRound] | None = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    resume: bool = False,
    display: bool = False,
) -> History:
    """Train a model under a planner's decisions, in virtual time.

    Parameters
    ----------
    task : model and data.
    algorithm : how servers and clients learn, for example `edgeopt.training.FedAvg`.
    planner : gives the plan of every round and is told what the last one measured.
    timing : charges time and energy.
    rounds : how many rounds there are at most.
    evaluate_every : rounds between two evaluations on the test samples; the last of `rounds` is always evaluated.
    until_accuracy, until_seconds : end when this accuracy, or this virtual time, is reached.
    runner : where the clients run. Default: here, as batches where that is faster.
    estimator : measures the constants of the convergence bound for the planner.
    on_round : called after each round.
    checkpoint : file that the whole state is written to, every `checkpoint_every` rounds, at the end, and on Ctrl-C.
    resume : go on from that file if it is there. Weights, plans and rows equal those of one long run, but for the
        evaluation at the end of the first part. Give it new planners and estimators with the same parameters.
    display : show a progress bar, if standard error is a terminal.

    Returns
    -------
    History
        Also after Ctrl-C, with all complete rounds.

    Raises
    ------
    InvalidProblemError
        If an argument or a plan does not fit.
    TrainingError
        If a client's loss is not finite, or the model or its loss fails on a client's data, at the client or at the
        server; round and client are named. The checkpoint is then as it was last written. Running out of memory stays
        the error that it is.
    InvalidFileError
        If the checkpoint is of another run, or damaged.
    """
    for name, value, kind, methods in (
        ("task", task, Task, ("batch",)),
        ("algorithm", algorithm, Algorithm, ("name", "start", "round", "client", "models")),
        ("planner", planner, Planner, ("plan",)),
        ("timing", timing, Timing, ("phase",)),
    ):
        refuse_other(name, value, kind, *methods)
    rounds = integer("rounds", rounds, low=1)
    evaluate_every = integer("evaluate_every", evaluate_every, low=1)
    checkpoint_every = integer("checkpoint_every", checkpoint_every, low=1)
    until_accuracy = None if until_accuracy is None else real("until_accuracy", until_accuracy)
    until_seconds = None if until_seconds is None else real("until_seconds", until_seconds, finite=False)
    runner = LocalRunner() if runner is None else runner
    watchers = () if on_round is None else (on_round,) if callable(on_round) else tuple(listed("on_round", on_round))
    run = _begin(task, algorithm, planner, estimator, runner, checkpoint, resume)
    history = History(rows=run.rows)
    with TrainingBar(algorithm.name, rounds, display=display) as bar:
        try:
            while not (reason := _end(run, rounds, until_accuracy, until_seconds)):
                number = run.round
                plan = planner.plan(number, run.feedback)  # 1. who does what
                now = at_time(timing, run.seconds)
                result = play_round(task, algorithm, run, plan, runner, now)  # 2. work, exchange, charge, aggregate
                due = (number + 1) % evaluate_every == 0 or number + 1 == rounds
                with blaming(f"round {number}, {algorithm.name}, evaluation"):  # 3. how good it is
                    look = due or estimator is not None
                    models = models_of(algorithm, task, result.state, runner.states) if look else {}
                    scores = score(algorithm, task, models, result.state, runner.states) if due else Scores()
                    constants = None if estimator is None else estimator.measure(task, judged(models), number)
                feedback = result.feedback(
                    number, plan, now, constants, run.seconds
                )  # 4. what the planner is told next
                with uninterrupted():  # 5. the round counts
                    row = run.advance(result, feedback, scores, runner)
                    if checkpoint is not None:
                        run.remember(planner, estimator)
                    history.last = record = RoundRecord(
                        number, plan, result.phases, feedback.completed, feedback.conflict, row
                    )
                if checkpoint is not None and (number + 1) % checkpoint_every == 0:
                    run.save(checkpoint, runner)
                bar.update(number + 1, _describe(row))
                wanted = [watch(record) is not False for watch in watchers]  # 6. everyone is told
                if not all(wanted):
                    reason = "a callback ended the run"
                    break
        except (KeyboardInterrupt, SystemError) as error:  # a compiled planner turns the one into the other
            if not is_interrupt(error):
                raise
            runner.roll_back()
            history.interrupted, reason = True, "interrupted"
    history.reason, history.ways = reason, list(getattr(runner, "ways", ()))
    if checkpoint is not None:
        run.save(checkpoint, runner)
    history.server, history.clients = run.server, runner.states
    models = models_of(algorithm, task, run.server, history.clients)
    history.models = [task.whole(weights) for weights in judged(models)]
    history.personal = {client: task.whole(weights) for client, weights in personal(models).items()}
    return history


def _begin(
    task: Task,
    algorithm: Algorithm,
    planner: Planner,
    estimator: Estimator | None,
    runner: Runner,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
) -> RunState:
    """Return a new run, or the one of the checkpoint; find out now whether a checkpoint can be written later."""
    run = RunState.start(task, algorithm, planner, estimator)
    if checkpoint is None:
        if resume:
            raise InvalidProblemError("resume: expected a checkpoint to resume from")
    else:
        require_safetensors()
        if not (folder := Path(checkpoint).absolute().parent).is_dir():
            raise InvalidProblemError(f"checkpoint = {quoted(os.fspath(checkpoint))}: there is no folder {folder}")
        if resume and os.path.exists(checkpoint):
            run = RunState.load(checkpoint, task, run.identity, run.server)
            with in_file(checkpoint):
                run.hand_out(planner, estimator)
        else:
            run.remember(planner, estimator)
    runner.restore(run.clients)
    return run


def _end(run: RunState, rounds: int, until_accuracy: float | None, until_seconds: float | None) -> str:
    """Return why there is no further round, or nothing."""
    if until_accuracy is not None and run.rows and run.rows[-1]["accuracy"] >= until_accuracy:
        return f"accuracy {until_accuracy:g} is reached"
    if until_seconds is not None and run.seconds >= until_seconds:
        return f"{until_seconds:g} virtual seconds are over"
    return "all rounds are done" if run.round >= rounds else ""


def _describe(row: Row) -> str:
    accuracy = "" if np.isnan(row["accuracy"]) else f"  accuracy {row['accuracy']:.3f}"
    return f"loss {row['train_loss']:.4g}{accuracy}  {row['seconds']:.4g} s"
