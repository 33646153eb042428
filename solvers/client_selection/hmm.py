"""`CategoricalHMM`: a hidden Markov model of categorical symbols, some of which were never seen."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.foreign import as_array
from edgeopt.rng import stream
from edgeopt.solvers.kernels.hmm import expected_counts, filter_beliefs
from edgeopt.validate import float_array, int_array, integer, probabilities

SUM_TOLERANCE = 1e-9
LEAST_COUNT = 1e-290  # of expected visits: smaller numbers have lost digits


@dataclass(frozen=True, slots=True, eq=False)
class CategoricalHMM:
    """K hidden states, V symbols; sequences are int arrays [N, T] with -1 where a symbol is missing.

    A missing symbol has probability one, whatever the state: that is right as long as whether it is missing depends on
    nothing but symbols seen earlier, as when a server picks clients by what it has seen of them. Fill short sequences up with
    -1 at their end.

    Parameters
    ----------
    start : float64 [K], distribution of the first state.
    transition : float64 [K, K], from row to column.
    emission : float64 [K, V], probability of each symbol in each state.

    Notes
    -----
    The forward-backward recursion is scaled, so that long sequences do not underflow (L. R. Rabiner, *A tutorial on
    hidden Markov models*, Proc. IEEE 77, 1989, section V.A). One pass takes O(N T K^2). Where that is
    not enough, it is done in logarithms, so that no probability is too small; it then takes several times as long. That is
    for sequences on which a state becomes less likely than 1e-180, and for all of them if the model has a probability
    below 1e-60; if it has no move below that, only for those with a symbol of probability below 1e-150.

    Examples
    --------
    >>> model = CategoricalHMM([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], [[0.9, 0.1], [0.3, 0.7]])
    >>> model.forecast([[1, -1, 1]]).round(3)  # after two conflicts, with a gap between them
    array([[0.457, 0.543]])
    """

    start: NDArray[np.float64]
    transition: NDArray[np.float64]
    emission: NDArray[np.float64]

    __repr__ = one_line

    def __post_init__(self) -> None:
        if as_array("start", self.start).size == 0:
            raise InvalidProblemError("start: expected at least one state")
        start = probabilities("start", self.start, (None,), tolerance=SUM_TOLERANCE)
        checked = {
            "start": start,
            "transition": probabilities("transition", self.transition, (start.size,) * 2, tolerance=SUM_TOLERANCE),
            "emission": probabilities("emission", self.emission, (start.size, None), tolerance=SUM_TOLERANCE),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def num_states(self) -> int:
        """Hidden states, K."""
        return len(self.start)

    @property
    def num_symbols(self) -> int:
        """Symbols, V."""
        return int(self.emission.shape[1])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CategoricalHMM):
            return NotImplemented
        return all(np.array_equal(getattr(self, field), getattr(other, field)) for field in _FIELDS)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def random(cls, num_states: int, num_symbols: int, *, seed: int = 0) -> Self:
        """Return a model whose distributions are drawn evenly from all; a start for `fit`."""
        num_states, num_symbols = integer("num_states", num_states, low=1), integer("num_symbols", num_symbols, low=1)
        rng = stream(seed, "hmm")
        return cls(
            rng.dirichlet(np.ones(num_states)),
            rng.dirichlet(np.ones(num_states), num_states),
            rng.dirichlet(np.ones(num_symbols), num_states),
        )

    def sample(self, num: int, length: int, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return complete sequences and their hidden states, int64 [num, length] each."""
        num, length = integer("num", num, low=0), integer("length", length, low=0)
        moves, draws = stream(seed, "states").random((length, num)), stream(seed, "symbols").random((length, num))
        states = np.empty((length, num), np.int64)
        symbols = np.empty((length, num), np.int64)
        cumulated = np.cumsum(self.transition, axis=1)[:, :-1]
        for t in range(length):
            steps = np.cumsum(self.start)[:-1] if t == 0 else cumulated[states[t - 1]]
            states[t] = (moves[t, :, None] >= steps).sum(axis=1)
            symbols[t] = (draws[t, :, None] >= np.cumsum(self.emission, axis=1)[states[t], :-1]).sum(axis=1)
        return symbols.T.copy(), states.T.copy()

    def log_likelihood(self, sequences: ArrayLike) -> NDArray[np.float64]:
        """Return float64 [N], the logarithm of the probability of what was seen; -inf if it is impossible."""
        return self._filtered(self._checked(sequences))[1]

    def filter(self, sequences: ArrayLike) -> NDArray[np.float64]:
        """Return float64 [N, T, K], the distribution of the state at t given the symbols up to t; gaps are bridged.

        Raises
        ------
        InvalidProblemError
            If a sequence is impossible under the model.
        """
        beliefs, value = self._filtered(self._checked(sequences))
        _refuse_impossible(value)
        return beliefs

    def forecasts(self, sequences: ArrayLike, steps: int = 1) -> NDArray[np.float64]:
        """Return float64 [N, T, V], the distribution of each symbol given those at least `steps` earlier.

        Column t is what the symbols up to t - `steps` say about the symbol at t; where there are none, the start does.
        """
        data = self._checked(sequences)
        wanted = int_array("steps", steps, (), low=1).item()
        states = np.empty((*data.shape, self.num_states))
        ahead = np.linalg.matrix_power(self.transition, wanted)
        states[:, wanted:] = self.filter(data)[:, : data.shape[1] - min(wanted, data.shape[1])] @ ahead
        prior = self.start
        for t in range(min(wanted, data.shape[1])):
            states[:, t] = prior
            prior = prior @ self.transition
        return np.asarray(states @ self.emission)

    def forecast(self, sequences: ArrayLike, steps: int = 1) -> NDArray[np.float64]:
        """Return float64 [N, V], the distribution of the symbol `steps` after the last column."""
        data = self._checked(sequences)
        wanted = int_array("steps", steps, (), low=1).item()
        return self.forecasts(np.pad(data, ((0, 0), (0, wanted)), constant_values=-1), wanted)[:, -1]

    def fit(
        self, sequences: ArrayLike, *, iterations: int = 50, tolerance: float = 1e-4, prior: float = 0.0
    ) -> tuple[Self, NDArray[np.float64]]:
        """Fit to sequences by Baum-Welch from this model on.

        Parameters
        ----------
        sequences : int [N, T], -1 where missing.
        iterations : at most so many.
        tolerance : stop once an iteration raises the objective by less; -inf for never.
        prior : pseudo-count of every start, move and symbol: Dirichlet smoothing, which maximises log-likelihood +
            prior x sum of the logarithms of all parameters.

        Returns
        -------
        The fitted model and float64 [iterations done], the objective of the model *before* each iteration.

        Notes
        -----
        Expectation maximisation: the objective never falls. A parameter of zero stays zero without a prior, and a
        state that is never visited keeps its rows. Impossible sequences are an error.
        """
        data = self._checked(sequences)
        count = int_array("iterations", iterations, (), low=0).item()
        pseudo = float_array("prior", prior, (), nonnegative=True, ranged=True).item()
        parameters = [self.start[None].copy(), self.transition.copy(), self.emission.copy()]
        history: list[float] = []
        for _ in range(count):
            start, transition, emission = parameters
            by_symbol = np.ascontiguousarray(emission.T)
            starts, moves, symbols, value = expected_counts(data, start[0], transition, by_symbol)
            _refuse_impossible(value)
            history.append(float(value.sum()) + _log_prior(parameters, pseudo))
            sums = [starts[None], moves, symbols.T]
            parameters = [_shares(s + pseudo, old) for s, old in zip(sums, parameters, strict=True)]
            if len(history) > 1 and history[-1] - history[-2] < tolerance:
                break
        fitted: Any = {"start": parameters[0][0], "transition": parameters[1], "emission": parameters[2]}
        return dataclasses.replace(self, **fitted), np.array(history)

    def _filtered(self, data: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        emission = np.ascontiguousarray(self.emission.T)
        beliefs, value = filter_beliefs(data, self.start.copy(), self.transition.copy(), emission)
        return beliefs, value

    def _checked(self, sequences: ArrayLike) -> NDArray[np.int64]:
        """Return a writeable int64 copy [N, T]: numba would compile kernels once more for read-only arrays."""
        high = self.num_symbols - 1
        return int_array("sequences", sequences, (None, None), low=-1, high=high, dtype=np.int64).copy()


_FIELDS = tuple(field.name for field in dataclasses.fields(CategoricalHMM))


def _refuse_impossible(value: NDArray[np.float64]) -> None:
    if (bad := np.flatnonzero(~np.isfinite(value))).size:
        raise InvalidProblemError(f"sequences[{bad[0]}]: impossible under the model: expected a positive probability")


def _log_prior(parameters: list[NDArray[np.float64]], pseudo: float) -> float:
    if pseudo == 0.0:
        return 0.0
    with np.errstate(divide="ignore"):  # a zero of the start; the first iteration lifts it
        return pseudo * float(sum(np.log(array).sum() for array in parameters))


def _shares(counts: NDArray[np.float64], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of counts as probabilities; rows without counts, but for rounding, as they were."""
    total = counts.sum(axis=1, keepdims=True)
    counted = total > LEAST_COUNT
    return np.where(counted, np.divide(counts, total, out=np.zeros_like(counts), where=counted), otherwise)
