"""The loop: what a round is charged, what can go wrong, when it ends, and that it repeats."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.errors import InvalidProblemError, SequentialWarning
from edgeopt.schedule import Feedback
from edgeopt.training import (
    Algorithm,
    Batches,
    FedAvg,
    FedProx,
    History,
    LocalRunner,
    Message,
    Outcome,
    ParallelSplit,
    Phase,
    RoundRecord,
    Sgd,
    SplitFed,
    Task,
    TrainingError,
    reply,
    train,
)  # fmt: skip
from edgeopt.training.algorithm import Models
from edgeopt.training.history import COLUMNS_OF_ROWS
from edgeopt.training.messages import Category, Replies, State, Take, Tensors
from edgeopt.training.runners.local import Runner
from tests.training.small_tasks import (
    FEATURES,
    assert_near,
    assert_same,
    noisy_model,
    small_model,
    small_plan,
    small_task,
    small_timing,
)  # fmt: skip

FEDAVG = FedAvg(Sgd(0.3))


def run(task: Task | None = None, rounds: int = 3, **options: Any) -> History:
    task = small_task() if task is None else task
    fields: dict[str, Any] = {
        "algorithm": FEDAVG,
        "planner": StaticPlanner(small_plan(task.num_clients)),
        "timing": small_timing(task.num_clients),
    }
    return train(task, rounds=rounds, **(fields | options))


@dataclass
class Listening:
    """A planner that keeps what it is told."""

    plans: list[RoundPlan]

    def __post_init__(self) -> None:
        self.heard: list[Feedback | None] = []

    def plan(self, round: int, feedback: Feedback | None) -> RoundPlan:
        self.heard.append(feedback)
        return self.plans[round % len(self.plans)]


@dataclass(frozen=True, slots=True)
class Counting:
    """An algorithm whose clients count their rounds and mini-batches: state without learning."""

    name: ClassVar[str] = "counting"

    def start(self, task: Task) -> State:
        return {"weights": dict(task.initial_weights()), "rounds": torch.tensor(0)}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Any:
        found: dict[int, torch.Tensor] = {}
        for step in range(2):
            messages = {e: Message("count", {}, {"step": step}, Batches(number, step, 1, 2)) for e in range(len(plan))}
            replies: Replies = yield Phase("count", messages, server_flops=dict.fromkeys(messages, 1e5))
            found = {entry: answer["scalars"]["seen"] for entry, answer in replies.items()}
        return Outcome({**state, "rounds": state["rounds"] + 1}, found)

    def client(self, task: Task, message: Message, state: State, batch: Any) -> tuple[Message, State]:
        seen = state.get("seen", torch.tensor(0.0)) + batch.inputs.shape[0]
        return reply(scalars={"seen": seen + 0 * batch.inputs.sum()}), {"seen": seen}

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        return {}


# --- what is charged ----------------------------------------------------------------------------------------------


def test_time_energy_and_bytes_of_fedavg_by_hand():
    """A round takes as long as its slowest client, and the row has the sums."""
    task, timing, plan = small_task(), small_timing(), small_plan()
    history = run(task, 2, planner=StaticPlanner(plan), timing=timing)
    model = sum(value.nbytes for value in task.initial_weights().values())
    flops = 2 * 2 * (task.profile.forward_flops.sum() + task.profile.backward_flops.sum())
    seconds = 8 * model / timing.downlink_bps + flops / timing.device_flops + 8 * model / timing.uplink_bps
    joules = timing.device_power_w * 8 * model / timing.uplink_bps + 1e-10 * flops
    first, second = history.rows
    assert second["seconds"] == pytest.approx(2 * seconds.max())
    assert second["round_seconds"] == pytest.approx(seconds.max())
    assert second["energy_j"] == pytest.approx(2 * joules.sum())
    assert first["straggler"] == seconds.argmax()
    assert (first["weights_down"], second["weights_down"]) == (3 * model, 6 * model)
    assert second["bytes_down"] == 6 * model
    assert second["bytes_up"] == 6 * model + second["scalars_up"]
    assert second["scalars_up"] == 2 * 3 * 4
    record = history.last
    assert record is not None
    np.testing.assert_allclose(record.client_seconds, seconds)
    np.testing.assert_allclose(record.seconds, seconds.max())
    assert record.straggler == seconds.argmax()


def test_what_the_planner_is_told():
    """Feedback has the round's seconds, per client too, who completed, and the rates that were in force."""
    timing = small_timing(rate_sigma=0.3, failure_probability=0.4, seed=2)
    planner = Listening([small_plan(client=[2, 0]), small_plan(client=[1])])
    history = run(rounds=4, planner=planner, timing=timing)
    assert planner.heard[0] is None
    for round, feedback in enumerate(planner.heard[1:]):
        assert feedback is not None
        plan = planner.plans[round % 2]
        assert (feedback.round, feedback.plan) == (round, plan)
        assert feedback.seconds == history.rows[round]["round_seconds"] == feedback.client_seconds.max()
        np.testing.assert_array_equal(feedback.completed, ~timing.lost(round, plan))
        np.testing.assert_array_equal(feedback.uplink_bps, timing.rates(round, plan)["uplink_bps"])


