"""FlexP-SFL: written anew with torch's own modules it learns the same; what crosses, what it costs, what it refuses."""

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeopt import RoundPlan
from edgeopt.errors import InvalidProblemError
from edgeopt.training import (
    Adam,
    Batches,
    Compressed,
    FlexpSfl,
    History,
    LocalRunner,
    Message,
    ParallelSplit,
    Sgd,
    Task,
    TopK,
    TrainingError,
    train,
)
from edgeopt.training.messages import Tensors
from edgeopt.training.run_state import RunState
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, assert_same, small_timing
from tests.training.split_tasks import Plans, Replica, images, problem_of, run, task

EXACT = 1e-12
SHARES = [9.0, 7.0, 8.0]  # samples of the clients
PROXY = images(6, 5, torch.float64).inputs
SPLIT = [0, 0, 0, 1]  # of the four layers of the model: 1 at the head of a U

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"alignment": "none"},
    "anchor": {"mu": 0.7},
    "flexible": {"mu": 0.7, "q": 2.0},
    "hard": {"alignment": "hard"},
    "kl": {"alignment": "kl", "mu": 0.7, "proxy": PROXY},
}


def plan(**options: Any) -> RoundPlan:
    fields: dict[str, Any] = {"client": range(3), "batch_size": [2, 3, 4], "cut_layer": [1, 3, 2], "local_steps": 2}
    return RoundPlan(**(fields | options))


U_CUTS = [1, 2, 1]  # with a head of one layer, the server has one of four at least


def learn(own: Task, *plans: RoundPlan, optimizer: Any = None, **options: Any) -> History:
    passed = {name: options.pop(name) for name in ("runner", "timing", "rounds") if name in options}
    return run(own, FlexpSfl(optimizer or Sgd(0.2), **options), *plans, **passed)


# --- a second implementation ----------------------------------------------------------------------------------------


class Alone:
    """Three whole models with `torch.optim.SGD`, whose layers above cuts are held together, in plain torch."""

    def __init__(self, own: Task, lr: float, momentum: float, head: int = 0) -> None:
        self.task, self.last = own, own.num_layers - head
        self.replicas = [Replica(own, lr, momentum) for _ in range(3)]
        self.anchor = Replica(own, lr).weights
        self.cuts: list[int | None] = [None] * 3  # of those who have trained

    def move(self, client: int, cut: int) -> None:
        """Let a client's cut move, and the layers with it; the optimiser starts at zero for those that do."""
        replica, before = self.replicas[client], self.cuts[client]
        for layer in range(cut, self.last if before is None else before):  # the server's now
            for name, value in replica.net[layer].state_dict().items():
                value.copy_(self.anchor[f"{self.name(layer)}.{name}"])
        if before is not None:
            for layer in range(min(before, cut), max(before, cut)):
                for parameter in replica.net[layer].parameters():
                    replica.optimizer.state.pop(parameter, None)
        self.cuts[client] = cut

    def name(self, layer: int) -> str:
        return list(dict(self.task.model.named_children()))[layer]

    def reset(self, client: int) -> None:
        """Give the server's layers for a client the anchor's values."""
        state = self.replicas[client].net.state_dict()
        for name, value in state.items():
            if self.cuts[client] <= self.task.layer_of[name] < self.last:
                value.copy_(self.anchor[name])

    def step(self, client: int, number: int, step: int, size: int, penalty: Any) -> None:
        """Take a step on the loss of a mini-batch and a penalty of the model and its cut."""
        replica = self.replicas[client]
        inputs, targets = (x[0] for x in self.task.batch(client, Batches(number, step, 1, size)))
        replica.optimizer.zero_grad()
        (F.cross_entropy(replica.net(inputs), targets) + penalty(replica.net, self.cuts[client])).backward()
        replica.optimizer.step()

    def set_anchor(self) -> None:
        """Take the mean of every layer over those who have it at the server."""
        for name, layer in self.task.layer_of.items():
            owners = [i for i, cut in enumerate(self.cuts) if cut is not None and cut <= layer < self.last]
            if owners:
                values = np.stack([self.replicas[i].weights[name].numpy() for i in owners])
                mean = np.average(values, axis=0, weights=[SHARES[i] for i in owners])
                self.anchor[name] = torch.from_numpy(mean)

    def proxies(self, clients: list[int]) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Return what the clients' layers return for the proxy, and the mean of the probabilities that it becomes."""
        with torch.no_grad():
            sent = {i: self.replicas[i].net[: self.cuts[i]](PROXY) for i in clients}
            own = [F.softmax(self.replicas[i].net[self.cuts[i] : self.last](sent[i]), dim=1) for i in clients]
        weights = torch.tensor([SHARES[i] for i in clients], dtype=torch.float64)
        return sent, torch.einsum("i,ipk->pk", weights / weights.sum(), torch.stack(own))


