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
