"""The Plackett-Luce distribution: ordered picks without replacement, each in proportion to exp(score). Torch."""

import torch
from torch import Tensor


def sample_top(scores: Tensor, num_picks: int, noise: Tensor) -> Tensor:
    """Draw ordered picks int64 [..., M] from scores [..., N], -inf for what cannot be picked.

    The M largest of scores plus Gumbel noise, in falling order, are a draw without replacement (J. I. Yellott, J. Math.
    Psychology 15, 1977).

    Parameters
    ----------
    noise : independent uniform numbers in (0, 1), of the shape of `scores`.
    """
    gumbel = -torch.log(-torch.log(noise))
    return torch.topk(scores + gumbel, num_picks, dim=-1).indices


def log_probabilities(scores: Tensor, picks: Tensor) -> Tensor:
    """Return the logarithm [..., M] of the probability of each of ordered picks int64 [..., M], given those before it.

    Their sum is that of the whole draw; scores are [..., N].
    """
    chosen = torch.gather(scores, -1, picks)  # (..., M)
    left = scores
    normal = []
    for k in range(picks.shape[-1]):
        normal.append(torch.logsumexp(left, dim=-1))
        left = left.scatter(-1, picks[..., k : k + 1], -torch.inf)
    return chosen - torch.stack(normal, dim=-1)
