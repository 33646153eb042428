"""Memory: what a client holds at the peak of its work, and plans that keep to what devices have."""

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.models.kept import KeptMemory
from edgeopt.models.moe import every_expert
from edgeopt.schedule import AroundPlanner, ClientPlan, Feedback, Planner, RoundPlan
from edgeopt.training.messages import State
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.common import check_batch_size
from edgeopt.training.rules.experts import Scope, check_scope, learners, mixtures, most_learners
from edgeopt.training.runners.local import seeded_layers
from edgeopt.training.task import Task
from edgeopt.training.trouble import is_out_of_memory
from edgeopt.validate import float_array, integer

_MEASURED_AT = (2, 4)  # samples; batch normalisation refuses one

_Line = tuple[NDArray[np.float64], NDArray[np.float64]]  # of each cut: what does not depend on the samples; per sample
_LINES: WeakKeyDictionary[Task, dict[tuple[Any, ...], _Line]] = WeakKeyDictionary()
_STANDING: WeakKeyDictionary[Task, dict[tuple[Any, ...], float]] = WeakKeyDictionary()


def client_peak_bytes(
    task: Task,
    samples: int,
    optimizer: Optimizer | None = None,
    *,
    cut: int | None = None,
    head: int = 0,
    backward: bool = True,
    probes: bool = False,
    learns: Mapping[str, int] | None = None,
) -> float:
    """Return what a client holds at the peak of its work on a mini-batch.

    That is the weights of its layers, buffers and frozen ones among them, their gradients, the optimiser's state, and what
    is kept of the forward pass for the backward pass. A client without a backward pass holds its weights alone. Left out is
    what a single layer needs while it runs, and what an algorithm adds to the loss, such as the distance of FedProx.
    It is nan where it cannot be measured, as the model does not run on every mini-batch.

    Parameters
    ----------
    samples : of the mini-batch.
    optimizer : default: one without a state.
    cut : the client has layers 1 to `cut`. Default: all. At the last one, the loss keeps something too.
    head : it also has so many of the last layers, and the loss.
    backward : whether it trains them.
    probes : it trains them by forward passes at one probe after another: beside its layers and the optimiser's state it
        holds a second copy of what is trained, for a probe or for the estimated gradient, and of the forward pass only
        what crosses the cut.
    learns : how many experts of a mixture learn, by layer, see `Task.forward`: there are gradients of those alone.
    """
    last = task.num_layers if cut is None else integer("cut", cut, low=1, high=task.num_layers)
    first = task.num_layers - integer("head", head, low=0, high=task.num_layers - last)
    samples = integer("samples", samples, low=0)
    counts = {
        name: integer(f"learns[{name!r}]", count, low=0, high=task.num_experts(name))
        for name, count in (learns or {}).items()
    }
    parts = [(0, last), (first, task.num_layers)] if head else [(0, last)]
    key = (type(optimizer), repr(optimizer), *parts, backward, *sorted(counts.items()))
    standing = _STANDING.setdefault(task, {})
    if key not in standing:
        standing[key] = sum(_standing(task, optimizer, part, backward, counts) for part in parts)
    if probes:
        crosses = 0 if last == task.num_layers else math.prod(task.shape_at(last)) * task.dtype_at(last).itemsize
        return standing[key] + samples * crosses
    return standing[key] + (sum(_kept(task, samples, part, counts) for part in parts) if backward else 0.0)


def _standing(
    task: Task, optimizer: Optimizer | None, part: tuple[int, int], backward: bool, learns: Mapping[str, int]
) -> float:
    """Return the bytes of weights, gradients and optimiser of some layers."""
    own = task.part(task.model.state_dict(), *part)
    held = float(sum(value.nbytes for value in own.values()))
    if not backward:
        return held
    trained = {name: torch.empty_like(value, device="meta") for name, value in task.trained(own).items()}
    share = {name: count / task.experts[name] for name, count in learns.items()}
    gradients = sum(value.nbytes * share.get(name.rpartition(".")[0], 1.0) for name, value in trained.items())
    return held + gradients + (0 if optimizer is None else _num_bytes(optimizer.start(trained)))


