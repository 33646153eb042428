"""Bits of numbers: Gray code, chances, means, each against a sum that is written out."""

import numpy as np
import pytest
from scipy.stats import norm

torch = pytest.importorskip("torch")
from edgeopt.coding.bit_planes import (
    BITS,
    VALUES,
    bit_ratios,
    cells_of,
    entropies,
    flip_costs,
    log_chances,
    soft_values,
)


def test_gray_code():
    """Every cell has bits of its own, and neighbours differ in one; numbers beyond the ends are held."""
    assert len({tuple(row) for row in BITS.tolist()}) == 16
    assert (BITS[1:] - BITS[:-1]).abs().sum(1).tolist() == [1.0] * 15
    assert VALUES[cells_of(torch.tensor([-20.0, -0.4, 1.6, 20.0]))].tolist() == [-8, 0, 2, 7]


@pytest.mark.parametrize("scale", [0.1, 0.7, 3.0, 8.0])
def test_chances(scale: float):
    """Differences of the distribution function, scaled to sum to 1; bits by summing cells; within ±12."""
    values = VALUES.numpy()
    expected = norm.cdf((values + 0.5) / scale) - norm.cdf((values - 0.5) / scale)
    expected /= expected.sum()
    log_p = log_chances(torch.tensor(np.log(scale)))
    np.testing.assert_allclose(log_p.exp(), expected, atol=2e-7)
    one = expected @ BITS.numpy()
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(bit_ratios(log_p), np.clip(np.log((1 - one) / one), -12, 12), atol=2e-3, rtol=1e-3)


def test_means_and_variances():
    """Over all cells one by one; with all bits certain the number, with nothing heard the prior's."""
    rng = np.random.default_rng(0)
    log_p = log_chances(torch.tensor([0.3], dtype=torch.float64))
    heard = torch.tensor(rng.normal(0, 2, (1, 4)))
    weight = np.exp(log_p[0].numpy())
    for cell in range(16):
        for plane in range(4):
            ratio = heard[0, plane].item()
            weight[cell] *= 1 / (1 + np.exp(ratio if BITS[cell, plane] else -ratio))
    weight /= weight.sum()
    mean = weight @ VALUES.numpy()
    found = soft_values(log_p, heard)
    assert found[0].item() == pytest.approx(mean)
    assert found[1].item() == pytest.approx(weight @ (VALUES.numpy() - mean) ** 2)
    certain = (1 - 2 * BITS.double()) * 60
    means, variances = soft_values(log_p.expand(16, 16), certain)
    np.testing.assert_allclose(means, VALUES, atol=1e-9)
    np.testing.assert_allclose(variances, 0, atol=1e-9)


def test_costs_of_flips():
    """By flipping every bit of every cell."""
    log_p = log_chances(torch.tensor([0.5], dtype=torch.float64))
    rows = [tuple(row) for row in BITS.int().tolist()]
    expected = np.zeros(4)
    for cell, row in enumerate(rows):
        for plane in range(4):
            other = rows.index(tuple(bit ^ (p == plane) for p, bit in enumerate(row)))
            expected[plane] += log_p[0, cell].exp().item() * (cell - other) ** 2
    np.testing.assert_allclose(flip_costs(log_p)[0], expected)


def test_entropies():
    """Of a half 1, of certainty 0, else by the formula."""
    p = np.array([0.5, 0.11, 0.9])
    expected = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(entropies(torch.tensor(np.log((1 - p) / p))), expected)
