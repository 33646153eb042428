"""`RoutingRecord`: which experts every token of every user took, in the order of the text."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.func import functional_call

from edgeopt import storage
from edgeopt.data.arrays import described
from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.models.moe import Experts, record_routing
from edgeopt.npz import numbers
from edgeopt.problems.expert_caching.counting import counted_tokens
from edgeopt.problems.expert_caching.routing_trace import RoutingTrace
from edgeopt.training.trouble import in_words, is_out_of_memory
from edgeopt.validate import int_array, integer

_KIND, _SCHEMA_VERSION = "routing-record", 1
_MOST_EXPERTS = int(np.iinfo(np.int16).max)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingRecord:
    """The K experts that a trained router picked, per user, token and mixture-of-experts layer.

    Parameters
    ----------
    name : name of the model.
    num_experts : experts per layer E.
    experts : int16 [G, T, L, K], ids within the layer, ascending, of users G, tokens T and layers L.
    meta : JSON values on how the record was made; they go into the trace.

    Raises
    ------
    InvalidProblemError
        Naming array, index, value and what was expected.

    Examples
    --------
    >>> record = RoutingRecord(name="tiny", num_experts=3, experts=[[[[0, 1]], [[1, 2]], [[0, 1]], [[0, 1]]]])
    >>> trace = record.to_trace()
    >>> trace.set_experts.tolist(), trace.set_count.tolist()
    ([[0, 1], [1, 2]], [3, 1])
    """

    name: str
    num_experts: int
    experts: NDArray[np.int16]
    meta: dict[str, Any] = field(default_factory=dict, repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidProblemError(f"name = {quoted(self.name)}: expected a string")
        object.__setattr__(self, "num_experts", integer("num_experts", self.num_experts, low=1, high=_MOST_EXPERTS))
        if not isinstance(self.meta, dict):
            raise InvalidProblemError(f"meta: expected a dictionary, got {type(self.meta).__name__}")
        experts = int_array(
            "experts", self.experts, (None, None, None, None), low=0, high=self.num_experts - 1, dtype=np.int16
        )
        if 0 in experts.shape:
            raise InvalidProblemError(
                f"experts: expected [users, tokens, layers, experts of a token], none of them 0, got {list(experts.shape)}"
            )
        if (wrong := (np.diff(experts, axis=-1) <= 0).any(axis=-1)).any():
            index = tuple(np.argwhere(wrong)[0].tolist())
            raise InvalidProblemError(
                f"experts{list(index)} = {experts[index].tolist()}: expected distinct experts, ascending"
            )
        object.__setattr__(self, "experts", experts)

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_users(self) -> int:
        """Users, G."""
        return int(self.experts.shape[0])

    @property
    def num_tokens(self) -> int:
        """Tokens of each user, T."""
        return int(self.experts.shape[1])

    @property
    def num_layers(self) -> int:
        """Mixture-of-experts layers, L."""
        return int(self.experts.shape[2])

    @property
    def top_k(self) -> int:
        """Experts that a token uses per layer, K."""
        return int(self.experts.shape[3])

    # --- use ---------------------------------------------------------------------------------------------------

    def to_trace(self, mask: ArrayLike | None = None) -> RoutingTrace:
        """Count the sets of experts per user and layer: what `ExpertCaching.from_traces` takes.

        Parameters
        ----------
        mask : bool [G, T], the tokens that count, at least one of each user; the others are padding. Default: all.
        """
        counted = counted_tokens(mask, self.num_users, self.num_tokens)
        rows = [
            np.column_stack((np.tile(np.arange(self.num_layers), len(own)), own.reshape(-1, self.top_k)))
            for own in (experts[which] for experts, which in zip(self.experts, counted, strict=True))
        ]  # (T * L, 1 + K)
        sets = [np.unique(own, axis=0, return_counts=True) for own in rows]
        found = np.concatenate([chosen for chosen, _ in sets])  # (R, 1 + K)
        return RoutingTrace(
            name=self.name,
            num_layers=self.num_layers,
            num_experts=self.num_experts,
            set_user=np.repeat(np.arange(self.num_users), [len(chosen) for chosen, _ in sets]),
            set_layer=found[:, 0],
            set_experts=found[:, 1:],
            set_count=np.concatenate([count for _, count in sets]),
            tokens_per_user=counted.sum(axis=1),
            meta=self.meta,
        )

    def part(self, first: int, last: int) -> Self:
        """Return the tokens `first` (from 0) to before `last` of every user."""
        return dataclasses.replace(self, experts=self.experts[:, first:last])

    # --- files -------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to a ``.npz`` or ``.json`` file, atomically; `load` reads it back equal."""
        header = {"kind": _KIND, "schema_version": _SCHEMA_VERSION, "name": self.name, "num_experts": self.num_experts}
        storage.save(path, header | {"meta": self.meta}, {"experts": self.experts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a record that `save` wrote.

        Raises
        ------
        InvalidFileError
            If the file is no such file; the message names file, field, index, value and what was expected.
        OSError
            If the file cannot be opened.
        """
        header, arrays = storage.load(path, _layout)
        with in_file(path):
            given = Fields(header)
            if "experts" not in arrays:
                raise InvalidFileError("experts: array is missing")
            return cls(
                name=given.text("name"),
                num_experts=given.integer("num_experts"),
                experts=arrays["experts"],
                meta=given.value("meta"),
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoutingRecord):
            return NotImplemented
        same = (self.name, self.num_experts, self.meta) == (other.name, other.num_experts, other.meta)
        return same and np.array_equal(self.experts, other.experts)

    __hash__ = None  # type: ignore[assignment]


def _layout(header: dict[str, Any]) -> storage.Layout:
    given = Fields(header)
    given.expect("kind", _KIND)
    given.expect("schema_version", _SCHEMA_VERSION)
    return {"experts": numbers()}


def record_users(
    model: nn.Module,
    tokens: torch.Tensor,
    *,
    name: str = "moe",
    weights: Mapping[str, torch.Tensor] | None = None,
    batch_size: int = 64,
) -> RoutingRecord:
    """Run a model over what each user has and record the routing, sequence after sequence.

    Parameters
    ----------
    model : with layers `Experts` of one size, such as `moe_decoder` makes; left as it was.
    tokens : int64 [G, S, T], S sequences of T token ids of each of G users, on any device. Of a model without an embedding
        the samples that it takes, [G, S, ...].
    name : name of the model in the record.
    weights : weights to run with, by name. Default: the model's own.
    batch_size : sequences run at once.

    Returns
    -------
    RoutingRecord
        With S * T tokens of each user (S, where a sample is one token), padding included: `RoutingRecord.to_trace` can leave it out. Its `meta` has what `ExpertCaching.from_traces` needs to know of the model.

    Raises
    ------
    InvalidProblemError
        If the model has no such layers or several sizes of them, or a router returns NaN; `tokens` has the wrong type or
        shape; or `batch_size` is below 1.
    """
    reads = any(isinstance(part, nn.Embedding) for part in model.modules())
    if not isinstance(tokens, torch.Tensor) or (reads and tokens.is_floating_point()):
        raise InvalidProblemError(f"tokens: expected a tensor of int64, got {described(tokens)}")
    if tokens.ndim < 3 or (reads and tokens.ndim > 3) or 0 in tokens.shape:
        expected = "[users, sequences, length]" if reads else "[users, samples, ...]"
        raise InvalidProblemError(f"tokens: expected {expected}, none of them 0, got {list(tokens.shape)}")
    sizes = {(*part.up.shape, part.top_k) for part in model.modules() if isinstance(part, Experts)}
    if len(sizes) != 1:
        found = " and ".join(str(list(size)) for size in sorted(sizes)) or "none"
        raise InvalidProblemError(
            f"model: expected layers of experts, all of one size [experts, width, hidden, top_k], got {found}"
        )
    batch_size = integer("batch_size", batch_size, low=1)
    ((num_experts, width, hidden, _),) = sizes
    used = dict(model.state_dict() if weights is None else weights)
    device = next(iter(used.values())).device
    parts = []
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            for sequences in torch.split(tokens.flatten(0, 1), batch_size):  # (B, T)
                with record_routing() as routing:
                    try:
                        functional_call(model, used, (sequences.to(device),))
                    except Exception as error:  # whatever a user's module raises
                        if is_out_of_memory(error):
                            raise
                        raise InvalidProblemError(f"model: does not run on the tokens: {in_words(error)}") from error
                if not all(bool(torch.isfinite(layer.logits).all()) for layer in routing):
                    raise InvalidProblemError("model: a router returns NaN or infinities: expected finite numbers")
                layers = [
                    layer.experts.flatten(1, -2) if layer.experts.ndim > 2 else layer.experts[:, None]
                    for layer in routing
                ]
                chosen = torch.stack(layers, dim=2)  # (B, T, L, K)
                parts.append(chosen.sort(dim=-1).values.to("cpu", torch.int16))  # (B, T, L, K)
    finally:
        for part, mode in modes:
            part.training = mode
    experts = torch.cat(parts).reshape(len(tokens), -1, *parts[0].shape[2:])  # (G, S * T, L, K)
    meta = {
        "d_model": width,
        "d_ff": hidden,
        "expert_kind": "two-matrix GELU feed-forward",
        "bytes_per_expert_fp16": 2 * (2 * width * hidden + width + hidden),
        "sequence_length": experts.shape[1] // tokens.shape[1],
    }
    return RoutingRecord(name=name, num_experts=num_experts, experts=experts.numpy(), meta=meta)
