"""Tables of activations: one row for each expert that a token used, with a header, separated by commas, semicolons or tabs.

Columns ``layer`` and ``expert``, from 0 in each layer; with ``token`` it is known which experts were used together; with ``user``, whose they
were. Other columns, such as weights, are not looked at.
"""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.files import read_file
from edgeopt.problems.expert_caching.counting import row_codes
from edgeopt.problems.expert_caching.recorded.content import Choices, Counts, Hints, RoutingFormat, used_layers

MAX_TEXT = 256 << 20  # bytes of a table: its numbers take up to eight times as much
_COLUMNS = ("layer", "expert", "token", "user")
_MOST = 1 << 31


def read(path: Path, hints: Hints) -> Choices | Counts:
    """Return the choices of tokens where there is a column of them, counts else."""
    columns = _columns(path)
    names, user = np.unique(columns["user"], return_inverse=True) if "user" in columns else ([0], 0)
    user = np.broadcast_to(user, columns["layer"].shape)
    layers, layer = np.unique(columns["layer"], return_inverse=True)
    if "token" not in columns:
        experts = int(columns["expert"].max()) + 1 if hints.num_experts is None else hints.num_experts
        if (bad := np.flatnonzero(columns["expert"] >= experts)).size:
            raise InvalidFileError(
                f"{path}: row {bad[0] + 1}: expert = {columns['expert'][bad[0]]}: expected 0 to {experts - 1}"
            )
        if (size := len(names) * layers.size * experts) > MAX_TEXT:
            raise InvalidFileError(f"{path}: {size} users x layers x experts, expected at most {MAX_TEXT}")
        counts = np.zeros((len(names), layers.size, experts), np.int64)
        np.add.at(counts, (user, layer, columns["expert"]), 1)
        return Counts(used_layers(path, counts), list(np.asarray(names).tolist()) if "user" in columns else None)
    return _choices(path, columns, layer, layers.size, user, np.asarray(names) if "user" in columns else None)


def _choices(
    path: Path, columns: dict[str, NDArray[Any]], layer: NDArray[Any], num_layers: int, user: NDArray[Any], names: Any
) -> Choices:  # fmt: skip
    """Bring the rows of each token together: every token has K rows in every layer."""
    code = row_codes((user, int(user.max()) + 1), (columns["token"], int(columns["token"].max()) + 1))
    _, first, token = np.unique(code, return_index=True, return_inverse=True)
    order = np.lexsort((layer, token))
    top_k, rest = divmod(token.size, first.size * num_layers)
    place = np.arange(token.size) // max(top_k, 1)
    regular = top_k > 0 and rest == 0
    if not regular or (token[order] * num_layers + layer[order] != place).any():
        wrong = 0 if not regular else int(order[(token[order] * num_layers + layer[order] != place).argmax()])
        raise InvalidFileError(
            f"{path}: row {wrong + 1}: token {columns['token'][wrong]}, layer {columns['layer'][wrong]}: expected as many "
            f"experts for each token in each of the {num_layers} layers"
        )
    ids = columns["expert"][order].reshape(first.size, num_layers, top_k)
    return Choices(ids, None if names is None else names[user[first]])


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    data = read_file(path, MAX_TEXT)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidFileError(f"{path}: not all of it is UTF-8") from None
    if "\x00" in text:
        raise InvalidFileError(f"{path}: has null characters: expected a table of text")
    head, _, body = text.partition("\n")
    mark = max(",;\t", key=head.count)
    try:
        names = [name.strip().lower() for name in next(csv.reader([head.rstrip("\r")], delimiter=mark), [])]
    except csv.Error as error:  # half a line break, fields of megabytes
        raise InvalidFileError(f"{path}: expected a table with a header: {error}") from None
    for name in _COLUMNS[:2]:
        if name not in names:
            raise InvalidFileError(f"{path}: columns {quoted(names)}: expected a header with layer and expert")
    wanted = [name for name in _COLUMNS if name in names]
    if repeated := next((name for name in wanted if names.count(name) > 1), ""):
        raise InvalidFileError(f"{path}: column {repeated} is there {names.count(repeated)} times: expected once")
    if not body.strip():
        raise InvalidFileError(f"{path}: no row under the header: expected at least one")
    kinds = [(name, "U64" if name == "user" else np.int64) for name in wanted]
    try:
        table = np.loadtxt(
            io.StringIO(body), dtype=kinds, delimiter=mark, usecols=[names.index(name) for name in wanted], ndmin=1,
            comments=None, quotechar='"',
        )  # fmt: skip
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidFileError(f"{path}: {' '.join(str(error).split())}") from None
    for name in wanted:
        if name != "user" and (bad := np.flatnonzero((table[name] < 0) | (table[name] >= _MOST))).size:
            raise InvalidFileError(
                f"{path}: row {bad[0] + 1}: {name} = {table[name][bad[0]]}: expected a whole number from 0"
            )
    return {name: table[name] for name in wanted}


ACTIVATIONS = RoutingFormat(
    name="activations",
    suffixes=(".csv", ".tsv"),
    holds="a table with a row for each expert that a token used",
    read=read,
)
