"""Experts that do not learn: outputs as ever, gradients exactly zero, nothing kept for the backward pass."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap

from edgeopt.models import moe_decoder, record_routing
from edgeopt.models.moe import Experts, Learners, expert_shares, limit_learners

NETWORKS = ("up", "up_bias", "down", "down_bias")


def drawn(seed: int, *sizes: int, dtype: torch.dtype = torch.float64) -> tuple[Experts, torch.Tensor]:
    """Return a layer with all parameters from N(0, 1), and an input (2, 3, C) for it."""
    generator = torch.Generator().manual_seed(seed)
    layer = Experts(*sizes).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer, torch.randn(2, 3, sizes[0], dtype=dtype, generator=generator)


def gradients(layer: Experts, x: torch.Tensor, learners: Learners | None) -> dict[str, torch.Tensor]:
    """Return the gradients of a loss by parameters and input, under plain autograd."""
    x = x.clone().requires_grad_()
    parameters = dict(layer.named_parameters())
    with limit_learners({} if learners is None else {layer: learners}):
        y = layer(x)
    found = torch.autograd.grad(y.sin().sum(), [x, *parameters.values()], materialize_grads=True)
    return dict(zip(["x", *parameters], found, strict=True))


def token_by_token(layer: Experts, x: torch.Tensor, learners: Sequence[bool]) -> dict[str, torch.Tensor]:
    """Return the same gradients of the published rule: ``e(x)`` where an expert learns, ``e(x).detach()`` where not."""
    x = x.clone().requires_grad_()
    rows = []
    for token in x.flatten(0, 1):
        scores = layer.router.weight @ token
        best = sorted(range(len(learners)), key=lambda e, scores=scores: -float(scores[e].detach()))[: layer.top_k]
        weights = scores.softmax(0) if layer.top_k == 1 else scores[best].softmax(0)
        row = torch.zeros_like(token)
        for place, e in enumerate(best):
            answer = F.gelu(token @ layer.up[e] + layer.up_bias[e]) @ layer.down[e] + layer.down_bias[e]
            row = row + weights[e if layer.top_k == 1 else place] * (answer if learners[e] else answer.detach())
        rows.append(row)
    parameters = dict(layer.named_parameters())
    found = torch.autograd.grad(torch.stack(rows).sin().sum(), [x, *parameters.values()], materialize_grads=True)
    return dict(zip(["x", *parameters], found, strict=True))


# --- one layer ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=1, max_size=5), st.booleans(), st.data())
def test_gradients_are_those_of_detached_answers(
    seed: int, learners: list[bool], as_tensor: bool, data: st.DataObject
) -> None:
    """All gradients are those of a loop over tokens that detaches what the others answer; theirs are exactly zero."""
    top_k = data.draw(st.integers(1, len(learners)))
    layer, x = drawn(seed, 3, 4, len(learners), top_k)
    found = gradients(layer, x, torch.tensor(learners) if as_tensor else learners)
    expected = token_by_token(layer, x, learners)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)
    for name in NETWORKS:
        assert (found[name][~torch.tensor(learners)] == 0).all()


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
def test_those_that_learn_learn_as_ever(top_k: int, as_tensor: bool):
    """Gradients of the learning experts, and of the router, are those of full autograd."""
    layer, x = drawn(1, 5, 7, 4, top_k)
    learners = [True, False, True, False]
    found, whole = gradients(layer, x, torch.tensor(learners) if as_tensor else learners), gradients(layer, x, None)
    torch.testing.assert_close(found["router.weight"], whole["router.weight"], rtol=1e-11, atol=1e-13)
    for name in NETWORKS:
        torch.testing.assert_close(found[name][::2], whole[name][::2], rtol=1e-11, atol=1e-13)
        assert (whole[name][1::2] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learners", [[True] * 6, [False] * 6, [True, False, False, True, False, False]])
def test_outputs_are_the_same_bits(learners: list[bool], dtype: torch.dtype):
    """Which experts learn changes no bit of the output and of the routing, with and without gradients."""
    layer, x = drawn(2, 24, 40, 6, 2, dtype=dtype)
    expected = layer(x)
    for chosen in (learners, torch.tensor(learners)):
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled), limit_learners({layer: chosen}), record_routing() as routing:
                y = layer(x)
            assert torch.equal(y, expected)
            assert y.requires_grad == enabled
            assert routing[0].hidden is x
            assert routing[0].layer is layer


def test_under_autocast():
    """In mixed precision outputs keep their bits and their type, and gradients of the others are zero."""
    layer, x = drawn(3, 8, 16, 4, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        for learners in ([False, True, True, False], torch.tensor([False, True, True, False])):
            with limit_learners({layer: learners}):
                y = layer(x)
            assert y.dtype == expected.dtype
            assert torch.equal(y, expected)
            found = torch.autograd.grad(y.float().sum(), layer.up)[0]
            assert (found[[0, 3]] == 0).all()
            assert (found[[1, 2]] != 0).any()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_one_expert_is_a_dense_layer(as_tensor: bool):
    """One expert that learns is the feed-forward block with the same weights; one that does not is a constant."""
    layer, x = drawn(4, 5, 7, 1, 1)
    dense = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)).double()
    with torch.no_grad():
        for ours, theirs in zip(NETWORKS, dense.parameters(), strict=True):
            theirs.copy_(getattr(layer, ours)[0].t())
    own = x.clone().requires_grad_()
    theirs = torch.autograd.grad(dense(own).sin().sum(), [own, *dense.parameters()])
    found = gradients(layer, x, torch.tensor([True]) if as_tensor else [True])
    for name, value in zip(("x", *NETWORKS), theirs, strict=True):
        torch.testing.assert_close(found[name] if name == "x" else found[name][0].t(), value)
    none = gradients(layer, x, torch.tensor([False]) if as_tensor else [False])
    assert all((value == 0).all() for value in none.values())


# --- what is kept -------------------------------------------------------------------------------------------------


def kept(layer: Experts, x: torch.Tensor, learners: Learners | None) -> int:
    """Return the bytes that autograd keeps beside parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        limit_learners({} if learners is None else {layer: learners}),
    ):
        y = layer(x)
    assert y.requires_grad
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)


