"""`TopK` against brute force over all choices of places."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.training import TopK
from tests.training.codecs.crossing import cross, nbytes, tensor


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    values=st.lists(st.lists(st.integers(-4, 4), min_size=7, max_size=7), min_size=1, max_size=4),
    share=st.floats(0.05, 1),
)
def test_top_k_is_the_best_choice_of_k_values(values: list[list[int]], share: float):
    """By brute force over all choices of k places: none leaves less; of equals the first are taken."""
    x = torch.tensor(values, dtype=torch.float32)
    found, sent, _ = cross(TopK(share), x)
    kept = max(1, round(share * 7))
    assert nbytes(sent) == len(values) * kept * (4 + 1)
    for row, places, arrived in zip(x.numpy(), sent["places"].numpy(), found.numpy(), strict=True):
        choices = list(itertools.combinations(range(7), kept))
        left = [float((np.delete(row, choice) ** 2).sum()) for choice in choices]
        assert tuple(places) == choices[int(np.argmin(left))]  # combinations come in the order of places
        assert np.array_equal(arrived, np.where(np.isin(np.arange(7), places), row, 0))


def test_top_k_feedback_loses_nothing():
    """With all that was left out added to the next message, what has arrived and what is left sum to what there was."""
    codec, memory, there, arrived = TopK(0.3, feedback=1.0), {}, torch.zeros(3, 10), torch.zeros(3, 10)
    for seed in range(6):
        x = tensor((3, 10), seed)
        found, _, memory = cross(codec, x, memory=memory)
        there, arrived = there + x, arrived + found
        left = memory["left"]
        assert isinstance(left, torch.Tensor)
        torch.testing.assert_close(arrived + left, there)
    assert float(left.abs().max()) > 0
    found, _, _ = cross(codec, tensor((2, 10)), memory=memory)  # a mini-batch of another size begins anew
    assert torch.equal(found, cross(codec, tensor((2, 10)))[0])


@pytest.mark.parametrize(("size", "each"), [(256, 1), (257, 2), (32768, 2), (32769, 4)])
def test_top_k_places_take_the_smallest_type(size: int, each: int):
    """1, 2 or 4 bytes, and the last place comes back right."""
    x = torch.zeros(1, size)
    x[0, -1] = 3.0
    found, sent, _ = cross(TopK(1e-9), x)
    assert torch.equal(found, x)
    assert nbytes(sent) == 4 + each
