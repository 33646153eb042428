"""`ConflictForecaster`: each server's forecast of which clients are taken, from what it saw of them."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.problems.client_selection.instance import covered_ids
from edgeopt.solvers.client_selection.hmm import CategoricalHMM
from edgeopt.solvers.kernels.hmm import advance_beliefs
from edgeopt.validate import bool_array, float_array, int_array

START = CategoricalHMM(np.array([0.7, 0.3]), np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.9, 0.1], [0.4, 0.6]]))
"""Where fitting starts: a state with few conflicts and one with many, both of which last."""
FAILURES, PICKS = 1.0, 4.0
"""Prior of how often picks of a client fail: Beta(1, 3), as if one of four had."""


class ConflictForecaster:
    """One hidden Markov model per server, one belief per episode, server and client, all moved on at once.

    A server's forecasts depend on the outcomes of its own picks alone. Its model is shared by its clients, and by its
    episodes. Until there is one, the forecast is the mean of Beta(1, 3) updated by the client's picks and conflicts.

    Parameters
    ----------
    coverage : bool [S, C], which pairs to follow.
    num_episodes : E.
    models : a model of two symbols (0 no conflict, 1 conflict) for each server, None for servers without. Default: none.
    refit_every : rounds between two fits of the models; None leaves them to `refit`.
    window : rounds that a fit looks back.
    least : picks in the window, over all clients and episodes, that a fit needs.
    iterations, prior : of each fit, see `CategoricalHMM.fit`; it goes on from the model before.

    Examples
    --------
    >>> forecaster = ConflictForecaster([[True, True, False]], models=[START], refit_every=None)
    >>> forecaster.update(np.array([[[1, -1, -1]]]))
    >>> forecaster.probability.round(3)
    array([[[0.438, 0.27 , 0.   ]]])
    """

    def __init__(
        self,
        coverage: ArrayLike,
        num_episodes: int = 1,
        *,
        models: Sequence[CategoricalHMM | None] | None = None,
        refit_every: int | None = 25,
        window: int = 100,
        least: int = 30,
        iterations: int = 10,
        prior: float = 1.0,
    ) -> None:
        self._coverage = bool_array("coverage", coverage, (None, None)).copy()
        self._clients, count = covered_ids(self._coverage), self._coverage.sum(axis=1)
        self._filled = np.arange(self._clients.shape[1]) < count[:, None]
        given = [None] * len(self._coverage) if models is None else list(models)
        for name, value in (("refit_every", refit_every), ("window", window), ("num_episodes", num_episodes)):
            if value is not None:
                int_array(name, value, (), low=1)
        float_array("prior", prior, (), positive=True)  # without, a conflict never seen before would be impossible
        self._refit_every, self._window, self._least = refit_every, window, least
        self._iterations, self._prior = iterations, prior
        self.reset(num_episodes, models=given)

    @property
    def models(self) -> tuple[CategoricalHMM | None, ...]:
        """The model of each server, None where there is none yet."""
        return tuple(self._models)

    def reset(self, num_episodes: int, *, models: Sequence[CategoricalHMM | None] | None = None) -> None:
        """Forget all outcomes; the models stay, unless others are given."""
        if models is not None:
            self._models = _checked(models, len(self._coverage))
        self._shape = (num_episodes, *self._coverage.shape)
        self._rounds = 0
        covered = (num_episodes, *self._clients.shape)  # all that follows is [E, S, N], by place among the covered
        self._picks, self._conflicts = np.zeros(covered), np.zeros(covered)
        self._history: deque[NDArray[np.int8]] = deque(maxlen=self._window)
        self._load()
        self._belief = np.tile(self._start[None, :, None, :], (num_episodes, 1, covered[2], 1))

    @property
    def probability(self) -> NDArray[np.float64]:
        """float64 [E, S, C], how likely a pick in the coming round is to conflict; 0 where not covered."""
        probability = np.zeros(self._shape)
        servers, places = np.nonzero(self._filled)
        probability[:, servers, self._clients[servers, places]] = self.covered_probability[:, servers, places]
        return probability

    @property
    def covered_probability(self) -> NDArray[np.float64]:
        """float64 [E, S, N], the same of the clients that each server covers, lowest id first; 0 to fill up."""
        counted = (FAILURES + self._conflicts) / (PICKS + self._picks)
        forecast = np.zeros(counted.shape)
        for k in range(self._belief.shape[3]):
            forecast += self._belief[..., k] * self._emission[:, 1, k, None]
        return np.where(self._filled, np.where(self._has_model[:, None], forecast, counted), 0.0)

    def update(self, outcome: ArrayLike) -> None:
        """Take in the outcomes of a round, int [E, S, C]: -1 not picked, 0 no conflict, 1 conflict."""
        seen = self._covered_part(outcome)
        self._rounds += 1
        self._picks += seen >= 0
        self._conflicts += seen == 1
        advance_beliefs(self._belief, seen, self._filled, self._transition, self._emission)
        self._history.append(seen)
        if self._refit_every is not None and self._rounds % self._refit_every == 0:
            self.refit()

    def _covered_part(self, outcome: ArrayLike) -> NDArray[np.int8]:
        """Return outcomes by place, checked: the check of what is not covered would take longer than the rest."""
        servers = np.arange(len(self._clients))[:, None]
        if isinstance(outcome, np.ndarray) and outcome.dtype == np.int8 and outcome.shape == self._shape:
            seen = np.ascontiguousarray(outcome[:, servers, self._clients])
            if seen.min() >= -1 and seen.max() <= 1:
                return seen
        given = int_array("outcome", outcome, self._shape, low=-1, high=1, dtype=np.int8)
        return np.ascontiguousarray(given[:, servers, self._clients])

    def refit(self) -> None:
        """Fit every server's model to its window, and start the beliefs anew from there."""
        if not self._history:
            return
        seen = np.stack(self._history, axis=-1)  # (E, S, N, T)
        found: dict[int, NDArray[np.float64]] = {}
        for s, filled in enumerate(self._filled):
            sequences = seen[:, s, filled].reshape(-1, seen.shape[-1])
            if (sequences >= 0).sum() < self._least:
                continue
            model, _ = (self._models[s] or START).fit(sequences, iterations=self._iterations, prior=self._prior)
            self._models[s] = model
            ahead = model.filter(sequences)[:, -1] @ model.transition
            found[s] = ahead.reshape(self._shape[0], -1, model.num_states)
        self._load()
        for s, belief in found.items():
            self._belief[:, s, self._filled[s]] = belief

    def _load(self) -> None:
        """Put the models into arrays for the kernel; `START` stands in for those that are missing."""
        models = [START if model is None else model for model in self._models]
        self._has_model = np.array([model is not None for model in self._models])
        self._start = np.stack([model.start for model in models])
        self._transition = np.stack([model.transition for model in models])
        self._emission = np.ascontiguousarray(np.stack([model.emission.T for model in models]))


def _checked(models: Sequence[CategoricalHMM | None], num_servers: int) -> list[CategoricalHMM | None]:
    if len(models) != num_servers:
        raise InvalidProblemError(f"models: expected one per server ({num_servers}), got {len(models)}")
    for s, model in enumerate(models):
        if model is not None and model.num_symbols != 2:
            raise InvalidProblemError(f"models[{s}]: {model.num_symbols} symbols: expected 2")
    if len({(model or START).num_states for model in models}) > 1:
        raise InvalidProblemError(
            f"models: expected the same number of states everywhere, {START.num_states} where there is none yet"
        )
    return list(models)
