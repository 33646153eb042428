"""Checks shared by all problems: arrays come out as read-only copies, errors name field, index, value and expectation."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.foreign import as_array, at

Shape = tuple[int | None, ...]
T = TypeVar("T")

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
    value : numbers in anything that `edgeopt.foreign.as_array` reads.
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
    sign = "positive " if positive else "non-negative " if nonnegative else "finite " if finite else ""
    expected = f"a {sign}number" + (f" ({unit})" if unit else "") + ("" if finite else " or inf")
    array = np.array(_number_array(name, value, shape, expected), np.float64, order="C")
    wrong = ~np.isfinite(array) if finite else np.isnan(array)
    if positive:
        wrong |= array <= 0
    elif nonnegative:
        wrong |= array < 0
    _refuse(name, array, wrong, expected)
    if ranged:
        size = np.abs(array)
        wrong = ((size < LEAST) & (size > 0)) | ((size > MOST) & (size < np.inf))
        magnitude = f"{'' if positive else '0 or '}a magnitude from {LEAST:g} to {MOST:g}"
        _refuse(name, array, wrong, magnitude + expected.partition("number")[2])
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
    array = _number_array(name, value, shape, expected)
    if array.dtype.kind != "i":  # 2.0 is a whole number, 2.5 and 1e300 are not
        as_float = array.astype(np.float64)
        _refuse(name, array, (as_float != np.floor(as_float)) | (np.abs(as_float) >= 2.0**63), expected)
    array = array.astype(np.int64)
    outside = (array < limits.min) | (array > limits.max)  # by the type alone: then its ends are what to expect
    _refuse(name, array, outside, f"an integer from {least} to {most}")
    _refuse(name, array, (array < least) | (array > most), expected)
    return _frozen(np.array(array, dtype, order="C"))


def bool_array(name: str, value: ArrayLike | None, shape: Shape) -> NDArray[np.bool_]:
    """Return a read-only bool copy of `value`; numbers are not taken for truth values.

    Examples
    --------
    >>> bool_array("coverage", [[True, False]], (1, 2))
    array([[ True, False]])
    """
    array = _shaped(name, as_array(name, value), shape)
    if array.dtype != np.bool_ and array.size:
        raise InvalidProblemError(f"{name}: expected booleans, got {array.dtype}")
    return _frozen(np.array(array, np.bool_, order="C"))


def integer(name: str, value: Any, *, low: int | None = None, high: int | None = None) -> int:
    """Return a whole number from `low` to `high`, of whatever type it is given; a truth value is none.

    Examples
    --------
    >>> integer("rounds", np.int16(5), low=1)
    5
    >>> integer("rounds", "5", low=1)
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: rounds = '5': expected an integer >= 1
    """
    return int(int_array(name, value, (), low=low, high=high, dtype=np.int64))


def real(
    name: str,
    value: Any,
    *,
    positive: bool = False,
    nonnegative: bool = False,
    finite: bool = True,
    unit: str = "",
) -> float:
    """Return one number of the required sign, of whatever type it is given; a truth value is none.

    Examples
    --------
    >>> real("alpha", np.float32(0.5), positive=True)
    0.5
    """
    return float(float_array(name, value, (), positive=positive, nonnegative=nonnegative, finite=finite, unit=unit))


def flag(name: str, value: Any) -> bool:
    """Return a truth value, NumPy's among them; numbers are none.

    Examples
    --------
    >>> flag("aggregate", np.True_)
    True
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InvalidProblemError(f"{name} = {quoted(value)}: expected True or False")


def seed_number(name: str, value: Any, expected: str = "an integer >= 0") -> int:
    """Return a seed, an integer >= 0 of any size and type; a truth value is none."""
    try:
        return value if type(value) is int and value >= 0 else integer(name, value, low=0)
    except InvalidProblemError:
        raise InvalidProblemError(f"{name} = {quoted(value)}: expected {expected}") from None


def by_name(what: str, name: Any, table: Mapping[str, T]) -> T:
    """Return what a table has under a name.

    Parameters
    ----------
    what : what the table has, for messages.

    Raises
    ------
    InvalidProblemError
        If it has nothing under this name; the message lists the names.

    Examples
    --------
    >>> by_name("colour", "red", {"red": 1, "blue": 2})
    1
    >>> by_name("colour", ["red"], {"red": 1, "blue": 2})
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: no colour ['red']: expected one of red, blue
    """
    if not isinstance(name, str) or name not in table:
        raise InvalidProblemError(f"no {what} {quoted(name)}: expected one of {', '.join(table)}")
    return table[name]