def anew(own: Task, plans: list[RoundPlan], momentum: float, head: int = 0, **options: Any) -> Alone:
    """Train as FlexP-SFL says, with a step size of 0.2."""
    models, kind = Alone(own, 0.2, momentum, head), options.get("alignment", "anchor")
    for number, of in enumerate(plans):
        for entry in of:
            models.move(entry.client, entry.cut_layer)
            if kind == "hard":
                models.reset(entry.client)
        anchor = {name: value.clone() for name, value in models.anchor.items()}
        sent, mean = models.proxies([entry.client for entry in of]) if kind == "kl" else ({}, torch.zeros(()))

        def penalty(
            net: nn.Sequential, cut: int, client: int, a: Tensors = anchor, z: Any = sent, p: Any = mean
        ) -> Any:
            mu, above = options.get("mu", 0.5), own.num_layers - cut
            if kind == "anchor":
                return sum(
                    mu * (1 - (own.layer_of[name] + 1 - cut) / above) ** options.get("q", 0.0) / 2
                    * ((value - a[name]) ** 2).sum()
                    for name, value in net.named_parameters() if cut <= own.layer_of[name] < own.num_layers - head
                )  # fmt: skip
            if kind == "kl":
                log_p = F.log_softmax(net[cut : own.num_layers - head](z[client]), dim=1)
                return mu * F.kl_div(p.log(), log_p, log_target=True, reduction="batchmean")
            return 0.0

        for entry in of:
            for step in range(entry.local_steps):
                models.step(
                    entry.client, number, step, entry.batch_size, functools.partial(penalty, client=entry.client)
                )
        if kind != "none":  # nothing of one client gets to another then
            models.set_anchor()
    return models


@pytest.mark.sampled(2)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_what_torch_learns(name: str, head: int, momentum: float):
    """With different cuts, batches and steps, absent clients, and cuts that move, all models equal those made anew."""
    own, options = task(), VARIANTS[name]
    cuts = [[1, 2, 1], [1, 2, 1], [2, 1, 1], [2, 1, 2]] if head else [[1, 3, 2], [1, 3, 2], [3, 1, 2], [2, 2, 1]]
    plans = [plan(cut_layer=own_cuts) for own_cuts in cuts]
    plans[1] = plans[1].take([0, 2])
    history = learn(own, *plans, optimizer=Sgd(0.2, momentum), head_layers=head, **options)
    models = anew(own, plans, momentum, head, **options)
    assert list(history.personal) == [0, 1, 2]
    for client, replica in enumerate(models.replicas):
        assert_near(history.personal[client], replica.weights, EXACT)
    if name != "none":
        assert_near(history.server["weights"], models.anchor, EXACT)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", [Sgd(0.2, 0.9), Adam(0.02)])
@pytest.mark.parametrize(("kind", "cut", "head"), [("mlp", 1, 0), ("mlp", 3, 0), ("mlp", 4, 0), ("mlp", 1, 1),
                                                   ("mlp", 2, 1), ("mlp", 1, 2), ("cnn", 1, 1)])  # fmt: skip
