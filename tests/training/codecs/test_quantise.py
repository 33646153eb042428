"""`Quantise` against a quantiser in NumPy; packing against `numpy.packbits`."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from edgeopt.training import Form, Quantise
from edgeopt.training.codecs.bits import pack, unpack
from edgeopt.training.keys import fold_in, uniform
from tests.training.codecs.crossing import KEY, SHAPES, cross, nbytes, tensor


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantise_is_the_quantiser_in_numpy(shape: tuple[int, ...], bits: int):
    """Level by level, with the same random numbers; never off by more than a step; bits and bytes as stated."""
    x = tensor(shape, dtype=torch.float64)
    found, sent, _ = cross(Quantise(bits), x)
    flat = x.numpy().reshape(shape[0], -1)
    low, high = flat.min(1, keepdims=True), flat.max(1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    above = (flat - low) / np.where(step > 0, step, 1)
    levels = np.clip(np.floor(above + uniform(KEY, flat.shape, torch.float64).numpy()), 0, 2**bits - 1)
    np.testing.assert_allclose(found.numpy().reshape(flat.shape), low + levels * step, rtol=0, atol=1e-12)
    assert (np.abs(found.numpy().reshape(flat.shape) - flat) <= step * (1 + 1e-9)).all()
    assert nbytes(sent) == shape[0] * (math.ceil(flat.shape[1] * bits / 8) + 2 * 8)
    assert sent["levels"].dtype == torch.uint8


@pytest.mark.parametrize("bits", [8, 4])
def test_quantise_is_right_in_the_mean(bits: int):
    """Over 4000 keys the mean is within five standard errors of the truth: a value is one of two levels, a step apart."""
    x = tensor((3, 8))
    draws = vmap(lambda key: cross(Quantise(bits), x, key=key)[0])(fold_in(KEY, torch.arange(4000)))
    step = (x.amax(1, keepdim=True) - x.amin(1, keepdim=True)) / (2**bits - 1)
    assert ((draws.mean(0) - x).abs() <= 5 * step / 2 / math.sqrt(4000) + 1e-6).all()
    assert (draws.std(0) > 0).float().mean() > 0.5  # by chance indeed


def test_quantise_takes_fewer_bits_where_the_budget_is_small():
    """8 bits if they fit, else 4, and 4 where nothing does."""
    form = Form((2, 10), torch.float32)
    bits = [Quantise().order("up", form, budget, {})["bits"] for budget in (36, 35, 26, 0)]
    assert bits == [8, 4, 4, 4]
    assert Quantise(4).order("up", form, math.inf, {})["bits"] == 4


def test_quantise_of_equal_values_is_exact():
    """A sample without spread has steps of zero."""
    x = torch.tensor([[1.7] * 5, [0.0] * 5])
    assert torch.equal(cross(Quantise(4), x)[0], x)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(bits=st.sampled_from([1, 2, 4, 8]), data=st.data())
def test_packing_is_that_of_numpy(bits: int, data: st.DataObject):
    """`pack` gives the bytes of `numpy.packbits`, little end first, and `unpack` the numbers."""
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=20))
    packed = pack(torch.tensor([numbers]), bits)
    every_bit = (np.array(numbers)[:, None] >> np.arange(bits)) & 1
    assert packed[0].tolist() == np.packbits(every_bit.flatten(), bitorder="little").tolist()
    assert unpack(packed, bits, len(numbers))[0].tolist() == numbers
