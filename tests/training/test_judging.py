"""How good models are: the common one on all samples, clients' own on what is like their data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.training import (
    ArrayData,
    FedAvg,
    MultiServerFedAvg,
    ParallelSplit,
    Partition,
    Sgd,
    Task,
    TrainingError,
    train,
)
from edgeopt.training.judging import judged, models_of, score
from edgeopt.training.messages import State, Tensors
from tests.training.small_tasks import assert_same, small_plan, small_task, small_timing

SIZES = (7, 5, 6)


@pytest.fixture(scope="module")
def task() -> Task:
    """Three clients, the second of which has samples of one class only."""
    task = small_task(SIZES)
    targets = task.train.targets.clone()
    targets[7:12] = 2
    return task.replace(train=replace(task.train, targets=targets))


def shifted(task: Task, number: int) -> Tensors:
    """Return weights that predict something else for every number."""
    weights = task.initial_weights()
    return {**weights, "2.bias": weights["2.bias"] + torch.tensor([0.3, -0.2, 0.1]) * number}


@dataclass(frozen=True)
class Fixed(FedAvg):
    """Models that are given."""

    found: Any = None
    name: ClassVar[str] = "fixed"

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Any:
        return self.found


@dataclass(frozen=True)
class Rolled(Fixed):
    """What a model predicts is moved on by as many classes as its key says."""

    def predict(self, task: Task, weights: Tensors, inputs: torch.Tensor, key: Any, state: State, clients: Any) -> Any:
        return task.predict(weights, inputs).roll(key or 0, dims=-1)


@pytest.mark.parametrize("client", [0, 1, 2])
def test_a_clients_own_score_weighs_samples_by_its_labels(task: Task, client: int):
    """Each held-out sample counts with the client's share of its label over how many have the label."""
    own = task.train.labels[task.partition.indices[client]]
    labels = task.test.labels
    weight = np.array([(own == label).sum() / (labels == label).sum() for label in labels])
    weights = shifted(task, 2)
    outputs = task.predict(weights, task.test.inputs)
    loss = torch.nn.functional.cross_entropy(outputs, task.test.targets, reduction="none").numpy()
    right = (outputs.argmax(1) == task.test.targets).numpy()
    expected = np.average(loss, weights=weight), np.average(right, weights=weight)
    assert task.evaluate(weights, client=client) == pytest.approx(expected)


def test_labels_that_nobody_is_tested_on(task: Task):
    """They do not count; a client with no other has no score, and neither has one without samples."""
    only = task.replace(test=task.test.take(np.flatnonzero(task.test.labels != 2)))
    assert np.isnan(only.evaluate(task.initial_weights(), client=1)).all()
    assert not np.isnan(only.evaluate(task.initial_weights(), client=0)).any()
    with pytest.raises(InvalidProblemError, match="client = -1: expected 0 to 2"):
        task.evaluate(task.initial_weights(), client=-1)
    empty = task.replace(partition=Partition((np.arange(18), np.arange(0)), num_samples=18))
    assert np.isnan(empty.evaluate(task.initial_weights(), client=1)).all()


def test_sequences_without_groups_count_alike():
    """There is no label of a sequence: a client's own score is that of all samples."""
    tokens = torch.arange(40).reshape(10, 4) % 3
    data = ArrayData(tokens, tokens.flip(1), 3, "tokens")
    model = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Linear(4, 3))
    task = Task(model=model, train=data, test=data, partition=Partition((np.arange(4), np.arange(4, 10))))
    assert task.evaluate(task.initial_weights(), client=0) == task.evaluate(task.initial_weights())


def test_mean_and_worst_tenth():
    """Of eleven clients the two worst are the worst tenth; the common model is the accuracy."""
    task = small_task((3,) * 11)
    models = {client: shifted(task, client - 5) for client in range(11)}
    common = shifted(task, 9)
    found = score(Fixed(), task, {None: common, **models}, {}, {})
    own = sorted(task.evaluate(weights, client=client).accuracy for client, weights in models.items())
    assert len(set(own)) > 2
    assert found.accuracy == task.evaluate(common).accuracy
    assert found.personal_accuracy == pytest.approx(np.mean(own))
    assert found.personal_accuracy_worst_tenth == pytest.approx(np.mean(own[:2]))
    alone = score(Fixed(), task, models, {}, {})
    assert alone.accuracy == pytest.approx(np.mean([task.evaluate(weights).accuracy for weights in models.values()]))
    assert alone.personal_accuracy == found.personal_accuracy
    assert np.isnan(score(Fixed(), task, {}, {}, {})).all()


def test_an_algorithm_may_say_how_its_models_predict(task: Task):
    """`predict` of the algorithm is used for each model under its key, on all samples and on a client's own."""
    weights = task.initial_weights()
    plain = [task.evaluate(weights, client=client) for client in range(3)]
    models = {0: weights, 1: weights, 2: weights, None: weights}
    found = score(Rolled(), task, models, {}, {})
    moved = [
        task.evaluate(weights, client=client, predict=lambda w, x, k=client: task.predict(w, x).roll(k, dims=-1))
        for client in range(3)
    ]
    assert found.accuracy == task.evaluate(weights).accuracy
    assert found.personal_accuracy == pytest.approx(np.mean([m.accuracy for m in moved]))
    assert moved[0] == plain[0]
    assert moved[1] != plain[1]


def test_rows_of_algorithms_with_and_without_models_of_clients(task: Task):
    """Clients' own models are in the history by id and their accuracy in its rows; one model for all has none."""
    plan = StaticPlanner(small_plan(client=[2, 0]))
    split = train(task, ParallelSplit(Sgd(0.3)), plan, small_timing(), rounds=2)
    assert list(split.personal) == [0, 2]
    assert_same(split.personal[2], split.models[1])
    own = [task.evaluate(weights, client=client).accuracy for client, weights in split.personal.items()]
    assert split.rows[-1]["personal_accuracy"] == pytest.approx(np.mean(own))
    assert split.rows[-1]["personal_accuracy_worst_tenth"] == min(own)
    whole = train(task, FedAvg(), plan, small_timing(), rounds=1)
    assert "personal_accuracy" not in whole.rows[-1]
    assert np.isnan(whole.column("personal_accuracy")).all()
    assert whole.personal == {}
    servers = MultiServerFedAvg(2)
    models = models_of(servers, task, servers.start(task), {})
    assert list(models) == ["server 0", "server 1"]
    assert len(judged(models)) == 2


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([{}], "models: a list: expected weights by client, None for the common model"),
        ({7: {}}, "models: client 7: expected 0 to 2"),
        ({None: {"0.weight": torch.ones(1)}}, r"models\[None\]: 0.bias: expected the weights of the model"),
    ],
)
def test_what_are_no_models_is_refused(task: Task, found: Any, message: str):
    """The message says in which round, and what was expected."""
    with pytest.raises(TrainingError, match="^round 0, fixed, evaluation: " + message):
        train(task, Fixed(found=found), StaticPlanner(RoundPlan(client=[0])), small_timing(), rounds=1)