def test_one_client_is_training_of_the_whole_model(kind: str, cut: int, head: int, optimizer: Any):
    """With one client, every cut, and every head, gives the weights of torch's optimiser on the whole model."""
    own = task(kind, sizes=(9,))
    single = RoundPlan(client=[0], batch_size=3, cut_layer=cut, local_steps=2)
    history = learn(own, single, rounds=3, optimizer=optimizer, alignment="none", head_layers=head)
    reference = Replica(own, 0.2, 0.9)
    if isinstance(optimizer, Adam):
        reference.optimizer = torch.optim.AdamW(reference.net.parameters(), lr=0.02, weight_decay=0.0)  # type: ignore[assignment]
    losses = [np.mean([reference.step(0, number, step, 3) for step in range(2)]) for number in range(3)]
    assert_near(history.personal[0], reference.weights, EXACT if isinstance(optimizer, Sgd) else 1e-6)
    np.testing.assert_allclose(history.column("train_loss"), losses, rtol=1e-6)


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("kind", ["anchor", "kl"])
def test_without_strength_it_is_training_alone(kind: str, head: int):
    """With mu = 0 every client learns, to the bit, what it learns alone and what it learns without alignment."""
    own, plans = task(), [plan(cut_layer=U_CUTS if head else [1, 3, 2])] * 3
    options: dict[str, Any] = {"head_layers": head, "optimizer": Sgd(0.2, 0.9), "runner": LocalRunner(batched=False)}
    weak = learn(own, *plans, alignment=kind, mu=0.0, proxy=PROXY if kind == "kl" else None, **options)
    plain = learn(own, *plans, alignment="none", **options)
    assert str(weak.rows) == str(plain.rows)
    for client in range(3):
        assert_same(weak.personal[client], plain.personal[client])
        one = learn(own, *(of.take([client]) for of in plans), alignment="none", **options)
        if not head:  # at equal cuts the server's layers run as a batch, and round otherwise
            assert_same(weak.personal[client], one.personal[client])
        assert_near(weak.personal[client], one.personal[client], EXACT)


def test_the_stronger_the_nearer_copies_are():
    """How far copies are from their mean falls with mu."""
    plans = [plan(local_steps=1)] * 6
    spreads = [learn(task(), *plans, mu=mu).rows[-1]["spread"] for mu in (0.0, 0.5, 2.0, 5.0)]
    assert spreads == sorted(spreads, reverse=True)


def test_in_the_limit_of_strength_it_is_hard_sharing():
    """With a step size of 1 / mu, a step ends where one from the anchor would, but for the point of its gradient.

    That is one step away from the anchor, so after rounds of one step the difference to hard sharing, relative to how far
    that has come, is of the order of the step size: a tenth for ten times the strength.
    """
    own, plans = task(), [plan(local_steps=1)] * 4
    start, apart = own.initial_weights(), []
    for mu in (20.0, 200.0, 2000.0):
        soft, hard = (
            learn(own, *plans, optimizer=Sgd(1 / mu), **options) for options in ({"mu": mu}, {"alignment": "hard"})
        )
        differences = [
            (float((soft.personal[i][name] - value).norm()), float((value - start[name]).norm()))
            for i in range(3)
            for name, value in hard.personal[i].items()
        ]
        difference, way = np.linalg.norm(differences, axis=0)
        apart.append(difference / way)
    np.testing.assert_allclose(apart[1:], np.array(apart[:-1]) / 10, rtol=0.1)
    assert apart[-1] < 1e-3


def test_hard_sharing_of_one_step_is_parallel_split_learning():
    """With plain gradient descent, rounds of one step and cuts that stay, the mean of the copies is PSL's model."""
    own, plans = task(), [plan(local_steps=1)] * 4
    hard, parallel = learn(own, *plans, alignment="hard"), run(own, ParallelSplit(Sgd(0.2)), *plans)
    assert_near(own.part(hard.server["weights"], 1), own.part(parallel.server["weights"], 1), EXACT)  # type: ignore[arg-type]


