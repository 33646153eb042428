"""Every registered codec by itself: shapes, bytes, budgets, batches; and each against an oracle of its own."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from edgeopt.errors import InvalidProblemError
from edgeopt.training import CODECS, Codec, Form, LowRank, Quantise, RandomChannels, State, Tensors, TopK
from edgeopt.training.codecs.bits import pack, unpack
from edgeopt.training.keys import fold_in, uniform

SHAPES = [(6, 8), (4, 12, 2, 3), (3, 5, 9), (1, 7), (5,), (300, 2)]  # dense, images, tokens, one sample, one number
KEY = torch.tensor(11)

every_codec = pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.name)


def tensor(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def form_of(x: torch.Tensor) -> Form:
    return Form(tuple(x.shape), x.dtype)


def cross(
    codec: Codec, x: torch.Tensor, budget: float = math.inf, memory: State | None = None, key: torch.Tensor = KEY
) -> tuple[torch.Tensor, Tensors, State]:
    """Send a tensor up: return what arrives, what was sent, and the sender's memory."""
    order = codec.order("up", form_of(x), budget, {})
    sent, after = codec.encode("up", x, order, memory or {}, labels=None, key=key)
    found, _ = codec.decode("up", sent, order, {}, form_of(x))
    return found, sent, after


def nbytes(sent: Tensors) -> int:
    return sum(part.nbytes for part in sent.values())


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_codec
def test_what_arrives_has_the_form_of_what_was_sent(kind: type[Codec], shape: tuple[int, ...], dtype: torch.dtype):
    """Up and then down, for all kinds of activations, on both sides; memories end as they began."""
    codec, x = kind(), tensor(shape, dtype=dtype)
    up, down = (codec.order(direction, form_of(x), math.inf, {}) for direction in ("up", "down"))
    sent, client = codec.encode("up", x, up, {}, labels=None, key=KEY)
    found, server = codec.decode("up", sent, up, {}, form_of(x))
    back, server = codec.encode("down", x, down, server, labels=None, key=KEY)
    gradient, client = codec.decode("down", back, down, client, form_of(x))
    for arrived in (found, gradient):
        assert (arrived.shape, arrived.dtype) == (x.shape, x.dtype)
        assert arrived.isfinite().all()
    assert client == server == {}


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    codec=st.sampled_from(
        [RandomChannels(0.7), RandomChannels(1.0), TopK(0.4), TopK(1.0), LowRank(3), LowRank(100), Quantise(8)]
    ),
    shape=st.sampled_from(SHAPES),
    share=st.floats(0, 1.2),
)
def test_a_budget_is_kept(codec: Codec, shape: tuple[int, ...], share: float):
    """What is sent is within the budget, or the least that the codec sends at all; it is no less with a larger budget."""
    x = tensor(shape)
    budget = math.floor(share * x.nbytes)
    least, taken, free = (nbytes(cross(codec, x, limit)[1]) for limit in (0, budget, math.inf))
    assert taken <= max(budget, least)
    assert least <= taken <= free
    if free <= budget:
        assert taken == free


@every_codec
def test_many_at_once_are_one_after_another(kind: type[Codec]):
    """In `vmap`, with a key for each, coding and decoding give what they give alone, memories too."""
    codec, clients = kind(), 3
    xs = torch.stack([tensor((4, 6, 3, 3), seed, torch.float64) for seed in range(clients)])
    keys = fold_in(KEY, torch.arange(clients))
    form = form_of(xs[0])
    order = codec.order("up", form, math.inf, {})

    def there_and_back(x: torch.Tensor, key: torch.Tensor) -> Any:
        sent, client = codec.encode("up", x, order, {}, labels=None, key=key)
        found, server = codec.decode("up", sent, order, {}, form)
        back, _ = codec.encode("down", x, order, server, labels=None, key=key)
        gradient, _ = codec.decode("down", back, order, client, form)
        return found, gradient

    together = vmap(there_and_back)(xs, keys)
    for client in range(clients):
        for one, all_of_them in zip(there_and_back(xs[client], keys[client]), together, strict=True):
            torch.testing.assert_close(all_of_them[client], one, rtol=1e-9, atol=1e-9)


