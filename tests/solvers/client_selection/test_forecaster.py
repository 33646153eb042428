"""`ConflictForecaster`: beliefs of all pairs at once, each server by itself; and what learners see of them."""

import re
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.solvers.client_selection.features import (
    FEATURES,
    failure_rate,
    local_features,
    top_picks,
    view_features,
)
from edgeopt.solvers.client_selection.forecaster import START, ConflictForecaster
from edgeopt.solvers.client_selection.hmm import CategoricalHMM

COVERAGE = np.array([[True, True, True, False], [False, True, True, True]])
TRUE = CategoricalHMM([0.67, 0.33], [[0.95, 0.05], [0.1, 0.9]], [[0.9, 0.1], [0.2, 0.8]])
OTHER = CategoricalHMM([0.5, 0.5], [[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.1, 0.9]])


def outcomes(rounds: int, episodes: int = 2, share: float = 0.4, seed: int = 0) -> np.ndarray:
    """Return outcomes int8 [T, E, S, C] of the true model, seen with some probability, for covered pairs."""
    full, _ = TRUE.sample(episodes * COVERAGE.size, rounds, seed=seed)
    seen = np.where(np.random.default_rng(seed).random(full.shape) < share, full, -1)
    data = seen.T.reshape(rounds, episodes, *COVERAGE.shape).astype(np.int8)
    return np.where(COVERAGE, data, -1).astype(np.int8)


def test_forecasts_are_those_of_each_servers_model():
    """With given models, the probabilities are `CategoricalHMM.forecast` of each pair's own history, 0 elsewhere."""
    data = outcomes(12)
    forecaster = ConflictForecaster(COVERAGE, 2, models=[TRUE, OTHER], refit_every=None)
    for t, seen in enumerate(data):
        for e, s, c in np.ndindex(*seen.shape):
            model = (TRUE, OTHER)[s]
            history = data[:t, e, s, c][None]
            expected = model.forecast(history)[0, 1] if t else float(model.start @ model.emission[:, 1])
            assert forecaster.probability[e, s, c] == pytest.approx(expected if COVERAGE[s, c] else 0.0, abs=1e-12)
        forecaster.update(seen)
    assert forecaster.models == (TRUE, OTHER)


def test_without_a_model_clients_are_counted():
    """Beta(1, 3) before anything was seen, then its mean updated by the client's own picks and conflicts."""
    forecaster = ConflictForecaster(COVERAGE, refit_every=None)
    np.testing.assert_array_equal(forecaster.probability[0], np.where(COVERAGE, 0.25, 0.0))
    for outcome in (1, 1, 0):
        forecaster.update([[[outcome, -1, -1, -1], [-1, -1, -1, -1]]])
    assert forecaster.probability[0, 0].tolist() == [3 / 7, 0.25, 0.25, 0.0]
    assert forecaster.models == (None, None)


def test_fits_need_enough_picks_and_use_a_servers_own():
    """Server 0 has seen enough for a fit, server 1 has not; the fit is Baum-Welch on server 0's window, no more."""
    data = outcomes(40, episodes=3)
    data[:, :, 1] = -1
    forecaster = ConflictForecaster(COVERAGE, 3, refit_every=20, window=25, least=30, iterations=4, prior=0.5)
    for t, seen in enumerate(data):
        forecaster.update(seen)
        if t == 18:
            assert forecaster.models == (None, None)
    window = [np.moveaxis(data[first:last, :, 0, :3], 0, -1).reshape(9, -1) for first, last in ((0, 20), (15, 40))]
    expected, _ = START.fit(window[0], iterations=4, prior=0.5)
    expected, _ = expected.fit(window[1], iterations=4, prior=0.5)
    first, second = forecaster.models
    assert second is None
    assert first is not None
    for name in ("start", "transition", "emission"):
        np.testing.assert_allclose(getattr(first, name), getattr(expected, name), atol=1e-12)
    ahead = expected.forecast(window[1])[:, 1].reshape(3, 3)
    np.testing.assert_allclose(forecaster.probability[:, 0, :3], ahead, atol=1e-12)


def test_what_one_server_sees_changes_nothing_for_another():
    """Different outcomes of server 1 leave all forecasts and the model of server 0 as they are, through fits as well."""
    data = outcomes(60)
    other = data.copy()
    other[:, :, 1] = np.where(COVERAGE[1], 1 - np.abs(outcomes(60, share=0.9, seed=9)[:, :, 1]), -1)
    forecasters = [ConflictForecaster(COVERAGE, 2, refit_every=10, least=10) for _ in range(2)]
    apart = False
    for seen in zip(data, other, strict=True):
        for forecaster, outcome in zip(forecasters, seen, strict=True):
            forecaster.update(outcome)
        np.testing.assert_array_equal(*(forecaster.probability[:, 0] for forecaster in forecasters))
        apart |= (forecasters[0].probability[:, 1] != forecasters[1].probability[:, 1]).any()
    assert apart
    assert forecasters[0].models[0] == forecasters[1].models[0]
    assert forecasters[0].models[1] != forecasters[1].models[1]


def test_a_server_by_itself_forecasts_the_same():
    """A forecaster for one server alone, as a deployed server has it, agrees with the one for all."""
    data = outcomes(30, episodes=1)
    together = ConflictForecaster(COVERAGE, refit_every=10, least=10)
    alone = ConflictForecaster(np.ones((1, 3), bool), refit_every=10, least=10)
    for seen in data:
        together.update(seen)
        alone.update(seen[:, 1:, 1:])
        np.testing.assert_allclose(together.probability[0, 1, 1:], alone.probability[0, 0], atol=1e-12)


