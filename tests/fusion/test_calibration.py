"""Maps of uncertainties and temperatures, against other implementations."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import spearmanr

from edgeopt.errors import EdgeOptError
from edgeopt.fusion import Calibration, calibration_error, reliability, risk_area, risk_coverage, roc_area, spearman
from edgeopt.fusion.calibration import affine_fit, isotonic_fit
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

RNG = np.random.default_rng(0)


def test_nothing_before_it_is_fitted():
    """Maps are the identity, temperatures 1."""
    log_u, scores = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    fresh = Calibration(3)
    torch.testing.assert_close(fresh(log_u), log_u)
    torch.testing.assert_close(fresh.tempered(scores, torch.randn(2, 4)), scores)


@pytest.mark.parametrize("method", ["affine", "isotonic"])
def test_maps_find_the_error(method: str):
    """Where errors are a rising function of log U, and noise, the map is near it; the order of uncertainties stays."""
    log_u = torch.randn(200, 2, 5)
    truth = 2 * log_u + 1 if method == "affine" else log_u.clamp_min(0)
    own = Calibration(2)
    own.fit_maps(log_u, truth + 0.05 * torch.randn_like(log_u), method)
    inner = log_u.abs() < 1.5
    assert (own(log_u) - truth)[inner].abs().mean() < 0.1
    ordered = own(torch.linspace(-5, 5, 100).expand(1, 2, -1)).diff()
    assert ordered.min() >= -1e-5
    with pytest.raises(EdgeOptError, match=r"^method = 'x': expected 'affine' or 'isotonic'$"):
        own.fit_maps(log_u, truth, "x")


def test_least_squares():
    """The affine map is numpy's, unless that falls."""
    x = RNG.normal(size=50)
    y = 0.7 * x + RNG.normal(size=50)
    np.testing.assert_allclose(affine_fit(x, y), np.polyfit(x, y, 1))
    assert affine_fit(x, -x)[0] == 0.05


def test_isotonic_is_that_of_another_package():
    """At the knots, heights are near those of scikit-learn."""
    sklearn = pytest.importorskip("sklearn.isotonic")
    x = np.sort(RNG.normal(size=600))
    y = np.tanh(x) + 0.3 * RNG.normal(size=600)
    at, heights = isotonic_fit(x, y)
    expected = sklearn.IsotonicRegression().fit(x, y).predict(at)
    assert np.abs(heights - expected).mean() < 0.05
    assert (np.diff(at) > 0).all()
    assert (np.diff(heights) >= 0).all()


def test_temperature_is_the_best_one():
    """Another optimiser finds nothing better; overconfident scores are cooled down."""
    labels = torch.from_numpy(RNG.integers(3, size=(100, 4)))
    fused = torch.randn(100, 4)
    scores = 4 * (torch.nn.functional.one_hot(labels, 3) + 1.5 * torch.randn(100, 4, 3))
    own = Calibration(1)
    own.fit_temperature(scores, fused, labels)

    def loss(g: Sequence[float]) -> float:
        z = scores.numpy() / np.exp(np.clip(g[0] * fused.numpy() + g[1], -3, 3))[..., None]
        true = np.take_along_axis(z, labels.numpy()[..., None], -1)[..., 0]
        return float((logsumexp(z, axis=-1) - true).mean() + 1e-3 * g[0] ** 2)

    start = min(product(np.linspace(-1, 1, 9), np.linspace(-1, 3, 9)), key=loss)  # there are valleys where it clips
    best = minimize(loss, start, method="Nelder-Mead").fun
    assert loss(own.temperature.numpy().astype(float)) == pytest.approx(best, abs=1e-4)
    assert own.temperature[1] > 0.3


def test_rank_correlation():
    """It is scipy's, with ties."""
    a, b = RNG.integers(5, size=100), RNG.normal(size=100)
    assert spearman(a, b + a) == pytest.approx(spearmanr(a, b + a).statistic)
    assert np.isnan(spearman(np.ones(3), [1, 2, 3]))


def test_area_under_the_curve():
    """It is scikit-learn's, with ties; there is none without both kinds."""
    metrics = pytest.importorskip("sklearn.metrics")
    score, event = RNG.integers(6, size=200), RNG.random(200) < 0.3
    assert roc_area(score + event, event) == pytest.approx(metrics.roc_auc_score(event, score + event))
    assert np.isnan(roc_area([1, 2], [True, True]))


def test_calibration_error_by_hand():
    """Two bins: 0.05 and 0.15 with one of two right, 0.9 with both right."""
    confidence, right = [0.05, 0.08, 0.9, 0.92], [True, False, True, True]
    table = reliability(confidence, right)
    np.testing.assert_allclose(table[[0, 9]], [[0.065, 0.5, 0.5], [0.91, 1.0, 0.5]])
    assert np.isnan(table[1:9, :2]).all()
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.435 + 0.5 * 0.09)
    assert calibration_error([1.0, 1.0], [True, True]) == 0


def test_risk_against_coverage_by_hand():
    """The surest first: right, wrong, right, right."""
    confidence, right = [0.9, 0.8, 0.7, 0.6], [True, False, True, True]
    np.testing.assert_allclose(risk_coverage(confidence, right, 4), [[0.25, 0], [0.5, 0.5], [0.75, 1 / 3], [1, 0.25]])
    assert risk_area(confidence, right) == pytest.approx(np.mean([0, 0.5, 1 / 3, 0.25]))
