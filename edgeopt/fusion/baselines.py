"""What fusing by uncertainty is compared with: the same encoders and the same attention, fused otherwise."""

from typing import Literal, NamedTuple

import torch
from torch import nn

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fusion.calibration import Calibration
from edgeopt.fusion.dual_health import alone_loss
from edgeopt.fusion.layers import BiasedAttention, Encode, PerModality
from edgeopt.fusion.recordings import Modality
from edgeopt.validate import seed_number

Fusing = Literal["concat", "mean", "attention", "energy"]
FUSINGS: tuple[Fusing, ...] = ("concat", "mean", "attention", "energy")


class Fused(NamedTuple):
    """What a baseline makes of windows: class scores [B, T, K], and weights [B, M, T] of the modalities."""

    scores: torch.Tensor
    weights: torch.Tensor


class Baseline(nn.Module):
    """A way of fusing modalities without uncertainties; every step is causal.

    ``concat``: tokens of a step side by side, zeros for those that are missing, then a transformer over time.
    ``mean``: a transformer over time for each modality, and the mean of the scores of those that are there.
    ``attention``: a transformer over all tokens, and the mean of those that are there.
    ``energy``: as ``mean``, but scores count by logsumexp of themselves, their negative energy, over 10 and at least a
    little (Q. Zhang et al., Provable Dynamic Fusion for Low-Quality Multimodal Data, arXiv:2306.02050, without its
    regularisation); modalities learn by losses of their own, too.

    Parameters
    ----------
    modalities, num_classes, width, heads, depth, context, seed : as of `edgeopt.fusion.DualHealth`.
    fusing : one of the four.
    """

    def __init__(
        self,
        modalities: tuple[Modality, ...],
        num_classes: int,
        fusing: Fusing,
        *,
        width: int = 32,
        heads: int = 4,
        depth: int = 1,
        context: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if fusing not in FUSINGS:
            raise InvalidProblemError(f"fusing = {quoted(fusing)}: expected one of {', '.join(FUSINGS)}")
        self.modalities, self.num_classes, self.fusing = modalities, num_classes, fusing
        m = len(modalities)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_number("seed", seed))
            self.encode = Encode(modalities, width)
            self.token = nn.Linear(m * (width + 1), width) if fusing == "concat" else PerModality(m, width, width)
            self.layers = nn.ModuleList([BiasedAttention(width, heads, context) for _ in range(depth)])
            self.heads = PerModality(1 if fusing in ("concat", "attention") else m, width, num_classes)
        self.calibration = Calibration(1)

    def run(self, x: torch.Tensor) -> tuple[Fused, None]:
        """Return what the model makes of packed windows [B, T, F + M]."""
        fused, _ = self._run(x)
        scores = self.calibration.tempered(fused.scores, fused.scores.new_zeros(fused.scores.shape[:2]))
        return Fused(scores, fused.weights), None

    def _run(self, x: torch.Tensor) -> tuple[Fused, torch.Tensor]:
        encoded = self.encode(x)  # (B, M, T, d + 1)
        present = encoded[..., -1]  # (B, M, T)
        share = present / present.sum(1, keepdim=True).clamp_min(1)  # (B, M, T)
        if self.fusing == "concat":
            hidden = self.token(encoded.transpose(1, 2).flatten(2))[:, None]  # (B, 1, T, d)
            bias = torch.zeros_like(hidden[..., 0])  # (B, 1, T)
        else:
            hidden = self.token(encoded[..., :-1])  # (B, M, T, d)
            # -30 and not infinity: a token may find none that is there
            bias = torch.zeros_like(present) if self._apart else -30 * (1 - present)  # (B, M, T)
        for layer in self.layers:
            hidden, _ = layer(hidden, bias, apart=self._apart)
        if self.fusing == "attention":
            hidden = (share[..., None] * hidden).sum(1, keepdim=True)  # (B, 1, T, d)
        alone = self.heads(hidden)  # (B, 1 or M, T, K)
        if self.fusing == "energy":
            share = (0.1 * alone.logsumexp(-1)).clamp_min(0.01) * present  # (B, M, T)
        elif not self._apart:
            return Fused(alone[:, 0], share), alone
        return Fused((share[..., None] * alone).sum(1), share / share.sum(1, keepdim=True).clamp_min(1e-6)), alone

    @property
    def _apart(self) -> bool:
        return self.fusing in ("mean", "energy")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores [B, T, K] of packed windows [B, T, F + M]."""
        return self.run(x)[0].scores

    def loss(self, x: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy of windows [B, T, F + M] and labels [B, T]; `noise` is not looked at."""
        fused, alone = self._run(x)
        loss = nn.functional.cross_entropy(fused.scores.flatten(0, 1), labels.flatten())
        if self.fusing == "energy":
            present = x[..., -len(self.modalities) :].transpose(1, 2)  # (B, M, T)
            loss = loss + (alone_loss(alone, labels) * present).sum() / present.sum().clamp_min(1)
        return loss