def _kept(task: Task, samples: int, part: tuple[int, int], learns: Mapping[str, int]) -> float:
    """Return what autograd keeps of a mini-batch in some layers beside the weights.

    It is measured at two sizes: the rest is on their line. It is nan where the model does not run on such mini-batches.
    """
    first, last = part
    lines = _LINES.setdefault(task, {})
    key = (first, *sorted(learns.items()))
    if key not in lines:
        try:
            small, large = (_measured(task, size, first, learns) for size in _MEASURED_AT)
        except Exception as error:  # of a user's layer or loss: if it comes in training too, it is told there
            if is_out_of_memory(error):
                raise
            small = large = np.full(task.num_layers + 1, np.nan)
        slope = (large - small) / (_MEASURED_AT[1] - _MEASURED_AT[0])
        lines[key] = (small - slope * _MEASURED_AT[0], slope)
    fixed, per_sample = lines[key]
    return float(fixed[last] + samples * per_sample[last])


def _measured(task: Task, samples: int, first: int, learns: Mapping[str, int]) -> NDArray[np.float64]:
    """Return float64 [L + 1]: what autograd keeps of layer `first` (from 0) up to each; with the loss at the last one."""
    data = task.train if len(task.train) else task.test
    rows = torch.arange(samples, device=task.device) % len(data)
    inputs, targets = data.inputs[rows], data.targets[rows]
    weights = {name: w.requires_grad_(name in task.parameters) for name, w in task.initial_weights().items()}
    masks = {name: [e < count for e in range(task.experts[name])] for name, count in learns.items()}
    kept = KeptMemory([*weights.values(), *task.frozen.values()])
    found = [0] * (first + 1)
    with seeded_layers(task, "memory"), torch.inference_mode(False), torch.no_grad(), every_expert():
        inputs = task.forward(weights, inputs, 0, first).outputs
        if first:  # somebody wants the gradient by what layers in the middle are given
            inputs.requires_grad_()
    counting = kept.counting()
    with seeded_layers(task, "memory"), torch.inference_mode(False), torch.enable_grad(), every_expert(), counting:
        penalty: torch.Tensor | float = 0.0
        for layer in range(first, task.num_layers):
            passed = task.forward(weights, inputs, layer, layer + 1, learns=masks)
            inputs, penalty = passed.outputs, penalty + passed.penalty
            kept.ignore(passed.buffers.values())
            found.append(kept.bytes)
        _ = task.loss(inputs.to(torch.promote_types(inputs.dtype, torch.float32)), targets) + penalty
    found[-1] = kept.bytes
    return np.array(found, np.float64)


def _num_bytes(state: State) -> int:
    return sum(value.nbytes if isinstance(value, torch.Tensor) else _num_bytes(value) for value in state.values())


