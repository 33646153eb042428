"""What chance decides in client selection: hidden regimes, busy clients, fading; drawn from a seed, before any pick."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems.client_selection.instance import SelectionInstance
from edgeopt.rng import stream


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenarios:
    """The draws of E episodes. They do not depend on what the servers do.

    Parameters
    ----------
    regime : int8 [E, T, C], hidden regime of each client; all 0 where a table says who is busy.
    busy : bool [E, T, C], whether a client is taken by work of its own.
    fading : float64 [E, T, C], factor on the client's rates, of mean one, the same towards all servers.
    """

    regime: NDArray[np.int8]
    busy: NDArray[np.bool_]
    fading: NDArray[np.float64]


def held_out_seeds(seed: int, episodes: int) -> list[int]:
    """Return seeds of episodes to play what was trained under `seed` on; training draws its own from elsewhere."""
    return [int(found) for found in stream(seed, "held-out").integers(2**31, size=episodes)]


def draw_scenarios(problem: SelectionInstance, seeds: Sequence[int]) -> Scenarios:
    """Draw one episode per seed; the same seed gives the same episode, alone or among others."""
    shape = (len(seeds), problem.rounds, problem.num_clients)
    regime = np.zeros(shape, np.int8)
    if problem.regime_transition is not None:
        regime, busy = _regimes(problem, seeds)
    elif problem.busy is not None:
        busy = np.broadcast_to(problem.busy[: problem.rounds], shape).copy()
    else:
        busy = np.zeros(shape, bool)
    fading = np.ones(shape)
    if (sigma := problem.rate_sigma) > 0:
        for e, seed in enumerate(seeds):
            fading[e] = np.exp(sigma * stream(seed, "fading").standard_normal(shape[1:]) - sigma**2 / 2)
    return Scenarios(regime=regime, busy=busy, fading=fading)


def stationary(transition: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the stationary distribution [R] of a Markov chain; of several, the one of least norm.

    Examples
    --------
    >>> stationary(np.array([[0.9, 0.1], [0.3, 0.7]])).round(6).tolist()
    [0.75, 0.25]
    """
    count = len(transition)
    system = np.vstack([transition.T - np.eye(count), np.ones(count)])
    found = np.linalg.lstsq(system, np.append(np.zeros(count), 1.0), rcond=None)[0]
    found = np.maximum(found, 0.0)
    return np.asarray(found / found.sum())


def _regimes(problem: SelectionInstance, seeds: Sequence[int]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    assert problem.regime_transition is not None
    assert problem.busy_probability is not None
    shape = (problem.rounds, problem.num_clients)
    moves = np.stack([stream(seed, "regime").random(shape) for seed in seeds])  # (E, T, C)
    draws = np.stack([stream(seed, "busy").random(shape) for seed in seeds])
    inner = np.cumsum(problem.regime_transition, axis=1)[:, :-1]  # (R, R - 1): the last regime takes what is left
    regime = np.empty(moves.shape, np.int8)
    now = (moves[:, 0, :, None] >= np.cumsum(stationary(problem.regime_transition))[:-1]).sum(axis=2)
    for t in range(problem.rounds):
        if t:
            now = (moves[:, t, :, None] >= inner[now]).sum(axis=2)
        regime[:, t] = now
    return regime, draws < problem.busy_probability[regime]
