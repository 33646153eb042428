"""Counting which sets of experts tokens use: from router outputs, from ids of experts, from counts of each expert."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.foreign import as_array, at
from edgeopt.validate import bool_array, int_array, integer

CHUNK = 1 << 20  # ids that are sorted at once, to bound the memory

Short = Literal["refuse", "leave out"]
"""What becomes of tokens with fewer than K experts within reach, as padding has."""
Fields = dict[str, Any]
"""Those of a `RoutingTrace`, but for its name."""


class SetCounts(NamedTuple):
    """Rows of a trace: user [R], layer [R], experts [R, K], ascending, and tokens [R]; each combination once, in order."""

    user: NDArray[np.int64]
    layer: NDArray[np.int64]
    experts: NDArray[np.int64]
    tokens: NDArray[np.int64]


def fields_of_ids(
    ids: ArrayLike, *, num_experts: int | None = None, user: ArrayLike | None = None, mask: ArrayLike | None = None
) -> Fields:
    """Return the fields of the trace of tokens whose experts are known, see `RoutingTrace.from_expert_ids`."""
    chosen = as_array("ids", ids)
    if chosen.dtype.kind not in "iu" or chosen.ndim != 3 or 0 in chosen.shape:
        raise InvalidProblemError(
            f"ids: expected integers [tokens, layers, K], none of them 0, got {chosen.dtype} {list(chosen.shape)}"
        )
    tokens = len(chosen)
    counted = bool_array("mask", True if mask is None else mask, (tokens,))
    if not counted.any():
        raise InvalidProblemError("mask: no token counts: expected at least one")
    most = np.iinfo(np.int32).max if num_experts is None else integer("num_experts", num_experts, low=1)
    wrong = ((chosen < 0) | (chosen >= most)) & counted[:, None, None]
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        expected = "0 or more" if num_experts is None else f"0 to {most - 1}"
        raise InvalidProblemError(f"{at('ids', index)} = {chosen[index]}: expected an expert, {expected}")
    names, number = _numbered(user, tokens, counted)
    kept = np.flatnonzero(counted)
    rows = max(1, CHUNK // chosen[0].size)
    parts = []
    for start in range(0, kept.size, rows):
        part = kept[start : start + rows]
        experts = np.sort(chosen[part].astype(np.int64), axis=-1)  # (t, L, K)
        twice = (np.diff(experts, axis=-1) == 0).any(axis=-1)
        if twice.any():
            token, layer = (int(i) for i in np.argwhere(twice)[0])
            where = (int(part[token]), layer)
            raise InvalidProblemError(f"{at('ids', where)} = {chosen[where].tolist()}: expected different experts")
        parts.append(counted_sets(number[part], experts))
    counts = merged(parts)
    found = 1 + max(int(part.experts.max()) for part in parts)
    return fields_of_sets(counts, chosen.shape[1], found if num_experts is None else most, names)


def fields_of_counts(counts: ArrayLike, top_k: int, *, users: Sequence[Any] | None = None) -> Fields:
    """Return the fields of the trace of uses of single experts, see `RoutingTrace.from_counts`."""
    used = int_array("counts", counts, (None, None, None), low=0, high=1 << 40, dtype=np.int64)
    top_k = integer("top_k", top_k, low=1)
    if 0 in used.shape:
        raise InvalidProblemError(f"counts: expected users, layers and experts, got shape {list(used.shape)}")
    if top_k > used.shape[2]:
        raise InvalidProblemError(f"top_k = {top_k}: expected at most the {used.shape[2]} experts of a layer")
    total = used.sum(axis=2)  # (G, L)
    if (bad := np.argwhere((total != total[:, :1]) | (total == 0) | (total % top_k != 0))).size:
        u, layer = (int(i) for i in bad[0])
        raise InvalidProblemError(
            f"counts[{u}, {layer}] sums to {total[u, layer]}, counts[{u}, 0] to {total[u, 0]}: expected as many uses in "
            f"every layer, {top_k} for each token"
        )
    user, layers, experts = np.nonzero(used)
    rows = SetCounts(user, layers, experts[:, None], used[user, layers, experts])
    names = list(range(len(used))) if users is None else list(users)
    fields = fields_of_sets(rows, used.shape[1], used.shape[2], names)
    if top_k > 1:
        fields["meta"] |= {"counts_only": True, "experts_per_token": top_k}
    return fields


def merged(parts: Sequence[SetCounts]) -> SetCounts:
    """Return the rows of all parts, those of equal sets added up."""
    user, layer, experts, tokens = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    code = row_codes(
        (user, int(user.max()) + 1), (layer, int(layer.max()) + 1), *((e, int(e.max()) + 1) for e in experts.T)
    )  # fmt: skip
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    total = np.zeros(first.size, np.int64)
    np.add.at(total, which, tokens)
    return SetCounts(user[first], layer[first], experts[first], total)


def counted_sets(user: NDArray[np.int64], experts: NDArray[np.int64]) -> SetCounts:
    """Return the rows of tokens, given users [t] and ascending ids [t, L, K]."""
    tokens, layers, top_k = experts.shape
    ones = np.ones(tokens * layers, np.int64)
    flat = experts.reshape(-1, top_k)
    return merged([SetCounts(np.repeat(user, layers), np.tile(np.arange(layers), tokens), flat, ones)])


def _numbered(
    user: ArrayLike | None, tokens: int, counted: NDArray[np.bool_]
) -> tuple[list[Any], NDArray[np.int64]]:  # fmt: skip
    """Return the names of the users of tokens that count, ascending, and the number of each token's user."""
    if user is None:
        return [0], np.zeros(tokens, np.int64)
    given = as_array("user", user)
    if given.shape != (tokens,):
        raise InvalidProblemError(f"user: shape {list(given.shape)}, expected [{tokens}], one for each token")
    if given.dtype.kind not in "iubOU" or (
        given.dtype.kind == "O" and not all(isinstance(value, str) for value in given)
    ):
        raise InvalidProblemError(f"user: expected integers or texts, got {given.dtype}")
    names = np.unique(given[counted].astype(str) if given.dtype.kind == "O" else given[counted])
    whole = given.astype(str) if given.dtype.kind == "O" else given
    return names.tolist(), np.minimum(np.searchsorted(names, whole), names.size - 1)


