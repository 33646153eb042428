"""How many clients run as one batch: a rule of sizes alone, so that the same seed gives the same result."""

import functools

import torch

from edgeopt.training.messages import Message
from edgeopt.training.task import Task

ONE = 1
"""One after another."""

WORTH_FLOPS = 2e7
"""Work of a step above which clients run one after another."""


def choose_chunk(task: Task, message: Message, samples: int, memory_gib: float) -> int:
    """Return how many clients with equal messages run as one batch."""
    return ONE if task.flops(samples) > WORTH_FLOPS else 100


@functools.cache
def reuse_memory() -> None:
    """Have the C library keep what is freed for the next time, once in a process.

    That of GNU gives large blocks back to the system at once, and each mini-batch maps and clears them anew: a quarter of
    the time of a step. It learns from the largest block that was freed, up to 32 MiB; others are not impressed.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
