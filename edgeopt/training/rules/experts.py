"""Mixtures of experts in training: which layers there are, which experts a mini-batch should train, what clients report.

Tokens of a layer are along the leading axes (...), its E experts along the last one. All of it runs inside
`torch.func.vmap`.
"""

from typing import Literal, NamedTuple

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.models.moe import Experts, LayerRouting
from edgeopt.training.task import Task
from edgeopt.validate import integer

Scope = Literal["layer", "model"]
"""Of what a budget of experts is: of each layer, or of all layers together."""

_NETWORKS = ("up", "up_bias", "down", "down_bias")
_LEAST = 1e-9  # of a probability, in logarithms


class Mixture(NamedTuple):
    """A layer of experts in the model of a task.

    Parameters
    ----------
    experts, top_k : experts E, and how many a token uses.
    networks : names of the trained weights of the experts, stacked along their first axis.
    router : names of the trained weights of the router.
    """

    experts: int
    top_k: int
    networks: tuple[str, ...]
    router: tuple[str, ...]


def mixtures(task: Task, algorithm: str, *, routers: bool = False) -> dict[str, Mixture]:
    """Return the layers of experts by name.

    Parameters
    ----------
    algorithm : name of the one that needs them, for messages.
    routers : whether they need routers that are trained.

    Raises
    ------
    InvalidProblemError
        If the model has none, or one whose experts, or router, are not trained.
    """
    if not task.experts:
        raise InvalidProblemError(f"model: {algorithm} trains layers of experts, it has none")
    found = {}
    for name, count in task.experts.items():
        layer = task.model.get_submodule(name)
        assert isinstance(layer, Experts)
        networks = tuple(f"{name}.{part}" for part in _NETWORKS if f"{name}.{part}" in task.parameters)
        router = tuple(weight for weight in task.weight_names if weight.startswith(f"{name}.router."))
        for needed, there, what in ((True, networks, ""), (routers, router, ".router")):
            if needed and not there:
                raise InvalidProblemError(
                    f"model: {name}{what}: {algorithm} trains it, expected weights that are not frozen"
                )
        found[name] = Mixture(count, layer.top_k, networks, router)
    return found


def check_scope(scope: str) -> None:
    """Refuse an unknown scope of a budget."""
    if scope not in ("layer", "model"):
        raise InvalidProblemError(f"budget = {quoted(scope)}: expected 'layer' or 'model'")


def most_learners(task: Task, scope: Scope) -> int:
    """Return the largest budget of experts that means something."""
    return sum(task.experts.values()) if scope == "model" else max(task.experts.values())


def learners(task: Task, budget: int, scope: Scope) -> dict[str, int]:
    """Return how many experts of each layer learn from a mini-batch at most.

    Parameters
    ----------
    budget : experts that a client trains per mini-batch; 0 for no limit. Of all layers together, the first layers are
        counted in full: which experts it will be is not known before the mini-batch, and layers are of one size usually.

    Raises
    ------
    InvalidProblemError
        If there are not so many.
    """
    most = most_learners(task, scope)
    integer("experts", budget, low=0, high=most)
    left, counts = budget or most, {}
    for name, count in task.experts.items():
        counts[name] = min(left, count)
        if scope == "model":
            left -= counts[name]
    return counts


# --- scores of a mini-batch -------------------------------------------------------------------------------------------


def importance(probability: torch.Tensor, mix: float = 0.5) -> torch.Tensor:
    r"""Return the importance of experts for some tokens (HFedMoE, arXiv:2601.00583).

    .. math:: s(e) = \lambda \operatorname{mean}_x G_e(x) + (1 - \lambda) \max_x G_e(x)

    Parameters
    ----------
    probability : (..., E), softmax of the router over all experts, G.
    mix : lambda, 0 to 1.

    Returns
    -------
    (E,)
    """
    tokens = probability.flatten(0, -2)  # (N, E)
    return mix * tokens.mean(dim=0) + (1 - mix) * tokens.amax(dim=0)  # (E,)