def fields_of_sets(rows: SetCounts, num_layers: int, num_experts: int, names: Sequence[Any]) -> Fields:
    """Return the fields of the trace of counted sets; `names` are those of the users, by number."""
    tokens = np.zeros(len(names), np.int64)
    first = rows.layer == 0
    np.add.at(tokens, rows.user[first], rows.tokens[first])
    return {
        "num_layers": num_layers,
        "num_experts": num_experts,
        "set_user": rows.user,
        "set_layer": rows.layer,
        "set_experts": rows.experts,
        "set_count": rows.tokens,
        "tokens_per_user": tokens,
        "meta": {} if list(names) == list(range(len(names))) else {"users": list(names)},
    }


def counted_tokens(mask: ArrayLike | None, users: int, tokens: int) -> NDArray[np.bool_]:
    """Return bool [G, T], which tokens count: those of a mask that leaves each user some, or all."""
    counted = bool_array("mask", True if mask is None else mask, (users, tokens))
    if (silent := np.flatnonzero(~counted.any(axis=1))).size:
        raise InvalidProblemError(f"mask[{silent[0]}]: no token of user {silent[0]} counts: expected at least one")
    return counted


def counted_of(mask: Any, tokens: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Return bool [T] for each user, which tokens count; users may differ in T."""
    if mask is None or len(set(tokens)) == 1:
        most = max(tokens)
        return [row[:count] for row, count in zip(counted_tokens(mask, len(tokens), most), tokens, strict=True)]
    if not isinstance(mask, list | tuple) or len(mask) != len(tokens):
        raise InvalidProblemError(f"mask: expected a list with the tokens that count of each of {len(tokens)} users")
    found = [bool_array(f"mask[{u}]", own, (count,)) for u, (own, count) in enumerate(zip(mask, tokens, strict=True))]
    if (silent := next((u for u, own in enumerate(found) if not own.any()), None)) is not None:
        raise InvalidProblemError(f"mask[{silent}]: no token of user {silent} counts: expected at least one")
    return found


def check_logits(
    logits: NDArray[Any], top_k: int, counted: NDArray[np.bool_], user: int, short: Short
) -> NDArray[np.bool_]:
    """Return which tokens of a user count, [T]; refuse NaN among them, and where asked too few experts within reach."""
    if (missing := np.isnan(logits) & counted[:, None, None]).any():
        index = tuple(int(i) for i in np.argwhere(missing)[0])
        raise InvalidProblemError(f"{at('logits', (user, *index))} = nan: expected a number")
    reached = (logits > -np.inf).sum(axis=-1)  # (T, L)
    padding = (reached < top_k) & counted[:, None]
    if not padding.any():
        return counted
    if short == "refuse":
        index = tuple(int(i) for i in np.argwhere(padding)[0])
        raise InvalidProblemError(
            f"{at('logits', (user, *index))}: {reached[index]} of {logits.shape[-1]} values are above -inf: expected at "
            f"least top_k = {top_k}; leave padding out with mask, or with short='leave out'"
        )
    left: NDArray[np.bool_] = counted & ~padding.any(axis=1)
    if not left.any():
        raise InvalidProblemError(
            f"logits[{user}]: no token has top_k = {top_k} values above -inf: expected at least one"
        )
    return left


def logits_by_user(logits: ArrayLike | Sequence[ArrayLike]) -> list[NDArray[Any]]:
    """Return [T, L, E] for each user; in a list of arrays or tensors, users may differ in T."""
    if not isinstance(logits, list | tuple) or not all(hasattr(part, "shape") for part in logits):
        values = as_array("logits", logits)
        if values.dtype.kind not in "iuf" or values.ndim != 4 or 0 in values.shape:
            raise InvalidProblemError(
                "logits: expected numbers [users, tokens, layers, experts], none of them 0,"
                f" got {values.dtype} {list(values.shape)}"
            )
        return list(values)
    parts = [as_array(f"logits[{user}]", part) for user, part in enumerate(logits)]
    for user, part in enumerate(parts):
        if part.dtype.kind not in "iuf" or part.ndim != 3 or 0 in part.shape or part.shape[1:] != parts[0].shape[1:]:
            same = "" if user == 0 else f", the last two as in logits[0], {list(parts[0].shape[1:])}"
            raise InvalidProblemError(
                f"logits[{user}]: expected numbers [tokens, layers, experts], none of them 0{same}, "
                f"got {part.dtype} {list(part.shape)}"
            )
    if not parts:
        raise InvalidProblemError("logits: expected at least one user, got an empty list")
    return parts


def sets_of_logits(
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
    code = row_codes((layer, layers), *((chosen[:, k], experts) for k in range(top_k)))
    _, first, count = np.unique(code, return_index=True, return_counts=True)
    return layer[first], chosen[first], count


def row_codes(*columns: tuple[NDArray[Any], int]) -> NDArray[np.int64]:
    """Return a number per row of a table, ordered as the rows are; each column has values from 0 to below its size."""
    code, span = np.zeros(columns[0][0].size, np.int64), 1
    for column, size in columns:
        if span > (1 << 62) // size:  # too large to go on: number the rows so far by rank
            ranks, code = np.unique(code, return_inverse=True)
            span = ranks.size
        code, span = code * size + column, span * size
    return code