def test_phases_follow_one_another():
    """Several exchanges of a round add up, the server's work included; each starts when the one before has ended."""
    record = run(algorithm=Counting(), rounds=1).last
    assert record is not None
    first, second = record.phases
    assert first.start_s == 0
    assert second.start_s == first.seconds
    np.testing.assert_allclose(first.server_s, [0.01] * 3)
    assert record.row["seconds"] == first.seconds + second.seconds


@dataclass(frozen=True)
class Measuring(FedAvg):
    """FedAvg that reports numbers of its own, another one in odd rounds."""

    report: Any = None
    name: ClassVar[str] = "measuring"

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Any:
        outcome = yield from FedAvg.round(self, task, state, plan, number)
        found = {"kept": torch.tensor(number + 0.1), **({"spread": float("nan")} if number % 2 else {})}
        return dataclasses.replace(outcome, measured=found if self.report is None else self.report)


def test_what_an_algorithm_measures(tmp_path: Path):
    """Its numbers are in the rows after those that every row has, in tables, in feedback and in a resumed run."""
    planner = Listening([small_plan()])
    history = run(rounds=3, algorithm=Measuring(), planner=planner)
    kept = [float(torch.tensor(number + 0.1)) for number in range(3)]
    assert history.column("kept").tolist() == kept
    assert np.isnan(history.column("spread")).all()
    assert set(run(rounds=1).rows[0]) == COLUMNS_OF_ROWS
    assert list(history.rows[1])[-2:] == ["kept", "spread"]
    assert [dict(heard.measured).get("kept") for heard in planner.heard[1:] if heard is not None] == kept[:2]
    history.to_csv(tmp_path / "rows.csv")
    first, *lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert first.endswith(",kept,spread")
    assert [line.split(",")[-2:] for line in lines] == [
        [repr(kept[0]), ""],
        [repr(kept[1]), "nan"],
        [repr(kept[2]), ""],
    ]
    with pytest.raises(KeyError, match="nothing"):
        history.column("nothing")
    path = tmp_path / "run.safetensors"
    run(rounds=2, algorithm=Measuring(), planner=Listening([small_plan()]), checkpoint=path)
    heard = Listening([small_plan()])
    resumed = run(rounds=3, algorithm=Measuring(), planner=heard, checkpoint=path, resume=True)
    assert str(resumed.rows) == str(history.rows)
    assert heard.heard[0] is not None
    assert str(dict(heard.heard[0].measured)) == str({"kept": kept[1], "spread": np.nan})


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"accuracy": 1.0}, "measured: 'accuracy': expected a name that no column of a row has"),
        ({3: 1.0}, "measured: 3: expected a name"),
        ({"k": [1.0]}, "measured: k is a list: expected a single number"),
        ({"k": torch.ones(2)}, r"measured: k is a tensor of shape \[2\]: expected a single number"),
        ({"k": float("inf")}, "measured: k = inf: expected a finite number"),
        ({"k": torch.tensor(-torch.inf)}, "measured: k = -inf: expected a finite number"),
        ({"personal_accuracy": 1}, "measured: 'personal_accuracy': expected a name"),
    ],
)
def test_measured_numbers_are_single_and_have_names_of_their_own(report: Any, message: str):
    """What no row can hold is refused with round and algorithm."""
    with pytest.raises(TrainingError, match="^round 0, measuring: " + message):
        run(rounds=1, algorithm=Measuring(report=report))