def information(probability: torch.Tensor, mix: float = 0.5, beta: float = 1.0) -> torch.Tensor:
    r"""Return the score by which the information bottleneck ranks experts for some tokens (arXiv:2601.00583).

    .. math:: I(e) = s(e) - \beta \operatorname{mean}_x G_e(x) \ln \frac{G_e(x)}{q(e)}, \qquad
              q(e) = \operatorname{mean}_x G_e(x)

    The second term, what the choice of the expert tells of the token, is >= 0 for every expert; it is no divergence of
    distributions, and kept as it is written.

    Parameters
    ----------
    probability, mix : as in `importance`.
    beta : weight of the second term; 0 leaves the importance.
    """
    tokens = probability.flatten(0, -2)  # (N, E)
    told = torch.special.xlogy(
        tokens, tokens / tokens.mean(dim=0)
    ).nan_to_num()  # (N, E); of an expert at zero, nothing
    score: torch.Tensor = importance(probability, mix) - beta * told.mean(dim=0)  # (E,)
    return score


def most(score: torch.Tensor, among: torch.Tensor, count: int) -> torch.Tensor:
    """Return bool (E,): the `count` experts of highest score of those in `among` (E,); ties go to the lowest index."""
    order = torch.where(among, score, -torch.inf).argsort(dim=-1, descending=True, stable=True)  # (E,)
    return among & (order.argsort(dim=-1) < count)


def gate_shares(usage: torch.Tensor, importance: torch.Tensor, preferred: torch.Tensor) -> torch.Tensor:
    r"""Return how much each of M clients counts in the average of routers, float64 (M,) (arXiv:2601.00583).

    .. math:: \alpha(c) = \frac{1}{|S|} \sum_{e \in S_c} u_c(e) \, s_c(e), \qquad S = \bigcup_c S_c

    They sum to no fixed number. Ours: averages normalise them.

    Parameters
    ----------
    usage, importance : (M, E), u and s of each client.
    preferred : bool (M, E), the experts S_c that each client uses enough.
    """
    of = preferred.any(dim=0).sum().clamp(min=1)
    share: torch.Tensor = (usage.double() * importance * preferred).sum(dim=1) / of
    return share


# --- what a client tells of its data ----------------------------------------------------------------------------------


class Sight(NamedTuple):
    """What a client's tokens look like to a layer of experts (FedAlign-MoE, arXiv:2603.21276).

    Parameters
    ----------
    usage : (E,), mean probability of each expert.
    margin : (E,), mean lead of an expert over all others, 0 for a token where it has none.
    hidden : (E, C), mean of what enters the layer for the tokens that rank an expert first; 0 where no token does.
    first : bool (E,), whether a token ranks it first.
    """

    usage: torch.Tensor
    margin: torch.Tensor
    hidden: torch.Tensor
    first: torch.Tensor


def sight(routing: LayerRouting) -> Sight:
    """Return what the tokens of a pass look like to a layer."""
    assert routing.hidden is not None
    tokens, vectors = routing.probability.flatten(0, -2), routing.hidden.flatten(0, -2)  # (N, E), (N, C)
    count = tokens.shape[-1]
    best = routing.experts[..., 0].flatten()[:, None] == torch.arange(count, device=tokens.device)  # (N, E)
    lead = tokens  # of a single expert: there is nobody to be ahead of
    if count > 1:
        top = tokens.topk(2, dim=-1).values  # (N, 2)
        lead = (top[:, :1] - top[:, 1:]) * best  # (N, E)
    of = best.sum(dim=0)  # (E,)
    mean = best.to(vectors.dtype).T @ vectors / of.clamp(min=1)[:, None]  # (E, C)
    return Sight(tokens.mean(dim=0), lead.mean(dim=0), mean, of > 0)


def alike_loss(
    probability: torch.Tensor, chosen: torch.Tensor, reference: torch.Tensor, top_k: int, weight: torch.Tensor
) -> torch.Tensor:
    r"""Return how far a router is from a reference on its tokens (arXiv:2603.21276, equations 8 to 11).

    .. math:: \operatorname{mean}_x \sum_e \alpha(e) \, p(x, e) \ln \frac{p(x, e)}{p_g(e)} \,
              1[e \in \mathrm{top}_K(p(x)) \text{ or } e \in \mathrm{top}_K(p_g)]

    Logarithms are of 1e-9 at least (ours), so that a reference may be zero.

    Parameters
    ----------
    probability : (..., E), p.
    chosen : bool (..., E), the experts of each token.
    reference : (E,), p_g.
    weight : (E,), alpha.
    """
    global_best = most(reference, torch.ones_like(reference, dtype=torch.bool), top_k)  # (E,)
    ratio = probability.clamp(min=_LEAST).log() - reference.clamp(min=_LEAST).log()  # (..., E)
    return (weight * probability * ratio * (chosen | global_best)).sum(dim=-1).mean()
