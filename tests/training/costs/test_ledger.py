"""The byte ledger: what is charged is what the tensors take."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.training import Ledger, Message, TrainingError, reply
from edgeopt.training.costs.ledger import DIRECTIONS
from edgeopt.training.costs.timing import TIMED
from edgeopt.training.messages import CATEGORIES, Tensors, to_device

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(DIRECTIONS),
            st.sampled_from(CATEGORIES),
            st.sampled_from(DTYPES),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=12,
    )
)
def test_bytes_are_tensor_sizes(sent: list[tuple[int, str, str, torch.dtype, list[int]]]):
    """Every message counts elements times size, for its client, direction and category, and for nothing else."""
    ledger, expected = Ledger(5), np.zeros((5, 2, len(CATEGORIES)), np.int64)
    for client, direction, category, dtype, shape in sent:
        tensor = torch.zeros(shape, dtype=dtype)
        size = tensor.numel() * tensor.element_size()
        charged = ledger.charge([client], direction, [Message("x", {category: {"a": tensor, "b": tensor}})])
        assert charged.sum() == charged[0, CATEGORIES.index(category)] == 2 * size
        expected[client, DIRECTIONS.index(direction), CATEGORIES.index(category)] += 2 * size
    np.testing.assert_array_equal(ledger.bytes, expected)
    assert ledger.total("up") == expected[:, 0].sum()
    assert ledger.by_category() == {
        f"{category}_{direction}": expected[:, d, c].sum()
        for c, category in enumerate(CATEGORIES)
        for d, direction in enumerate(DIRECTIONS)
    }


def test_shared_tensors_and_repeated_clients():
    """A model that goes to many counts for each of them; a client with two entries pays twice; None costs nothing."""
    weights: Tensors = {"w": torch.zeros(10)}
    ledger = Ledger(3)
    ledger.charge([0, 2, 2], "down", [Message("train", {"weights": weights})] * 3)
    ledger.charge([0, 1], "up", [None, reply(scalars={"loss": torch.tensor(1.0)})])
    assert ledger.bytes[:, 1, 0].tolist() == [40, 0, 80]
    assert ledger.bytes[:, 0].sum(axis=1).tolist() == [0, 4, 0]


def test_control_values_cost_nothing():
    """Plain values and the description of batches are part of the plan."""
    message = Message("train", {}, {"cut": 3, "name": "long" * 100})
    assert Ledger(1).charge([0], "down", [message]).sum() == 0


def test_unknown_categories_are_refused():
    """An answer has the known categories only: nothing leaves uncounted."""
    with pytest.raises(TrainingError, match="reply: category 'secrets': expected one of weights, activations"):
        reply(secrets={"x": torch.ones(1)})


@pytest.mark.parametrize(("mask", "numbers"), [
    ([True, False, True, True], 18), ([[True, False]], 12), ([[True, False]] * 2 + [[True, True]] * 2, 18), ([False] * 4, 0),
])  # fmt: skip
def test_rows_that_do_not_count_are_not_charged(mask: list[Any], numbers: int):
    """Of a tensor [4, 2, 3], rows, columns or both: the entries that the mask leaves, in both directions."""
    sent = reply(weights={"a": torch.zeros(4, 2, 3), "b": torch.zeros(5)}, rows={"a": torch.tensor(mask)})
    ledger = Ledger(1)
    for direction in DIRECTIONS:
        charged = ledger.charge([0, 0], direction, [sent, Message("x", sent.tensors)])
        assert charged.sum(axis=1).tolist() == [4 * (numbers + 5), 4 * (24 + 5)]


def test_statistics_have_a_category_of_their_own():
    """They are counted apart, and take time as weights do."""
    ledger = Ledger(1)
    ledger.charge([0], "up", [reply(statistics={"routing": torch.zeros(8)})])
    assert ledger.by_category()["statistics_up"] == ledger.total("up") == 32
    assert "statistics" in TIMED


def test_messages_read_by_category():
    """A category that is not there is empty; iteration gives those that are; moving keeps the rest."""
    message = Message("x", {"labels": {"y": torch.ones(2)}}, {"a": 1}, None, 5.0)
    assert message["weights"] == {}
    assert list(message) == ["labels"]
    moved = to_device(message, torch.device("meta"))
    assert moved["labels"]["y"].is_meta
    assert (moved.kind, moved.values, moved.flops) == ("x", {"a": 1}, 5.0)