# --- failures and odd rounds --------------------------------------------------------------------------------------


@dataclass
class Forgetful(LocalRunner):
    """A runner whose second client never answers, as when a machine is switched off."""

    def deliver(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        take: Mapping[Category, Take] = MappingProxyType({}),
    ) -> Replies:
        def without(given: Take) -> Take:
            def some(entries: Sequence[int], tensors: Tensors) -> None:
                there = [position for position, entry in enumerate(entries) if entry != 1]
                if there:
                    given([entries[i] for i in there], {name: value[there] for name, value in tensors.items()})

            return some

        reached = {category: without(given) for category, given in take.items()}
        replies = LocalRunner.deliver(self, algorithm, task, plan, messages, reached)
        return dict(reversed([(entry, answer) for entry, answer in replies.items() if entry != 1]))


def test_a_runner_may_lose_clients():
    """Who cannot be reached has not completed, whatever the timing says; the order of replies does not matter."""
    planner = Listening([small_plan()])
    history = run(rounds=2, planner=planner, runner=Forgetful())
    feedback = planner.heard[1]
    assert feedback is not None
    assert feedback.completed.tolist() == [True, False, True]
    assert_same(history.models[0], run(rounds=2, planner=StaticPlanner(small_plan(client=[0, 2]))).models[0])


@pytest.mark.parametrize("batched", [True, False])
def test_a_loss_that_is_not_finite_names_round_and_client(batched: bool):
    """Training stops, and the message says where."""
    model = nn.Sequential(nn.Linear(FEATURES, 3))
    nn.init.ones_(model[0].weight)  # all scores overflow
    task = small_task(model=model)
    inputs = task.train.inputs.clone()
    inputs[task.partition.indices[1].tolist()] = 3e38
    task = task.replace(train=dataclasses.replace(task.train, inputs=inputs))
    planner = Listening([small_plan(client=[2, 0]), small_plan(client=[2, 1])])
    with pytest.raises(TrainingError, match=r"round 1, client 1: the loss is nan, expected a finite number"):
        run(task, planner=planner, runner=LocalRunner(batched=batched))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"resume": True}, "resume: expected a checkpoint"),
        ({"checkpoint": "/nowhere/at/all.safetensors"}, "there is no folder /nowhere/at"),
        ({"planner": StaticPlanner(small_plan(client=[0, 3]))}, r"round 0: client\[1\] = 3: expected 0 to 2"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str):
    """Before anything is trained, and by name."""
    with pytest.raises(InvalidProblemError, match=message):
        run(**options)


# --- the end ------------------------------------------------------------------------------------------------------


def test_a_callback_ends_the_run():
    """Returning False ends it after the round; everyone is told of the round first."""
    seen: list[int] = []

    def second(record: RoundRecord) -> bool | None:
        seen.append(record.number)
        return None

    history = run(rounds=9, on_round=[lambda record: record.number < 2, second])
    assert seen == [0, 1, 2]
    assert (len(history.rows), history.reason) == (3, "a callback ended the run")


