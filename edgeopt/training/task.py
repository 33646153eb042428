"""`Task`: what is learnt, from whose data: the model, the clients' samples, the loss; no algorithm and no network."""

import copy
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from edgeopt.data.arrays import ArrayData, described
from edgeopt.data.partition import Partition
from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.moe import Choice, Experts, LayerRouting, Learners, expert_shares, limit_learners, record_routing
from edgeopt.profile import ModelProfile
from edgeopt.rng import stream
from edgeopt.schedule import ClientPlan
from edgeopt.storage import MAX_BYTES
from edgeopt.training.chance import draws, keyed
from edgeopt.training.messages import Batches, Tensors
from edgeopt.training.transforms import in_transform
from edgeopt.training.trouble import check_weights, in_words, is_out_of_memory
from edgeopt.validate import integer, real

Precision = Literal["fp32", "bf16"]

_EVALUATED_AT_ONCE = 512


class Batch(NamedTuple):
    """Mini-batches of a client: inputs [steps, samples, ...] and targets [steps, samples, ...]; go through `steps`."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def steps(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the inputs [samples, ...] and targets [samples, ...] of one mini-batch after another."""
        yield from zip(self.inputs.unbind(), self.targets.unbind(), strict=True)


class PaddedBatch(Batch):
    """Mini-batches of unequal sizes: of each, `sizes` says how many samples it has, and those after them are padding."""

    sizes: tuple[int, ...]

    def __new__(cls, inputs: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...]) -> Self:
        """Return mini-batches of some sizes [steps]."""
        self = super().__new__(cls, inputs, targets)
        self.sizes = sizes
        return self

    def steps(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield those that are no padding."""
        for size, inputs, targets in zip(self.sizes, self.inputs.unbind(), self.targets.unbind(), strict=True):
            yield inputs[:size], targets[:size]


class _Layers(NamedTuple):
    """Some layers as a module, and where each of its weights lies, by name."""

    module: nn.Sequential
    slots: dict[str, tuple[dict[str, torch.Tensor], str]]


class Pass(NamedTuple):
    """What some layers return: outputs, buffers as they are afterwards, what the layers add to the loss.

    And, by name, what routers of mixture-of-experts layers have decided on which hidden states.
    """

    outputs: torch.Tensor
    buffers: Tensors
    penalty: torch.Tensor
    routing: Mapping[str, LayerRouting]


class Score(NamedTuple):
    """Mean loss, and the share of targets that got the highest output."""

    loss: float
    accuracy: float


Predict = Callable[[Tensors, torch.Tensor], torch.Tensor]
"""Gives outputs [samples, ...] for weights and inputs [samples, ...]."""


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of class scores [..., K] and classes [...]."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class Task:
    """A model, the clients' data, and how the two are joined; everything that an algorithm may ask of them.

    Weights are flat dictionaries of parameters and buffers, named as in the model's ``state_dict``. Parameters that do
    not require gradients are frozen: they belong to the task, everybody has them, and they are no part of the weights
    that algorithms train, average and send. All methods leave their arguments and the model as they are.

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
        If the model is no plain `nn.Sequential`, has a weight twice, has nothing to train, or does not fit data or
        profile; if there is nothing to test with; if the device is not there.
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
    """Names of the weights that are trained."""
    frozen: Tensors = field(init=False, repr=False)
    """Weights that are not trained and that everybody has, by name."""
    experts: dict[str, int] = field(init=False, repr=False)
    """Experts of each mixture-of-experts layer, by its name in ``model.named_modules()``."""
    draws: bool = field(init=False, repr=False)
    """Whether layers have dropout that `edgeopt.training.chance` gives its masks."""
    channels_last: bool = field(init=False, repr=False, default=False)
    """Whether images go into the layers with their channels last in memory, where clients are no batch: faster there."""
    _own: threading.local = field(init=False, repr=False, default_factory=threading.local)  # each thread's copies
    _shares: dict[str, float] = field(init=False, repr=False, default_factory=dict)  # of experts in FLOPs of layers
    _cuts: dict[int, tuple[tuple[int, ...], torch.dtype]] = field(init=False, repr=False, default_factory=dict)

    __repr__ = one_line

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Sequential) or len(self.model) == 0:
            raise InvalidProblemError(f"model: expected an nn.Sequential with layers, got {type(self.model).__name__}")
        if type(self.model).forward is not nn.Sequential.forward:
            raise InvalidProblemError(
                f"model: {type(self.model).__name__} has a forward of its own, expected layers that run one after another"
            )
        if self.precision not in ("fp32", "bf16"):
            raise InvalidProblemError(f"precision = {quoted(self.precision)}: expected 'fp32' or 'bf16'")
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
        if not trained:
            raise InvalidProblemError(
                "model: none of its parameters requires gradients, expected at least one to train"
            )
        object.__setattr__(self, "parameters", trained)
        experts = {name: len(layer.up) for name, layer in self.model.named_modules() if isinstance(layer, Experts)}
        object.__setattr__(self, "experts", experts)
        whole = self.layers(training=True)
        held = {name: value.detach() for name, value in whole.named_parameters() if name not in trained}
        object.__setattr__(self, "frozen", held)
        object.__setattr__(self, "draws", draws(whole))
        for name in ("train", "test"):
            data = getattr(self, name)
            moved = {key: getattr(data, key).to(self.device) for key in ("inputs", "targets")}
            object.__setattr__(self, name, dataclasses.replace(data, **moved))
        for name in ("train", "test"):
            self._try(name)
        object.__setattr__(self, "channels_last", self._takes_channels_last())
        profile: ModelProfile | None = getattr(self, "profile", None)
        if profile is None:
            pair = self.train.inputs[:1].repeat_interleave(2, dim=0)  # batch normalisation refuses a single sample
            try:
                object.__setattr__(self, "profile", ModelProfile.from_module(self.model, pair))
            except InvalidProblemError as error:
                told = f"model: its layers cannot be measured: {error}; expected one that can, or a profile with it"
                raise InvalidProblemError(told) from error
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

    def _takes_channels_last(self) -> bool:
        """Return whether that is faster, and the layers make no assumptions about the order, as those with views do."""
        images = self.test.inputs[:2]
        convolves = any(isinstance(layer, nn.Conv2d) for layer in self.model.modules())
        if images.ndim != 4 or images.dtype != torch.float32 or images.device.type != "cpu" or not convolves:
            return False
        turned = images.contiguous(memory_format=torch.channels_last)
        try:
            with torch.inference_mode():
                self.layers(training=False)(turned)
        except Exception:  # noqa: BLE001  (whatever a user's module raises, it ran without)
            return False
        return True

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        """Layers of the model, L: cuts are numbers from 1 to L."""
        return len(self.model)

    @property
    def num_clients(self) -> int:
        """Clients, N."""
        return self.partition.num_clients

    def shape_at(self, cut: int) -> tuple[int, ...]:
        """Return the shape of the activations of one sample that leave layer `cut`, from 1."""
        return self._at(cut)[0]

    def dtype_at(self, cut: int) -> torch.dtype:
        """Return the type in which they are sent."""
        return self._at(cut)[1]

    def _at(self, cut: int) -> tuple[tuple[int, ...], torch.dtype]:
        if not 1 <= cut <= self.num_layers:
            raise InvalidProblemError(f"cut = {cut}: expected 1 to {self.num_layers}, the layers of the model")
        if cut not in self._cuts:
            with torch.no_grad():
                passed = self.forward(self.initial_weights(), self.train.inputs[:1], 0, cut, training=False)
            sent = self.as_sent(passed.outputs)
            self._cuts[cut] = tuple(sent.shape[1:]), sent.dtype
        return self._cuts[cut]

    def samples(self, client: int, batch_size: int) -> int:
        """Return how many samples a mini-batch of a client has: not more than it owns."""
        return min(batch_size, self.partition.indices[client].size)

    def steps(self, plan: ClientPlan, batch_size: int) -> int:
        """Return the mini-batches that a client works through in a round: those of `local_epochs`, or `local_steps`.

        An epoch takes all samples: what does not fill a mini-batch is a smaller one, see `Batches.whole`.
        """
        if plan.local_epochs == 0:
            return plan.local_steps
        own = self.partition.indices[plan.client].size
        return plan.local_epochs * max(1, -(-own // max(1, self.samples(plan.client, batch_size))))

    def sizes(self, client: int, batches: Batches) -> tuple[int, ...]:
        """Return how many samples each of some mini-batches of a client has."""
        size, last = self.sizes_in_epoch(client, batches)
        steps = range(batches.first, batches.first + batches.count)
        per_epoch = -(-self.partition.indices[client].size // max(1, size))
        return tuple(last if (step + 1) % per_epoch == 0 else size for step in steps) if last else (size,) * len(steps)

    def sizes_in_epoch(self, client: int, batches: Batches) -> tuple[int, int]:
        """Return how many samples mini-batches of a client have, and the last one of an epoch; 0 if it is like the others."""
        own, size = self.partition.indices[client].size, self.samples(client, batches.size)
        return size, 0 if batches.whole or size == 0 else own % size

    def num_samples(self, client: int, batches: Batches) -> int:
        """Return the sum of `sizes`, however many they are."""
        size, last = self.sizes_in_epoch(client, batches)
        per_epoch = -(-self.partition.indices[client].size // max(1, size))
        ends = (batches.first + batches.count) // per_epoch - batches.first // per_epoch if last else 0
        return (batches.count - ends) * size + ends * last

    def flops(
        self,
        samples: int,
        first: int = 0,
        last: int | None = None,
        *,
        backward: bool = True,
        runs: Mapping[str, float] | None = None,
        learns: Mapping[str, float] | None = None,
    ) -> float:
        """Return the work of a forward pass and, unless told otherwise, a backward pass through layers `first` to `last`.

        Parameters
        ----------
        samples : of the mini-batch.
        runs : how many experts compute a token, by mixture-of-experts layer. Default: all, as the layers do here.
        learns : how many have a backward pass, see `forward`. Default: as many as compute.
        """
        passes = [(self.profile.forward_flops, runs or {})]
        if backward:
            passes.append((self.profile.backward_flops, {**(runs or {}), **(learns or {})}))
        work = 0.0
        for flops, counts in passes:
            work += float(flops[first:last].sum())
            for name, count in counts.items():
                if not 0 <= real(f"experts of {name}", count) <= self.num_experts(name):
                    raise InvalidProblemError(f"experts of {name} = {count}: expected 0 to {self.experts[name]}")
                share, layer = 1 - count / self.experts[name], self.layer_of[f"{name}.up"]
                if first <= layer < (self.num_layers if last is None else last):
                    work -= share * self._expert_shares()[name] * float(flops[layer])
        return samples * work

    def _expert_shares(self) -> dict[str, float]:
        if not self._shares:
            self._shares.update(expert_shares(self.layers(training=False), self.test.inputs[:1]))
        return self._shares

    @property
    def weight_names(self) -> list[str]:
        """Names of the weights that algorithms train, average and send: parameters and buffers that are not frozen."""
        return [name for name in self.layer_of if name not in self.frozen]

    def sent_profile(self) -> ModelProfile:
        """Return the profile with the bytes of the weights that algorithms send, frozen ones left out: for problems that plan."""
        weights, sent = self.model.state_dict(), np.zeros(self.num_layers)
        for name in self.weight_names:
            sent[self.layer_of[name]] += weights[name].nbytes
        return dataclasses.replace(self.profile, parameter_bytes=sent)

    def num_experts(self, layer: str) -> int:
        """Return how many experts a mixture-of-experts layer has, by its name."""
        if layer not in self.experts:
            known = ", ".join(self.experts) or "none"
            raise InvalidProblemError(f"learns: {quoted(layer)}: expected a layer of experts, the model has {known}")
        return self.experts[layer]

    def trains(self, first: int = 0, last: int | None = None) -> bool:
        """Return whether layers `first` (from 0) to before `last` have a parameter that is trained."""
        end = self.num_layers if last is None else last
        return any(first <= self.layer_of[name] < end for name in self.parameters)

    # --- weights -----------------------------------------------------------------------------------------------

    def initial_weights(self) -> Tensors:
        """Return a copy of the model's weights, without the frozen ones."""
        state = self.model.state_dict()
        return {name: state[name].detach().clone().to(self.device) for name in self.weight_names}

    def whole(self, weights: Tensors) -> Tensors:
        """Return weights with the frozen ones among them, as the model's ``load_state_dict`` takes them."""
        return {name: weights[name] if name in weights else self.frozen[name] for name in self.layer_of}

    def part(self, weights: Tensors, first: int = 0, last: int | None = None) -> Tensors:
        """Return the weights of layers `first` (from 0) to before `last`."""
        end = self.num_layers if last is None else last
        return {name: value for name, value in weights.items() if first <= self.layer_of[name] < end}

    def trained(self, weights: Tensors) -> Tensors:
        """Return the parameters among some weights, without the buffers."""
        return {name: value for name, value in weights.items() if name in self.parameters}

    # --- computing ---------------------------------------------------------------------------------------------

    def forward(
        self,
        weights: Tensors,
        inputs: torch.Tensor,
        first: int = 0,
        last: int | None = None,
        *,
        training: bool = True,
        learns: Mapping[str, Learners | Choice] | None = None,
    ) -> Pass:
        """Run layers `first` (from 0) to before `last`.

        Parameters
        ----------
        weights : of these layers at least; frozen ones are known, but may be given too.
        inputs : [samples, ...], what the layer before `first` returned, or the model's input.
        training : whether layers behave as in training, which matters to dropout and batch normalisation.
        learns : which experts learn from this pass, by mixture-of-experts layer: bool [experts], as plain values or as
            a tensor, or a function of the layer's routing that returns one. The outputs do not change. The gradients of the others are exactly zero, and none goes through
            them; given plain values, they keep nothing for the backward pass, see `edgeopt.models.moe.Experts`. Default: all.

        Returns
        -------
        Outputs [samples, ...]; buffers of these layers afterwards; the penalty, a float32 scalar; the routing of the
        mixture-of-experts layers among them, by name.
        """
        end = self.num_layers if last is None else last
        if first >= end:
            return Pass(inputs, {}, inputs.new_zeros((), dtype=torch.float32), {})
        layers = self._part(training, first, end)
        if self.channels_last and first == 0 and not in_transform():
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        used = {name: value for name, value in weights.items() if first <= self.layer_of[name] < end}
        fixed = self.parameters | self.frozen.keys()
        buffers = {name: value.clone() for name, value in used.items() if name not in fixed}  # changed in place
        used = {**self.part(self.frozen, first, end), **used}
        modules = layers.module.named_modules() if self.experts else ()
        experts = {layer: name for name, layer in modules if isinstance(layer, Experts)}
        masks = self._learners(learns, experts)
        with self._autocast(), record_routing() as routing, limit_learners(masks):
            outputs = _call(layers, {**used, **buffers}, inputs)
        penalty = inputs.new_zeros((), dtype=torch.float32)
        if self.balance:
            penalty = penalty + self.balance * sum(layer.balance_loss for layer in routing)
        return Pass(
            outputs, buffers, penalty, {experts[found.layer]: found for found in routing if found.layer in experts}
        )

    def batch_loss(
        self,
        weights: Tensors,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        *,
        learns: Mapping[str, Learners | Choice] | None = None,
    ) -> tuple[torch.Tensor, Tensors]:
        """Return the training loss of a mini-batch, and the buffers afterwards; `learns` is that of `forward`."""
        passed = self.forward(weights, inputs, learns=learns)
        return self.pass_loss(passed, targets), passed.buffers

    def pass_loss(self, passed: Pass, targets: torch.Tensor) -> torch.Tensor:
        """Return the training loss of a pass to the last layer: the loss, and what the layers add to it."""
        return self.loss(full_precision(passed.outputs), targets) + passed.penalty

    def _learners(
        self, learns: Mapping[str, Learners | Choice] | None, layers: Mapping[Experts, str]
    ) -> dict[Experts, Learners | Choice]:
        """Return what `learns` says of some layers; refuse what fits none of the model's."""
        for name, chosen in (learns or {}).items():
            count = self.num_experts(name)
            if callable(chosen):
                continue
            wrong = f"learns[{name!r}]: expected {count} truth values, one for each expert, got "
            if isinstance(chosen, torch.Tensor):
                if chosen.dtype != torch.bool or chosen.shape != (count,):
                    raise InvalidProblemError(f"{wrong}{chosen.dtype} {list(chosen.shape)}")
            elif (
                not isinstance(chosen, Sequence | np.ndarray)
                or len(chosen) != count
                or not all(isinstance(value, bool | np.bool_) for value in chosen)
            ):
                raise InvalidProblemError(f"{wrong}{quoted(chosen)}")
        return {layer: learns[name] for layer, name in layers.items() if learns and name in learns}

    def layers(self, *, training: bool) -> nn.Sequential:
        """Return the model that `forward` runs on this thread, with dropout as `edgeopt.training.chance` has it.

        Its weights are not those that are trained. Threads have copies of their own, as it is changed while it runs.
        """
        modes: dict[bool, nn.Sequential] = self._own.__dict__.setdefault("modes", {})
        if training not in modes:
            with torch.inference_mode(False):
                modes[training] = copy.deepcopy(self.model).to(self.device)
            keyed(modes[training]).train(training)
        return modes[training]

    def _part(self, training: bool, first: int, last: int) -> _Layers:
        parts: dict[tuple[bool, int, int], _Layers] = self._own.__dict__.setdefault("parts", {})
        key = (training, first, last)
        if key not in parts:  # not a slice, which would call the constructor of a subclass
            module = nn.Sequential(OrderedDict(list(self.layers(training=training)._modules.items())[first:last]))
            slots: Any = {
                f"{prefix}.{name}": (tensors, name)
                for prefix, layer in module.named_modules()
                for tensors in (layer._parameters, layer._buffers)
                for name in tensors
            }
            parts[key] = _Layers(module, slots)
        return parts[key]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, cache_enabled=False)

    def as_sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return activations or their gradients in the type in which they cross a cut: that of `precision`.

        Which layers return it by themselves is up to torch: within a batch of clients it applies autocast in part only.
        """
        half = self.precision == "bf16" and tensor.dtype == torch.float32
        return (tensor.to(torch.bfloat16) if half else tensor).contiguous()

    def predict(self, weights: Tensors, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the model, at work and not in training."""
        return self.forward(weights, inputs, training=False).outputs

    def evaluate(
        self,
        weights: Tensors,
        data: ArrayData | None = None,
        *,
        client: int | None = None,
        predict: Predict | None = None,
    ) -> Score:
        """Return loss and accuracy on held-out samples, or on others.

        Parameters
        ----------
        data : default: the held-out samples.
        client : weigh the samples so that their labels are distributed as those of this client's own samples. Labels of
            the client that none of the samples has do not count; nan if that is all of them. Sequences without groups
            have no labels, and count alike.
        predict : gives the outputs for weights and inputs. Default: `predict`.
        """
        data = self.test if data is None else data
        predict = self.predict if predict is None else predict
        if client is None or not (_has_labels(data) and _has_labels(self.train)):
            return self._score(weights, data, predict)
        if not 0 <= client < self.num_clients:
            raise InvalidProblemError(f"client = {client}: expected 0 to {self.num_clients - 1}")
        own, counts = np.unique(self.train.labels[self.partition.indices[client]], return_counts=True)
        there = {label: np.flatnonzero(data.labels == label) for label in own.tolist()}
        shares = {label: count for label, count in zip(there, counts.tolist(), strict=True) if there[label].size}
        if not shares:
            return Score(np.nan, np.nan)
        scores = [self._score(weights, data.take(there[label]), predict) for label in shares]
        loss, accuracy = np.average(scores, axis=0, weights=list(shares.values()))
        return Score(float(loss), float(accuracy))

    def _score(self, weights: Tensors, data: ArrayData, predict: Predict) -> Score:
        loss, right = 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(data), _EVALUATED_AT_ONCE):
                inputs, targets = (x[start : start + _EVALUATED_AT_ONCE] for x in (data.inputs, data.targets))
                outputs = predict(weights, inputs)
                loss += len(inputs) * float(self.loss(full_precision(outputs), targets))
                right += int((outputs.argmax(-1) == targets).sum())
        return Score(loss / len(data), right / data.targets.numel())

    # --- data --------------------------------------------------------------------------------------------------

    def batch(self, client: int, batches: Batches) -> Batch:
        """Return the mini-batches of some steps of a round.

        Each round shuffles the client's samples anew, and again whenever they are used up. What is left of them then and
        does not fill a mini-batch is not used, or is a smaller one, see `Batches`. The draw depends on seed, client and
        round alone.
        """
        inputs, targets = self.samples_of([client], batches)
        return as_batch(inputs[0], targets[0], self.sizes(client, batches))

    def samples_of(self, clients: Sequence[int], batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the samples of `batch` of clients that have equal `sizes`: inputs and targets [clients, steps, ...]."""
        for client in clients:
            self.check_batches(client, batches)
        rows = torch.from_numpy(np.stack([self.rows(client, batches) for client in clients])).to(self.device)
        return self.train.inputs[rows], self.train.targets[rows]

    def check_batches(self, client: int, batches: Batches) -> None:
        """Refuse mini-batches that a client cannot have, or that take too much memory, before anything is drawn."""
        size = self.samples(client, batches.size)
        if not self.partition.indices[client].size:
            raise InvalidProblemError(f"client {client}: has no samples to train on, expected at least one")
        if size < 1:
            raise InvalidProblemError(f"client {client}: mini-batches of {size} samples: expected at least one")
        one = self.train.inputs[:1].nbytes + self.train.targets[:1].nbytes
        if (needed := batches.count * size * one) > MAX_BYTES:
            raise InvalidProblemError(
                f"client {client}: {batches.count} mini-batches of {size} samples take {needed} bytes: expected at most "
                f"{MAX_BYTES}, with fewer local steps"
            )

    def rows(self, client: int, batches: Batches) -> NDArray[np.int64]:
        """Return int64 [steps, samples]: which training samples the mini-batches hold, padded where they are smaller."""
        own = self.partition.indices[client]
        self.check_batches(client, batches)
        size = min(batches.size, own.size)
        per_epoch = own.size // size if batches.whole else -(-own.size // size)
        used = min(per_epoch * size, own.size)
        rng = stream(self.seed, "batches", client, batches.round)
        epochs = (batches.first + batches.count - 1) // per_epoch + 1
        order = [rng.permutation(own)[:used] for _ in range(epochs)]
        if used == per_epoch * size:
            rows = np.concatenate(order).reshape(-1, size)
            return rows[batches.first : batches.first + batches.count]
        padded = np.concatenate([np.resize(epoch, (per_epoch, size)) for epoch in order])
        return padded[batches.first : batches.first + batches.count, : max(self.sizes(client, batches))]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; a new model is measured anew unless a profile is given with it."""
        if "model" in changes:
            changes = {"profile": None, **changes}
        return dataclasses.replace(self, **changes)


def as_batch(inputs: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...]) -> Batch:
    """Return mini-batches with so many samples each; what there is more of is padding."""
    return Batch(inputs, targets) if len(set(sizes)) < 2 else PaddedBatch(inputs, targets, sizes)


def _call(layers: _Layers, tensors: Tensors, inputs: torch.Tensor) -> Any:
    """Return what layers give with other weights and buffers in the places of their own.

    As `torch.func.functional_call`, which looks for the places anew in each call.
    """
    places = [layers.slots[name] for name in tensors]
    before = [owner[name] for owner, name in places]
    try:
        for (owner, name), tensor in zip(places, tensors.values(), strict=True):
            owner[name] = tensor
        return layers.module(inputs)
    finally:
        for (owner, name), tensor in zip(places, before, strict=True):
            owner[name] = tensor


def _has_labels(data: ArrayData) -> bool:
    return data.targets.ndim == 1 or data.group is not None


def full_precision(outputs: torch.Tensor) -> torch.Tensor:
    """Return a tensor in single precision at least."""
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
