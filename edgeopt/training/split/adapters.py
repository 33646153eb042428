"""The server's side of split learning with adapters that are folded into frozen weights: one round of HSplitLoRA."""

import math
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training.keys import fold_in
from edgeopt.training.messages import Batches, Category, Message, Phase, Replies, State, Tensors
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import Weighting, client_weight, tensors_of
from edgeopt.training.rules.lora import (
    Adapter,
    Work,
    adapters_of,
    budget_of,
    fold_error,
    fresh_adapter,
    greedy_ranks,
    importance_moved,
    lower_peak_bytes,
    smoothed_importance,
    spared_work,
    stacked,
    weight_gradient_products,
)
from edgeopt.training.split.exchange import Answer, Assignment, Smashed, assign, play_steps
from edgeopt.training.split.server import map_cuts, server_step
from edgeopt.training.task import Task

FOLD = ".fold_a", ".fold_b"
"""What is put behind a layer's name for the factors of the last fold."""


class Options(Protocol):
    """What a round needs to know of its algorithm, `edgeopt.training.HSplitLora`; its fields of these names."""

    @property
    def optimizer(self) -> Optimizer: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def cut_layer(self) -> int: ...  # noqa: D102
    @property
    def weighting(self) -> Weighting: ...  # noqa: D102
    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def importance(self) -> str: ...  # noqa: D102
    @property
    def horizon(self) -> int: ...  # noqa: D102
    @property
    def resplit(self) -> float: ...  # noqa: D102
    @property
    def memory_bytes(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def report_errors(self) -> bool: ...  # noqa: D102


class AdapterRound:
    """One round at the server.

    Parameters
    ----------
    state : of the server; after `fold` the new one.
    """

    def __init__(
        self,
        options: Options,
        task: Task,
        adapters: tuple[Adapter, ...],
        plan: RoundPlan,
        number: int,
        state: State,
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
            spared = spared_work(self.task, self.adapters, self.ranks[entry], 0, own.cut)
            self.assigned[entry] = replace(own, peak_bytes=peak, spared=spared)

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
            trained = lower_peak_bytes(self.task, samples, options.optimizer, self.adapters, ranks, cut)
            return trained if options.importance == "uniform" else max(trained, self._profile_bytes(samples, cut))

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
            factors = {name: last[name] for end in FOLD if (name := adapter.name + end) in last}
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
            batches = Batches(self.number, 0, own.steps, own.batch_size, own.whole)
            work = self.task.num_samples(own.client, batches) * (self.task.flops(1) - sum(own.spared))
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
                weights |= fresh_adapter(adapter, at, base[adapter.weight], mask)
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
            last |= dict(zip((adapter.name + end for end in FOLD), (a, b), strict=True))
            if self.options.report_errors:
                errors.append(fold_error(adapter, old, new, factors, scaled))
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
        messages, served = {}, {}
        for entry, own in assigned.items():
            work = (
                self.task.flops(own.samples, 0, own.cut, backward=False)
                - own.samples * self._spared(0, own.cut).forward
            )
            messages[entry] = self._measuring("forward", own, work, {})
            more = self._extra(own.cut, None) - sum(self._spared(own.cut, None))
            served[entry] = self.task.flops(own.samples, own.cut) + own.samples * more
        sent = (yield Phase("profile forward", messages, server_flops=served)) if messages else {}
        smashed = {
            entry: (answer["activations"]["outputs"], answer["labels"]["targets"])
            for entry, answer in sent.items()
            if answer["activations"]
        }
        items = {entry: (self._above(entry, trained=False)[0], found) for entry, found in smashed.items()}
        found = map_cuts(self.task, assigned, items, lambda cut, item: _importance_above(self.task, cut, *item))
        messages = {}
        for entry in sent:
            own = assigned[entry]
            if any(adapter.layer < own.cut for adapter in self.adapters):
                more = self._extra(0, own.cut) - self._spared(0, own.cut).backward
                work = own.samples * float(self.task.profile.backward_flops[: own.cut].sum() + more)
                gradients = {"outputs": found[entry][0]} if entry in found else {}
                messages[entry] = self._measuring("profile", own, work, gradients)
        replies = (yield Phase("profile backward", messages)) if messages else {}
        through = [entry for entry in sent if entry in replies or entry not in messages]
        if through:
            self._learn(through, {entry: own for entry, (_, own) in found.items()}, replies)
        return through

    def _measuring(self, kind: str, own: Assignment, work: float, gradients: Tensors) -> Message:
        content: dict[Category, Tensors] = {"gradients": gradients} if gradients else {}
        batches, peak = Batches(self.number, 0, 1, own.batch_size), self._profile_bytes(own.samples, own.cut)
        return Message(kind, content, {"cut": own.cut}, batches, work, peak_bytes=peak)

    def _profile_bytes(self, samples: int, cut: int) -> float:
        """Return the memory of a client that measures: one gradient of frozen weights after another, and no optimiser yet."""
        below = [self.task.frozen[adapter.weight].nbytes for adapter in self.adapters if adapter.layer < cut]
        nothing = np.zeros(len(self.adapters), np.int64)
        return lower_peak_bytes(self.task, samples, None, self.adapters, nothing, cut) + max(below, default=0)

    def _spared(self, first: int, last: int | None) -> Work:
        """Return the work per sample that layers `first` to before `last` spare while adapters have not started."""
        return spared_work(self.task, self.adapters, np.zeros(len(self.adapters), np.int64), first, last)

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


def _importance_above(task: Task, cut: int, weights: Tensors, smashed: Smashed) -> tuple[torch.Tensor, torch.Tensor]:
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
    found = weight_gradient_products(adapters, weights, gradients) if adapters else activations.new_zeros(0)
    return gradient, found
