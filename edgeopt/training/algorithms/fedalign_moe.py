"""FedAlign-MoE: routers stay at the clients, held near a common routing; experts are averaged by how clients agree on them.

After *Aggregation Alignment for Federated Learning with Mixture-of-Experts under Data Heterogeneity* (Z. Fang et al.,
arXiv:2603.21276). Where that leaves a case or a value open, what is done is ours; the page of the algorithm says which.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.moe import LayerRouting
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.costs.memory import client_peak_bytes
from edgeopt.training.messages import Batches, Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import Weighting, check_batch_size, check_weighting, client_weight, tensors_of
from edgeopt.training.rules.expert_alignment import aligned, overlap, reference_routing
from edgeopt.training.rules.experts import Mixture, Sight, alike_loss, mixtures, sight
from edgeopt.training.rules.local import minimise
from edgeopt.training.rules.whole_model import Content, losses_of, train_messages
from edgeopt.training.task import Batch, Task
from edgeopt.validate import real

_SEEN_AT_ONCE = 512  # samples


@dataclass(frozen=True, slots=True)
class FedAlignMoe:
    """Federated learning of a mixture of experts with routers of the clients' own.

    A round has two phases. In ``train`` clients get the experts and the routing that all clients together have, and train
    experts and their own router on the loss, with a term that holds its choices near the common ones. In ``tell`` they
    look at all of their data once more and send the experts that have learnt, how they use the experts, and the mean
    hidden state of the tokens that rank an expert first. The server adds, expert by expert, updates weighted by how alike
    these states and the directions of the updates are between clients. All other weights are averaged as in
    `edgeopt.training.FedAvg`.

    The common model has the average of the routers, by samples; each client's own has its router.

    Parameters
    ----------
    regularise : weight lambda of the term that holds routers near the common routing.
    adaptive : give experts that a client uses as others do more weight in that term: sigmoid(overlap - eta).
    eta : where that weight is a half. Default: 1 / E^2, the overlap if all experts are used alike (ours; the paper has 0.1).
    consistent : weigh clients in the common routing by overlap and margin, not alike.
    gates : routers stay ``local``, or are ``averaged`` with all else; then there are no models of clients' own.
    experts : ``aligned``, or averaged by ``index`` over the clients that have trained them.
    directions : count updates by whether they point the same way.
    beta : how many standard deviations below the mean similarity the threshold is; not in the paper.
    threshold : a fixed one in its place.
    sharpness : factor in the sigmoid around the threshold; 1 in the paper.
    weighting : whether clients count by their ``samples`` or ``uniform`` in the averages of experts, as in the paper.
    optimizer, batch_size : as in `edgeopt.training.FedAvg`.
    """

    name: ClassVar[str] = "fedalign-moe"

    regularise: float = 0.1
    adaptive: bool = True
    eta: float | None = None
    consistent: bool = True
    gates: Literal["local", "averaged"] = "local"
    experts: Literal["aligned", "index"] = "aligned"
    directions: bool = True
    beta: float = 0.5
    threshold: float | None = None
    sharpness: float = 1.0
    weighting: Weighting = "uniform"
    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, known in (("gates", ("local", "averaged")), ("experts", ("aligned", "index"))):
            if (given := getattr(self, name)) not in known:
                raise InvalidProblemError(f"{name} = {quoted(given)}: expected {known[0]!r} or {known[1]!r}")
        for name in ("regularise", "beta", "sharpness"):
            real(name, getattr(self, name), nonnegative=True)
        for name in ("eta", "threshold"):
            if getattr(self, name) is not None:
                real(name, getattr(self, name))
        check_batch_size(self.batch_size)
        check_weighting(self.weighting)

    def start(self, task: Task) -> State:
        """Return the initial weights, and even routing."""
        layers = mixtures(task, self.name, routers=True)
        weights = task.initial_weights()
        even = {
            name: weights[layer.networks[0]].new_full((layer.experts,), 1 / layer.experts)
            for name, layer in layers.items()
        }
        return {
            "weights": dict(self._common(layers, weights)),
            "reference": dict(even),
            "mean": dict(even),
            "has router": torch.zeros(task.num_clients, dtype=torch.bool),
        }

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Have clients train, and tell what they see; align what they have learnt."""
        if not len(plan):
            return Outcome(state, {})
        layers = mixtures(task, self.name, routers=True)
        weights, reference, mean = (tensors_of(state, name) for name in ("weights", "reference", "mean"))
        has_router = state["has router"]
        assert isinstance(has_router, torch.Tensor)
        routing = {f"{name}.reference": reference[name] for name in layers}
        routing |= {f"{name}.mean": mean[name] for name in layers}
        has: list[bool] = has_router.tolist()
        first = {**weights, **_routers(layers, task.initial_weights())}  # for clients that have no router yet

        def content(entry: int) -> Content:
            there = self.gates == "averaged" or has[plan.client[entry]]
            return {"weights": weights if there else first, "statistics": routing}

        messages = train_messages(task, content, plan, number, self.batch_size, optimizer=self.optimizer)
        trained = yield Phase("train", messages)
        if not trained:
            return Outcome(state, {})
        there = plan.client[list(trained)].tolist()
        has_router = has_router.clone()
        has_router[there] = True
        sizes = {entry: int(task.partition.indices[client].size) for entry, client in zip(trained, there, strict=True)}
        look = task.flops(1, 0, 1 + max(task.layer_of[f"{name}.up"] for name in layers), backward=False)
        holds = client_peak_bytes(task, 1, backward=False)
        told = yield Phase(
            "tell",
            {
                entry: Message("tell", {}, {}, Batches(number, 0, 1, size), size * look, peak_bytes=holds)
                for entry, size in sizes.items()
            },
        )
        state = {**state, "has router": has_router}
        if not told:
            return Outcome(state, {})
        seen = {
            name: Sight(
                *(
                    torch.stack([answer["statistics"][f"{name}.{what}"] for answer in told.values()])
                    for what in Sight._fields
                )
            )
            for name in layers
        }
        weights, semantic = self._aligned(task, layers, seen, weights, plan, told)
        reference = {
            name: reference_routing(own.usage, own.margin, reference[name], consistent=self.consistent)
            for name, own in seen.items()
        }
        apart = [
            (torch.xlogy(own.usage, own.usage) - torch.xlogy(own.usage, reference[name].clamp(min=1e-9))).sum(dim=1)
            for name, own in seen.items()
        ]
        state |= {
            "weights": dict(weights),
            "reference": dict(reference),
            "mean": {name: own.usage.mean(dim=0) for name, own in seen.items()},
        }
        losses = {entry: loss for entry, loss in losses_of(trained).items() if entry in told}
        measured = {"routing_divergence": torch.cat(apart).mean(), "semantic_consistency": semantic}
        return Outcome(state, losses, measured)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train, or tell what all of the data look like and send what has learnt."""
        assert batch is not None
        layers = mixtures(task, self.name, routers=True)
        if message.kind == "train":
            return self._train(task, layers, message, state, batch)
        return self._tell(task, layers, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the common model, with the mean of the clients' routers by samples, and those of the clients."""
        weights = tensors_of(state, "weights")
        if self.gates == "averaged":
            return {None: weights}
        routers = {client: tensors_of(own, "router") for client, own in clients.items()}
        common = _routers(mixtures(task, self.name, routers=True), task.initial_weights())
        if routers:
            common = weighted_average(
                list(routers.values()), [client_weight(task, client, "samples") for client in routers]
            )
        own: Models = {client: {**weights, **router} for client, router in routers.items()}
        return {None: {**weights, **common}, **own}

    # --- at the client -------------------------------------------------------------------------------------------

    def _train(
        self, task: Task, layers: Mapping[str, Mixture], message: Message, state: State, batch: Batch
    ) -> tuple[Message, State]:
        """Train experts and router."""
        routing = message["statistics"]
        reference = {name: routing[f"{name}.reference"] for name in layers}
        used = tensors_of(state, "usage") if "usage" in state else reference
        weight = {}
        for name, layer in layers.items():
            eta = 1 / layer.experts**2 if self.eta is None else self.eta
            adapted = torch.sigmoid(overlap(used[name], routing[f"{name}.mean"]) - eta)  # (E,)
            weight[name] = adapted if self.adaptive else torch.ones_like(adapted)
        router = {} if self.gates == "averaged" else tensors_of(state, "router") if "router" in state else {}
        received = {**router, **message["weights"]}
        loss = partial(self._loss, task, layers, reference, weight)
        trained = minimise(task, loss, received, batch, self.optimizer)
        new: State = {
            **{name: value for name, value in state.items() if name == "usage"},
            "trained": dict(self._common(layers, trained.weights)),
            "active": {name: trained.known[name] > 0 for name in layers},
        }
        if self.gates == "local":
            new["router"] = dict(_routers(layers, trained.weights))
        return reply(scalars={"loss": trained.loss}), new

    def _loss(
        self,
        task: Task,
        layers: Mapping[str, Mixture],
        reference: Tensors,
        weight: Tensors,
        weights: Tensors,
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor, Tensors]:
        """Return the loss with the term of each layer, the task's alone, and which experts any token uses."""
        passed = task.forward(weights, inputs)
        task_loss = loss = task.pass_loss(passed, targets)
        known = {}
        for name, layer in layers.items():
            own = passed.routing[name]
            if self.regularise:
                apart = alike_loss(own.probability, own.is_chosen, reference[name], layer.top_k, weight[name])
                loss = loss + self.regularise * apart
            known[name] = own.is_chosen.flatten(0, -2).any(dim=0).to(own.logits.dtype)  # (E,)
        return loss, passed.buffers, task_loss, known

    def _tell(self, task: Task, layers: Mapping[str, Mixture], state: State, batch: Batch) -> tuple[Message, State]:
        """Return what has learnt, and what all samples look like to it."""
        learnt, active = tensors_of(state, "trained"), tensors_of(state, "active")
        router = {} if self.gates == "averaged" else tensors_of(state, "router")
        weights = {**learnt, **router}
        passes = [
            task.forward(weights, part, training=False).routing for part in torch.split(batch.inputs[0], _SEEN_AT_ONCE)
        ]
        statistics, usage, rows = Tensors(), Tensors(), Tensors()
        for name, layer in layers.items():
            seen = sight(LayerRouting.joined([routing[name] for routing in passes]))
            statistics |= {f"{name}.{what}": value for what, value in seen._asdict().items()}
            usage[name] = seen.usage
            rows |= dict.fromkeys(layer.networks, active[name])
        statistics |= {f"{name}.active": value for name, value in active.items()}
        kept: State = {"usage": dict(usage)}
        if router:
            kept["router"] = dict(router)
        return reply(weights=dict(learnt), statistics=statistics, rows=rows), kept

    def _common(self, layers: Mapping[str, Mixture], weights: Tensors) -> Tensors:
        """Return the weights that cross: all, without the routers where these stay at the clients."""
        own = () if self.gates == "averaged" else _routers(layers, weights)
        return {name: value for name, value in weights.items() if name not in own}

    # --- at the server -------------------------------------------------------------------------------------------

    def _aligned(
        self,
        task: Task,
        layers: Mapping[str, Mixture],
        seen: Mapping[str, Sight],
        before: Tensors,
        plan: RoundPlan,
        told: Replies,
    ) -> tuple[Tensors, torch.Tensor]:
        """Return the new weights, and the mean over experts of how alike their clients' hidden states are."""
        clients = [int(plan.client[entry]) for entry in told]
        models = [answer["weights"] for answer in told.values()]
        new = weighted_average(models, [client_weight(task, client, "samples") for client in clients])
        counts = [client_weight(task, client, self.weighting) for client in clients]
        size = torch.tensor(counts, dtype=torch.float64, device=task.device)  # (M,)
        semantic = []
        for name, layer in layers.items():
            active = torch.stack([answer["statistics"][f"{name}.active"] for answer in told.values()])  # (M, E)
            updates = {
                weight: torch.stack([model[weight] - before[weight] for model in models])  # (M, E, ...)
                * active.reshape(*active.shape, *[1] * (before[weight].ndim - 1))
                for weight in layer.networks
            }
            flat = torch.cat([update.flatten(2) for update in updates.values()], dim=2)  # (M, E, P)
            trained = flat.abs().amax(dim=2) > 0  # (M, E)
            found = aligned(
                seen[name].hidden, flat, trained & seen[name].first, beta=self.beta, sharpness=self.sharpness,
                threshold=self.threshold, directions=self.directions, size=size,
            )  # fmt: skip
            share = found.share  # (M, E)
            if self.experts == "index":
                share = size[:, None] * trained  # (M, E)
                share = share / share.sum(dim=0).clamp(min=1e-12)
            for weight, update in updates.items():
                new[weight] = before[weight] + torch.einsum("me,me...->e...", share.to(update.dtype), update)
            semantic.append(found.semantic)
        return new, torch.cat(semantic).nanmean()


def _routers(layers: Mapping[str, Mixture], weights: Tensors) -> Tensors:
    return {name: weights[name] for layer in layers.values() for name in layer.router}