def listed(name: str, value: Any, *, single: type | tuple[type, ...] = str) -> list[Any]:
    """Return the items of a list, an array or any other iterable; one item on its own is a list of it.

    Parameters
    ----------
    name : argument name for messages.
    value : what was given.
    single : types of an item. A string is never read letter by letter.

    Examples
    --------
    >>> listed("solvers", "greedy"), listed("seeds", np.arange(2)), listed("seeds", 3, single=int)
    (['greedy'], [np.int64(0), np.int64(1)], [3])
    """
    if isinstance(value, single):
        return [value]
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return list(value)
    except TypeError:  # also of arrays without axes
        raise InvalidProblemError(f"{name} = {quoted(value)}: expected a list") from None


def probabilities(
    name: str, value: Any, shape: Shape, *, tolerance: float, ranged: bool = False
) -> NDArray[np.float64]:
    """Return read-only distributions along the last axis.

    Sums within `tolerance` of 1 are left as they are. Numbers that are exactly those of float32 may miss it by what its
    rounding explains as well, and are then scaled in float64.

    Examples
    --------
    >>> probabilities("start", np.float32([0.1, 0.2, 0.7]), (3,), tolerance=1e-9).sum()
    np.float64(1.0)
    >>> probabilities("start", [0.5, 0.4999], (2,), tolerance=1e-9)
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: start sums to 0.9999: expected probabilities that sum to 1
    """
    array = float_array(name, value, shape, nonnegative=True, ranged=ranged)
    with np.errstate(over="ignore"):  # an infinite sum is not 1 either
        sums = array.sum(axis=-1, keepdims=True)
    off = np.abs(sums - 1) > tolerance
    if not off.any():
        return array
    if (wrong := (np.abs(sums - 1) > max(tolerance, float32_rounding(array, array.shape[-1])))).any():
        index = tuple(int(i) for i in np.argwhere(wrong[..., 0])[0])
        raise InvalidProblemError(
            f"{at(name, index)} {sums_to(sums[..., 0][index])}: expected probabilities that sum to 1"
        )
    return _frozen(np.where(off, array / sums, array))


def float32_rounding(array: NDArray[np.float64], terms: int) -> float:
    """Return by how much a sum of `terms` shares may miss 1 because they were computed in float32; 0 if they were not."""
    with np.errstate(over="ignore"):  # numbers beyond float32 are none of it
        rounded = array.astype(np.float32)
    return terms * float(np.finfo(np.float32).eps) if np.array_equal(rounded, array) else 0.0


def sums_to(total: float) -> str:
    """Return in words what a sum is that should be 1, with as many digits as it takes to see that it is not.

    Examples
    --------
    >>> sums_to(0.1 + 0.2), sums_to(1.00000002980232)
    ('sums to 0.3', 'sums to 1.00000003')
    >>> sums_to(1 + 3e-10)
    'sums to 1.0000000003'
    """
    short = f"{total:.9g}"
    return f"sums to {short if float(short) != 1 else repr(float(total))}"


def _number_array(name: str, value: Any, shape: Shape, expected: str) -> NDArray[Any]:
    """Return an array of numbers; a scalar truth value is none, an array of them counts as zeros and ones."""
    try:
        array = as_array(name, value)
    except InvalidProblemError:
        if shape:
            raise
        raise InvalidProblemError(f"{name} = {quoted(value)}: expected {expected}") from None
    if (array.dtype.kind in "UO" and array.size) or (array.dtype.kind == "b" and array.ndim == 0):
        index = (0,) * array.ndim
        raise InvalidProblemError(f"{at(name, index)} = {quoted(array.ravel()[:1].tolist()[0])}: expected {expected}")
    return _shaped(name, array, shape)


def _shaped(name: str, array: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Return an array that has the shape, or is a scalar and can be broadcast to it."""
    if array.ndim == 0 and None not in shape:
        array = np.full(shape, array)  # type: ignore[arg-type]
    fits = array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise InvalidProblemError(f"{name}: expected shape [{wanted}], got {list(array.shape)}")
    return array


def _refuse(name: str, array: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        index = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), array.shape))
        raise InvalidProblemError(f"{at(name, index)} = {quoted(array[index].item())}: expected {expected}")


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
