"""Measuring a torch module layer by layer on the meta device: no weights, no data. Used by `ModelProfile.from_module`.

The module runs three times. The first run finds where it can be cut, and adds up forward FLOPs. The second one is cut
there into separate graphs, so that the backward pass of each layer can be run and charged by itself. In the third one
only what is trained requires gradients: what autograd keeps then is what training keeps.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.kept import KeptMemory
from edgeopt.training.trouble import check_weights, in_words
from edgeopt.validate import listed

Sample = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]


def measure_module(module: nn.Module, sample: Sample, *, layers: Sequence[str] | None) -> dict[str, Any]:
    """Return the fields of a `ModelProfile` at fp32, except its name."""
    if not isinstance(module, nn.Module):
        raise InvalidProblemError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    args, kwargs, batch = _meta_sample(sample)
    run = _Run(
        module, _meta_weights(module), args, kwargs, _candidates(module) if layers is None else _named(module, layers)
    )
    with _training_mode(module), torch.inference_mode(False), torch.enable_grad():
        boundaries = _record(run)
        inputs = {get_gradient_edge(leaf).node for leaf in (*args, *kwargs.values()) if leaf.requires_grad}
        kept = _valid_cuts(boundaries, inputs, explicit=layers is not None)
        parameter_bytes, backward_flops = _run_backward(run, kept)
        memory_bytes = _run_training(run, kept)
    return {
        "layer_names": _layer_names([boundary.parts for boundary in kept]),
        "parameter_bytes": parameter_bytes,
        "forward_flops": np.diff([boundary.forward_flops for boundary in kept], prepend=0) / batch,
        "backward_flops": np.array(backward_flops) / batch,
        "activation_bytes": np.array([boundary.output_bytes for boundary in kept]) / batch,
        "memory_bytes": np.diff(memory_bytes, prepend=0) / batch,
        "input_bytes": sum(_bytes(leaf) for leaf in (*args, *kwargs.values())) / batch,
    }


# --- before the run ----------------------------------------------------------------------------------------------


def _meta_sample(sample: Sample) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor], int]:
    args: tuple[Any, ...] = sample if isinstance(sample, tuple) else ()
    kwargs: dict[str, Any] = dict(sample) if isinstance(sample, Mapping) else {}
    if isinstance(sample, torch.Tensor):
        args = (sample,)
    leaves = [*args, *kwargs.values()]
    if not leaves or not all(isinstance(leaf, torch.Tensor) and leaf.ndim > 0 for leaf in leaves):
        raise InvalidProblemError("sample: expected a tensor, or a tuple or mapping of tensors, with a batch dimension")
    if len(sizes := {len(leaf) for leaf in leaves}) > 1 or 0 in sizes:
        raise InvalidProblemError(f"sample: batch sizes {sorted(sizes)}: expected the same positive size everywhere")
    return tuple(map(_to_meta, args)), {name: _to_meta(leaf) for name, leaf in kwargs.items()}, sizes.pop()


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Return a stand-in without values: fp32 with a gradient if it is a floating-point tensor."""
    if tensor.is_floating_point():
        return torch.empty(tensor.shape, device="meta", requires_grad=True)
    return torch.empty(tensor.shape, device="meta", dtype=tensor.dtype)


def _meta_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return stand-ins by name: one for all names of a tied parameter, and one name for a sub-module with several."""
    check_weights(module)
    weights: dict[str, torch.Tensor] = {}
    made: dict[torch.Tensor, torch.Tensor] = {}
    for prefix, part in module.named_modules():  # every sub-module once: `functional_call` restores names in order
        for name, parameter in part.named_parameters(prefix, recurse=False, remove_duplicate=False):
            if not parameter.is_floating_point():
                raise InvalidProblemError(f"{name}: dtype {parameter.dtype}: expected a floating-point parameter")
            weights[name] = made.setdefault(parameter, _to_meta(parameter))
        for name, buffer in part.named_buffers(prefix, recurse=False, remove_duplicate=False):
            weights[name] = made.setdefault(buffer, _to_meta(buffer).requires_grad_(False))
    return weights


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    if isinstance(module, nn.Sequential) and len(module) > 0:
        return dict(module.named_children())
    return dict(_smallest(module, "")) or {type(module).__name__: module}


def _smallest(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield sub-modules with parameters of their own or without children; containers of these are passed through."""
    for name, child in module.named_children():
        if any(True for _ in child.parameters(recurse=False)) or not any(True for _ in child.children()):
            yield prefix + name, child
        else:
            yield from _smallest(child, f"{prefix}{name}.")


