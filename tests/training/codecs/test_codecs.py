"""Every registered codec: shapes, bytes, budgets, batches, and what each side knows of the other."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from edgeopt.errors import InvalidProblemError
from edgeopt.training import CODECS, Codec, LowRank, Quantise, RandomChannels, TopK
from edgeopt.training.keys import fold_in
from tests.training.codecs.crossing import KEY, SHAPES, cross, form_of, nbytes, tensor

every_codec = pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.name)


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


def test_names_and_fields():
    """Every codec has a name of its own and is made without arguments."""
    assert len({kind.name for kind in CODECS}) == len(CODECS)
    assert all(dataclasses.is_dataclass(kind()) for kind in CODECS)