def test_where_strength_is_flexible_the_last_layer_is_free():
    """With q > 0 the last layer is held by nothing: its own step is that of training alone."""
    own = task()
    found = [
        learn(own, plan(), plan(local_steps=1), mu=mu, q=1.0, runner=LocalRunner(batched=False)) for mu in (0.0, 1.0)
    ]
    first, second = (own.part(history.personal[1], 3) for history in found)  # cut 3: it has but the last at the server
    assert_same(first, second)
    first, second = (own.part(history.personal[0], 1, 2) for history in found)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def test_spread_is_how_far_copies_are_from_their_mean():
    """Of one layer at the server: the root of the weighted mean square over that of the mean."""
    own = task()
    history = learn(own, plan(cut_layer=3), alignment="none")
    vectors = [torch.cat([v.flatten() for v in own.part(history.personal[i], 3).values()]).numpy() for i in range(3)]
    mean = np.average(vectors, axis=0, weights=SHARES)
    expected = np.sqrt(np.average(((vectors - mean) ** 2).sum(1), weights=SHARES) / (mean**2).sum())
    assert history.rows[0]["spread"] == pytest.approx(expected, rel=1e-9)
    assert np.isnan(learn(own, plan(cut_layer=4)).rows[0]["spread"])


def test_kl_draws_outputs_together():
    """The stronger, the less what the copies make of the proxy differs from its mean, after rounds of equal steps."""
    own, plans = task(), [plan(cut_layer=2, batch_size=7, local_steps=3)] * 8
    found = []
    for mu in (0.0, 0.3, 3.0):
        history = learn(own, *plans, alignment="kl", mu=mu, proxy=PROXY)
        p = torch.stack([own.predict(history.personal[i], PROXY).softmax(1) for i in range(3)])
        found.append(float((p * (p.log() - p.mean(0).log())).sum(2).mean()))
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 2


# --- what crosses, and what it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", VARIANTS)
def test_no_weight_leaves_a_client(name: str, head: int):
    """Whatever is aligned and wherever cuts move, clients send no weights; in the U shape, no labels either."""
    own, runner = task(), Recording()
    cuts = ([1, 2, 1], [2, 1, 1]) if head else ([1, 3, 2], [3, 1, 4])
    learn(own, *(plan(cut_layer=cut) for cut in cuts), runner=runner, head_layers=head, **VARIANTS[name])
    up: set[tuple[str, torch.dtype]] = set()
    for _, message, answer in runner.sent:
        assert answer is not None
        up |= {(category, tensor.dtype) for category in answer for tensor in answer[category].values()}
        held_before = own.part(own.initial_weights(), 0, 1)
        assert held_before.keys().isdisjoint(message["weights"])  # nor does the first layer come back
    allowed = {"activations", "gradients" if head else "labels", "scalars"} | (
        {"statistics"} if name == "kl" else set()
    )
    assert {category for category, _ in up} == allowed
    assert (torch.int64 in {dtype for _, dtype in up}) == (head == 0)
    assert not any("labels" in message for _, message, _ in runner.sent)


def test_layers_go_down_from_the_copy_and_up_from_nowhere():
    """Only who lacks layers is sent some, those of its own copy; what a client gives up is the anchor's afterwards."""
    own, runner = task(), Recording()
    before = learn(own, plan())
    history = learn(own, plan(), plan(cut_layer=[3, 1, 2]), runner=runner)
    ((entry, message, _),) = [sent for sent in runner.sent if sent[1].kind == "place"]
    assert entry == 0
    assert_same(dict(message["weights"]), own.part(before.server["copies"]["0"]["weights"], 1, 3))  # type: ignore[index,arg-type]
    assert history.rows[1]["weights_down"] == 8 * (6 * (7 + 1) + 5 * (6 + 1))
    assert history.rows[1]["weights_up"] == 0


