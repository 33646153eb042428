"""HFedMoE and FedAlign-MoE on a decoder with two layers of experts, against what its own layers say when run by themselves."""

from typing import Any

import pytest
import torch

from edgeopt.models import record_routing
from edgeopt.training import FedAlignMoe, HFedMoe, LocalRunner, Sgd, Task, Tensors
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, small_plan
from tests.training.split_tasks import run
from tests.training.test_experts import FIRST, NETWORKS, SECOND, moe_task

EXPERTS = 4
LAYERS = (FIRST, SECOND)
both = pytest.mark.parametrize("algorithm", [HFedMoe(optimizer=Sgd(0.1)), FedAlignMoe(optimizer=Sgd(0.1))])


def routing_of(task: Task, weights: Tensors, inputs: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return probabilities [N T, E] and hidden states [N T, C] of each layer, from the model itself."""
    task.model.load_state_dict(weights)
    with torch.no_grad(), record_routing() as found:
        task.model.eval()(inputs)
    return [(layer.logits.softmax(-1).flatten(0, 1), layer.hidden.flatten(0, 1)) for layer in found]


@both
def test_a_batch_of_clients_learns_what_one_after_another_do(algorithm: Any):
    """Two rounds with unequal budgets end in the same weights, up to rounding."""
    plan = small_plan(batch_size=2, local_steps=2, experts=[1, 2, 0])
    first, second = (
        run(moe_task(), algorithm, plan, rounds=2, runner=LocalRunner(batched=batched)) for batched in (True, False)
    )
    assert_near(first.models[0], second.models[0], 1e-4)


@pytest.mark.parametrize("selection", ["information", "frequency"])
def test_the_expert_that_learns_is_the_one_that_the_tokens_name(selection: Any):
    """With one expert of each layer and one step: found anew from the routing of all tokens; the others keep their bits."""
    task, runner = moe_task(), Recording()
    run(task, HFedMoe(selection, optimizer=Sgd(0.1)), small_plan(batch_size=4, local_steps=1, experts=1), runner=runner)
    before = task.initial_weights()
    for client, (_, message, answer) in enumerate(runner.sent):
        inputs = task.batch(client, message.batches).inputs[0]
        for layer, (p, _) in zip(LAYERS, routing_of(task, before, inputs), strict=True):
            used = torch.zeros_like(p).scatter(1, p.topk(2, dim=1).indices, 1.0)  # (N T, E)
            told = (p * (p / p.mean(0)).log()).mean(0)
            score = used.sum(0) if selection == "frequency" else 0.5 * p.mean(0) + 0.5 * p.amax(0) - told
            best = int(torch.where(used.any(0), score, -torch.inf).argmax())
            learns = answer["statistics"][f"{layer}.learns"]
            assert learns.nonzero().flatten().tolist() == [best]
            for name in NETWORKS:
                own, old = answer["weights"][f"{layer}.{name}"], before[f"{layer}.{name}"]
                assert torch.equal(own[~learns], old[~learns])
            assert not torch.equal(answer["weights"][f"{layer}.down"][best], before[f"{layer}.down"][best])


def test_what_is_told_is_what_all_tokens_of_a_client_look_like():
    """Usage, margins and mean hidden states per layer: from the trained model, token by token; routers stay."""
    task, runner = moe_task(), Recording()
    history = run(task, FedAlignMoe(optimizer=Sgd(0.1)), small_plan(batch_size=2, local_steps=2), runner=runner)
    for client, (_, answer) in enumerate(pair for entry in range(3) for pair in runner.of("tell", entry)):
        assert not any("router" in name for name in answer["weights"])
        routers = {name: value for name, value in history.personal[client].items() if "router" in name}
        rows = torch.tensor(task.partition.indices[client])
        found = routing_of(task, {**answer["weights"], **routers}, task.train.inputs[rows])
        for layer, (p, hidden) in zip(LAYERS, found, strict=True):
            told = {name: answer["statistics"][f"{layer}.{name}"] for name in ("usage", "margin", "hidden", "first")}
            torch.testing.assert_close(told["usage"], p.mean(0))
            for e in range(EXPERTS):
                others = torch.cat([p[:, :e], p[:, e + 1 :]], dim=1).amax(1)
                torch.testing.assert_close(told["margin"][e], (p[:, e] - others).clamp(min=0).mean())
                first = p.argmax(1) == e
                assert bool(told["first"][e]) == bool(first.any())
                if first.any():
                    torch.testing.assert_close(told["hidden"][e], hidden[first].mean(0), rtol=1e-4, atol=1e-5)
