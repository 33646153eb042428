"""`DeerReplay`: what was experienced before a change of the world and after it, drawn by how much the change matters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.errors import EdgeOptError, InvalidFileError, quoted
from edgeopt.rl.draws import Draws
from edgeopt.rl.environments.environment import Actions, Moment
from edgeopt.rl.prioritised_replay import Priorities, PrioritisedReplay
from edgeopt.rl.replay import Batch, Critic, Integers, Trigger, refuse_other_forms
from edgeopt.rl.sum_tree import draw, masses
from edgeopt.storage import Arrays
from edgeopt.training.messages import State
from edgeopt.training.states import flatten
from edgeopt.validate import flag, integer, real

RANGE_RATE = 0.01
"""Share by which the range of values goes towards that of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deer:
    r"""How DEER tells what is from before a change from what is from after it.

    The discrepancy of a transition is by how much the change has changed the value of what was done,

    .. math:: D(s, a) = |Q_{\text{fork}}(s, a) - Q_{\text{before}}(s, a)|,

    with the critic as it was when the change was found, and a fork of it that has since learned from what came after the
    change alone. Priorities are, for errors :math:`\delta`,

    .. math:: |\delta|^\alpha e^{-D / \tau} \text{ (before)}, \qquad (|\delta| + \eta D)^\alpha \text{ (after)}.

    That values before and after a change are compared, and that both sides get priorities of their own, is the paper's;
    these formulas, the fork and the cap are ours.

    Parameters
    ----------
    temperature : tau as a share of the range of values.
    eta : weight of the discrepancy after a change.
    fork : whether the discrepancy is that of a fork; if not, of the critic itself, which learns from everything.
    fork_updates : updates after which the fork has done its duty and the critic takes its place.
    discrepancy : whether it counts at all.
    cap_from, cap_least, cap_decay : most of a batch that may be from before: max(`cap_least`, `cap_from` exp(-n /
        `cap_decay`)), n transitions after the change. `cap_least` = 1 is no cap.
    refresh : transitions of an agent whose discrepancy is computed anew in every update, beside those of the batch.

    References
    ----------
    T. Duan et al., arXiv 2509.15032.
    """

    temperature: float = 0.05
    eta: float = 1.0
    fork: bool = True
    fork_updates: int = 5000
    discrepancy: bool = True
    cap_from: float = 0.5
    cap_least: float = 0.05
    cap_decay: float = 600.0
    refresh: int = 64

    def __post_init__(self) -> None:
        for name in ("temperature", "cap_decay"):
            real(name, getattr(self, name), positive=True)
        real("eta", self.eta, nonnegative=True)
        for name in ("fork", "discrepancy"):
            flag(name, getattr(self, name))
        for name in ("fork_updates", "refresh"):
            integer(name, getattr(self, name), low=1)
        for name in ("cap_from", "cap_least"):
            if not 0 <= real(name, getattr(self, name)) <= 1:
                raise EdgeOptError(f"{name} = {quoted(getattr(self, name))}: expected a number from 0 to 1")

    def cap(self, after: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the most of a batch that may be from before the change, for numbers of transitions after it.

        Examples
        --------
        >>> Deer().cap(np.array([0, 600, 6000])).round(3).tolist()
        [0.5, 0.184, 0.05]
        """
        return np.asarray(np.maximum(self.cap_least, self.cap_from * np.exp(-after / self.cap_decay)))

    def priority(
        self,
        size: NDArray[np.float64],
        discrepancy: NDArray[np.float64],
        new: NDArray[np.bool_],
        tau: NDArray[np.float64],
        alpha: float,
    ) -> NDArray[np.float64]:
        """Return the priorities of transitions from before a change and from after it (`new`).

        Parameters
        ----------
        size : |error|.
        tau : > 0; arrays broadcast.
        """
        before = size**alpha * np.exp(-discrepancy / tau)
        return np.where(new, (size + self.eta * discrepancy) ** alpha, before)


class DeerReplay(PrioritisedReplay):
    """Two pools of transitions, from before the last change and from after it; draws are O(log n).

    As transitions are kept in the order of time, a pool is a range of one ring buffer, and its priorities a range of
    one sum tree. Until a trigger finds a change, all is one pool, and the buffer is a `PrioritisedReplay`. Weights make
    up for the priorities within each pool.

    Parameters
    ----------
    capacity : transitions of an agent.
    trigger : finds changes, such as `edgeopt.rl.ChangeDetector`.
    deer : hyper-parameters.
    priorities : of errors.
    """

    def __init__(
        self,
        capacity: int = 100_000,
        *,
        trigger: Trigger,
        deer: Deer | None = None,
        priorities: Priorities | None = None,
    ) -> None:
        super().__init__(capacity, priorities=priorities, trigger=trigger)
        self.deer = Deer() if deer is None else deer

    def __repr__(self) -> str:
        return f"DeerReplay({self.capacity}, trigger={self.trigger}, deer={self.deer}, priorities={self.priorities})"

    def start(
        self, seeds: Sequence[int], observation_size: int, actions: Actions, batch: int, device: str = "cpu"
    ) -> None:
        """Make room for transitions, priorities and discrepancies."""
        super().start(seeds, observation_size, actions, batch, device)
        self._seeds = tuple(seeds)
        self._size = np.zeros((len(seeds), self.capacity))
        self._discrepancy = np.zeros((len(seeds), self.capacity))
        self._range, self._left = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
        self._before: State = {}  # the critic when the last change was found
        self._fork: State = {}  # what it has become by what came after
        self._learned, self._old_share = 0, 0.0
        self._share = Draws(seeds, "share")
        self._again, self._forked = Draws(seeds, "refresh", (self.deer.refresh,)), Draws(seeds, "fork", (batch,))
        self._noise: Draws | None = None

    @property
    def oldest(self) -> int:
        """The oldest entry that is still there."""
        return max(0, self.count - self.capacity)

    @property
    def first(self) -> Integers:
        """int64 [G], the first entry that may be drawn: nothing is forgotten."""
        return np.full(len(self._rows), self.oldest)

    def add(self, observation: NDArray[np.float32], action: NDArray[np.generic], moment: Moment) -> None:
        """Remember a transition of every agent."""
        slot = self.count % self.capacity
        super().add(observation, action, moment)
        self._size[:, slot], self._discrepancy[:, slot] = self._largest ** (1 / max(self.priorities.alpha, 1e-9)), 0.0

    def sample(self) -> Batch:
        """Draw a batch from both pools, no more from before the change than the cap."""
        oldest, end = self.first, np.full(len(self._rows), self.count)
        change = np.maximum(self.change, oldest)
        before = masses(self._trees, self.capacity, oldest, change)
        after = masses(self._trees, self.capacity, change, end)
        share = np.minimum(before / (before + after), self.deer.cap(self.count - change))
        own = np.asarray(
            share * self.batch + self._share.at(self.draws), np.int64
        )  # (G,): rounded up or down by chance
        own = np.where(change > oldest, np.minimum(own, self.batch - 1), 0)
        none, whole = np.zeros_like(own), np.full_like(own, self.batch)
        uniform, entry = self._uniform.at(self.draws), np.zeros((len(self._rows), self.batch), np.int64)
        draw(self._trees, self.capacity, oldest, change, none, own, uniform, entry)
        draw(self._trees, self.capacity, change, end, own, whole, uniform, entry)
        self.draws += 1
        self._old_share = float(own.mean()) / self.batch
        old = np.arange(self.batch) < own[:, None]
        return self.at(entry, self._weights_by_pool(entry, oldest, change, end, old))

    def _weights_by_pool(
        self, entry: Integers, oldest: Integers, change: Integers, end: Integers, old: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        weight = np.ones(entry.shape)
        for pool, first, last in ((old, oldest, change), (~old, change, end)):
            raw = np.where(pool, self._weight(entry, first, last), 0.0)
            most = raw.max(axis=1, keepdims=True)
            weight = np.where(pool, raw / np.where(most > 0, most, 1.0), weight)
        return weight

    def learned(self, critic: Critic, state: State, batch: Batch, errors: Tensor) -> None:
        """Take the errors of a batch, let the fork learn, and compute discrepancies and priorities anew."""
        slot = batch.entry % self.capacity
        self._size[self._rows, slot] = np.abs(errors.cpu().numpy().astype(np.float64)) + self.priorities.least
        entry = batch.entry
        if self._before and self.deer.discrepancy:
            if self.deer.fork and (self._left > 0).any():
                self._learn_apart(critic, state)
            oldest = self.oldest
            others = oldest + np.asarray(self._again.at(self._learned) * (self.count - oldest), np.int64)
            entry = np.concatenate([entry, others], axis=1)
            self._compare(critic, state, entry)
        self._learned += 1
        slot = entry % self.capacity
        size, discrepancy = self._size[self._rows, slot], self._discrepancy[self._rows, slot]
        tau = np.maximum(self.deer.temperature * self._range, 1e-9)[:, None]
        new = entry >= self.change[:, None]
        self._prioritise(entry, self.deer.priority(size, discrepancy, new, tau, self.priorities.alpha))

    def _learn_apart(self, critic: Critic, state: State) -> None:
        """Let the fork take a step on what came after the change alone."""
        if self._noise is None:
            self._noise = critic.update_draws(self._seeds, self._actions, self.batch, "fork noise")
        first = np.maximum(self.change, self.oldest)[:, None]
        own = first + np.asarray(self._forked.at(self._learned) * (self.count - first), np.int64)
        noise = torch.from_numpy(self._noise.at(self._learned)).to(self._device, torch.float32)
        critic.critic_step(state | self._fork, self.at(own), noise)
        self._left = np.maximum(self._left - 1, 0)

    def _compare(self, critic: Critic, state: State, entry: Integers) -> None:
        """Compute the discrepancies of entries [G, B] anew."""
        seen = self.at(entry)
        before = critic.values(state | self._before, seen).cpu().numpy()
        after = critic.values(state, seen).cpu().numpy()
        if self.deer.fork and (forked := self._left > 0).any():
            apart = critic.values(state | self._fork, seen).cpu().numpy()
            after = np.where(forked[:, None], apart, after)
        spread = before.max(axis=1) - before.min(axis=1)
        self._range = np.where(self._range > 0, self._range + RANGE_RATE * (spread - self._range), spread)
        changed = self.change > 0
        self._discrepancy[self._rows, entry % self.capacity] = np.where(changed[:, None], np.abs(after - before), 0.0)

    def _changed(self, state: State, critic: Critic, agents: Integers) -> None:
        own: State = {name: state[name] for name in critic.critic_parts}
        self._before = _taken(self._before, own, agents)
        self._fork = _taken(self._fork, own, agents)
        self._discrepancy[agents] = 0.0
        self._left[agents] = self.deer.fork_updates

    def measured(self) -> dict[str, float]:
        """Return changes found of an agent, and the share of the last batch that was from before one."""
        return super().measured() | {"old_share": self._old_share}

    def arrays(self) -> Arrays:
        """Return all that is remembered."""
        filled = min(self.count, self.capacity)
        found = super().arrays() | {
            "size": self._size[:, :filled].copy(), "discrepancy": self._discrepancy[:, :filled].copy(),
            "range": self._range.copy(), "left": self._left.copy(), "learned": np.array(self._learned),
            "old_share": np.array(self._old_share),
        }  # fmt: skip
        return found | flatten({"before": self._before, "fork": self._fork})[0]

    def restore(self, arrays: Arrays, state: State) -> None:
        """Take over what `arrays` gave, after `start`; of another kind of buffer, what both have."""
        super().restore(arrays, state)
        filled = min(self.count, self.capacity)
        if "size" not in arrays:
            self._size[:, :filled] = self._largest[:, None]
            return
        wanted = {name: value for name, value in self.arrays().items() if name in _OWN}
        copied = [name for name in arrays if name.partition("/")[0] in ("before", "fork")]
        if copied:
            whole = flatten({"before": state, "fork": state})[0]
            wanted |= {name: whole[name] for name in whole if name in copied}
            if unknown := [name for name in copied if name not in whole]:
                raise InvalidFileError(f"{unknown[0]}: not a part of this learner")
        refuse_other_forms(arrays, wanted)
        for name in ("size", "discrepancy", "range", "left", "learned"):
            if (arrays[name] < 0).any():
                raise InvalidFileError(f"{name}: expected numbers >= 0")
        self._size[:, :filled], self._discrepancy[:, :filled] = arrays["size"], arrays["discrepancy"]
        self._range, self._left = arrays["range"].copy(), arrays["left"].copy()
        self._learned, self._old_share = int(arrays["learned"]), float(arrays["old_share"])
        self._before, self._fork = (_nested(arrays, name, self._device) for name in ("before", "fork"))


_OWN = ("size", "discrepancy", "range", "left", "learned", "old_share")


def _taken(into: State, state: State, agents: Integers) -> State:
    """Return a state in which some agents' parts are copies of another's; a new one is a copy throughout."""
    found: State = {}
    for name, value in state.items():
        there = into.get(name)
        if isinstance(value, torch.Tensor):
            copied = value.clone() if there is None else there
            assert isinstance(copied, torch.Tensor)
            copied[torch.from_numpy(agents)] = value[torch.from_numpy(agents)]
            found[name] = copied
        else:
            assert there is None or isinstance(there, dict)
            found[name] = _taken(there or {}, value, agents)
    return found


def _nested(arrays: Arrays, name: str, device: str) -> State:
    """Return the state below a name, of arrays by path."""
    found: State = {}
    for path, array in arrays.items():
        first, *names = path.split("/")
        if first != name or not names:
            continue
        into = found
        for part in names[:-1]:
            below = into.setdefault(part, {})
            assert isinstance(below, dict)
            into = below
        into[names[-1]] = torch.tensor(array).to(device)
    return found