def test_online_forecasts_beat_counting():
    """Fitted as it goes, the forecaster predicts the outcomes of two regimes better than the rate of each client."""
    data = outcomes(400, episodes=6, seed=3)
    losses = []
    for refit_every in (25, None):
        forecaster = ConflictForecaster(COVERAGE, 6, refit_every=refit_every)
        total = count = 0.0
        for t, seen in enumerate(data):
            if t >= 100:
                p = forecaster.probability[seen >= 0]
                total -= np.log(np.where(seen[seen >= 0] == 1, p, 1 - p)).sum()
                count += p.size
            forecaster.update(seen)
        losses.append(total / count)
    assert losses[0] < losses[1] - 0.05


def test_a_reset_forgets_outcomes_but_keeps_models():
    data = outcomes(50)
    forecaster = ConflictForecaster(COVERAGE, 2, refit_every=25)
    for seen in data:
        forecaster.update(seen)
    kept = forecaster.models
    forecaster.reset(1)
    assert forecaster.models == kept
    assert forecaster.probability.shape == (1, 2, 4)
    for s, model in enumerate(kept):
        assert forecaster.probability[0, s, 1] == pytest.approx(float(model.start @ model.emission[:, 1]))
    forecaster.refit()  # nothing to fit to
    assert forecaster.models == kept
    forecaster.reset(1, models=[None, None])
    np.testing.assert_array_equal(forecaster.probability[0], np.where(COVERAGE, 0.25, 0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConflictForecaster(COVERAGE, models=[TRUE]), "models: expected one per server (2), got 1"),
        (
            lambda: ConflictForecaster(COVERAGE, models=[TRUE, CategoricalHMM.random(2, 3)]),
            "models[1]: 3 symbols: expected 2",
        ),
        (
            lambda: ConflictForecaster(COVERAGE, models=[TRUE, CategoricalHMM.random(3, 2)]),
            "models: expected the same number of states",
        ),
        (
            lambda: ConflictForecaster(COVERAGE, models=[None, CategoricalHMM.random(3, 2)]),
            "models: expected the same number of states",
        ),
        (lambda: ConflictForecaster(COVERAGE, refit_every=0), "refit_every = 0: expected an integer >= 1"),
        (lambda: ConflictForecaster(COVERAGE, window=0), "window = 0: expected an integer >= 1"),
        (lambda: ConflictForecaster(COVERAGE, prior=0.0), "prior = 0.0: expected a positive number"),
        (lambda: ConflictForecaster(COVERAGE, 0), "num_episodes = 0: expected an integer >= 1"),
        (lambda: ConflictForecaster(COVERAGE).update(np.zeros((1, 2, 3))), "outcome: expected shape [1, 2, 4]"),
        (lambda: ConflictForecaster(COVERAGE).update(np.full((1, 2, 4), 2)), "outcome[0, 0, 0] = 2: expected an integer"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make: Any, message: str):
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        make()


# --- features ----------------------------------------------------------------------------------------------------


def test_features_are_local_and_between_zero_and_one():
    """Each column is what it says, uncovered clients are all zero, and nothing leaves [0, 1]."""
    problem = ClientSelection.random(num_servers=3, num_clients=15, picks=2, rounds=20, seed=2)
    environment = SelectionEnvironment(problem, [1, 2])
    forecaster = ConflictForecaster(problem.coverage, 2)
    rng = np.random.default_rng(0)
    while not environment.done:
        features = local_features(environment, forecaster.probability)
        assert features.dtype == np.float32
        assert features.min() >= 0
        assert features.max() <= 1
        assert not features[:, ~problem.coverage].any()
        here = dict(zip(FEATURES, np.moveaxis(features[:, problem.coverage], -1, 0), strict=True))
        picked, delivered = (memory[:, problem.coverage] for memory in (environment.picked, environment.delivered))
        expected = {
            "conflict forecast": forecaster.probability[:, problem.coverage],
            "failure rate": failure_rate(picked, delivered),
            "latency": np.minimum(environment.latency_s[:, problem.coverage] / problem.timeout_s, 1),
            "fairness": environment.bonus[:, problem.coverage],
            "share of rounds picked": picked / max(1, environment.now),
        }
        assert here.keys() == expected.keys()
        for name, column in expected.items():
            np.testing.assert_allclose(here[name], column, rtol=1e-6)
        for e, s in np.ndindex(2, 3):
            forecast = forecaster.probability[e, s, problem.coverage[s]]
            own = view_features(environment.view(s, e), problem.timeout_s, forecast)
            np.testing.assert_allclose(own, features[e, s, problem.coverage[s]], rtol=1e-6)
        assert not local_features(environment)[..., 0].any()
        result = environment.step(top_picks(rng.random(environment.last.shape), problem.coverage, problem.picks))
        forecaster.update(result.outcome)


def test_top_picks_are_the_highest_scores():
    """Uneven numbers of picks are filled up with -1; uncovered clients are never picked, whatever their score."""
    score = np.array([[[0.1, 0.5, 0.3, 9.0], [9.0, 0.1, 0.1, 0.1]]])
    assert top_picks(score, COVERAGE, np.array([2, 3])).tolist() == [[[1, 2, -1], [1, 2, 3]]]
    assert top_picks(score, COVERAGE, np.array([1, 1])).tolist() == [[[1], [1]]]
