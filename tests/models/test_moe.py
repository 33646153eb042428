import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from edgeopt.errors import InvalidProblemError
from edgeopt.models import LayerRouting, gpt2, moe_decoder, record_routing
from edgeopt.models.moe import Experts
from edgeopt.profile import ModelProfile

SMALL = {"vocabulary": 11, "context": 9, "width": 8, "depth": 2, "heads": 2, "hidden": 6, "experts": 4}


def drawn(seed: int, module: nn.Module) -> nn.Module:
    """Return the module in double precision with all parameters from N(0, 1): biases and routers are to matter."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


def small(**sizes: int) -> nn.Sequential:
    """Return a small decoder with its own initial weights."""
    torch.manual_seed(0)
    return moe_decoder(**(SMALL | sizes))


def network(layer: Experts, expert: int, x: torch.Tensor) -> torch.Tensor:
    """Return what one expert makes of one token (C,)."""
    inner = F.gelu(x @ layer.up[expert] + layer.up_bias[expert])
    return inner @ layer.down[expert] + layer.down_bias[expert]


def loss_of(model: nn.Module, balance: float):
    def loss(weights, tokens, targets):
        with record_routing() as routing:
            outputs = functional_call(model, weights, (tokens,))
        penalty = balance * sum(layer.balance_loss for layer in routing)
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten()) + penalty

    return loss


# --- one layer ----------------------------------------------------------------------------------------------------


def test_one_expert_is_a_dense_layer():
    """One expert, Top-1, is the feed-forward block of two linear layers with the same weights, gradients included."""
    layer = drawn(0, Experts(5, 7, 1, 1))
    dense = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)).double()
    with torch.no_grad():
        for ours, theirs in ((layer.up, dense[0].weight), (layer.down, dense[2].weight)):
            theirs.copy_(ours[0].T)
        for ours, theirs in ((layer.up_bias, dense[0].bias), (layer.down_bias, dense[2].bias)):
            theirs.copy_(ours[0])
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-14, atol=1e-14)
    layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.up.grad[0].T, dense[0].weight.grad)
    torch.testing.assert_close(layer.down.grad[0].T, dense[2].weight.grad)
    torch.testing.assert_close(layer.up_bias.grad[0], dense[0].bias.grad)
    torch.testing.assert_close(layer.down_bias.grad[0], dense[2].bias.grad)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5), st.data())
def test_output_is_that_of_a_loop_over_tokens(seed, experts, data):
    """Token by token, the output is the weighted sum of the K most probable experts, and of no other."""
    top_k = data.draw(st.integers(1, experts))
    layer = drawn(seed, Experts(3, 4, experts, top_k)).requires_grad_(False)
    x = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with record_routing() as routing:
        y = layer(x)
    for b in range(2):
        for t in range(3):
            scores = [float(layer.router.weight[e] @ x[b, t]) for e in range(experts)]
            best = sorted(range(experts), key=lambda e: -scores[e])[:top_k]
            exponentials = torch.tensor(scores, dtype=torch.float64).exp()
            total = exponentials[best].sum() if top_k > 1 else exponentials.sum()
            expected = sum(exponentials[e] / total * network(layer, e, x[b, t]) for e in best)
            torch.testing.assert_close(y[b, t], expected)
            assert routing[0].experts[b, t].tolist() == best


def test_ties_go_to_the_lowest_index():
    """With equal router outputs the first K experts are chosen, as `RoutingTrace.from_router_logits` counts."""
    layer = Experts(4, 4, 6, 2)
    nn.init.zeros_(layer.router.weight)
    with record_routing() as routing:
        layer(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    assert (routing[0].experts == torch.tensor([0, 1])).all()


@pytest.mark.parametrize("top_k", [0, 5])
def test_wrong_top_k(top_k):
    """A token cannot use no expert, nor more than there are."""
    with pytest.raises(InvalidProblemError, match=f"top_k = {top_k}: expected 1 to the 4 experts"):
        Experts(2, 2, 4, top_k)


# --- balance ------------------------------------------------------------------------------------------------------


def test_balance_loss_of_even_and_of_collapsed_routing():
    """It is 1 when every expert is as probable and as often chosen as any other, and E when one expert gets all."""
    even = torch.eye(4).repeat(2, 3, 1) * 5.0  # (B, T, E), each expert best equally often
    assert LayerRouting(even, even.argsort(dim=-1, descending=True)[..., :1]).balance_loss == pytest.approx(1)
    one = torch.zeros(2, 6, 4)
    one[..., 2] = 100.0
    assert LayerRouting(one, torch.full((2, 6, 1), 2)).balance_loss == pytest.approx(4)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6), st.data())
def test_balance_loss_is_its_formula(seed, experts, data):
    """It is E times the sum over experts of share of choices and mean probability, counted one by one."""
    top_k = data.draw(st.integers(1, experts))
    logits = torch.randn(2, 5, experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    chosen = logits.topk(top_k, dim=-1).indices
    expected = 0.0
    for e in range(experts):
        share = sum(e in row for row in chosen.flatten(0, 1).tolist()) / (10 * top_k)
        mean = sum(float(row.exp()[e] / row.exp().sum()) for row in logits.flatten(0, 1)) / 10
        expected += experts * share * mean
    assert float(LayerRouting(logits, chosen).balance_loss) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_reach_the_router(top_k):
    """The cross-entropy alone moves the router, and so does the balance loss alone."""
    model = drawn(0, small(top_k=top_k))
    tokens = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(1))
    for use_balance in (False, True):
        model.zero_grad()
        with record_routing() as routing:
            outputs = model(tokens)
        if use_balance:
            sum(layer.balance_loss for layer in routing).backward()
        else:
            F.cross_entropy(outputs.flatten(0, 1), tokens.flatten()).backward()
        assert (model.block1_experts.body.router.weight.grad != 0).any()


def test_balance_loss_balances():
    """Gradient descent on the balance loss alone spreads a collapsed router over the experts."""
    torch.manual_seed(0)
    layer = Experts(8, 4, 4, 1)
    with torch.no_grad():
        layer.router.weight[2] += 0.5
    x = torch.rand(4, 32, 8, generator=torch.Generator().manual_seed(0))

    def share_of_the_largest() -> float:
        with record_routing() as routing, torch.no_grad():
            layer(x)
        return float(routing[0].experts.flatten().bincount(minlength=4).max()) / 128

    assert share_of_the_largest() > 0.95
    optimiser = torch.optim.SGD([layer.router.weight], 0.5)
    for _ in range(60):
        with record_routing() as routing:
            layer(x)
        optimiser.zero_grad()
        routing[0].balance_loss.backward()
        optimiser.step()
    assert share_of_the_largest() < 0.6


# --- recorder -----------------------------------------------------------------------------------------------------


def test_recorder():
    """One entry per layer and pass, in order; the innermost recorder gets it; outside of recorders nothing is kept."""
    model = small()
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    with record_routing() as outer:
        model(tokens)
        with record_routing() as inner:
            model(tokens)
        model[:2](tokens)
    model(tokens)
    assert (len(outer), len(inner)) == (2, 2)
    assert outer[0].logits.shape == (2, 5, 4)
    assert outer[1].experts.shape == (2, 5, 2)
    x = model.block1_attention(model.embedding(tokens))
    torch.testing.assert_close(outer[0].logits, model.block1_experts.body.router(model.block1_experts.norm(x)))


def test_recorder_closes_after_an_error():
    """After an error inside, passes are no longer recorded."""
    with pytest.raises(ZeroDivisionError), record_routing() as routing:
        _ = 1 / 0
    small()(torch.zeros(1, 2, dtype=torch.int64))
    assert routing == []


def test_recording_changes_nothing():
    """Outputs with and without a recorder are the same bits."""
    model = small()
    tokens = torch.arange(5)[None]
    with record_routing():
        recorded = model(tokens)
    assert torch.equal(recorded, model(tokens))


# --- transforms and measuring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_batched_clients_are_single_clients(top_k):
    """vmap(grad) over clients with weights of their own gives the gradients of each client, and those of autograd."""
    model = drawn(0, small(top_k=top_k))
    loss = loss_of(model, 0.1)
    generator = torch.Generator().manual_seed(2)
    tokens, targets = torch.randint(11, (2, 3, 2, 7), generator=generator)  # (clients, B, T)
    weights = {
        name: value.detach() + 0.1 * torch.randn(3, *value.shape, dtype=value.dtype, generator=generator)
        for name, value in model.named_parameters()
    }
    together = vmap(grad(loss))(weights, tokens, targets)
    for client in range(3):
        own = {name: value[client].requires_grad_() for name, value in weights.items()}
        alone = grad(loss)(own, tokens[client], targets[client])
        plain = torch.autograd.grad(loss(own, tokens[client], targets[client]), list(own.values()))
        for (name, value), other in zip(alone.items(), plain, strict=True):
            torch.testing.assert_close(together[name][client], value, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-11)


def test_plain_attention_is_the_fused_one():
    """A decoder with attention from matrix products gives outputs and gradients of the one with torch's kernel."""
    sizes = {"vocabulary": 11, "context": 9, "width": 8, "depth": 2, "heads": 2}
    fused, plain = drawn(0, gpt2(**sizes, tied=False)), gpt2(**sizes, tied=False, fused=False).double()
    plain.load_state_dict(fused.state_dict())
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain(tokens), fused(tokens))
    for model in (fused, plain):
        model(tokens).square().mean().backward()
    for ours, theirs in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_it_is_causal():
    """Changing a token changes its own and later outputs, and no earlier one."""
    model = drawn(0, small())
    tokens = torch.randint(11, (1, 7), generator=torch.Generator().manual_seed(1))
    before = model(tokens)
    for place in range(7):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % 11
        same = (model(other) == before).all(dim=-1)[0]  # (T,)
        assert same[:place].all()
        assert not same[place:].any()


