"""``routed_experts`` of requests, as SGLang and vLLM return them: JSON, or one JSON object in each line.

Each object has ``routed_experts``, itself or in ``meta_info``, ``sglext`` or ``choices``: nested lists [tokens, layers, K], or
base64 of as many int32 in little-endian order, which need ``num_layers`` and ``top_k``. ``user``, a number or a text, says
whose request it was. A layer in which every token has one and the same expert K times is one without experts.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.files import read_file
from edgeopt.foreign import as_array
from edgeopt.json_text import parse_json_object
from edgeopt.problems.expert_caching.recorded.content import MAX_BYTES, Choices, Hints, RoutingFormat

_INSIDE = ("meta_info", "sglext", "choices", "message")


def read(path: Path, hints: Hints) -> Choices:
    """Return the choices of the tokens of all requests."""
    data = read_file(path, MAX_BYTES)
    lines = [data] if path.suffix == ".json" else data.splitlines()
    parts: list[NDArray[Any]] = []
    users: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}" if path.suffix == ".json" else f"{path}: line {number}"
        document = parse_json_object(where, line)
        user = document.get("user", 0)
        if type(user) not in (int, str) or (users and type(user) is not type(users[0])):
            raise InvalidFileError(f"{where}: user = {quoted(user)}: expected numbers everywhere, or texts everywhere")
        found = list(_found(document))
        if not found:
            raise InvalidFileError(f"{where}: no routed_experts: expected it, itself or in {', '.join(_INSIDE[:3])}")
        for value in found:
            ids = _ids(path, where, value, hints)
            if parts and ids.shape[1:] != parts[0].shape[1:]:
                raise InvalidFileError(
                    f"{where}: routed_experts: {list(ids.shape[1:])} layers and experts, expected {list(parts[0].shape[1:])}"
                )
            parts.append(ids)
            users.append(user)
    if not sum(map(len, parts)):
        raise InvalidFileError(f"{path}: no token: expected at least one")
    ids = np.concatenate(parts)
    if ids.shape[2] > 1 and not (dense := (ids == ids[..., :1]).all(axis=(0, 2))).all():
        ids = ids[:, ~dense]
    names = np.repeat(np.array(users), [len(part) for part in parts])
    return Choices(ids, names if len(set(users)) > 1 or users[0] != 0 else None)


def _found(document: Any) -> Iterator[Any]:
    """Yield what is under the name, from the outside in."""
    if isinstance(document, list):
        for entry in document:
            yield from _found(entry)
    elif isinstance(document, dict):
        if document.get("routed_experts") is not None:
            yield document["routed_experts"]
        for name in _INSIDE:
            if name in document:
                yield from _found(document[name])


def _ids(path: Path, where: str, value: Any, hints: Hints) -> NDArray[Any]:
    if isinstance(value, str):
        why = "routed_experts in base64 has no shape"
        layers, top_k = hints.needed(path, "num_layers", why), hints.needed(path, "top_k", why)
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidFileError(f"{where}: routed_experts: not base64: {error}") from None
        if len(data) % (4 * layers * top_k):
            raise InvalidFileError(
                f"{where}: routed_experts: {len(data)} bytes, expected a multiple of 4 x {layers} layers x {top_k} experts"
            )
        return np.frombuffer(data, "<i4").reshape(-1, layers, top_k)
    ids = as_array(f"{where}: routed_experts", value)
    if ids.dtype.kind not in "iu" or ids.ndim != 3:
        raise InvalidFileError(
            f"{where}: routed_experts: expected integers [tokens, layers, K], got {ids.dtype} {list(ids.shape)}"
        )
    return ids


ROUTED_EXPERTS = RoutingFormat(
    name="routed-experts",
    suffixes=(".jsonl", ".ndjson", ".json"),
    holds="`routed_experts` of requests, as SGLang and vLLM return them",
    read=read,
)
