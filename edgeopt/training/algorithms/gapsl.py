"""GAPSL: parallel split learning that goes where most gradients point, and leaves out who points elsewhere.

After Z. Lin, O. Aouedi, W. Ni, S. Chatzinotas, X. Chen, GAPSL: A Gradient-Aligned Parallel Split Learning on
Heterogeneous Data, arXiv:2603.18540. What is the paper's and what is ours is told in the documentation, on a page of its
own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.rng import stream
from edgeopt.training.algorithms.parallel_split import Choice, Exchange, Judge, ParallelModel
from edgeopt.training.messages import State, Tensors
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import Weighting, tensors_of
from edgeopt.training.rules.leader import (
    aligned,
    angles_to_leader,
    common_names,
    cosine,
    inner_products,
    leader_share,
    mean_angles,
    nearest,
    turned,
)
from edgeopt.training.runners.batched import map_batched
from edgeopt.training.split.exchange import Answer, Smashed
from edgeopt.training.split.placement import Placement
from edgeopt.training.split.server import ServerGradients, map_cuts, server_loss
from edgeopt.training.task import Task
from edgeopt.validate import flag, float_array, integer, real

Mode = Literal["filter", "exact", "rotate"]
Leader = Literal["near", "all", "random"]
Keep = Literal["aligned", "leaders", "random"]

_FEW = 3  # clients below which the spread of their angles says nothing: those of two are equal


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """Whom a step has picked.

    Parameters
    ----------
    leads, kept : bool [N], whose gradients make the leading one, and from whom is learnt.
    share : of the clients that was to lead.
    spread : standard deviation of the clients' mean angles to the others, in rad.
    """

    leads: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    share: float
    spread: float

    __repr__ = one_line


@dataclass(frozen=True, slots=True)
class Gapsl(ParallelModel):
    r"""GAPSL: parallel split learning in which a step is learnt from those clients only that a leading gradient agrees with.

    In each step, the server has a gradient :math:`g_i` of its layers from every client. Those whose mean angle to the
    others is least lead: their share is :math:`K_t = K_{min} + \frac{t}{T} \frac{\nu_{max} - \nu}{\nu_{max} - \nu_{min}}
    (K_{max} - K_{min})` in round t, :math:`\nu` the standard deviation of the mean angles, with its extremes so far. The
    mean of their gradients is the leader. Whoever's angle to it is at most ``mean - eta * std`` over the clients, at most
    :math:`\pi/2`, is kept: the server steps with the mean of their gradients, and they get the gradient by their
    activations. The others get none, and their own layers stay.

    Gradients are compared over the layers that are at the server for all clients of the step. Layers move, and clients
    fail, as in `edgeopt.training.ParallelSplit`. Reported are ``leader_share``, :math:`K_t`; ``kept_clients``; and
    ``angle_spread``, :math:`\nu` in rad: means over the steps of a round. The server's state says under ``clients`` how
    often each client has sent something, ``seen``, and how often it was ``kept``.

    Parameters
    ----------
    optimizer : of clients and server.
    batch_size, cut_layer : where the plan leaves them open.
    weighting : whether in the server's step a client counts by its ``samples`` or all ``uniform``, as in the paper.
    judge : as in `edgeopt.training.ParallelSplit`.
    min_share, max_share : K_min and K_max, shares of the clients.
    horizon : T, rounds until the share of leaders may be the largest.
    eta : how many standard deviations below the mean an angle must be, >= 0; larger is stricter. The paper gives no value.
    mode : what alignment adds to the loss of who is kept. ``filter``: a constant, as gradients count as constants in the
        paper, so it is left out. ``exact``: ``strength * (1 - cos)`` of the client's gradient and the leader, with its
        gradient through the client's one. ``rotate``: the server's gradients are turned towards the leader.
    strength : lambda, >= 0; without effect in the mode ``filter``.
    all_clients_learn : who is not kept gets the gradient of its own loss all the same; the server steps without it.
    leader : who leads: the ``near`` ones, ``all``, or as many drawn at ``random``.
    keep : who is kept: the ``aligned`` ones, the ``leaders`` themselves, or as many as would be aligned drawn at
        ``random``.
    threshold : a fixed largest angle, in rad, in place of that of `eta`.
    """

    name: ClassVar[str] = "gapsl"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "uniform"
    judge: Judge = "each"
    min_share: float = 0.2
    max_share: float = 0.8
    horizon: int = 100
    eta: float = 0.5
    mode: Mode = "filter"
    strength: float = 5e-4
    all_clients_learn: bool = False
    leader: Leader = "near"
    keep: Keep = "aligned"
    threshold: float | None = None

    def __post_init__(self) -> None:
        ParallelModel.__post_init__(self)
        for name in ("min_share", "max_share"):
            if not 0 < real(name, share := getattr(self, name)) <= 1:
                raise InvalidProblemError(f"{name} = {quoted(share)}: expected a share above 0 and up to 1")
        if self.min_share > self.max_share:
            raise InvalidProblemError(
                f"min_share = {self.min_share}: expected at most max_share, which is {self.max_share}"
            )
        integer("horizon", self.horizon, low=1)
        for name in ("eta", "strength"):
            float_array(name, getattr(self, name), (), nonnegative=True)
        if self.threshold is not None:
            float_array("threshold", self.threshold, (), nonnegative=True, unit="rad")
        flag("all_clients_learn", self.all_clients_learn)
        for name, known in (("mode", Mode), ("leader", Leader), ("keep", Keep)):
            if (given := getattr(self, name)) not in get_args(known):
                raise InvalidProblemError(f"{name} = {quoted(given)}: expected one of {', '.join(get_args(known))}")

    def start(self, task: Task) -> State:
        """Return the initial weights; no spread has been seen, and no client."""
        return {
            **ParallelModel.start(self, task),
            "spread": {"least": torch.tensor(np.inf), "most": torch.tensor(-np.inf)},
            "clients": {name: torch.zeros(task.num_clients, dtype=torch.int64) for name in ("seen", "kept")},
        }

    def choose(self, task: Task, state: State, exchange: Exchange) -> Choice:
        """Learn from those whose gradients agree with the leader."""
        entries, found = list(exchange.found), list(exchange.found.values())
        clients = [exchange.assigned[entry].client for entry in entries]
        gradients = [own.gradients for own in found]
        products = inner_products(gradients, whose=[f"client {client}" for client in clients])
        picked, spread = self.pick(task, tensors_of(state, "spread"), products, exchange)
        learns = {entry: own for entry, own, kept in zip(entries, found, picked.kept, strict=True) if kept}
        if self.mode != "filter" and self.strength and (names := common_names(gradients)):
            common = [{name: own[name] for name in names} for own in gradients]
            leader = weighted_average(common, picked.leads.astype(float).tolist())
            learns = self._towards(task, exchange, learns, leader)
        shown = {**exchange.found, **learns}
        answers = {
            entry: Answer(own.gradient if self.all_clients_learn or entry in learns else None, own.loss)
            for entry, own in shown.items()
        }
        counts = tensors_of(state, "clients")
        seen, kept = counts["seen"].clone(), counts["kept"].clone()
        seen[clients] += 1
        kept[clients] += torch.from_numpy(picked.kept).to(kept)
        memory: State = {"spread": dict(spread), "clients": {"seen": seen, "kept": kept}}
        return Choice(learns, answers, memory, self.measure(clients, picked))

    def pick(
        self, task: Task, spread: Tensors, products: NDArray[np.float64], exchange: Exchange
    ) -> tuple[Picked, Tensors]:
        """Return who leads and who is kept, and the extremes of the spread with this step.

        Parameters
        ----------
        spread : its extremes so far, ``least`` and ``most``.
        products : inner products of the clients' gradients, [N, N].
        """
        distance = mean_angles(products)
        nu = torch.tensor(distance.std(), dtype=torch.float32)  # as it is kept
        if len(distance) >= _FEW:
            spread = {
                "least": torch.minimum(spread["least"].cpu(), nu),
                "most": torch.maximum(spread["most"].cpu(), nu),
            }
        progress = min(1.0, (exchange.number + 1) / self.horizon)
        extremes = (float(spread["least"]), float(spread["most"]))
        share = leader_share(float(nu), extremes, progress, (self.min_share, self.max_share))
        rng = stream(task.seed, "gapsl", exchange.number, exchange.step)
        number = len(distance)
        order = {"near": distance, "all": np.zeros(number), "random": rng.permutation(number).astype(np.float64)}
        leads = nearest(order[self.leader], share)  # of equal ones all lead
        kept = aligned(angles_to_leader(products, leads), self.eta, self.threshold)
        if self.keep == "leaders":
            kept = leads
        elif self.keep == "random":
            kept = rng.permutation(kept)
        return Picked(leads, kept, share, float(nu)), spread

    def measure(self, clients: Sequence[int], picked: Picked) -> dict[str, float]:
        """Return what is reported of a step; `clients` are those of the positions in `picked`."""
        return {
            "leader_share": picked.share,
            "kept_clients": float(picked.kept.sum()),
            "angle_spread": picked.spread,
        }

    def parts(self, task: Task, state: State, clients: Mapping[int, State]) -> dict[int, Tensors]:
        """Return the layers that clients have of their own; who was never kept has the initial ones."""
        trained = ParallelModel.parts(self, task, state, clients)
        held, initial = Placement.of(state).held, task.initial_weights()
        seen = torch.nonzero(tensors_of(state, "clients")["seen"]).flatten().tolist()
        return {
            client: trained.get(client) or task.part(initial, 0, held[client]) for client in sorted({*seen, *trained})
        }

    def _towards(
        self, task: Task, exchange: Exchange, learns: Mapping[int, ServerGradients], leader: Tensors
    ) -> dict[int, ServerGradients]:
        """Return gradients that were drawn towards the leader."""
        if self.mode == "rotate":
            gradients = [own.gradients for own in learns.values()]
            moved = map_batched(lambda own: turned(own, leader, self.strength), gradients)
            return {entry: own._replace(gradients=new) for (entry, own), new in zip(learns.items(), moved, strict=True)}
        pulls = map_cuts(
            task,
            exchange.assigned,
            {entry: exchange.given[entry] for entry in learns},
            lambda cut, item: pull(task, cut, *item, leader),
        )
        return {
            entry: own._replace(
                gradients={name: g + self.strength * pulls[entry][0][name] for name, g in own.gradients.items()},
                gradient=own.gradient + self.strength * pulls[entry][1],
            )
            for entry, own in learns.items()
        }


def pull(task: Task, cut: int, weights: Tensors, smashed: Smashed, leader: Tensors) -> tuple[Tensors, torch.Tensor]:
    """Return the gradient of ``1 - cos(g, leader)``, g that of a client's loss: by the parameters, by the activations.

    Parameters
    ----------
    weights : of the server's layers above the cut.
    leader : of some of the parameters among them; a constant.
    """
    activations, targets = smashed
    loss_of = server_loss(task, cut, weights, targets)

    def apart(at: tuple[Tensors, torch.Tensor]) -> torch.Tensor:
        gradients: Tensors = grad(loss_of, has_aux=True)(at)[0][0]
        return 1 - cosine({name: gradients[name] for name in leader}, leader)

    found: tuple[Tensors, torch.Tensor] = grad(apart)((task.trained(weights), activations))
    return found
