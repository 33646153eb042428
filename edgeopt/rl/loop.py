"""The loop of learning from replay: act, remember, learn, watch for changes; and what a run leaves behind."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import EdgeOptError
from edgeopt.progress import TrainingBar
from edgeopt.rl.checkpoint import Checkpoint, above, below
from edgeopt.rl.environments.environment import Environment, Observations, seeds_of
from edgeopt.rl.learner import Learner
from edgeopt.rl.replay import Replay, refuse_other_forms
from edgeopt.training.history import Row
from edgeopt.training.interrupts import uninterrupted
from edgeopt.training.messages import State
from edgeopt.validate import integer

_KIND = "learning"


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """Where a run stands.

    Parameters
    ----------
    number : steps of every agent so far.
    row : ``step``; ``return`` of the episodes that have ended since the last row, mean over agents, nan if there are
        none; ``loss`` of the last update, nan before the first; and what the replay buffer measures.
    """

    number: int
    row: Row

    __repr__ = one_line


OnRow = Callable[[StepRecord], bool | None]
"""Called after every row; returning False ends the run."""


@dataclass(slots=True, eq=False)
class LearningHistory:
    """What a run leaves behind.

    Parameters
    ----------
    reward : float32 [T, G], of every step and agent.
    ended : bool [T, G], whether an episode has ended with a step.
    rows : see `StepRecord`.
    state : of the learner.
    interrupted : whether Ctrl-C ended the run.
    """

    reward: NDArray[np.float32]
    ended: NDArray[np.bool_]
    rows: list[Row] = field(default_factory=list)
    state: State = field(default_factory=dict)
    interrupted: bool = False

    __repr__ = one_line

    def returns(self) -> NDArray[np.float64]:
        """Return float64 [T, G], for every step the return of the whole episode that it belongs to.

        An episode that the run did not finish counts with what it has brought, or the return of the one before it, where
        that is larger in size.
        """
        return returns_of(self.reward, self.ended)


def returns_of(reward: NDArray[np.float32], ended: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return for every step the return [T, G] of the episode that it belongs to, see `LearningHistory.returns`.

    Examples
    --------
    >>> returns_of(np.ones((5, 1), np.float32), np.array([[0], [1], [0], [0], [1]], bool)).ravel().tolist()
    [2.0, 2.0, 3.0, 3.0, 3.0]
    """
    found = np.empty(reward.shape)
    for g in range(reward.shape[1]):
        first, before = 0, 0.0
        for end in [*(np.flatnonzero(ended[:, g]) + 1).tolist(), len(reward)]:
            total = float(reward[first:end, g].sum(dtype=np.float64))
            if end == len(reward) and end > first and not ended[-1, g] and abs(total) < abs(before):
                total = before
            found[first:end, g] = total
            first, before = end, total
    return found


@dataclass(slots=True, eq=False)
class _Run:
    """All that a run is between two steps."""

    state: State
    observation: Observations
    reward: NDArray[np.float32]
    ended: NDArray[np.bool_]
    step: int = 0
    updates: int = 0
    loss: float = float("nan")
    rows: list[Row] = field(default_factory=list)


