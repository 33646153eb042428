"""Checks of a checkpoint's content: that its rows, states and arrays are such as a run of this task has."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import torch

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.fields import Fields
from edgeopt.npz import Form
from edgeopt.storage import Layout
from edgeopt.tensors import Shapes
from edgeopt.training.history import Row
from edgeopt.training.messages import State
from edgeopt.training.task import Task

_WHOLE = ("round", "bytes_up", "bytes_down", "planned", "completed", "conflicts", "straggler")
_REAL = ("seconds", "round_seconds", "energy_j", "train_loss", "test_loss", "accuracy")  # None: not measured


def checkpoint_layout(given: Fields, shapes: Shapes, task: Task) -> Layout:
    """Return which arrays a checkpoint with this header may hold: its states, and what planner and estimator remember.

    A tensor with the name of a weight, be it the weight or what an optimiser remembers of it, has that weight's shape or
    is a single number.
    """
    weights = task.initial_weights()
    layout: dict[str, Form] = {}
    for path in _paths(given.table("state")):
        name = "/".join(quote(part, safe=".") for part in path)
        layout[name] = Form()
        shape = tuple(weights[path[-1]].shape) if path[-1] in weights else None
        if shape is not None and shapes.get(name, shape) not in (shape, ()):
            raise InvalidFileError(f"{name}: expected shape {list(shape)}, got {list(shapes[name])}")
    layout |= {name: Form() for name in shapes if name.startswith(("memory/", "feedback/"))}
    if "ledger" not in shapes:
        raise InvalidFileError("ledger: array is missing")
    return layout | {"ledger": Form("iu", (3,))}


def _paths(tree: Fields, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in tree:
        if isinstance(tree.value(name), str):
            yield (*above, name)
        else:
            yield from _paths(tree.table(name), (*above, name))


def read_row(given: Fields) -> Row:
    """Return numbers by name, those of `plain_row` that JSON lacks among them."""
    row: Row = {}
    for name in given:
        value = given.value(name)
        if type(value) is int:
            row[name] = given.integer(name)
        elif value in (None, "inf", "-inf"):
            row[name] = float("nan" if value is None else value)
        else:
            row[name] = given.number(name)
    return row


def read_rows(given: Fields) -> list[Row]:
    """Return the rows of a checkpoint's header."""
    rows: list[Row] = []
    for number, row in enumerate(given.tables("rows")):
        for name in _WHOLE:
            row.integer(name)
        if missing := [name for name in _REAL if name not in row]:
            raise row.wrong(missing[0], "a number")
        if row.integer("round") != number:
            raise row.wrong("round", str(number))
        rows.append(read_row(row))
    if len(rows) != given.integer("round", low=0):
        raise InvalidFileError(f"{len(rows)} rows, expected {given.value('round')}")
    return rows


def client_number(name: str, task: Task) -> int:
    """Return the number of a client that has a state."""
    if not (name.isascii() and name.isdecimal()) or int(name) >= task.num_clients or str(int(name)) != name:
        raise InvalidFileError(f"state.clients: {quoted(name)}: expected a client from 0 to {task.num_clients - 1}")
    return int(name)


def check_state(tree: State, start: State | None) -> None:
    """Refuse states without what the server has before the first round, and so in every round."""
    for path, tensor in _tensors({} if start is None else {"server": start}):
        found: Any = tree
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, torch.Tensor):
            raise _wrong(path, "nothing" if found is None else "more tensors below it", "a tensor")
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise _wrong(path, f"{found.dtype} {list(found.shape)}", f"{tensor.dtype} {list(tensor.shape)}")


def _tensors(state: State, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            yield (*path, name), value
        else:
            yield from _tensors(value, (*path, name))


def _wrong(path: tuple[str, ...], got: object, expected: str) -> InvalidFileError:
    return InvalidFileError(f"state.{'.'.join(path)}: expected {expected}, got {got}")
