"""HSplitLoRA: split learning of adapters whose ranks and cuts follow importance and memory, aggregated without noise.

Z. Lin et al., HSplitLoRA: A Heterogeneous Split Parameter-Efficient Fine-Tuning Framework for Large Language Models,
arXiv:2505.02795. The paper's three blocks are known to us in words; the formulas here are ours, made from them.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.keys import fold_in, normal
from edgeopt.training.messages import Batches, Category, Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Adam, Optimizer
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import (
    Weighting,
    check_batch_size,
    check_weighting,
    client_weight,
    tensors_of,
)
from edgeopt.training.rules.local import minimise
from edgeopt.training.rules.lora import (
    Adapter,
    adapters_of,
    budget_of,
    greedy_ranks,
    importance_moved,
    lower_peak_bytes,
    row_masks,
    smoothed_importance,
    stacked,
)
from edgeopt.training.split.exchange import (
    Answer,
    Assignment,
    Smashed,
    assign,
    check_cut_layer,
    play_steps,
    split_client,
)
from edgeopt.training.split.server import map_cuts, server_step
from edgeopt.training.task import Batch, Task
from edgeopt.validate import float_array, integer, real

Importance = Literal["rngwp", "uniform"]
_FOLD = ".fold_a", ".fold_b"  # of a layer's name: the last increment as factors


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
    clients get their layers anew in each round. Every round aggregates. Work is charged as that of the largest ranks, bytes and memory as of each
    client's own.

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
            "held": torch.zeros(
                task.num_clients, len(adapters), dtype=torch.int64
            ),  # folds in what clients have; -1: unknown
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
        side = _Round(self, task, adapters_of(task), plan, number, state)
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
            return reply(statistics={"importance": _own_importance(task, message, state, batch)}), state
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
            if (fold_a := sent.get(adapter.name + _FOLD[0])) is not None:
                weight = weight + adapter.product(fold_a, sent[adapter.name + _FOLD[1]])
            if weight is not task.frozen[adapter.weight]:
                base[adapter.weight] = weight
            own |= _fresh(adapter, fold_in(message.key, index), weight, masks.get(adapter.a))
        weights = {**base, **{name: value for name, value in own.items() if value is not None}}
        optimizer = self.optimizer.start(task.trained(task.part(weights, 0, cut)))
        found: State = {"weights": dict(weights), "optimizer": optimizer}
        return found if ranks is None else {**found, "ranks": ranks}


# --- the server's side -------------------------------------------------------------------------------------------


class _Round:
    """One round at the server.

    Parameters
    ----------
    state : of the server; after `fold` the new one.
    """

    def __init__(
        self, options: HSplitLora, task: Task, adapters: tuple[Adapter, ...], plan: RoundPlan, number: int, state: State
    ) -> None:
        self.options, self.task, self.adapters, self.plan, self.number = options, task, adapters, plan, number
        self.state = dict(state)
        self.assigned: dict[int, Assignment] = {}
        self.ranks: dict[int, NDArray[np.int64]] = {}
        self.server: dict[int, tuple[Tensors, State]] = {}  # by entry: weights and optimiser above its cut
        self._had: dict[int, int] = {}  # by entry: layers whose trained weights it has got in this round

    __repr__ = one_line

    def _number(self, name: str) -> int:
        return int(self._tensor(name))

    def _tensor(self, name: str) -> torch.Tensor:
        found = self.state[name]
        assert isinstance(found, torch.Tensor)
        return found

    @property
    def _others(self) -> Tensors:
        """What is trained beside the adapters, and buffers."""
        names = {name for adapter in self.adapters for name in (adapter.a, adapter.b)}
        return {name: value for name, value in tensors_of(self.state, "weights").items() if name not in names}

    # --- ranks and cuts ------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Give each entry its cut and its ranks."""
        cuts = self._cuts()
        plan = self.plan.replace(cut_layer=cuts)
        options = self.options
        assigned = assign(self.task, plan, self.number, options.cut_layer, options.batch_size, options.optimizer)
        for entry, own in assigned.items():
            self.ranks[entry] = self._ranks(entry, own.cut)
            peak = lower_peak_bytes(
                self.task, own.samples, options.optimizer, self.adapters, self.ranks[entry], own.cut
            )  # fmt: skip
            self.assigned[entry] = replace(own, peak_bytes=peak)

    def _worth(self) -> NDArray[np.float64]:
        """Return the importance of the layers, all alike while it is not known."""
        found: NDArray[np.float64] = self._tensor("importance").numpy()
        return found if found.any() else np.ones(found.size)

    def _ranks(self, entry: int, cut: int) -> NDArray[np.int64]:
        """Return the ranks of an entry's adapters, as many of them as are below a cut; 0 above."""
        most = [adapter.rank if adapter.layer < cut else 0 for adapter in self.adapters]
        if not any(most):
            return np.zeros(len(most), np.int64)
        budget = budget_of(self.adapters, int(self.plan.rank[entry]) or self.options.rank)
        return greedy_ranks(self._worth(), [adapter.cost for adapter in self.adapters], most, budget)

    def _cuts(self) -> list[int]:
        """Return the cut of each entry, 0 where `cut_layer` decides."""
        memory, worth = np.asarray(self.options.memory_bytes, np.float64), self._worth()
        if memory.size not in (0, 1, self.task.num_clients):
            raise InvalidProblemError(
                f"memory_bytes: {memory.size} numbers, expected one for each of {self.task.num_clients} clients, or one for all"
            )
        if not memory.size:
            return [int(cut) for cut in self.plan.cut_layer]
        cuts, then = self._tensor("cuts").clone(), self._tensor("at_split").numpy()
        if not then.any() or importance_moved(worth, then) > self.options.resplit:
            cuts[:] = 0
            self.state["at_split"] = torch.from_numpy(worth.copy())
        found = []
        for entry, planned in enumerate(self.plan):
            if not (cut := planned.cut_layer):
                limit = float(memory[planned.client if memory.size > 1 else 0])
                cut = int(cuts[planned.client]) or self._deepest(entry, limit, worth)
                cuts[planned.client] = cut
            found.append(cut)
        self.state["cuts"] = cuts
        return found

    def _deepest(self, entry: int, limit: float, worth: NDArray[np.float64]) -> int:
        """Return the first of the cuts with the most importance below it that fit into a client's memory."""
        client, options = self.plan[entry], self.options
        samples = self.task.samples(client.client, client.batch_size or options.batch_size)

        def needed(cut: int) -> float:
            ranks = self._ranks(entry, cut)
            return lower_peak_bytes(self.task, samples, options.optimizer, self.adapters, ranks, cut)

        fits = [cut for cut in range(1, self.task.num_layers + 1) if needed(cut) <= limit]
        if not fits:
            raise InvalidProblemError(
                f"round {self.number}: client {client.client} needs {needed(1):.6g} bytes for layer 1 alone, its memory is "
                f"{limit:.6g}: expected memory for one layer at least"
            )
        layer = np.array([adapter.layer for adapter in self.adapters], np.int64)
        below = [float(worth[layer < cut].sum()) for cut in fits]
        return fits[int(np.argmax(below))]

    # --- phases --------------------------------------------------------------------------------------------------

    def bring(self, entries: list[int], *, ranked: bool) -> Generator[Phase, Replies, list[int]]:
        """Bring clients what they lack, and their ranks; return those that have got it."""
        messages: dict[int, Message] = {}
        for entry in entries:
            cut = self.assigned[entry].cut
            weights = {**self.task.part(self._others, self._had.get(entry, 0), cut), **self._lacking(entry)}
            scalars = {"ranks": torch.from_numpy(self.ranks[entry]).int()} if ranked and self.ranks[entry].any() else {}
            if weights or any(adapter.layer < cut for adapter in self.adapters):
                content: dict[Category, Tensors] = {"weights": weights, "scalars": scalars}
                messages[entry] = Message("begin", {c: t for c, t in content.items() if t}, {"cut": cut})
        replies = (yield Phase("sync", messages)) if messages else {}
        held = self._tensor("held").clone()
        for entry in messages:
            below = torch.tensor(
                [adapter.layer < self.assigned[entry].cut for adapter in self.adapters], dtype=torch.bool
            )
            held[self.assigned[entry].client, below] = self._number("folds") if entry in replies else -1
            self._had[entry] = self.assigned[entry].cut
        self.state["held"] = held
        return [entry for entry in entries if entry in replies or entry not in messages]

    def _lacking(self, entry: int) -> Tensors:
        """Return what a client lacks of the folds so far: the last one as factors where that is less, else the weights."""
        found: Tensors = {}
        base, last, folds = tensors_of(self.state, "base"), tensors_of(self.state, "last"), self._number("folds")
        for adapter, held in zip(
            self.adapters, self._tensor("held")[self.assigned[entry].client].tolist(), strict=True
        ):  # fmt: skip
            if adapter.layer >= self.assigned[entry].cut or held == folds:
                continue
            factors = {name: last[name] for end in _FOLD if (name := adapter.name + end) in last}
            size = sum(factor.nbytes for factor in factors.values())
            whole = base[adapter.weight]
            found |= factors if held == folds - 1 and 0 < size < whole.nbytes else {adapter.weight: whole}
        return found

    def steps(self, entries: list[int]) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
        """Play the local steps; the server has a copy of its layers for each client."""
        assigned = {entry: self.assigned[entry] for entry in entries}
        self.server = {entry: self._above(entry) for entry in entries}
        if assigned and all(own.cut == self.task.num_layers for own in assigned.values()):
            return (yield from self._steps_alone(assigned))

        def work(smashed: Mapping[int, Smashed]) -> dict[int, Answer]:
            items = {entry: (*self.server[entry], sent) for entry, sent in smashed.items()}
            optimizer = self.options.optimizer
            found = map_cuts(
                self.task, assigned, items, lambda cut, item: server_step(self.task, optimizer, cut, *item)
            )
            self.server |= {entry: (weights, own) for entry, (weights, own, _) in found.items()}
            return {entry: answer for entry, (_, _, answer) in found.items()}

        return (yield from play_steps(self.task, assigned, self.number, work))

    def _steps_alone(self, assigned: Mapping[int, Assignment]) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
        """Have clients that hold the whole model take their steps at once: there is nothing to exchange between them."""
        messages = {}
        for entry, own in assigned.items():
            batches = Batches(self.number, 0, own.steps, own.batch_size)
            work = self.task.flops(own.steps * own.samples)
            messages[entry] = Message("train", {}, {"cut": own.cut}, batches, work, peak_bytes=own.peak_bytes)
        replies = yield Phase("train", messages)
        return {entry: answer["scalars"]["loss"] for entry, answer in replies.items()}

    def _above(self, entry: int, *, trained: bool = True) -> tuple[Tensors, State]:
        """Return the layers above an entry's cut with fresh adapters of the largest rank, or of zero."""
        own, base = self.assigned[entry], tensors_of(self.state, "base")
        weights = self.task.part({**self._others, **base}, own.cut)
        key = torch.tensor(int(stream(self.task.seed, "adapters", self.number, own.client).integers(1 << 62)))
        for index, adapter in enumerate(self.adapters):
            if adapter.layer >= own.cut:
                mask = torch.ones(adapter.rank, dtype=torch.bool) if trained else None
                at = fold_in(key, index).to(self.task.device)
                weights |= _fresh(adapter, at, base[adapter.weight], mask)
        return weights, self.options.optimizer.start(self.task.trained(weights))

    def collect(self, entries: list[int]) -> Generator[Phase, Replies, dict[int, Tensors]]:
        """Get the clients' layers; return them for those that have sent them."""
        messages = {
            entry: Message("collect", {}, {"cut": self.assigned[entry].cut})
            for entry in entries
            if self.task.part(tensors_of(self.state, "weights"), 0, self.assigned[entry].cut)
        }
        replies = (yield Phase("collect", messages, link="fed")) if messages else {}
        return {
            entry: replies[entry]["weights"] if entry in replies else {}
            for entry in entries
            if entry in replies or entry not in messages
        }

    def fold(self, collected: Mapping[int, Tensors]) -> dict[str, float]:
        """Fold the adapters of the entries into the weights, average the rest."""
        if not collected:
            return {}
        models = {entry: {**self.server[entry][0], **own} for entry, own in collected.items()}
        shares = [client_weight(self.task, self.assigned[entry].client, self.options.weighting) for entry in models]
        weights, base = tensors_of(self.state, "weights"), dict(tensors_of(self.state, "base"))
        last: Tensors = {}
        errors = [0.0]
        for index, adapter in enumerate(self.adapters):
            factors = [self._factors(entry, index, model) for entry, model in models.items()]
            scaled = [adapter.scale * share / sum(shares) for share in shares]
            a, b = stacked(factors, scaled)
            old = base[adapter.weight]
            base[adapter.weight] = new = old + adapter.product(a, b)
            last |= dict(zip((adapter.name + end for end in _FOLD), (a, b), strict=True))
            if self.options.report_errors:
                errors.append(_fold_error(adapter, old, new, factors, scaled))
        others = [{name: model[name] for name in self._others} for model in models.values()]
        whose = [f"client {self.assigned[entry].client}" for entry in models]
        average = weighted_average(others, shares, whose=whose)
        folds = torch.tensor(self._number("folds") + 1)
        self.state |= {"weights": {**weights, **average}, "base": dict(base), "last": dict(last), "folds": folds}
        if not self.adapters:
            return {}
        below = [self.ranks[entry][self.ranks[entry] > 0] for entry in models]
        measured = {
            "client_rank": float(np.mean([ranks.mean() if ranks.size else 0.0 for ranks in below])),
            "client_cut": float(np.mean([self.assigned[entry].cut for entry in models])),
        }
        return {**measured, "fold_error": max(errors)} if self.options.report_errors else measured

    def _factors(self, entry: int, index: int, model: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of A and columns of B of one adapter that an entry has trained."""
        adapter, cut = self.adapters[index], self.assigned[entry].cut
        rank = int(self.ranks[entry][index]) if adapter.layer < cut else adapter.rank
        return model[adapter.a][:rank], model[adapter.b][:, :rank]

    # --- importance ----------------------------------------------------------------------------------------------

    def profile(self, entries: list[int]) -> Generator[Phase, Replies, list[int]]:
        """Measure importance on a mini-batch of each client; return the entries that got through."""
        assigned = {entry: self.assigned[entry] for entry in entries}
        batches = {entry: Batches(self.number, 0, 1, own.batch_size) for entry, own in assigned.items()}
        messages, served = {}, {}
        for entry, own in assigned.items():
            work = self.task.flops(own.samples, 0, own.cut, backward=False)
            messages[entry] = Message(
                "forward", {}, {"cut": own.cut}, batches[entry], work, peak_bytes=own.peak_bytes
            )  # fmt: skip
            served[entry] = self.task.flops(own.samples, own.cut) + own.samples * self._extra(own.cut, None)
        sent = (yield Phase("profile forward", messages, server_flops=served)) if messages else {}
        smashed = {
            e: (r["activations"]["outputs"], r["labels"]["targets"]) for e, r in sent.items() if r["activations"]
        }
        items = {entry: (self._above(entry, trained=False)[0], found) for entry, found in smashed.items()}
        found = map_cuts(self.task, assigned, items, lambda cut, item: _server_importance(self.task, cut, *item))
        messages = {}
        for entry in sent:
            own = assigned[entry]
            if any(adapter.layer < own.cut for adapter in self.adapters):
                gradients: dict[Category, Tensors] = (
                    {"gradients": {"outputs": found[entry][0]}} if entry in found else {}
                )
                work = own.samples * float(self.task.profile.backward_flops[: own.cut].sum() + self._extra(0, own.cut))
                messages[entry] = Message(
                    "profile", gradients, {"cut": own.cut}, batches[entry], work, peak_bytes=own.peak_bytes
                )  # fmt: skip
        replies = (yield Phase("profile backward", messages)) if messages else {}
        through = [entry for entry in sent if entry in replies or entry not in messages]
        if through:
            self._learn(through, {entry: own for entry, (_, own) in found.items()}, replies)
        return through

    def _extra(self, first: int, last: int | None) -> float:
        """Return the work per sample of the gradients of frozen weights in layers `first` to before `last`."""
        end = self.task.num_layers if last is None else last
        return float(
            sum(
                2 * adapter.inputs * adapter.outputs * math.prod(self.task.shape_at(adapter.layer + 1)[:-1])
                for adapter in self.adapters
                if first <= adapter.layer < end
            )
        )

    def _learn(self, entries: list[int], above: Mapping[int, torch.Tensor], replies: Replies) -> None:
        """Take up what the entries and the server have measured."""
        rows = []
        for entry in entries:
            parts = [replies[entry]["statistics"]["importance"]] if entry in replies else []
            rows.append(
                torch.cat([part.double().cpu() for part in (*parts, *([above[entry]] if entry in above else []))])
            )
        shares = [client_weight(self.task, self.assigned[entry].client, self.options.weighting) for entry in entries]
        costs = [adapter.cost for adapter in self.adapters]
        now = np.average(torch.stack(rows).numpy(), axis=0, weights=shares) / costs  # (K,)
        old: NDArray[np.float64] = self._tensor("importance").numpy()
        progress = min(1.0, self.number / self.options.horizon)
        mixed = smoothed_importance(old, now, progress) if old.any() else now
        self.state["importance"] = torch.from_numpy(np.ascontiguousarray(mixed))


# --- what both sides compute ---------------------------------------------------------------------------------------


def _fresh(adapter: Adapter, key: torch.Tensor, like: torch.Tensor, mask: torch.Tensor | None) -> Tensors:
    """Return a new adapter: A drawn where the mask [rank] is set, zero without one, and B zero."""
    first = like.new_zeros(adapter.rank, adapter.inputs)
    if mask is not None:
        drawn = normal(key, (adapter.rank, adapter.inputs), like.dtype) / math.sqrt(adapter.inputs)  # (r, in)
        first = drawn * mask.to(like.device)[:, None]
    return {adapter.a: first, adapter.b: like.new_zeros(adapter.outputs, adapter.rank)}


def _weights(task: Task, state: State, cut: int) -> Tensors:
    return task.part(tensors_of(state, "weights") if state else task.initial_weights(), 0, cut)


def _trainable(task: Task, weights: Tensors) -> Tensors:
    """Return what is sent of a client's weights: not the frozen ones into which was folded."""
    return {name: value for name, value in weights.items() if name not in task.frozen}


def _products(adapters: Sequence[Adapter], weights: Tensors, gradients: Tensors) -> torch.Tensor:
    """Return the sum over each layer of |weight x gradient|, [K]."""
    return torch.stack([(weights[a.weight] * gradients[a.weight]).abs().sum() for a in adapters])


def _own_importance(task: Task, message: Message, state: State, batch: Batch) -> torch.Tensor:
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

    return _products(
        adapters, weights, grad(loss_of)({adapter.weight: weights[adapter.weight] for adapter in adapters})
    )


def _server_importance(task: Task, cut: int, weights: Tensors, smashed: Smashed) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient by the activations, and what the server measures of the layers above a cut, [K - K']."""
    activations, targets = smashed
    adapters = [adapter for adapter in adapters_of(task) if adapter.layer >= cut]

    def loss_of(first: tuple[Tensors, torch.Tensor]) -> torch.Tensor:
        base, inputs = first
        passed = task.forward({**weights, **base}, inputs, cut)
        outputs = passed.outputs.to(torch.promote_types(passed.outputs.dtype, torch.float32))
        return task.loss(outputs, targets) + passed.penalty

    base = {adapter.weight: weights[adapter.weight] for adapter in adapters}
    gradients, gradient = grad(loss_of)((base, activations))
    found = _products(adapters, weights, gradients) if adapters else activations.new_zeros(0)
    return gradient, found


def _fold_error(
    adapter: Adapter,
    old: torch.Tensor,
    new: torch.Tensor,
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
    shares: Sequence[float],
) -> float:
    """Return |new - (old + sum of the products)| / |old + sum of the products|, the sum in double precision."""
    exact = old.double() + sum(
        share * adapter.product(a.double(), b.double()) for share, (a, b) in zip(shares, factors, strict=True)
    )
    return float((new - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float64).tiny))
