"""Routing as servers and scripts record it: a format per file, each read as choices of tokens or as counts of experts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import in_file
from edgeopt.files import open_file
from edgeopt.problems.expert_caching.counting import Fields, fields_of_counts, fields_of_ids
from edgeopt.problems.expert_caching.recorded.activations import ACTIVATIONS
from edgeopt.problems.expert_caching.recorded.content import Choices, Counts, Hints, RoutingFormat
from edgeopt.problems.expert_caching.recorded.expert_ids import EXPERT_IDS
from edgeopt.problems.expert_caching.recorded.expert_load import EXPERT_LOAD
from edgeopt.problems.expert_caching.recorded.routed_experts import ROUTED_EXPERTS
from edgeopt.problems.expert_caching.recorded.sglang import SGLANG

ROUTING_FORMATS: dict[str, RoutingFormat] = {
    format.name: format for format in (SGLANG, EXPERT_LOAD, ROUTED_EXPERTS, ACTIVATIONS, EXPERT_IDS)
}
"""Formats that `RoutingTrace.read` knows, by name."""
_BEGINNING = 1 << 16


def read_recorded(
    paths: Sequence[str | os.PathLike[str]],
    format: str | None = None,
    *,
    num_layers: int | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
) -> Fields:
    """Return the fields of the trace in some files, see `RoutingTrace.read`."""
    files = [Path(path) for path in paths]
    if not files:
        raise InvalidProblemError("paths: expected at least one file")
    if format is not None and format not in ROUTING_FORMATS:
        raise InvalidProblemError(f"format = {quoted(format)}: expected one of {', '.join(ROUTING_FORMATS)}")
    chosen = ROUTING_FORMATS[format] if format is not None else _format_of(files[0])
    hints = Hints(num_layers, num_experts, top_k)
    contents = []
    for path in files:
        with in_file(path):
            contents.append(chosen.read(path, hints))
    shapes = [content[0].shape[1:] for content in contents]
    for path, content, shape in zip(files, contents, shapes, strict=True):
        if type(content) is not type(contents[0]) or shape != shapes[0]:
            raise InvalidFileError(f"{path}: {_told(content)}, expected {_told(contents[0])} as in {files[0]}")
    names = [path.stem for path in files] if len({path.stem for path in files}) == len(files) else list(map(str, files))
    with in_file(files[0] if len(files) == 1 else ", ".join(map(str, files))):
        if isinstance(contents[0], Choices):
            return _of_choices([c for c in contents if isinstance(c, Choices)], names, hints)
        return _of_counts([c for c in contents if isinstance(c, Counts)], names, hints, files[0])


def _of_choices(contents: Sequence[Choices], names: Sequence[str], hints: Hints) -> Fields:
    ids = np.concatenate([content.ids for content in contents])
    if hints.top_k not in (None, ids.shape[2]):
        raise InvalidFileError(f"{ids.shape[2]} experts for a token, expected top_k = {hints.top_k}")
    if hints.num_layers is not None and ids.shape[1] > hints.num_layers:  # those without experts are not among them
        raise InvalidFileError(f"{ids.shape[1]} layers with experts, expected at most num_layers = {hints.num_layers}")
    if len(contents) == 1:
        return fields_of_ids(ids, num_experts=hints.num_experts, user=contents[0].user)
    users = [np.full(len(c.ids), name) if c.user is None else c.user for c, name in zip(contents, names, strict=True)]
    whole = all(part.dtype.kind in "iu" for part in users)
    user = np.concatenate(users if whole else [part.astype(str) for part in users])
    return fields_of_ids(ids, num_experts=hints.num_experts, user=user)


def _of_counts(contents: Sequence[Counts], names: Sequence[str], hints: Hints, path: Path) -> Fields:
    top_k = hints.needed(path, "top_k", "counts do not tell how many experts a token uses")
    if len(contents) == 1:
        return fields_of_counts(contents[0].counts, top_k, users=contents[0].users)
    users: list[Any] = []
    for content, name in zip(contents, names, strict=True):
        users += [name] if content.users is None else [f"{name}: {user}" for user in content.users]
    return fields_of_counts(np.concatenate([content.counts for content in contents]), top_k, users=users)


def _told(content: Choices | Counts) -> str:
    layers, last = content[0].shape[1:]
    return f"{layers} layers and K = {last}" if isinstance(content, Choices) else f"{layers} layers of {last} experts"


def _format_of(path: Path) -> RoutingFormat:
    """Return the format of a file by its suffix and its beginning."""
    fitting = [format for format in ROUTING_FORMATS.values() if path.suffix.lower() in format.suffixes]
    if not fitting:
        known = ", ".join(suffix for format in ROUTING_FORMATS.values() for suffix in format.suffixes)
        raise InvalidProblemError(f"{path}: expected a name that ends in one of {known}, or a format")
    if len(fitting) == 1:
        return fitting[0]
    with open_file(path) as file:
        beginning = file.read(_BEGINNING)
    return next((format for format in fitting if format.begins and format.begins in beginning), fitting[-1])
