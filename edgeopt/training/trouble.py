"""What goes wrong inside a model, told in one line: which layer, what it was given, what it expected, and where."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from torch import nn

from edgeopt.errors import EdgeOptError, InvalidProblemError

_AXES = ("", ", L", ", H, W", ", D, H, W")  # by the number of axes that a layer slides over
_MOST_WORDS = 300


class TrainingError(EdgeOptError):
    """Training cannot go on; the message names round and client."""


class Failure(NamedTuple):
    """The innermost layer in which an error was raised, its name, and what it was given."""

    name: str
    layer: nn.Module
    given: torch.Tensor | None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory has run out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # of the CPU


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Say where an error inside was raised: in the model, the loss or the algorithm.

    Errors of others become `TrainingError`, ours keep their type and get `where` before their message, unless they name
    the round already. Running out of memory is left as it is, for whoever can run less at once.
    """
    try:
        yield
    except StopIteration:  # the end of a conversation
        raise
    except EdgeOptError as error:
        if str(error).startswith("round "):
            raise
        raise type(error)(f"{where}, {error}" if str(error).startswith("client ") else f"{where}: {error}") from error
    except Exception as error:  # whatever a user's module or loss raises
        if is_out_of_memory(error):
            error.add_note(where)
            raise
        raise TrainingError(f"{where}: {in_words(error)}") from error


def in_words(error: Exception) -> str:
    """Return in one line what went wrong; where a layer was given something that does not fit it, in our words."""
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}"
    text = text if len(text) <= _MOST_WORDS else f"{text[: _MOST_WORDS - 3]}..."
    if (failure := _failure(error)) is None:
        return text
    name, layer, given = failure
    what = f"layer {name!r} ({type(layer).__name__})"
    if given is None:
        return f"{what}: {text}"
    got = f"{what} got {list(given.shape)} {str(given.dtype).removeprefix('torch.')}"
    expected = _expected(layer, given)
    return f"{got}: {text}" if expected is None else f"{got}: expected {expected}"


def check_weights(model: nn.Module) -> None:
    """Refuse weights without a shape, as lazy layers have them before they have seen a sample."""
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(value):
            where, _, own = name.rpartition(".")
            kind = type(model.get_submodule(where)).__name__
            raise InvalidProblemError(
                f"model: layer {where!r} ({kind}) has no shape of {own} yet: expected weights; run the model once on a "
                "sample first"
            )


def _failure(error: Exception) -> Failure | None:
    """Return the innermost layer that the error came through, named as in the outermost."""
    layers: list[tuple[nn.Module, torch.Tensor | None]] = []
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "_call_impl" and isinstance(layer := frame.f_locals.get("self"), nn.Module):
            given = frame.f_locals.get("args", ())
            layers.append((layer, next((x for x in given if isinstance(x, torch.Tensor)), None)))
        trace = trace.tb_next
    if len(layers) < 2:
        return None
    (outermost, _), (layer, given) = layers[0], layers[-1]
    name = next((name for name, part in outermost.named_modules() if part is layer), "")
    return Failure(name, layer, given)


def _expected(layer: nn.Module, given: torch.Tensor) -> str | None:
    """Return what a layer of torch expects in place of what it was given; None if that is not what went wrong."""
    if isinstance(layer, nn.Embedding):
        return _expected_ids(layer, given)
    weight = next((value for value in layer.parameters(recurse=False) if value.is_floating_point()), None)
    if isinstance(layer, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm):
        if (expected := _expected_channels(layer, given)) is not None:
            return expected
    elif isinstance(layer, nn.Linear) and given.shape[-1:] != (layer.in_features,):
        return f"{layer.in_features} features in the last axis"
    elif isinstance(layer, nn.LayerNorm) and given.shape[-len(layer.normalized_shape) :] != layer.normalized_shape:
        return f"{list(layer.normalized_shape)} in the last axes"
    if weight is not None and given.dtype != weight.dtype:
        return f"{str(weight.dtype).removeprefix('torch.')} as its weights"
    return None


def _expected_channels(layer: nn.Module, given: torch.Tensor) -> str | None:
    ranks: tuple[int, ...]
    if isinstance(layer, nn.modules.conv._ConvNd):
        channels, ranks = layer.in_channels, (len(layer.kernel_size) + 2,)
    else:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        channels = layer.num_features
        ranks = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}.get(type(layer), (given.ndim,))
    if given.ndim in ranks and given.shape[1] == channels:
        alone = isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and given.numel() == channels
        return "more than one value per channel: a mini-batch of at least 2 samples" if alone else None
    expected = " or ".join(f"[B, {channels}{_AXES[rank - 2]}]" for rank in ranks if 0 <= rank - 2 < len(_AXES))
    if given.ndim in ranks and given.ndim > 2 and given.shape[-1] == channels:
        expected += "; its channels are last: move them with inputs.movedim(-1, 1)"
    elif given.ndim + 1 in ranks and channels == 1 and given.ndim > 2:
        expected += "; it has no axis of channels: add one with inputs.unsqueeze(1)"
    return expected


def _expected_ids(layer: nn.Embedding, given: torch.Tensor) -> str | None:
    if given.is_floating_point():
        return f"token ids from 0 to {layer.num_embeddings - 1} in int64"
    if given.is_meta or not given.numel():
        return None
    low, high = (int(end) for end in torch.aminmax(given))
    if low >= 0 and high < layer.num_embeddings:
        return None
    return f"token ids from 0 to {layer.num_embeddings - 1}, found {low if low < 0 else high}"


def described(value: object) -> str:
    """Return in words what was given in place of something else."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
