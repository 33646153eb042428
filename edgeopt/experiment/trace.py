"""Routing of held-out text: each client of a training run is a user, with the text that is like its own."""

from typing import Any

import numpy as np
import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.inference.routing import RoutingRecord, record_users
from edgeopt.rng import stream
from edgeopt.training.messages import Tensors
from edgeopt.training.task import Task


def held_out_text(task: Task, sequences: int) -> torch.Tensor:
    """Return held-out sequences of each client, int64 [N, S, T]: of the documents that it trains on.

    S is `sequences`, or less if a client has less; which ones, the task's seed decides.

    Raises
    ------
    InvalidProblemError
        If the data is no text, or a client has no held-out sequence.
    """
    train, test = task.train, task.test
    if train.inputs.ndim != 2 or train.inputs.is_floating_point():
        raise InvalidProblemError(
            f"data: expected sequences of tokens, {train.name} has {list(train.inputs.shape[1:])}"
        )
    own = []
    for client, indices in enumerate(task.partition.indices):
        if train.group is None or test.group is None:
            rows = np.arange(len(test))
        else:
            rows = np.flatnonzero(np.isin(test.group, train.group[indices]))
        if not rows.size:
            raise InvalidProblemError(
                f"client {client}: none of its documents has held-out text, expected fewer clients or longer documents"
            )
        own.append(stream(task.seed, "held-out text", client).permutation(rows))
    size = min(sequences, *map(len, own))
    at = torch.from_numpy(np.stack([np.sort(rows[:size]) for rows in own])).to(test.inputs.device)
    return test.inputs[at]  # (N, S, T)


def client_routing(task: Task, weights: Tensors, sequences: int, *, name: str = "moe") -> RoutingRecord:
    """Return which experts the held-out text of each client takes; users of the record are clients of the task.

    Raises
    ------
    InvalidProblemError
        If the model has no mixture-of-experts layers, or see `held_out_text`.
    """
    return record_users(task.model, held_out_text(task, sequences), name=name, weights=weights)


def routing_statistics(record: RoutingRecord) -> dict[str, Any]:
    """Return sizes, how uneven the use of experts is, and how much it differs between users.

    ``busiest_share`` has for each layer the share of choices that fell on its most used expert (1 / E if even), and
    ``user_distance`` the mean over users of the total variation distance between a user's choices and all users'.
    """
    counts = np.zeros((record.num_users, record.num_layers, record.num_experts))
    for user in range(record.num_users):
        for layer in range(record.num_layers):
            counts[user, layer] = np.bincount(record.experts[user, :, layer].ravel(), minlength=record.num_experts)
    share = counts / counts.sum(axis=2, keepdims=True)  # (G, L, E)
    mean = share.mean(axis=0)  # (L, E)
    return {
        "users": record.num_users,
        "tokens_per_user": record.num_tokens,
        "layers": record.num_layers,
        "experts": record.num_experts,
        "top_k": record.top_k,
        "busiest_share": mean.max(axis=1).tolist(),
        "user_distance": (0.5 * np.abs(share - mean).sum(axis=2)).mean(axis=0).tolist(),
    }
