"""Ordered picks without replacement: probabilities by counting, samples by frequency."""

import itertools

import numpy as np
import pytest
import torch

from edgeopt.rl import log_probabilities, sample_top


def test_probabilities_of_ordered_picks():
    """Every ordered pick has the probability of drawing one after another, and all of them sum to one."""
    scores = torch.tensor([0.3, -1.0, 0.8, -torch.inf, 0.1])
    total = 0.0
    for order in itertools.permutations([0, 1, 2, 4], 3):
        weight, expected = scores.double().exp(), 1.0
        for client in order:
            expected *= float(weight[client] / weight.sum())
            weight[client] = 0.0
        found = float(log_probabilities(scores, torch.tensor(order)).sum().exp())
        assert found == pytest.approx(expected, rel=1e-5)
        total += found
    assert total == pytest.approx(1.0, rel=1e-5)


def test_samples_follow_the_distribution():
    """Frequencies of ordered pairs over 40,000 draws are within five standard deviations of their probabilities."""
    draws = 40_000
    scores = torch.tensor([0.5, -0.5, 1.0]).expand(draws, 3)
    noise = torch.from_numpy(np.random.default_rng(0).random((draws, 3))).clamp(1e-9, 1 - 1e-9)
    picks = sample_top(scores, 2, noise)
    for order in itertools.permutations(range(3), 2):
        probability = float(log_probabilities(scores[0], torch.tensor(order)).sum().exp())
        frequency = float((picks == torch.tensor(order)).all(dim=1).double().mean())
        assert abs(frequency - probability) < 5 * np.sqrt(probability * (1 - probability) / draws)
