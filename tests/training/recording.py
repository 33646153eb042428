"""A runner that keeps what crosses between server and clients, and fails where a test wants it to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from edgeopt import RoundPlan
from edgeopt.training import Algorithm, LocalRunner, Message, Replies, Task
from edgeopt.training.costs.ledger import DIRECTIONS
from edgeopt.training.messages import CATEGORIES, Category, Take, Tensors


def nobody(entry: int, message: Message) -> bool:
    """Lose no message."""
    return False


@dataclass(slots=True)
class Recording(LocalRunner):
    """Runs the clients here.

    Parameters
    ----------
    lost : called with an entry and a message; where it returns True, the client is not reached.
    error : raised after the work of a delivery, as soon as `fails_at` deliveries have been made.
    sent : all messages so far: entry, message, and the reply if there was one.
    ends : how many there were after each complete round.
    deliveries : so far.
    """

    lost: Callable[[int, Message], bool] = nobody
    error: BaseException | None = None
    fails_at: int = 0
    sent: list[tuple[int, Message, Message | None]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    deliveries: int = 0

    def deliver(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        take: Mapping[Category, Take] = MappingProxyType({}),
    ) -> Replies:
        """Deliver what is not lost, note all of it."""
        there = {entry: message for entry, message in messages.items() if not self.lost(entry, message)}
        whole: dict[int, dict[Category, Tensors]] = {entry: {} for entry in there}

        def noting(category: Category, given: Take) -> Take:
            def both(entries: Sequence[int], tensors: Tensors) -> None:
                for position, entry in enumerate(entries):
                    whole[entry][category] = {name: value[position] for name, value in tensors.items()}
                given(entries, tensors)

            return both

        own = {category: noting(category, given) for category, given in take.items()}
        found = LocalRunner.deliver(self, algorithm, task, plan, there, own)
        replies = {e: replace(answer, tensors={**answer.tensors, **whole[e]}) for e, answer in found.items()}
        self.sent += [(entry, message, replies.get(entry)) for entry, message in messages.items()]
        self.deliveries += 1
        if self.error is not None and self.deliveries == self.fails_at:
            raise self.error
        return found

    def commit(self) -> None:
        """Note the end of a round."""
        LocalRunner.commit(self)
        self.ends.append(len(self.sent))

    def of(self, kind: str, entry: int = 0) -> list[tuple[Message, Message]]:
        """Return the messages of a kind to an entry, with their replies."""
        return [(m, r) for e, m, r in self.sent if e == entry and m.kind == kind and r is not None]

    def crossed(self, rounds: int) -> dict[str, int]:
        """Return the bytes of what crossed in the first rounds, under the names that rows have for them."""
        total = dict.fromkeys((f"{category}_{direction}" for category in CATEGORIES for direction in DIRECTIONS), 0)
        for _, message, answer in self.sent[: self.ends[rounds - 1]]:
            for direction, content in (("down", message), ("up", answer)):
                for category in content or ():
                    total[f"{category}_{direction}"] += _size(content, category)  # type: ignore[arg-type]
        return total


def _size(message: Message, category: Category) -> int:
    """Return the bytes of the entries that count, each looked at by itself."""
    size = 0
    for name, tensor in message[category].items():
        counts = torch.ones(tensor.shape, dtype=torch.bool)
        if (rows := message.rows.get(name)) is not None:
            counts &= rows.reshape(*rows.shape, *[1] * (tensor.ndim - rows.ndim))
        size += int(counts.sum()) * tensor.element_size()
    return size
