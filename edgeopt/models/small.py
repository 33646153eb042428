"""Models that fit a data set: small ones by name, for training on many clients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.cnn import small_cnn
from edgeopt.models.decoder import gpt2
from edgeopt.models.mlp import mlp
from edgeopt.models.moe import moe_decoder, moe_mlp
from edgeopt.models.resnet import BasicBlock, resnet
from edgeopt.models.vgg import vgg
from edgeopt.validate import by_name, integer, listed, seed_number

MAX_WIDTH = 1 << 15
MAX_WEIGHTS = 1 << 28
"""Weights of a model, in float32 a gigabyte."""
_VGG16 = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels of the convolutions over those of the first
_HEADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModel:
    """What a model needs to be made for a data set.

    Parameters
    ----------
    build : called with the size of the output, the shape of a sample, and the width.
    takes : what a sample is.
    width : default.
    width_multiple : of what the width must be a multiple.
    least_size : height and width of an image, at least.
    """

    build: Callable[[int, tuple[int, ...], int], nn.Sequential]
    takes: Literal["anything", "square images", "sequences"] = "anything"
    width: int = 64
    width_multiple: int = 1
    least_size: int = 1

    def check(self, name: str, shape: tuple[int, ...], width: int) -> None:
        """Refuse a shape of samples or a width that the model cannot have."""
        if width < 1 or width % self.width_multiple:
            multiple = f", a multiple of {self.width_multiple}" if self.width_multiple > 1 else ""
            raise InvalidProblemError(f"width = {width}: expected a positive number of channels{multiple}")
        if self.takes == "sequences" and len(shape) != 1:
            raise InvalidProblemError(f"input_shape = {shape}: {name} takes sequences, expected (length,)")
        if self.takes == "square images" and (len(shape) != 3 or shape[1] != shape[2]):
            raise InvalidProblemError(
                f"input_shape = {shape}: {name} takes square images, expected (channels, size, size)"
            )
        if self.takes == "square images" and shape[1] < self.least_size:
            least = f"expected at least {self.least_size} x {self.least_size}"
            raise InvalidProblemError(f"input_shape = {shape}: {name} makes images smaller step by step, {least}")


def _cnn(num_classes: int, shape: tuple[int, ...], width: int) -> nn.Sequential:
    return small_cnn(in_channels=shape[0], image_size=shape[1], channels=(width, 2 * width), num_classes=num_classes)


def _small_resnet(num_classes: int, shape: tuple[int, ...], width: int) -> nn.Sequential:
    return resnet(
        BasicBlock, (2, 2, 2, 2), width=width, num_classes=num_classes, in_channels=shape[0], small_images=True
    )


def _small_vgg(num_classes: int, shape: tuple[int, ...], width: int) -> nn.Sequential:
    stages = [[width * factor for factor in stage] for stage in _VGG16]
    model = vgg(stages, hidden=8 * width, num_classes=num_classes, in_channels=shape[0], small_images=True)
    for part in model.modules():  # dropout would draw from the global random state
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def _decoder(num_classes: int, shape: tuple[int, ...], width: int) -> nn.Sequential:
    return gpt2(vocabulary=num_classes, context=shape[0], width=width, depth=2, heads=_HEADS, tied=False, fused=False)


def _moe(num_classes: int, shape: tuple[int, ...], width: int) -> nn.Sequential:
    return moe_decoder(vocabulary=num_classes, context=shape[0], width=width, heads=_HEADS, hidden=2 * width)


def _moe_mlp(num_classes: int, shape: tuple[int, ...], width: int) -> nn.Sequential:
    return moe_mlp(shape, num_classes, width=width, hidden=width)


SMALL_MODELS: dict[str, SmallModel] = {
    "mlp": SmallModel(build=lambda num_classes, shape, width: mlp(shape, (width,), num_classes)),
    "small-cnn": SmallModel(build=_cnn, takes="square images", width=16),
    "small-resnet": SmallModel(build=_small_resnet, takes="square images"),
    "small-vgg": SmallModel(build=_small_vgg, takes="square images", least_size=32),
    "decoder": SmallModel(build=_decoder, takes="sequences", width_multiple=_HEADS),
    "moe": SmallModel(build=_moe, takes="sequences", width_multiple=_HEADS),
    "moe-mlp": SmallModel(build=_moe_mlp, width=32),
}
"""The models that `model_for` makes, by name; a new one is on the command line at once."""


def model_for(
    name: str, *, num_classes: int, input_shape: Sequence[int], width: int | None = None, seed: int = 0
) -> nn.Sequential:
    """Return a model for samples of a shape, with random weights and without dropout.

    Parameters
    ----------
    name : one of `SMALL_MODELS`. ``small-resnet`` and ``small-vgg`` are ResNet-18 and VGG-16 for small images, of any width; ``decoder`` and ``moe``
        are language models of two blocks; ``moe-mlp`` is a perceptron with a mixture of experts in its middle.
    num_classes : size of the output; for language models the size of the vocabulary.
    input_shape : shape of a sample: (channels, height, width) of images, (T,) of sequences of token ids; any for
        ``mlp`` and ``moe-mlp``.
    width : channels of the hidden layers (``mlp``, ``moe-mlp``), after the first convolution, or of a token (then a multiple
        of 4). Default: 64, 32 for ``moe-mlp``, and 16 for ``small-cnn``.
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
    kind = by_name("model", name, SMALL_MODELS)
    sizes = listed("input_shape", input_shape, single=(int, np.integer))
    shape = tuple(integer(f"input_shape[{i}]", size) for i, size in enumerate(sizes))
    width, num_classes = integer("width", kind.width if width is None else width), integer("num_classes", num_classes)
    if not shape or min(shape) < 1:
        raise InvalidProblemError(f"input_shape = {shape}: expected positive sizes")
    if width > MAX_WIDTH:
        raise InvalidProblemError(f"width = {quoted(width)}: expected at most {MAX_WIDTH} channels")
    if num_classes < 1:
        raise InvalidProblemError(f"num_classes = {num_classes}: expected at least 1")
    kind.check(name, shape, width)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # what it will take, before it takes it
        weights = sum(parameter.numel() for parameter in kind.build(num_classes, shape, width).parameters())
    if weights > MAX_WEIGHTS:
        raise InvalidProblemError(
            f"width = {width}: {name} would have {weights} weights, expected at most {MAX_WEIGHTS}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_number("seed", seed))
        return kind.build(num_classes, shape, width)
