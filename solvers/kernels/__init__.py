"""Numba kernels: arrays in, arrays out; and the checks that their Python wrappers share."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def float_vector(name: str, data: ArrayLike) -> Floats:
    """Return `data` as a contiguous float64 vector, without a copy where it is one already.

    Read-only data are copied: numba would compile every kernel a second time for them.

    Raises
    ------
    InvalidProblemError
        If `data` is not one-dimensional or not made of real numbers.

    Examples
    --------
    >>> float_vector("values", [1, 2])
    array([1., 2.])
    """
    array = _vector(name, data)
    if array.size and array.dtype.kind not in "fiu":
        raise InvalidProblemError(f"{name}: got dtype {array.dtype}, expected real numbers")
    return np.require(array, np.float64, ["C", "W"])


def int_vector(name: str, data: ArrayLike) -> Ints:
    """Return `data` as a contiguous int64 vector, without a copy where it is one already.

    Read-only data are copied: numba would compile every kernel a second time for them.

    Raises
    ------
    InvalidProblemError
        If `data` is not one-dimensional or not made of integers.

    Examples
    --------
    >>> int_vector("weights", [1, 2])
    array([1, 2])
    """
    array = _vector(name, data)
    if array.size and array.dtype.kind not in "iu":
        raise InvalidProblemError(f"{name}: got dtype {array.dtype}, expected integers; round to units first")
    return np.require(array, np.int64, ["C", "W"])


def require(name: str, array: NDArray[Any], valid: Bools, expected: str) -> None:
    """Raise `InvalidProblemError` naming the first entry of `array` that is not `valid`.

    Examples
    --------
    >>> data = float_vector("values", [1, -2])
    >>> require("values", data, data >= 0, "a value >= 0")
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: values[1] = -2.0, expected a value >= 0
    """
    if not valid.all():
        index = int(np.argmin(valid))
        raise InvalidProblemError(f"{name}[{index}] = {array[index]}, expected {expected}")


def _vector(name: str, data: ArrayLike) -> NDArray[Any]:
    array = np.asarray(data)
    if array.ndim != 1:
        raise InvalidProblemError(f"{name}: got {array.ndim} dimensions, expected 1")
    return array
