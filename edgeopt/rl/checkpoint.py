"""`Checkpoint`: the file that a run of learning is written to, and goes on from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeOptError, InvalidFileError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.rl.learner import branch
from edgeopt.rl.replay import refuse_other_forms
from edgeopt.storage import Arrays
from edgeopt.tensors import load_tensors, require_safetensors, save_tensors
from edgeopt.training.checkpoint import read_row
from edgeopt.training.history import Row, plain_rows
from edgeopt.training.messages import State
from edgeopt.training.states import flatten, unflatten

_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run is kept, and what tells it from others.

    Parameters
    ----------
    path : of the file.
    kind : of the run.
    identity : what must be equal in a run that goes on from the file.
    resumed : whether this run does.
    """

    path: str | os.PathLike[str]
    kind: str
    identity: dict[str, Any]
    resumed: bool

    @classmethod
    def of(
        cls, path: str | os.PathLike[str] | None, kind: str, identity: dict[str, Any], *, resume: bool
    ) -> "Checkpoint | None":
        """Return the checkpoint of a run that has one; a run goes on from a file only if it is there.

        Raises
        ------
        EdgeOptError
            If nothing can be written to the path, which is said before anything is learned, or none is given to resume from.
        """
        if path is None:
            if resume:
                raise EdgeOptError("resume: expected a checkpoint to resume from")
            return None
        require_safetensors()
        if not (folder := Path(path).absolute().parent).is_dir():
            raise EdgeOptError(f"checkpoint = {quoted(os.fspath(path))}: there is no folder {folder}")
        return cls(path, kind, identity, resume and os.path.exists(path))

    def save(self, state: State, rows: list[Row], values: dict[str, Any], arrays: Arrays) -> None:
        """Write the learner's state, the rows, and other plain values and arrays of a run."""
        states, _ = flatten({"learner": state})
        head = {"kind": self.kind, "schema_version": _SCHEMA_VERSION, "identity": self.identity}
        save_tensors(self.path, head | values | {"rows": plain_rows(rows)}, states | arrays)

    @contextmanager
    def read(self, state: State, device: str) -> Iterator[tuple[State, list[Row], Fields, Arrays]]:
        """Read what `save` has written of a run with this identity, whose learner's state has the forms of `state`.

        What is raised inside names the file.
        """
        header, arrays = load_tensors(self.path, self.kind)
        with in_file(self.path):
            given = Fields(header, "not a complete checkpoint: ")
            given.expect("schema_version", _SCHEMA_VERSION)
            stored = given.table("identity")
            for name, expected in self.identity.items():
                if (found := stored.value(name)) != expected:
                    raise InvalidFileError(f"{name} = {quoted(found)}: this run has {quoted(expected)}")
            own, names = flatten({"learner": state})
            refuse_other_forms(arrays, own)
            rows = [read_row(row) for row in given.tables("rows")]
            yield branch(unflatten(arrays, Fields(names), device), "learner"), rows, given, arrays


def below(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def above(prefix: str, arrays: Arrays) -> Arrays:
    """Return the arrays by names with a prefix, as `below` takes them."""
    return {prefix + name: value for name, value in arrays.items()}
