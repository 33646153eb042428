"""What the server of FedAlign-MoE does with what clients report of one layer of experts (arXiv:2603.21276).

Clients i are along the first axis N, experts e along the axis E. Where the paper's formulas leave a case open, what is
done is ours and said so.
"""

from typing import NamedTuple

import torch

_LEAST = 1e-12  # of a norm that directions are taken of


def overlap(usage: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return o(e), how much a client's use of experts overlaps with that of all: the product of both, (..., E)."""
    return usage * mean


def reference_routing(
    usage: torch.Tensor, margin: torch.Tensor, before: torch.Tensor, *, consistent: bool = True
) -> torch.Tensor:
    r"""Return the routing of all clients that each of them is held near, (E,).

    .. math:: p_g(e) = \sum_i \omega_i(e) \bar p_i(e), \qquad \omega_i(e) = \frac{s_i(e)}{\sum_j s_j(e)}, \qquad
              s_i(e) = o_i(e) \, m_i(e)

    Ours: it is made to sum to one, which weights by expert do not; and an expert that no client's tokens rank first, so
    that all s(e) are zero, keeps its part.

    Parameters
    ----------
    usage : (N, E), mean probability of experts at each client.
    margin : (N, E), mean lead of each expert, m.
    before : (E,), the reference so far.
    consistent : False gives every client the same weight.
    """
    score = overlap(usage, usage.mean(dim=0)) * margin if consistent else torch.ones_like(usage)  # (N, E)
    total = score.sum(dim=0)  # (E,)
    found = torch.where(total > 0, (score * usage).sum(dim=0) / torch.where(total > 0, total, 1), before)  # (E,)
    return found / found.sum()


class Alignment(NamedTuple):
    """How clients agree on each expert, and how much each of them counts.

    Parameters
    ----------
    share : (N, E), weights of the clients' updates, of each expert summing to one; all zero where nobody trained it.
    semantic : (E,), mean cosine of all pairs of clients' hidden states, themselves included; nan where nobody has any.
    """

    share: torch.Tensor
    semantic: torch.Tensor


def aligned(
    hidden: torch.Tensor,
    updates: torch.Tensor,
    trained: torch.Tensor,
    *,
    beta: float = 0.5,
    sharpness: float = 1.0,
    threshold: float | None = None,
    directions: bool = True,
    size: torch.Tensor | None = None,
) -> Alignment:
    r"""Return how much each client's update of each expert counts.

    .. math:: \gamma_{ij}(e) = \sigma(\kappa (S_{ij} - \tau)) \max(0, D_{ij}), \qquad
              \tau = \operatorname{mean} S - \beta \operatorname{std} S, \qquad
              \text{share}_i(e) = \sum_j \gamma_{ij} \Big/ \sum_{ij} \gamma_{ij}

    S are cosines of the clients' mean hidden states, D those of their updates; mean and standard deviation are over all
    pairs, a client with itself included. Ours: pairs are those of clients that have trained the expert, and have tokens
    that rank it first; kappa is not in the paper, whose value of beta is unknown.

    Parameters
    ----------
    hidden : (N, E, C), mean hidden states.
    updates : (N, E, P), differences of an expert's weights.
    trained : bool (N, E), whose pairs count; of the others neither states nor updates are looked at.
    beta, sharpness : beta and kappa.
    threshold : in place of tau.
    directions : False leaves out D.
    size : (N,), factors of the clients: gamma is multiplied by those of both. Default: one.
    """
    pairs = (trained[:, None] & trained[None]).to(updates.dtype)  # (N, N, E)
    cosine = _cosines(hidden.to(updates.dtype), trained)  # (N, N, E)
    count = pairs.sum(dim=(0, 1))  # (E,)
    mean = (cosine * pairs).sum(dim=(0, 1)) / count  # (E,), nan where nobody is
    deviation = (((cosine - mean) ** 2 * pairs).sum(dim=(0, 1)) / count).sqrt()  # (E,)
    tau = mean - beta * deviation if threshold is None else torch.full_like(mean, threshold)  # (E,)
    gamma = torch.sigmoid(sharpness * (cosine - tau)) * pairs  # (N, N, E)
    if directions:
        gamma = gamma * _cosines(updates, trained).clamp(min=0)
    if size is not None:
        weight = size.to(gamma.dtype)
        gamma = gamma * (weight[:, None] * weight)[..., None]
    gamma = torch.where(pairs > 0, gamma, 0)  # nan where nobody is
    total = gamma.sum(dim=(0, 1))  # (E,)
    return Alignment(gamma.sum(dim=1) / torch.where(total > 0, total, 1), mean)


def _cosines(vectors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return (N, N, E), cosines of pairs among (N, E, P); 0 with those that are zero or not `known` (N, E)."""
    kept = torch.where(known[..., None], vectors, 0)
    unit = kept / kept.norm(dim=-1, keepdim=True).clamp(min=_LEAST)  # (N, E, P)
    return torch.einsum("iep,jep->ije", unit, unit)
