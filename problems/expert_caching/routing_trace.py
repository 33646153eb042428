"""`RoutingTrace`: how often each user's tokens took each set of experts."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import in_file
from edgeopt.npz import Form
from edgeopt.problems.expert_caching.counting import (
    Short,
    check_logits,
    counted_of,
    fields_of_counts,
    fields_of_ids,
    logits_by_user,
    row_codes,
    sets_of_logits,
)
from edgeopt.problems.expert_caching.recorded import read_recorded
from edgeopt.problems.expert_caching.routed_model import RoutedModel
from edgeopt.validate import by_name, int_array

BUNDLED_TRACES = ("switch32", "mixtral8", "fine64")
"""Names that `bundled_trace` knows."""

MAX_EXPERTS = 1 << 20  # over all layers; a file cannot ask for more
_FORMAT_VERSION = 1
_LAYOUT = {
    "set_user": Form("iu", (1,)), "set_layer": Form("iu", (1,)), "set_experts": Form("iu", (2,)),
    "set_count": Form("iu", (1,)), "tokens_per_user": Form("iu", (1,)), "meta": Form("iu", (1,)),
}  # fmt: skip
_ARRAYS = tuple(name for name in _LAYOUT if name != "meta")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingTrace:
    """Counts of the sets of K experts that a trained router picked, per user and mixture-of-experts layer.

    Row r says: ``set_count[r]`` tokens of user ``set_user[r]`` used exactly the experts ``set_experts[r]`` in layer
    ``set_layer[r]``. Every token is counted once in every layer.

    Parameters
    ----------
    name : name of the model.
    num_layers : mixture-of-experts layers L.
    num_experts : experts per layer E.
    set_user : int32 [R], user of each row, 0 to G - 1.
    set_layer : int32 [R], layer of each row, 0 to L - 1.
    set_experts : int32 [R, K], the experts of each row, ids within the layer, ascending.
    set_count : int64 [R], tokens of each row.
    tokens_per_user : int64 [G], tokens of each user, at least one.
    meta : JSON values on how the trace was recorded. The sizes above are added to it; where it has them already, they
        must agree.

    Raises
    ------
    InvalidProblemError
        Naming array, index, value and what was expected.

    Examples
    --------
    >>> trace = RoutingTrace(name="tiny", num_layers=1, num_experts=3, set_user=[0, 0], set_layer=[0, 0],
    ...                      set_experts=[[0, 1], [1, 2]], set_count=[3, 1], tokens_per_user=[4])
    >>> trace.to_model(expert_bytes=8.0).uses
    array([[0.75, 1.  , 0.25]])
    """

    name: str
    num_layers: int
    num_experts: int
    set_user: NDArray[np.int32]
    set_layer: NDArray[np.int32]
    set_experts: NDArray[np.int32]
    set_count: NDArray[np.int64]
    tokens_per_user: NDArray[np.int64]
    meta: dict[str, Any] = field(default_factory=dict, repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidProblemError(f"name = {quoted(self.name)}: expected a string")
        for size in ("num_layers", "num_experts"):
            object.__setattr__(self, size, _size(size, getattr(self, size)))
        if (total := self.num_layers * self.num_experts) > MAX_EXPERTS:
            raise InvalidProblemError(f"num_layers * num_experts = {total}: expected at most {MAX_EXPERTS} experts")
        experts = int_array("set_experts", self.set_experts, (None, None), low=0)
        rows, top_k = experts.shape
        if not 1 <= top_k <= self.num_experts:
            raise InvalidProblemError(
                f"set_experts: K = {top_k} experts per set, expected 1 to num_experts = {self.num_experts}"
            )
        most = (1 << 62) // max(rows, 1)  # so that no sum of counts overflows
        tokens = int_array("tokens_per_user", self.tokens_per_user, (None,), low=1, high=most, dtype=np.int64)
        if tokens.size == 0:
            raise InvalidProblemError("tokens_per_user: expected at least one user")
        arrays = {
            "set_user": int_array("set_user", self.set_user, (None,), low=0, high=tokens.size - 1),
            "set_layer": int_array("set_layer", self.set_layer, (None,), low=0, high=self.num_layers - 1),
            "set_experts": int_array("set_experts", experts, (None, None), low=0, high=self.num_experts - 1),
            "set_count": int_array("set_count", self.set_count, (None,), low=0, high=most, dtype=np.int64),
        }
        for name, array in arrays.items():
            if len(array) != rows:
                raise InvalidProblemError(f"{name}: {len(array)} rows, expected {rows} as in set_experts")
        arrays["tokens_per_user"] = tokens
        _check_ascending(experts)
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        self._check_sums()
        self._check_repeats()
        object.__setattr__(self, "meta", self._complete_meta())

    def _check_sums(self) -> None:
        shape = (self.num_users, self.num_layers)
        if self.num_rows < shape[0] * shape[1]:  # checked before the table of sums takes memory
            raise InvalidProblemError(
                f"set_count: {self.num_rows} rows, expected at least one for each of {shape[0]} users x {shape[1]} layers"
            )
        sums = np.zeros(shape, np.int64)
        np.add.at(sums, (self.set_user, self.set_layer), self.set_count)
        if (bad := np.argwhere(sums != self.tokens_per_user[:, None])).size:
            user, layer = bad[0]
            raise InvalidProblemError(
                f"set_count: user {user}, layer {layer} sums to {sums[user, layer]},"
                f" expected tokens_per_user[{user}] = {self.tokens_per_user[user]}"
            )

    def _check_repeats(self) -> None:
        code = row_codes(
            (self.set_user, self.num_users), (self.set_layer, self.num_layers), *self._expert_columns()
        )  # fmt: skip
        order = np.argsort(code, kind="stable")
        if (repeats := np.flatnonzero(np.diff(code[order]) == 0)).size:
            first, second = min((int(order[i]), int(order[i + 1])) for i in repeats)
            raise InvalidProblemError(
                f"set_experts[{second}] = {self.set_experts[second].tolist()}: user {self.set_user[second]} and layer"
                f" {self.set_layer[second]} have this set already in row {first}: expected each set once"
            )

    def _complete_meta(self) -> dict[str, Any]:
        try:
            meta = json.loads(json.dumps(self.meta, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidProblemError(f"meta: expected JSON values: {error}") from None
        if not isinstance(meta, dict):
            raise InvalidProblemError(f"meta: expected a dictionary, got {type(meta).__name__}")
        facts: dict[str, Any] = {
            "name": self.name, "format_version": _FORMAT_VERSION, "top_k": self.top_k, "num_experts": self.num_experts,
            "num_layers": self.num_layers, "num_users": self.num_users,
        }  # fmt: skip
        for key, value in facts.items():
            if key in meta and meta[key] != value:
                raise InvalidProblemError(f"meta: {key} = {quoted(meta[key])}: expected {quoted(value)}")
        if meta.get("counts_only") is True and (self.top_k != 1 or not _is_count(meta.get("experts_per_token"))):
            raise InvalidProblemError(
                f"meta: counts_only with experts_per_token = {quoted(meta.get('experts_per_token'))} and sets of "
                f"{self.top_k}: expected a positive integer and sets of one expert"
            )
        return facts | meta

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RoutingTrace":
        """Read a trace from an ``.npz`` file.

        Parameters
        ----------
        path : file with the arrays of this class and ``meta``, the UTF-8 bytes of a JSON object with at least
            ``name``, ``num_layers``, ``num_experts`` and ``top_k``.

        Raises
        ------
        InvalidFileError
            If the file is no such file; the message names file, array, index, value and what was expected.
        OSError
            If the file cannot be opened.
        """
        arrays = storage.read_arrays(path, _LAYOUT)
        for name, form in _LAYOUT.items():
            if name not in arrays:
                raise InvalidFileError(f"{path}: no array {quoted(name)}: expected {', '.join(_LAYOUT)}")
            if arrays[name].ndim not in (form.dimensions or ()):  # a single number does not stand for a column
                raise InvalidFileError(f"{path}: {name}: expected rows, got shape {list(arrays[name].shape)}")
        if arrays["meta"].dtype != np.uint8:
            raise InvalidFileError(
                f"{path}: meta: expected the bytes of a JSON object as uint8 [n],"
                f" got {arrays['meta'].dtype} {list(arrays['meta'].shape)}"
            )
        meta = storage.parse_json_object(f"{path}: meta", arrays["meta"].tobytes())
        for key, kind in (("name", str), ("num_layers", int), ("num_experts", int), ("top_k", int)):
            if type(meta.get(key)) is not kind:
                raise InvalidFileError(f"{path}: meta: {key} = {quoted(meta.get(key))}: expected {kind.__name__}")
        with in_file(path):
            return cls(
                name=meta["name"],
                num_layers=meta["num_layers"],
                num_experts=meta["num_experts"],
                meta=meta,
                **{name: arrays[name] for name in _ARRAYS},
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to an ``.npz`` file, atomically; `load` reads it back equal."""
        arrays = {
            "set_user": _narrow(self.set_user, np.int16),
            "set_layer": _narrow(self.set_layer, np.int16),
            "set_experts": _narrow(self.set_experts, np.int16),
            "set_count": _narrow(self.set_count, np.int32),
            "tokens_per_user": self.tokens_per_user,
            "meta": np.frombuffer(json.dumps(self.meta, allow_nan=False).encode(), np.uint8),
        }
        storage.write_atomic(path, lambda file: storage.write_arrays(file, arrays))

    @classmethod
    def from_router_logits(
        cls,
        logits: ArrayLike | Sequence[ArrayLike],
        top_k: int,
        *,
        name: str = "routing",
        mask: ArrayLike | Sequence[ArrayLike] | None = None,
        short: Short = "refuse",
    ) -> "RoutingTrace":
        """Count the sets of experts with the largest router outputs.

        Ties go to the expert with the lowest index. Only the order of the outputs matters, so probabilities do as well.

        Parameters
        ----------
        logits : real [G, T, L, E], output of the router for each user, token, layer and expert, such as a tensor in
            bfloat16; or a list of [T, L, E], one for each user, of any lengths. An expert at -inf is out of reach of the
            token.
        top_k : experts K that each token uses per layer.
        name : name of the model.
        mask : bool [G, T], or a list of [T], the tokens that count; at least one of each user. Give it where texts were
            padded to one length. Default: all.
        short : what becomes of tokens with fewer than K experts within reach in some layer, as padding has:
            ``refuse`` or ``leave out``.

        Raises
        ------
        InvalidProblemError
            If a value of a token that counts is NaN, fewer than K of its experts in a layer are within reach, as in
            padding, an axis is empty, or `top_k` is not between 1 and E.

        Examples
        --------
        >>> trace = RoutingTrace.from_router_logits([[[[0.1, 0.9, 0.9]], [[0.5, 0.5, 0.5]]]], top_k=2)
        >>> trace.set_experts.tolist(), trace.set_count.tolist()
        ([[0, 1], [1, 2]], [1, 1])
        """
        values = logits_by_user(logits)
        layers, experts = values[0].shape[1:]
        if (top_k := _size("top_k", top_k)) > experts:
            raise InvalidProblemError(f"top_k = {top_k}: expected at most the {experts} experts of a layer")
        if short not in ("refuse", "leave out"):
            raise InvalidProblemError(f"short = {quoted(short)}: expected 'refuse' or 'leave out'")
        given = counted_of(mask, [len(own) for own in values])
        counted = [
            check_logits(own, top_k, which, user, short)
            for user, (own, which) in enumerate(zip(values, given, strict=True))
        ]
        parts = [  # by user, to bound the memory
            sets_of_logits(own[which], top_k) for own, which in zip(values, counted, strict=True)
        ]
        return cls(
            name=name,
            num_layers=layers,
            num_experts=experts,
            set_user=np.repeat(np.arange(len(parts)), [len(count) for _, _, count in parts]),
            set_layer=np.concatenate([layer for layer, _, _ in parts]),
            set_experts=np.concatenate([chosen for _, chosen, _ in parts]),
            set_count=np.concatenate([count for _, _, count in parts]),
            tokens_per_user=np.array([which.sum() for which in counted]),
        )

    @classmethod
    def from_expert_ids(
        cls,
        ids: ArrayLike,
        *,
        num_experts: int | None = None,
        user: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        name: str = "routing",
    ) -> "RoutingTrace":
        """Count the sets of experts that a router has chosen.

        Parameters
        ----------
        ids : int [T, L, K], the experts of each token and layer in any order, ids within the layer.
        num_experts : experts per layer E. Default: one more than the largest id, which misses experts that nobody took.
        user : numbers or texts [T], whose token it is. Default: all of one user. Users are numbered in ascending order;
            `meta` has their names where they are not 0 to G - 1.
        mask : bool [T], the tokens that count. Default: all.
        name : name of the model.

        Raises
        ------
        InvalidProblemError
            If an id of a token that counts is out of range or twice in its set, or no token counts.

        Examples
        --------
        >>> trace = RoutingTrace.from_expert_ids([[[2, 0]], [[0, 2]], [[1, 2]]], user=["ann", "ann", "bob"])
        >>> trace.set_experts.tolist(), trace.set_count.tolist(), trace.meta["users"]
        ([[0, 2], [1, 2]], [2, 1], ['ann', 'bob'])
        """
        return cls(name=name, **fields_of_ids(ids, num_experts=num_experts, user=user, mask=mask))

    @classmethod
    def from_counts(cls, counts: ArrayLike, top_k: int, *, name: str = "routing") -> "RoutingTrace":
        """Take how often each expert was used, without which of them a token used together.

        For K = 1 that is all there is. For K >= 2 the trace `counts_only`: every use counts as a token with a set of one
        expert, and `edgeopt.problems.ExpertCaching` takes it for latency ``sum`` alone, where sets do not matter.

        Parameters
        ----------
        counts : int [G, L, E], uses of each expert by each user; the layers of a user have equal sums, K for each token.
        top_k : experts K that a token uses per layer; counts do not tell.
        name : name of the model.

        Raises
        ------
        InvalidProblemError
            If a count is negative, the layers of a user differ in their sums, or those are no multiple of K.

        Examples
        --------
        >>> trace = RoutingTrace.from_counts([[[3, 1, 0], [2, 1, 1]]], top_k=2)
        >>> trace.counts_only, trace.experts_per_token, trace.tokens_per_user.tolist()
        (True, 2, [4])
        """
        return cls(name=name, **fields_of_counts(counts, top_k))

    @classmethod
    def read(
        cls,
        *paths: str | os.PathLike[str],
        format: str | None = None,
        num_layers: int | None = None,
        num_experts: int | None = None,
        top_k: int | None = None,
        name: str | None = None,
    ) -> "RoutingTrace":
        """Read routing that a server or a script has recorded, in one of `ROUTING_FORMATS`.

        Parameters
        ----------
        paths : files of one format, at least one. Where a file does not say whose tokens it has, each file is a user.
        format : default: by the name and the first lines of the first file.
        num_layers, top_k : where the file does not tell: base64 needs both, counts need K. Layers without experts are
            among those of base64, and are left out.
        num_experts : experts per layer E. Default: as the file says, or one more than the largest id.
        name : of the model. Default: that of the first file.

        Raises
        ------
        InvalidFileError
            If a file is not of the format, or damaged; the message names file, place, value and what was expected.
        InvalidProblemError
            If the format is unknown or something that the file does not tell is missing.
        MissingDependencyError
            If a file of torch is read without the extra ``train``.
        """
        fields = read_recorded(paths, format, num_layers=num_layers, num_experts=num_experts, top_k=top_k)
        return cls(name=os.path.basename(paths[0]).partition(".")[0] if name is None else name, **fields)

    def to_model(self, expert_bytes: ArrayLike | None = None) -> RoutedModel:
        """Return the probabilities of the sets, one profile per user.

        Parameters
        ----------
        expert_bytes : float64 [L * E] or scalar, size of each expert in bytes, layer by layer. Default: the value
            ``bytes_per_expert`` of `meta`, or ``bytes_per_expert_fp16``.

        Returns
        -------
        RoutedModel
            Expert e of layer l has the id ``l * num_experts + e``; the sets are in ascending order.
        """
        if expert_bytes is None:
            expert_bytes = self.meta.get("bytes_per_expert", self.meta.get("bytes_per_expert_fp16"))
            if not isinstance(expert_bytes, int | float) or isinstance(expert_bytes, bool):
                raise InvalidProblemError(
                    f"meta: bytes_per_expert_fp16 = {quoted(expert_bytes)}: expected a number of bytes; give expert_bytes"
                )
        code = row_codes((self.set_layer, self.num_layers), *self._expert_columns())
        _, first, which = np.unique(code, return_index=True, return_inverse=True)
        order = np.lexsort((which, self.set_user))
        user = self.set_user[order]
        return RoutedModel(
            name=self.name,
            expert_layer=np.repeat(np.arange(self.num_layers, dtype=np.int32), self.num_experts),
            expert_bytes=np.asarray(expert_bytes),
            sets=self.set_experts[first] + (self.set_layer[first] * np.int32(self.num_experts))[:, None],
            indptr=np.concatenate(([0], np.cumsum(np.bincount(user, minlength=self.num_users)))),
            indices=which[order].astype(np.int32),
            probability=self.set_count[order] / self.tokens_per_user[user],
        )

    def cost_of_expert(self) -> tuple[float, float] | None:
        """Return bits of the hidden state and FLOPs per token of one expert of the model; None where `meta` does not tell.

        They are ``hidden_bits`` and ``flops_per_token`` of `meta`, or follow from ``d_model``, ``d_ff`` and ``expert_kind``,
        with 16 bits per value.
        """
        told: list[Any] = [self.meta.get(key) for key in ("hidden_bits", "flops_per_token")]
        if all(isinstance(cost, int | float) and 0 < cost < math.inf for cost in told):
            return float(told[0]), float(told[1])
        sizes: list[Any] = [self.meta.get(key) for key in ("d_model", "d_ff")]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            return None
        matrices = 3 if "three" in str(self.meta.get("expert_kind", "")) else 2
        return 16.0 * sizes[0], 2.0 * matrices * sizes[0] * sizes[1]

    def statistics(self) -> dict[str, int]:
        """Return the sizes of the trace.

        Examples
        --------
        >>> bundled_trace("switch32").statistics()
        {'users': 24, 'layers': 6, 'experts': 32, 'top_k': 1, 'rows': 4608, 'tokens': 491520}
        """
        return {
            "users": self.num_users,
            "layers": self.num_layers,
            "experts": self.num_experts,
            "top_k": self.top_k,
            "rows": self.num_rows,
            "tokens": int(self.tokens_per_user.sum()),
        }

    @property
    def num_users(self) -> int:
        """Users G."""
        return self.tokens_per_user.size

    @property
    def num_rows(self) -> int:
        """Rows R: pairs of a user and a set of one layer."""
        return self.set_user.size

    @property
    def top_k(self) -> int:
        """Experts K that a token uses per layer."""
        return int(self.set_experts.shape[1])

    @property
    def counts_only(self) -> bool:
        """Whether it is not known which experts a token used together; a set is then one use, see `from_counts`."""
        return self.meta.get("counts_only") is True

    @property
    def experts_per_token(self) -> int:
        """Experts that a token uses per layer: K, also where the sets are single uses."""
        return int(self.meta["experts_per_token"]) if self.counts_only else self.top_k

    def _expert_columns(self) -> list[tuple[NDArray[np.int32], int]]:
        return [(self.set_experts[:, k], self.num_experts) for k in range(self.top_k)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoutingTrace):
            return NotImplemented
        return self.meta == other.meta and all(np.array_equal(getattr(self, n), getattr(other, n)) for n in _ARRAYS)

    __hash__ = None  # type: ignore[assignment]


