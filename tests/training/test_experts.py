"""Experts that learn, through the task: by name, at cuts, in training steps, in FLOPs; and replies that tell their work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.errors import InvalidProblemError
from edgeopt.models import moe_decoder, record_routing
from edgeopt.models.moe import Experts
from edgeopt.training import (
    ArrayData,
    Batch,
    Batches,
    FedAvg,
    LocalRunner,
    Message,
    Partition,
    Sgd,
    State,
    Task,
    Tensors,
    TrainingError,
    minimise,
    reply,
)
from tests.training.small_tasks import assert_near, assert_same, small_plan, small_task, small_timing
from tests.training.split_tasks import run

FIRST, SECOND = "block1_experts.body", "block2_experts.body"
NETWORKS = ("up", "up_bias", "down", "down_bias")
SIZES = {"vocabulary": 11, "context": 6, "width": 8, "depth": 2, "heads": 2, "hidden": 6, "experts": 4}


def sequences(count: int, seed: int) -> ArrayData:
    """Return random sequences, each of whose tokens is to be told from the one before."""
    tokens = torch.randint(SIZES["vocabulary"], (count, 7), generator=torch.Generator().manual_seed(seed))
    return ArrayData(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), SIZES["vocabulary"], "tokens")


def moe_task(model: nn.Sequential | None = None, **options: Any) -> Task:
    """Return a small decoder, whose parameters all matter, with three clients."""
    torch.manual_seed(0)
    model = moe_decoder(**SIZES) if model is None else model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    rows = tuple(np.arange(4 * client, 4 * client + 4) for client in range(3))
    fields: dict[str, Any] = {
        "model": model, "train": sequences(12, 0), "test": sequences(3, 1), "partition": Partition(rows, num_samples=12),
    }  # fmt: skip
    return Task(**(fields | options))


def gradients(task: Task, learns: Mapping[str, Any] | None, samples: int = 3) -> Tensors:
    """Return the gradients of the training loss by all weights, under plain autograd."""
    weights = {name: value.requires_grad_() for name, value in task.initial_weights().items()}
    loss, _ = task.batch_loss(weights, task.train.inputs[:samples], task.train.targets[:samples], learns=learns)
    found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, found, strict=True))


# --- forward ------------------------------------------------------------------------------------------------------


def test_layers_are_named_as_their_weights():
    """Experts are counted by the names in the state dictionary; a model without a mixture has none."""
    assert moe_task().experts == {FIRST: 4, SECOND: 4}
    assert small_task().experts == {}


def test_routing_by_name():
    """What a pass returns of the routers is what a recorder sees, by name; hidden states are what enters the layer."""
    task = moe_task()
    weights, inputs = task.initial_weights(), task.train.inputs[:2]
    with record_routing() as recorded:
        task.model(inputs)
    passed = task.forward(weights, inputs)
    assert list(passed.routing) == [FIRST, SECOND]
    for found, expected in zip(passed.routing.values(), recorded, strict=True):
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.experts, expected.experts)
    x = task.forward(weights, inputs, 0, 2).outputs
    norm = task.model.block1_experts.norm
    hidden = passed.routing[FIRST].hidden
    assert hidden is not None
    torch.testing.assert_close(hidden, norm(x))
    upper = task.forward(weights, x, 2)
    assert list(upper.routing) == [FIRST, SECOND]
    assert torch.equal(upper.routing[SECOND].logits, passed.routing[SECOND].logits)
    assert task.forward(weights, inputs, 0, 2).routing == {}
    assert small_task().forward(small_task().initial_weights(), small_task().test.inputs).routing == {}


@pytest.mark.parametrize("as_tensor", [False, True])
def test_only_the_layer_that_is_named_is_limited(as_tensor: bool):
    """Outputs stay; masked experts of the named layer have no gradient; experts above it learn as ever."""
    task = moe_task()
    mask: Any = [True, False, True, False]
    learns = {FIRST: torch.tensor(mask) if as_tensor else mask}
    weights, inputs = task.initial_weights(), task.train.inputs[:3]
    assert torch.equal(task.forward(weights, inputs, learns=learns).outputs, task.forward(weights, inputs).outputs)
    found, whole = gradients(task, learns), gradients(task, None)
    for name in NETWORKS:
        assert (found[f"{FIRST}.{name}"][1::2] == 0).all()
        assert (whole[f"{FIRST}.{name}"][1::2] != 0).any()
        torch.testing.assert_close(found[f"{FIRST}.{name}"][::2], whole[f"{FIRST}.{name}"][::2])
    above = task.part(whole, 3)
    assert_near({name: found[name] for name in above}, above)
    below = task.part(found, 0, 2)
    assert not all(torch.allclose(value, whole[name]) for name, value in below.items())  # less comes through


def test_masks_of_layers_elsewhere_do_not_matter():
    """At a cut both sides may be given all masks; the gradients are those of the whole model."""
    task = moe_task(balance=0.0)
    learns = {FIRST: [True, False, False, True], SECOND: [False, True, False, False]}
    weights = {name: value.requires_grad_() for name, value in task.initial_weights().items()}
    inputs, targets = task.train.inputs[:3], task.train.targets[:3]
    sent = task.forward(weights, inputs, 0, 3, learns=learns).outputs
    received = sent.detach().requires_grad_()
    outputs = task.forward(weights, received, 3, learns=learns).outputs
    task.loss(outputs, targets).backward()
    sent.backward(received.grad)
    for name, value in gradients(task, learns).items():
        torch.testing.assert_close(weights[name].grad, value, msg=name)


@pytest.mark.parametrize("runner", [LocalRunner(), LocalRunner(batched=False)], ids=["batched", "sequential"])
def test_training_moves_those_that_learn(runner: LocalRunner):
    """In local training under an algorithm, experts that do not learn keep their bits; plain values and tensors agree."""

    @dataclass(frozen=True, slots=True)
    class Masked(FedAvg):
        plain: bool = True

        def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
            assert batch is not None
            mask = [True, False, True, False]
            learns = {name: mask if self.plain else torch.tensor(mask) for name in task.experts}

            def loss(weights: Tensors, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
                return task.batch_loss(weights, inputs, targets, learns=learns)

            trained = minimise(task, loss, message["weights"], batch, self.optimizer)
            return reply(weights=trained.weights, scalars={"loss": trained.loss}), state

    task = moe_task()
    plans = small_plan(3, batch_size=4, local_steps=2)
    plain, tensors = (
        run(task, Masked(Sgd(0.3), plain=kind), plans, timing=small_timing(), runner=runner).models[0]
        for kind in (True, False)
    )
    assert_near(plain, tensors)
    before = task.initial_weights()
    for layer in task.experts:
        for name in NETWORKS:
            after = plain[f"{layer}.{name}"]
            torch.testing.assert_close(after[1::2], before[f"{layer}.{name}"][1::2], rtol=1e-6, atol=1e-7)  # of a mean
            assert (after[::2] != before[f"{layer}.{name}"][::2]).any()


def test_local_steps_leave_the_bits_of_the_others():
    """One client, no mean: not a bit of what does not learn changes."""
    task = moe_task()
    learns = {name: [False, True, False, False] for name in task.experts}
    batch = task.batch(0, Batches(0, 0, 3, 2))
    weights = task.initial_weights()
    trained = minimise(
        task, lambda w, x, y: task.batch_loss(w, x, y, learns=learns), weights, batch, Sgd(0.3, momentum=0.9)
    ).weights
    for layer in task.experts:
        for name in NETWORKS:
            assert_same({name: trained[f"{layer}.{name}"][[0, 2, 3]]}, {name: weights[f"{layer}.{name}"][[0, 2, 3]]})


@pytest.mark.parametrize(
    ("learns", "message"),
    [
        (
            {"block1": [True]},
            "learns: 'block1': expected a layer of experts, the model has block1_experts.body, block2",
        ),
        ({FIRST: [True] * 3}, rf"learns\['{FIRST}'\]: expected 4 truth values, one for each expert, got \[True, "),
        ({FIRST: [1, 0, 0, 1]}, r"expected 4 truth values, one for each expert, got \[1, 0"),
        ({FIRST: torch.ones(4)}, r"expected 4 truth values, one for each expert, got torch.float32 \[4\]"),
        ({FIRST: torch.ones(3, dtype=torch.bool)}, r"got torch.bool \[3\]"),
        ({FIRST: 2}, r"expected 4 truth values, one for each expert, got 2"),
    ],
)
def test_masks_that_do_not_fit(learns: Any, message: str):
    """Errors name the layer, what was given and what was expected."""
    task = moe_task()
    with pytest.raises(InvalidProblemError, match=message):
        task.forward(task.initial_weights(), task.train.inputs[:2], learns=learns)
    with pytest.raises(InvalidProblemError, match="expected a layer of experts, the model has none"):
        small_task().forward(small_task().initial_weights(), small_task().test.inputs, learns={FIRST: [True]})


# --- work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(0, 0), (1, 4), (2, 1), (4, 4)])
def test_work_is_what_torch_does(counts: tuple[int, int]):
    """Backward FLOPs are those that torch counts where only so many experts of each layer learn."""
    task = moe_task(balance=0.0)
    learns = dict(zip(task.experts, counts, strict=True))
    masks = {name: [e < count for e in range(4)] for name, count in learns.items()}
    weights = {name: value.requires_grad_() for name, value in task.initial_weights().items()}
    loss, _ = task.batch_loss(weights, task.train.inputs[:3], task.train.targets[:3], learns=masks)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    forward = task.flops(3, backward=False)
    assert task.flops(3, learns=learns) - forward == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_work_of_a_device_that_skips():
    """A device that computes only K experts per token does the work of a layer that has no more, but for its router."""
    few, many = moe_task(moe_decoder(**(SIZES | {"experts": 2}))), moe_task()
    for options in ({"backward": False}, {}, {"last": 3}, {"first": 2, "last": 4}):
        found = many.flops(5, **options, runs={FIRST: 2, SECOND: 2})
        layers = range(options.get("first", 0), options.get("last", 6))
        router = sum(2 * 8 * 2 * 6 for layer in layers if layer in (2, 4))  # of the two more experts, per sample
        passes = 1 if "backward" in options else 3
        assert found == pytest.approx(few.flops(5, **options) + 5 * passes * router, rel=1e-12)
    assert many.flops(5, runs={FIRST: 2}) == many.flops(5, runs={FIRST: 2}, learns={FIRST: 2})
    assert many.flops(5, 0, 2, learns={SECOND: 1}) == many.flops(5, 0, 2)
    with pytest.raises(InvalidProblemError, match="expected a layer of experts"):
        many.flops(5, learns={"block1": 2})
    for count in (-1, 4.5, np.nan):
        with pytest.raises(InvalidProblemError, match=f"experts of {FIRST} = {count}: expected"):
            many.flops(5, learns={FIRST: count})


def test_layers_that_are_more_than_experts():
    """Where a layer does other work too, that is charged in full."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.experts = nn.Linear(4, 4, bias=False), Experts(4, 5, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.experts(self.linear(x)[:, None]).squeeze(1)
            return y

    task = small_task(model=nn.Sequential(Both(), nn.Linear(4, 3)))
    one = 2 * 4 * 5 * 2 + 2 * 4  # forward FLOPs of an expert, with its last bias
    assert task.flops(1, runs={"0.experts": 1}, backward=False) == pytest.approx(
        2 * 16 + 2 * 4 * 3 + one + 2 * 4 * 3, rel=1e-12
    )


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_reply_says_what_was_computed(batched: bool, as_tensor: bool):
    """Time and energy are those of the work that replies tell; without, those of the message."""

    @dataclass(frozen=True, slots=True)
    class Telling(FedAvg):
        name: ClassVar[str] = "telling"
        told: float = 0.0

        def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
            answer, state = FedAvg.client(self, task, message, state, batch)
            work: Any = self.told
            if as_tensor:  # which may depend on what the client has: its first weight is the same for all here
                work = self.told + 0.0 * answer["scalars"]["loss"]
            return reply(**answer.tensors, flops=work), state

    task = small_task()
    options: dict[str, Any] = {"timing": small_timing(), "runner": LocalRunner(batched=batched)}
    plain = run(task, FedAvg(), small_plan(), **options).last
    silent = run(task, Telling(), small_plan(), **options).last
    half = run(task, Telling(told=2 * task.flops(1)), small_plan(), **options).last  # 2 steps of 2 samples are 4
    assert plain is not None
    assert silent is not None
    assert half is not None
    np.testing.assert_array_equal(silent.phases[0].compute_s, plain.phases[0].compute_s)
    np.testing.assert_allclose(half.phases[0].compute_s, plain.phases[0].compute_s / 2)
    for told in (-1.0, np.nan, np.inf):
        with pytest.raises(TrainingError, match=r"^round 0, telling, client 0: reply to 'train': flops = .*: expected"):
            run(task, Telling(told=told), small_plan(), **options)


