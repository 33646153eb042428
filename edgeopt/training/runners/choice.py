"""How many clients run as one batch: a rule of sizes alone, so that the same seed gives the same result."""

import functools
import math

import torch

from edgeopt.training.messages import Message
from edgeopt.training.task import Task

ONE = 1
"""One after another."""

ROOM_MIB = 32.0
"""What the clients of a batch take together on a CPU, at most. Fitted to what
``python -m edgeopt.evaluation.benchmarks.rounds_choice`` measures: beyond it a batch falls out of the caches and, with GNU's
C library, each step maps its memory anew."""

WORTHWHILE = 4
"""Fewer clients than that are no faster as a batch: what it spares is calls, and it pays for them with other kernels."""

_ROOM_ELSEWHERE = 64  # times as much where a device is no CPU: not measured


def choose_chunk(task: Task, message: Message, count: int, room_mib: float = ROOM_MIB) -> int:
    """Return how many of `count` clients with equal messages and sizes run as one batch; 1 for one after another.

    Parameters
    ----------
    message : one of theirs; its `peak_bytes` say what a client takes, or else the weights do, with gradients.
    room_mib : what those of a batch may take together.
    """
    each = message.peak_bytes
    if not 0 < each < math.inf:
        each = 2.0 * sum(value.nbytes for value in task.model.parameters())
    room = room_mib * 2**20 * (1 if torch.device(task.device).type == "cpu" else _ROOM_ELSEWHERE)
    size = int(min(count, room // max(each, 1.0)))
    return size if size >= WORTHWHILE else ONE


@functools.cache
def reuse_memory() -> None:
    """Have the C library keep what is freed for the next time, once in a process.

    That of GNU gives large blocks back to the system at once, and each mini-batch maps and clears them anew: up to a quarter
    of the time of a step. It learns from the largest block that was freed, up to 32 MiB; others are not impressed.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
