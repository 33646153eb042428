"""HSplitLoRA: split learning of adapters whose ranks and cuts follow importance and memory, aggregated without noise.

Z. Lin et al., HSplitLoRA: A Heterogeneous Split Parameter-Efficient Fine-Tuning Framework for Large Language Models,
arXiv:2505.02795. The paper's three blocks are known to us in words; the formulas here are ours, made from them.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch.func import grad

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.keys import fold_in
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Adam, Optimizer
from edgeopt.training.rules.common import Weighting, check_batch_size, check_weighting, tensors_of
from edgeopt.training.rules.local import minimise
from edgeopt.training.rules.lora import adapters_of, fresh_adapter, row_masks, weight_gradient_products
from edgeopt.training.split.adapters import FOLD, AdapterRound
from edgeopt.training.split.exchange import check_cut_layer, split_client
from edgeopt.training.task import Batch, Task
from edgeopt.validate import float_array, integer, real

Importance = Literal["rngwp", "uniform"]


@dataclass(frozen=True, slots=True)
class HSplitLora:
    r"""Split learning of low-rank adapters with ranks and cuts by importance, folded into the frozen weights by stacking.

    Every client has a copy of the adapters of all layers: those of layers 1 to its cut are with it, those above at the server,
    which works with the activations of all clients in parallel. At the end of a round the adapters of all clients are
    stacked and folded into the weights that everybody holds, and start anew:

    .. math:: W_k \leftarrow W_k + \sum_i w_i s B_{i,k} A_{i,k}, \quad A \sim N(0, 1 / d_k), \; B = 0

    with w_i the share of a client. That is the exact mean of what the clients have learnt, of whatever rank. The frozen
    weights are never sent as a whole at first; what a fold has changed is, to each client for the layers that it holds, as
    factors or as weights, whichever is smaller. A client draws its adapters itself.

    *Importance* of layer k is :math:`|W_k \odot \partial L / \partial W_k|_1 / c_k`, c_k the parameters of a unit of rank,
    measured every `profile_every` rounds on one mini-batch of each client with a pass of its own, averaged over the clients
    by their share, and smoothed by `edgeopt.training.rules.lora.smoothed_importance`. *Ranks* of a client's layers are those
    of `greedy_ranks` under its budget: the parameters that its rank, of the plan or `rank`, takes in all layers of the
    model. Adapters at the server have the largest rank. *Cuts* that the plan leaves open are, with `memory_bytes`, those of
    the largest importance in layers 1 to the cut of those that fit; they are decided anew when importance has moved by
    more than `resplit`, else they stay. As importance adds up, that is the deepest cut that fits, but for layers of no importance.

    What is trained beside the adapters, and buffers, are averaged. Without adapters in the model it is SplitFed in which
    clients get their layers anew in each round. Every round aggregates. Work, bytes and memory are charged as those of each
    client's own ranks.

    Parameters
    ----------
    optimizer : of clients and server; it starts anew in every round. With plain SGD, adapters that start at zero in every
        round learn slowly.
    batch_size, cut_layer : where the plan leaves them open.
    weighting : whether a client counts by its ``samples`` or all ``uniform``.
    rank : of a client where the plan leaves it open; 0 is that of the model.
    importance : ``rngwp``, or ``uniform`` for equal importance of all layers, without a profile.
    profile_every : rounds between two measurements of importance.
    horizon : rounds T over which the current importance loses weight against the past.
    resplit : share of the importance that has to move before cuts are decided anew.
    memory_bytes : of each client, by id, or one for all. Default: `cut_layer` decides.
    report_errors : measure ``fold_error``, how far a fold is from the mean in double precision, relative to the weights.
    """

    name: ClassVar[str] = "hsplit-lora"

    optimizer: Optimizer = field(default_factory=lambda: Adam(0.01))
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "samples"
    rank: int = 0
    importance: Importance = "rngwp"
    profile_every: int = 5
    horizon: int = 100
    resplit: float = 0.2
    memory_bytes: tuple[float, ...] = ()
    report_errors: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)
        check_weighting(self.weighting)
        integer("rank", self.rank, low=0)
        if self.importance not in ("rngwp", "uniform"):
            raise InvalidProblemError(f"importance = {quoted(self.importance)}: expected 'rngwp' or 'uniform'")
        for name in ("profile_every", "horizon"):
            integer(name, getattr(self, name), low=1)
        if not real("resplit", self.resplit) >= 0:
            raise InvalidProblemError(f"resplit = {quoted(self.resplit)}: expected a number >= 0")
        float_array("memory_bytes", self.memory_bytes, (None,), positive=True, finite=False, unit="byte")

    def start(self, task: Task) -> State:
        """Return the initial weights; the clients have them, too."""
        adapters = adapters_of(task)
        weights = task.initial_weights()
        zero = {name: torch.zeros_like(weights[name]) for adapter in adapters for name in (adapter.a, adapter.b)}
        return {
            "weights": {**weights, **zero},
            "base": {adapter.weight: task.frozen[adapter.weight] for adapter in adapters},
            "folds": torch.tensor(0),
            # by client and adapter, how many folds its weights have; -1: not known
            "held": torch.zeros(task.num_clients, len(adapters), dtype=torch.int64),
            "last": {},  # the last fold, as factors by name
            "importance": torch.zeros(len(adapters), dtype=torch.float64),  # zeros: not known yet
            "at_split": torch.zeros(len(adapters), dtype=torch.float64),
            "cuts": torch.zeros(task.num_clients, dtype=torch.int64),  # 0: to be decided
        }

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Bring clients up to date, measure importance if it is due, train, fold."""
        if not plan.aggregate:
            raise InvalidProblemError(
                f"round {number}: a plan without aggregation: expected aggregation in every round; local_steps makes rounds longer"
            )
        side = AdapterRound(self, task, adapters_of(task), plan, number, state)
        if not len(plan):
            return Outcome(state, {})
        side.decide()
        there = list(side.assigned)
        if side.adapters and self.importance == "rngwp" and number % self.profile_every == 0:
            there = yield from side.bring(there, ranked=False)
            there = yield from side.profile(there)
            side.decide()
        there = yield from side.bring(there, ranked=True)
        losses = yield from side.steps(there)
        collected = yield from side.collect(list(losses))
        measured = side.fold(collected)
        return Outcome(side.state, {entry: losses[entry] for entry in collected}, measured)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Take up weights and start adapters; measure importance; work with the layers up to the cut; hand them over."""
        if message.kind == "begin":
            return reply(), self._begin(task, message, state)
        if message.kind == "profile":
            assert batch is not None
            return reply(statistics={"importance": _importance_below(task, message, state, batch)}), state
        if message.kind == "collect":
            own = _trainable(task, _weights(task, state, int(message.values["cut"])))
            ranks = state.get("ranks")
            assert ranks is None or isinstance(ranks, torch.Tensor)
            masks = {} if ranks is None else row_masks(adapters_of(task), ranks)
            return reply(weights=own, rows={name: mask for name, mask in masks.items() if name in own}), state
        if message.kind == "train":
            answer, new = self._train(task, state, batch)
        else:
            answer, new = split_client(task, self.optimizer, message, state, batch)
        if new is state:
            return answer, state
        return answer, {**state, **new, "weights": {**tensors_of(state, "weights"), **tensors_of(new, "weights")}}

    def _train(self, task: Task, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Take all steps of a client that holds the whole model."""
        assert batch is not None
        weights, optimizer = _weights(task, state, task.num_layers), state.get("optimizer")
        assert not isinstance(optimizer, torch.Tensor)
        trained = minimise(task, task.batch_loss, weights, batch, self.optimizer, optimizer)
        new: State = {"weights": dict(trained.weights), "optimizer": trained.state}
        return reply(scalars={"loss": trained.loss}), new

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the model with everything folded in; its adapters are zero."""
        return {None: {**tensors_of(state, "weights"), **tensors_of(state, "base")}}

    def _begin(self, task: Task, message: Message, state: State) -> State:
        """Return the state of a client that has taken up what is sent; adapters without ranks are zero."""
        cut, sent, adapters = int(message.values["cut"]), message["weights"], adapters_of(task)
        old = tensors_of(state, "weights") if state else {}
        base = {adapter.weight: old[adapter.weight] for adapter in adapters if adapter.weight in old}
        own = {name: sent.get(name, old.get(name)) for name in task.weight_names if task.layer_of[name] < cut}
        ranks = message["scalars"].get("ranks")
        masks = {} if ranks is None else row_masks(adapters, ranks)
        assert message.key is not None
        for index, adapter in enumerate(adapters):
            if adapter.layer >= cut:
                continue
            weight = sent.get(adapter.weight, base.get(adapter.weight, task.frozen[adapter.weight]))
            if (fold_a := sent.get(adapter.name + FOLD[0])) is not None:
                weight = weight + adapter.product(fold_a, sent[adapter.name + FOLD[1]])
            if weight is not task.frozen[adapter.weight]:
                base[adapter.weight] = weight
            own |= fresh_adapter(adapter, fold_in(message.key, index), weight, masks.get(adapter.a))
        weights = {**base, **{name: value for name, value in own.items() if value is not None}}
        optimizer = self.optimizer.start(task.trained(task.part(weights, 0, cut)))
        found: State = {"weights": dict(weights), "optimizer": optimizer}
        return found if ranks is None else {**found, "ranks": ranks}


def _weights(task: Task, state: State, cut: int) -> Tensors:
    return task.part(tensors_of(state, "weights") if state else task.initial_weights(), 0, cut)


def _trainable(task: Task, weights: Tensors) -> Tensors:
    """Return what is sent of a client's weights: not the frozen ones into which was folded."""
    return {name: value for name, value in weights.items() if name not in task.frozen}


def _importance_below(task: Task, message: Message, state: State, batch: Batch) -> torch.Tensor:
    """Return what a client measures of its layers up to the cut, [K']."""
    cut = int(message.values["cut"])
    inputs, targets = batch.inputs[0], batch.targets[0]
    weights = {**task.part(task.frozen, 0, cut), **_weights(task, state, cut)}
    adapters = [adapter for adapter in adapters_of(task) if adapter.layer < cut]

    def loss_of(base: Tensors) -> torch.Tensor:
        if cut == task.num_layers:
            return task.batch_loss({**weights, **base}, inputs, targets)[0]
        passed = task.forward({**weights, **base}, inputs, 0, cut)
        return (passed.outputs * message["gradients"]["outputs"]).sum() + passed.penalty

    return weight_gradient_products(
        adapters, weights, grad(loss_of)({adapter.weight: weights[adapter.weight] for adapter in adapters})
    )
