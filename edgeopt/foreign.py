"""Values of other packages as plain NumPy arrays: tensors, columns of tables, masked arrays, and lists of any of them."""

import numbers
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError, quoted

_PLAIN = (bool, int, float, str)
_MISSING = ("NoneType", "NAType", "NaTType")  # of pandas, which need not be there


def at(name: str, index: tuple[int, ...]) -> str:
    """Return field and index as one would type them.

    Examples
    --------
    >>> at("request", (3, 0)), at("seed", ())
    ('request[3, 0]', 'seed')
    """
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return booleans, numbers or strings as an array of the machine's byte order, from whatever holds them.

    Strings are an array of Python's, or of NumPy's if they came as such.

    Tensors may be on any device, need gradients, be of a type that NumPy lacks, such as bfloat16, which become float32;
    columns of tables may be nullable; lists may hold any of them. Nothing is guessed: what is missing or masked, rows of
    different lengths, and a mixture of numbers and strings are refused.

    Parameters
    ----------
    name : field name for messages.
    value : the values.

    Raises
    ------
    InvalidProblemError
        Naming the first entry that is none.

    Examples
    --------
    >>> as_array("x", [np.float32(1), 2])
    array([1., 2.])
    >>> as_array("x", np.ma.masked_equal([3, 0], 0))
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: x[1] is masked: expected a value
    >>> as_array("x", [[1, 2], [3]])
    Traceback (most recent call last):
    ...
    edgeopt.errors.InvalidProblemError: x[1]: expected 2 entries as in x[0], got 1
    """
    array = _from_list(name, value) if isinstance(value, list | tuple) else _from_object(name, value)
    if array.dtype.kind in "OT":
        array = _unboxed(name, array.astype(object))
        if array.dtype.kind == "O":
            return array
    if array.dtype.kind == "V" and array.dtype.names is None and array.size:  # bfloat16 and float8 of other packages
        try:
            array = array.astype(np.float32)
        except (TypeError, ValueError):
            raise _no_numbers(name, str(array.dtype)) from None
    if array.dtype.kind not in "biufU":
        raise _no_numbers(name, str(array.dtype))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _from_list(name: str, value: list[Any] | tuple[Any, ...]) -> NDArray[Any]:
    plain = _plain(name, value, ())
    if any(isinstance(item, str) for item in plain):
        return np.array(plain, object)  # NumPy would give each the width of the longest, and make strings of numbers
    try:
        array = np.array(plain)
    except ValueError:
        _refuse_ragged(name, plain, ())
        raise _no_numbers(name, "lists inside each other, more than NumPy takes") from None
    return np.array(plain, object) if array.dtype.kind in "US" else array


def _plain(name: str, value: Any, index: tuple[int, ...]) -> Any:
    """Return nested lists in which everything foreign has become an array, or a plain scalar."""
    if isinstance(value, list | tuple):
        if all(type(item) in _PLAIN for item in value):
            return value
        return [_plain(name, item, (*index, i)) for i, item in enumerate(value)]
    if type(value).__name__ in _MISSING or isinstance(value, (*_PLAIN, np.number, np.bool_)):
        return value
    array = _from_object(at(name, index), value)
    return array if array.ndim or array.dtype.kind == "V" else array.item()


def _from_object(name: str, value: Any) -> NDArray[Any]:
    """Return the array in a single object, which may still be one of objects."""
    if hasattr(value, "as_py"):  # scalars of Arrow
        value = value.as_py()
    torch: Any = sys.modules.get("torch")  # whoever hands in a tensor has it loaded
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_tensor(name, value, torch)
    if isinstance(value, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(value)
        if masked.any():
            index = tuple(int(i) for i in np.argwhere(masked)[0]) if masked.ndim else ()
            raise InvalidProblemError(f"{at(name, index)} is masked: expected a value")
        return np.asarray(value.data)
    if type(value).__name__ in _MISSING:
        raise _no_numbers(name, "nothing")
    if isinstance(value, Mapping | AbstractSet | Iterator):
        raise _no_numbers(name, f"a {type(value).__name__}")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # such as arrays of another device
        raise _no_numbers(name, f"a {type(value).__name__}: {' '.join(str(error).split())}") from None
    if array.dtype.kind == "O" and array.ndim == 0 and not isinstance(array.item(), numbers.Number):
        raise _no_numbers(name, f"a {type(value).__name__}")
    return array


def _from_tensor(name: str, value: Any, torch: Any) -> NDArray[Any]:
    if value.is_meta:
        raise _no_numbers(name, "a tensor on the meta device, which has no values")
    if value.is_nested or value.is_quantized:
        raise _no_numbers(name, f"a {'nested' if value.is_nested else 'quantized'} tensor")
    dense = value if value.layout == torch.strided else value.to_dense()
    if dense.is_floating_point() and dense.dtype not in (torch.float16, torch.float32, torch.float64):
        dense = dense.float()  # bfloat16 and narrower, exactly
    return np.asarray(dense.numpy(force=True))


def _unboxed(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of Python objects as one of booleans, integers or floating-point numbers, or that of strings itself."""
    items = array.ravel().tolist()
    strings = bool(items) and isinstance(items[0], str)
    for i, item in enumerate(items):
        if strings and isinstance(item, str):
            continue
        index = tuple(int(j) for j in np.unravel_index(i, array.shape))
        if type(item).__name__ in _MISSING:
            raise InvalidProblemError(f"{at(name, index)} = {quoted(item)}: expected a value")
        if not isinstance(item, numbers.Real | Decimal | np.bool_) or strings:
            expected = "a string, as before" if strings else "a number"
            raise InvalidProblemError(f"{at(name, index)} = {quoted(item)}: expected {expected}")
    if strings:
        return array
    if all(isinstance(item, bool | np.bool_) for item in items):
        return array.astype(np.bool_)
    if all(isinstance(item, numbers.Integral) for item in items):
        integers = np.array([int(item) for item in items])
        if integers.dtype.kind != "O":
            return integers.reshape(array.shape)
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise _no_numbers(name, "an integer beyond the floating-point numbers") from None


def _refuse_ragged(name: str, value: Any, index: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of nested lists and arrays; refuse the first part whose shape is not that of the first."""
    if not isinstance(value, list | tuple):
        return np.shape(value)
    shapes = [_refuse_ragged(name, item, (*index, i)) for i, item in enumerate(value)]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            where, first = at(name, (*index, i)), at(name, (*index, 0))
            if len(shape) == len(shapes[0]) == 1:
                raise InvalidProblemError(f"{where}: expected {shapes[0][0]} entries as in {first}, got {shape[0]}")
            raise InvalidProblemError(f"{where}: expected shape {list(shapes[0])} as in {first}, got {list(shape)}")
    return (len(value), *(shapes[0] if shapes else ()))


def _no_numbers(name: str, got: str) -> InvalidProblemError:
    return InvalidProblemError(f"{name}: expected an array of numbers: got {got}")
