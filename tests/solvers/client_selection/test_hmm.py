"""`CategoricalHMM` against hmmlearn on complete data, and against what is known of gapped data."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.solvers.client_selection.hmm import CategoricalHMM

few = settings(max_examples=15)
seeds = st.integers(0, 2**32 - 1)
TRUE = CategoricalHMM([0.6, 0.4], [[0.95, 0.05], [0.1, 0.9]], [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
TWO_REGIMES = CategoricalHMM([0.67, 0.33], [[0.95, 0.05], [0.1, 0.9]], [[0.9, 0.1], [0.2, 0.8]])


def theirs(start: CategoricalHMM, sequences: Any, iterations: int, prior: float = 0.0, lengths: Any = None) -> Any:
    """Return hmmlearn's model fitted from the same start by the same number of iterations, and the flat data."""
    from hmmlearn.hmm import CategoricalHMM as Theirs

    model = Theirs(
        start.num_states, n_iter=iterations, tol=-np.inf, init_params="", implementation="log",
        startprob_prior=1 + prior, transmat_prior=1 + prior, emissionprob_prior=1 + prior,
    )  # fmt: skip
    model.n_features = start.num_symbols
    model.startprob_, model.transmat_ = start.start.copy(), start.transition.copy()
    model.emissionprob_ = start.emission.copy()
    lengths = [len(row) for row in sequences] if lengths is None else lengths
    flat = np.concatenate([row[:length] for row, length in zip(sequences, lengths, strict=True)])[:, None]
    if iterations:
        model.fit(flat, lengths)
    return model, flat, lengths