def test_bytes_and_seconds_by_hand():
    """Of a step: activations and labels up, gradients down, all clients at once, as `SplitTraining` has it."""
    own = task(dtype=torch.float32)
    history = learn(own, plan(local_steps=1))
    row = history.rows[0]
    activations = 4 * (2 * 7 + 3 * 5 + 4 * 6)  # batches of 2, 3, 4 are cut after widths 7, 5, 6
    assert (row["activations_up"], row["gradients_down"], row["labels_up"]) == (activations, activations, 8 * 9)
    assert (row["bytes_up"], row["bytes_down"]) == (activations + 72, activations)
    problem = problem_of(own)
    sizes, at = np.array([2, 3, 4]), (np.arange(3), np.array([0, 2, 1]))
    expected = (sizes * problem.forward_s[at]).max() + (sizes * problem.server_s[at[1]]).sum()
    assert row["round_seconds"] == pytest.approx(expected + (sizes * problem.backward_s[at]).max(), rel=1e-9)


def test_bytes_and_seconds_of_the_u_shape_by_hand():
    """The middle's outputs come down, their gradients and the loss go up; the server works on its layers twice."""
    own = task(dtype=torch.float32)
    history = learn(own, plan(local_steps=1, cut_layer=U_CUTS), head_layers=1)
    row, problem = history.rows[0], problem_of(own)
    sizes, cuts, rate = np.array([2, 3, 4]), np.array(U_CUTS), np.array([[7, 6, 5, 4]])
    below, above = 4 * sizes * rate[0][cuts - 1], 4 * sizes * 5  # bytes at the cut, and before the head
    assert {name: row[name] for name in ("activations_up", "activations_down", "gradients_up", "gradients_down")} == {
        "activations_up": below.sum(), "activations_down": above.sum(),
        "gradients_up": above.sum(), "gradients_down": below.sum(),
    }  # fmt: skip
    assert (row["labels_up"], row["scalars_up"]) == (0, 3 * 4)
    assert row["bytes_up"] == row["bytes_down"] + 12
    forward, backward = (np.array([0, *np.cumsum(w)]) for w in (own.profile.forward_flops, own.profile.backward_flops))
    up, down, device = problem.uplink_bps, problem.downlink_bps, problem.device_flops

    def work(flops: Any, first: Any, last: Any) -> Any:
        return sizes * (flops[last] - flops[first])

    sent = (work(forward, 0, cuts) / device + 8 * below / up).max() + work(
        forward, cuts, 3
    ).sum() / problem.server_flops
    head = (work(forward, 3, 4) + work(backward, 3, 4)) / device + 8 * above / down + 8 * above / up
    back = (work(backward, 0, cuts) / device + 8 * below / down).max()
    expected = sent + head.max() + work(backward, cuts, 3).sum() / problem.server_flops + back
    assert row["round_seconds"] == pytest.approx(expected, rel=1e-9)
    assert [phase.name for phase in history.last.phases] == ["forward", "head", "backward"]  # type: ignore[union-attr]


def test_bytes_and_seconds_of_the_proxy_by_hand():
    """Once per round clients send what they make of it, as statistics; the server works on it then, and in every step."""
    own = task(dtype=torch.float32)
    proxy = PROXY.float()
    with_it, without = (
        learn(own, plan(cut_layer=[1, 3, 4]), **options)
        for options in ({"alignment": "kl", "proxy": proxy}, {"alignment": "none"})
    )
    row, problem = with_it.rows[0], problem_of(own)
    assert row["statistics_up"] == 4 * 6 * (7 + 5)  # client 2 trains alone
    assert row["bytes_up"] - without.rows[0]["bytes_up"] == row["statistics_up"]
    assert row["bytes_down"] == without.rows[0]["bytes_down"]
    forward = np.array([0, *np.cumsum(own.profile.forward_flops)])
    cuts, sent = np.array([1, 3]), 8 * 4 * 6 * np.array([7, 5])
    phase = (6 * forward[cuts] / problem.device_flops[:2] + sent / problem.uplink_bps[:2]).max()
    phase += 6 * (forward[4] - forward[cuts]).sum() / problem.server_flops
    steps = 2 * 6 * problem.server_s[cuts - 1].sum()
    assert row["round_seconds"] - without.rows[0]["round_seconds"] == pytest.approx(phase + steps, rel=1e-9)


