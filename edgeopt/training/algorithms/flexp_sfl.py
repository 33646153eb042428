"""FlexP-SFL: personal models of split learning, whose layers at the server are held together, each client's to the others'.

After T. Yuan, J. Geng, P. Han, X. Chen, B. Luo, Flexible Personalized Split Federated Learning for On-Device Fine-Tuning
of Foundation Models, arXiv:2508.10349. What is the paper's and what is ours is told in the documentation, on a page of
its own.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch.func import grad

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.problems import CostFactors
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome
from edgeopt.training.messages import Batches, Message, Phase, Replies, State, Tensors, reply
from edgeopt.training.optimizers import Optimizer, Sgd
from edgeopt.training.rules.alignment import divergence, layer_strengths, probabilities, pull, relative_spread
from edgeopt.training.rules.average import average_of_parts, weighted_average
from edgeopt.training.rules.common import (
    Weighting,
    check_batch_size,
    check_weighting,
    client_weight,
    tensors_of,
)
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.split.exchange import (
    Answer,
    Assignment,
    Smashed,
    assign,
    check_cut_layer,
    own_weights,
    play_steps,
    split_client,
)
from edgeopt.training.split.head import head_step
from edgeopt.training.split.placement import Placement, move_layers
from edgeopt.training.split.server import map_cuts, server_gradients
from edgeopt.training.task import Batch, Task
from edgeopt.training.trouble import TrainingError
from edgeopt.validate import float_array, integer

Alignment = Literal["kl", "anchor", "hard", "none"]
"""How copies of the server's layers are held together, see `FlexpSfl`."""

Copy = tuple[Tensors, State]
"""The server's layers for one client: weights, and optimiser."""