@every_codec
def test_the_sender_knows_what_arrives(kind: type[Codec]):
    """Decoding with the sender's memory gives what the receiver gets, in both directions."""
    codec, x = kind(), tensor((4, 6, 3, 3))
    up, down = (codec.order(direction, form_of(x), math.inf, {}) for direction in ("up", "down"))
    sent, client = codec.encode("up", x, up, {}, labels=None, key=KEY)
    found, server = codec.decode("up", sent, up, {}, form_of(x))
    assert torch.equal(codec.decode("up", sent, up, {}, form_of(x))[0], found)
    back, _ = codec.encode("down", x, down, server, labels=None, key=KEY)
    arrived = codec.decode("down", back, down, client, form_of(x))[0]
    assert torch.equal(codec.decode("down", back, down, server, form_of(x))[0], arrived)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_are_where_they_were(shape: tuple[int, ...]):
    """Tensors by channel and back are the same; image i's channel c is plane c of it, a token's feature its last axis."""
    x = tensor(shape)
    form = form_of(x)
    by_channel = form.by_channel(x)
    assert by_channel.shape == (shape[0], form.channels, form.size // form.channels)
    assert torch.equal(form.from_channels(by_channel), x)
    if len(shape) == 4:
        assert torch.equal(by_channel[1, 2], x[1, 2].flatten())
    if len(shape) == 3:
        assert torch.equal(by_channel[1, 2], x[1, :, 2])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RandomChannels(0.0), "share = 0.0: expected above 0, to 1"),
        (lambda: TopK(1.5), "share = 1.5: expected above 0, to 1"),
        (lambda: TopK(float("nan")), "share"),
        (lambda: TopK(feedback=-0.1), "feedback = -0.1: expected 0 to 1"),
        (lambda: Quantise(3), "bits = 3: expected 8 or 4"),
        (lambda: LowRank(0), "rank = 0: expected"),
    ],
)
def test_parameters_out_of_range(make: Any, told: str):
    """Are refused, with what was expected."""
    with pytest.raises(InvalidProblemError, match=told):
        make()


@pytest.mark.parametrize("codec", [RandomChannels(), TopK()])
def test_a_gradient_without_activations_before_it(codec: Codec):
    """Nobody knows where its values belong: refused."""
    with pytest.raises(InvalidProblemError, match="gradients without activations before them"):
        codec.encode("down", tensor((4, 6)), {}, {}, labels=None, key=KEY)


# --- random channels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 2, 2), (2, 3, 6)])
def test_random_channels_are_right_in_the_mean(shape: tuple[int, ...]):
    """Over 4000 keys the mean is within five standard errors of the truth; k of C channels arrive, times C / k."""
    x, codec = tensor(shape), RandomChannels(0.5)
    form = form_of(x)
    draws = vmap(lambda key: cross(codec, x, key=key)[0])(fold_in(KEY, torch.arange(4000)))
    planes = torch.stack([form.by_channel(draw) for draw in draws[:50]])
    there = planes.abs().sum((1, 3)) > 0  # (50, C)
    assert (there.sum(1) == 3).all()
    assert there.any(0).all()
    torch.testing.assert_close(draws[draws != 0], (2 * x).expand_as(draws)[draws != 0])
    error = x.abs() / math.sqrt(4000)  # each value is 0 or 2 x with equal chances: its standard deviation is |x|
    assert ((draws.mean(0) - x).abs() <= 5 * error).all()


def test_random_channels_bytes():
    """K planes of B samples, and a bit per channel, rounded up to bytes; on the way down the planes alone."""
    x = tensor((4, 12, 2, 3))
    codec = RandomChannels(0.25)
    _, sent, client = cross(codec, x)
    assert nbytes(sent) == 4 * 3 * 6 * 4 + 2
    assert nbytes(codec.encode("down", x, {}, client, labels=None, key=KEY)[0]) == 4 * 3 * 6 * 4


# --- top-k -----------------------------------------------------------------------------------------------------------


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


# --- quantise --------------------------------------------------------------------------------------------------------


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


# --- low rank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (4, 3, 2, 2), (5, 5)], ids=str)
def test_low_rank_is_the_cut_svd(shape: tuple[int, ...], rank: int):
    """The product is that of the largest singular values of `torch.linalg.svd`, and its error what they leave."""
    x = tensor(shape, dtype=torch.float64)
    found, sent, _ = cross(LowRank(rank), x)
    matrix = x.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(found.flatten(1), u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((found - x).norm(), s[rank:].norm(), rtol=1e-9, atol=1e-9)
    assert nbytes(sent) == 8 * rank * sum(matrix.shape)


@pytest.mark.parametrize("x", [torch.zeros(4, 9), torch.ones(4, 9), tensor((4, 1)) @ tensor((1, 9))], ids=range(3))
def test_low_rank_of_a_matrix_of_less_rank_is_exact(x: torch.Tensor):
    """A rank beyond that of the matrix does no harm: not with zeros, nor with equal samples."""
    found, _, _ = cross(LowRank(3), x)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


def test_names_and_fields():
    """Every codec has a name of its own and is made without arguments."""
    assert len({kind.name for kind in CODECS}) == len(CODECS)
    assert all(dataclasses.is_dataclass(kind()) for kind in CODECS)
