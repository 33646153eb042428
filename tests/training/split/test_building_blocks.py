"""Split learning from the public building blocks: a server that declines, and what crosses a cut in half precision."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from edgeopt import RoundPlan
from edgeopt.training import (
    Answer,
    Batch,
    LocalRunner,
    Message,
    Models,
    Optimizer,
    Outcome,
    ParallelSplit,
    Phase,
    Replies,
    Sgd,
    Smashed,
    SplitFed,
    SplitFedV2,
    State,
    Task,
    TrainingError,
    VanillaSplit,
    assign,
    map_cuts,
    play_steps,
    received,
    server_gradients,
    split_client,
    tensors_of,
)  # fmt: skip
from tests.training.small_tasks import assert_same
from tests.training.split_tasks import run, task


@dataclass(frozen=True)
class Choosing:
    """The server trains with all clients, and sends a gradient to those only whose loss is not above a bound."""

    name: ClassVar[str] = "choosing"

    optimizer: Optimizer = field(default_factory=Sgd)
    declined: tuple[int, ...] = ()
    silent: bool = False

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        return {"weights": dict(task.initial_weights())}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Exchange activations and gradients."""
        assigned = assign(task, plan, number, 2, 4)
        weights = tensors_of(state, "weights")

        def work(smashed: Mapping[int, Smashed]) -> dict[int, Answer]:
            items = {entry: (task.part(weights, assigned[entry].cut), sent) for entry, sent in smashed.items()}
            found = map_cuts(task, assigned, items, lambda cut, item: server_gradients(task, cut, *item))
            answers = {
                entry: Answer(None if assigned[entry].client in self.declined else one.gradient, one.loss)
                for entry, one in found.items()
            }
            return dict(list(answers.items())[:-1]) if self.silent else answers

        return Outcome(state, (yield from play_steps(task, assigned, number, work)))

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Work with the layers up to the cut."""
        return split_client(task, self.optimizer, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the server's model."""
        return {None: tensors_of(state, "weights")}


PLAN = RoundPlan(client=[0, 1, 2], batch_size=4, local_steps=2)


@pytest.mark.parametrize("batched", [True, False])
def test_a_client_without_a_gradient_stays_as_it_is(batched: bool):
    """Nothing is sent to it and nothing charged for it; the others are as if all had got one; its loss counts."""
    runner = LocalRunner(batched=batched)
    some = run(task(), Choosing(declined=(1,)), PLAN, PLAN, runner=runner)
    everyone = run(task(), Choosing(), PLAN, PLAN, runner=LocalRunner(batched=batched))
    assert list(some.clients) == [0, 2]
    for client in (0, 2):
        assert_same(tensors_of(some.clients[client], "weights"), tensors_of(everyone.clients[client], "weights"))
    first, all_of_it = some.rows[0], everyone.rows[0]
    assert first["gradients_down"] * 3 == all_of_it["gradients_down"] * 2
    assert first["activations_up"] == all_of_it["activations_up"]
    assert first["completed"] == 3
    assert some.last is not None
    backward = [phase for phase in some.last.phases if phase.name == "backward"]
    assert [phase.entry.tolist() for phase in backward] == [[0, 2], [0, 2]]


def test_a_server_may_decline_all():
    """There is no backward phase then, and no client moves."""
    history = run(task(), Choosing(declined=(0, 1, 2)), PLAN)
    assert history.clients == {}
    assert history.last is not None
    assert [phase.name for phase in history.last.phases] == ["forward", "forward"]


def test_a_server_without_an_answer_is_an_error():
    """To forget a client is not to decline: the message names round and client."""
    with pytest.raises(TrainingError, match="round 0, choosing, client 2: the server has no answer to its activations"):
        run(task(), Choosing(silent=True), PLAN)


def test_what_a_client_holds_is_not_sent_again():
    """When the cut moves up, the layers that the client lacks are brought, those it has trained are named and stay."""
    of, deep = task(), PLAN.replace(cut_layer=3)
    history = run(of, ParallelSplit(), PLAN.replace(cut_layer=1), PLAN.replace(cut_layer=1), deep)
    between = sum(value.nbytes for value in of.part(of.initial_weights(), 1, 3).values())
    assert [row["weights_down"] for row in history.rows] == [0, 0, 3 * between]
    message = Message("place", {"weights": {"b": torch.ones(1)}}, held=frozenset({"a"}))
    own = {"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}
    assert_same(received(message, own), {"a": torch.zeros(1), "b": torch.ones(1)})
    with pytest.raises(TrainingError, match="held: a: expected weights that the client has"):
        received(message, {"c": torch.zeros(1)})


NORMED = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)), nn.Flatten(), nn.Linear(64, 4))
ALGORITHMS: tuple[Any, ...] = (ParallelSplit(), SplitFed(), SplitFedV2(), VanillaSplit())


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize(("kind", "numbers"), [("mlp", 6), ("cnn", 3), ("normed", 64)])
def test_half_precision_costs_two_bytes_per_number(algorithm: Any, kind: str, numbers: int):
    """At a cut after a linear layer, a convolution, or a normalisation that returns single precision: batched or not."""
    of = (
        task("mlp", (8, 8, 8), torch.float32, precision="bf16", **({"model": NORMED} if kind == "normed" else {}))
        if kind != "cnn"
        else task("cnn", (8, 8, 8), torch.float32, precision="bf16")
    )
    for batched in (True, False):
        row = run(of, algorithm, PLAN.replace(cut_layer=2), runner=LocalRunner(batched=batched)).rows[0]
        assert row["activations_up"] == row["gradients_down"] == 3 * 2 * 4 * numbers * 2
