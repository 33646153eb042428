"""Models that fit a data set: small ones by name, for training on many clients."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.cnn import small_cnn
from edgeopt.models.decoder import gpt2
from edgeopt.models.mlp import mlp
from edgeopt.models.moe import moe_decoder
from edgeopt.models.resnet import BasicBlock, resnet
from edgeopt.models.vgg import vgg
from edgeopt.validate import integer, listed, seed_number

SMALL_MODELS: tuple[str, ...] = ("mlp", "small-cnn", "small-resnet", "small-vgg", "decoder", "moe")
"""Names that `model_for` knows."""

MAX_WIDTH = 1 << 15
MAX_WEIGHTS = 1 << 28
"""Weights of a model, in float32 a gigabyte."""
_WIDTH = {"mlp": 64, "small-cnn": 16, "small-resnet": 64, "small-vgg": 64, "decoder": 64, "moe": 64}
_DECODERS = ("decoder", "moe")
_VGG16 = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels of the convolutions over those of the first
_HEADS = 4


def model_for(
    name: str, *, num_classes: int, input_shape: Sequence[int], width: int | None = None, seed: int = 0
) -> nn.Sequential:
    """Return a model for samples of a shape, with random weights and without dropout.

    Parameters
    ----------
    name : one of `SMALL_MODELS`. ``small-resnet`` and ``small-vgg`` are ResNet-18 and VGG-16 for small images, of any width; ``decoder`` and ``moe``
        are language models of two blocks.
    num_classes : size of the output; for language models the size of the vocabulary.
    input_shape : shape of a sample: (channels, height, width) of images, (T,) of sequences of token ids; any for
        ``mlp``.
    width : channels of the hidden layer (``mlp``), after the first convolution, or of a token (then a multiple of 4).
        Default: 64, and 16 for ``small-cnn``.
    seed : the same seed gives the same weights; the global random state stays as it is.

    Raises
    ------
    InvalidProblemError
        If there is no model of this name, or it does not fit the shape.

    Examples
    --------
    >>> model = model_for("small-cnn", num_classes=10, input_shape=(1, 8, 8))
    >>> sum(parameter.numel() for parameter in model.parameters())
    6090
    """
    if name not in SMALL_MODELS:
        raise InvalidProblemError(f"no model {name!r}: expected one of {', '.join(SMALL_MODELS)}")
    sizes = listed("input_shape", input_shape, single=(int, np.integer))
    shape = tuple(integer(f"input_shape[{i}]", size) for i, size in enumerate(sizes))
    width, num_classes = integer("width", _WIDTH[name] if width is None else width), integer("num_classes", num_classes)
    _check(name, shape, width, num_classes)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # what it will take, before it takes it
        weights = sum(parameter.numel() for parameter in _build(name, num_classes, shape, width).parameters())
    if weights > MAX_WEIGHTS:
        raise InvalidProblemError(
            f"width = {width}: {name} would have {weights} weights, expected at most {MAX_WEIGHTS}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_number("seed", seed))
        return _build(name, num_classes, shape, width)


def _check(name: str, shape: tuple[int, ...], width: int, num_classes: int) -> None:
    if not shape or min(shape) < 1:
        raise InvalidProblemError(f"input_shape = {shape}: expected positive sizes")
    if width > MAX_WIDTH:
        raise InvalidProblemError(f"width = {quoted(width)}: expected at most {MAX_WIDTH} channels")
    if width < 1 or (name in _DECODERS and width % _HEADS):
        multiple = f", a multiple of {_HEADS}" if name in _DECODERS else ""
        raise InvalidProblemError(f"width = {width}: expected a positive number of channels{multiple}")
    if num_classes < 1:
        raise InvalidProblemError(f"num_classes = {num_classes}: expected at least 1")
    if name in _DECODERS and len(shape) != 1:
        raise InvalidProblemError(f"input_shape = {shape}: {name} takes sequences, expected (length,)")
    if name in ("small-cnn", "small-resnet", "small-vgg") and (len(shape) != 3 or shape[1] != shape[2]):
        raise InvalidProblemError(f"input_shape = {shape}: {name} takes square images, expected (channels, size, size)")
    if name == "small-vgg" and shape[1] < 32:
        raise InvalidProblemError(
            f"input_shape = {shape}: small-vgg halves images five times, expected at least 32 x 32"
        )


def _build(name: str, num_classes: int, shape: tuple[int, ...], width: int) -> nn.Sequential:
    if name == "mlp":
        return mlp(shape, (width,), num_classes)
    if name == "decoder":
        return gpt2(
            vocabulary=num_classes, context=shape[0], width=width, depth=2, heads=_HEADS, tied=False, fused=False
        )
    if name == "moe":
        return moe_decoder(vocabulary=num_classes, context=shape[0], width=width, heads=_HEADS, hidden=2 * width)
    channels, size, _ = shape
    if name == "small-cnn":
        return small_cnn(in_channels=channels, image_size=size, channels=(width, 2 * width), num_classes=num_classes)
    if name == "small-resnet":
        return resnet(
            BasicBlock, (2, 2, 2, 2), width=width, num_classes=num_classes, in_channels=channels, small_images=True
        )
    stages = [[width * factor for factor in stage] for stage in _VGG16]
    model = vgg(stages, hidden=8 * width, num_classes=num_classes, in_channels=channels, small_images=True)
    for part in model.modules():  # dropout would draw from the global random state
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model
