"""States as flat arrays and back: every name, type and bit, in the order of the names."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import InvalidFileError
from edgeopt.fields import Fields
from edgeopt.training.messages import State
from edgeopt.training.states import flatten, unflatten

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
NAMES = st.text(max_size=6)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(TYPES))
    size = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
    highest = 1 if dtype == torch.bool else 255  # any bits, those of nan among them
    raw = draw(st.lists(st.integers(0, highest), min_size=size, max_size=size))
    return torch.tensor(raw, dtype=torch.uint8).view(dtype).reshape(shape)


STATES = st.dictionaries(
    NAMES, st.recursive(tensors(), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)
)


def leaves(state: State) -> list[tuple[str, object]]:
    """Return names and bits in their order."""
    found: list[tuple[str, object]] = []
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
            found.append((name, (value.dtype, value.shape, bits.numpy().tobytes())))
        else:
            found.append((name, leaves(value)))
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(STATES)
def test_a_state_comes_back(state: State):
    """Whatever the names are, with slashes, per cents and none; the tree may go through JSON, the arrays in any order."""
    arrays, tree = flatten(state)
    shuffled = {name: arrays[name].copy() for name in sorted(arrays, reverse=True)}
    assert leaves(unflatten(shuffled, Fields(json.loads(json.dumps(tree))))) == leaves(state)


def test_names_do_not_run_into_each_other():
    """A name with a slash is not a folder with a name in it."""
    state: State = {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}, "a%2Fb": torch.full((1,), 2.0)}
    arrays, _ = flatten(state)
    assert len(arrays) == 3


@pytest.mark.parametrize("damage", ["missing", "type"])
def test_arrays_that_do_not_fit_the_tree(damage: str):
    """One that is not there, or of another type, is an error that names it."""
    arrays, tree = flatten({"w": {"x": torch.ones(2)}})
    arrays = {} if damage == "missing" else {"w/x": np.ones(2)}
    with pytest.raises(InvalidFileError, match="w/x"):
        unflatten(arrays, Fields(tree))
