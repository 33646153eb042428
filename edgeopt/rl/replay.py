"""Replay buffers of many agents at once: even, of a recent window, flushed at changes."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.errors import InvalidFileError
from edgeopt.rl.draws import Draws
from edgeopt.rl.environments.environment import Actions, Discrete, Moment
from edgeopt.storage import Arrays
from edgeopt.training.messages import State
from edgeopt.validate import integer

Integers = NDArray[np.int64]


class Batch(NamedTuple):
    """Transitions that are learned from: G agents, B transitions of each one's own.

    Parameters
    ----------
    observation, following : float32 [G, B, D], before and after the action.
    action : int64 [G, B], or float32 [G, B, A].
    reward : float32 [G, B].
    going_on : float32 [G, B], 0 where the episode ended for good, else 1.
    weight : float32 [G, B], on the errors.
    entry : int64 [G, B], number of each transition, counted from the first.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    going_on: Tensor
    following: Tensor
    weight: Tensor
    entry: Integers


class Critic(Protocol):
    """What a replay buffer asks of a learner."""

    critic_parts: ClassVar[tuple[str, ...]]
    """Names of the parts of the state that its critic is, first axis the agent."""

    def errors(self, state: State, batch: Batch) -> Tensor:
        """Return temporal-difference errors [G, B]: target - Q(s, a)."""
        ...

    def values(self, state: State, batch: Batch) -> Tensor:
        """Return Q(s, a), [G, B]."""
        ...

    def update_draws(self, seeds: Sequence[int], actions: Actions, batch: int, name: str = "update") -> Draws:
        """Return the chance that steps take, by step, under a name."""
        ...

    def critic_step(self, state: State, batch: Batch, noise: Tensor) -> Tensor:
        """Take one step of the critic, in place, and return the errors [G, B] before it."""
        ...


class Trigger(Protocol):
    """Says when an agent's world has changed."""

    interval: int
    """Steps between two looks."""

    uses_errors: bool
    """Whether it looks at errors."""

    def start(self, seeds: Sequence[int]) -> None:
        """Begin with one agent for each seed."""
        ...

    def look(self, now: int, errors: NDArray[np.float32]) -> Integers:
        """Return [G], the entry that each agent's new world begins with, -1 where nothing has changed.

        Parameters
        ----------
        now : number of entries so far.
        errors : [G, interval], of the last ones.
        """
        ...

    def arrays(self) -> Arrays:
        """Return what the next look depends on."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave."""
        ...


