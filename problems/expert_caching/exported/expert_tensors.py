"""`ExpertTensors`: which tensors of a model's file hold its experts, by their names."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.fields import Fields
from edgeopt.files import open_file, read_file
from edgeopt.json_text import parse_json_object
from edgeopt.problems.expert_caching.exported.gguf_header import Shapes, gguf_shapes

_MOST_BYTES = 256 << 20  # of a header

_ALONE = re.compile(
    r"(?P<head>(?P<layer>(?:.*\.)?)experts\.(?:expert_)?|(?P<block>blk\.\d+\.)ffn_\w+\.)(?P<expert>\d+)(?P<tail>\..+)"
)
"""A tensor of one expert: ``model.layers.0.mlp.experts.3.w1.weight``, ``blk.0.ffn_up.3.weight`` of older GGUF."""
_STACKED = re.compile(r"(?P<layer>blk\.\d+\.)ffn_\w+_exps\..+|(?P<other>(?:.*\.)?)experts\.[A-Za-z_][\w.]*")
"""A tensor of all experts of a layer: ``blk.0.ffn_up_exps.weight``, ``model.layers.0.mlp.experts.gate_up_proj``."""


_PLAIN = re.compile("0|[1-9][0-9]{0,8}")


class LayerTensors(NamedTuple):
    """The tensors of the experts of one layer.

    Parameters
    ----------
    layer : what their names begin with, such as ``model.layers.3.mlp.`` or ``blk.3.``.
    alone : by what stands before the number of the expert, the numbers of all experts, ascending.
    stacked : tensors of all experts; the first axis (in GGUF's own order, the last) counts experts.
    num_experts : E, where the file tells.
    """

    layer: str
    alone: dict[str, list[int]]
    stacked: list[str]
    num_experts: int | None

    def patterns(self, experts: Iterable[int]) -> list[dict[str, Any]]:
        """Return what holds some experts: regular expressions for whole names, and stacked tensors with the indices in them."""
        kept = sorted(int(expert) for expert in experts)
        if not kept:
            return []
        either = "|".join(map(str, kept))
        alone = [{"pattern": f"{re.escape(head)}(?:{either})\\..+"} for head in self.alone]
        return alone + [{"tensor": name, "axis": 0, "indices": kept} for name in self.stacked]


class ExpertTensors(NamedTuple):
    r"""The tensors of the experts of a model, layer by layer.

    Parameters
    ----------
    layers : those with experts, in the order in which they run: an encoder's before a decoder's, else by number.

    Examples
    --------
    >>> names = [f"model.layers.{b}.mlp.experts.{e}.w{i}.weight" for b in (1, 2) for e in range(4) for i in (1, 2)]
    >>> found = ExpertTensors.of_names(names)
    >>> [layer.layer for layer in found.layers]
    ['model.layers.1.mlp.', 'model.layers.2.mlp.']
    >>> found.layers[0].patterns([0, 3])
    [{'pattern': 'model\\.layers\\.1\\.mlp\\.experts\\.(?:0|3)\\..+'}]
    """

    layers: tuple[LayerTensors, ...]

    @classmethod
    def of_names(cls, names: Iterable[str] | Mapping[str, tuple[int, ...] | None]) -> "ExpertTensors":
        """Return those among all tensors of a model; with shapes by name, numbers of stacked experts are known."""
        shapes = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)
        alone: dict[str, dict[str, set[int]]] = {}
        stacked: dict[str, list[str]] = {}
        for name in shapes:
            if found := _ALONE.fullmatch(name):
                if not _PLAIN.fullmatch(found["expert"]):
                    raise InvalidFileError(
                        f"{quoted(name)}: expert {quoted(found['expert'])}: expected a number of at most 9 digits, with no 0 before"
                    )
                layer = found["layer"] if found["block"] is None else found["block"]
                alone.setdefault(layer, {}).setdefault(found["head"], set()).add(int(found["expert"]))
            elif found := _STACKED.fullmatch(name):
                stacked.setdefault(found["other"] if found["layer"] is None else found["layer"], []).append(name)
        return cls(
            tuple(
                _layer(layer, alone.get(layer, {}), sorted(stacked.get(layer, [])), shapes)
                for layer in sorted(alone.keys() | stacked.keys(), key=_order)
            )
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "ExpertTensors":
        """Return those of a ``.gguf`` or ``.safetensors`` file, or of a ``.safetensors.index.json``; only headers are read.

        Raises
        ------
        InvalidFileError
            If it is no such file, damaged, or has no experts.
        """
        path = Path(path)
        shapes: Mapping[str, tuple[int, ...] | None]
        if path.suffix == ".gguf":
            shapes = gguf_shapes(path)
        elif path.suffix == ".safetensors":
            shapes = _safetensors_shapes(path)
        elif path.suffix == ".json":
            document = Fields(parse_json_object(path, read_file(path, _MOST_BYTES)), f"{path}: ")
            shapes = dict.fromkeys(document.table("weight_map"))
        else:
            raise InvalidFileError(
                f"{path}: expected a name that ends in .gguf, .safetensors or .safetensors.index.json"
            )
        try:
            found = cls.of_names(shapes)
        except InvalidFileError as error:
            raise InvalidFileError(f"{path}: {error}") from None
        if not found.layers:
            raise InvalidFileError(f"{path}: none of its {len(shapes)} tensors is one of experts, by its name")
        return found


def _layer(
    layer: str, alone: dict[str, set[int]], stacked: list[str], shapes: Mapping[str, tuple[int, ...] | None]
) -> LayerTensors:
    """Return the tensors of a layer; those that say different things of the number of experts are refused."""
    counts = {head: len(experts) for head, experts in alone.items()}
    for head, experts in alone.items():
        if max(experts) != len(experts) - 1:
            missing = next(e for e in range(len(experts)) if e not in experts)
            raise InvalidFileError(f"{quoted(head)}: has expert {max(experts)} and not {missing}: expected all from 0")
    for name in stacked:
        if shape := shapes[name]:
            counts[name] = shape[0]
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} in {quoted(name)}" for name, count in list(counts.items())[:3])
        raise InvalidFileError(f"experts of {quoted(layer)}: {told}: expected one number")
    heads = {head: sorted(experts) for head, experts in sorted(alone.items())}
    return LayerTensors(layer, heads, stacked, next(iter(counts.values()), None))


def _order(layer: str) -> tuple[Any, ...]:
    parts = [part.lstrip("0") if part.isdecimal() else part for part in re.split("([0-9]+)", layer)]
    return "decoder" in layer, [(len(part) if i % 2 else -1, part) for i, part in enumerate(parts)], layer


def _safetensors_shapes(path: Path) -> Shapes:
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_BYTES or len(header := file.read(length)) != length or not length:
            raise InvalidFileError(f"{path}: not a file of safetensors: its header has {length} bytes")
    document = Fields(parse_json_object(path, header), f"{path}: ")
    return {
        name: tuple(int(side) for side in document.table(name).numbers("shape")) for name in document
        if name != "__metadata__"
    }  # fmt: skip
