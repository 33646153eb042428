"""Is a cache worth it? What the routing of a model allows any placement of its experts, before there is a network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import edgeopt
from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.network import EdgeNetwork
from edgeopt.problems import ExpertCaching, MoEModel, RoutingTrace
from edgeopt.problems.expert_caching.routed_model import Latency
from edgeopt.validate import float_array

STORAGE = (0.05, 0.1, 0.2)
SERVERS, DEVICES_PER_USER = 5, 2
EVEN = 0.05
"""Placements that gain less than this over experts at random, in hits or in latency, gain nothing from the routing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLimit:
    """What servers that hold a share of all experts can bring.

    Parameters
    ----------
    storage : share of all experts.
    hit_at_most : share of expert uses that a user's own server serves, at most, under any placement: as if each user had
        a server of its own. Exact for one server per user.
    hit_common : the same if all users share one server; popularity reaches it, nothing exceeds it.
    hit_random : the same for experts that are chosen at random: the share of storage itself.
    latency_without_s : mean seconds per token without a cache, on the network, whose servers help each other; None where
        the sizes of the model are not known.
    latency_random_s, latency_popularity_s, latency_found_s : the same if servers are filled at random, if every server
        caches what is popular, and for the best placement that was found.
    latency_at_least_s : no placement is below it: certified.
    """

    storage: float
    hit_at_most: float
    hit_common: float
    hit_random: float
    latency_without_s: float | None = None
    latency_random_s: float | None = None
    latency_popularity_s: float | None = None
    latency_found_s: float | None = None
    latency_at_least_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachingLimits:
    """Limits of caching for one trace.

    Parameters
    ----------
    name : of the model.
    limits : by share of storage, ascending.
    user_hits : float64 [S, G], the part of ``hit_at_most`` of each user.
    layer_hits : float64 [S, L], the same by layer.
    effective_experts : float64 [G, L], the exponential of the entropy of a user's uses in a layer: how many experts are
        in use, as it were.
    num_experts : per layer, E.
    """

    name: str
    limits: tuple[StorageLimit, ...]
    user_hits: NDArray[np.float64]
    layer_hits: NDArray[np.float64]
    effective_experts: NDArray[np.float64]
    num_experts: int
    curve: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] = field(repr=False)
    """Shares of storage, and for each of them the largest hit ratio with a server per user, and with one for all."""

    __repr__ = one_line

    @property
    def verdict(self) -> str:
        """In words, whether a cache is worth it, for the share of storage at which placements gain the most hits."""
        limit = max(self.limits, key=lambda limit: limit.hit_at_most - limit.hit_random)
        hits = (
            f"With {limit.storage:.3g} of the experts, a server serves at most {limit.hit_at_most:.1%} of the uses of a user "
            f"of its own, {limit.hit_common:.1%} if all users share it, {limit.hit_random:.1%} with experts at random."
        )
        even = limit.hit_at_most - limit.hit_random < EVEN
        if limit.latency_without_s is None:
            return f"{hits} Routing is so even that no placement helps." if even else hits
        random, popular, found = (
            1 - (seconds or 0.0) / limit.latency_without_s
            for seconds in (limit.latency_random_s, limit.latency_popularity_s, limit.latency_found_s)
        )
        network = (
            f"On the network, where servers help each other, the best placement found saves {found:.1%} of the latency, "
            f"popularity {popular:.1%}, experts at random {random:.1%}."
        )
        if not even:
            return f"{hits} {network}"
        if found - random < EVEN:
            return f"{hits} {network} Routing is so even that no placement helps: any experts will do."
        return f"{hits} Routing is so even that a server on its own gains nothing by choosing. {network}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        names = StorageLimit.__dataclass_fields__
        return {
            "name": self.name,
            "verdict": self.verdict,
            "limits": [{name: getattr(limit, name) for name in names} for limit in self.limits],
            "user_hits": self.user_hits.tolist(),
            "layer_hits": self.layer_hits.tolist(),
            "effective_experts": self.effective_experts.tolist(),
        }


