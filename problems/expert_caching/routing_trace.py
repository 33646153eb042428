"""`RoutingTrace`: how often each user's tokens took each set of experts."""

import json
import os
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import in_file
from edgeopt.foreign import as_array, at
from edgeopt.npz import Form
from edgeopt.problems.expert_caching.routed_model import RoutedModel
from edgeopt.validate import bool_array, int_array

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
        code = _row_codes(
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
        cls, logits: ArrayLike, top_k: int, *, name: str = "routing", mask: ArrayLike | None = None
    ) -> "RoutingTrace":
        """Count the sets of experts with the largest router outputs.

        Ties go to the expert with the lowest index. Only the order of the outputs matters, so probabilities do as well.

        Parameters
        ----------
        logits : real [G, T, L, E], output of the router for each user, token, layer and expert, such as a tensor in
            bfloat16. An expert at -inf is out of reach of the token.
        top_k : experts K that each token uses per layer.
        name : name of the model.
        mask : bool [G, T], the tokens that count; at least one of each user. Give it where texts were padded to one
            length. Default: all.

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
        values = as_array("logits", logits)
        if values.dtype.kind not in "iuf" or values.ndim != 4 or 0 in values.shape:
            raise InvalidProblemError(
                "logits: expected numbers [users, tokens, layers, experts], none of them 0,"
                f" got {values.dtype} {list(values.shape)}"
            )
        users, tokens, layers, experts = values.shape
        if (top_k := _size("top_k", top_k)) > experts:
            raise InvalidProblemError(f"top_k = {top_k}: expected at most the {experts} experts of a layer")
        counted = counted_tokens(mask, users, tokens)
        for user in range(users):
            _check_logits(values[user], top_k, counted[user], user)
        parts = [
            _count_sets(values[user][counted[user]], top_k) for user in range(users)
        ]  # by user, to bound the memory
        return cls(
            name=name,
            num_layers=layers,
            num_experts=experts,
            set_user=np.repeat(np.arange(users), [len(count) for _, _, count in parts]),
            set_layer=np.concatenate([layer for layer, _, _ in parts]),
            set_experts=np.concatenate([chosen for _, chosen, _ in parts]),
            set_count=np.concatenate([count for _, _, count in parts]),
            tokens_per_user=counted.sum(axis=1),
        )

    def to_model(self, expert_bytes: ArrayLike | None = None) -> RoutedModel:
        """Return the probabilities of the sets, one profile per user.

        Parameters
        ----------
        expert_bytes : float64 [L * E] or scalar, size of each expert in bytes, layer by layer. Default: the value
            ``bytes_per_expert_fp16`` of `meta`.

        Returns
        -------
        RoutedModel
            Expert e of layer l has the id ``l * num_experts + e``; the sets are in ascending order.
        """
        if expert_bytes is None:
            expert_bytes = self.meta.get("bytes_per_expert_fp16")
            if not isinstance(expert_bytes, int | float) or isinstance(expert_bytes, bool):
                raise InvalidProblemError(
                    f"meta: bytes_per_expert_fp16 = {quoted(expert_bytes)}: expected a number of bytes; give expert_bytes"
                )
        code = _row_codes((self.set_layer, self.num_layers), *self._expert_columns())
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
    if name not in BUNDLED_TRACES:
        raise InvalidProblemError(f"no bundled trace {quoted(name)}: expected one of {', '.join(BUNDLED_TRACES)}")
    with resources.as_file(resources.files("edgeopt.problems.expert_caching") / "data" / f"routing-{name}.npz") as path:
        return RoutingTrace.load(path)


def counted_tokens(mask: ArrayLike | None, users: int, tokens: int) -> NDArray[np.bool_]:
    """Return bool [G, T], which tokens count: those of a mask that leaves each user some, or all."""
    counted = bool_array("mask", True if mask is None else mask, (users, tokens))
    if (silent := np.flatnonzero(~counted.any(axis=1))).size:
        raise InvalidProblemError(f"mask[{silent[0]}]: no token of user {silent[0]} counts: expected at least one")
    return counted


def _check_logits(logits: NDArray[Any], top_k: int, counted: NDArray[np.bool_], user: int) -> None:
    """Refuse NaN, and too few experts within reach, among the tokens of one user that count; `logits` is [T, L, E]."""
    if (missing := np.isnan(logits) & counted[:, None, None]).any():
        index = tuple(int(i) for i in np.argwhere(missing)[0])
        raise InvalidProblemError(f"{at('logits', (user, *index))} = nan: expected a number")
    reached = (logits > -np.inf).sum(axis=-1)  # (T, L)
    if (padding := (reached < top_k) & counted[:, None]).any():
        index = tuple(int(i) for i in np.argwhere(padding)[0])
        raise InvalidProblemError(
            f"{at('logits', (user, *index))}: {reached[index]} of {logits.shape[-1]} values are above -inf: expected at "
            f"least top_k = {top_k}; leave padding out with mask"
        )


def _count_sets(
    logits: NDArray[Any], top_k: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:  # fmt: skip
    """Return layer, experts and count of the sets of one user; `logits` is [T, L, E]."""
    tokens, layers, experts = logits.shape
    threshold = np.partition(logits, experts - top_k, axis=-1)[..., experts - top_k, None]  # (T, L, 1), K-th largest
    above, level = logits > threshold, logits == threshold  # (T, L, E)
    room = top_k - above.sum(axis=-1, keepdims=True)  # (T, L, 1)
    chosen = (
        (above | (level & (level.cumsum(axis=-1, dtype=np.int32) <= room))).nonzero()[-1].reshape(-1, top_k)
    )  # (T * L, K)
    layer = np.tile(np.arange(layers), tokens)  # (T * L,)
    code = _row_codes((layer, layers), *((chosen[:, k], experts) for k in range(top_k)))
    _, first, count = np.unique(code, return_index=True, return_counts=True)
    return layer[first], chosen[first], count


def _row_codes(*columns: tuple[NDArray[Any], int]) -> NDArray[np.int64]:
    """Return a number per row of a table, ordered as the rows are; each column has values from 0 to below its size."""
    code, span = np.zeros(columns[0][0].size, np.int64), 1
    for column, size in columns:
        if span > (1 << 62) // size:  # too large to go on: number the rows so far by rank
            ranks, code = np.unique(code, return_inverse=True)
            span = ranks.size
        code, span = code * size + column, span * size
    return code


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
