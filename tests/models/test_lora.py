"""Low-rank adapters: the layer's formula, what is trained, padding, and what is refused."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeopt.errors import InvalidProblemError
from edgeopt.models import LoraLinear, add_lora, gpt2, lora_layers, mlp


def made(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp(12, (9, 8), 5)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 100), st.booleans(), st.floats(0.1, 8))
def test_the_layer_is_its_formula(inputs: int, outputs: int, seed: int, bias: bool, alpha: float):
    """Outputs are W x + b + alpha / r B A x, multiplied out in double precision."""
    generator = torch.Generator().manual_seed(seed)
    rank = 1 + seed % min(inputs, outputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    shift = torch.randn(outputs, generator=generator) if bias else None
    layer = LoraLinear(weight, shift, rank=rank, alpha=alpha, generator=generator)
    with torch.no_grad():
        layer.lora_b.normal_(generator=generator)
    x = torch.randn(4, 3, inputs, generator=generator)
    whole = weight.double() + alpha / rank * layer.lora_b.double() @ layer.lora_a.double()
    expected = x.double() @ whole.T + (0 if shift is None else shift.double())
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_it_starts_as_the_model_it_was():
    """Outputs are the same to the last bit; only the adapters require gradients, and base weights keep their names."""
    model, x = made(), torch.randn(7, 12)
    adapted = add_lora(model, "*", rank=3)
    assert torch.equal(adapted(x), model(x))
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert names == {f"{name}.lora_{end}" for name in ("hidden1.1", "hidden2.0", "head.0") for end in "ab"}
    base = {name: p for name, p in adapted.state_dict().items() if "lora" not in name}
    assert base.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in base.items())
    assert all(p.requires_grad for p in model.parameters()), "the model itself stays as it is"


def test_patterns_ranks_scale_and_seed():
    """Patterns choose layers, ranks go by name, the scale follows, the same seed gives the same; nothing global is drawn."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        add_lora(made(), ["hidden1*", "head.?"], rank=4, ranks={"head*": 2}, alpha=8, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    layers = lora_layers(first)
    assert {name: (layer.rank, layer.scale) for name, layer in layers.items()} == {
        "hidden1.1": (4, 2.0), "head.0": (2, 4.0),
    }  # fmt: skip
    for name, layer in layers.items():
        assert torch.equal(layer.lora_a, lora_layers(again)[name].lora_a)
        assert not torch.equal(layer.lora_a, lora_layers(other)[name].lora_a)
        assert layer.lora_b.count_nonzero() == 0


def test_a_second_call_keeps_the_adapters_there_are():
    """Layers that had adapters train on beside the new ones."""
    twice = add_lora(add_lora(made(), "hidden1*", rank=2), "head*", rank=1)
    trained = {name.rpartition(".")[0] for name, p in twice.named_parameters() if p.requires_grad}
    assert trained == {"hidden1.1", "head.0"}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("rank", [1, 3])
def test_padding_is_exact(optimizer: type, rank: int):
    """With zeros beyond its rank, a padded layer learns what the small one does, and its zeros stay zeros."""
    model = made().double()
    large = add_lora(model, "*", rank=5, alpha=5.0)
    small = add_lora(model, "*", rank=rank, alpha=float(rank))
    with torch.no_grad():
        for name, layer in lora_layers(large).items():
            layer.lora_a[rank:] = 0
            lora_layers(small)[name].lora_a.copy_(layer.lora_a[:rank])
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 12, generator=generator, dtype=torch.float64), torch.arange(16) % 5
    for net in (large, small):
        steps = optimizer([p for p in net.parameters() if p.requires_grad], lr=0.05)
        for _ in range(8):
            steps.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            steps.step()
    for name, layer in lora_layers(large).items():
        own = lora_layers(small)[name]
        assert layer.lora_a[rank:].count_nonzero() == layer.lora_b[:, rank:].count_nonzero() == 0
        torch.testing.assert_close(layer.lora_a[:rank], own.lora_a, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.lora_b[:, :rank], own.lora_b, rtol=1e-12, atol=1e-12)
        assert own.lora_b.any(), "it has learnt"


def test_what_is_refused():
    """Rank above the layer, no rank, unknown patterns, adapters twice, tied weights: each in one line."""
    model = made()
    for options, message in (
        ({"rank": 6}, r"^rank of head\.0 = 6: expected 1 to 5, the smaller side of its 5 x 8 weights$"),
        ({"rank": 0}, r"^rank of hidden1\.1 = 0: expected 1 to 9"),
        ({"ranks": {"hidden9": 2}}, r"^pattern 'hidden9' fits no linear layer: expected one of hidden1\.1, hidden2\.0"),
        ({"alpha": 0.0, "rank": 2}, r"^alpha = 0\.0: expected a number above 0$"),
    ):
        with pytest.raises(InvalidProblemError, match=message):
            add_lora(model, "*", **options)
    with pytest.raises(
        InvalidProblemError, match=r"^pattern 'attention\*' fits no linear layer: expected one of hidden1"
    ):
        add_lora(model, "attention*")
    with pytest.raises(InvalidProblemError, match=r"^hidden1\.1: has an adapter already"):
        add_lora(add_lora(model, "hidden1*", rank=1), "*", rank=1)
    tied = gpt2(vocabulary=20, context=8, width=8, depth=1, heads=2)
    with pytest.raises(
        InvalidProblemError, match=r"^model: embedding\.token\.weight and head\.linear\.weight are the same"
    ):
        add_lora(tied, "head*", rank=2)
    before = copy.deepcopy(tied.state_dict())
    assert lora_layers(add_lora(tied, "block*", rank=2)), "elsewhere it may be"
    assert all(torch.equal(value, before[name]) for name, value in tied.state_dict().items())
