"""Clients that hold the same layers although no weights travel: everybody takes the same steps, of seeds and numbers.

A step is a seed and, for each of some parts of the model, P numbers: what `edgeopt.training.rules.probes` makes a
gradient of. The server takes it at once, and remembers it until every client has taken it, too. A client gets the steps
that it has missed with its next message, be it one or all of a long absence, and is then where the server was after
them, optimiser included, to the bit.
"""

import bisect
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch

from edgeopt.display import one_line
from edgeopt.rng import stream
from edgeopt.training.messages import Category, Message, Phase, Replies, State, Tensors, Value
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.common import tensors_of
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.rules.probes import Probes, norm_of
from edgeopt.training.split.exchange import Assignment
from edgeopt.training.task import Task
from edgeopt.training.trouble import TrainingError

_MOMENTS = "optimizer/"  # before the names of an optimiser's tensors among weights


class Steps(NamedTuple):
    """K steps in a row that are about the same parts of the model.

    Parameters
    ----------
    ends : layers up to which each of S parts goes; a part begins where the one before it ends, the first at layer 1.
    seeds : int64 [K], of the directions.
    values : float32 [K, S, P], what each part is moved by.
    """

    ends: tuple[int, ...]
    seeds: torch.Tensor
    values: torch.Tensor


# --- the same at servers and clients -------------------------------------------------------------------------------


def trained_in_order(task: Task, weights: Tensors) -> Tensors:
    """Return the parameters among some weights, in the order of the model: directions depend on it."""
    return {name: weights[name] for name in task.layer_of if name in weights and name in task.parameters}


def gradient_of_step(
    task: Task, probes: Probes, directions: Tensors, ends: tuple[int, ...], values: torch.Tensor
) -> Tensors:
    """Return the estimate that a step is made of; `values` are [S, P]."""
    part = {name: bisect.bisect_right(ends, task.layer_of[name]) for name in directions}
    return probes.estimate(directions, {name: values[index] for name, index in part.items()})


def retrace(
    task: Task, optimizer: Optimizer, probes: Probes, weights: Tensors, state: State, steps: Steps
) -> tuple[Tensors, State]:
    """Return weights and the optimiser's state after some steps."""
    for seed, values in zip(steps.seeds.unbind(), steps.values.unbind(), strict=True):
        parameters = trained_in_order(task, weights)
        gradients = gradient_of_step(task, probes, probes.directions(seed, parameters), steps.ends, values)
        stepped, state = optimizer.step(parameters, gradients, state)
        weights = {**weights, **stepped}
    return weights, state


# --- the client's side ---------------------------------------------------------------------------------------------


def caught_up(
    task: Task, optimizer: Optimizer, probes: Probes, message: Message, state: State
) -> tuple[Tensors, State]:
    """Return a client's layers up to the cut, and its state, after the steps that a message brings, and with its layers."""
    brought = {name: value for name, value in message["weights"].items() if not name.startswith(_MOMENTS)}
    missed = _steps_in(message)
    known = tensors_of(state, "weights") if state else task.initial_weights()
    own = task.part(known, 0, int(message.values["cut"]))
    if not brought and not missed:
        return own, state
    own = {name: value for name, value in own.items() if name not in brought}
    before = state.get("optimizer", {})
    assert isinstance(before, dict)
    moments = overlay(optimizer.start(trained_in_order(task, own)), leaves_in(before, own))
    for steps in missed:
        own, moments = retrace(task, optimizer, probes, own, moments, steps)
    own |= brought
    moments = overlay(moments, _unpacked(message["weights"]))
    return own, {"weights": {name: own[name] for name in task.layer_of if name in own}, "optimizer": moments}


def _steps_in(message: Message) -> list[Steps]:
    found: list[Steps] = []
    while (ends := message.values.get(f"ends {len(found)}")) is not None:
        seeds, values = (message["scalars"][f"{name} {len(found)}"] for name in ("seeds", "values"))
        found.append(Steps(tuple(map(int, str(ends).split())), seeds, values))
    return found


def _packed(state: State, prefix: str = _MOMENTS) -> Tensors:
    """Return the tensors of an optimiser's state, each under its path."""
    found: Tensors = {}
    for name, value in state.items():
        found |= {f"{prefix}{name}": value} if isinstance(value, torch.Tensor) else _packed(value, f"{prefix}{name}/")
    return found


def _unpacked(tensors: Tensors) -> State:
    """Return the state that `_packed` was given."""
    state: State = {}
    for path, value in tensors.items():
        if path.startswith(_MOMENTS):
            *branches, leaf = path.removeprefix(_MOMENTS).split("/")
            inner: State = {leaf: value}
            for name in reversed(branches):
                inner = {name: inner}
            state = overlay(state, inner)
    return state


