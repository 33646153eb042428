"""Gradients that agree: who leads, how far each client is from the leading direction, and who is near enough to count.

After Z. Lin, O. Aouedi, W. Ni, S. Chatzinotas, X. Chen, GAPSL: A Gradient-Aligned Parallel Split Learning on
Heterogeneous Data, arXiv:2603.18540: its leader gradient identification and gradient direction alignment. What is ours
is called so. All choices follow from the inner products of the gradients, which are read once; nothing depends on the
order of the clients, or on the scale of the gradients.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.training.messages import Tensors
from edgeopt.training.trouble import TrainingError

Floats = NDArray[np.float64]

SLACK = 1e-6
"""Angles that differ by no more, in rad, are equal (ours)."""
_EDGE = 1e-7  # cosines are kept that far from 1 and -1 (ours), where the arc cosine has no slope


def common_names(gradients: Sequence[Tensors]) -> list[str]:
    """Return the names that all have: with different cuts, of the layers above the deepest one (ours)."""
    return [name for name in gradients[0] if all(name in own for own in gradients)]


def inner_products(gradients: Sequence[Tensors], *, whose: Sequence[str] = ()) -> Floats:
    """Return the inner products float64 [N, N] of gradients, over the tensors that all of them have.

    Parameters
    ----------
    whose : names for messages, such as ``client 3``. Default: their numbers.

    Raises
    ------
    TrainingError
        If a gradient is not finite.
    """
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for name in common_names(gradients):
        rows = torch.stack([own[name] for own in gradients]).flatten(1)  # (N, entries)
        rows = (rows.cpu() if rows.device.type == "mps" else rows).double()  # mps has no float64
        products += (rows @ rows.T).cpu()
    found = products.numpy()
    if (bad := np.flatnonzero(~np.isfinite(np.diag(found)))).size:
        who = whose[bad[0]] if whose else f"client {bad[0]}"
        raise TrainingError(
            f"{who}: the gradient of its loss at the server is not finite: expected finite numbers; look at its "
            "activations, or try a smaller step size"
        )
    return found


def angles(products: Floats) -> Floats:
    """Return the angles between gradients, float64 [N, N] in rad; of one that is zero they are pi/2 (ours)."""
    squares = np.diag(products)
    return _arccos(products, np.sqrt(squares[:, None] * squares))


def mean_angles(products: Floats) -> Floats:
    """Return the mean angle float64 [N] of each gradient to the others; 0 where there is no other (ours)."""
    found = angles(products)
    mean: Floats = (found.sum(axis=1) - np.diag(found)) / max(1, len(found) - 1)
    return mean


def leader_share(spread: float, extremes: tuple[float, float], progress: float, limits: tuple[float, float]) -> float:
    """Return which share of the clients leads: the more, the later it is and the less their angles differ.

    ``low + progress * (most - spread) / (most - least) * (high - low)``; the fraction is 1 where all spreads so far are
    the same (ours).

    Parameters
    ----------
    spread : standard deviation over the clients of their mean angles, in rad.
    extremes : the least and the most that it has been, this time included.
    progress : share of the training that is over, 0 to 1.
    limits : least and largest share.

    Examples
    --------
    >>> [leader_share(nu, (0.1, 0.3), 0.5, (0.2, 0.8)) for nu in (0.3, 0.1)]
    [0.2, 0.5]
    """
    (least, most), (low, high) = extremes, limits
    fraction = min(1.0, (most - spread) / (most - least)) if most > least else 1.0
    return low + progress * fraction * (high - low)


def nearest(distance: Floats, share: float) -> NDArray[np.bool_]:
    """Return which share of the clients, rounded up and at least one, has the least of something; ties are in (ours)."""
    count = min(len(distance), max(1, math.ceil(share * len(distance) - 1e-9)))
    return np.asarray(distance <= np.partition(distance, count - 1)[count - 1] + SLACK)


def angles_to_leader(products: Floats, leaders: NDArray[np.bool_]) -> Floats:
    """Return the angles float64 [N] of the gradients to the plain mean of the leaders' ones, in rad."""
    squared = max(0.0, float(products[np.ix_(leaders, leaders)].mean()))  # of the norm of the mean
    return _arccos(products[:, leaders].mean(axis=1), np.sqrt(np.diag(products) * squared))


def aligned(angle: Floats, eta: float, threshold: float | None = None) -> NDArray[np.bool_]:
    """Return whose angle to the leader is at most ``mean - eta * std``, kept within 0 and pi/2.

    If that is nobody, whoever is nearest (ours).

    Parameters
    ----------
    angle : float64 [N], in rad.
    threshold : an angle in place of that, in rad.
    """
    bound = min(float(angle.mean() - eta * angle.std()), math.pi / 2) if threshold is None else threshold
    return angle <= max(bound, 0.0, float(angle.min())) + SLACK


def turned(gradient: Tensors, leader: Tensors, strength: float) -> Tensors:
    """Return a gradient g, turned towards the leader l: ``g + strength |g| (l / |l| - cos(g, l) g / |g|)`` (ours).

    Parameters
    ----------
    leader : of some of the names of `gradient`; the others stay as they are, and all do where one of the two is zero.
    """
    own = {name: gradient[name] for name in leader}
    size, other = _norm(own), _norm(leader)
    towards, away = _ratio(size, other), cosine(own, leader)
    return gradient | {
        name: own[name] + strength * (towards * value - away * own[name]) for name, value in leader.items()
    }


def cosine(first: Tensors, second: Tensors) -> torch.Tensor:
    """Return the cosine between tensors of equal names taken as one vector, a scalar; 0, and flat, where one is zero."""
    inner = torch.stack([(value * second[name]).sum() for name, value in first.items()]).sum()
    return _ratio(inner, _norm(first) * _norm(second))


def _arccos(inner: Floats, sizes: Floats) -> Floats:
    found = np.divide(inner, sizes, out=np.zeros_like(inner), where=sizes > 0)
    return np.asarray(np.arccos(np.clip(found, -1 + _EDGE, 1 - _EDGE)))


def _norm(tensors: Tensors) -> torch.Tensor:
    square = torch.stack([(value**2).sum() for value in tensors.values()]).sum()
    return torch.where(square > 0, torch.sqrt(torch.where(square > 0, square, 1)), 0)  # without a slope at 0


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    return torch.where(below > 0, above / torch.where(below > 0, below, 1), 0)
