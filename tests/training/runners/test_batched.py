import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.utils import _pytree as pytree

from edgeopt.errors import SequentialWarning
from edgeopt.training.runners.batched import can_batch, map_batched, map_clients, try_batched
from edgeopt.training.trouble import blaming


class Attention(nn.Module):
    """Causal self-attention with residual."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(width, 3 * width)

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)  # (3, B, H, T, D)
        query, key, value = parts
        scores = query @ key.transpose(-1, -2)  # (B, H, T, T)
        hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return x + (weights @ value).transpose(-2, -3).flatten(-2)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.LayerNorm(12), nn.Linear(12, 10, bias=False))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def odd_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 2), stride=(2, 1), bias=False), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=2, groups=2),
        nn.MaxPool2d(3, stride=1), nn.Conv2d(4, 3, 2, dilation=2), nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip


def decoder():
    return nn.Sequential(nn.Embedding(16, 8), Attention(8, 2), nn.LayerNorm(8), Attention(8, 2), nn.Linear(8, 10))


MODELS = {"mlp": mlp, "cnn": cnn, "odd cnn": odd_cnn, "decoder": decoder}


def make(name, seed):
    """Return a model of float64 weights and a function that draws its inputs and classes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name]().double()
        model(torch.zeros(2, 5, dtype=torch.long) if name == "decoder" else torch.zeros(2, 1, 8, 8).double())

    def draw(steps, samples):
        if name == "decoder":
            shape = (steps, samples, 5)
            return torch.randint(16, shape, generator=generator), torch.randint(10, shape, generator=generator)
        x = torch.randn(steps, samples, 1, 8, 8, generator=generator, dtype=torch.float64)
        return x, torch.randint(10, (steps, samples), generator=generator)

    return model, {name: value.detach() for name, value in model.named_parameters()}, draw


def local_sgd(model):
    """Return the function that takes a step of SGD per mini-batch and returns weights and losses."""

    def loss_of(weights, x, y):
        outputs = functional_call(model, weights, (x,))
        loss = F.cross_entropy(outputs.flatten(0, -2), y.flatten())
        return loss, loss.detach()

    def work(item):
        weights, losses = item["weights"], []
        for x, y in zip(*item["data"], strict=True):
            gradients, (_, loss) = grad_and_value(loss_of, has_aux=True)(weights, x, y)
            weights = {name: value - 0.1 * gradients[name] for name, value in weights.items()}
            losses.append(loss)
        return weights, torch.stack(losses)

    return work