def test_ends_at_accuracy_time_or_rounds():
    """Each condition ends the run in the first round that meets it, and the reason says which."""
    long = run(rounds=30, planner=StaticPlanner(small_plan(local_steps=4)))
    assert long.reason == "all rounds are done"
    reached = long.first_reach(0.5)
    assert reached is not None
    assert reached["round"] < 29
    planner = StaticPlanner(small_plan(local_steps=4))
    by_accuracy = run(rounds=30, planner=planner, until_accuracy=0.5)
    assert by_accuracy.rows[-1] == reached
    assert by_accuracy.reason == "accuracy 0.5 is reached"
    by_time = run(rounds=30, planner=planner, until_seconds=2.5 * long.rows[0]["seconds"])
    assert len(by_time.rows) == 3
    assert "virtual seconds are over" in by_time.reason


def test_evaluation_now_and_then():
    """Rounds between evaluations have nan; the last round is always evaluated."""
    accuracy = run(rounds=5, evaluate_every=2).column("accuracy")
    assert np.isnan(accuracy).tolist() == [True, False, True, False, False]


# --- the same again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [None, noisy_model])
def test_same_seed_same_run(make: Any):
    """Two runs agree bit for bit, whatever torch's own seed; another seed gives another model."""
    histories = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        histories.append(run(small_task(model=make and make())))
    assert_same(histories[0].models[0], histories[1].models[0])
    assert str(histories[0].rows) == str(histories[1].rows)
    other = run(small_task(model=make and make(), seed=1))
    assert not torch.equal(other.models[0]["0.weight"], histories[0].models[0]["0.weight"])