class TrueChange:
    """Knows when each agent's world changes: for comparison.

    Parameters
    ----------
    at : step, one for all agents or one for each.
    """

    interval = 1
    uses_errors = False

    def __init__(self, at: int | Sequence[int]) -> None:
        self.at = np.asarray(at, np.int64)

    def __repr__(self) -> str:
        return f"TrueChange({self.at.tolist()})"

    def start(self, seeds: Sequence[int]) -> None:
        """Begin with one agent for each seed."""
        self._at = np.broadcast_to(self.at, len(seeds))

    def look(self, now: int, errors: NDArray[np.float32]) -> Integers:
        """Return the change as soon as there is one entry from after it."""
        return np.where(now == self._at + 1, self._at, -1)

    def arrays(self) -> Arrays:
        """Return nothing: the number of entries says it all."""
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Take over nothing."""


class Replay:
    """Remembers transitions, and draws from them evenly.

    The buffer is a ring: the newest transition takes the place of the oldest. All agents add at once, and none sees
    another's transitions.

    Parameters
    ----------
    capacity : transitions of an agent, C.
    window : draw from so many of the newest only. Default: from all.
    trigger : forget what was before a change. Default: nothing is ever forgotten.
    """

    def __init__(self, capacity: int = 100_000, *, window: int | None = None, trigger: Trigger | None = None) -> None:
        self.capacity = integer("capacity", capacity, low=1)
        self.window = None if window is None else integer("window", window, low=1)
        self.trigger = trigger

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.capacity}, window={self.window}, trigger={self.trigger})"

    def start(
        self, seeds: Sequence[int], observation_size: int, actions: Actions, batch: int, device: str = "cpu"
    ) -> None:
        """Make room for the transitions of one agent for each seed.

        Parameters
        ----------
        batch : transitions of each agent that are drawn at once, B.
        device : where batches are put.
        """
        agents, self._device, self.batch = len(seeds), device, integer("batch", batch, low=1)
        self._actions = actions
        shape = (agents, self.capacity)
        self._rows = np.arange(agents)[:, None]
        self._observation = np.zeros((*shape, observation_size), np.float32)
        self._following = np.zeros_like(self._observation)
        self._reward, self._going_on = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        if isinstance(actions, Discrete):
            self._action: NDArray[np.generic] = np.zeros(shape, np.int64)
        else:
            self._action = np.zeros((*shape, actions.size), np.float32)
        self.count, self.draws = 0, 0
        self.change = np.zeros(agents, np.int64)
        self.changes: list[tuple[int, int, int]] = []
        self._uniform = Draws(seeds, "replay", (batch,))
        if self.trigger is not None:
            self.trigger.start(seeds)

    def add(self, observation: NDArray[np.float32], action: NDArray[np.generic], moment: Moment) -> None:
        """Remember a transition of every agent."""
        slot = self.count % self.capacity
        self._observation[:, slot], self._action[:, slot] = observation, action
        self._following[:, slot], self._reward[:, slot] = moment.following, moment.reward
        self._going_on[:, slot] = ~moment.terminated
        self.count += 1

    @property
    def first(self) -> Integers:
        """int64 [G], the first entry that may be drawn."""
        least = max(0, self.count - min(self.capacity, self.window or self.capacity))
        return np.maximum(self.change, least)

    def sample(self) -> Batch:
        """Draw a batch."""
        uniform, first = self._uniform.at(self.draws), self.first[:, None]
        self.draws += 1
        return self.at(np.asarray(first + uniform * (self.count - first), np.int64))

    def at(self, entry: Integers, weight: NDArray[np.floating] | None = None) -> Batch:
        """Return entries [G, B]; their weights are 1 if none are given."""
        slot, put = entry % self.capacity, self._put
        return Batch(
            put(self._observation[self._rows, slot]),
            put(self._action[self._rows, slot]),
            put(self._reward[self._rows, slot]),
            put(self._going_on[self._rows, slot]),
            put(self._following[self._rows, slot]),
            put(np.ones(entry.shape, np.float32) if weight is None else weight.astype(np.float32)),
            entry,
        )

    def _put(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def look(self, critic: Critic, state: State) -> None:
        """Look for a change, where it is time to."""
        if self.trigger is None or self.count % self.trigger.interval:
            return
        errors = np.zeros((len(self._rows), 0), np.float32)
        if self.trigger.uses_errors:
            last = np.arange(self.count - self.trigger.interval, self.count)
            errors = critic.errors(state, self.at(np.broadcast_to(last, (len(self._rows), len(last))))).cpu().numpy()
        found = self.trigger.look(self.count, errors)
        if (changed := np.flatnonzero(found >= 0)).size:
            self.changes += [(self.count, int(g), int(found[g])) for g in changed]
            self.change[changed] = found[changed]
            self._changed(state, critic, changed)

    def _changed(self, state: State, critic: Critic, agents: Integers) -> None:
        """Do what else is to be done when these agents' worlds have changed."""

    def learned(self, critic: Critic, state: State, batch: Batch, errors: Tensor) -> None:
        """Be told the errors [G, B] of a batch."""

    def measured(self) -> dict[str, float]:
        """Return what there is to say of the buffer, by name."""
        return {"changes": len(self.changes) / len(self._rows)} if self.trigger is not None else {}

    def arrays(self) -> Arrays:
        """Return all that is remembered."""
        filled = min(self.count, self.capacity)
        found: Arrays = {
            "count": np.array(self.count), "draws": np.array(self.draws), "change": self.change.copy(),
            "changes": np.array(self.changes, np.int64).reshape(-1, 3),
        }  # fmt: skip
        found |= {name: getattr(self, f"_{name}")[:, :filled].copy() for name in _STORED}
        if self.trigger is not None:
            found |= {f"trigger/{name}": value for name, value in self.trigger.arrays().items()}
        return found

    def restore(self, arrays: Arrays, state: State) -> None:
        """Take over what `arrays` gave, after `start`; of another kind of buffer, what both have.

        Parameters
        ----------
        state : of the learner: copies of its critic have its form.
        """
        refuse_other_forms(arrays, {name: np.zeros((), np.int64) for name in ("count", "draws")})
        self.count, self.draws = int(arrays["count"]), int(arrays["draws"])
        if self.count < 0 or self.draws < 0:
            raise InvalidFileError(f"count = {self.count}, draws = {self.draws}: expected integers >= 0")
        self.changes = []
        wanted = Replay.arrays(self)  # the form of a buffer with so many transitions
        refuse_other_forms(arrays, {name: wanted[name] for name in ("change", *_STORED)})
        told = arrays.get("changes", wanted["changes"])
        refuse_other_forms({"changes": told[:0] if told.ndim else told}, {"changes": wanted["changes"]})
        if isinstance(self._actions, Discrete) and not _within(arrays["action"], 0, self._actions.count):
            raise InvalidFileError(f"action: expected integers from 0 to {self._actions.count - 1}")
        self.change = arrays["change"].copy()
        self.changes = [(int(now), int(g), int(entry)) for now, g, entry in told]
        for name in _STORED:
            getattr(self, f"_{name}")[:, : arrays[name].shape[1]] = arrays[name]
        if self.trigger is not None:
            own = {n.removeprefix("trigger/"): v for n, v in arrays.items() if n.startswith("trigger/")}
            if own:
                refuse_other_forms(own, self.trigger.arrays())
            self.trigger.restore(own)


def refuse_other_forms(arrays: Arrays, wanted: Arrays) -> None:
    """Refuse a file's arrays that lack a name, or have another shape or type, or numbers that are not finite."""
    for name, like in wanted.items():
        if name not in arrays:
            raise InvalidFileError(f"{name}: array is missing")
        if (found := arrays[name]).shape != like.shape or found.dtype != like.dtype:
            expected = f"{like.dtype} {list(like.shape)}"
            raise InvalidFileError(f"{name}: expected {expected}, got {found.dtype} {list(found.shape)}")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise InvalidFileError(f"{name}: expected finite numbers")


def _within(array: NDArray[Any], low: int, end: int) -> bool:
    return bool(((array >= low) & (array < end)).all())


_STORED = ("observation", "action", "reward", "going_on", "following")