# --- the server's side ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ReplayServer:
    """The server's model, the steps that some clients have still to take, and which layers each client holds.

    Layers that are trained by steps are the same everywhere; those above them are the server's alone. A client that needs
    a layer which the server has trained alone, or which it has given up, gets it with its optimiser's state, as it is.

    Parameters
    ----------
    weights : of all layers.
    state : of the optimiser, for all parameters.
    steps : that not all clients have taken, the oldest first.
    taken : steps that each client has taken.
    held : layers 1 to ``held[i]`` of client i are as they should be, up to the steps that it has missed.
    """

    task: Task
    optimizer: Optimizer
    probes: Probes
    clip: float
    weights: Tensors
    state: State
    steps: list[Steps]
    taken: list[int]
    held: list[int]
    forgotten: int = 0
    norms: list[torch.Tensor] = field(default_factory=list)
    __repr__ = one_line

    @classmethod
    def start(cls, task: Task, optimizer: Optimizer) -> State:
        """Return the state before the first round: everybody has the initial weights."""
        weights, count = task.initial_weights(), task.num_clients
        return {
            "weights": dict(weights),
            "optimizer": optimizer.start(task.trained(weights)),
            "steps": {},
            "clients": {"taken": torch.zeros(count, dtype=torch.int64), "held": torch.full((count,), task.num_layers)},
            "forgotten": torch.tensor(0),
        }

    @classmethod
    def of(cls, task: Task, optimizer: Optimizer, probes: Probes, clip: float, state: State) -> Self:
        """Read what `to_state` wrote."""
        clients, moments, stored, forgotten = (
            tensors_of(state, "clients"), state["optimizer"], state["steps"], state["forgotten"]
        )  # fmt: skip
        assert isinstance(moments, dict)
        assert isinstance(stored, dict)
        assert isinstance(forgotten, torch.Tensor)
        runs = [tensors_of(stored, name) for name in stored]
        steps = [Steps(tuple(run["ends"].tolist()), run["seeds"], run["values"]) for run in runs]
        taken, held = clients["taken"].tolist(), clients["held"].tolist()
        weights = tensors_of(state, "weights")
        return cls(task, optimizer, probes, clip, weights, moments, steps, taken, held, int(forgotten))

    def to_state(self) -> State:
        """Return tensors, without the steps that all clients have taken."""
        least = min(self.taken)
        runs = self._since(least)
        steps: State = {
            str(index): {"ends": torch.tensor(run.ends), "seeds": run.seeds, "values": run.values}
            for index, run in enumerate(runs)
        }
        return {
            "weights": dict(self.weights),
            "optimizer": self.state,
            "steps": steps,
            "clients": {"taken": torch.tensor(self.taken), "held": torch.tensor(self.held)},
            "forgotten": torch.tensor(least),
        }

    @property
    def now(self) -> int:
        """Steps since the start."""
        return self.forgotten + sum(len(run.seeds) for run in self.steps)

    def _since(self, number: int) -> list[Steps]:
        """Return the steps after the first `number`."""
        found, skip = [], number - self.forgotten
        for run in self.steps:
            if skip < len(run.seeds):
                found.append(run._replace(seeds=run.seeds[max(skip, 0) :], values=run.values[max(skip, 0) :]))
            skip -= len(run.seeds)
        return found

    # --- messages --------------------------------------------------------------------------------------------------

    def seed(self, number: int, step: int) -> torch.Tensor:
        """Return the seed of a step of a round."""
        drawn = int(stream(self.task.seed, "probes", number, step).integers(1 << 62))
        return torch.tensor(drawn, device=self.task.device)

    def bring(self, assigned: Mapping[int, Assignment]) -> Generator[Phase, Replies, list[int]]:
        """Bring layers that clients lack, after the steps that they have missed; return the entries that are ready."""
        messages = {}
        for entry, assignment in assigned.items():
            client, cut = assignment.client, assignment.cut
            if cut <= self.held[client]:
                continue
            layers = self.task.part(self.weights, self.held[client], cut)
            steps, values = self._missed(client)
            tensors: dict[Category, Tensors] = {"weights": layers | _packed(leaves_in(self.state, layers)), **steps}
            messages[entry] = Message("place", tensors, {"cut": cut, **values})
        replies = (yield Phase("sync", messages)) if messages else {}
        self.heard(assigned, replies)
        return [entry for entry in assigned if entry in replies or entry not in messages]

    def messages(
        self,
        kind: str,
        assigned: Mapping[int, Assignment],
        number: int,
        step: int,
        *,
        passes: int,
        seed: torch.Tensor | None = None,
        gradients: Mapping[int, torch.Tensor] | None = None,
    ) -> dict[int, Message]:
        """Return messages about a mini-batch, each with the steps that its client has missed.

        Parameters
        ----------
        passes : forward passes that it asks for.
        seed : of the directions that it asks for.
        gradients : by the activations, by entry.
        """
        scalars, known_gradients = {} if seed is None else {"seed": seed}, gradients or {}
        messages = {}
        known: dict[int, tuple[dict[Category, Tensors], dict[str, Value]]] = {}  # the same objects are counted once
        for entry, assignment in assigned.items():
            taken = self.taken[assignment.client]
            if taken not in known:
                steps, values = self._missed(assignment.client)
                own = {**steps.get("scalars", {}), **scalars}
                known[taken] = ({"scalars": own} if own else {}), values
            tensors, values = known[taken]
            gradient, batches = known_gradients.get(entry), assignment.batches(number, step)
            samples = self.task.num_samples(assignment.client, batches)
            messages[entry] = Message(
                kind,
                tensors if gradient is None else {**tensors, "gradients": {"outputs": gradient}},
                {"cut": assignment.cut, **values},
                batches,
                passes * self.task.flops(samples, 0, assignment.cut, backward=False),
                peak_bytes=assignment.peak_bytes,
            )
        return messages

    def _missed(self, client: int) -> tuple[dict[Category, Tensors], dict[str, Value]]:
        """Return the steps that a client has missed, as tensors and values of a message."""
        scalars: Tensors = {}
        values: dict[str, Value] = {}
        for index, run in enumerate(self._since(self.taken[client])):
            scalars |= {f"seeds {index}": run.seeds, f"values {index}": run.values}
            values[f"ends {index}"] = " ".join(map(str, run.ends))
        return ({"scalars": scalars} if scalars else {}), values

    def heard(self, assigned: Mapping[int, Assignment], replies: Replies) -> None:
        """Note that the clients that have replied are where the server is, with the layers up to their cut."""
        for entry in replies:
            client = assigned[entry].client
            self.taken[client], self.held[client] = self.now, assigned[entry].cut

    # --- learning --------------------------------------------------------------------------------------------------

    def directions(self, seed: torch.Tensor, deepest: int) -> Tensors:
        """Return the directions of layers 1 to `deepest`."""
        return self.probes.directions(seed, trained_in_order(self.task, self.task.part(self.weights, 0, deepest)))

    def learn(
        self,
        seed: torch.Tensor,
        directions: Tensors,
        ends: tuple[int, ...],
        values: torch.Tensor,
        deepest: int,
        above: Tensors,
    ) -> None:
        """Take a step.

        Parameters
        ----------
        seed, directions : of layers 1 to `deepest`.
        ends, values : of the parts with parameters, values float32 [S, P]; the estimate is clipped to the norm.
        deepest : layers 1 to it are trained by the step, those above it by their gradients.
        above : their gradients, and their buffers as they are afterwards.
        """
        gradients = self.task.trained(above)
        if directions:
            norm = norm_of(gradient_of_step(self.task, self.probes, directions, ends, values))
            if not norm.isfinite():
                raise TrainingError(
                    f"the estimate's norm is {norm}: expected a finite number; a smaller step size may help"
                )
            values = values * (self.clip / norm).clamp(max=1.0)
            gradients = {**gradient_of_step(self.task, self.probes, directions, ends, values), **gradients}
            self._remember(Steps(ends, seed[None], values[None]))
            self.norms.append(norm)
        moved = {name: self.weights[name] for name in gradients}
        stepped, moments = self.optimizer.step(moved, gradients, leaves_in(self.state, moved))
        self.weights = {**self.weights, **above, **stepped}
        self.state = overlay(self.state, moments)
        self.held = [min(held, deepest) for held in self.held]

    def _remember(self, step: Steps) -> None:
        if self.steps and self.steps[-1].ends == step.ends and self.steps[-1].values.shape[1:] == step.values.shape[1:]:
            last = self.steps.pop()
            step = Steps(step.ends, torch.cat([last.seeds, step.seeds]), torch.cat([last.values, step.values]))
        self.steps.append(step)

    def measured(self) -> dict[str, float | torch.Tensor]:
        """Return what is reported of a round: norm of the estimates before they are clipped, and how many were."""
        if not self.norms:
            return {"estimate_norm": math.nan, "clipped": math.nan}
        norms = torch.stack(self.norms)
        return {"estimate_norm": norms.mean(), "clipped": (norms > self.clip).float().mean()}