def assert_equal(ours, others):
    for found, expected in zip(ours, others, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@settings(max_examples=25)
@given(
    name=st.sampled_from(list(MODELS)),
    seed=st.integers(0, 99),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    steps=st.integers(1, 3),
    chunk=st.sampled_from([None, 1, 2, 4]),
    shared=st.booleans(),
)
def test_batch_equals_one_after_another(name, seed, sizes, steps, chunk, shared):
    """Several steps of SGD, for clients of several batch sizes, from common or own weights, give what each gives alone."""
    model, weights, draw = make(name, seed)
    items = []
    for index, samples in enumerate(sizes):
        own = weights if shared else {name: value * (1 + 0.1 * index) for name, value in weights.items()}
        items.append({"weights": own, "data": draw(steps, samples)})
    work = local_sgd(model)
    assert_equal(map_batched(work, items, chunk=chunk), [work(item) for item in items])


@pytest.mark.parametrize("name", MODELS)
def test_copies_are_one_object(name):
    """Weights that clients share give the same bits, whether they are one object or one copy each, with or without nan."""
    model, weights, draw = make(name, 2)
    weights = {key: value.to(torch.float32) for key, value in weights.items()}
    data = [tuple(x.float() if x.is_floating_point() else x for x in draw(2, 3)) for _ in range(3)]
    work = local_sgd(model.float())
    for unused in (0.0, -0.0, float("nan"), complex(0.0, -0.0)):
        common = {"weights": weights, "unused": torch.tensor([unused])}
        results = [
            map_batched(work, [{**own, "data": own_data} for own, own_data in zip(items, data, strict=True)])
            for items in ([common] * 3, [pytree.tree_map(torch.clone, common) for _ in range(3)])
        ]
        for ours, others in zip(*results, strict=True):
            torch.testing.assert_close(ours, others, rtol=0, atol=0)


def test_equal_is_not_the_same():
    """Zero and minus zero are two values: the one does not stand for the other."""
    assert map_batched(lambda x: 1 / x, [torch.tensor(0.0), torch.tensor(-0.0)]) == [float("inf"), float("-inf")]
    items = [torch.tensor([complex(1, zero)]) for zero in (0.0, -0.0)]
    assert [float(x) for x in map_batched(lambda x: 1 / x.imag[0], items)] == [float("inf"), float("-inf")]
    assert [float(x) for x in map_batched(lambda x: torch.nan_to_num(x, 7.0), [torch.tensor(float("nan"))] * 2)] == [
        7,
        7,
    ]


def test_gradients_are_those_of_autograd():
    """One step moves the weights by the gradients of an ordinary module and ordinary backward pass."""
    model, weights, draw = make("cnn", 3)
    items = [{"weights": weights, "data": draw(1, 5)} for _ in range(3)]
    results = map_batched(local_sgd(model), items)
    for item, (moved, _) in zip(items, results, strict=True):
        model.zero_grad()
        F.cross_entropy(model(item["data"][0][0]), item["data"][1][0]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(moved[name], weights[name] - 0.1 * parameter.grad)


def test_nothing_to_batch():
    """No item, items without tensors, and items that share every tensor have their results."""
    x = torch.arange(3.0)
    assert map_batched(lambda item: item, []) == []
    assert map_batched(lambda item: item, [{}, {}]) == [{}, {}]
    results = map_batched(lambda item: item["x"] + 1, [{"x": x}, {"x": x}])
    assert all(torch.equal(result, x + 1) for result in results)


def test_nothing_comes_back():
    """A function that returns no tensor gives one empty result per item."""
    assert map_batched(lambda x: {"weights": {}}, [torch.ones(2), torch.zeros(2)]) == [{"weights": {}}] * 2


def test_order_of_items_stays():
    """Items of different shapes come back in their places."""
    items = [torch.full((1 + index % 3,), float(index)) for index in range(7)]
    assert [float(total) for total in map_batched(torch.sum, items)] == [0, 2, 6, 3, 8, 15, 6]


def test_function_runs_once_per_group():
    """Equal shapes mean one call of the function, not one each."""
    calls = []
    map_batched(lambda x: calls.append(x.shape) or x * 2, [torch.ones(2), torch.ones(3), torch.zeros(2)])
    assert calls == [(2,), (3,)]


def test_ignored_classes():
    """Targets of class -100 do not count in the mean, in a batch either."""
    scores = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    classes = [torch.tensor([0, -100, 2, 1]), torch.tensor([-100, -100, 2, 1])]
    items = list(zip(scores, classes, strict=True))
    ours = map_batched(lambda item: F.cross_entropy(*item), items)
    assert_equal(ours, [F.cross_entropy(*item) for item in items])


def test_decision_by_value_is_an_error():
    """A branch on the value of a tensor is refused by vmap."""
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        map_batched(lambda x: x if x.sum() > 0 else -x, [torch.ones(2), torch.zeros(2)])


def test_what_cannot_be_batched_gives_the_reason():
    """A model or a function that vmap refuses is left to the caller with the reason, a single item without one."""
    items = [torch.ones(2), torch.zeros(2)]
    assert_equal(try_batched(nn.Linear(1, 1), torch.sum, items), [torch.tensor(2.0), torch.tensor(0.0)])
    assert try_batched(nn.Dropout(0.5), torch.sum, items) == can_batch(nn.Dropout(0.5))
    assert "data-dependent control flow" in try_batched(nn.Linear(1, 1), lambda x: x if x.sum() > 0 else -x, items)
    assert "random" in try_batched(nn.Linear(1, 1), lambda x: F.dropout(x, 0.5), items)
    assert try_batched(nn.Linear(1, 1), torch.sum, items[:1]) == ""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_out_of_memory_is_never_swallowed(error):
    """Where memory runs out, in a batch or alone, the error is the one that was raised."""
    calls = []

    def greedy(x):
        calls.append(x)
        raise error

    for items in ([torch.ones(1), torch.zeros(1)], [torch.ones(1)]):
        with pytest.raises(type(error)) as caught:
            map_clients(nn.Linear(1, 1), greedy, items, lambda _: blaming("round 0, client 3"))
        assert caught.value is error
    assert len(calls) == 2


@pytest.mark.parametrize(("model", "function", "reason"), [
    (nn.Linear(1, 1), lambda x: x if x.sum() > 0 else -x, "data-dependent control flow"),
    (nn.Dropout(0.5), lambda x: 2 * x, "Dropout draws random numbers, which vmap refuses"),
])  # fmt: skip
def test_one_after_another_is_a_warning_that_says_why(model, function, reason):
    """The results are those of each alone, and the warning has the reason; an error of the work is no warning."""
    items = [torch.ones(2), -torch.ones(2), torch.zeros(2)]
    with pytest.warns(SequentialWarning, match=f"clients run one after another, not as one batch: .*{reason}"):
        found = map_clients(model, function, items, lambda _: nullcontext())
    assert_equal(found, [function(item) for item in items])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="broken"):
            map_clients(model, _broken, items, lambda _: nullcontext())
        map_clients(nn.Linear(1, 1), torch.sum, items, lambda _: nullcontext())


def _broken(x):
    raise ValueError("broken")


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.Dropout(0.5), "Dropout"), (nn.Dropout2d(0.1), "Dropout2d"), (nn.BatchNorm2d(3), "BatchNorm2d"),
        (nn.Dropout(0.0), None), (nn.BatchNorm1d(3, track_running_stats=False), None), (nn.GroupNorm(1, 3), None),
    ],
)  # fmt: skip
def test_can_batch(layer, word):
    """Layers that draw random numbers, or change buffers in place, are named."""
    reason = can_batch(nn.Sequential(nn.Linear(3, 3), layer))
    assert reason is None if word is None else reason.startswith(f"1: {word}")


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4)])
def test_what_cannot_be_batched_is_refused(layer):
    """The layers that `can_batch` names do raise."""
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError):
        map_batched(lambda x: functional_call(layer, state, (x,)), [torch.ones(3, 4), torch.zeros(3, 4)])


def test_batch_norm_without_running_means():
    """Batch normalisation that keeps nothing runs in a batch."""
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    items = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    results = map_batched(lambda x: layer(x).detach(), items)
    torch.testing.assert_close(results, [layer(x).detach() for x in items])