def test_what_is_known_of_the_steps_is_averaged():
    """Local training returns the mean over the steps of what a loss tells beside it, tensors of any shape."""
    task = moe_task()
    seen: list[torch.Tensor] = []

    def loss(
        weights: Tensors, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor, Tensors]:
        passed = task.forward(weights, inputs)
        found = task.pass_loss(passed, targets)
        seen.append(inputs.float().mean(dim=0))
        return found, passed.buffers, found, {"mean": seen[-1], "loss": found}

    batch = task.batch(0, Batches(0, 0, 3, 2))
    trained = minimise(task, loss, task.initial_weights(), batch, Sgd(0.1))
    torch.testing.assert_close(trained.known["mean"], torch.stack(seen).mean(dim=0))
    torch.testing.assert_close(trained.known["loss"], trained.loss)
    assert not trained.known["loss"].requires_grad
    plain = minimise(task, task.batch_loss, task.initial_weights(), batch, Sgd(0.1))
    assert_same(plain.weights, trained.weights)
    assert plain.known == {}


def test_a_choice_in_the_pass_is_a_mask():
    """A function of the routing that returns a mask gives the gradients of that mask."""
    task = moe_task()
    mask = torch.tensor([True, False, False, True])
    assert_same(gradients(task, {FIRST: lambda routing: mask}), gradients(task, {FIRST: mask}))
