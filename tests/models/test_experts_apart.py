"""Experts that compute only the tokens that use them: outputs and gradients of the layer in which all compute all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.models import moe, record_routing
from edgeopt.models.moe import Experts, Learners, every_expert, expert_shares, limit_learners, moe_mlp


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the layer is."""
    monkeypatch.setattr(moe, "_WORTH_IT", 0)


def drawn(seed: int, experts: int, top_k: int, shape: tuple[int, ...] = (2, 5)) -> tuple[Experts, torch.Tensor]:
    """Return a layer with all parameters from N(0, 1) in double precision, and an input (*shape, 3) for it."""
    generator = torch.Generator().manual_seed(seed)
    layer = Experts(3, 4, experts, top_k).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer, torch.randn(*shape, 3, dtype=torch.float64, generator=generator)


def outputs(layer: Experts, x: torch.Tensor, learners: Learners | None = None, all_: bool = False) -> torch.Tensor:
    y: torch.Tensor
    with limit_learners({} if learners is None else {layer: learners}):
        if all_:
            with every_expert():
                y = layer(x)
        else:
            y = layer(x)
    return y


def gradients(layer: Experts, x: torch.Tensor, learners: Learners | None, all_: bool) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    loss = outputs(layer, x, learners, all_).sin().sum()
    return list(torch.autograd.grad(loss, [x, *layer.parameters()], materialize_grads=True))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6), st.data())
