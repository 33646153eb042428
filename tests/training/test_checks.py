"""What algorithms hand over wrongly: one line with round, client, name and what was expected, batched or not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from edgeopt import StaticPlanner
from edgeopt.training import (
    Batch,
    Batches,
    LocalRunner,
    Message,
    Models,
    Outcome,
    ParallelSplit,
    Phase,
    SplitFed,
    SplitFedV2,
    State,
    Task,
    TrainingError,
    VanillaSplit,
    reply,
    tensors_of,
    train,
)  # fmt: skip
from tests.training.small_tasks import FEATURES, small_plan, small_task, small_timing

ONE = torch.ones(())


@dataclass(frozen=True)
class Wrong:
    """An algorithm that does what it is told, in its second round."""

    name: ClassVar[str] = "wrong"

    answer: Any = field(default_factory=lambda: reply(scalars={"loss": ONE}))
    state: Any = field(default_factory=dict)
    message: Any = None
    phase: Any = None
    outcome: Any = "as it should be"

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        return {"weights": dict(task.initial_weights())}

    def round(self, task: Task, state: State, plan: Any, number: int) -> Any:
        """Play a phase."""
        batches = Batches(number, 0, 1, 2)
        messages = {entry: Message("train", batches=batches) for entry in range(len(plan))}
        if number and self.message is not None:
            messages[1] = self.message
        yield self.phase if number and self.phase is not None else Phase("train", messages)
        done = Outcome(state, dict.fromkeys(messages, ONE))
        return done if number == 0 or self.outcome == "as it should be" else self.outcome

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> Any:
        """Answer."""
        assert batch is not None
        if message.batches is not None and message.batches.round == 0:
            return reply(scalars={"loss": batch.inputs.sum()}), {}
        answer = self.answer(batch) if callable(self.answer) else self.answer
        return answer if self.state is None else (answer, self.state)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the initial weights."""
        return {None: tensors_of(state, "weights")}


AT_CLIENT = r"^round 1, client 2, wrong, message 'train': "
AT_SERVER = r"^round 1, wrong: "
OF_CLIENT = r"^round 1, wrong, client 0: phase 'train': "
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a float in a reply": (
        {"answer": lambda batch: reply(scalars={"loss": 0.5})},
        AT_CLIENT + r"reply: scalars\['loss'\] is a float: expected a tensor under a name$",
    ),
    "an unknown category": (
        {"answer": lambda batch: reply(secrets={"x": ONE})},
        AT_CLIENT + "reply: category 'secrets': expected one of weights, .*, statistics$",
    ),
    "no tensors by name": (
        {"answer": lambda batch: reply(weights=ONE)},
        AT_CLIENT + "reply: weights is a tensor of shape",
    ),
    "a reply alone": ({"state": None}, AT_CLIENT + "the client returned a Message: expected a pair, reply and state$"),
    "no reply": ({"answer": {"loss": ONE}}, AT_CLIENT + "the client returned a tuple: expected a pair"),
    "a list in a state": (
        {"state": {"seen": {"last": [1, 2]}}},
        AT_CLIENT + r"state\['seen'\]\['last'\] is a list: expected a tensor, or a dictionary of them$",
    ),
    "an int in a state": ({"state": {"count": 3}}, AT_CLIENT + r"state\['count'\] is an int: expected a tensor"),
    "a number as a name in a state": ({"state": {3: ONE}}, AT_CLIENT + "state: key 3: expected a name$"),
    "no state": ({"state": ONE}, AT_CLIENT + "state is a tensor .*: expected a dictionary of tensors"),
    "rows of nothing": (
        {"answer": lambda batch: reply(scalars={"loss": ONE}, rows={"w": torch.ones(1, dtype=torch.bool)})},
        AT_CLIENT + r"reply: rows\['w'\]: expected the name of a tensor in the message$",
    ),
    "rows that do not fit": (
        {"answer": lambda batch: reply(weights={"w": batch.inputs[0]}, rows={"w": torch.ones(7, dtype=torch.bool)})},
        AT_CLIENT + r"reply: rows\['w'\] has shape \[7\]: expected the first axes of \[2, 4\], or 1$",
    ),
    "rows that are numbers": (
        {"answer": lambda batch: reply(weights={"w": batch.inputs[0]}, rows={"w": torch.ones(2)})},
        AT_CLIENT + r"reply: rows\['w'\] is a tensor of shape \[2\]: expected booleans$",
    ),
    "a dict in values": (
        {"message": Message("train", values={"cuts": {0: 1}})},
        OF_CLIENT + r"train: values\['cuts'\] is a dict: expected a number, a text or a truth value$",
    ),
    "an unknown category at the server": (
        {"message": Message("train", {"secrets": {"x": ONE}})},  # type: ignore[dict-item]
        OF_CLIENT + "train: category 'secrets': expected one of",
    ),
    "no message": ({"message": {"weights": {}}}, OF_CLIENT + "a dict: expected a Message$"),
    "an unknown entry": (
        {"phase": Phase("train", {7: Message("train")})},
        AT_SERVER + "phase 'train': messages: entry 7: expected 0 to 1, positions in the plan$",
    ),
    "an entry that is a name": (
        {"phase": Phase("train", {"a": Message("x")})},
        AT_SERVER + ".*entry 'a': expected 0 to 1",
    ),  # type: ignore[dict-item]
    "an unknown entry to serve": (
        {"phase": Phase("train", {}, server_flops={2: 1.0})},
        AT_SERVER + "phase 'train': server_flops: entry 2: expected 0 to 1",
    ),
    "no phase": ({"phase": {0: Message("train")}}, AT_SERVER + "the round yielded a dict: expected a Phase$"),
    "no outcome": ({"outcome": None}, AT_SERVER + "the round returned a NoneType: expected an Outcome$"),
    "a loss of an unknown entry": ({"outcome": Outcome({}, {5: ONE})}, AT_SERVER + "loss: entry 5: expected 0 to 1"),
    "a loss that is no number": (
        {"outcome": Outcome({}, {0: torch.ones(2)})},
        r"^round 1, wrong, client 2: loss is a tensor of shape \[2\]: expected a single number$",
    ),
    "a list in the server's state": (
        {"outcome": Outcome({"rounds": [1]}, {})},  # type: ignore[dict-item]
        AT_SERVER + r"state\['rounds'\] is a list: expected a tensor",
    ),
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_what_is_handed_over_wrongly(case: str, batched: bool):
    """The message is one line that says where, what was given, and what was expected."""
    options, message = CASES[case]
    plan = StaticPlanner(small_plan(client=[2, 0]))
    with pytest.raises(TrainingError, match=message) as caught:
        train(
            small_task((6, 6, 6)), Wrong(**options), plan, small_timing(), rounds=2, runner=LocalRunner(batched=batched)
        )
    assert "\n" not in str(caught.value)


