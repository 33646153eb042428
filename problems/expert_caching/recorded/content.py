"""What a file of recorded routing holds, and what has to be known besides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, InvalidProblemError

MAX_BYTES = 1 << 30
"""The largest file, and what a packed one may unpack to."""


class Hints(NamedTuple):
    """What the user says where a file does not."""

    num_layers: int | None = None
    num_experts: int | None = None
    top_k: int | None = None

    def needed(self, path: Path, name: str, why: str) -> int:
        """Return a hint that cannot be done without."""
        if (value := getattr(self, name)) is None:
            raise InvalidProblemError(f"{path}: {why}: expected {name}")
        return int(value)


class Choices(NamedTuple):
    """Experts that tokens were sent to: ids [T, L, K], and [T] whose token it is; of one user where that is None."""

    ids: NDArray[Any]
    user: NDArray[Any] | None = None


class Counts(NamedTuple):
    """Uses of each expert: [G, L, E], and the names of the users; of one user where there are none."""

    counts: NDArray[np.int64]
    users: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingFormat:
    """A kind of file that routing is recorded in.

    Parameters
    ----------
    name : of the format.
    suffixes : of its files.
    holds : in a few words, what it is and who writes it.
    read : reads a file.
    begins : bytes that tell it from other formats of the same suffix, where they are near the beginning.
    """

    name: str
    suffixes: tuple[str, ...]
    holds: str
    read: Callable[[Path, Hints], Choices | Counts]
    begins: bytes = b""


def whole_numbers(path: Path, what: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """Return counts as integers; those that come as decimals have to be whole."""
    if array.dtype.kind not in "iuf":
        raise InvalidFileError(f"{path}: {what}: expected whole numbers, got {array.dtype}")
    with np.errstate(invalid="ignore"):
        found = array.astype(np.int64)
    if (bad := np.argwhere((found != array) | (found < 0))).size:
        index = tuple(int(i) for i in bad[0])
        raise InvalidFileError(f"{path}: {what}{list(index)} = {array[index]}: expected a whole number >= 0")
    return found


def used_layers(path: Path, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts [..., L, E] of those layers that have any: the others have no experts."""
    used = counts.any(axis=tuple(i for i in range(counts.ndim) if i != counts.ndim - 2))
    if not used.any():
        raise InvalidFileError(f"{path}: no expert is used: expected counts above 0")
    kept: NDArray[np.int64] = counts[..., used, :]
    return kept