@given(seeds, st.integers(1, 4), st.integers(2, 4))
@few
def test_log_likelihood_is_hmmlearns(seed: int, states: int, symbols: int):
    """The log-likelihood of complete data is that of hmmlearn, sequence by sequence."""
    model = CategoricalHMM.random(states, symbols, seed=seed)
    data, _ = model.sample(5, 40, seed=seed)
    reference, _, _ = theirs(model, data, 0)
    expected = [reference.score(row[:, None]) for row in data]
    np.testing.assert_allclose(model.log_likelihood(data), expected, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("prior", [0.0, 0.5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fitted_parameters_are_hmmlearns(seed: int, prior: float):
    """After 30 iterations from the same start, all parameters and the log-likelihood are hmmlearn's to 1e-8."""
    data, _ = TRUE.sample(20, 80, seed=seed)
    start = CategoricalHMM.random(2, 3, seed=seed)
    fitted, history = start.fit(data, iterations=30, tolerance=-np.inf, prior=prior)
    reference, flat, lengths = theirs(start, data, 30, prior)
    np.testing.assert_allclose(fitted.start, reference.startprob_, atol=1e-8)
    np.testing.assert_allclose(fitted.transition, reference.transmat_, atol=1e-8)
    np.testing.assert_allclose(fitted.emission, reference.emissionprob_, atol=1e-8)
    assert fitted.log_likelihood(data).sum() == pytest.approx(reference.score(flat, lengths), abs=1e-8)
    if prior == 0.0:
        np.testing.assert_allclose(history, list(reference.monitor_.history), atol=1e-7)
        assert len(history) == 30


def test_short_sequences_are_filled_up():
    """Sequences of several lengths, filled up with -1, are fitted as hmmlearn fits them with their lengths."""
    data, _ = TRUE.sample(10, 50, seed=5)
    lengths = [50, 1, 20, 33, 2, 50, 7, 41, 18, 29]
    for row, length in zip(data, lengths, strict=True):
        row[length:] = -1
    start = CategoricalHMM.random(2, 3, seed=5)
    fitted, _ = start.fit(data, iterations=10, tolerance=-np.inf)
    reference, flat, _ = theirs(start, data, 10, lengths=lengths)
    np.testing.assert_allclose(fitted.transition, reference.transmat_, atol=1e-8)
    np.testing.assert_allclose(fitted.emission, reference.emissionprob_, atol=1e-8)
    assert fitted.log_likelihood(data).sum() == pytest.approx(reference.score(flat, lengths), abs=1e-8)


@given(seeds, st.sampled_from([0.0, 1.0]))
@few
def test_fitting_never_loses(seed: int, prior: float):
    """With gaps too, each iteration raises what it maximises; what a fit reports is the model's own log-likelihood."""
    data, _ = TRUE.sample(6, 30, seed=seed)
    data[np.random.default_rng(seed).random(data.shape) < 0.6] = -1
    start = CategoricalHMM.random(3, 3, seed=seed)
    fitted, history = start.fit(data, iterations=12, tolerance=-np.inf, prior=prior)
    assert (np.diff(history) >= -1e-9).all()
    logs = sum(np.log(part).sum() for part in (start.start, start.transition, start.emission))
    assert history[0] == pytest.approx(start.log_likelihood(data).sum() + prior * logs, abs=1e-9)
    for row in (fitted.start[None], fitted.transition, fitted.emission):
        np.testing.assert_allclose(row.sum(axis=1), 1.0)


def test_fitting_stops_when_little_is_gained():
    """The tolerance ends a fit as it ends hmmlearn's: once the last iteration raised the objective by less."""
    data, _ = TRUE.sample(10, 50, seed=1)
    _, history = CategoricalHMM.random(2, 3, seed=1).fit(data, iterations=500, tolerance=0.01)
    gains = np.diff(history)
    assert gains[-1] < 0.01
    assert (gains[:-1] >= 0.01).all()


def test_unvisited_states_and_missing_data_keep_their_rows():
    """Nothing seen, nothing learned; a state that is never visited keeps its rows; smoothing lifts zeros."""
    model = CategoricalHMM([1.0, 0.0], [[1.0, 0.0], [0.3, 0.7]], [[0.5, 0.5], [0.2, 0.8]])
    nothing, _ = model.fit(np.full((2, 4), -1), iterations=3)
    assert nothing == model
    fitted, _ = model.fit([[0, 0, 0, 1]], iterations=3)
    np.testing.assert_allclose(fitted.emission, [[0.75, 0.25], [0.2, 0.8]])
    np.testing.assert_allclose(fitted.transition, model.transition)
    smooth, _ = model.fit([[0, 0, 0, 1]], iterations=3, prior=1.0)
    assert (smooth.transition > 0).all()
    assert (smooth.start > 0).all()


def test_gaps_are_bridged():
    """Forecasts by hand: a belief of 0.9, moved over a gap of two rounds, is A^2 applied to it."""
    seen = TWO_REGIMES.start * TWO_REGIMES.emission[:, 1]
    seen /= seen.sum()
    for steps in (1, 2, 5):
        ahead = seen @ np.linalg.matrix_power(TWO_REGIMES.transition, steps)
        expected = ahead @ TWO_REGIMES.emission
        np.testing.assert_allclose(TWO_REGIMES.forecast([[1]], steps)[0], expected, atol=1e-12)
        gap = [[1] + [-1] * (steps - 1)]
        np.testing.assert_allclose(TWO_REGIMES.forecast(gap)[0], expected, atol=1e-12)
    np.testing.assert_allclose(TWO_REGIMES.forecast([[-1, -1]]).sum(), 1.0)


@given(seeds, st.integers(1, 4))
@few
def test_forecasts_look_at_the_past_alone(seed: int, steps: int):
    """Column t of the forecasts is the forecast from the columns up to t - steps, whatever comes after."""
    data, _ = TWO_REGIMES.sample(3, 7, seed=seed)
    data[np.random.default_rng(seed).random(data.shape) < 0.5] = -1
    forecasts = TWO_REGIMES.forecasts(data, steps)
    for t in range(7):
        if t < steps:
            state = TWO_REGIMES.start @ np.linalg.matrix_power(TWO_REGIMES.transition, t)
            expected = np.tile(state @ TWO_REGIMES.emission, (3, 1))
        else:
            expected = TWO_REGIMES.forecast(data[:, : t - steps + 1], steps)
        np.testing.assert_allclose(forecasts[:, t], expected, atol=1e-12)


def test_forecasts_on_gapped_data_are_calibrated_and_near_the_oracle():
    """Two regimes seen 35 % of the time: a fitted model is nearly as good as the true one, both beat the base rate.

    What it calls 20 % happens in 20 % of the cases.
    """
    full, _ = TWO_REGIMES.sample(60, 400, seed=1)
    seen = np.where(np.random.default_rng(2).random(full.shape) < 0.35, full, -1)
    train, test = seen[:30], seen[30:]
    start = CategoricalHMM([0.5, 0.5], [[0.8, 0.2], [0.2, 0.8]], [[0.8, 0.2], [0.4, 0.6]])
    fitted, _ = start.fit(train, iterations=200, prior=1.0)
    known = test >= 0

    def loss(probability: np.ndarray) -> float:
        happened = test[known] == 1
        return float(-np.log(np.where(happened, probability, 1 - probability)).mean())

    ours = fitted.forecasts(test)[..., 1][known]
    oracle = loss(TWO_REGIMES.forecasts(test)[..., 1][known])
    base = loss(np.full(known.sum(), (train == 1).sum() / (train >= 0).sum()))
    assert oracle - 0.001 < loss(ours) < oracle + 0.005
    assert loss(ours) < base - 0.04
    order = np.argsort(ours)
    for part in np.array_split(order, 5):
        happened = (test[known] == 1)[part]
        spread = 3.5 * np.sqrt(happened.mean() * (1 - happened.mean()) / len(part))
        assert abs(ours[part].mean() - happened.mean()) < spread


def test_samples_follow_the_model():
    """Shares of first states, moves and symbols of many samples are those of the model; the seed repeats them."""
    symbols, states = TRUE.sample(2000, 20, seed=3)
    again, _ = TRUE.sample(2000, 20, seed=3)
    np.testing.assert_array_equal(symbols, again)
    np.testing.assert_allclose(np.bincount(states[:, 0]) / 2000, TRUE.start, atol=0.04)
    for k in range(2):
        after = np.bincount(states[:, 1:][states[:, :-1] == k]) / (states[:, :-1] == k).sum()
        np.testing.assert_allclose(after, TRUE.transition[k], atol=0.01)
        np.testing.assert_allclose(
            np.bincount(symbols[states == k], minlength=3) / (states == k).sum(), TRUE.emission[k], atol=0.015
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CategoricalHMM([0.5, 0.6], np.eye(2), np.eye(2)), "start sums to 1.1"),
        (lambda: CategoricalHMM([0.5, 0.5], [[1, 0], [0.5, 0.4]], np.eye(2)), "transition[1] sums to 0.9"),
        (lambda: CategoricalHMM([0.5, 0.5], np.eye(2), [[1.5, -0.5], [0, 1]]), "emission[0, 1] = -0.5: expected a non-neg"),
        (lambda: CategoricalHMM([0.5, 0.5], np.eye(3), np.eye(2)), "transition: expected shape [2, 2], got [3, 3]"),
        (lambda: CategoricalHMM([], np.eye(0), np.eye(0)), "start: expected at least one state"),
        (lambda: TRUE.log_likelihood([[0, 3]]), "sequences[0, 1] = 3: expected an integer from -1 to 2"),
        (lambda: TRUE.log_likelihood([0, 1]), "sequences: expected shape [any, any], got [2]"),
        (lambda: TRUE.forecast([[0]], 0), "steps = 0: expected an integer >= 1"),
        (lambda: TRUE.fit([[0]], prior=-1.0), "prior = -1.0: expected a non-negative number"),
        (lambda: TRUE.fit([[0]], iterations=-1), "iterations = -1: expected an integer >= 0"),
        (lambda: CategoricalHMM([1.0], [[1.0]], [[1.0, 0.0]]).fit([[0], [1]]), "sequences[1]: impossible under the model"),
        (lambda: CategoricalHMM([1.0], [[1.0]], [[1.0, 0.0]]).filter([[1]]), "sequences[0]: impossible under the model"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make: Any, message: str):
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        make()


def test_equality_and_impossible_log_likelihood():
    assert CategoricalHMM.random(2, 3, seed=1) == CategoricalHMM.random(2, 3, seed=1)
    assert CategoricalHMM.random(2, 3, seed=1) != CategoricalHMM.random(2, 3, seed=2)
    assert TRUE != 1
    assert CategoricalHMM([1.0], [[1.0]], [[1.0, 0.0]]).log_likelihood([[1], [0]]).tolist() == [-np.inf, 0.0]


# --- nothing is too small -----------------------------------------------------------------------------------------


def log_sum(terms: np.ndarray, axis: int) -> np.ndarray:
    most = terms.max(axis=axis, keepdims=True)
    most = np.where(np.isfinite(most), most, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(terms - most).sum(axis=axis)) + most.squeeze(axis)


def oracle(model: CategoricalHMM, row: list[int]) -> tuple[float, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Return log-likelihood, logarithms of filtered beliefs [T, K], posteriors [T, K] and expected counts of a sequence.

    Forward and backward recursion in logarithms throughout; what follows the last symbol counts nothing.
    """
    with np.errstate(divide="ignore"):
        start, transition, emission = (np.log(part) for part in (model.start, model.transition, model.emission))
    length, states = len(row), model.num_states
    seen = np.array([emission[:, o] if o >= 0 else np.zeros(states) for o in row])
    alpha, beta = np.empty((length, states)), np.zeros((length, states))
    for t in range(length):
        alpha[t] = (start if t == 0 else log_sum(alpha[t - 1][:, None] + transition, 0)) + seen[t]
    for t in range(length - 2, -1, -1):
        beta[t] = log_sum(transition + seen[t + 1] + beta[t + 1], 1)
    value = float(log_sum(alpha[-1], 0))
    beliefs = alpha - log_sum(alpha, 1)[:, None]
    posterior = np.exp(alpha + beta - value)
    symbols, moves = np.zeros((model.num_symbols, states)), np.zeros((states, states))
    end = max((t for t in range(length) if row[t] >= 0), default=-1)
    for t in range(end + 1):
        if row[t] >= 0:
            symbols[row[t]] += posterior[t]
        if t:
            moves += np.exp(alpha[t - 1][:, None] + transition + seen[t] + beta[t] - value)
    return value, beliefs, posterior, (posterior[0] if end >= 0 else np.zeros(states), moves, symbols)


def check_against_logs(model: CategoricalHMM, rows: list[list[int]]) -> None:
    """Check log-likelihoods, beliefs, forecasts and one step of Baum-Welch against the oracle."""
    expected = [oracle(model, row) for row in rows]
    np.testing.assert_allclose(model.log_likelihood(rows), [value for value, *_ in expected], rtol=1e-12, atol=1e-12)
    beliefs = np.exp([logs for _, logs, *_ in expected])
    np.testing.assert_allclose(model.filter(rows), beliefs, rtol=1e-9, atol=1e-300)
    ahead = beliefs[:, -1] @ model.transition @ model.emission
    np.testing.assert_allclose(model.forecast(rows), ahead, rtol=1e-9, atol=1e-300)
    counts = [sum(parts) for parts in zip(*(counts for *_, counts in expected), strict=True)]
    fitted, history = model.fit(rows, iterations=1)
    assert history[0] == pytest.approx(sum(value for value, *_ in expected), rel=1e-12)
    for found, count, old in (
        (fitted.start, counts[0], model.start), (fitted.transition, counts[1], model.transition),
        (fitted.emission, counts[2].T, model.emission),
    ):  # fmt: skip
        total = count.sum(axis=-1, keepdims=True)
        shares = np.where(total > 1e-280, count / np.where(total > 0, total, 1.0), old)
        np.testing.assert_allclose(found, shares, rtol=1e-8, atol=1e-290)


def two_sided(length: int) -> list[list[int]]:
    """Return a sequence whose first half speaks for one state and whose second half speaks for the other."""
    return [[0] * length + [1] * length + [-1] * length, [0] * length + [1] * (2 * length)]


EYE = np.eye(2)
EXTREMES = {
    "a symbol of subnormal probability": (CategoricalHMM([1.0], [[1.0]], [[1e-310, 1.0]]), [[0, 1]]),
    "a product that underflows": (CategoricalHMM([1e-200, 1.0], EYE, [[1e-200, 1.0], [0.0, 1.0]]), [[0], [1]]),
    "the least of all numbers": (CategoricalHMM([5e-324, 1.0], EYE, [[1.0, 0.0], [0.0, 1.0]]), [[0, 0, 0]]),
    "a state lost for long wins": (CategoricalHMM([0.5, 0.5], EYE, [[0.9, 0.1], [0.1, 0.9]]), two_sided(600)),
    "moves of tiny probability": (
        CategoricalHMM([1.0, 0.0], [[1.0, 1e-200], [1e-200, 1.0]], [[1.0, 1e-200], [1e-200, 1.0]]), two_sided(5)
    ),
    "a state that nothing leads to explains the rest": (
        CategoricalHMM([1.0, 0.0], EYE, [[0.5, 0.5], [1e-20, 1.0]]), [[0] * 5 + [1] * 3000]
    ),
    "gaps": (CategoricalHMM([0.5, 0.5], EYE, [[0.99, 0.01], [1e-300, 1.0]]), [[0, -1, 0, -1, 1, 1, -1, -1]] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_probabilities(name: str):
    """However small probabilities, beliefs and their products get: all results are those of a computation in logarithms."""
    check_against_logs(*EXTREMES[name])


@given(seeds)
@settings(max_examples=60)
def test_any_probabilities(seed: int):
    """Random models with zeros and probabilities of any size on possible sequences with gaps: the same."""
    rng = np.random.default_rng(seed)
    states, symbols, length = int(rng.integers(1, 4)), int(rng.integers(2, 4)), int(rng.integers(1, 40))
    spread = rng.choice([1.0, 30.0, 320.0])

    def rows(count: int, width: int) -> np.ndarray:
        logs = np.where(rng.random((count, width)) < 0.2, -np.inf, -spread * rng.random((count, width)))
        logs[np.arange(count), rng.integers(0, width, count)] = 0.0
        parts = 10.0**logs
        return parts / parts.sum(axis=1, keepdims=True)

    model = CategoricalHMM(rows(1, states)[0], rows(states, states), rows(states, symbols))
    data = []
    for _ in range(3):  # any state and symbol that is possible, however unlikely
        row, state = [], int(rng.choice(np.flatnonzero(model.start)))
        for _ in range(length):
            row.append(int(rng.choice(np.flatnonzero(model.emission[state]))) if rng.random() < 0.8 else -1)
            state = int(rng.choice(np.flatnonzero(model.transition[state])))
        data.append(row)
    check_against_logs(model, data)


def test_extreme_probabilities_are_hmmlearns():
    """On complete data the log-likelihoods are those of hmmlearn in logarithms."""
    for model, rows in EXTREMES.values():
        if min(map(min, rows)) < 0:
            continue
        with np.errstate(divide="ignore"):
            reference, _, _ = theirs(model, rows, 0)
            expected = [reference.score(np.array(row)[:, None]) for row in rows]
        np.testing.assert_allclose(model.log_likelihood(rows), expected, rtol=1e-10)


@pytest.mark.parametrize("name", EXTREMES)
def test_long_fits_without_a_prior_stay_finite(name: str):
    """Parameters that fall to zero, and beliefs that do: the objective is finite, never falls, and is the model's own."""
    model, rows = EXTREMES[name]
    fitted, history = model.fit(rows, iterations=40, tolerance=-np.inf)
    assert np.isfinite(history).all()
    assert (np.diff(history) >= -1e-9 * np.abs(history[1:])).all()
    assert fitted.log_likelihood(rows).sum() >= history[-1] - 1e-9 * abs(history[-1])


def test_moves_that_vanish_are_hmmlearns():
    """States that hold for ever drive the moves between them to 0 in few iterations: hmmlearn's parameters still."""
    data, _ = CategoricalHMM([0.5, 0.5], EYE, [[0.9, 0.1], [0.1, 0.9]]).sample(8, 60, seed=1)
    start = CategoricalHMM.random(2, 2, seed=1)
    fitted, _ = start.fit(data, iterations=60, tolerance=-np.inf)
    assert 0.0 < fitted.transition.min() < 1e-60
    reference, flat, lengths = theirs(start, data, 60)
    np.testing.assert_allclose(fitted.transition, reference.transmat_, atol=1e-12)
    np.testing.assert_allclose(fitted.emission, reference.emissionprob_, atol=1e-8)
    assert fitted.log_likelihood(data).sum() == pytest.approx(reference.score(flat, lengths), rel=1e-10)
