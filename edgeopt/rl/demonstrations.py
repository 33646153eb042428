"""`Demonstrations`: instructions carried out in the environment, seen through the eyes of the agents, and kept if they are good."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.rl.environments.team import Seen, Team
from edgeopt.rl.grammar import Orders, padded, parse
from edgeopt.rl.instructions import InstructionSource, Request
from edgeopt.rl.replay import refuse_other_forms
from edgeopt.storage import Arrays
from edgeopt.validate import integer


class Play(NamedTuple):
    """E whole episodes of N agents and T steps.

    Parameters
    ----------
    observation : float32 [N, T, E, ...], what each agent saw before a step.
    allowed : bool [N, T, E, A].
    action : int64 [N, T, E, M].
    reward : float32 [N, T, E].
    """

    observation: NDArray[np.float32]
    allowed: NDArray[np.bool_]
    action: NDArray[np.int64]
    reward: NDArray[np.float32]

    @property
    def returns(self) -> NDArray[np.float64]:
        """float64 [N, E], sums of rewards."""
        return np.asarray(self.reward.sum(axis=1, dtype=np.float64))


def play(team: Team, seeds: Sequence[int], act: Callable[[Seen, int], NDArray[np.int64]]) -> Play:
    """Play one episode for each seed; `act` is told what agents see and the step, and returns actions [N, E, M]."""
    seen = team.reset(seeds)
    rows = []
    for step in range(team.horizon):
        action = act(seen, step)
        reward, following = team.step(action)
        rows.append((seen.observation, seen.allowed, action, reward))
        seen = following
    return Play(*(np.stack(column, axis=1) for column in zip(*rows, strict=True)))


def carried_out(
    team: Team, source: InstructionSource, seeds: Sequence[int], feedback: str = ""
) -> tuple[Play, list[str]]:
    """Return what comes of a source's instructions, one answer for each episode, and what of them was rejected.

    Every agent's instructions are repaired, so that it does something sensible whatever the answer was.
    """
    team.reset(seeds)
    orders: list[Orders] = []
    rejected: list[str] = []
    for episode, seed in enumerate(seeds):
        request = Request(team, episode, seed, feedback)
        found = parse(source.instructions(request), team.grammar)
        orders.append([team.repaired(agent, episode, places) for agent, places in enumerate(found.orders)])
        rejected += found.rejected
    told = padded(orders)
    return play(team, seeds, lambda seen, step: team.obey(told)), rejected


@dataclass(frozen=True, slots=True)
class Gathered:
    """What came of asking for instructions once.

    Parameters
    ----------
    kept : whether the set was good enough.
    returns : float64 [N], mean over the set's episodes.
    rejected : lines that were no instructions, and why.
    """

    kept: bool
    returns: NDArray[np.float64]
    rejected: tuple[str, ...]

    __repr__ = one_line


@dataclass(slots=True)
class Demonstrations:
    """Sets of episodes played by instructions; the newest few of those that were good enough.

    A set is kept if its mean return is at least the median of those of the sets kept so far. [ours: that demonstrations
    are made by carrying out instructions, in the form of the agents' own experience, is LEED's; which are kept is not known]

    Parameters
    ----------
    source : who writes the instructions.
    keep : how many sets.

    Examples
    --------
    >>> import networkx as nx
    >>> from edgeopt.rl import ScriptedPlanner
    >>> from edgeopt.rl.environments import Routing
    >>> shown = Demonstrations(ScriptedPlanner())
    >>> shown.gather(Routing(nx.path_graph(4), 2), seeds=[1, 2]).kept, len(shown.sets)
    (True, 1)
    """

    source: InstructionSource
    keep: int = 4
    sets: list[Play] = field(default_factory=list, init=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        integer("keep", self.keep, low=1)

    def gather(self, team: Team, seeds: Sequence[int], feedback: str = "") -> Gathered:
        """Ask for instructions for one episode per seed, carry them out, and keep the set if it is good enough."""
        found, rejected = carried_out(team, self.source, seeds, feedback)
        good = not self.sets or found.returns.mean() >= np.median([own.returns.mean() for own in self.sets])
        if good:
            self.sets = [*self.sets, found][-self.keep :]
        return Gathered(bool(good), found.returns.mean(axis=1), tuple(rejected))

    @property
    def returns(self) -> NDArray[np.float64]:
        """float64 [N], mean of the episodes kept."""
        return np.asarray(np.concatenate([own.returns for own in self._there()], axis=1).mean(axis=1))

    def draw(self, count: int, rng: np.random.Generator) -> Play:
        """Return some of the episodes kept, each once at most; all if there are no more."""
        sets = self._there()
        places = [(own, e) for own in sets for e in range(own.reward.shape[2])]
        chosen = sorted(rng.permutation(len(places))[:count].tolist())
        drawn = [places[i] for i in chosen]
        return Play(*(np.stack([own[part][:, :, e] for own, e in drawn], axis=2) for part in range(len(Play._fields))))

    def _there(self) -> list[Play]:
        if not self.sets:
            raise EdgeOptError("there are no demonstrations: expected gather to be called first")
        return self.sets

    def arrays(self) -> Arrays:
        """Return all sets as arrays by name."""
        return {f"{i}/{name}": part for i, own in enumerate(self.sets) for name, part in own._asdict().items()}

    def restore(self, arrays: Arrays, team: Team) -> None:
        """Take over what `arrays` gave of this team.

        Raises
        ------
        InvalidFileError
            If it is no play of this team.
        """
        count = len(arrays) // len(Play._fields)
        expected = {f"{i}/{name}" for i in range(count) for name in Play._fields}
        if arrays.keys() != expected:
            raise InvalidFileError(f"demonstrations: expected arrays {', '.join(sorted(expected)) or 'of none'}")
        self.sets = [_checked(i, Play(*(arrays[f"{i}/{name}"] for name in Play._fields)), team) for i in range(count)]


def _checked(number: int, own: Play, team: Team) -> Play:
    """Return a set that was read, if it is play of a team."""
    common = (team.num_agents, team.horizon, own.reward.shape[-1] if own.reward.ndim == 3 else 0)
    expected = Play(
        np.empty((*common, *team.observation_shape), np.float32), np.empty((*common, team.num_actions), np.bool_),
        np.empty((*common, team.taken.shape[1]), np.int64), np.empty(common, np.float32),
    )  # fmt: skip
    named = {f"shown/{number}/{name}": part for name, part in expected._asdict().items()}
    refuse_other_forms(dict(zip(named, own, strict=True)), named)
    if not own.reward.size:
        raise InvalidFileError(f"shown/{number}/reward: expected at least one episode")
    if (own.action < 0).any() or (own.action >= team.num_actions).any() or not own.allowed.any(axis=-1).all():
        raise InvalidFileError(f"shown/{number}/action: expected numbers from 0 to {team.num_actions - 1}")
    return own
