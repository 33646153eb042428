"""Dumps of SGLang's expert distribution recorder: ``.pt`` files of torch, read as data.

Mode ``per_token``: ``records`` with ``topk_ids_of_layer``, int [layers, tokens, slots], -1 where a slot, a token or a layer
has no expert, and ``last_physical_to_logical_map`` [layers, physical experts]. Mode ``stat``: ``logical_count``
[..., layers, experts]. Of servers that split tensors and not data, one rank has all tokens: read one file.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.extras import needs
from edgeopt.fields import Fields
from edgeopt.files import open_file
from edgeopt.problems.expert_caching.recorded.content import (
    MAX_BYTES,
    Choices,
    Counts,
    Hints,
    RoutingFormat,
    used_layers,
    whole_numbers,
)


def read(path: Path, hints: Hints) -> Choices | Counts:
    """Return the choices of all tokens of all records, or the counts."""
    document = Fields(_loaded(path), f"{path}: ")
    if "logical_count" in document:
        counts = whole_numbers(path, "logical_count", _array(path, "logical_count", document["logical_count"]))
        if counts.ndim < 2:
            raise InvalidFileError(f"{path}: logical_count: expected [..., layers, experts], got {list(counts.shape)}")
        return Counts(used_layers(path, counts.reshape(-1, *counts.shape[-2:]).sum(axis=0))[None])
    records = document.entries("records", "a list of records, or logical_count")
    chosen: list[NDArray[Any]] = []
    for i, record in enumerate(records):
        name = f"records[{i}].topk_ids_of_layer"
        ids = _array(path, name, Fields(record, f"{path}: records[{i}].").value("topk_ids_of_layer", "a tensor"))
        if ids.ndim != 3 or ids.dtype.kind not in "iu" or (chosen and ids.shape[::2] != chosen[0].shape[::2]):
            raise InvalidFileError(
                f"{path}: {name}: expected integers [layers, tokens, slots], the same layers and slots in every record, "
                f"got {ids.dtype} {list(ids.shape)}"
            )
        chosen.append(ids)
    if not sum(ids.shape[1] for ids in chosen):
        raise InvalidFileError(f"{path}: records: no token: expected at least one")
    ids = np.concatenate(chosen, axis=1).astype(np.int64)  # (L, T, slots)
    if "last_physical_to_logical_map" in document:
        ids = _logical(path, ids, document["last_physical_to_logical_map"])
    return Choices(_compact(path, ids))


def _compact(path: Path, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [T, L, K] without layers, tokens and slots that have no experts, given [L, T, slots]."""
    ids = ids[(ids >= 0).any(axis=(1, 2))]
    ids = ids[:, (ids >= 0).any(axis=(0, 2))].transpose(1, 0, 2)  # (T, L, slots)
    taken = (ids >= 0).sum(axis=-1)  # (T, L)
    if not ids.size or (bad := np.argwhere(taken != taken.max())).size:
        token, layer = (0, 0) if not ids.size else (int(i) for i in bad[0])
        raise InvalidFileError(
            f"{path}: topk_ids_of_layer: token {token}, layer {layer} of those with experts: expected as many experts as "
            "everywhere"
        )
    return np.sort(ids, axis=-1)[..., -taken.max() :]


def _logical(path: Path, ids: NDArray[np.int64], table: object) -> NDArray[np.int64]:
    """Return ids [L, T, slots] of experts in place of those of their replicas."""
    name = "last_physical_to_logical_map"
    logical = whole_numbers(path, name, _array(path, name, table))
    if logical.ndim != 2 or len(logical) != len(ids) or ids.max() >= logical.shape[1]:
        raise InvalidFileError(
            f"{path}: {name}: expected [{len(ids)} layers, more than {ids.max()} experts], got {list(logical.shape)}"
        )
    found = np.take_along_axis(logical[:, None], np.maximum(ids, 0), axis=2)
    return np.where(ids >= 0, found, -1)


def _array(path: Path, name: str, value: Any) -> NDArray[Any]:
    """Return a tensor as an array; one that claims more numbers than it has bytes is refused."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        raise InvalidFileError(f"{path}: {name}: expected a tensor, got a {type(value).__name__}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InvalidFileError(f"{path}: {name}: shape {list(value.shape)} in {value.untyped_storage().nbytes()} bytes")
    return np.asarray(value.to(torch.int64 if not value.is_floating_point() else torch.float64).numpy(force=True))


def _loaded(path: Path) -> Any:
    with needs("a file of torch", "train"):
        import torch
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
            raise InvalidFileError(
                f"{path}: not a file that torch.save has written: {quoted(str(error))[1:-1]}"
            ) from None
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InvalidFileError(f"{path}: has packed parts, which torch.save does not write: expected plain ones")
        if (size := sum(member.file_size for member in members)) > MAX_BYTES:
            raise InvalidFileError(f"{path}: {size} bytes, expected at most {MAX_BYTES}")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - whatever a damaged or a dangerous file raises; none of it was run
            raise InvalidFileError(
                f"{path}: expected tensors, numbers, texts and lists of them, nothing else: {_first_line(error)}"
            ) from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return quoted(lines[0])[1:-1] if lines else type(error).__name__


SGLANG = RoutingFormat(
    name="sglang", suffixes=(".pt", ".pth"), holds="dumps of SGLang's expert distribution recorder", read=read
)
