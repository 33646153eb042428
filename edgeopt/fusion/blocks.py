"""DUAL-Health as blocks that can be cut apart: one tensor crosses each boundary, what is added to the loss among it."""

import torch
import torch.nn.functional as F
from torch import nn

from edgeopt.fusion.calibration import Calibration
from edgeopt.fusion.recovery import Recovery, recovery_loss
from edgeopt.fusion.uncertainty import Uncertainty, forecast_loss, log_uncertainty


class Doubts(nn.Module):
    """Tokens [B, M, T, d + 1] to beliefs [B, M, T, 2 d + 2]: mu, log v, present, and what is added to the loss."""

    def __init__(self, doubt: Uncertainty, weight: float) -> None:
        super().__init__()
        self.doubt, self.weight = doubt, weight

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return (B, M, T, 2 d + 2) of z (B, M, T, d + 1)."""
        present = z[..., -1]  # (B, M, T)
        doubt, _ = self.doubt(z[..., :-1], present)
        added = self.weight * forecast_loss(doubt, present)  # (B, M, T)
        return torch.cat([doubt.mean, doubt.log_variance, present[..., None], added[..., None]], -1)


class Recovers(nn.Module):
    """Beliefs to means with log weights [B, M, T, d + 2]: mu, those of missing modalities recovered, log w, and the loss."""

    def __init__(self, recovery: Recovery, calibration: Calibration, kappa: float, weight: float) -> None:
        super().__init__()
        self.recovery, self.calibration = recovery, calibration
        self.kappa, self.weight = kappa, weight

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return (B, M, T, d + 2) of z (B, M, T, 2 d + 2)."""
        own, there, added = z[..., :-2], z[..., -2:-1], z[..., -1:]  # (B, M, T, 2 d), then (B, M, T, 1)
        mean, log_variance = own.chunk(2, -1)  # (B, M, T, d) each
        common = self.recovery.common(mean, log_variance)
        guess, guessed = self.recovery.from_others(common, there[..., 0])  # (B, M, T, d) each
        added = added + self.weight * recovery_loss((guess, guessed), mean, there[..., 0])[..., None]
        log_u = log_uncertainty(there * log_variance + (1 - there) * guessed)  # (B, M, T)
        log_w = (-self.kappa * self.calibration(log_u)).log_softmax(1)[..., None]  # (B, M, T, 1)
        return torch.cat([there * mean + (1 - there) * guess.detach(), log_w, added], -1)


class Fuses(nn.Module):
    """Means with log weights to class scores [B, T, K]; in training [B, T, K + 1], the last what is added to the loss."""

    def __init__(self, token: nn.Module, layers: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.token, self.layers, self.head = token, layers, head

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return (B, T, K) or (B, T, K + 1) of z (B, M, T, d + 2)."""
        mean, log_w, added = z[..., :-2], z[..., -2], z[..., -1]  # (B, M, T, d), (B, M, T) twice
        hidden = self.token(mean)  # (B, M, T, d)
        for layer in self.layers:
            hidden, _ = layer(hidden, log_w)
        scores = self.head((log_w.exp()[..., None] * hidden).sum(1))  # (B, T, K)
        return torch.cat([scores, added.mean(1)[..., None]], -1) if self.training else scores


def fusion_loss(outputs: torch.Tensor, targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean cross entropy of class scores, and what comes after them, which is added.

    Parameters
    ----------
    outputs : [B, T, K], or [B, T, K + 1] in training.
    targets : [B, T].
    num_classes : K.
    """
    loss = F.cross_entropy(outputs[..., :num_classes].flatten(0, -2), targets.flatten())
    return loss + outputs[..., num_classes:].mean() if outputs.shape[-1] > num_classes else loss