def bundled_trace(name: str) -> RoutingTrace:
    """Return a trace that comes with the package.

    Parameters
    ----------
    name : one of `BUNDLED_TRACES`: ``switch32`` (Top-1 of 32), ``mixtral8`` (Top-2 of 8) or ``fine64`` (Top-4 of 64).

    Raises
    ------
    InvalidProblemError
        If there is no trace of this name.

    Examples
    --------
    >>> bundled_trace("mixtral8").top_k
    2
    """
    file = by_name("bundled trace", name, {known: f"routing-{known}.npz" for known in BUNDLED_TRACES})
    with resources.as_file(resources.files("edgeopt.problems.expert_caching") / "data" / file) as path:
        return RoutingTrace.load(path)


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_EXPERTS


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidProblemError(f"{name} = {quoted(value)}: expected a positive integer")
    return int(value)


def _check_ascending(experts: NDArray[np.int32]) -> None:
    steps = np.diff(experts, axis=1)
    if (bad := np.flatnonzero((steps <= 0).any(axis=1))).size:
        row = experts[bad[0]].tolist()
        wrong = "distinct experts" if len(set(row)) < len(row) else "experts in ascending order"
        raise InvalidProblemError(f"set_experts[{bad[0]}] = {row}: expected {wrong}")


def _narrow(array: NDArray[Any], dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    return array.astype(dtype) if array.max(initial=0) <= np.iinfo(dtype).max else array
