"""Placements written for others: ids by server, model and layer; what one server keeps; tensors of a model's file."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.fields import Fields, in_file
from edgeopt.problems.expert_caching.exported.expert_tensors import ExpertTensors
from edgeopt.problems.expert_caching.placement import Placement
from edgeopt.problems.expert_caching.problem import ExpertCaching
from edgeopt.validate import integer

_KIND, _VERSION = "expert-placement", 1


def placement_document(problem: ExpertCaching, placement: Placement) -> dict[str, Any]:
    """Return which experts each server holds, as `read_placement` reads it.

    ``servers[n]["experts"][m][l]`` has the ids of the experts of layer l of model m, each from 0 within its layer; ``models`` has
    the names of the models and the numbers of experts of their layers; ``bytes`` is what a server's experts take.

    Examples
    --------
    >>> from edgeopt.problems import ExpertCaching
    >>> problem = ExpertCaching.random(num_servers=1, num_users=2, num_layers=2, experts_per_layer=2, seed=0)
    >>> placement_document(problem, Placement([[True, False, False, True]]))["servers"][0]["experts"]
    [[[0], [1]]]
    """
    used = problem.storage_used(placement)
    layers = [np.bincount(model.expert_layer).tolist() for model in problem.models]
    return {
        "kind": _KIND,
        "schema_version": _VERSION,
        "models": [{"name": model.name, "experts": count} for model, count in zip(problem.models, layers, strict=True)],
        "servers": [
            {"server": n, "bytes": float(used[n]), "experts": _by_layer(problem, placement, n)}
            for n in range(problem.num_servers)
        ],
    }


def read_placement(problem: ExpertCaching, path: str | os.PathLike[str]) -> Placement:
    """Return the placement in a file that `placement_document` was written to, checked against the problem's models.

    Raises
    ------
    InvalidFileError
        If it is no such file, or of other models or servers.
    """
    with in_file(path):
        given = Fields(storage.read_json(path))
        given.expect("kind", _KIND)
        given.expect("schema_version", _VERSION)
        servers = given.tables("servers")
        _check_models(problem, given)
        if len(servers) != problem.num_servers:
            raise InvalidFileError(f"servers: {len(servers)} of them, expected {problem.num_servers}")
        cached = np.zeros((problem.num_servers, problem.num_experts), bool)
        for n, server in enumerate(servers):
            models = server.entries("experts")
            if len(models) != len(problem.models):
                raise InvalidFileError(f"servers[{n}].experts: {len(models)} lists, expected {len(problem.models)}")
            for m, layers in enumerate(models):
                for e in _flat(
                    f"servers[{n}].experts[{m}]", layers, np.bincount(problem.models[m].expert_layer).tolist()
                ):
                    cached[n, problem.first_expert[m] + e] = True
    return Placement(cached)


def keep_list(
    problem: ExpertCaching,
    placement: Placement,
    *,
    server: int | None = None,
    model: int = 0,
    tensors: ExpertTensors | None = None,
) -> dict[str, list[int]]:
    """Return the experts to keep by layer: those of one server, or of all servers together.

    Parameters
    ----------
    server : whose experts. Default: those that any server holds.
    model : number of the model.
    tensors : of the model's file; layers are then named as there, such as ``blk.3`` or ``model.layers.3.mlp``, else numbered.

    Examples
    --------
    >>> from edgeopt.problems import ExpertCaching
    >>> problem = ExpertCaching.random(num_servers=1, num_users=2, num_layers=2, experts_per_layer=2, seed=0)
    >>> keep_list(problem, Placement([[True, False, False, True]]))
    {'0': [0], '1': [1]}
    """
    integer("model", model, low=0, high=len(problem.models) - 1)
    if server is not None:
        integer("server", server, low=0, high=problem.num_servers - 1)
    whose = range(problem.num_servers) if server is None else [server]
    experts = [_by_layer(problem, placement, n)[model] for n in whose]
    kept = [sorted(set().union(*layer)) for layer in zip(*experts, strict=True)]
    if tensors is None:
        return {str(number): layer for number, layer in enumerate(kept)}
    _check_tensors(problem, model, tensors)
    return {named.layer.removesuffix("."): layer for named, layer in zip(tensors.layers, kept, strict=True)}


def tensor_list(
    problem: ExpertCaching, placement: Placement, tensors: ExpertTensors, *, server: int | None = None, model: int = 0
) -> list[dict[str, Any]]:
    """Return the tensors that hold the experts to keep: of one server, or of all servers together.

    Each entry is ``{"pattern": ...}``, a regular expression for whole names of tensors of single experts; or ``{"tensor": ...,
    "axis": 0, "indices": [...]}``, a tensor of all experts of a layer with the indices to keep, axes as torch counts them (GGUF
    lists them the other way round).
    """
    kept = keep_list(problem, placement, server=server, model=model, tensors=tensors)
    return [
        entry for layer, experts in zip(tensors.layers, kept.values(), strict=True) for entry in layer.patterns(experts)
    ]


def _by_layer(problem: ExpertCaching, placement: Placement, server: int) -> list[list[list[int]]]:
    """Return the ids within the layer that a server holds, by model and layer."""
    found = []
    for m, model in enumerate(problem.models):
        held = placement.cached[server, problem.first_expert[m] : problem.first_expert[m + 1]]
        starts = np.searchsorted(model.expert_layer, np.arange(model.num_layers))
        found.append([np.flatnonzero(layer).tolist() for layer in np.split(held, starts[1:])])
    return found


def _flat(name: str, layers: Any, count: Sequence[int]) -> list[int]:
    """Return ids of the model's experts from ids by layer."""
    if not isinstance(layers, list) or len(layers) != len(count):
        raise InvalidFileError(f"{name}: expected {len(count)} lists, one for each layer")
    ids, first = [], 0
    for number, (experts, size) in enumerate(zip(layers, count, strict=True)):
        if not isinstance(experts, list) or not all(type(e) is int and 0 <= e < size for e in experts):
            raise InvalidFileError(f"{name}[{number}]: expected a list of ids from 0 to {size - 1}")
        ids += [first + e for e in experts]
        first += size
    return ids


def _check_models(problem: ExpertCaching, given: Fields) -> None:
    models = given.tables("models")
    if len(models) != len(problem.models):
        raise InvalidFileError(f"models: {len(models)} of them, expected {len(problem.models)}")
    for own, found in zip(problem.models, models, strict=True):
        found.expect("name", own.name)
        if found.entries("experts") != np.bincount(own.expert_layer).tolist():
            raise found.wrong("experts", "the numbers of experts of the problem's layers")


def _check_tensors(problem: ExpertCaching, model: int, tensors: ExpertTensors) -> None:
    own = problem.models[model]
    if len(tensors.layers) != own.num_layers:
        raise InvalidProblemError(
            f"tensors: {len(tensors.layers)} layers of experts, expected {own.num_layers} as model {own.name} has"
        )
    for number, (layer, count) in enumerate(zip(tensors.layers, np.bincount(own.expert_layer).tolist(), strict=True)):
        if layer.num_experts not in (None, count):
            raise InvalidProblemError(
                f"tensors: {layer.layer.rstrip('.')} has {layer.num_experts} experts, expected {count} as layer {number} of "
                f"model {own.name}"
            )
