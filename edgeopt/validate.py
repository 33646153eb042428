"""Checks shared by all problems: arrays come out as read-only copies, errors name field, index, value and expectation."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from edgeopt.errors import InvalidProblemError

Shape = tuple[int | None, ...]

LEAST, MOST = 1e-50, 1e50
"""Range of the numbers of a problem, see `float_array`: products and quotients of six of them are normal numbers."""


def float_array(
    name: str,
    value: ArrayLike | None,
    shape: Shape,
    *,
    positive: bool = False,
    nonnegative: bool = False,
    finite: bool = True,
    ranged: bool = False,
    unit: str = "",
) -> NDArray[np.float64]:
    """Return a read-only float64 copy of `value` with the given shape; scalars broadcast where the shape is known.

    Parameters
    ----------
    name : field name for messages.
    value : anything numpy turns into numbers.
    shape : expected shape, None for any length.
    positive, nonnegative : required sign.
    finite : refuse infinities too. NaN is always refused.
    ranged : refuse magnitudes below `LEAST` and above `MOST` too, but for 0 and infinity.
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
    wrong = ~np.isfinite(array) if finite else np.isnan(array)
    if positive:
        wrong |= array <= 0
    elif nonnegative:
        wrong |= array < 0
    sign = "positive " if positive else "non-negative " if nonnegative else "finite " if finite else ""
    ending = (f" ({unit})" if unit else "") + ("" if finite else " or inf")
    _refuse(name, array, wrong, f"a {sign}number{ending}")
    if ranged:
        size = np.abs(array)
        wrong = ((size < LEAST) & (size > 0)) | ((size > MOST) & (size < np.inf))
        zero = "" if positive else "0 or "
        _refuse(name, array, wrong, f"{zero}a magnitude from {LEAST:g} to {MOST:g}{ending}")
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
    limits = np.iinfo(np.dtype(dtype))
    least, most = int(limits.min) if low is None else low, int(limits.max) if high is None else high
    if high is None:
        expected = "an integer" + ("" if low is None else f" >= {low}")
    else:
        expected = f"an integer <= {high}" if low is None else f"an integer from {low} to {high}"
    array = _shaped(name, value, shape, None)
    if array.dtype.kind != "i":  # 2.0 is a whole number, 2.5 and 1e300 are not
        as_float = array.astype(np.float64)
        _refuse(name, array, (as_float != np.floor(as_float)) | (np.abs(as_float) >= 2.0**63), expected)
    array = array.astype(np.int64)
    outside = (array < limits.min) | (array > limits.max)  # by the type alone: then its ends are what to expect
    _refuse(name, array, outside, f"an integer from {least} to {most}")
    _refuse(name, array, (array < least) | (array > most), expected)
    return _frozen(array.astype(dtype))


def bool_array(name: str, value: ArrayLike | None, shape: Shape) -> NDArray[np.bool_]:
    """Return a read-only bool copy of `value`; numbers are not taken for truth values.

    Examples
    --------
    >>> bool_array("coverage", [[True, False]], (1, 2))
    array([[ True, False]])
    """
    array = _shaped(name, value, shape, None)
    if array.dtype != np.bool_ and array.size:
        raise InvalidProblemError(f"{name}: expected booleans, got {array.dtype}")
    return _frozen(array.astype(np.bool_))


def _shaped(name: str, value: ArrayLike | None, shape: Shape, dtype: DTypeLike | None) -> NDArray[Any]:
    """Return a C-contiguous copy of `value`, broadcast if it is a scalar, checked to be numeric and of `shape`."""
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "biuf":  # text, complex, objects: numpy would read or drop parts of them
            raise TypeError(f"got {'nothing' if value is None else given.dtype}")
        array = np.array(given, dtype, order="C")
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
    array.flags.writeable = False
    return array
