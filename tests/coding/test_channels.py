"""Channels: ratios that are true, capacities by another formula, and what a network's links say."""

import numpy as np
import pytest
from scipy.integrate import quad

pytest.importorskip("torch")
from edgeopt import EdgeNetwork
from edgeopt.coding import Awgn, RayleighBlock, channel_of, link_snr_db
from edgeopt.errors import InvalidProblemError


@pytest.mark.parametrize("channel", [Awgn(1.0), RayleighBlock(3.0, block=5)])
def test_ratios_are_true(channel: Awgn | RayleighBlock):
    """Where the ratio is near L, bit 0 was sent with probability 1 / (1 + exp(-L))."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, 200_000)
    ratio = channel.receive(bits, rng)
    for low in (-3.0, -1.0, 0.5, 2.0):
        near = (ratio > low) & (ratio < low + 0.5)
        expected = (1 / (1 + np.exp(-ratio[near]))).mean()
        assert (bits[near] == 0).mean() == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(near.sum()))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 5.0, 12.0])
def test_capacity(snr_db: float):
    """The integral over the density of what is received, done by scipy; fading is a mean of it over gains."""

    def capacity(snr: float) -> float:
        sigma = snr**-0.5

        def part(r: float) -> float:
            return (
                np.exp(-((r - 1) ** 2) / (2 * sigma**2))
                / (sigma * np.sqrt(2 * np.pi))
                * np.logaddexp(0, -2 * r / sigma**2)
            )

        return 1 - quad(part, 1 - 12 * sigma, 1 + 12 * sigma, limit=200)[0] / np.log(2)

    snr = 10 ** (snr_db / 10)
    assert Awgn(snr_db).capacity == pytest.approx(capacity(snr), abs=1e-5)
    over_gains = quad(lambda g: np.exp(-g) * capacity(g * snr), 1e-6, 40, limit=100)[0]
    assert RayleighBlock(snr_db).capacity == pytest.approx(over_gains, abs=3e-3)


def test_fading_stays_for_a_block():
    """Without noise to speak of, ratios within a block are alike, and from block to block they differ."""
    ratio = RayleighBlock(60.0, block=4).receive([0] * 10, np.random.default_rng(0))
    blocks = [ratio[:4], ratio[4:8], ratio[8:]]
    assert all(np.ptp(block) < 0.05 * block.mean() for block in blocks)
    assert len({round(block.mean(), -4) for block in blocks}) == 3


def test_links_of_a_network():
    """P h / (N0 W), -inf outside coverage; half the bandwidth is 3 dB more."""
    network = EdgeNetwork.random(2, 4, seed=0).replace(coverage=[[True, False], *[[True, True]] * 3])
    snr = link_snr_db(network, 0, 1e6)
    expected = network.server_power_w[0] * network.channel_gain[:, 0] / (network.noise_w_per_hz * 1e6)
    np.testing.assert_allclose(10 ** (snr / 10), expected)
    np.testing.assert_allclose(link_snr_db(network, 0, 5e5) - snr, 10 * np.log10(2))
    assert link_snr_db(network, 1)[0] == -np.inf


def test_what_is_refused():
    """NaN, unknown names, bits that are none."""
    with pytest.raises(InvalidProblemError, match=r"snr_db = nan: expected a finite number \(dB\)"):
        Awgn(float("nan"))
    with pytest.raises(InvalidProblemError, match="block = 0"):
        RayleighBlock(1.0, 0)
    with pytest.raises(InvalidProblemError, match="expected one of awgn, rayleigh"):
        channel_of("fibre", 3)
    with pytest.raises(InvalidProblemError, match=r"bits\[1\] = 2"):
        Awgn(1).receive([0, 2], np.random.default_rng(0))