@dataclass(frozen=True, slots=True, repr=False)
class MemoryBudget(AroundPlanner):
    """The plans of another planner, with batch sizes that are lowered to what fits into the memory of each client.

    What it keeps to is `client_peak_bytes`; entries that fit stay as they are.

    Parameters
    ----------
    inner : the other planner.
    task : what is trained.
    memory_bytes : float64 [N], memory of each client; inf for no limit.
    optimizer, batch_size, cut_layer : of the algorithm, the latter two where the plan leaves them open. Default: the
        clients hold the whole model.
    probes : whether clients learn by forward passes alone, as in `edgeopt.training.HoSfl`.
    """

    inner: Planner
    task: Task
    memory_bytes: NDArray[np.float64]
    optimizer: Optimizer | None = None
    batch_size: int = 16
    cut_layer: int | None = None
    probes: bool = False
    __repr__ = one_line

    def __post_init__(self) -> None:
        known = (self.task.num_clients,)
        limits = float_array("memory_bytes", self.memory_bytes, known, nonnegative=True, finite=False, unit="byte")
        object.__setattr__(self, "memory_bytes", limits)
        check_batch_size(self.batch_size)
        if self.cut_layer is not None:
            integer("cut_layer", self.cut_layer, low=1, high=self.task.num_layers)

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round.

        Raises
        ------
        InvalidProblemError
            If a client has no room for a single sample.
        """
        plan = self.inner.plan(round, feedback)
        return plan.replace(batch_size=[self._batch_size(round, entry, client) for entry, client in enumerate(plan)])

    def _batch_size(self, round: int, entry: int, planned: ClientPlan) -> int:
        client, cut = planned.client, planned.cut_layer or self.cut_layer
        if client >= self.task.num_clients:
            raise InvalidProblemError(
                f"round {round}: client[{entry}] = {client}: expected 0 to {self.task.num_clients - 1}"
            )

        def needed(samples: int) -> float:
            return client_peak_bytes(self.task, samples, self.optimizer, cut=cut, probes=self.probes)

        room = self.memory_bytes[client]
        most = self.task.samples(client, planned.batch_size or self.batch_size)
        if room == np.inf or needed(most) <= room:
            return planned.batch_size
        if np.isnan(needed(1)):
            raise InvalidProblemError("model: what it keeps of a mini-batch cannot be measured: expected one that runs")
        if needed(1) > room:
            raise InvalidProblemError(
                f"round {round}: client {client} needs {needed(1):.6g} bytes for one sample with layers 1 to "
                f"{cut or self.task.num_layers}, its memory is {room:.6g}"
            )
        return bisect.bisect_right(range(1, most), room, key=needed)


@dataclass(frozen=True, slots=True, repr=False)
class ExpertBudget(AroundPlanner):
    """The plans of another planner, with `experts` lowered to what fits into the memory of each client.

    What it keeps to is `client_peak_bytes` of so many learning experts; entries for which the whole model fits stay as they
    are. `edgeopt.training.HFedMoe` trains within such budgets.

    Parameters
    ----------
    inner : the other planner.
    task : what is trained.
    memory_bytes : float64 [N], memory of each client; inf for no limit.
    optimizer, batch_size : of the algorithm, the latter where the plan leaves it open.
    budget : whether `experts` counts those of each ``layer``, or those of the whole ``model``, as the algorithm does.
    """

    inner: Planner
    task: Task
    memory_bytes: NDArray[np.float64]
    optimizer: Optimizer | None = None
    batch_size: int = 16
    budget: Scope = "layer"
    __repr__ = one_line

    def __post_init__(self) -> None:
        known = (self.task.num_clients,)
        limits = float_array("memory_bytes", self.memory_bytes, known, nonnegative=True, finite=False, unit="byte")
        object.__setattr__(self, "memory_bytes", limits)
        check_batch_size(self.batch_size)
        check_scope(self.budget)
        mixtures(self.task, "a budget of experts")

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round.

        Raises
        ------
        InvalidProblemError
            If a client has no room for a single expert that learns.
        """
        plan = self.inner.plan(round, feedback)
        return plan.replace(experts=[self._experts(round, entry, client) for entry, client in enumerate(plan)])

    def _experts(self, round: int, entry: int, planned: ClientPlan) -> int:
        client = planned.client
        if client >= self.task.num_clients:
            raise InvalidProblemError(
                f"round {round}: client[{entry}] = {client}: expected 0 to {self.task.num_clients - 1}"
            )
        samples, room = self.task.samples(client, planned.batch_size or self.batch_size), self.memory_bytes[client]

        def needed(experts: int) -> float:
            learns = learners(self.task, experts, self.budget) if experts else None
            return client_peak_bytes(self.task, samples, self.optimizer, learns=learns)

        if room == np.inf or needed(planned.experts) <= room:
            return planned.experts
        most = planned.experts or most_learners(self.task, self.budget)
        for experts in range(most, 0, -1):
            if needed(experts) <= room:
                return experts
        raise InvalidProblemError(
            f"round {round}: client {client} needs {needed(1):.6g} bytes to train one expert on {samples} samples, its memory "
            f"is {room:.6g}"
        )
