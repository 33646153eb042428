"""What a file of a network's weights may hold: floating-point arrays of exactly its names and shapes."""

from collections.abc import Mapping

from torch import Tensor

from edgeopt.errors import InvalidFileError
from edgeopt.npz import Form
from edgeopt.storage import Layout
from edgeopt.tensors import Shapes


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