def test_a_codec_works_at_the_cut_of_a_u():
    """Activations and gradients at the cut are coded; those at the head, and what is made of the proxy, are not."""
    own = task(dtype=torch.float32)
    of, options = plan(cut_layer=U_CUTS), {"head_layers": 1, "alignment": "kl", "proxy": PROXY.float()}
    coded = run(own, Compressed(FlexpSfl(Sgd(0.2), **options), TopK(share=0.25)), of).rows[0]  # type: ignore[arg-type]
    plain = learn(own, of, **options).rows[0]
    assert coded["statistics_up"] == plain["statistics_up"] > 0
    assert coded["activations_up"] < plain["activations_up"]
    assert coded["gradients_down"] < plain["gradients_down"]
    assert (coded["activations_down"], coded["gradients_up"]) == (plain["activations_down"], plain["gradients_up"])


def test_half_precision_crosses_the_head():
    """All that crosses has two bytes per number."""
    row = learn(
        task("mlp", (8, 8, 8), torch.float32, precision="bf16"), plan(batch_size=4, cut_layer=1), head_layers=1
    ).rows[0]
    assert row["activations_up"] == row["gradients_down"] == 3 * 2 * 4 * 7 * 2
    assert row["activations_down"] == row["gradients_up"] == 3 * 2 * 4 * 5 * 2


# --- interruptions, failures --------------------------------------------------------------------------------------------


def _at(message: Message) -> tuple[int, int]:
    """Return round and step of a message."""
    return (0, 0) if message.batches is None else (message.batches.round, message.batches.first)


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_client_that_fails_in_a_step(kind: str):
    """Its step does not count on either side, those before it do; the others are as if it had had no further steps."""
    own, three = task(), plan(local_steps=3)
    lost = Recording(lost=lambda entry, m: entry == 1 and m.kind == kind and _at(m) == (0, 1))
    history = learn(own, three, plan(), runner=lost)
    fewer = learn(own, plan(local_steps=[3, 1, 3]), plan())
    for client in range(3):
        assert_near(history.personal[client], fewer.personal[client], EXACT)
    assert history.rows[0]["completed"] == 2


def test_what_a_head_has_learnt_stays():
    """A client that fails after its head's step: its first layers and its copy are as before the step."""
    own, of = task(), plan(cut_layer=U_CUTS, local_steps=2)
    lost = Recording(lost=lambda entry, m: entry == 1 and m.kind == "backward" and _at(m) == (0, 1))
    history = learn(own, of, runner=lost, head_layers=1)
    fewer, all_steps = (learn(own, of.replace(local_steps=steps), head_layers=1) for steps in ([2, 1, 2], 2))
    assert_near(own.part(history.personal[1], 0, 3), own.part(fewer.personal[1], 0, 3), EXACT)
    assert_near(own.part(history.personal[1], 3), own.part(all_steps.personal[1], 3), EXACT)


