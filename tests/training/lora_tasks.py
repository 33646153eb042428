"""Tasks whose models have adapters."""

from typing import Any

import torch

from edgeopt.models import add_lora, mlp
from edgeopt.training import Task
from tests.training import split_tasks

RANK = 4
ADAPTED = ("hidden1.1", "hidden2.0", "hidden3.0")


def lora_task(rank: int = RANK, head: bool = True, dtype: torch.dtype = torch.float64, **options: Any) -> Task:
    """Return four layers, three of them with adapters; the head is trained as it is, or frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = add_lora(
            mlp((1, 4, 4), (7, 6, 5), split_tasks.CLASSES).to(dtype), "hidden*", rank=rank, alpha=2.0 * rank
        )
    model.get_submodule("head").requires_grad_(head)
    return split_tasks.task(model=model, dtype=dtype, **options)
