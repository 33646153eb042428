"""The base at a server: what is sent, what is made of it, and what a token takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
import edgeopt
from edgeopt.errors import InvalidProblemError
from edgeopt.inference import received, steering_bytes, steering_latency, top_log_probabilities

V = 40


@given(st.integers(0, 10**6), st.integers(1, V + 5), st.floats(0.1, 8))
def test_the_likeliest_arrive_and_the_rest_is_shared(seed: int, count: int, scale: float):
    """To the precision of a half; the sum is one, and all of a vocabulary is all there is."""
    scores = scale * torch.randn(3, V, generator=torch.Generator().manual_seed(seed))
    tokens, values = top_log_probabilities(scores, count)
    kept = min(count, V)
    assert tokens.shape == (3, kept)
    assert values.shape == (3, kept + 1)
    assert values.dtype == torch.float16
    found = received(tokens, values, V)
    for row in range(3):
        p = np.exp(scores[row].double().numpy() - np.logaddexp.reduce(scores[row].double().numpy()))
        order = np.argsort(-p, kind="stable")
        expected = p.copy()
        if kept < V:
            expected[order[kept:]] = p[order[kept:]].mean()
        assert found[row].exp().numpy() == pytest.approx(expected, rel=0.02, abs=1e-6)
        assert float(found[row].exp().sum()) == pytest.approx(1.0, abs=5e-3)


def test_bytes_are_those_of_ids_and_halves():
    """Whole bytes for an id, two for a log-probability and for the rest."""
    assert steering_bytes(8, 256) == 8 * (1 + 2) + 2
    assert steering_bytes(8, 257) == 8 * (2 + 2) + 2
    assert steering_bytes(8, 65537) == 8 * (3 + 2) + 2
    assert steering_bytes(500, 256) == 256 * 3 + 2
    with pytest.raises(InvalidProblemError, match="count = 0: expected an integer >= 1"):
        steering_bytes(0, 256)


def test_latency_is_the_slower_of_the_two_passes():
    """By hand: one server, a device beside it, rates from the network."""
    network = edgeopt.EdgeNetwork.random(1, 3, seed=0, fading=False)
    profile = edgeopt.model_profile("gpt2")
    found = steering_latency(profile, network, tokens=128, count=32, vocabulary=50257)
    work = profile.total_forward_flops / 128
    up, down = network.uplink_rate_bps[:, 0], network.downlink_rate_bps[:, 0]
    own = work / network.device_flops
    there = work / network.server_flops[0]
    assert found.device == pytest.approx(2 * own)
    assert found.remote == pytest.approx(np.maximum(own, 32 / up + there + 8 * 130 / down))
    assert found.server == pytest.approx(32 / up + 2 * there + 32 / down)
    nowhere = steering_latency(
        profile, network.replace(coverage=np.zeros((3, 1), bool)), tokens=128, count=32, vocabulary=50257
    )
    assert (nowhere.remote == math.inf).all()
    assert (nowhere.device == found.device).all()
