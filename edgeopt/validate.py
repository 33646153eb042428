"""Checks shared by all problems: arrays come out as read-only copies, errors name field, index, value and expectation."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from edgeopt.errors import InvalidProblemError

Shape = tuple[int | None, ...]


def float_array(
    name: str,
    value: ArrayLike | None,
    shape: Shape,
    *,
    positive: bool = False,
    nonnegative: bool = False,
    unit: str = "",
) -> NDArray[np.float64]:
    """Return a read-only float64 copy of `value` with the given shape; scalars broadcast where the shape is known.

    Parameters
    ----------
    name : field name for messages.
    value : anything numpy turns into numbers.
    shape : expected shape, None for any length.
    positive, nonnegative : required sign; entries are always finite.
    unit : unit for messages.

    Raises
    ------
    InvalidProblemError
        Naming the first offending entry.

    Examples
    --------
    >>> float_array("rate", [1, 2], (2,), positive=True, unit="bit/s")
    array([1., 2.])
    >>> float_array("rate", [1, -2], (2,), positive=True, unit="bit/s")
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: rate[1] = -2.0: expected a positive number (bit/s)
    """
    array = _shaped(name, value, shape, np.float64)
    wrong = ~np.isfinite(array)
    if positive:
        wrong |= array <= 0
    elif nonnegative:
        wrong |= array < 0
    sign = "positive" if positive else "non-negative" if nonnegative else "finite"
    _refuse(name, array, wrong, f"a {sign} number" + (f" ({unit})" if unit else ""))
    return _frozen(array)


def int_array(
    name: str,
    value: ArrayLike | None,
    shape: Shape,
    *,
    low: int | None = None,
    high: int | None = None,
    dtype: DTypeLike = np.int32,
) -> NDArray[Any]:
    """Return a read-only integer copy of `value`; entries must be whole numbers from `low` to `high`.

    Examples
    --------
    >>> int_array("server", [0, 7], (2,), low=0, high=3)
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: server[1] = 7: expected an integer from 0 to 3
    """
    given = np.asarray(value)
    if given.size and given.dtype.kind not in "iu":
        as_float = _shaped(name, value, shape, np.float64)
        _refuse(name, as_float, as_float != np.floor(as_float), "an integer")
    array = _shaped(name, value, shape, np.int64)
    limits = np.iinfo(np.dtype(dtype))
    low = int(limits.min) if low is None else low
    high = int(limits.max) if high is None else high
    bounds = f"from {low} to {high}" if high < limits.max else f">= {low}"
    _refuse(name, array, (array < low) | (array > high), f"an integer {bounds}")
    return _frozen(array.astype(dtype))


def bool_array(name: str, value: ArrayLike, shape: Shape) -> NDArray[np.bool_]:
    """Return a read-only bool copy of `value`.

    Examples
    --------
    >>> bool_array("coverage", [[True, False]], (1, 2))
    array([[ True, False]])
    """
    if (given := np.asarray(value)).dtype != np.bool_:
        raise InvalidProblemError(f"{name}: expected booleans, got {given.dtype}")
    return _frozen(_shaped(name, value, shape, np.bool_))


def _shaped(name: str, value: ArrayLike | None, shape: Shape, dtype: DTypeLike) -> NDArray[Any]:
    try:
        array = np.array(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidProblemError(f"{name}: expected an array of numbers: {error}") from None
    if array.ndim == 0 and None not in shape:
        array = np.full(shape, array)  # type: ignore[arg-type]
    fits = array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise InvalidProblemError(f"{name}: expected shape [{wanted}], got {list(array.shape)}")
    return array


def _refuse(name: str, array: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        index = np.unravel_index(int(wrong.argmax()), array.shape)
        where = f"[{', '.join(str(i) for i in index)}]" if index else ""
        raise InvalidProblemError(f"{name}{where} = {array[index].item()!r}: expected {expected}")


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array