@pytest.mark.parametrize("kind", ["proxy", "head", "forward"])
def test_a_client_lost_from_the_start_has_no_model(kind: str):
    """Nothing counts of a client that never got through a step, and it is new when it comes back."""
    own, of = task(), plan(cut_layer=U_CUTS)
    options: dict[str, Any] = {"alignment": "kl", "proxy": PROXY, "head_layers": 1}
    lost = Recording(lost=lambda entry, message: entry == 1 and message.kind == kind and _at(message) == (0, 0))
    first = learn(own, of, runner=lost, **options)
    assert list(first.personal) == [0, 2]
    without = learn(own, of.take([0, 2]), of, **options)
    if kind == "proxy":  # later it is in the mean of the proxy
        both = learn(own, of, of, runner=Recording(lost=lost.lost), **options)
        for client in range(3):
            assert_near(both.personal[client], without.personal[client], EXACT)


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", ["hard", "kl", "none", "flexible"])
def test_resumed_is_the_long_run(name: str, head: int, tmp_path: Path):
    """Cut after any round, with failures and moving cuts: the file has the same bytes as that of the long run."""
    own = task(dtype=torch.float32)
    options = VARIANTS[name] | ({"proxy": PROXY.float()} if name == "kl" else {})
    algorithm = FlexpSfl(Adam(0.02), head_layers=head, **options)
    cuts = ([1, 2, 1], [2, 1, 1], [1, 1, 2]) if head else ([1, 3, 2], [3, 1, 4], [2, 1, 1])
    planner = Plans(*(plan(cut_layer=cut) for cut in cuts))
    timing = small_timing(failure_probability=0.2, seed=3)

    def go(file: Path, rounds: int) -> None:
        train(own, algorithm, planner, timing, rounds=rounds, checkpoint=file, resume=True)

    go(tmp_path / "long", 3)
    for cut in (1, 2):
        go(tmp_path / "cut", cut)
        copied = shutil.copy(tmp_path / "cut", tmp_path / f"{cut}")
        go(copied, 3)
        assert copied.read_bytes() == (tmp_path / "long").read_bytes()


@pytest.mark.parametrize("name", ["hard", "kl", "flexible"])
def test_batched_is_one_after_another(name: str):
    """Clients at equal cuts run as one batch, also in the U shape and on the proxy, and learn the same up to rounding."""
    own = task(sizes=(9, 7, 8, 7))
    together = plan(client=range(4), batch_size=3, cut_layer=[1, 1, 2, 2])
    found = [
        learn(own, together, together, runner=LocalRunner(batched=batched), head_layers=1, **VARIANTS[name])
        for batched in (True, False)
    ]
    for client in range(4):
        assert_near(found[0].personal[client], found[1].personal[client], EXACT)


# --- layers of other kinds ----------------------------------------------------------------------------------------------


def normed() -> nn.Sequential:
    """Return a model with buffers in each of four layers, but for the last."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU())
        middle = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(2)]
        return nn.Sequential(first, *middle, nn.Linear(6, 4)).double()


@pytest.mark.parametrize("head", [0, 1, 2])
def test_buffers_count_each_batch_once(head: int):
    """Running means are those of one pass per step, wherever the layer is, though layers run twice and on the proxy."""
    own = task(model=normed(), sizes=(9, 9))
    single = RoundPlan(client=[0], batch_size=4, cut_layer=1, local_steps=2)
    history = learn(own, single, single, head_layers=head, alignment="none")
    reference = Replica(own, 0.2)
    for number in range(2):
        for step in range(2):
            reference.step(0, number, step, 4)
    assert_near(history.personal[0], reference.weights, EXACT)
    proxied = learn(own, single, head_layers=head, alignment="kl", proxy=PROXY)
    counted = own.part(proxied.personal[0], 1, 4 - head)
    assert {int(v) for n, v in counted.items() if n.endswith("tracked")} <= {2}


@pytest.mark.parametrize("frozen", [(0,), (3,), (1, 2), (0, 3), (0, 1, 2)])
def test_frozen_layers_of_a_u(frozen: tuple[int, ...]):
    """Whatever is frozen, the rest learns what it does in the whole model."""
    net = task().model
    for layer in frozen:
        net[layer].requires_grad_(False)
    own = task(model=net, sizes=(9,))
    history = learn(
        own, RoundPlan(client=[0], batch_size=3, cut_layer=1, local_steps=2), head_layers=1, alignment="none"
    )
    reference = Replica(own, 0.2)
    for step in range(2):
        reference.step(0, 0, step, 3)
    assert_near(history.personal[0], reference.weights, EXACT)


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": -0.1}, r"mu = -0\.1: expected a non-negative number"),
        ({"mu": float("nan")}, r"mu = nan: expected a non-negative number"),
        ({"q": -1}, r"q = -1\.0: expected a non-negative number"),
        ({"q": 1.0, "alignment": "hard"}, r"q = 1\.0: expected 0, as with alignment 'hard'"),
        ({"alignment": "soft"}, "alignment = 'soft': expected one of kl, anchor, hard, none"),
        ({"alignment": "kl"}, "alignment = 'kl': expected a proxy of samples without labels, a tensor"),
        ({"proxy": PROXY}, "alignment = 'anchor': expected no proxy"),
        ({"alignment": "kl", "proxy": [1.0]}, r"proxy = \[1\.0\]: expected a tensor of samples"),
        ({"alignment": "kl", "proxy": PROXY[:0]}, "expected a tensor of samples .* at least one"),
        ({"head_layers": -1}, "head_layers = -1: expected an integer >= 0"),
        ({"cut_layer": 0}, "cut_layer = 0: expected an integer >= 1"),
        ({"batch_size": 0}, "batch_size = 0: expected an integer >= 1"),
        ({"weighting": "alike"}, "weighting = 'alike'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str):
    """They are refused with name, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        FlexpSfl(**options)