def test_cut_anywhere_is_the_whole_model():
    """At every boundary, two halves that exchange one activation and its gradient compute what the whole model computes."""
    model = drawn(0, small())
    tokens = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(1))
    whole = model(tokens)
    whole.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for cut in range(1, len(model)):
        model.zero_grad()
        sent = model[:cut](tokens)
        received = sent.detach().clone().requires_grad_()
        output = model[cut:](received)
        assert torch.equal(output, whole)
        output.square().sum().backward()
        sent.backward(received.grad)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name])


def test_half_precision():
    """Under autocast and with weights in bfloat16 the model runs; the balance loss keeps float32."""
    model = small()
    tokens = torch.arange(5)[None]
    with torch.autocast("cpu", torch.bfloat16), record_routing() as routing:
        mixed = model(tokens)
    assert mixed.dtype == torch.bfloat16
    assert routing[0].balance_loss.dtype == torch.float32
    torch.testing.assert_close(mixed.float(), model(tokens), rtol=0.05, atol=0.02)
    assert model.bfloat16()(tokens).dtype == torch.bfloat16


def test_profile():
    """A profile has the children as layers; parameters and FLOPs are those of the formula, with all experts computed."""
    model = small()
    profile = ModelProfile.from_module(model, torch.zeros(2, 9, dtype=torch.int64))
    assert profile.layer_names == tuple(name for name, _ in model.named_children())
    experts = 4 * (2 * 8 * 6 + 8 + 6) + 4 * 8 + 2 * 8  # networks, router, norm
    attention = 8 * 24 + 24 + 8 * 8 + 8 + 2 * 8
    assert (profile.parameter_bytes[1], profile.parameter_bytes[2]) == (4 * attention, 4 * experts)
    assert profile.num_parameters == 11 * 8 + 9 * 8 + 2 * (attention + experts) + 2 * 8 + 8 * 11
    assert profile.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    per_token = 2 * 8 * 4 + 4 * 2 * 2 * 8 * 6 + 2 * 4 * 8  # router, networks, their last biases
    assert profile.forward_flops[2] == 9 * per_token
    assert (profile.activation_bytes[:-1] == 4 * 9 * 8).all()
