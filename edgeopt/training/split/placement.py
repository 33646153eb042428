"""Which layers of the model are where in split learning, how they move, and how the clients' layers are averaged."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from edgeopt.training.messages import Message, Phase, Replies, State, Tensors
from edgeopt.training.rules.average import weighted_average
from edgeopt.training.rules.common import tensors_of
from edgeopt.training.split.exchange import Assignment
from edgeopt.training.task import Task


@dataclass(slots=True)
class Placement:
    """Which layers the clients hold.

    Parameters
    ----------
    held : layers 1 to ``held[i]`` at client i are as they should be. If it needs more, they come from the server.
    changed : whether client i has trained them since they were last the same as the server's.
    """

    held: list[int]
    changed: list[bool]

    @classmethod
    def start(cls, task: Task) -> Self:
        """Return where layers are at first: the initial weights are everywhere."""
        return cls([task.num_layers] * task.num_clients, [False] * task.num_clients)

    @classmethod
    def of(cls, state: State) -> Self:
        """Read what `to_state` wrote."""
        found = tensors_of(state, "placement")
        return cls([int(n) for n in found["held"].tolist()], [bool(c) for c in found["changed"].tolist()])

    def to_state(self) -> State:
        """Return int64 tensors [N]."""
        return {"held": torch.tensor(self.held), "changed": torch.tensor(self.changed, dtype=torch.int64)}

    def trained(self, assignment: Assignment) -> None:
        """Note that a client has trained its part."""
        self.held[assignment.client], self.changed[assignment.client] = assignment.cut, True

    def forget(self, client: int) -> None:
        """Note that nothing is known of a client any more: it gets its part anew when it comes back."""
        self.held[client], self.changed[client] = 0, False

    def server_trained(self, cut: int) -> None:
        """Note that the server has trained layers above `cut`: initial or averaged ones that clients have are outdated."""
        self.held = [held if changed else min(held, cut) for held, changed in zip(self.held, self.changed, strict=True)]

    def averaged(self, holders: Mapping[int, int]) -> None:
        """Note that the layers were averaged, and who has the average: layers by client."""
        self.held = [holders.get(client, 0) for client in range(len(self.held))]
        self.changed = [False] * len(self.held)


def move_layers(
    task: Task,
    assigned: Mapping[int, Assignment],
    placement: Placement,
    source: Callable[[int], Tensors],
    *,
    fetch: bool,
) -> Generator[Phase, Replies, dict[int, Tensors]]:
    """Bring the layers to where the plan wants them; only who lacks some, or has to hand some over, gets a message.

    Parameters
    ----------
    source : weights that a client, by id, should have.
    fetch : whether layers that a client has trained and gives to the server are sent up. Without, they are dropped.

    Returns
    -------
    For each entry that did not fail, the layers that it has sent up.
    """
    messages: dict[int, Message] = {}
    for entry, assignment in assigned.items():
        held = placement.held[assignment.client]
        if assignment.cut > held:
            should_have = source(assignment.client)
            missing = task.part(should_have, held, assignment.cut)
            head = task.part(should_have, task.num_layers - assignment.head)
            kept = frozenset([*task.part(should_have, 0, held), *head])
            messages[entry] = Message("place", {"weights": missing}, assignment.values, held=kept)
        elif fetch and assignment.cut < held and placement.changed[assignment.client]:
            messages[entry] = Message("fetch", {}, {"first": assignment.cut, "last": held})
    replies = (yield Phase("sync", messages)) if messages else {}
    return {
        entry: replies[entry]["weights"] if entry in replies else {}
        for entry in assigned
        if entry in replies or entry not in messages
    }


class Averaged(NamedTuple):
    """What an aggregation brought: the mean, the entries in it, and who has it, as layers by client."""

    weights: Tensors
    entries: list[int]
    holders: dict[int, int]


def average_layers(
    task: Task,
    assigned: Mapping[int, Assignment],
    server: Mapping[int, Tensors],
    shares: Callable[[int], float],
    server_bytes: Callable[[list[int]], int],
) -> Generator[Phase, Replies, Averaged | None]:
    """Average the clients' models up to the deepest cut at the fed server, and send the average down.

    Parameters
    ----------
    assigned : of the clients that take part.
    server : what the edge server has of each of these models: the layers from its cut to the deepest.
    shares : weight of an entry.
    server_bytes : what the edge server sends to the fed server, and gets back, for some entries.

    Returns
    -------
    None if no client's part has arrived.
    """
    asked = {
        entry: Message("fetch", {}, {"first": 0, "last": assignment.cut}) for entry, assignment in assigned.items()
    }
    replies = yield Phase("collect", asked, link="fed", server_up_bytes=server_bytes(list(assigned)))
    if not replies:
        return None
    entries = list(replies)
    models = [{**replies[entry]["weights"], **server[entry]} for entry in entries]
    mean = weighted_average(models, [shares(entry) for entry in entries])
    by_cut = {cut: task.part(mean, 0, cut) for cut in {assigned[entry].cut for entry in entries}}
    messages = {
        entry: Message("place", {"weights": by_cut[assigned[entry].cut]}, {"cut": assigned[entry].cut})
        for entry in entries
    }
    told = yield Phase("distribute", messages, link="fed", server_down_bytes=server_bytes(entries))
    return Averaged(mean, entries, {assigned[entry].client: assigned[entry].cut for entry in told})


def mean_of_clients(
    task: Task,
    weights: Tensors,
    placement: Placement,
    deepest: int,
    clients: Mapping[int, State],
    copy_of: Callable[[int], Tensors],
    share: Callable[[int], float],
) -> Tensors:
    """Return the model that an aggregation of all clients that have trained since the last one would make.

    Parameters
    ----------
    weights : of the server: above `deepest` common to all, below as last averaged, or its own.
    clients : states of the clients; who is not among them does not count.
    copy_of : what the server has of a client's own layers, by id.
    share : weight of a client.
    """
    counted = [
        client
        for client, changed in enumerate(placement.changed)
        if changed and (clients.get(client) or not task.part(weights, 0, placement.held[client]))  # all frozen
    ]
    if not counted:
        return weights
    below = task.part(weights, 0, deepest)
    models = []
    for client in counted:
        known = tensors_of(clients[client], "weights") if clients.get(client) else {}
        own = task.part(known, 0, placement.held[client])
        models.append({**below, **copy_of(client), **own})
    return {**weights, **weighted_average(models, [share(client) for client in counted])}


def num_bytes(tensors: Tensors) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())
