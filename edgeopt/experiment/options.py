"""Checks of options that are given by name in plain values: is there such an option, and is the value of its type."""

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError, quoted

Options = Mapping[str, Any]
"""Numbers, texts, truth values, lists and tables of them, by name."""

Numbers = int | float | list  # type: ignore[type-arg]  # what an argument takes whose default is None or a pair
_BEYOND: dict[type, float] = {int: 1 << 63, float: float("inf")}
_SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list of numbers"}


def label(source: str, table: str) -> str:
    """Return how messages start.

    Examples
    --------
    >>> label("train.toml", "data")
    'train.toml: [data] '
    """
    return (f"{source}: " if source else "") + (f"[{table}] " if table else "")


def unknown(source: str, table: str, key: str, value: object, known: Iterable[str]) -> InvalidFileError:
    """Return the error about a key that means nothing here."""
    names = list(known)
    close = difflib.get_close_matches(key, names, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = f"expected one of {', '.join(names)}" if names else "expected no option here"
    return InvalidFileError(f"{label(source, table)}{quoted(key)[1:-1]} = {quoted(value)}: unknown; {hint}{listed}")


def unknown_name(source: str, table: str, name: object, known: Iterable[str]) -> InvalidFileError:
    """Return the error about a name that nothing has."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1) if isinstance(name, str) else []
    hint = f"did you mean {close[0]!r}? " if close else ""
    return InvalidFileError(f"{label(source, table)}name = {quoted(name)}: {hint}expected one of {', '.join(names)}")


def checked(source: str, table: str, key: str, value: Any, hint: Any) -> Any:
    """Return the value, a whole number as float where a float is expected; refuse other types."""
    if not _fits(value, hint):
        raise InvalidFileError(f"{label(source, table)}{key} = {quoted(value)}: expected {_said(hint)}")
    if get_origin(hint) is tuple:
        return tuple(
            checked(source, table, f"{key}[{i}]", entry, part) for i, (entry, part) in enumerate(_paired(value, hint))
        )
    wants_float = hint is float or (float in get_args(hint) and int not in get_args(hint))
    return float(value) if wants_float and type(value) is int else value


def checked_options(source: str, table: str, options: Options, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, each checked against the hint of its name."""
    for key, value in options.items():
        if key not in hints:
            raise unknown(source, table, key, value, hints)
    return {key: checked(source, table, key, value, hints[key]) for key, value in options.items()}


def hints_of(cls: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass that can be given."""
    hints = get_type_hints(cls)
    given = inspect.signature(cls).parameters
    return {name: hints[name] for name in given}


def argument_hints(function: Callable[..., Any], leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """Return types of the arguments of a function by their defaults; None and pairs stand for numbers or lists of them."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if name not in set(leave_out) and default is not inspect.Parameter.empty:
            found[name] = Numbers if default is None or isinstance(default, tuple) else type(default)
    return found


def plain(source: str, table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a table; refuse what is neither number, text, truth value, list nor table."""
    return {key: _plain(source, table, key, value) for key, value in values.items()}


def _plain(source: str, table: str, key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(source, table, f"{key}.{name}", entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(source, table, f"{key}[{i}]", entry) for i, entry in enumerate(value)]
    if type(value) in (bool, str) or (type(value) in (int, float) and abs(value) < _BEYOND[type(value)]):
        return value
    raise InvalidFileError(
        f"{label(source, table)}{key} = {quoted(value)}: expected a finite number, a text or a truth value"
    )


@contextmanager
def about(source: str, table: str) -> Iterator[None]:
    """Say in which table of which file the cause of an error is; errors about other files stay as they are."""
    try:
        yield
    except InvalidFileError:
        raise
    except InvalidProblemError as error:
        raise InvalidFileError(f"{label(source, table)}{error}") from None
    except EdgeOptError as error:
        if type(error) is not EdgeOptError:
            raise
        raise EdgeOptError(f"{label(source, table)}{error}") from None


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return isinstance(value, str | int) and value in get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(entry, part) for entry, part in _paired(value, hint))
    if hint is float:
        return type(value) in (int, float)
    if hint is list:
        return isinstance(value, list) and all(_fits(entry, Numbers) for entry in value)
    if hint is None or hint is type(None):
        return value is None
    return type(value) is hint if hint in (bool, int, str) else True  # other types check themselves


def _paired(values: Sequence[Any], hint: Any) -> list[tuple[Any, Any]]:
    """Return the entries of a list with the type of each; one that is too many, or missing, has no type that it fits."""
    parts = get_args(hint)
    if len(parts) == 2 and parts[1] is Ellipsis:
        return [(value, parts[0]) for value in values]
    if len(parts) != len(values):
        return [(values, Literal[()])]
    return list(zip(values, parts, strict=True))


def _said(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        several = len(parts) == 2 and parts[1] is Ellipsis
        return (
            f"a list, each {_said(parts[0])}" if several else f"a list of {len(parts)}: " + ", ".join(map(_said, parts))
        )
    parts = get_args(hint) or (hint,)
    said = [_SAID[part] for part in parts if part in _SAID and not (part is int and float in parts)]
    said += [_said(part) for part in parts if get_origin(part) is tuple]
    return " or ".join(said) or getattr(hint, "__name__", str(hint))
