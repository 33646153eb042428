"""How much a channel of activations says: scores by which channels are kept."""

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.training.codecs.codec import Form

LEAST_SUM = 1e-3
"""Sums over channels below this share of the sum of magnitudes are taken for zero: nothing is divided by them."""


def planes(x: torch.Tensor) -> torch.Tensor:
    """Return activations as [B, C, values of a channel], in float32 at least."""
    return Form(tuple(x.shape), x.dtype).by_channel(x).to(torch.promote_types(x.dtype, torch.float32))


def by_label(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return activations as [n, C, values] with one label each, [n].

    Where every place of a sample has a label of its own, as tokens of a text do, places are what is scored.

    Raises
    ------
    InvalidProblemError
        If there are neither as many labels as samples nor as many as places.
    """
    scored = planes(x)  # (B, C, P)
    samples, channels, places = scored.shape
    if labels.numel() == samples:
        return scored, labels.reshape(-1)
    if labels.numel() == samples * places:
        return scored.transpose(1, 2).reshape(-1, channels, 1), labels.reshape(-1)
    raise InvalidProblemError(
        f"labels: {list(labels.shape)} for activations {list(x.shape)}: expected one for each sample, or for each place"
    )


def label_aware(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""Return the label-aware channel scores of ACP-SL (arXiv:2603.09792, eqs. 1-6), [C].

    With :math:`\bar A_{i,n}` the mean plane of channel i over the samples of label n, intra-label similarity is the mean over
    labels of the mean over its samples of :math:`\langle A_{i,b}, \bar A_{i,n} \rangle`, which is that of
    :math:`\|\bar A_{i,n}\|^2`; inter-label similarity is the mean over pairs of labels of
    :math:`\langle \bar A_{i,n}, \bar A_{i,m} \rangle`. Each is divided by its sum over channels; the score is the first less
    the second. Ours: labels that the mini-batch lacks do not count, and with one label, or where the sum of the second is
    not above zero, the first decides alone.

    Parameters
    ----------
    x : [n, C, values].
    labels : [n].
    """
    means, counts, _ = _means(x.flatten(1), labels)
    means = means.reshape(x.shape)  # (n, C, P)
    energy = means.square().sum((0, 2))  # (C,), sum over labels of the squared norms
    number = (counts > 0).sum()  # of labels
    pairs = number * (number - 1)
    between = (means.sum(0).square().sum(1) - energy) / pairs.clamp_min(1)
    return _normalised(energy / number) - torch.where(pairs > 0, _normalised(between), 0)


def _means(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mean of each label in the row of its first sample, zeros elsewhere [n, values]; its samples [n]; that row.

    The row is given for each sample, int64 [n].
    """
    first = (labels.unsqueeze(1) == labels).int().argmax(1)  # (n,)
    counts = x.new_zeros(len(x)).scatter_add(0, first, x.new_ones(len(x)))
    sums = torch.zeros_like(x).scatter_add(0, first.unsqueeze(1).expand(x.shape), x)
    return sums / counts.clamp_min(1).unsqueeze(1), counts, first


def _normalised(score: torch.Tensor) -> torch.Tensor:
    """Return scores divided by their sum; zeros if that is not above zero."""
    total = score.sum()
    clear = total > LEAST_SUM * score.abs().sum()
    return torch.where(clear, score / torch.where(clear, total, 1), 0)


def separability(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return how far a channel's means separate the labels, times its magnitude; ours, [C].

    Between over between and within, as shares of the variance of a channel's mean over its values, so from 0 to 1; times the
    mean magnitude, because a channel that hardly ever speaks separates by accident.

    Parameters
    ----------
    x : [n, C, values].
    labels : [n].
    """
    values = x.mean(2)  # (n, C)
    means, _, first = _means(values, labels)
    own = means.index_select(0, first)  # (n, C)
    between = (own - values.mean(0)).square().sum(0)  # (C,)
    within = (values - own).square().sum(0)
    both = between + within
    return between / torch.where(both > 0, both, 1) * magnitude(x)


def magnitude(x: torch.Tensor) -> torch.Tensor:
    """Return the mean magnitude of each channel of activations [n, C, values], [C]."""
    return x.abs().mean((0, 2))
