"""What learners see of each client: a few local numbers, all from 0 to 1."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems.client_selection.environment import SelectionEnvironment, ServerView
from edgeopt.solvers.client_selection.forecaster import FAILURES, PICKS
from edgeopt.solvers.kernels.selection import highest, write_features

FEATURES = ("conflict forecast", "failure rate", "latency", "fairness", "share of rounds picked")

LATENCY = FEATURES.index("latency")


def covered_features(
    environment: SelectionEnvironment, forecast: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Return float32 [E, S, N, F], what each server sees of each client it covers before the coming round.

    Clients are in the order of `SelectionInstance.covered_clients`; what only fills up is 0. Columns are in the order of
    `FEATURES`: the forecast [E, S, N] of a conflict (0 without one), the mean of a Beta distribution of how often picks
    of the client delivered nothing, latency as a share of the time-out, at most 1, the fairness that a delivery would
    earn, and the share of the rounds so far in which the server picked the client.
    """
    problem, now = environment.problem, environment.now
    clients = environment.clients
    features = np.zeros((environment.num_episodes, *clients.shape, len(FEATURES)), np.float32)
    if forecast is not None:
        features[..., 0] = forecast
    write_features(
        now, clients, problem.picks.copy(), problem.num_covered, environment.scenarios.fading[:, now].copy(),
        problem.compute_s.copy(), problem.rate_at(now).copy(), problem.payload_bits, problem.timeout_s, FAILURES, PICKS,
        environment.last, environment.picked, environment.delivered, features,
    )  # fmt: skip
    return features


def local_features(
    environment: SelectionEnvironment, forecast: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Return float32 [E, S, C, F]: `covered_features` by client id, 0 where not covered; forecast is [E, S, C]."""
    coverage, clients = environment.problem.coverage, environment.clients
    servers, at = np.nonzero(np.arange(clients.shape[1]) < coverage.sum(axis=1)[:, None])
    ids = clients[servers, at]
    features = np.zeros((*environment.last.shape, len(FEATURES)), np.float32)
    features[:, servers, ids] = covered_features(environment)[:, servers, at]
    if forecast is not None:
        features[..., 0] = np.where(coverage, forecast, 0.0)
    return features


def view_features(
    view: ServerView, timeout_s: float, forecast: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Return float32 [n, F], the same of one server from its view alone."""
    features = np.zeros((len(view.clients), len(FEATURES)), np.float32)
    if forecast is not None:
        features[:, 0] = forecast
    features[:, 1] = failure_rate(view.picked, view.delivered)
    features[:, 2] = np.minimum(view.latency_s / timeout_s, 1.0)
    features[:, 3] = view.bonus
    features[:, 4] = view.picked / max(1, view.round)
    return features


def failure_rate(picked: NDArray[np.int32], delivered: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return how often picks have delivered nothing, from counts of any shape; 1/4 before the first.

    Examples
    --------
    >>> failure_rate(np.array([0, 4]), np.array([0, 1])).tolist()
    [0.25, 0.5]
    """
    return np.asarray((FAILURES + picked - delivered) / (PICKS + picked))


def top_picks(
    score: NDArray[np.floating], coverage: NDArray[np.bool_], num_picks: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Return int32 [E, S, M]: each server's covered clients of highest score [E, S, C], lowest ids on ties, -1 to fill up.

    Examples
    --------
    >>> top_picks(np.array([[[0.2, 0.9, 0.9]]]), np.array([[True, True, True]]), np.array([2])).tolist()
    [[[1, 2]]]
    """
    picks = np.full((*score.shape[:2], int(num_picks.max())), -1, np.int32)
    highest(np.array(score, np.float64), np.array(coverage), np.array(num_picks, np.int32), picks)
    return picks


def client_ids(clients: NDArray[np.int64], places: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return the ids int32 [E, S, M] of places among the covered clients [S, N]; -1 stays.

    Examples
    --------
    >>> client_ids(np.array([[4, 7, 9]]), np.array([[[2, 0, -1]]])).tolist()
    [[[9, 4, -1]]]
    """
    ids = clients[np.arange(len(clients))[:, None], places]
    return np.where(places < 0, -1, ids).astype(np.int32)