def test_what_does_not_fit_the_task():
    """One client, a head without room for the others, a proxy of other samples, cuts that leave the server nothing."""
    own = task()
    with pytest.raises(InvalidProblemError, match="alignment = 'anchor': one client has nobody to align with"):
        learn(task(sizes=(9,)), RoundPlan(client=[0]))
    with pytest.raises(InvalidProblemError, match="head_layers = 3: expected at most 2, so that of the 4 layers"):
        learn(own, plan(cut_layer=1), head_layers=3)
    with pytest.raises(
        InvalidProblemError, match=r"proxy: torch.float32 \[6, 1, 4, 4\]: expected .*float64 \[P, 1, 4, 4\]"
    ):
        learn(own, plan(), alignment="kl", proxy=PROXY.float())
    with pytest.raises(
        InvalidProblemError, match=r"cut_layer\[1\] = 3: expected 1 to 2, the server has one at least of 4"
    ):
        learn(own, plan(), head_layers=1)
    with pytest.raises(InvalidProblemError, match=r"cut_layer\[0\] = 5: expected 1 to 4, the layers of the model"):
        learn(own, plan(cut_layer=5))


class Spoiling(LocalRunner):
    """Runs the clients here; what client 1 answers to messages of a kind becomes NaN."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def deliver(self, algorithm: Any, task: Task, plan: RoundPlan, messages: Any, *more: Any) -> Any:
        """Deliver, and spoil."""
        found = super().deliver(algorithm, task, plan, messages, *more)
        if 1 in found and messages[1].kind == self.kind:
            tensors: Any = {
                category: {name: tensor * torch.nan for name, tensor in found[1][category].items()}
                for category in found[1]
                if category not in ("labels", "scalars")
            }
            found[1] = dataclasses.replace(found[1], tensors={**found[1].tensors, **tensors})
        return found


@pytest.mark.parametrize(("kind", "head"), [("forward", 0), ("forward", 1), ("head", 1), ("proxy", 0)])
def test_what_is_not_finite_is_refused(kind: str, head: int):
    """A client that sends NaN is named, before it gets into the anchor and to the others."""
    with pytest.raises(TrainingError, match=r"^round 0, flexp-sfl, client 1: what it has sent at cut 2 is not finite"):
        learn(task(), plan(cut_layer=U_CUTS), runner=Spoiling(kind), alignment="kl", proxy=PROXY, head_layers=head)


def test_another_run_is_not_continued(tmp_path: Path):
    """A checkpoint knows what the run was aligned by."""
    own = task(dtype=torch.float32)
    state = RunState.start(own, FlexpSfl(mu=0.1), Plans(plan()))
    other = RunState.start(own, FlexpSfl(mu=0.2), Plans(plan()))
    assert state.identity["algorithm"] != other.identity["algorithm"]