def learn(
    environment: Environment,
    learner: Learner,
    replay: Replay,
    *,
    steps: int,
    seeds: Sequence[int],
    batch: int = 64,
    learn_after: int = 500,
    learn_every: int = 1,
    row_every: int = 500,
    on_row: OnRow | Sequence[OnRow] = (),
    device: str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10_000,
    resume: bool = False,
    display: bool = False,
) -> LearningHistory:
    """Let agents learn, each in its own copy of an environment and from its own transitions.

    Parameters
    ----------
    environment : G copies. It is started over, unless the run is resumed.
    learner : such as `edgeopt.rl.Dqn`.
    replay : remembers transitions and draws from them. It is started over, unless the run is resumed.
    steps : of every agent.
    seeds : one for each agent; an agent's run depends on its own alone, up to rounding.
    batch : transitions of each agent that an update learns from.
    learn_after, learn_every : steps before the first update, and between two.
    row_every : steps between two rows.
    on_row : called after each row.
    device : where the learner's tensors are.
    checkpoint : file that all is written to, every `checkpoint_every` steps, at the end, and on Ctrl-C.
    resume : go on from that file if it is there: the run equals one long run, to the bit. The replay buffer may be
        another one, which then starts with the transitions of the file; the environment must have the same seeds.
    display : show a progress bar, if standard error is a terminal.

    Returns
    -------
    LearningHistory
        Also after Ctrl-C.

    Raises
    ------
    EdgeOptError
        If an argument does not fit.
    InvalidFileError
        If the checkpoint is of another run, or damaged.
    """
    seeds = seeds_of(seeds)
    if len(seeds) != environment.num_agents:
        raise EdgeOptError(f"seeds: {len(seeds)} of them: expected {environment.num_agents}, one for each copy")
    counts = {"steps": steps, "batch": batch, "learn_after": learn_after, "learn_every": learn_every}
    counts |= {"row_every": row_every, "checkpoint_every": checkpoint_every}
    for name, value in counts.items():
        integer(name, value, low=1)
    watchers = (on_row,) if callable(on_row) else tuple(on_row)
    replay.start(seeds, environment.observation_size, environment.actions, batch, device)
    run = _Run(
        learner.start(seeds, environment.observation_size, environment.actions, device), environment.reset(),
        np.zeros((steps, len(seeds)), np.float32), np.zeros((steps, len(seeds)), bool),
    )  # fmt: skip
    identity = {
        "learner": repr(learner),
        "seeds": list(seeds),
        "batch": batch,
        "observation": environment.observation_size,
    }
    kept = Checkpoint.of(checkpoint, _KIND, identity, resume=resume)
    if kept is not None and kept.resumed:
        _load(kept, run, replay, environment, device)
    explore = learner.act_draws(seeds, environment.actions)
    chance = learner.update_draws(seeds, environment.actions, batch)
    history = LearningHistory(run.reward, run.ended)
    with TrainingBar(learner.name, steps, display=display) as bar:
        try:
            while run.step < steps:
                action = learner.act(run.state, run.observation, run.step, explore.at(run.step))  # 1. all act
                with uninterrupted():  # the step counts in full, or not at all
                    moment = environment.step(action)  # 2. worlds answer
                    replay.add(run.observation, action, moment)  # 3. it is remembered
                    run.reward[run.step], run.ended[run.step] = moment.reward, moment.terminated | moment.truncated
                    run.observation, run.step = moment.observation, run.step + 1
                    if run.step >= learn_after and run.step % learn_every == 0:
                        drawn = replay.sample()  # 4. and some of it is learned from
                        noise = torch.from_numpy(chance.at(run.updates)).to(device, torch.float32)
                        errors, loss = learner.update(run.state, drawn, noise)
                        replay.learned(learner, run.state, drawn, errors)  # 5. the buffer is told
                        run.updates, run.loss = run.updates + 1, float(loss.mean())
                    if run.step >= learn_after:
                        replay.look(learner, run.state)  # 6. has the world changed?
                    if run.step % row_every == 0 or run.step == steps:
                        run.rows.append(_row(run, replay, row_every))
                if kept is not None and run.step % checkpoint_every == 0:
                    _save(kept, run, replay, environment)
                if run.step % row_every == 0 or run.step == steps:
                    bar.update(run.step, f"return {run.rows[-1]['return']:.4g}")
                    record = StepRecord(run.step, run.rows[-1])
                    wanted = [watch(record) is not False for watch in watchers]  # 7. everyone is told
                    if not all(wanted):
                        break
        except KeyboardInterrupt:
            history.interrupted = True
    if kept is not None:
        _save(kept, run, replay, environment)
    history.reward, history.ended = run.reward[: run.step], run.ended[: run.step]
    history.rows, history.state = run.rows, run.state
    return history


def _row(run: _Run, replay: Replay, row_every: int) -> Row:
    since = slice(max(0, run.step - row_every), run.step)
    ended = run.ended[since]
    found = (
        returns_of(run.reward[: run.step], run.ended[: run.step])[since][ended] if ended.any() else np.array([np.nan])
    )
    return {"step": run.step, "return": float(found.mean()), "loss": run.loss, **replay.measured()}


# --- files ------------------------------------------------------------------------------------------------------------


def _save(checkpoint: Checkpoint, run: _Run, replay: Replay, environment: Environment) -> None:
    values = {"step": run.step, "updates": run.updates, "loss": None if np.isnan(run.loss) else run.loss}
    arrays = above("replay/", replay.arrays()) | above("environment/", environment.arrays())
    arrays |= {"observation": run.observation, "reward": run.reward[: run.step], "ended": run.ended[: run.step]}
    checkpoint.save(run.state, run.rows, values, arrays)


def _load(checkpoint: Checkpoint, run: _Run, replay: Replay, environment: Environment, device: str) -> None:
    with checkpoint.read(run.state, device) as (state, rows, given, arrays):
        step = given.integer("step", low=0, high=len(run.reward))
        wanted = {"observation": run.observation, "reward": run.reward[:step], "ended": run.ended[:step]}
        refuse_other_forms(arrays, wanted)
        run.state, run.rows, run.step = state, rows, step
        run.updates = given.integer("updates", low=0)
        run.loss = float("nan") if given.value("loss") is None else given.number("loss")
        run.observation = arrays["observation"]
        run.reward[:step], run.ended[:step] = arrays["reward"], arrays["ended"]
        replay.restore(below(arrays, "replay/"), run.state)
        world = below(arrays, "environment/")
        refuse_other_forms(world, environment.arrays())
        environment.restore(world)