def caching_limits(
    trace: RoutingTrace,
    storage: ArrayLike = STORAGE,
    *,
    network: EdgeNetwork | None = None,
    model: MoEModel | str | None = None,
    latency: Latency = "sum",
    theta: float = 0.5,
    time_limit: float = 0.1,
    seed: int = 0,
) -> CachingLimits:
    """Return what the routing of a trace allows any placement.

    Hit ratios need no network: experts of a trace are of equal size, so the most used ones that fit are the best a server
    can hold. Latencies come from `edgeopt.problems.ExpertCaching` on a network.

    Parameters
    ----------
    storage : shares of all experts that a server holds, each above 0 and at most 1.
    network : where latencies are computed. Default: a random one of five servers, two devices for each user.
    model : whose sizes the latencies are for. Default: those that the trace was recorded with; where it has none, no
        latencies.
    latency, theta : of a set of experts, see `edgeopt.problems.ExpertCaching`.
    time_limit : seconds of the solver for each share.
    seed : of the random network and the solver.

    Raises
    ------
    InvalidProblemError
        If a share is out of range.

    Examples
    --------
    >>> from edgeopt.problems import RoutingTrace
    >>> trace = RoutingTrace.from_expert_ids([[[0]], [[0]], [[1]], [[0]]], num_experts=4)
    >>> found = caching_limits(trace, [0.25])
    >>> found.limits[0].hit_at_most, found.limits[0].hit_random
    (0.75, 0.25)
    """
    shares = np.unique(float_array("storage", storage, (None,), positive=True, unit="share of all experts"))
    if not shares.size or shares[-1] > 1:
        raise InvalidProblemError(f"storage = {shares.tolist()}: expected shares of all experts, up to 1")
    model_of_trace = trace.to_model(1.0)
    uses = model_of_trace.uses / model_of_trace.top_k / trace.num_layers  # (G, L * E), of a user they add up to 1
    tokens = trace.tokens_per_user / trace.tokens_per_user.sum()  # (G,)
    room = np.floor(shares * uses.shape[1] + 1e-9).astype(np.int64)  # experts that fit
    order = np.argsort(-uses, axis=1, kind="stable")
    own = np.cumsum(np.take_along_axis(uses, order, axis=1), axis=1)  # (G, L * E), of the most used ones
    common = np.cumsum(np.sort(tokens @ uses)[::-1])
    user_hits = np.array([_at(own, count) for count in room])  # (S, G)
    layer_hits = np.array([_by_layer(uses, order, count, tokens, trace.num_layers) for count in room])  # (S, L)
    latencies = _latencies(trace, shares.tolist(), network, model, (latency, theta), time_limit, seed)
    limits = tuple(
        StorageLimit(
            storage=share,
            hit_at_most=float(tokens @ hits),
            hit_common=float(_at(common[None], count)[0]),
            hit_random=float(count / uses.shape[1]),
            **times,
        )
        for share, count, hits, times in zip(shares.tolist(), room.tolist(), user_hits, latencies, strict=True)
    )
    layers = uses.reshape(len(uses), trace.num_layers, trace.num_experts) * trace.num_layers  # (G, L, E)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(layers > 0, layers * np.log(layers), 0.0).sum(axis=2)
    held = np.arange(1, uses.shape[1] + 1) / uses.shape[1]
    return CachingLimits(
        name=trace.name,
        limits=limits,
        user_hits=user_hits,
        layer_hits=layer_hits,
        effective_experts=np.exp(entropy),
        num_experts=trace.num_experts,
        curve=(held, tokens @ own, common),
    )


def _at(sums: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the sum over the first `count` of each row."""
    return sums[:, count - 1] if count else np.zeros(len(sums))


def _by_layer(
    uses: NDArray[np.float64], order: NDArray[np.int64], count: int, tokens: NDArray[np.float64], num_layers: int
) -> NDArray[np.float64]:
    """Return the hit ratio in each layer where each user's most used experts of all layers are held, [L]."""
    held = np.zeros(uses.shape, bool)
    np.put_along_axis(held, order[:, :count], True, axis=1)
    by_layer = (uses * held).reshape(len(uses), num_layers, -1).sum(axis=2) * num_layers  # (G, L)
    found: NDArray[np.float64] = tokens @ by_layer
    return found


def _latencies(
    trace: RoutingTrace,
    shares: Sequence[float],
    network: EdgeNetwork | None,
    model: MoEModel | str | None,
    latency: tuple[Latency, float],
    time_limit: float,
    seed: int,
) -> list[dict[str, float]]:
    """Return seconds per token for each share; nothing where the sizes of the model are not known."""
    sized = "bytes_per_expert" in trace.meta or "bytes_per_expert_fp16" in trace.meta
    if model is None and (trace.cost_of_expert() is None or not sized):
        return [{} for _ in shares]
    if network is None:
        network = EdgeNetwork.random(SERVERS, DEVICES_PER_USER * trace.num_users, seed=seed)
    found = []
    for share in shares:
        problem = ExpertCaching.from_traces(
            trace, network, models=[model], storage=share, latency=latency[0], theta=latency[1]
        )
        results = [
            edgeopt.solve(problem, name, time_limit=time_limit, seed=seed).raise_for_status()
            for name in ("random", "popularity", "lagrangian")
        ]
        placements: list[Any] = [result.solution for result in results]
        reports = [problem.report(placement) for placement in placements]
        without = reports[0].latency_without_cache_s
        weight = float(np.sum(problem.user_weight))  # the objective is what all users save, the latency a mean of them
        most = min(result.bound for result in results if result.bound is not None) / weight
        found.append(
            {
                "latency_without_s": without,
                "latency_random_s": reports[0].latency_s,
                "latency_popularity_s": reports[1].latency_s,
                "latency_found_s": min(report.latency_s for report in reports),
                "latency_at_least_s": max(0.0, without - most),
            }
        )
    return found
