"""HetLoRA: adapters of unequal rank, averaged by how large the product of each client is (arXiv:2401.06432)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from edgeopt.training.algorithms.zero_pad_lora import PaddedAverage
from edgeopt.training.messages import Tensors
from edgeopt.training.optimizers import Adam, Optimizer
from edgeopt.training.rules.average import Shares
from edgeopt.training.rules.common import Weighting
from edgeopt.training.rules.lora import Adapter


@dataclass(frozen=True, slots=True)
class HetLora(PaddedAverage):
    """`ZeroPadLora`, in whose average a client counts for an adapter by the Frobenius norm of its product B A.

    That is the sparsity-weighted aggregation of Y. J. Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device
    Foundation Models, with the norm of each adapter for itself, which is our reading. Their self-pruning of ranks is left out: ranks are those of the plan.
    What is no adapter, and an adapter that is zero at all clients, is averaged as `weighting` says.

    Parameters
    ----------
    optimizer, batch_size, weighting, rank : as in `edgeopt.training.ZeroPadLora`.
    """

    name: ClassVar[str] = "het-lora"

    optimizer: Optimizer = field(default_factory=lambda: Adam(0.01))
    batch_size: int = 16
    weighting: Weighting = "samples"
    rank: int = 0

    def shares(self, adapters: Sequence[Adapter], models: Sequence[Tensors], shares: Sequence[float]) -> Shares:
        """Return the norms for the adapters, what is given for the rest."""
        found: dict[str, Sequence[float]] = {"": shares}
        for adapter in adapters:
            norms = [float(torch.linalg.norm(model[adapter.b] @ model[adapter.a])) for model in models]
            if any(norms):
                found |= dict.fromkeys((adapter.a, adapter.b), norms)
        return found
