"""The byte ledger: every tensor that a client or a server sends is charged here, and nowhere else."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.training.messages import CATEGORIES, Category, Message

Direction = Literal["up", "down"]
DIRECTIONS: tuple[Direction, ...] = ("up", "down")


class Ledger:
    """Bytes by client, direction (up: from the client) and category.

    Parameters
    ----------
    num_clients : N.

    Attributes
    ----------
    bytes : int64 [N, 2, 6], columns as in `DIRECTIONS` and `edgeopt.training.messages.CATEGORIES`.

    Examples
    --------
    >>> import torch
    >>> ledger = Ledger(num_clients=2)
    >>> sent = Message("reply", {"activations": {"x": torch.zeros(4, 3)}, "labels": {"y": torch.zeros(4).long()}})
    >>> ledger.charge([1], "up", [sent]).tolist()
    [[0, 48, 0, 32, 0, 0]]
    >>> ledger.total("up", "activations"), ledger.total("down")
    (48, 0)
    """

    def __init__(self, num_clients: int) -> None:
        self.bytes: NDArray[np.int64] = np.zeros((num_clients, len(DIRECTIONS), len(CATEGORIES)), np.int64)

    def charge(
        self, clients: Sequence[int] | NDArray[np.int32], direction: Direction, messages: Sequence[Message | None]
    ) -> NDArray[np.int64]:
        """Charge a message to each client, None for nothing sent; return the bytes of each by category, int64 [P, 6]."""
        sizes = np.zeros((len(messages), len(CATEGORIES)), np.int64)
        counted: dict[tuple[int, int], int] = {}  # tensors that go to many clients are counted once
        for row, message in enumerate(messages):
            if message is None:
                continue
            for category, tensors in message.tensors.items():
                key = (id(tensors), id(message.rows) if message.rows else 0)
                if (size := counted.get(key)) is None:
                    size = counted[key] = message.nbytes(category)
                sizes[row, CATEGORIES.index(category)] = size
        np.add.at(self.bytes[:, DIRECTIONS.index(direction)], np.asarray(clients, np.int64), sizes)
        return sizes

    def total(self, direction: Direction, category: Category | None = None) -> int:
        """Return the bytes of all clients in one direction, of one category or of all."""
        columns = slice(None) if category is None else CATEGORIES.index(category)
        return int(self.bytes[:, DIRECTIONS.index(direction), columns].sum())

    def by_category(self) -> dict[str, int]:
        """Return the bytes of all clients, ``weights_up`` and so on."""
        totals = self.bytes.sum(axis=0)  # (2, 6)
        return {
            f"{category}_{direction}": int(totals[d, c])
            for c, category in enumerate(CATEGORIES)
            for d, direction in enumerate(DIRECTIONS)
        }
