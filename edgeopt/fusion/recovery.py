"""A space that modalities share, and the product of experts there that stands in for a missing one."""

from typing import NamedTuple

import torch
from torch import nn

from edgeopt.fusion.layers import PerModality
from edgeopt.fusion.uncertainty import LOG_LEAST, LOG_MOST, gaussian_loss


class Common(NamedTuple):
    """Gaussians with diagonal covariance in the common space: means and logarithms of variances, [B, M, T, d_c]."""

    mean: torch.Tensor
    log_variance: torch.Tensor


class Recovery(nn.Module):
    """Each modality is mapped to the common space; the others' product of experts there is mapped back in its place.

    With precisions 1 / v of the others that are there, and a prior N(0, 1): Lambda = 1 + sum 1 / v, mean = sum mu / v /
    Lambda. The variance of what is recovered is that of a head of its own, plus the mean of 1 / Lambda.

    Parameters
    ----------
    modalities, width, common : M, d, d_c.
    """

    def __init__(self, modalities: int, width: int, common: int) -> None:
        super().__init__()
        self.to_mean = PerModality(modalities, width, common)
        self.to_variance = PerModality(modalities, 2 * width, common)
        self.norm = nn.LayerNorm(common)
        self.back = PerModality(modalities, 2 * common, width)
        self.out = PerModality(modalities, width, 2 * width)

    def common(self, mean: torch.Tensor, log_variance: torch.Tensor) -> Common:
        """Return beliefs [B, M, T, d] in the common space."""
        log_v = self.to_variance(torch.cat([mean, log_variance], -1)).clamp(LOG_LEAST, LOG_MOST)
        return Common(self.to_mean(mean), log_v)

    def from_others(self, common: Common, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log variance [B, M, T, d] of each modality, as the others that are there have it.

        Parameters
        ----------
        common : of all modalities.
        present : [B, M, T], 1 or 0.
        """
        mean, spread = product_of_others(common, present)  # (B, M, T, d_c) each
        inner = nn.functional.gelu(self.back(torch.cat([self.norm(mean), spread.log()], -1)))  # (B, M, T, d)
        recovered, log_v = self.out(inner).chunk(2, -1)  # (B, M, T, d) each
        lift = spread.mean(-1, keepdim=True).log()  # (B, M, T, 1)
        return recovered, torch.logaddexp(log_v.clamp(LOG_LEAST, LOG_MOST), lift)


def product_of_others(common: Common, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance [B, M, T, d_c] of the product of the experts that are there, without each one's own.

    Parameters
    ----------
    common : of all modalities.
    present : [B, M, T], 1 or 0.
    """
    precision = (-common.log_variance).exp() * present[..., None]  # (B, M, T, d_c)
    pull = precision * common.mean
    # sums of the others, not the sum of all less one's own, which would leave rounding errors of large precisions
    m = present.shape[1]
    others = 1 - torch.eye(m, dtype=precision.dtype, device=precision.device)
    total = 1 + torch.einsum("mk,bktd->bmtd", others, precision)
    return torch.einsum("mk,bktd->bmtd", others, pull) / total, 1 / total


def wasserstein(first: Common, second: Common) -> torch.Tensor:
    """Return squared 2-Wasserstein distances [...] of Gaussians with diagonal covariance [..., d_c]."""
    spread = (0.5 * first.log_variance).exp() - (0.5 * second.log_variance).exp()
    return ((first.mean - second.mean).square() + spread.square()).sum(-1)


def alignment_loss(
    common: Common, log_u: torch.Tensor, present: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return the loss that brings the modalities of a window together in the common space, and keeps windows apart.

    Distances of pairs at every step count by exp(-U - U'); at the last step, each window has to find itself among the
    windows of the batch that have another class, from any modality to any other (InfoNCE). Similarity is the negative
    squared distance of means, and not their cosine, under which all means could shrink to one point.

    Parameters
    ----------
    common : [B, M, T, d_c].
    log_u : [B, M, T], taken as it is.
    present : [B, M, T], 1 or 0.
    labels : [B, T].
    temperature : of the similarities.
    """
    m = common.mean.shape[1]
    first, second = torch.triu_indices(m, m, 1)  # pairs
    weight = (-log_u.detach().exp()).exp() * present  # (B, M, T)
    pair = weight[:, first] * weight[:, second]  # (B, pairs, T)
    left, right = (Common(common.mean[:, at], common.log_variance[:, at]) for at in (first, second))
    near = (pair * wasserstein(left, right)).sum() / pair.sum().clamp_min(1e-6) / common.mean.shape[-1]
    last = common.mean[:, :, -1]  # (B, M, d_c)
    there = present[:, :, -1] > 0  # (B, M)
    size = last.square().sum(-1).T  # (M, B)
    product = torch.einsum("amd,bnd->mnab", last, last)  # (M, M, B, B)
    scores = (2 * product - size[:, None, :, None] - size[None, :, None]) / temperature  # (M, M, B, B)
    scores = scores.masked_fill(~there.T[None, :, None], -1e4)  # windows whose second modality is missing
    alike = (labels[:, None, -1] == labels[None, :, -1]).fill_diagonal_(False)  # (B, B)
    scores = scores.masked_fill(alike, -1e4)
    found = scores.log_softmax(-1).diagonal(dim1=-2, dim2=-1)  # (M, M, B)
    asked = (there.T[:, None] & there.T[None]) & ~torch.eye(m, dtype=torch.bool, device=there.device)[..., None]
    return near - (found * asked).sum() / asked.sum().clamp_min(1)


def recovery_loss(
    recovered: tuple[torch.Tensor, torch.Tensor], mean: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Return the loss [B, M, T] of each modality that is there, as the others have it, see `gaussian_loss`.

    Parameters
    ----------
    recovered : mean and log variance [B, M, T, d].
    mean : [B, M, T, d], what they should be; it takes no gradient.
    present : [B, M, T], 1 or 0.
    """
    guess, log_v = recovered
    return gaussian_loss(mean.detach() - guess, log_v) * present
