"""`Compressed`: what crosses, what it costs, what is learnt from it, what is remembered."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from edgeopt import EdgeNetwork, LinkBudget, RoundPlan, StaticPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.training import (
    ALGORITHMS,
    CODECS,
    AcpCodec,
    Algorithm,
    Batches,
    Codec,
    Compressed,
    EdgeTiming,
    Form,
    History,
    Identity,
    LowRank,
    Message,
    NscCodec,
    ParallelSplit,
    PredictingAlgorithm,
    Quantise,
    RandomChannels,
    Sgd,
    SplitAlgorithm,
    SplitFed,
    SplitFedV2,
    State,
    Task,
    Tensors,
    TopK,
    TrainingError,
    VanillaSplit,
    train,
)  # fmt: skip
from edgeopt.training.codecs.wire import branch
from edgeopt.training.rules.common import tensors_of
from tests.training.recording import Recording
from tests.training.split_tasks import model, run, task

SPLIT = (SplitFed, SplitFedV2, ParallelSplit, VanillaSplit)
WHOLE_MODELS = ("fedavg", "fedprox", "multi-server-fedavg", "hfedmoe", "fedalign-moe", "het-lora", "zero-pad-lora")
PLAN = RoundPlan(client=range(3), batch_size=4, cut_layer=2, local_steps=2)
LR = 0.1
ACP = AcpCodec(pruned_base=0.5, pruned_least=0.5, pruned_most=0.5)
LOSSY = [
    RandomChannels(0.5), TopK(0.4), TopK(0.4, feedback=0.5), Quantise(8), Quantise(4), LowRank(2), ACP,
    replace(ACP, score="separability", pruned_least=0.3), NscCodec(max_rank=1),
]  # fmt: skip


def split(kind: Any = SplitFed) -> Any:
    return kind(optimizer=Sgd(lr=LR))


def parts(tensors: Tensors, name: str = "outputs") -> Tensors:
    return {path.removeprefix(f"{name}."): tensor for path, tensor in tensors.items()}


# --- whom it suits ---------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", SPLIT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_identity_is_no_codec(kind: Any, network: str):
    """Weights, losses, bytes and virtual seconds are the same to the bit, with clients that fail among them."""
    of = task(network)
    timing = EdgeTiming.from_network(
        EdgeNetwork.random(1, 3, seed=0), fed_rate_bps=1e6, rate_sigma=0.3, failure_probability=0.15, seed=1
    )
    plain, coded = (
        run(of, a, PLAN, rounds=4, timing=timing) for a in (split(kind), Compressed(split(kind), Identity()))
    )
    for first, second in zip(plain.models, coded.models, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    for row, other in zip(plain.rows, coded.rows, strict=True):
        assert {name: other[name] for name in row} == pytest.approx(row, rel=0, abs=0, nan_ok=True)
    assert coded.rows[0]["up_bits_per_value"] == coded.rows[0]["down_bits_per_value"] == 64
    assert coded.rows[0]["down_error"] == 0


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.name)
def test_algorithms_without_activations_are_refused(kind: type[Algorithm]):
    """By name: an algorithm has a codec if it has a cut."""
    if kind.name not in WHOLE_MODELS:
        assert isinstance(kind(), SplitAlgorithm)
        assert Compressed(kind(), TopK()).name == f"{kind.name} with top-k"
    else:
        with pytest.raises(InvalidProblemError, match=f"codec: {kind.name} exchanges no activations"):
            Compressed(kind(), TopK())  # type: ignore[arg-type]


def test_what_is_no_codec_or_has_one_is_refused():
    """By its type, or by its name."""
    with pytest.raises(InvalidProblemError, match="codec: psl with top-k: expected an algorithm without a codec"):
        Compressed(Compressed(ParallelSplit(), TopK()), Quantise())
    with pytest.raises(InvalidProblemError, match="codec: a str: expected one with order, encode and decode"):
        Compressed(SplitFed(), "top-k")  # type: ignore[arg-type]


def test_a_cut_at_the_last_layer_has_nothing_to_code():
    """Such a client trains alone; what is reported of codes is nan."""
    plan = PLAN.replace(cut_layer=4)
    plain, coded = (run(task(), a, plan, rounds=2) for a in (split(), Compressed(split(), TopK())))
    assert all(torch.equal(value, coded.models[0][name]) for name, value in plain.models[0].items())
    assert coded.rows[-1]["up_bits_per_value"] != coded.rows[-1]["up_bits_per_value"]


# --- what crosses ----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("report_errors", [False, True])
@pytest.mark.parametrize("codec", LOSSY, ids=repr)
def test_nothing_but_what_is_coded_crosses(codec: Codec, report_errors: bool):
    """All tensors on their way are recorded: of activations and gradients the coded parts, whose bytes are the ledger's."""
    of, runner = task(dtype=torch.float32), Recording()
    rows = run(of, Compressed(split(), codec, report_errors), PLAN, runner=runner).rows
    raw = 4 * 6 * 4  # of a tensor that is not coded: samples, values, bytes
    up = down = statistics = 0
    for entry in range(3):
        for message, answer in runner.of("forward", entry):
            assert set(message) == set()
            assert set(answer) == {"activations", "labels"} | ({"statistics"} if report_errors else set())
            assert all(tensor.nbytes < raw for tensor in answer["activations"].values())
            assert answer["labels"]["targets"].shape == (4,)
            up += answer.nbytes("activations")
            statistics += answer.nbytes("statistics")
        for message, answer in runner.of("backward", entry):
            assert set(message) == {"gradients"}
            assert all(tensor.nbytes < raw for tensor in message["gradients"].values())
            assert set(answer) == set()
            down += message.nbytes("gradients")
    row = rows[-1]
    assert (row["activations_up"], row["gradients_down"], row["statistics_up"]) == (up, down, statistics)
    assert statistics == (6 * 4 if report_errors else 0)
    assert row["gradients_up"] == row["activations_down"] == 0
    values = 6 * 4 * 6  # messages, samples, values
    assert (row["up_bits_per_value"], row["down_bits_per_value"]) == (8 * up / values, 8 * down / values)


