"""Networks in files: ``.safetensors`` with a header that says how to build one, and floating-point arrays of exactly its names and shapes."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.errors import InvalidFileError
from edgeopt.fields import Fields, in_file
from edgeopt.npz import Form
from edgeopt.storage import Arrays, Layout
from edgeopt.tensors import Shapes, load_tensors, save_tensors

Built = TypeVar("Built")


def save_weights(
    path: str | os.PathLike[str],
    header: dict[str, Any],
    network: nn.Module,
    others: Arrays | None = None,
    *,
    half: bool = False,
) -> None:
    """Write the weights of a network, in 16 bits if `half`, and other arrays beside them, atomically.

    Parameters
    ----------
    header : plain values, among them ``kind`` and ``schema_version``, and what `load_weights` builds the network from.
    """
    arrays: Arrays = {name: value.numpy(force=True) for name, value in network.state_dict().items()}
    if half:
        arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    save_tensors(path, header, arrays | (others or {}))


def load_weights(
    path: str | os.PathLike[str],
    kind: str,
    schema_version: int,
    build: Callable[[Fields], Built],
    network_of: Callable[[Built], nn.Module] | None = None,
    others: Layout | None = None,
) -> tuple[Built, Arrays]:
    """Read what `save_weights` wrote: what was built, without any gradient of weights, and the other arrays.

    Parameters
    ----------
    build : makes what has the network from the header. It is first called without memory for weights, to compare shapes: a header of
        a few bytes may ask for any size.
    network_of : of what was built; default: that is the network.
    others : forms of the other arrays.

    Raises
    ------
    InvalidFileError
        If it is no such file, damaged, of another network, or has numbers that are not finite.
    """
    others = others or {}

    def built(header: dict[str, Any]) -> tuple[Built, nn.Module]:
        found: Any = build(Fields(header))
        return found, found if network_of is None else network_of(found)

    def layout(header: dict[str, Any], shapes: Shapes) -> Layout:
        Fields(header).expect("schema_version", schema_version)
        with torch.device("meta"):
            _, network = built(header)
        return {**layout_of(network.state_dict(), shapes), **others}

    header, arrays = load_tensors(path, kind, layout)
    with np.errstate(over="ignore"):  # what is infinite in the precision of networks is refused
        arrays = {name: array if name in others else array.astype(np.float32) for name, array in arrays.items()}
    with in_file(path):
        if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise InvalidFileError(f"{wrong[0]}: expected finite numbers")
        if lost := [name for name in others if name not in arrays]:
            raise InvalidFileError(f"{lost[0]}: array is missing")
        found, network = built(header)
    network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in network.state_dict()})
    network.requires_grad_(False)
    return found, {name: arrays[name] for name in others}


def layout_of(weights: Mapping[str, Tensor], shapes: Shapes) -> Layout:
    """Return the forms of weights; refuse files that lack one, or have it in another shape.

    Parameters
    ----------
    weights : by name.
    shapes : of the arrays of the file, by name.
    """
    for name, value in weights.items():
        if name not in shapes:
            raise InvalidFileError(f"{name}: array is missing")
        if shapes[name] != tuple(value.shape):
            raise InvalidFileError(f"{name}: expected shape {list(value.shape)}, got {list(shapes[name])}")
    return {name: Form("f") for name in weights}