@pytest.mark.parametrize("algorithm", [FEDAVG, FedProx(0.5, Sgd(0.1, momentum=0.9)), Counting()])
@pytest.mark.parametrize("chunk", [None, 2])
def test_batched_is_sequential(algorithm: Any, chunk: int | None):
    """Clients as one batch and one after another end alike up to rounding, with the same bytes, times and states."""
    plan = small_plan(4, batch_size=[2, 3, 2, 9], local_steps=[2, 2, 2, 1])
    results = [
        run(small_task((7, 5, 6, 2)), algorithm=algorithm, planner=StaticPlanner(plan), runner=runner)
        for runner in (LocalRunner(batched=True, chunk=chunk), LocalRunner(batched=False))
    ]
    for first, second in zip(*(history.models for history in results), strict=True):
        assert_near(first, second)
    for name in ("seconds", "energy_j", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(*(history.column(name) for history in results))
    torch.testing.assert_close(results[0].clients, results[1].clients)


class Masked(nn.Module):
    """Dropout that nobody recognises by its type."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


def clipped(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy that looks at its value, which vmap refuses."""
    loss = nn.functional.cross_entropy(outputs, targets)
    return loss if loss < 5 else 5 + 0 * loss


@pytest.mark.parametrize("algorithm", [FEDAVG, SplitFed(Sgd(0.3)), ParallelSplit(Sgd(0.3))])
@pytest.mark.parametrize(
    "options", [{"loss": clipped}, {"model": nn.Sequential(small_model()[0], Masked(), small_model()[2])}]
)
def test_what_cannot_be_batched_runs_one_after_another(algorithm: Any, options: dict[str, Any]):
    """A loss or a layer that vmap refuses trains all the same, as if nothing had been tried."""
    task = small_task((6, 6, 6), **options)
    with pytest.warns(SequentialWarning, match="clients run one after another, not as one batch: "):
        first = run(task, algorithm=algorithm, runner=LocalRunner(batched=True))
    second = run(task, algorithm=algorithm, runner=LocalRunner(batched=False))
    assert_near(first.models[0], second.models[0])  # clients' layers may still be batched


@pytest.mark.parametrize("batched", [True, False])
def test_client_states_stay_with_clients(batched: bool):
    """What a client remembers comes back to it, in later rounds and in later exchanges of the same round."""
    planner = Listening([small_plan(client=[0, 1]), small_plan(client=[1, 2])])
    history = run(rounds=3, planner=planner, algorithm=Counting(), runner=LocalRunner(batched=batched))
    assert {client: float(state["seen"]) for client, state in history.clients.items()} == {0: 4, 1: 6, 2: 2}
    assert history.rows[2]["train_loss"] == pytest.approx((4 + 6) / 2)


@pytest.mark.parametrize("batched", [True, False])
def test_a_client_with_two_entries_starts_both_from_one_state(batched: bool):
    """Two servers' picks of one client see the state of the round before, in either way of running."""
    plan = RoundPlan(client=[0, 0], server=[0, 1], batch_size=2)
    history = run(rounds=2, planner=StaticPlanner(plan), algorithm=Counting(), runner=LocalRunner(batched=batched))
    assert float(history.clients[0]["seen"]) == 4


def test_states_kept_from_a_batch_do_not_keep_the_batch():
    """A client's state of a batched round has its own memory."""
    history = run(rounds=1, algorithm=Counting())
    for state in history.clients.values():
        seen = state["seen"]
        assert isinstance(seen, torch.Tensor)
        assert seen.untyped_storage().nbytes() == seen.nbytes


@dataclass(frozen=True, slots=True)
class Asking(Counting):
    """Clients that are asked without their data."""

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Any:
        messages = {e: Message("ask", {"scalars": {"x": torch.tensor(float(e))}}) for e in range(len(plan))}
        replies: Replies = yield Phase("ask", messages)
        return Outcome(state, {entry: answer["scalars"]["x"] for entry, answer in replies.items()})

    def client(self, task: Task, message: Message, state: State, batch: Any) -> tuple[Message, State]:
        assert batch is None
        return reply(scalars={"x": 2 * message["scalars"]["x"]}), state


@pytest.mark.parametrize("batched", [True, False])
def test_messages_without_data(batched: bool):
    """A client need not be asked for its samples; then it gets none."""
    history = run(rounds=1, algorithm=Asking(), runner=LocalRunner(batched=batched))
    assert history.rows[0]["train_loss"] == 2.0
    assert history.rows[0]["scalars_up"] == 12


def test_a_runner_used_again_starts_anew():
    """Client states of an earlier run do not leak into a new one."""
    runner: Runner = LocalRunner()
    first = run(rounds=2, algorithm=Counting(), runner=runner)
    second = run(rounds=2, algorithm=Counting(), runner=runner)
    torch.testing.assert_close(first.clients, second.clients)


# --- devices and precision ----------------------------------------------------------------------------------------

DEVICES = ["cpu", *(["cuda"] * torch.cuda.is_available()), *(["mps"] * torch.backends.mps.is_available())]


@pytest.mark.parametrize("make", [None, noisy_model])
@pytest.mark.parametrize("device", DEVICES)
def test_devices(device: str, make: Any):
    """Weights live on the device that was asked for; the run repeats there; without dropout it is near that on the CPU."""
    history, again = (run(small_task(model=make and make(), device=device)) for _ in range(2))
    for name, value in history.models[0].items():
        assert value.device.type == device
        torch.testing.assert_close(value, again.models[0][name], rtol=1e-5, atol=1e-6)
    if make is None:
        near = {name: value.cpu() for name, value in history.models[0].items()}
        assert_near(near, run().models[0], 1e-4)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_mixed_precision(device: str, batched: bool):
    """With bf16 the layers compute in half precision, weights stay in single, and the model is near that of fp32."""
    task = small_task(precision="bf16", device=device)
    assert task.forward(task.initial_weights(), task.test.inputs).outputs.dtype == torch.bfloat16
    half, full = run(task, runner=LocalRunner(batched=batched)), run(small_task(device=device))
    for name, value in half.models[0].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full.models[0][name], rtol=0.1, atol=0.02)
        assert not torch.equal(value, full.models[0][name])


def test_a_model_without_weights_in_some_layer_and_one_layer_models():
    """The smallest model, one linear layer, trains."""
    task = small_task(model=nn.Sequential(nn.Linear(FEATURES, 3)))
    rows = run(task, 20).rows
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_bar_is_silent_away_from_a_terminal(capsys: pytest.CaptureFixture[str]):
    """Nothing is printed unless asked for, and nothing where nobody looks."""
    run(rounds=1)
    run(rounds=1, display=True)
    assert capsys.readouterr() == ("", "")
