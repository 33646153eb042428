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
from edgeopt.training import CODECS, AcpCodec, Codec, LowRank, NscCodec, Quantise, RandomChannels, State, TopK
from edgeopt.training.keys import fold_in
from tests.training.codecs.crossing import KEY, SHAPES, cross, exchange, form_of, labels_of, nbytes, tensor

every_codec = pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_codec
def test_what_arrives_has_the_form_of_what_was_sent(kind: type[Codec], shape: tuple[int, ...], dtype: torch.dtype):
    """Up and then down, for all kinds of activations, twice; from the first time on memories keep their names and shapes."""
    codec, x = kind(), tensor(shape, dtype=dtype)
    once = exchange(codec, x)
    twice = exchange(codec, tensor(shape, 1, dtype), client=once.client, server=once.server)
    for arrived in (once.found, once.gradient, twice.found, twice.gradient):
        assert (arrived.shape, arrived.dtype) == (x.shape, x.dtype)
        assert arrived.isfinite().all()
    for before, after in ((once.client, twice.client), (once.server, twice.server)):
        assert shapes(after) == shapes(before)


def shapes(state: State) -> dict[str, Any]:
    return {name: shapes(v) if isinstance(v, dict) else (v.shape, v.dtype) for name, v in state.items()}


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
    """In `vmap`, with a key for each, coding and decoding give what they give alone, memories too; twice in a row."""
    codec, clients = kind(), 3
    xs = torch.stack([tensor((4, 6, 3, 3), seed, torch.float64) for seed in range(clients)])
    keys = fold_in(KEY, torch.arange(clients))
    form = form_of(xs[0])
    first = exchange(codec, xs[0])  # orders are made outside
    orders = [codec.order("up", form, math.inf, {}), codec.order("down", form, math.inf, first.server)]

    def there_and_back(x: torch.Tensor, key: torch.Tensor) -> Any:
        client: State = {}
        server: State = {}
        arrived = []
        for _ in range(2):
            sent, client = codec.encode("up", x, orders[0], client, labels=labels_of(x), key=key)
            found, server = codec.decode("up", sent, orders[0], server, form)
            back, server = codec.encode("down", x, orders[1], server, labels=None, key=key)
            gradient, client = codec.decode("down", back, orders[1], client, form)
            arrived += [found, gradient]
        return arrived

    together = vmap(there_and_back)(xs, keys)
    for client in range(clients):
        for one, all_of_them in zip(there_and_back(xs[client], keys[client]), together, strict=True):
            torch.testing.assert_close(all_of_them[client], one, rtol=1e-9, atol=1e-9)


@every_codec
def test_the_sender_knows_what_arrives(kind: type[Codec]):
    """Decoding with the sender's memory from before gives what the receiver gets, in both directions."""
    codec, client, server = kind(), State(), State()
    for seed in range(3):
        x = tensor((4, 6, 3, 3), seed)
        order = codec.order("up", form_of(x), math.inf, server)
        assert order is not None
        before = client
        sent, client = codec.encode("up", x, order, client, labels=labels_of(x), key=KEY)
        found, server = codec.decode("up", sent, order, server, form_of(x))
        assert torch.equal(codec.decode("up", sent, order, before, form_of(x))[0], found)
        order = codec.order("down", form_of(x), math.inf, server)
        assert order is not None
        before = server
        back, server = codec.encode("down", x, order, server, labels=None, key=KEY)
        arrived, client = codec.decode("down", back, order, client, form_of(x))
        assert torch.equal(codec.decode("down", back, order, before, form_of(x))[0], arrived)


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


@pytest.mark.parametrize("codec", [RandomChannels(), TopK(), AcpCodec(), NscCodec()])
def test_a_gradient_without_activations_before_it(codec: Codec):
    """Nobody knows where its values belong, or what was carried: refused."""

    def down() -> None:
        order = codec.order("down", form_of(tensor((4, 6))), math.inf, {})
        codec.encode("down", tensor((4, 6)), order or {}, {}, labels=None, key=KEY)

    with pytest.raises(InvalidProblemError, match="gradients without activations before them"):
        down()


def test_names_and_fields():
    """Every codec has a name of its own and is made without arguments."""
    assert len({kind.name for kind in CODECS}) == len(CODECS)
    assert all(dataclasses.is_dataclass(kind()) for kind in CODECS)
