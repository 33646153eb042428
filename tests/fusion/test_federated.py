"""The model under FedAvg and SplitFed: subjects are clients, of which some lack modalities."""

from functools import cache

import pytest

torch = pytest.importorskip("torch")
from edgeopt import StaticPlanner
from edgeopt.errors import EdgeOptError
from edgeopt.fusion import fusion_task
from edgeopt.fusion.blocks import fusion_loss
from edgeopt.training import Adam, FedAvg, SplitFed, train
from tests.fusion import small
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here
from tests.training.small_tasks import small_plan, small_timing

MISSING = {1: ["fast"], 2: ["middle", "slow"]}


def task():
    return fusion_task(small.recordings(subjects=3, steps=40), small.model(), length=5, missing=MISSING)


def test_blocks_are_the_model():
    """One after another they give the model's scores; in training, a channel more, which is what is added to the loss."""
    model = small.model(depth=2)
    packing, own = small.packed()
    x, labels = packing.pack(own), torch.from_numpy(own.labels)
    blocks = model.as_blocks()
    assert [name for name, _ in blocks.named_children()] == ["encode", "doubt", "recover", "fuse"]
    torch.testing.assert_close(blocks.eval()(x), model(x))
    outputs = blocks.train()(x)
    torch.testing.assert_close(outputs[..., :3], model(x))
    added = fusion_loss(outputs, labels, 3) - fusion_loss(model(x), labels, 3)
    torch.testing.assert_close(added, outputs[..., 3].mean())
    assert added != 0


def test_clients_lack_what_they_lack():
    """The samples of a client have marks for what it has, in training and in tests; tests are later than training."""
    own = task()
    for data in (own.train, own.test):
        for client, there in enumerate(([1, 1, 1], [0, 1, 1], [1, 0, 0])):
            assert data.inputs[data.group == client][..., -3:].unique(dim=0).shape[0] == 1
            assert data.inputs[data.group == client][0, 0, -3:].tolist() == there
    assert (len(own.train), len(own.test)) == (3 * 6, 3 * 2)


@cache
def trained(cut: int):
    """Return the row of one round of two steps, without a cut for 0."""
    algorithm = FedAvg(optimizer=Adam(lr=0.02)) if cut == 0 else SplitFed(optimizer=Adam(lr=0.02))
    plan = small_plan(local_steps=2, batch_size=4, **({"cut_layer": cut} if cut else {}))
    return train(task(), algorithm, StaticPlanner(plan), small_timing(), rounds=1).rows[0]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_training_cut_anywhere(cut: int):
    """Cut after each block, training finds what it finds without a cut, up to rounding: what crosses is all there is."""
    assert trained(cut)["test_loss"] == pytest.approx(trained(0)["test_loss"], rel=1e-3)
    assert trained(cut)["bytes_up"] > 0


def test_federated_training_learns():
    """Accuracy over all clients rises, and everyone's own can be asked for, also of those who lack modalities."""
    own = task()
    before = own.evaluate(own.initial_weights()).accuracy
    planner = StaticPlanner(small_plan(local_steps=4, batch_size=6))
    history = train(own, FedAvg(optimizer=Adam(lr=0.02)), planner, small_timing(), rounds=6, evaluate_every=6)
    assert history.rows[-1]["accuracy"] > max(before, 0.6)
    personal = [own.evaluate(history.models[0], client=client).accuracy for client in range(3)]
    assert sum(personal) / 3 == pytest.approx(history.rows[-1]["accuracy"], abs=1e-6)  # as many windows each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": {3: ["fast"]}}, "missing = 3: expected"),
        ({"missing": {0: ["x"]}}, "missing[0]: no modality 'x': expected one of fast, middle, slow"),
        ({"missing": {key: ["fast"] for key in range(3)}}, "signals['fast']: channel 0 is never there"),
        ({"held_out": 1.0}, "held_out = 1: expected a share below 1"),
        ({"length": 20}, "length = 20: expected at most 10 steps"),
    ],
)
def test_bad_tasks(options: dict[str, object], message: str):
    """In one line, what was given and what was expected."""
    with pytest.raises(EdgeOptError) as error:
        fusion_task(small.recordings(subjects=3, steps=40), small.model(), **({"length": 5} | options))
    assert str(error.value).startswith(message)