@pytest.mark.parametrize("codec", LOSSY, ids=repr)
def test_time_is_that_of_the_coded_bytes(codec: Codec):
    """With one client, a round is shorter by the bytes saved over the rates."""
    timing = EdgeTiming(
        device_flops=[1e6], uplink_bps=[2e5], downlink_bps=[5e5], fed_uplink_bps=[1e5], fed_downlink_bps=[1e5],
        server_flops=1e7, server_fed_uplink_bps=1e6, server_fed_downlink_bps=1e6,
    )  # fmt: skip
    plan = PLAN.take([0])
    plain, coded = (run(task(), a, plan, timing=timing).rows[-1] for a in (split(), Compressed(split(), codec)))
    saved = 8 * sum(
        (plain[name] - coded[name]) / rate for name, rate in (("activations_up", 2e5), ("gradients_down", 5e5))
    )
    assert saved > 0
    assert plain["seconds"] - coded["seconds"] == pytest.approx(saved, rel=1e-9)


def test_a_link_that_fades_limits_the_messages():
    """Within `budget_bytes` that a planner has made of rates, each its own; what cannot keep to it is counted."""
    of = task(dtype=torch.float32, sizes=(9, 9, 9))
    timing = EdgeTiming.from_network(EdgeNetwork.random(1, 3, seed=0), fed_rate_bps=1e6, rate_sigma=1.0, seed=3)
    plan = RoundPlan(client=range(3), batch_size=4, cut_layer=1)
    slot = 60 * 8 / float(timing.rates(0, plan)["uplink_bps"].mean())  # some 60 bytes; a raw message has 112
    planner = LinkBudget(StaticPlanner(plan), timing, slot)
    for codec, keeps in (
        (TopK(1.0), True), (RandomChannels(1.0), True), (LowRank(4), True), (AcpCodec(pruned_least=0.0), True),
        (NscCodec(), True), (Quantise(8), False),
    ):  # fmt: skip
        runner, over = Recording(), 0
        history = train(of, Compressed(split(), codec), planner, timing, rounds=6, runner=runner)
        sizes = set()
        for entry, message, answer in runner.sent:
            if message.kind == "forward":
                assert message.batches is not None
                budget = planner.plan(message.batches.round).budget_bytes[entry]
                over += answer.nbytes("activations") > budget
                sizes.add(answer.nbytes("activations"))
        assert len(sizes) > 1
        assert sum(row["over_budget"] for row in history.rows) == over
        assert (over == 0) == keeps