@pytest.mark.parametrize("experts", [4, 9])
@pytest.mark.parametrize("hidden", [7, 30])
def test_only_those_that_learn_keep_activations(hidden: int, experts: int):
    """A learning expert keeps its three inner activations per token, the others nothing; the rest depends on neither."""
    layer, x = drawn(5, 5, hidden, experts, 2)
    tokens, width = 6, 5
    rest = kept(layer, x, [False] * experts)
    for count in range(experts):
        for learners in ([e < count for e in range(experts)], [e >= experts - count for e in range(experts)]):
            assert kept(layer, x, learners) == rest + count * tokens * 3 * hidden * 8
    whole = kept(layer, x, None)
    assert whole >= experts * tokens * 3 * hidden * 8
    router = (
        width * 8 + 4 * experts * 8 + experts + 8
    )  # input; order, probabilities before and after; choice; their sum
    answers = 2 * (width * 8 + 8)  # the two that a token uses, and whose they are
    assert rest == tokens * (router + answers)
    assert kept(layer, x, [True] * experts) == whole


# --- transforms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2])
def test_clients_with_experts_of_their_own_as_one_batch(top_k: int):
    """vmap(grad) with a mask per client gives, per client, the outputs and gradients of plain values, one after another."""
    layer, _ = drawn(6, 5, 7, 4, top_k)
    generator = torch.Generator().manual_seed(1)
    masks = torch.tensor([[True, False, False, False], [False, True, True, False], [True] * 4, [False] * 4])
    x = torch.randn(4, 2, 3, 5, dtype=torch.float64, generator=generator)
    weights = {
        name: value.detach() + 0.1 * torch.randn(4, *value.shape, dtype=value.dtype, generator=generator)
        for name, value in layer.named_parameters()
    }

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, learners: Learners) -> torch.Tensor:
        with limit_learners({layer: learners}):
            y: torch.Tensor = functional_call(layer, weights, (x,))
        return y.sin().sum()

    together = vmap(grad(loss, argnums=(0, 1)))(weights, x, masks)
    for client, mask in enumerate(masks):
        own = {name: value[client] for name, value in weights.items()}
        for learners in (mask, mask.tolist()):
            alone = grad(loss, argnums=(0, 1))(own, x[client], learners)
            torch.testing.assert_close(alone[1], together[1][client], rtol=1e-9, atol=1e-11)
            for name, value in alone[0].items():
                torch.testing.assert_close(value, together[0][name][client], rtol=1e-9, atol=1e-11)
                if name in NETWORKS:
                    assert (value[~mask] == 0).all()
                    assert (together[0][name][client][~mask] == 0).all()


def test_the_same_experts_for_a_batch_of_clients():
    """Plain values run inside vmap too, for all clients alike, and change no bit of what it returns."""
    layer, _ = drawn(7, 5, 7, 4, 2)
    x = torch.randn(3, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    learners = [False, True, False, True]

    def outputs(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = functional_call(layer, weights, (x,))
        return y

    def limited(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        with limit_learners({layer: learners}):
            return outputs(weights, x).sin().sum()

    expected = vmap(outputs, in_dims=(None, 0))(weights, x)
    with limit_learners({layer: learners}):
        assert torch.equal(vmap(outputs, in_dims=(None, 0))(weights, x), expected)
    together = vmap(grad(limited), in_dims=(None, 0))(weights, x)
    for client in range(3):
        alone = gradients(layer, x[client], learners)
        for name, value in together.items():
            torch.testing.assert_close(value[client], alone[name], rtol=1e-9, atol=1e-11)


# --- shares -------------------------------------------------------------------------------------------------------


def test_shares_of_the_work():
    """Per token: router and last biases take 2 C E each, the networks 4 C D E: all but the router's are the experts'."""
    model = moe_decoder(vocabulary=11, context=9, width=8, depth=2, heads=2, hidden=6, experts=4)
    shares = expert_shares(model, torch.zeros(1, 9, dtype=torch.int64))
    share = (4 * 8 * 6 * 4 + 2 * 8 * 4) / (4 * 8 * 6 * 4 + 4 * 8 * 4)
    assert shares == pytest.approx({"block1_experts.body": share, "block2_experts.body": share})