def test_it_is_the_layer_in_which_all_compute_all(seed: int, experts: int, data: st.DataObject) -> None:
    """Outputs and all gradients, whichever experts learn, for any leading axes."""
    top_k = data.draw(st.integers(1, experts))
    shape = data.draw(st.sampled_from([(1,), (7,), (2, 5), (2, 1, 3)]))
    layer, x = drawn(seed, experts, top_k, shape)
    learners: Learners | None = data.draw(st.none() | st.lists(st.booleans(), min_size=experts, max_size=experts))
    if learners is not None and data.draw(st.booleans()):
        learners = torch.tensor(learners)
    torch.testing.assert_close(outputs(layer, x, learners), outputs(layer, x, learners, True), rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(gradients(layer, x, learners, False), gradients(layer, x, learners, True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_no_more_is_computed_than_tokens_use():
    """The FLOPs are those of router, K of E networks per token, and the last biases; of all when everything is to run."""
    layer, x = drawn(0, 6, 2)
    per_network, rest = 2 * 2 * 3 * 4, 2 * 3 * 6 + 2 * 6 * 3
    for all_, networks in ((False, 2), (True, 6)):
        with FlopCounterMode(display=False) as counter:
            outputs(layer, x, all_=all_)
        assert counter.get_total_flops() == 10 * (networks * per_network + rest)
    model = moe_mlp(3, 4, width=3, hidden=4, experts=6)
    assert expert_shares(model, torch.zeros(2, 3))["experts"] == pytest.approx(
        (6 * per_network + 36) / (6 * per_network + 72)
    )


@pytest.mark.parametrize("top_k", [1, 2])
def test_which_experts_learn_changes_no_bit_of_the_outputs(top_k: int):
    """As where all compute all."""
    layer, x = drawn(1, 5, top_k)
    expected = outputs(layer, x)
    mask = [True, False, False, True, False]
    for learners in (mask, torch.tensor(mask), [False] * 5):
        assert torch.equal(outputs(layer, x, learners), expected)
        with torch.no_grad():
            assert torch.equal(outputs(layer, x, learners), expected)


def test_experts_that_do_not_learn_have_zero_gradients_and_keep_nothing():
    """Exactly zero, and a layer none of whose experts learns has no graph but that of its router."""
    layer, x = drawn(2, 5, 2)
    mask = torch.tensor([True, False, False, True, False])
    for gradient in gradients(layer, x, mask, False)[1:-1]:
        assert (gradient[~mask] == 0).all()
    x_gradient, *networks, router = gradients(layer, x, [False] * 5, False)
    assert (router != 0).any()
    assert all((gradient == 0).all() for gradient in networks)
    assert (x_gradient != 0).any()  # by way of the router alone


def test_only_learning_experts_keep_activations():
    """Of three inner activations per token, those of learning experts alone are kept, also where the choice is a tensor."""
    layer, x = drawn(7, 5, 2)

    def kept(learners: Learners | None) -> int:
        found: dict[int, int] = {}
        own = {parameter.untyped_storage().data_ptr() for parameter in (*layer.parameters(), x)}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape[-1] == 4 and tensor.untyped_storage().data_ptr() not in own:  # the inner width
                found[tensor.untyped_storage().data_ptr()] = len(tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            y = outputs(layer, x, learners)
        assert y.requires_grad
        return sum(found.values())

    uses = torch.bincount(layer.router(x).topk(2, dim=-1).indices.flatten(), minlength=5).tolist()
    assert kept([False] * 5) == 0
    for mask in ([True, False, True, False, False], [True] * 5):
        expected = kept(mask)
        assert expected == kept(torch.tensor(mask))
        assert expected == kept(None) * sum(n for n, learns in zip(uses, mask, strict=True) if learns) // sum(uses)


def test_a_batch_of_clients_runs_all_experts():
    """Within vmap no shape may depend on the data: the same outputs and gradients come from all experts at once."""
    layer, _ = drawn(3, 5, 2)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 4, 3, dtype=torch.float64, generator=generator)
    weights = {
        name: value.detach() + torch.randn(3, *value.shape, dtype=value.dtype, generator=generator)
        for name, value in layer.named_parameters()
    }

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = functional_call(layer, weights, (x,))
        return y.sin().sum()

    together = vmap(grad(loss))(weights, x)
    for client in range(3):
        own = {name: value[client] for name, value in weights.items()}
        for name, value in grad(loss)(own, x[client]).items():
            torch.testing.assert_close(value, together[name][client], rtol=1e-9, atol=1e-11)


def test_in_half_precision_and_without_values():
    """Types are those of the layer in which all compute all; on the meta device there is nothing to look at."""
    layer, x = drawn(4, 5, 2)
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        apart, together = outputs(layer, x), outputs(layer, x, all_=True)
    assert apart.dtype == together.dtype
    torch.testing.assert_close(apart, together, rtol=0.05, atol=0.1)
    assert outputs(layer.to("meta"), x.to("meta")).shape == x.shape


def test_small_layers_run_as_one(monkeypatch: pytest.MonkeyPatch):
    """Where running experts on their own saves too little, all compute all, to the same bits as when told to."""
    monkeypatch.undo()
    layer, x = drawn(5, 5, 2)
    assert torch.equal(outputs(layer, x), outputs(layer, x, all_=True))


def test_a_choice_is_made_from_the_routing():
    """A function in place of the experts that learn gets the routing of the pass."""
    layer, x = drawn(6, 5, 2)

    def used(routing: moe.LayerRouting) -> torch.Tensor:
        seen.append(routing)
        return torch.arange(5) == routing.experts.flatten()[0]

    seen: list[moe.LayerRouting] = []
    with limit_learners({layer: used}), record_routing() as recorded:
        found = torch.autograd.grad(layer(x).sum(), layer.up)[0]
    assert torch.equal(seen[0].experts, recorded[0].experts)
    learnt = int(recorded[0].experts.flatten()[0])
    assert (found[learnt] != 0).any()
    assert (found[[e for e in range(5) if e != learnt]] == 0).all()


def test_the_classifier_learns():
    """A few steps of gradient descent lower its loss; a sample is one token."""
    torch.manual_seed(0)
    model, x, y = moe_mlp((1, 4, 4), 3), torch.randn(30, 1, 4, 4), torch.arange(30) % 3
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    losses = []
    for _ in range(20):
        with record_routing() as routing:
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert routing[0].experts.shape == (30, 2)
