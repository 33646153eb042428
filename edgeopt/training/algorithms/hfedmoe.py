"""HFedMoE: each mini-batch trains the experts that matter most to it, as many as the client has room for.

After *HFedMoE: Resource-aware Heterogeneous Federated Learning with Mixture-of-Experts* (Z. Fang et al.,
arXiv:2601.00583). Where that leaves a case or a value open, what is done is ours; the page of the algorithm says which.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.moe import Choice, LayerRouting, Learners
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.costs.memory import client_peak_bytes
from edgeopt.training.keys import fold_in, uniform
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import average_update, masked_average, spread, weighted_average
from edgeopt.training.rules.common import Weighting, check_batch_size, check_weighting, client_weight, tensors_of
from edgeopt.training.rules.experts import (
    Mixture,
    Scope,
    check_scope,
    gate_shares,
    importance,
    information,
    learners,
    mixtures,
    most,
)
from edgeopt.training.rules.local import minimise
from edgeopt.training.rules.whole_model import losses_of, train_messages
from edgeopt.training.task import Batch, Task
from edgeopt.validate import real

Selection = Literal["information", "importance", "frequency", "random"]
_SELECTIONS: tuple[Selection, ...] = ("information", "importance", "frequency", "random")


@dataclass(frozen=True, slots=True)
class HFedMoe:
    """FedAvg of a mixture of experts whose clients train only some experts per mini-batch, those that say most of it.

    Of the experts that tokens of a mini-batch use, as many as the plan's `experts` says learn from it, those of the
    highest score. The outputs are those of the whole model; to the other experts they are constants, so that these keep
    no activations. Experts are averaged over the clients that trained them and use them enough, routers by how important
    the experts are to the clients that prefer them, all else as in `edgeopt.training.FedAvg`.

    Clients hold the whole model, as each token takes the experts that its router picks. An expert crosses, and is charged,
    where it is new: down if it has changed since the client got it, or the client has trained it; up if a mini-batch has.

    Parameters
    ----------
    selection : how experts are ranked in a mini-batch: by ``information``, by ``importance``, by ``frequency``, which is
        how many of its tokens use them, or at ``random``.
    budget : whether the plan's `experts` counts those of each ``layer``, or those of the whole ``model``. The latter looks
        at the routing of all layers before it trains, which is another forward pass.
    mix : share of the mean in the importance, 0 to 1; the rest is that of the largest probability.
    beta : weight of what the choice of an expert tells of the token.
    usage : mean probability that an expert must have at a client, in shares of 1 / E, to be one of its experts.
    aggregation : ``sparse`` as said above, or ``plain``: experts and routers are averaged as all else, an expert that a
        client has not trained counting as it was.
    optimizer, batch_size, weighting : as in `edgeopt.training.FedAvg`.
    """

    name: ClassVar[str] = "hfedmoe"

    selection: Selection = "information"
    budget: Scope = "layer"
    mix: float = 0.5
    beta: float = 1.0
    usage: float = 0.5
    aggregation: Literal["sparse", "plain"] = "sparse"
    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    weighting: Weighting = "samples"

    def __post_init__(self) -> None:
        if self.selection not in _SELECTIONS:
            raise InvalidProblemError(f"selection = {quoted(self.selection)}: expected one of {', '.join(_SELECTIONS)}")
        if self.aggregation not in ("sparse", "plain"):
            raise InvalidProblemError(f"aggregation = {quoted(self.aggregation)}: expected 'sparse' or 'plain'")
        check_scope(self.budget)
        for name in ("mix", "beta", "usage"):
            real(name, getattr(self, name), nonnegative=True)
        if self.mix > 1:
            raise InvalidProblemError(f"mix = {self.mix:g}: expected a number from 0 to 1")
        check_batch_size(self.batch_size)
        check_weighting(self.weighting)

    def start(self, task: Task) -> State:
        """Return the initial weights."""
        layers = mixtures(task, self.name)
        nobody = {
            name: torch.zeros(task.num_clients, layer.experts, dtype=torch.bool) for name, layer in layers.items()
        }
        return {"weights": dict(task.initial_weights()), "has": dict(nobody)}  # who has which experts as they are now

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Send what clients lack of the model, with their budgets; average what has learnt."""
        layers, weights, has = mixtures(task, self.name), tensors_of(state, "weights"), tensors_of(state, "has")
        learning = [learners(task, client.experts, self.budget) for client in plan]
        samples = [task.samples(client.client, client.batch_size or self.batch_size) for client in plan]
        looked = task.flops(1, 0, _end(task), backward=False) if self.budget == "model" else 0.0
        messages = train_messages(
            task,
            {"weights": weights},
            plan,
            number,
            self.batch_size,
            values=lambda entry: {"experts": int(plan.experts[entry])},
            flops=lambda entry: task.flops(1, learns=learning[entry]) + looked * (plan.experts[entry] > 0),
            peak_bytes=lambda entry: client_peak_bytes(
                task, samples[entry], self.optimizer, learns=learning[entry] if plan.experts[entry] else None
            ),
        )
        for entry, message in messages.items():
            lacks = {
                network: ~has[name][plan.client[entry]] for name, layer in layers.items() for network in layer.networks
            }
            messages[entry] = replace(message, rows=lacks)
        replies = yield Phase("train", messages)
        has = _left(has, plan, replies)
        if not replies:
            return Outcome({**state, "has": dict(has)}, {})
        before = weights
        weights, consistency = self._averaged(task, layers, before, plan, replies)
        for name, layer in layers.items():
            has[name] &= torch.stack([_same(weights[network], before[network]) for network in layer.networks]).all(
                dim=0
            )
        shares = [
            answer["statistics"][f"{layer}.learns"].float().mean() for answer in replies.values() for layer in layers
        ]
        measured = {"expert_share": torch.stack(shares).mean(), "routing_consistency": consistency}
        return Outcome({"weights": dict(weights), "has": dict(has)}, losses_of(replies), measured)

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Train the received model within the budget."""
        assert batch is not None
        assert message.key is not None
        layers = mixtures(task, self.name)
        budget = message.values["experts"]
        assert isinstance(budget, int)
        weights, optimizer = message["weights"], None
        losses, told = [], []
        for step, (inputs, targets) in enumerate(batch.steps()):
            one = Batch(inputs[None], targets[None])
            loss = partial(self._loss, task, layers, budget, fold_in(message.key, step))
            trained = minimise(task, loss, weights, one, self.optimizer, optimizer)
            weights, optimizer = trained.weights, trained.state
            losses.append(trained.loss)
            told.append(trained.known)
        mean = {name: torch.stack([known[name] for known in told]).mean(dim=0) for name in told[0]}
        statistics, rows = dict(mean), Tensors()
        for layer, mixture in layers.items():
            statistics[f"{layer}.learns"] = mean[f"{layer}.learns"] > 0  # in any mini-batch, (E,)
            rows |= dict.fromkeys(mixture.networks, statistics[f"{layer}.learns"])
        loss_of_round = torch.stack(losses).mean()
        return reply(weights=weights, statistics=statistics, scalars={"loss": loss_of_round}, rows=rows), state

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the server's model."""
        return {None: tensors_of(state, "weights")}

    # --- at the client -------------------------------------------------------------------------------------------

    def _loss(
        self,
        task: Task,
        layers: Mapping[str, Mixture],
        budget: int,
        key: torch.Tensor,
        weights: Tensors,
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> tuple[torch.Tensor, Tensors, torch.Tensor, Tensors]:
        """Return the loss of a mini-batch, in which experts within the budget learn, and what is told of each layer."""
        learns: Mapping[str, Learners | Choice] = {}
        if budget and self.budget == "layer":
            learns = {name: partial(self._of_layer, budget, fold_in(key, at)) for at, name in enumerate(layers)}
        elif budget:
            with torch.no_grad():
                seen = task.forward(weights, inputs, 0, _end(task)).routing
            learns = self._of_model(seen, budget, key)
        passed = task.forward(weights, inputs, learns=learns)
        loss = task.pass_loss(passed, targets)
        known = {}
        for name in layers:
            routing, limit = passed.routing[name], learns.get(name)
            choice = limit(routing) if callable(limit) else limit
            learnt = _used(routing) if choice is None else torch.as_tensor(choice)
            known[f"{name}.learns"] = learnt.to(routing.logits.dtype)  # (E,)
            known[f"{name}.usage"] = routing.probability.flatten(0, -2).mean(dim=0)  # (E,)
            known[f"{name}.importance"] = importance(routing.probability, self.mix)  # (E,)
        return loss, passed.buffers, loss, known

    def _score(self, routing: LayerRouting, key: torch.Tensor) -> torch.Tensor:
        """Return (E,), by which experts are ranked."""
        if self.selection == "random":
            return uniform(key, (routing.logits.shape[-1],))
        if self.selection == "frequency":
            return routing.is_chosen.flatten(0, -2).sum(dim=0).float()
        if self.selection == "importance":
            return importance(routing.probability, self.mix)
        return information(routing.probability, self.mix, self.beta)

    def _of_layer(self, budget: int, key: torch.Tensor, routing: LayerRouting) -> torch.Tensor:
        """Return bool (E,), which experts of a layer learn."""
        return most(self._score(routing, key), _used(routing), budget)

    def _of_model(self, seen: Mapping[str, LayerRouting], budget: int, key: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return which experts of all layers learn, bool (E,) of each."""
        score = torch.cat([self._score(routing, fold_in(key, at)) for at, routing in enumerate(seen.values())])
        chosen = most(score, torch.cat([_used(routing) for routing in seen.values()]), budget)
        return dict(
            zip(seen, torch.split(chosen, [routing.logits.shape[-1] for routing in seen.values()]), strict=True)
        )

    # --- at the server -------------------------------------------------------------------------------------------

    def _averaged(
        self, task: Task, layers: Mapping[str, Mixture], before: Tensors, plan: RoundPlan, replies: Replies
    ) -> tuple[Tensors, torch.Tensor]:
        """Return the new weights, and the mean over clients and layers of which share of all preferred experts a client prefers."""
        clients = [int(plan.client[entry]) for entry in replies]
        whose = [f"client {client}" for client in clients]
        shares = [client_weight(task, client, self.weighting) for client in clients]
        models = [answer["weights"] for answer in replies.values()]
        masks: list[Tensors] = [{} for _ in models]
        routers, consistent = dict[str, list[float]](), []
        for name, mixture in layers.items():
            usage, matters, learnt = (
                torch.stack([answer["statistics"][f"{name}.{what}"] for answer in replies.values()])
                for what in ("usage", "importance", "learns")
            )  # (M, E)
            preferred = usage >= self.usage / mixture.experts  # (M, E)
            consistent.append(preferred.sum(dim=1) / preferred.any(dim=0).sum().clamp(min=1))  # (M,)
            routers[name] = gate_shares(usage, matters, preferred).tolist()
            for mask, counts in zip(masks, learnt if self.aggregation == "plain" else learnt & preferred, strict=True):
                mask |= dict.fromkeys(mixture.networks, counts)
        consistency = torch.cat(consistent).double().mean()
        if self.aggregation == "plain":
            arrived = [_kept(before, model, mask) for model, mask in zip(models, masks, strict=True)]
            trained = {name: torch.stack([mask[name] for mask in masks]).any(dim=0) for name in masks[0]}
            return _kept(before, weighted_average(arrived, shares, whose=whose), trained), consistency
        new = masked_average(before, models, shares, masks, whose=whose)
        for name, mixture in layers.items():
            own = {weight: before[weight] for weight in mixture.router}
            if own and sum(routers[name]) > 0:
                theirs = [{weight: model[weight] for weight in own} for model in models]
                own = average_update(own, theirs, routers[name], whose=whose)
            new |= own
        return new, consistency


def _kept(before: Tensors, model: Tensors, mask: Tensors) -> Tensors:
    """Return the weights of a client, with what it has not trained as it was."""
    return {
        name: torch.where(spread(mask[name], value), value, before[name]) if name in mask else value
        for name, value in model.items()
    }


def _left(has: Tensors, plan: RoundPlan, replies: Replies) -> Tensors:
    """Return which experts clients have as they were sent: not those they have trained, of those that failed none."""
    left = {name: known.clone() for name, known in has.items()}
    for name, known in left.items():
        known[plan.client.tolist()] = True
        for entry, client in enumerate(plan.client.tolist()):
            known[client] &= (
                ~replies[entry]["statistics"][f"{name}.learns"].cpu() if entry in replies else torch.tensor(False)
            )
    return left


def _same(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return bool (E,), which experts have equal weights (E, ...)."""
    return (first == second).flatten(1).all(dim=1).cpu()


def _used(routing: LayerRouting) -> torch.Tensor:
    """Return bool (E,), whether any token uses an expert."""
    return routing.is_chosen.flatten(0, -2).any(dim=0)


def _end(task: Task) -> int:
    """Return the number of layers up to the last one with experts."""
    return 1 + max(task.layer_of[f"{name}.up"] for name in task.experts)