# --- what is learnt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("codec", [Identity(), *LOSSY], ids=repr)
def test_a_step_is_the_one_written_by_hand(codec: Codec, network: str):
    """The server learns from what it decodes, the client from the decoded gradient by that: computed by torch's autograd."""
    of, runner = task(network), Recording()
    plan = RoundPlan(client=[1], batch_size=4, cut_layer=1)
    history = run(of, Compressed(split(), codec, report_errors=True), plan, runner=runner)
    ((ask, answer),) = runner.of("forward")
    ((back, _),) = runner.of("backward")
    inputs, targets = (x[0] for x in of.batch(1, Batches(0, 0, 1, 4)))
    below, above = (nn.Sequential(*layers) for layers in (of.model[:1], of.model[1:]))

    x = below(inputs)
    form = Form(tuple(x.shape), x.dtype)
    order = codec.order("up", form, float("inf"), {})
    assert {name.removeprefix("codec up "): v for name, v in ask.values.items() if name.startswith("codec up")} == order
    seen, memory = codec.decode("up", parts(answer["activations"]), order, {}, form)
    wrong = float((seen - x.detach()).norm() / x.detach().norm())
    assert float(answer["statistics"]["codec error"]) == pytest.approx(wrong, rel=1e-4, abs=1e-7)
    assert history.rows[0]["up_error"] == pytest.approx(wrong, rel=1e-4, abs=1e-7)

    seen = seen.detach().requires_grad_()
    loss = of.loss(above(seen), targets)
    upper = torch.autograd.grad(loss, [seen, *above.parameters()])
    assert history.rows[0]["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    down = codec.order("down", form, float("inf"), memory)
    gradient, _ = codec.decode("down", parts(back["gradients"]), down, memory, form)
    error = float((gradient - upper[0]).norm() / upper[0].norm())
    assert history.rows[0]["down_error"] == pytest.approx(error, rel=1e-4, abs=1e-7)
    assert error <= {"identity": 0, "quantise": 0.2}.get(codec.name, 2)
    lower = torch.autograd.grad((x * gradient).sum(), list(below.parameters()))
    expected = [
        p - LR * g for p, g in zip([*below.parameters(), *above.parameters()], [*lower, *upper[1:]], strict=True)
    ]
    for found, right in zip(history.models[0].values(), expected, strict=True):
        torch.testing.assert_close(found, right.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("codec", [RandomChannels(0.5), TopK(0.4), ACP], ids=repr)
def test_the_gradient_is_that_of_the_model_with_the_others_left_out(codec: Codec):
    """Autograd through `mask * x` gives the client's gradient, without any rule of ours."""
    of, runner = task("cnn"), Recording()
    history = run(of, Compressed(split(), codec), RoundPlan(client=[1], batch_size=4, cut_layer=1), runner=runner)
    ((_, answer),) = runner.of("forward")
    inputs, targets = (x[0] for x in of.batch(1, Batches(0, 0, 1, 4)))
    x = of.model[:1](inputs)
    form = Form(tuple(x.shape), x.dtype)
    seen, _ = codec.decode("up", parts(answer["activations"]), {}, {}, form)
    mask = torch.where(x != 0, seen / x, 0).detach()
    assert 0 < (mask == 0).sum() < mask.numel()
    loss = of.loss(of.model[1:](mask * x), targets)
    gradients = torch.autograd.grad(loss, list(of.model.parameters()))
    for (name, before), gradient in zip(of.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(
            history.models[0][name], (before - LR * gradient).detach(), rtol=1e-9, atol=1e-9, msg=name
        )


def test_half_precision_crosses_as_such():
    """In bf16, values take two bytes, and what is decoded has that type again."""
    of = task("cnn", dtype=torch.float32, precision="bf16")
    for kind in CODECS:
        row = run(of, Compressed(split(), kind()), PLAN, rounds=2).rows[-1]
        assert row["up_bits_per_value"] <= 16 + 64 / 4 + 8
        assert row["train_loss"] == row["train_loss"]
    assert run(of, Compressed(split(), Identity()), PLAN).rows[-1]["up_bits_per_value"] == 16
    assert of.dtype_at(1) == torch.bfloat16


# --- what is remembered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["forward", "backward"])
def test_memory_survives_a_failure(lost: str):
    """What top-k has left out waits for the client's next message, in the round after the one in which it failed."""
    of, codec = task("cnn", sizes=(8, 8, 8)), TopK(0.3, feedback=1.0)
    plan = PLAN.replace(local_steps=1, cut_layer=1)
    coded = Compressed(split(ParallelSplit), codec)
    after = run(of, coded, plan).clients[0]  # after the first round; from then on the client's layers stay
    runner = Recording(lost=lambda entry, m: m.batches is not None and (m.batches.round, entry, m.kind) == (1, 0, lost))
    history = run(of, coded, plan, rounds=3, runner=runner)
    messages = {m.batches.round: answer for m, answer in runner.of("forward") if m.batches is not None}
    assert set(messages) == ({0, 2} if lost == "forward" else {0, 1, 2})
    memory = branch(branch(after, "codec"), "outputs")
    assert branch(branch(history.clients[0], "codec"), "outputs").keys() == memory.keys() == {"left"}
    for number in sorted(set(messages) - {0}):
        inputs = of.batch(0, Batches(number, 0, 1, 4)).inputs[0]
        x = of.forward(tensors_of(branch(after, "inner"), "weights"), inputs, 0, 1).outputs
        order = codec.order("up", Form(tuple(x.shape), x.dtype), float("inf"), {})
        sent, memory = codec.encode("up", x, order, memory, labels=None, key=torch.tensor(0))
        for name, found in parts(messages[number]["activations"]).items():
            torch.testing.assert_close(found, sent[name], rtol=1e-9, atol=1e-9)
        assert not torch.equal(
            sent["values"], codec.encode("up", x, order, {}, labels=None, key=torch.tensor(0))[0]["values"]
        )
    assert history.server["codec"] == {}


@dataclass(frozen=True, slots=True)
class Counting(Identity):
    """Both sides count the messages, and each sends its count along; what has not been counted alike fails."""

    def encode(self, direction: Any, x: torch.Tensor, order: Any, memory: State, **_: Any) -> tuple[Tensors, State]:
        count = memory.get(direction, torch.zeros(()))
        assert isinstance(count, torch.Tensor)
        return {"values": x, "count": count}, {**memory, direction: count + 1}

    def decode(
        self, direction: Any, tensors: Tensors, order: Any, memory: State, form: Form
    ) -> tuple[torch.Tensor, State]:
        count = memory.get(direction, torch.zeros(()))
        same = torch.where(tensors["count"] == count, 0.0, float("nan"))
        return tensors["values"] + same, {**memory, direction: count + 1}


@pytest.mark.parametrize("kind", SPLIT, ids=lambda kind: kind.name)
def test_each_client_has_a_memory_at_the_server(kind: Any):
    """Over rounds in which other clients take part, each side finds its own memory of the other again."""
    first, second = PLAN, PLAN.take([2, 0])
    history = run(task(), Compressed(split(kind), Counting()), first, second, first)
    for client, messages in enumerate((6, 4, 6)):
        for state in (branch(history.server["codec"], str(client)), history.clients[client]["codec"]):  # type: ignore[arg-type]
            counts = branch(state, "outputs")  # type: ignore[arg-type]
            assert counts == {"up": torch.tensor(float(messages)), "down": torch.tensor(float(messages))}
    assert history.rows[-1]["train_loss"] == history.rows[-1]["train_loss"]  # no nan: counted alike


@pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.name)
def test_few_samples_no_clients_and_frozen_layers(kind: type[Codec]):
    """A client with one sample trains; an empty plan leaves the state; frozen layers below the cut get no gradient."""
    of = task("cnn", sizes=(1, 7, 8))
    history = run(of, Compressed(split(), kind()), PLAN.replace(cut_layer=1), PLAN.take([]))
    assert history.rows[0]["completed"] == 3
    assert history.rows[1]["bytes_up"] == history.rows[0]["bytes_up"]
    net = model("cnn")
    net[0].requires_grad_(False)
    frozen = task(model=net)
    row = run(frozen, Compressed(split(), kind()), PLAN.replace(cut_layer=1), rounds=2).rows[-1]
    assert row["completed"] == 3
    assert row["gradients_down"] == 0
    assert row["activations_up"] > 0


@pytest.mark.parametrize(
    "codec", [Identity(), RandomChannels(1.0), TopK(), Quantise(), LowRank(), AcpCodec(), NscCodec()], ids=repr
)
def test_activations_that_are_no_numbers(codec: Codec):
    """Are told of as without a codec: in one line, with round and client."""
    of = task()
    of.train.inputs[:] = float("nan")
    with pytest.raises(TrainingError, match=r"^round 0, client 0: the loss is nan, expected a finite number[^\n]*$"):
        run(of, Compressed(split(), codec), PLAN)


# --- who is left out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [AcpCodec(pruned_least=0.0), NscCodec()], ids=lambda codec: codec.name)
@pytest.mark.parametrize("kind", SPLIT, ids=lambda kind: kind.name)
def test_a_client_without_room_is_left_out(kind: Any, codec: Codec):
    """It is not asked, and the others learn and cost as without it; it is counted, and comes back when it has room."""
    of, runner = task(), Recording()
    none = PLAN.replace(budget_bytes=[float("inf"), 3.5, float("inf")])
    history = run(of, Compressed(split(kind), codec), none, PLAN, runner=runner)
    without = run(of, Compressed(split(kind), codec), PLAN.take([0, 2]), rounds=1)
    first = [(entry, message.kind) for entry, message, _ in runner.sent[: runner.ends[0]]]
    assert all(entry != 1 for entry, kind in first if kind in ("forward", "backward"))
    row, other = history.rows[0], without.rows[0]
    assert (row["planned"], row["completed"], row["skipped"], row["over_budget"]) == (3, 2, 1, 0)
    for name in ("activations_up", "gradients_down", "train_loss", "up_bits_per_value"):
        assert row[name] == pytest.approx(other[name], rel=1e-9)
    assert (history.rows[1]["completed"], history.rows[1]["skipped"]) == (3, 0)


def test_nobody_has_room():
    """The round passes as if all had failed: the model stays, nothing but layers crosses, what is measured is nan."""
    of = task()
    history = run(of, Compressed(split(), NscCodec()), PLAN.replace(budget_bytes=1.0))
    (row,) = history.rows
    assert (row["completed"], row["skipped"], row["activations_up"], row["labels_up"]) == (0, 3, 0, 0)
    assert row["rank"] != row["rank"]
    assert row["mean_alone"] == 0
    for name, value in of.model.state_dict().items():
        assert torch.equal(history.models[0][name], value)


def test_a_deep_fade():
    """Ranks go down with the link to the mean alone and to nothing at all; no message is ever larger than its budget."""
    of = task(dtype=torch.float32, sizes=(9, 9, 9))
    timing = EdgeTiming.from_network(EdgeNetwork.random(1, 3, seed=0), fed_rate_bps=1e6, rate_sigma=1.2, seed=3)
    plan = RoundPlan(client=range(3), batch_size=6, cut_layer=1)
    slot = (
        80 * 8 / float(timing.rates(0, plan)["uplink_bps"].mean())
    )  # the mean row takes 28 bytes, and four its numbers
    runner = Recording()
    planner = LinkBudget(StaticPlanner(plan), timing, slot)
    rows = train(of, Compressed(split(), NscCodec()), planner, timing, rounds=12, runner=runner).rows
    assert sum(row["over_budget"] for row in rows) == 0
    assert 0 < sum(row["skipped"] for row in rows) < 36
    assert sum(row["mean_alone"] for row in rows) > 0
    assert len({row["rank"] for row in rows}) > 3
    for entry, message, answer in runner.sent:
        if message.kind == "forward" and message.batches is not None:
            assert answer is not None
            assert answer.nbytes("activations") <= planner.plan(message.batches.round).budget_bytes[entry]


@pytest.mark.parametrize("lost", ["forward", "backward"])
def test_histories_are_those_of_each_client(lost: str):
    """A client has counted the messages that it has made, its server those that came; others' failures do not matter."""
    plan = PLAN.replace(local_steps=1, cut_layer=1)
    runner = Recording(lost=lambda entry, m: m.batches is not None and (m.batches.round, entry, m.kind) == (1, 0, lost))
    history = run(task("cnn"), Compressed(split(ParallelSplit), AcpCodec()), plan, rounds=4, runner=runner)
    for client in range(3):
        expected = 3 if (client, lost) == (0, "forward") else 4
        own, server = (
            branch(state, "outputs")
            for state in (
                branch(history.clients[client], "codec"),
                branch(branch(history.server, "codec"), str(client)),
            )
        )
        assert (own["count"], server["count"]) == (torch.tensor(expected), torch.tensor(expected))


# --- judging, and what does not fit ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steered(SplitFed):
    """Its predictions are more than its weights: they depend on the client's and the server's state."""

    def predict(
        self, task: Task, weights: Tensors, inputs: torch.Tensor, key: Any, state: State, clients: Mapping[int, State]
    ) -> torch.Tensor:
        assert "weights" in state
        assert all("weights" in own for own in clients.values())
        return task.predict(weights, inputs) * 0.0


def test_models_are_judged_as_the_algorithm_inside_judges_them():
    """Its own `predict` is asked, with its own state."""
    assert isinstance(Steered(), PredictingAlgorithm)
    row = run(task(), Compressed(Steered(), TopK()), PLAN).rows[-1]
    assert row["test_loss"] == pytest.approx(torch.log(torch.tensor(4.0)).item())


def masked(of: Task, weights: Tensors, cut: int, memories: list[State], codec: AcpCodec) -> float:
    """Return the loss of a model on the held-out samples, with what a codec leaves at a cut: by torch's own modules."""
    net = copy.deepcopy(of.model)
    net.load_state_dict(weights)
    with torch.no_grad():
        return float(of.loss(net[cut:](codec.at_work(net[:cut](of.test.inputs), memories)), of.test.targets))


def memories_of(history: History, *clients: int) -> list[State]:
    return [branch(branch(history.clients[client], "codec"), "outputs") for client in clients]


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_a_common_model_is_judged_with_the_channels_of_its_clients(network: str):
    """The mask is applied where most clients have cut it; for equals, at the lowest cut; it matters."""
    of = task(network)
    for cuts, cut, who in (([2, 1, 2], 2, (0, 2)), ([2, 1, 1], 1, (1, 2))):
        history = run(of, Compressed(split(), ACP), PLAN.replace(cut_layer=cuts))
        expected = masked(of, history.models[0], cut, memories_of(history, *who), ACP)
        assert history.rows[0]["test_loss"] == pytest.approx(expected, rel=1e-9)
        assert history.rows[0]["test_loss"] != pytest.approx(of.evaluate(history.models[0]).loss, rel=1e-6)
    history = run(of, Compressed(split(), ACP), PLAN.take([0, 1]).replace(cut_layer=[2, 1]))
    expected = masked(of, history.models[0], 1, memories_of(history, 1), ACP)
    assert history.rows[0]["test_loss"] == pytest.approx(expected, rel=1e-9)


def test_own_models_are_judged_with_their_own_channels():
    """Of clients that have a model each, every one with the mask of that client."""
    of = task("cnn")
    coded = Compressed(split(ParallelSplit), ACP)
    history = run(of, coded, PLAN.replace(cut_layer=1), rounds=2)
    for client, weights in history.personal.items():
        outputs = coded.predict(of, weights, of.test.inputs, client, history.server, history.clients)
        loss = float(of.loss(outputs, of.test.targets))
        assert loss == pytest.approx(masked(of, weights, 1, memories_of(history, client), ACP), rel=1e-9)
    assert history.personal


def test_what_nobody_has_cut_is_judged_whole():
    """Before the first message, and for clients that have all layers."""
    of = task()
    coded, weights = Compressed(split(), ACP), of.initial_weights()
    expected = of.predict(weights, of.test.inputs)
    assert torch.equal(coded.predict(of, weights, of.test.inputs, None, coded.start(of), {}), expected)
    history = run(of, coded, PLAN.replace(cut_layer=4))
    assert history.rows[0]["test_loss"] == pytest.approx(of.evaluate(history.models[0]).loss)


def test_activations_that_are_not_those_of_the_cut():
    """Are refused with both shapes: their bytes would not be those that were ordered."""

    @dataclass(frozen=True, slots=True)
    class Thrice(SplitFed):
        def client(self, task: Task, message: Message, state: State, batch: Any) -> tuple[Message, State]:
            answer, state = SplitFed.client(self, task, message, state, batch)
            more = {name: torch.cat([x] * 3) for name, x in answer["activations"].items()}
            return Message("reply", {**answer.tensors, "activations": more}), state

    told = (
        r"client 0.*activations\['outputs'\]: torch.float64 \[12, 6\]: expected torch.float64 \[4, 6\], as at the cut"
    )
    with pytest.raises(TrainingError, match=told):
        run(task(), Compressed(Thrice(), TopK()), PLAN)


def test_a_message_without_a_key():
    """Outside a round nobody has given one: said so."""
    message = Message("forward", {}, {"cut": 1}, Batches(0, 0, 1, 4))
    of = task()
    with pytest.raises(TrainingError, match="the message has no key"):
        Compressed(SplitFed(), Quantise()).client(of, message, {}, of.batch(0, Batches(0, 0, 1, 4)))


@pytest.mark.parametrize("cut", [0, 5])
def test_shape_at_a_cut_that_is_not_there(cut: int):
    """Refused, with the layers that there are."""
    with pytest.raises(InvalidProblemError, match=f"cut = {cut}: expected 1 to 4, the layers of the model"):
        task().shape_at(cut)


def test_shape_at_each_cut():
    """That of one sample as the layers return it."""
    assert [task("cnn").shape_at(cut) for cut in (1, 2, 3)] == [
        tuple(task("cnn").model[:cut](torch.zeros(2, 1, 4, 4, dtype=torch.float64)).shape[1:]) for cut in (1, 2, 3)
    ]