class NoGenerator(Wrong):
    def round(self, task: Task, state: State, plan: Any, number: int) -> Any:
        return Outcome(state, {})


class OneModel(Wrong):
    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Any:
        return tensors_of(state, "weights")


class Misread(Wrong):
    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> Any:
        return reply(scalars={"loss": message["weight"]["0.bias"]}), {}  # type: ignore[index]


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (NoGenerator(), "wrong: the round returned an Outcome: expected a generator, it has to yield its phases$"),
        (
            OneModel(),
            r"wrong, evaluation: models\['0.weight'\] is a tensor of shape .*: expected weights by name, .* None$",
        ),
        (
            Misread(),
            "client 2, wrong, message 'train': train: category 'weight': expected one of weights, .*, statistics$",
        ),
    ],
)
def test_methods_of_another_form(algorithm: Wrong, message: str):
    """A round without a yield, the weights of one model in place of models, a category by a wrong name."""
    plan = StaticPlanner(small_plan(client=[2, 0]))
    with pytest.raises(TrainingError, match=f"^round 0, {message}"):
        train(small_task((6, 6, 6)), algorithm, plan, small_timing(), rounds=1)


@pytest.mark.parametrize("algorithm", [ParallelSplit(), SplitFed(), SplitFedV2(), VanillaSplit()], ids=lambda a: a.name)
@pytest.mark.parametrize("batched", [True, False])
def test_a_loss_on_the_servers_side(algorithm: Any, batched: bool):
    """Batch normalisation at the server refuses a client with one sample: round, client and cut are named."""
    model = nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    plan = StaticPlanner(small_plan(client=[0, 1], cut_layer=1))
    expected = rf"^round 0, {algorithm.name}, client 1, layers above cut 1 at the server: .*(more than one|at least 2|> 1|more than 1)"
    with pytest.raises(TrainingError, match=expected) as caught:
        train(
            small_task((6, 1), model=model),
            algorithm,
            plan,
            small_timing(2),
            rounds=1,
            runner=LocalRunner(batched=batched),
        )
    assert "\n" not in str(caught.value)
