"""`Task`: what is learnt, from whose data: the model, the clients' samples, the loss; no algorithm and no network."""

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call

from edgeopt.data.arrays import ArrayData, described
from edgeopt.data.partition import Partition
from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.moe import record_routing
from edgeopt.profile import ModelProfile
from edgeopt.rng import stream
from edgeopt.storage import MAX_BYTES
from edgeopt.training.messages import Batches, Tensors
from edgeopt.training.trouble import check_weights, in_words, is_out_of_memory
from edgeopt.validate import integer, real

Precision = Literal["fp32", "bf16"]

_EVALUATED_AT_ONCE = 512


class Batch(NamedTuple):
    """Mini-batches of a client: inputs [steps, samples, ...] and targets [steps, samples, ...]."""

    inputs: torch.Tensor
    targets: torch.Tensor


class Pass(NamedTuple):
    """What some layers return: outputs, buffers as they are afterwards, what the layers add to the loss."""

    outputs: torch.Tensor
    buffers: Tensors
    penalty: torch.Tensor


class Score(NamedTuple):
    """Mean loss, and the share of targets that got the highest output."""

    loss: float
    accuracy: float


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of class scores [..., K] and classes [...]."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A model, the clients' data, and how the two are joined; everything that an algorithm may ask of them.

    Weights are flat dictionaries of parameters and buffers, named as in the model's ``state_dict``. Parameters that do
    not require gradients are treated as buffers. All methods leave their arguments and the model as they are.

    Parameters
    ----------
    model : children are the layers; its weights are where training starts.
    train : samples of all clients.
    partition : which of them each client has.
    test : held-out samples.
    loss : mean loss of outputs [samples, ...] and targets. Default: cross entropy.
    balance : weight of the load-balancing loss of mixture-of-experts layers.
    profile : FLOPs of the layers. Default: measured from the model; give one to charge the time of another model.
    seed : decides the mini-batches.
    device : where tensors live and work is done, such as ``cpu``, ``cuda``, ``mps``.
    precision : ``bf16`` runs the layers under autocast; weights stay in float32.

    Raises
    ------
    InvalidProblemError
        If the model is no plain `nn.Sequential`, has a weight twice, or does not fit data or profile; if there is nothing
        to test with; if the device is not there.
    """

    model: nn.Sequential
    train: ArrayData
    partition: Partition
    test: ArrayData
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy
    balance: float = 0.01
    profile: ModelProfile = None  # type: ignore[assignment]
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "fp32"
    layer_of: dict[str, int] = field(init=False, repr=False)
    """Layer, from 0, of each parameter and buffer."""
    parameters: frozenset[str] = field(init=False, repr=False)
    """Names of the weights that are trained; the others are buffers."""
    _modes: dict[bool, nn.Sequential] = field(init=False, repr=False)  # in training mode or not
    _parts: dict[tuple[bool, int, int], nn.Sequential] = field(init=False, repr=False, default_factory=dict)

    __repr__ = one_line

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Sequential) or len(self.model) == 0:
            raise InvalidProblemError(f"model: expected an nn.Sequential with layers, got {type(self.model).__name__}")
        if type(self.model).forward is not nn.Sequential.forward:
            raise InvalidProblemError(
                f"model: {type(self.model).__name__} has a forward of its own, expected layers that run one after another"
            )
        if self.precision not in ("fp32", "bf16"):
            raise InvalidProblemError(f"precision = {self.precision!r}: expected 'fp32' or 'bf16'")
        for name, kind in (("train", ArrayData), ("test", ArrayData), ("partition", Partition)):
            if not isinstance(value := getattr(self, name), kind):
                raise InvalidProblemError(f"{name}: expected {kind.__name__}, got {described(value)}")
        if self.partition.num_samples != len(self.train):
            raise InvalidProblemError(
                f"partition: made for {self.partition.num_samples} samples, train has {len(self.train)}"
            )
        if len(self.test) == 0:
            raise InvalidProblemError("test: expected at least one sample")
        if not callable(self.loss):
            raise InvalidProblemError(f"loss = {quoted(self.loss)}: expected a function of outputs and targets")
        object.__setattr__(self, "balance", real("balance", self.balance))
        object.__setattr__(self, "seed", integer("seed", self.seed, low=0))
        _check_device(self.device)
        check_weights(self.model)
        state = self.model.state_dict(keep_vars=True)
        if on_meta := next((name for name, value in state.items() if value.is_meta), ""):
            raise InvalidProblemError(f"model: {on_meta} is on the meta device: expected weights with values")
        names: dict[int, str] = {}
        for name, tensor in state.items():
            if (other := names.setdefault(id(tensor), name)) != name:
                raise InvalidProblemError(
                    f"model: {other} and {name} are the same tensor, expected one of its own for each"
                )
        index = {name: i for i, name in enumerate(self.model._modules)}
        object.__setattr__(self, "layer_of", {name: index[name.split(".", 1)[0]] for name in state})
        trained = frozenset(name for name, value in self.model.named_parameters() if value.requires_grad)
        object.__setattr__(self, "parameters", trained)
        whole = copy.deepcopy(self.model).to(self.device)
        object.__setattr__(self, "_modes", {True: whole.train(), False: copy.deepcopy(whole).eval()})
        for name in ("train", "test"):
            data = getattr(self, name)
            moved = {key: getattr(data, key).to(self.device) for key in ("inputs", "targets")}
            object.__setattr__(self, name, dataclasses.replace(data, **moved))
        for name in ("train", "test"):
            self._try(name)
        profile: ModelProfile | None = getattr(self, "profile", None)
        if profile is None:
            pair = self.train.inputs[:1].repeat_interleave(2, dim=0)  # batch normalisation refuses a single sample
            object.__setattr__(self, "profile", ModelProfile.from_module(self.model, pair))
        if self.profile.num_layers != len(self.model):
            raise InvalidProblemError(f"profile: {self.profile.num_layers} layers, the model has {len(self.model)}")

    def _try(self, name: str) -> None:
        """Refuse a model that does not run on a sample, or returns no scores of the classes there are."""
        data: ArrayData = getattr(self, name)
        if not len(data):
            return
        inputs, targets = (x[:1].repeat_interleave(2, dim=0) for x in (data.inputs, data.targets))  # as a mini-batch
        try:
            with torch.inference_mode():
                scores = self.forward(self.initial_weights(), inputs, training=False).outputs
        except Exception as error:  # whatever a user's module raises
            if is_out_of_memory(error):
                raise
            reason = in_words(error)
            raise InvalidProblemError(f"model: does not run on samples of {name}: {reason}") from error
        if not isinstance(scores, torch.Tensor):
            raise InvalidProblemError(f"model: returns a {type(scores).__name__}: expected one tensor of scores")
        if scores.shape[:-1] != targets.shape:
            raise InvalidProblemError(
                f"model: returns shape {list(scores.shape)} for targets of shape {list(targets.shape)}: expected a score "
                "of each class for each target"
            )
        classes = 1 + max(
            (int(data.targets.max()) for data in (self.train, self.test) if data.targets.numel()), default=0
        )
        if self.loss is cross_entropy and scores.shape[-1] < classes:
            raise InvalidProblemError(f"model: scores {scores.shape[-1]} classes, the samples have {classes}")

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        """Layers of the model, L: cuts are numbers from 1 to L."""
        return len(self.model)

    @property
    def num_clients(self) -> int:
        """Clients, N."""
        return self.partition.num_clients

    def samples(self, client: int, batch_size: int) -> int:
        """Return how many samples a mini-batch of a client has: not more than it owns."""
        return min(batch_size, self.partition.indices[client].size)

    def flops(self, samples: int, first: int = 0, last: int | None = None, *, backward: bool = True) -> float:
        """Return the work of a forward pass and, unless told otherwise, a backward pass through layers `first` to `last`."""
        work = float(self.profile.forward_flops[first:last].sum())
        if backward:
            work += float(self.profile.backward_flops[first:last].sum())
        return samples * work

    # --- weights -----------------------------------------------------------------------------------------------

    def initial_weights(self) -> Tensors:
        """Return a copy of the model's weights."""
        return {name: value.detach().clone().to(self.device) for name, value in self.model.state_dict().items()}

    def part(self, weights: Tensors, first: int = 0, last: int | None = None) -> Tensors:
        """Return the weights of layers `first` (from 0) to before `last`."""
        end = self.num_layers if last is None else last
        return {name: value for name, value in weights.items() if first <= self.layer_of[name] < end}

    def trained(self, weights: Tensors) -> Tensors:
        """Return the parameters among some weights, without the buffers."""
        return {name: value for name, value in weights.items() if name in self.parameters}

    # --- computing ---------------------------------------------------------------------------------------------

    def forward(
        self, weights: Tensors, inputs: torch.Tensor, first: int = 0, last: int | None = None, *, training: bool = True
    ) -> Pass:
        """Run layers `first` (from 0) to before `last`.

        Parameters
        ----------
        weights : of these layers at least.
        inputs : [samples, ...], what the layer before `first` returned, or the model's input.
        training : whether layers behave as in training, which matters to dropout and batch normalisation.

        Returns
        -------
        Outputs [samples, ...]; buffers of these layers afterwards; the penalty, a float32 scalar.
        """
        end = self.num_layers if last is None else last
        if first >= end:
            return Pass(inputs, {}, inputs.new_zeros((), dtype=torch.float32))
        module = self._module(training, first, end)
        used = {name: weights[name] for name in weights if first <= self.layer_of[name] < end}
        buffers = {name: used[name].clone() for name in used if name not in self.parameters}  # changed in place
        with self._autocast(), record_routing() as routing:
            outputs = functional_call(module, {**used, **buffers}, (inputs,))
        penalty = inputs.new_zeros((), dtype=torch.float32)
        if self.balance:
            penalty = penalty + self.balance * sum(layer.balance_loss for layer in routing)
        return Pass(outputs, buffers, penalty)

    def batch_loss(self, weights: Tensors, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """Return the training loss of a mini-batch, and the buffers afterwards."""
        outputs, buffers, penalty = self.forward(weights, inputs)
        return self.loss(_full_precision(outputs), targets) + penalty, buffers

    def _module(self, training: bool, first: int, last: int) -> nn.Sequential:
        key = (training, first, last)
        if key not in self._parts:  # not a slice, which would call the constructor of a subclass
            layers = list(self._modes[training]._modules.items())[first:last]
            self._parts[key] = nn.Sequential(OrderedDict(layers))
        return self._parts[key]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, cache_enabled=False)

    def evaluate(self, weights: Tensors, data: ArrayData | None = None) -> Score:
        """Return loss and accuracy on held-out samples, or on others."""
        data = self.test if data is None else data
        loss, right = 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(data), _EVALUATED_AT_ONCE):
                inputs, targets = (x[start : start + _EVALUATED_AT_ONCE] for x in (data.inputs, data.targets))
                outputs = self.forward(weights, inputs, training=False).outputs
                loss += len(inputs) * float(self.loss(_full_precision(outputs), targets))
                right += int((outputs.argmax(-1) == targets).sum())
        return Score(loss / len(data), right / data.targets.numel())

    # --- data --------------------------------------------------------------------------------------------------

    def batch(self, client: int, batches: Batches) -> Batch:
        """Return the mini-batches of some steps of a round.

        Each round shuffles the client's samples anew, and again whenever they are used up; what is left of them then and
        does not fill a mini-batch is not used. The draw depends on seed, client and round alone.
        """
        one = self.train.inputs[:1].nbytes + self.train.targets[:1].nbytes
        size = self.samples(client, batches.size)
        if (needed := batches.count * size * one) > MAX_BYTES:
            raise InvalidProblemError(
                f"client {client}: {batches.count} mini-batches of {size} samples take {needed} bytes: expected at most "
                f"{MAX_BYTES}, with fewer local steps"
            )
        rows = torch.from_numpy(self.rows(client, batches)).to(self.device)  # (steps, samples)
        return Batch(self.train.inputs[rows], self.train.targets[rows])

    def rows(self, client: int, batches: Batches) -> NDArray[np.int64]:
        """Return int64 [steps, samples]: which training samples the mini-batches hold."""
        own = self.partition.indices[client]
        size = min(batches.size, own.size)
        if size < 1:
            raise InvalidProblemError(f"client {client}: has no samples to train on, expected at least one")
        per_epoch = own.size // size
        rng = stream(self.seed, "batches", client, batches.round)
        epochs = (batches.first + batches.count - 1) // per_epoch + 1
        order = np.concatenate([rng.permutation(own)[: per_epoch * size] for _ in range(epochs)])
        return order.reshape(-1, size)[batches.first : batches.first + batches.count]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; a new model is measured anew unless a profile is given with it."""
        if "model" in changes:
            changes = {"profile": None, **changes}
        return dataclasses.replace(self, **changes)


def _full_precision(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _check_device(device: str) -> None:
    try:
        found = torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InvalidProblemError(
            f"device = {quoted(device)}: expected one that torch can use here: {reason}"
        ) from None
    if found.is_meta:
        raise InvalidProblemError("device = 'meta': expected one that holds values")