@dataclass(frozen=True, slots=True)
class FlexpSfl:
    r"""FlexP-SFL: every client has a model of its own, cut where it can afford to; the server holds the copies together.

    Client i has layers 1 to :math:`c_i`, the server layers above for each client anew. They are trained as in split
    learning; no weight ever leaves a client, and no two models become one. After each round the server has the anchor
    :math:`a_l`, the mean of the copies of layer l that it holds, and in the next the loss of a client is that of its
    task and one of

    - ``kl``: :math:`\mu KL(p_i \| \bar p)`, of what the server's layers return for the proxy samples (class scores, or what
      goes to the head), by softmax, to the mean over the clients of the round. Their own layers run on the proxy once
      per round, and what they return is sent up;
    - ``anchor``: :math:`\sum_{l > c_i} \frac{\mu_l}{2} |\theta_{i,l} - a_l|^2` with :math:`\mu_l = \mu (1 - (l - c_i) /
      (L - c_i))^q`. Of plain gradient descent the step size times mu must be below 2, or copies swing; at 1 the pull
      takes a copy all the way to the anchor in a step;
    - ``hard``: nothing, but the copies start each round from the anchor;
    - ``none``: nothing. That is training alone, as it is with mu = 0.

    Only the server's layers feel it, so what crosses a cut is as in plain split learning. In the U shape, with
    `head_layers`, clients have the last layers too and keep their labels: the server's outputs come down to the head,
    and their gradient goes up. All formulas are ours; the plan's aggregation flag has no meaning here.

    Layers that a client lacks come from its copy in a phase ``sync``, and their optimiser starts at zero. Layers that a
    client gives up are dropped: its copy goes on from the anchor, with an optimiser at zero, as does that of a client
    that is new. A client that fails in a step is out for the rest of the round; of that step nothing counts but what a
    head has learnt. Until a client comes back its copy waits, and is in the anchor. A client whose cut is the last
    layer trains alone. The training loss leaves out the penalty, and the balance loss of mixture-of-experts layers that
    are at clients. Reported is ``spread``, how far the copies are from their mean, relative to it.

    Parameters
    ----------
    optimizer : of clients and server.
    batch_size, cut_layer : where the plan leaves them open.
    weighting : whether a client counts by its ``samples`` or all ``uniform`` in means over clients.
    alignment : ``kl``, ``anchor``, ``hard`` or ``none``.
    mu : strength of ``kl`` and ``anchor``, >= 0.
    q : >= 0, how fast the strength of ``anchor`` falls from the lowest layers of the server to the last; 0: not at all.
    head_layers : how many of the last layers clients have.
    proxy : samples [P, ...] without labels for ``kl``. They are public: server and clients have them, and they cost no
        bytes. A checkpoint does not know them: a run that is resumed is given the same.

    Raises
    ------
    InvalidProblemError
        If a number is negative or without effect, or ``kl`` has no proxy.
    """

    name: ClassVar[str] = "flexp-sfl"

    optimizer: Optimizer = field(default_factory=Sgd)
    batch_size: int = 16
    cut_layer: int = 1
    weighting: Weighting = "samples"
    alignment: Alignment = "anchor"
    mu: float = 0.5
    q: float = 0.0
    head_layers: int = 0
    proxy: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_cut_layer(self.cut_layer)
        check_weighting(self.weighting)
        if self.alignment not in (known := ("kl", "anchor", "hard", "none")):
            raise InvalidProblemError(f"alignment = {quoted(self.alignment)}: expected one of {', '.join(known)}")
        for name in ("mu", "q"):
            float_array(name, getattr(self, name), (), nonnegative=True)
        if self.q and self.alignment != "anchor":
            raise InvalidProblemError(
                f"q = {self.q}: expected 0, as with alignment {quoted(self.alignment)} no layer has a strength of its own"
            )
        integer("head_layers", self.head_layers, low=0)
        proxy: object = self.proxy
        if proxy is not None and (not isinstance(proxy, torch.Tensor) or proxy.ndim < 2 or len(proxy) == 0):
            raise InvalidProblemError(f"proxy = {quoted(proxy)}: expected a tensor of samples [P, ...], at least one")
        if (self.alignment == "kl") != (proxy is not None):
            expected = "expected a proxy of samples without labels, a tensor" if proxy is None else "expected no proxy"
            raise InvalidProblemError(f"alignment = {quoted(self.alignment)}: {expected}")

    @property
    def aligns(self) -> bool:
        """Whether copies are held together at all."""
        return self.alignment == "hard" or (self.alignment in ("kl", "anchor") and self.mu > 0)

    @property
    def cost_factors(self) -> CostFactors:
        """A round costs what one of SplitFed does, without aggregations; what a head or a proxy adds is not counted."""
        return CostFactors(aggregation=0)

    def start(self, task: Task) -> State:
        """Return the initial weights, the first anchor; there are no copies yet.

        Raises
        ------
        InvalidProblemError
            If there is nobody to align with, no layer left for the server, or the proxy does not fit the task.
        """
        if self.aligns and task.num_clients == 1:
            raise InvalidProblemError(
                f"alignment = {quoted(self.alignment)}: one client has nobody to align with, expected 'none'"
            )
        if self.head_layers > task.num_layers - 2:
            raise InvalidProblemError(
                f"head_layers = {self.head_layers}: expected at most {task.num_layers - 2}, so that of the "
                f"{task.num_layers} layers one at least is below the cut and one at the server"
            )
        if self.proxy is not None:
            inputs = task.train.inputs
            if (self.proxy.shape[1:], self.proxy.dtype) != (inputs.shape[1:], inputs.dtype):
                raise InvalidProblemError(
                    f"proxy: {self.proxy.dtype} {list(self.proxy.shape)}: expected samples as the task has them, "
                    f"{inputs.dtype} {['P', *inputs.shape[1:]]}".replace("'", "")
                )
        return {
            "weights": dict(task.initial_weights()),
            "copies": {},
            "placement": Placement.start(task).to_state(),
        }

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Train for the planned steps; afterwards the anchor is that of the new copies."""
        assigned = assign(task, plan, number, self.cut_layer, self.batch_size, self.optimizer, head=self.head_layers)
        if not assigned:
            return Outcome(state, {})
        placement, anchor = Placement.of(state), tensors_of(state, "weights")
        ready = yield from move_layers(
            task, assigned, placement, lambda client: {**anchor, **_copy(state, client)[0]}, fetch=False
        )
        taking = {entry: assigned[entry] for entry in ready}
        server = {entry: self._start(task, state, assignment) for entry, assignment in taking.items()}
        towards: dict[int, Tensors] = {entry: {} for entry in taking}
        if self.aligns and self.alignment == "anchor":
            by_cut = {a.cut: task.trained(self._middle(task, anchor, a.cut)) for a in taking.values()}
            towards = {entry: by_cut[assignment.cut] for entry, assignment in taking.items()}
        elif self.aligns and self.alignment == "kl":
            towards = yield from self._play_proxy(task, taking, number, server)
            taking = {entry: taking[entry] for entry in towards}
        stepped: dict[int, Copy] = {}
        trained: dict[int, Copy] = {}

        def ahead(came: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            items = {entry: (server[entry][0], activations) for entry, activations in came.items()}
            return map_cuts(task, taking, items, lambda cut, item: task.as_sent(self._outputs(task, cut, *item)))

        def work(smashed: Mapping[int, Smashed]) -> dict[int, Answer]:
            _check_finite(taking, smashed)
            items = {entry: (*server[entry], towards[entry], sent) for entry, sent in smashed.items()}
            found = map_cuts(task, taking, items, lambda cut, item: self._step(task, cut, *item))
            stepped.clear()
            stepped.update({entry: copy for entry, (copy, _) in found.items()})
            return {entry: Answer(g, None if self.head_layers else loss) for entry, (_, (g, loss)) in found.items()}

        def settle(through: Mapping[int, torch.Tensor]) -> None:
            server.update({entry: stepped[entry] for entry in through if entry in stepped})
            trained.update({entry: server[entry] for entry in through})

        losses = yield from play_steps(
            task, taking, number, work, settle,
            ahead=ahead if self.head_layers else None, aside=0 if self.proxy is None or not self.aligns else len(self.proxy),
        )  # fmt: skip
        for entry in trained:
            placement.trained(assigned[entry])
        copies = dict(_branch(state["copies"]))
        for entry, (weights, optimizer) in trained.items():
            copies[str(assigned[entry].client)] = {"weights": dict(weights), "optimizer": optimizer}
        left, spread = self._left(task, state, copies, placement)
        return Outcome(left, losses, {"spread": spread})

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Work with the layers up to the cut, and with the head."""
        if message.kind == "head":
            assert batch is not None
            return head_step(task, self.optimizer, message, state, batch)
        if message.kind == "proxy":
            assert self.proxy is not None
            weights, cut = own_weights(task, message, state), int(message.values["cut"])
            outputs = task.forward(weights, self.proxy.to(task.device), 0, cut, training=False).outputs
            return reply(statistics={"outputs": task.as_sent(outputs)}), state
        return split_client(task, self.optimizer, message, state, batch)

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return one model for each client that has trained: its own layers, and its copy of the server's.

        Before anyone has trained, or where no client's state is visible, the anchor, with the layers below as they were
        at first.
        """
        anchor, placement = tensors_of(state, "weights"), Placement.of(state)
        own: dict[int | str | None, Tensors] = {}
        for client, held in enumerate(placement.held):
            known = tensors_of(clients[client], "weights") if clients.get(client) else {}
            ends = [(0, held), (task.num_layers - self.head_layers, task.num_layers)]
            here = {name: known.get(name) for end in ends for name in task.part(anchor, *end)}
            if placement.changed[client] and None not in here.values():
                own[client] = {**anchor, **_copy(state, client)[0], **here}  # type: ignore[dict-item]
        return own or {None: anchor}

    # --- the server's layers -----------------------------------------------------------------------------------

    def _middle(self, task: Task, weights: Tensors, cut: int) -> Tensors:
        """Return the layers that the server has above a cut."""
        return task.part(weights, cut, task.num_layers - self.head_layers)

    def _outputs(
        self, task: Task, cut: int, weights: Tensors, inputs: torch.Tensor, *, training: bool = True
    ) -> torch.Tensor:
        """Return what the server's layers above a cut return."""
        return task.forward(weights, inputs, cut, task.num_layers - self.head_layers, training=training).outputs

    def _start(self, task: Task, state: State, assignment: Assignment) -> Copy:
        """Return a client's copy at the start of a round: layers that it lacks, in hard sharing all, are the anchor's."""
        own, optimizer = _copy(state, assignment.client)
        above = {} if self.alignment == "hard" else own
        weights = self._middle(task, {**tensors_of(state, "weights"), **above}, assignment.cut)
        return weights, overlay(self.optimizer.start(task.trained(weights)), leaves_in(optimizer, weights))

    def _step(
        self, task: Task, cut: int, weights: Tensors, optimizer: State, toward: Tensors, sent: Smashed
    ) -> tuple[Copy, tuple[torch.Tensor, torch.Tensor]]:
        """Take a step with a client's copy; return it, the gradient by the activations, and the loss."""
        found = server_gradients(task, cut, weights, sent, head=self.head_layers)
        parameters, gradients = task.trained(weights), found.gradients
        if toward:
            pulled = self._pull(task, cut, weights, toward)
            gradients = {name: gradient + pulled[name] for name, gradient in gradients.items()}
        parameters, optimizer = self.optimizer.step(parameters, gradients, optimizer)
        stepped = {**weights, **parameters, **found.buffers}
        return (stepped, optimizer), (found.gradient, found.loss)

    def _pull(self, task: Task, cut: int, weights: Tensors, toward: Tensors) -> Tensors:
        """Return the gradient of what holds a copy to the others."""
        parameters = task.trained(weights)
        if self.alignment == "anchor":
            return pull(parameters, toward, layer_strengths(task, cut, self.mu, self.q))

        def objective(parameters: Tensors) -> torch.Tensor:
            outputs = self._outputs(task, cut, {**weights, **parameters}, toward["inputs"], training=False)
            return self.mu * divergence(outputs, toward["mean"])

        found: Tensors = grad(objective)(parameters)
        return found

    def _play_proxy(
        self, task: Task, assigned: Mapping[int, Assignment], number: int, server: Mapping[int, Copy]
    ) -> Generator[Phase, Replies, dict[int, Tensors]]:
        """Have clients send what their layers return for the proxy; return this and the mean of what it becomes here.

        Clients that train alone are asked for nothing. Of clients that have failed there is nothing.
        """
        assert self.proxy is not None
        messages, served = {}, {}
        for entry, assignment in assigned.items():
            cut, last = assignment.cut, task.num_layers - assignment.head
            if cut < task.num_layers:
                work = task.flops(len(self.proxy), 0, cut, backward=False)
                batches = Batches(number, 0, 1, assignment.batch_size)  # not looked at: with some, clients are a batch
                messages[entry] = Message("proxy", {}, assignment.values, batches, work)
                served[entry] = task.flops(len(self.proxy), cut, last, backward=False)
        replies = (yield Phase("proxy", messages, server_flops=served)) if messages else {}
        sent = {entry: answer["statistics"]["outputs"] for entry, answer in replies.items()}
        _check_finite(assigned, {entry: (outputs,) for entry, outputs in sent.items()})
        items = {entry: (server[entry][0], outputs) for entry, outputs in sent.items()}
        found = map_cuts(
            task, assigned, items, lambda cut, item: probabilities(self._outputs(task, cut, *item, training=False))
        )
        shares = [client_weight(task, assigned[entry].client, self.weighting) for entry in found]
        mean = weighted_average([{"mean": own} for own in found.values()], shares) if found else {}
        through = [entry for entry in assigned if entry in sent or entry not in messages]
        return {entry: {"inputs": sent[entry], **mean} if entry in sent else {} for entry in through}

    def _left(self, task: Task, state: State, copies: State, placement: Placement) -> tuple[State, torch.Tensor]:
        """Return the state that a round leaves, with the anchor of its copies, and how far they are from it."""
        kept = {client: copies[client] for client in sorted(copies, key=int)}
        parts = [tensors_of(_branch(copy), "weights") for copy in kept.values()]
        anchor, spread = tensors_of(state, "weights"), torch.tensor(torch.nan)
        if parts:
            shares = [client_weight(task, int(client), self.weighting) for client in kept]
            mean = average_of_parts(parts, shares, whose=[f"client {client}" for client in kept])
            spread = relative_spread([task.trained(part) for part in parts], mean, shares)
            anchor = {**anchor, **mean} if self.aligns else anchor
        return {"weights": dict(anchor), "copies": kept, "placement": placement.to_state()}, spread


def _branch(value: torch.Tensor | State) -> State:
    assert isinstance(value, dict)
    return value


def _copy(state: State, client: int) -> Copy:
    """Return what the server has of a client's layers: weights and optimiser."""
    found = _branch(state["copies"]).get(str(client))
    if found is None:
        return {}, {}
    return tensors_of(_branch(found), "weights"), _branch(_branch(found)["optimizer"])


def _check_finite(assigned: Mapping[int, Assignment], sent: Mapping[int, tuple[torch.Tensor, ...]]) -> None:
    """Refuse what would spoil the anchor, and so the models of others."""
    for entry, tensors in sent.items():
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            assignment = assigned[entry]
            raise TrainingError(
                f"client {assignment.client}: what it has sent at cut {assignment.cut} is not finite, expected finite "
                "numbers; a smaller step size may help"
            )
