"""The loop of agents that learn together: ask for demonstrations, play, learn from both; and what a run leaves behind."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import EdgeOptError, quoted
from edgeopt.progress import TrainingBar
from edgeopt.rl.checkpoint import Checkpoint, above, below
from edgeopt.rl.demonstrations import Demonstrations, Play, play
from edgeopt.rl.environments.team import Team
from edgeopt.rl.leed import Leed, Parameters
from edgeopt.rl.loop import OnRow, StepRecord
from edgeopt.rl.replay import refuse_other_forms
from edgeopt.rng import stream
from edgeopt.training.history import Row
from edgeopt.training.interrupts import uninterrupted
from edgeopt.training.messages import State
from edgeopt.validate import integer, seed_number

_KIND = "learning-together"


@dataclass(slots=True, eq=False)
class TeamHistory:
    """What a run leaves behind.

    Parameters
    ----------
    returns : float64 [U, N], mean return of each agent over the episodes of each update, played before it learns from them.
    rows : ``update`` from 1, ``return`` (mean over agents and episodes), ``weight`` of the expert loss (mean over agents), and,
        where there are demonstrations, ``shown`` (their mean return), ``sets`` (kept) and ``rejected`` (lines, so far).
    state : of the learner.
    interrupted : whether Ctrl-C ended the run.
    """

    returns: NDArray[np.float64]
    rows: list[Row] = field(default_factory=list)
    state: State = field(default_factory=dict)
    interrupted: bool = False

    __repr__ = one_line


@dataclass(slots=True, eq=False)
class _Run:
    """All that a run is between two updates."""

    state: State
    returns: list[NDArray[np.float64]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    rejected: int = 0
    first: NDArray[np.float64] | None = None
    told: str = ""


def learn_together(
    team: Team,
    learner: Leed,
    demonstrations: Demonstrations | None = None,
    *,
    updates: int,
    seed: int,
    on_row: OnRow | Sequence[OnRow] = (),
    device: str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 20,
    resume: bool = False,
    display: bool = False,
) -> TeamHistory:
    """Let the agents of a team learn, each by itself.

    All chance is drawn from the seed and the number of the update, so that a checkpoint needs no random state.

    Parameters
    ----------
    team : what they act in.
    learner : how they learn.
    demonstrations : where they come from; started over, unless the run is resumed. Not needed by a learner with weight ``"none"``.
    updates : how many; each plays ``learner.episodes`` episodes.
    seed : same seed, same run.
    on_row : called after each update with its row; the number of the record is that of the update. Returning False ends the run.
    device : where the learner's tensors are.
    checkpoint : file that all is written to, every `checkpoint_every` updates, at the end, and on Ctrl-C.
    resume : go on from that file if it is there: the run equals one long run, to the bit.
    display : show a progress bar, if standard error is a terminal.

    Returns
    -------
    TeamHistory
        Also after Ctrl-C.

    Raises
    ------
    EdgeOptError
        If an argument does not fit.
    InvalidFileError
        If the checkpoint is of another run, or damaged.
    """
    integer("updates", updates, low=1)
    integer("checkpoint_every", checkpoint_every, low=1)
    seed = seed_number("seed", seed)
    if learner.shown and demonstrations is None:
        raise EdgeOptError(
            f"demonstrations = None: weight {quoted(learner.weight)} and cloning {learner.cloning} need them"
        )
    watchers = (on_row,) if callable(on_row) else tuple(on_row)
    shown = demonstrations if learner.shown else None
    if shown is not None:
        shown.sets = []
    run = _Run(learner.start(team, seed, device))
    identity = {
        "learner": repr(learner),
        "seed": seed,
        "agents": team.num_agents,
        "observation": list(team.observation_shape),
    }
    kept = Checkpoint.of(checkpoint, _KIND, identity, resume=resume)
    if kept is not None and kept.resumed:
        _load(kept, run, shown, team, device)
    history = TeamHistory(np.empty((0, team.num_agents)))
    with TrainingBar("leed" if learner.shown else "ppo", updates, display=display) as bar:
        try:
            while (update := len(run.rows)) < updates:
                with uninterrupted():  # the update counts in full, or not at all
                    _update(team, learner, shown, run, seed, update)
                if kept is not None and len(run.rows) % checkpoint_every == 0:
                    _save(kept, run, shown)
                bar.update(len(run.rows), f"return {run.rows[-1]['return']:.4g}")
                record = StepRecord(len(run.rows), run.rows[-1])
                wanted = [watch(record) is not False for watch in watchers]  # 5. everyone is told
                if not all(wanted):
                    break
        except KeyboardInterrupt:
            history.interrupted = True
    if kept is not None:
        _save(kept, run, shown)
    history.returns = np.stack(run.returns) if run.returns else history.returns
    history.rows, history.state = run.rows, run.state
    return history


def _update(
    team: Team, learner: Leed, demonstrations: Demonstrations | None, run: _Run, seed: int, update: int
) -> None:
    parameters = cast(Parameters, run.state["parameters"])
    cloning = update < learner.cloning
    if demonstrations is not None and update % learner.gather_every == 0 and _used(learner, update):
        found = demonstrations.gather(
            team, _seeds(seed, "shown", update, learner.episodes), run.told
        )  # 1. instructions
        run.rejected += len(found.rejected)
    shape = (team.horizon, team.num_agents, learner.episodes, team.num_actions)
    noise = stream(seed, "act", update).random(shape, np.float32)
    own = play(  # 2. all play, by themselves
        team,
        _seeds(seed, "own", update, learner.episodes),
        lambda seen, step: learner.act(team, parameters, seen, noise[step]),
    )
    run.told = _feedback(team, own, demonstrations)
    weight, theirs = np.zeros(team.num_agents), None
    if demonstrations is not None and _used(learner, update):  # 3. what do demonstrations count?
        theirs = demonstrations.draw(learner.episodes, stream(seed, "draw", update))
        weight, run.first = learner.weights(update, own, theirs, run.first)
    learner.improve(  # 4. all learn, by themselves
        team, run.state, learner.samples(team, parameters, own),
        None if theirs is None else learner.samples(team, parameters, theirs),
        torch.from_numpy(weight.astype(np.float32)).to(next(iter(parameters.values())).device),
        stream(seed, "minibatches", update), cloning=cloning,
    )  # fmt: skip
    run.returns.append(own.returns.mean(axis=1))
    row: Row = {"update": update + 1, "return": float(own.returns.mean()), "weight": float(weight.mean())}
    if demonstrations is not None and demonstrations.sets:
        row |= {
            "shown": float(demonstrations.returns.mean()),
            "sets": len(demonstrations.sets),
            "rejected": run.rejected,
        }
    run.rows.append(row)


def _used(learner: Leed, update: int) -> bool:
    """Whether demonstrations are learned from in an update."""
    if update < learner.cloning:
        return True
    return learner.weight != "none" and not (learner.weight == "decay" and update >= learner.decay)


def _seeds(seed: int, name: str, update: int, count: int) -> list[int]:
    return [int(one) for one in stream(seed, name, update).integers(2**62, size=count)]


def _feedback(team: Team, own: Play, demonstrations: Demonstrations | None) -> str:
    """Return what came of play, for the next prompt."""
    if demonstrations is None:
        return ""
    alone = ", ".join(f"{value:.2f}" for value in own.returns.mean(axis=1).tolist())
    told = ", ".join(f"{value:.2f}" for value in demonstrations.returns.tolist())
    parts = (f"Mean returns of the agents by instructions so far: {told}.", f"By themselves: {alone}.", team.lessons())
    return "\n".join(part for part in parts if part)


# --- files ------------------------------------------------------------------------------------------------------------


def _save(checkpoint: Checkpoint, run: _Run, demonstrations: Demonstrations | None) -> None:
    arrays = {"returns": np.stack(run.returns)} if run.returns else {}
    arrays |= {} if run.first is None else {"first": run.first}
    arrays |= {} if demonstrations is None else above("shown/", demonstrations.arrays())
    checkpoint.save(run.state, run.rows, {"told": run.told, "rejected": run.rejected}, arrays)


def _load(checkpoint: Checkpoint, run: _Run, demonstrations: Demonstrations | None, team: Team, device: str) -> None:
    with checkpoint.read(run.state, device) as (state, rows, given, arrays):
        run.state, run.rows = state, rows
        run.told, run.rejected = given.text("told"), given.integer("rejected", low=0)
        if run.rows:
            refuse_other_forms(arrays, {"returns": np.empty((len(run.rows), team.num_agents))})
            run.returns = list(arrays["returns"])
        if "first" in arrays:
            refuse_other_forms(arrays, {"first": np.empty(team.num_agents)})
            run.first = arrays["first"]
        if demonstrations is not None:
            demonstrations.restore(below(arrays, "shown/"), team)
