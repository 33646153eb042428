"""States as flat arrays and back, typed: one way for checkpoints and for messages of Flower."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import torch
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.fields import Fields
from edgeopt.storage import Arrays
from edgeopt.training.messages import State

Tree = dict[str, "str | Tree"]
"""Names of a state in their order, with the types of the tensors at the leaves."""


def flatten(state: State, prefix: str = "") -> tuple[Arrays, Tree]:
    """Return the tensors of a nested state by path, and its tree.

    The tree keeps the order of the names, which a file does not. NumPy has no bfloat16: its bits are kept as int16.
    """
    arrays: Arrays = {}
    tree: Tree = {}
    for name, value in state.items():
        path = f"{prefix}{quote(name, safe='.')}"
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu()
            tree[name] = str(plain.dtype).removeprefix("torch.")
            arrays[path] = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
        else:
            below, tree[name] = flatten(value, f"{path}/")
            arrays |= below
    return arrays, tree


def unflatten(arrays: Mapping[str, NDArray[Any]], tree: Fields, device: str = "cpu", prefix: str = "") -> State:
    """Return the state that `flatten` was given, bit for bit.

    Raises
    ------
    InvalidFileError
        If an array is missing or of another type.
    """
    state: State = {}
    for name in tree:
        path = f"{prefix}{quote(name, safe='.')}"
        if not isinstance(tree.value(name), str):
            state[name] = unflatten(arrays, tree.table(name), device, f"{path}/")
        elif path not in arrays:
            raise InvalidFileError(f"{path}: array is missing")
        else:
            kind, array = tree.text(name), arrays[path]
            if str(array.dtype) != ("int16" if kind == "bfloat16" else kind):
                raise InvalidFileError(f"{path}: {array.dtype}, expected {quoted(kind)}")
            tensor = torch.tensor(array)
            state[name] = (tensor.view(torch.bfloat16) if kind == "bfloat16" else tensor).to(device)
    return state