def _named(module: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    known, layers = dict(module.named_modules()), listed("layers", layers)
    for index, name in enumerate(layers):
        if name not in known or name == "":
            raise InvalidProblemError(f"layers[{index}] = {quoted(name)}: expected the name of a sub-module")
    if not layers or len(set(layers)) < len(layers):
        raise InvalidProblemError(f"layers = {list(layers)}: expected at least one name, and none twice")
    return {name: known[name] for name in layers}


@contextmanager
def _training_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.train()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


# --- the runs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run needs: the module, stand-ins for its weights and inputs, and the sub-modules to watch by name."""

    module: nn.Module
    weights: dict[str, torch.Tensor]
    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor]
    marks: dict[str, nn.Module]

    def __call__(self, visit: Callable[[str, Any], Any]) -> Any:
        """Run the module; what `visit` returns for the output of a watched sub-module takes its place, unless None."""
        hooks = [
            part.register_forward_hook(lambda _, __, output, name=name: visit(name, output))
            for name, part in self.marks.items()
        ]
        try:
            with torch.random.fork_rng(devices=[]):  # both runs make the same random choices; the caller sees none
                torch.manual_seed(0)
                return functional_call(self.module, self.weights, self.args, self.kwargs, tie_weights=False)
        except Exception as error:  # whatever a user's module raises
            raise InvalidProblemError(
                f"{type(self.module).__name__}: does not run on the meta device, where tensors have shapes but no"
                f" values: {in_words(error)}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()


class _FlopMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what `torch.utils.flop_counter` charges for every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution_backward.default:
            self.total += _convolution_backward_flops(*args)
        elif (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _convolution_backward_flops(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *options: Any
) -> int:  # fmt: skip
    """Return as much as the forward pass takes, for each of the gradients of input and weight that is asked for.

    `flop_counter` charges the gradient of the weight of a grouped convolution as if it had one group.
    """
    is_transposed, wanted = options[4], options[7]
    positions = math.prod((x if is_transposed else gradient).shape[2:])
    return 2 * weight.numel() * len(x) * positions * (bool(wanted[0]) + bool(wanted[1]))


@dataclass(frozen=True, slots=True)
class _Boundary:
    """A place that the forward pass came by: the end of a sub-module, or of the whole module."""

    name: str
    output: tuple[GradientEdge, ...]
    output_bytes: int
    forward_flops: int  # up to here
    visit: int  # place in the order of execution
    parts: tuple[str, ...] = ()  # names of the pieces of the layer that ends here


def _record(run: _Run) -> list[_Boundary]:
    """Run the module; return the boundaries in the order of execution, the last one is the module's output."""
    boundaries: list[_Boundary] = []
    meter = _FlopMeter()

    def mark(name: str, output: Any) -> None:
        tensors = _differentiable(output)
        edges = tuple(get_gradient_edge(tensor) for tensor in tensors)
        size = sum(map(_bytes, tensors))
        boundaries.append(_Boundary(name, edges, size, meter.total, len(boundaries)))

    with meter:
        output = run(mark)
    last = boundaries.pop().name if boundaries else type(run.module).__name__
    mark(last, output)  # what follows the last layer belongs to it
    return boundaries


def _run_backward(run: _Run, kept: list[_Boundary]) -> tuple[list[int], list[int]]:
    """Run the module, cut at `kept`; return the bytes of new parameters and the backward FLOPs of every layer."""
    names = {tensor: name for name, tensor in run.weights.items() if tensor.requires_grad}
    cuts = {boundary.visit for boundary in kept[:-1]}
    trained = {run.weights[name] for name, parameter in run.module.named_parameters() if parameter.requires_grad}
    parameter_bytes, backward_flops = list[int](), list[int]()
    charged = set[torch.Tensor]()
    before: list[torch.Tensor] = []
    visits = 0

    def charge(outputs: list[torch.Tensor]) -> None:
        nodes = _ancestors(tuple(get_gradient_edge(tensor) for tensor in outputs), until=None)
        used = [leaf for node in nodes if (leaf := _leaf(node)) is not None and leaf in names]
        needed = not charged.isdisjoint(trained)  # the gradient by what the layers before have returned
        wanted = [*(before if needed else []), *(parameter for parameter in used if parameter in trained)]
        parameter_bytes.append(sum(_bytes(parameter) for parameter in used if parameter not in charged))
        charged.update(used)
        with _FlopMeter() as meter:
            if wanted:
                torch.autograd.grad(outputs, wanted, [torch.empty_like(tensor) for tensor in outputs])
        backward_flops.append(meter.total)

    def cut(_: str, output: Any) -> Any:
        nonlocal before, visits
        visits += 1
        if visits - 1 not in cuts:
            return None
        charge(_differentiable(output))
        before = [tensor.detach().requires_grad_() for tensor in _differentiable(output)]
        start = before[0].clone()  # what comes next may write into it, but not into `before`
        return tree_map(lambda leaf: start if _is_differentiable(leaf) else leaf, output)

    charge(_differentiable(run(cut)))
    if unused := [name for parameter, name in names.items() if parameter not in charged]:
        raise InvalidProblemError(f"{unused[0]}: expected a parameter that the output depends on")
    return parameter_bytes, backward_flops


def _run_training(run: _Run, kept: list[_Boundary]) -> list[int]:
    """Run the module as in training; return the bytes that autograd keeps up to each of the boundaries."""
    trained = {run.weights[name] for name, parameter in run.module.named_parameters() if parameter.requires_grad}
    inputs = (*run.args, *run.kwargs.values())
    fixed = [tensor for tensor in (*inputs, *run.weights.values()) if tensor.requires_grad and tensor not in trained]
    memory = KeptMemory(run.weights.values())
    found = list[int]()
    with _without_gradients(fixed), memory.counting():
        run(lambda *_: found.append(memory.bytes))
    found.append(memory.bytes)  # what follows the last layer belongs to it
    return [*(found[boundary.visit] for boundary in kept[:-1]), found[-1]]


@contextmanager
def _without_gradients(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    for tensor in tensors:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_()


def _differentiable(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(output) if _is_differentiable(leaf)]


def _is_differentiable(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


def _bytes(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


# --- where the module can be cut ---------------------------------------------------------------------------------


def _valid_cuts(boundaries: list[_Boundary], inputs: set[Node], *, explicit: bool) -> list[_Boundary]:
    """Return the boundaries that one tensor crosses: nothing computed before is used after, save through it."""
    names = [boundary.name for boundary in boundaries]
    kept, parts = list[_Boundary](), list[str]()
    for boundary in boundaries:
        name = boundary.name
        parts.append(name)
        if explicit and names.count(name) > 1:
            raise InvalidProblemError(f"layers: {quoted(name)} runs {names.count(name)} times, expected once")
        if boundary is boundaries[-1] or _is_cut(boundary, boundaries[-1].output, inputs):
            kept.append(replace(boundary, parts=tuple(parts)))
            parts = []
        elif explicit:
            raise InvalidProblemError(
                f"layers: no cut after {name!r}: expected an output that is one tensor, through which alone later"
                " layers depend on earlier ones"
            )
    return kept


def _is_cut(boundary: _Boundary, outputs: tuple[GradientEdge, ...], inputs: set[Node]) -> bool:
    if len(boundary.output) != 1:
        return False
    edge = boundary.output[0]
    latest = _step(edge.node)
    return not any(node in inputs or 0 <= _step(node) <= latest for node in _ancestors(outputs, until=edge))


def _step(node: Node) -> int:
    """Return autograd's sequence number: larger for later operations; -1 for parameters and inputs."""
    return -1 if _leaf(node) is not None else node._sequence_nr()


def _leaf(node: Node) -> torch.Tensor | None:
    """Return the parameter or input that a node of the graph stands for, None for an operation."""
    return getattr(node, "variable", None) if node.name().endswith("AccumulateGrad") else None


def _ancestors(outputs: tuple[GradientEdge, ...], until: GradientEdge | None) -> Iterator[Node]:
    """Yield every node of the graph that `outputs` depend on, not going through the edge `until`."""
    stop = None if until is None else (until.node, until.output_nr)
    pending = [(edge.node, edge.output_nr) for edge in outputs]
    seen = set[Node]()
    while pending:
        node, output_nr = pending.pop()
        if (node, output_nr) != stop and node not in seen:
            seen.add(node)
            yield node
            pending.extend((above, nr) for above, nr in node.next_functions if above is not None)


def _layer_names(parts: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Name each layer: its only piece; else the module all its pieces lie in, or its first and last piece."""
    names: list[str] = []
    for pieces in parts:
        split = [piece.split(".") for piece in dict.fromkeys(pieces)]
        common = split[0]
        for words in split[1:]:
            common = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(common, words, strict=False))]
        name = ".".join(common) or f"{pieces[0]}..{pieces[-1]}"
        repeats = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.append(f"{name}#{repeats + 1}" if repeats else name)
    return tuple(names)
