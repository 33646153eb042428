"""Building expert-caching problems from an edge network and routing statistics, recorded or random."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.fields import check_table
from edgeopt.network import EdgeNetwork
from edgeopt.problems.expert_caching.moe_models import MoEModel, moe_model
from edgeopt.problems.expert_caching.routed_model import Latency, RoutedModel
from edgeopt.problems.expert_caching.routing_trace import RoutingTrace
from edgeopt.rng import stream
from edgeopt.validate import LEAST, float_array, int_array, integer, listed

CHUNK = 64  # users whose expert rankings are held in memory at once


@dataclass(frozen=True, slots=True)
class _Work:
    """What one expert costs per token: bits of the hidden state each way, and FLOPs.

    `uses` is how many experts one set of the routing stands for: more than one where only counts are known.
    """

    hidden_bits: float
    flops: float
    uses: int = 1


def facility_fields(gain: ArrayLike, weight: ArrayLike, size: ArrayLike, capacity: ArrayLike) -> dict[str, Any]:
    """Build a Top-1 instance from its facility-location form.

    Maximise the sum over u, e of ``weight[u, e]`` times the largest ``gain[u, n]`` over servers n holding e.

    Parameters
    ----------
    gain : float [U, N], what server n saves user u, >= 0.
    weight : float [U, E], expected uses of expert e by user u, >= 0.
    size : float [E], size of each expert.
    capacity : float [N], storage of each server in the same unit.

    Notes
    -----
    Weights need not be probabilities: each user's total goes into ``user_weight``.
    """
    gains = float_array("gain", gain, (None, None), nonnegative=True, ranged=True)
    weights = float_array("weight", weight, (gains.shape[0], None), nonnegative=True, ranged=True)
    num_users, num_experts = weights.shape
    if num_users == 0 or num_experts == 0:
        raise InvalidProblemError(f"weight: expected users and experts, got shape {list(weights.shape)}")
    total = weights.sum(axis=1)
    probability = weights / np.where(total > 0, total, 1.0)[:, None]
    if (bad := np.argwhere((probability < LEAST) & (weights > 0))).size:
        u, e = bad[0].tolist()
        raise InvalidProblemError(
            f"weight[{u}, {e}] = {weights[u, e]:g}: expected 0 or at least {LEAST:g} of the user's total, {total[u]:g}"
        )
    probability[total == 0] = 1.0 / num_experts
    cloud = gains.max(axis=1, initial=0.0)
    model = RoutedModel(
        name="facility",
        expert_layer=np.zeros(num_experts, np.int32),
        expert_bytes=np.asarray(size, np.float64),
        sets=np.arange(num_experts, dtype=np.int32)[:, None],
        indptr=np.arange(num_users + 1) * num_experts,
        indices=np.tile(np.arange(num_experts, dtype=np.int32), num_users),
        probability=probability.ravel(),
    )
    return {
        "models": (model,),
        "storage_bytes": np.asarray(capacity, np.float64),
        "request": np.ones((num_users, 1)),
        "profile": np.arange(num_users, dtype=np.int32)[:, None],
        "server_latency_s": (cloud[:, None] - gains)[None],
        "cloud_latency_s": cloud[None],
        "device_latency_s": np.zeros((1, num_users)),
        "user_weight": total,
    }


def trace_fields(
    traces: Sequence[RoutingTrace] | RoutingTrace,
    network: EdgeNetwork,
    *,
    models: Sequence[MoEModel | str | None] | None = None,
    storage: ArrayLike | None = 0.1,
    device_storage: float = 0.0,
    request: ArrayLike | None = None,
    assignment: ArrayLike | None = None,
    latency: Latency = "sum",
    theta: float = 0.5,
) -> dict[str, Any]:
    """Build a problem from recorded routing and a network; the devices of the network are the users.

    Parameters
    ----------
    traces : one trace per model.
    network : servers, devices, rates, hops.
    models : whose dimensions to use for expert sizes, hidden states and FLOPs: a `MoEModel`, its name, or None
        for the model that the trace was recorded on. Default: None for all.
    storage : share of all experts' bytes per server, one number or [N]; None takes ``server_storage_bytes``.
    device_storage : share of all experts' bytes per device, filled with the device's own most used experts.
    request : float [U, M], probability that a token of a user belongs to a model. Default: even.
    assignment : int [U, M], which user of each trace a device behaves like. Default: in turn, u mod trace users.
    latency, theta : see the class. A trace of counts only has no other than ``sum``.

    Examples
    --------
    >>> from edgeopt import EdgeNetwork
    >>> from edgeopt.problems import ExpertCaching, bundled_trace
    >>> problem = ExpertCaching.from_traces(bundled_trace("switch32"), EdgeNetwork.random(5, 48, seed=1))
    >>> problem.num_experts, problem.top_k
    (192, 1)
    """
    traces = listed("traces", traces, single=RoutingTrace)
    if not traces:
        raise InvalidProblemError("traces: expected at least one routing trace")
    imagined = [None] * len(traces) if models is None else listed("models", models, single=(str, MoEModel))
    if len(imagined) != len(traces):
        raise InvalidProblemError(f"models: expected one per trace ({len(traces)}), got {len(imagined)}")
    routed, work = [], []
    for trace, name in zip(traces, imagined, strict=True):
        model = moe_model(name) if isinstance(name, str) else name
        routed.append(trace.to_model(None if model is None else model.expert_bytes))
        if trace.counts_only and latency != "sum":
            raise InvalidProblemError(
                f"latency = {latency!r}: trace {trace.name} has counts only: which {trace.experts_per_token} experts a token "
                "used together is not known, and only the sum of their times does not depend on it: expected 'sum'"
            )
        cost = _own_work(trace) if model is None else _Work(model.hidden_bits, model.flops_per_token)
        work.append(dataclasses.replace(cost, uses=trace.experts_per_token if trace.counts_only else 1))
    if assignment is None:
        users = np.arange(network.num_devices)[:, None]
        assignment = users % np.array([model.num_profiles for model in routed])
    rows = int_array("assignment", assignment, (network.num_devices, len(routed)), low=0)
    return _network_fields(
        routed,
        work,
        network,
        storage=storage,
        device_storage=device_storage,
        request=request,
        profile=rows,
    ) | {"latency": latency, "theta": theta}


def random_fields(
    *,
    num_servers: int = 10,
    num_users: int = 100,
    num_models: int = 1,
    num_layers: int = 4,
    experts_per_layer: int = 32,
    top_k: int = 1,
    num_profiles: int | None = None,
    zipf: float = 0.8,
    taste: float = 1.0,
    co_activation: float = 2.0,
    tokens: int = 256,
    storage: ArrayLike | None = 0.1,
    device_storage: float = 0.0,
    latency: Latency = "sum",
    theta: float = 0.5,
    seed: int = 0,
    network: EdgeNetwork | None = None,
) -> dict[str, Any]:
    """Build a random problem: Zipf popularity, profiles that differ in taste, experts that fire together.

    Parameters
    ----------
    num_servers, num_users : size of the random network, unless `network` is given.
    num_models, num_layers, experts_per_layer, top_k : the models; widths cycle through four typical ones.
    num_profiles : ways of using each model, each user has one. Default: at most 32.
    zipf : exponent of the popularity of experts within a layer.
    taste : how much the popularity ranking differs between profiles; 0 means not at all.
    co_activation : how strongly experts of one cluster fire together, in nats; only for ``top_k`` >= 2.
    tokens : tokens drawn per profile to estimate set probabilities; only for ``top_k`` >= 2.
    storage, device_storage : shares of all experts' bytes per server and per device, see `from_traces`.
    latency, theta : see the class.
    seed : same seed, same problem.
    network : take this network instead of a random one.

    Examples
    --------
    >>> from edgeopt.problems import ExpertCaching
    >>> ExpertCaching.random(seed=7) == ExpertCaching.random(seed=7)
    True
    """
    counts = {
        "num_models": num_models,
        "num_layers": num_layers,
        "experts_per_layer": experts_per_layer,
        "top_k": top_k,
        "tokens": tokens,
    }
    num_models, num_layers, experts_per_layer, top_k, tokens = (
        integer(name, value, low=1) for name, value in counts.items()
    )
    if top_k > experts_per_layer:
        raise InvalidProblemError(f"top_k = {top_k}: expected at most experts_per_layer = {experts_per_layer}")
    if network is None:
        network = EdgeNetwork.random(num_servers, num_users, seed=seed)
    num_profiles = (
        min(network.num_devices, 32) if num_profiles is None else integer("num_profiles", num_profiles, low=1)
    )
    check_table("profiles x layers x experts", num_profiles, num_layers, experts_per_layer)
    routed, work = [], []
    for m in range(num_models):
        width, hidden = ((768, 3072), (1024, 2816), (2048, 1408), (1024, 4096))[m % 4]
        dimensions = MoEModel(
            name=f"random-{m}",
            num_layers=num_layers,
            experts_per_layer=experts_per_layer,
            top_k=top_k,
            d_model=width,
            d_ff=hidden,
            gated=m % 2 == 1,
            source="random",
        )
        rng = stream(seed, "routing", m)
        logits = _popularity(rng, num_profiles, num_layers, experts_per_layer, zipf, taste)
        if top_k == 1:
            routed.append(_top_1(dimensions, logits))
        else:
            trace = _drawn_trace(rng, dimensions, logits, tokens, co_activation)
            routed.append(trace.to_model(dimensions.expert_bytes))
        work.append(_Work(dimensions.hidden_bits, dimensions.flops_per_token))
    rng = stream(seed, "users")
    return _network_fields(
        routed,
        work,
        network,
        storage=storage,
        device_storage=device_storage,
        request=rng.dirichlet(np.ones(num_models), network.num_devices),
        profile=rng.integers(0, num_profiles, (network.num_devices, num_models)),
    ) | {"latency": latency, "theta": theta}


def _network_fields(
    models: Sequence[RoutedModel],
    work: Sequence[_Work],
    network: EdgeNetwork,
    *,
    storage: ArrayLike | None,
    device_storage: float,
    request: ArrayLike | None,
    profile: ArrayLike,
) -> dict[str, Any]:
    """Return the fields of a problem of models and a network: latencies from rates, hops and FLOP/s, storage in bytes."""
    if not network.coverage.any(axis=1).all():
        lost = int((~network.coverage.any(axis=1)).argmax())
        raise InvalidProblemError(
            f"coverage: device {lost} is covered by no server, so it reaches neither edge nor cloud"
        )
    server, cloud, device = [], [], []
    for cost in work:
        at_server, at_cloud = network.offload_latency_s(cost.hidden_bits, cost.hidden_bits, cost.flops)
        server.append(cost.uses * at_server)
        cloud.append(cost.uses * at_cloud)
        device.append(cost.uses * network.device_latency_s(cost.flops))
    total = float(sum(model.expert_bytes.sum() for model in models))
    if storage is None:
        capacity = network.server_storage_bytes
    else:
        share = float_array("storage", storage, (network.num_servers,), nonnegative=True, unit="share of all experts")
        capacity = share * total
    shape = (network.num_devices, len(models))
    even = np.full(shape, 1.0 / len(models))
    weights = float_array("request", even if request is None else request, shape, nonnegative=True)
    rows = int_array("profile", profile, shape, low=0)
    for m, model in enumerate(models):
        if (bad := np.flatnonzero(rows[:, m] >= model.num_profiles)).size:
            raise InvalidProblemError(
                f"profile[{bad[0]}, {m}] = {rows[bad[0], m]}: {model.name} has {model.num_profiles} profiles"
            )
    held_share = float_array("device_storage", device_storage, (), nonnegative=True, unit="share of all experts")
    indptr, held = _held_on_devices(models, weights, rows, float(held_share) * total)
    return {
        "models": tuple(models),
        "storage_bytes": capacity,
        "request": weights,
        "profile": rows,
        "server_latency_s": np.array(server),
        "cloud_latency_s": np.array(cloud),
        "device_latency_s": np.array(device),
        "device_indptr": indptr,
        "device_experts": held,
        "access_server": network.access_server,
    }


def _own_work(trace: RoutingTrace) -> _Work:
    """Return the cost of the small model that the trace was recorded on."""
    if (cost := trace.cost_of_expert()) is None:
        raise InvalidProblemError(f"trace {trace.name}: meta lacks d_model or d_ff; pass models=[...] instead")
    return _Work(hidden_bits=cost[0], flops=cost[1])


def _popularity(
    rng: np.random.Generator, profiles: int, layers: int, experts: int, zipf: float, taste: float
) -> NDArray[np.float64]:
    """Return log-probabilities [P, L, E]: Zipf over ranks; a common ranking, blurred by each profile's own taste."""
    common = rng.standard_normal((1, layers, experts))
    own = rng.standard_normal((profiles, layers, experts))
    rank = np.argsort(np.argsort(-(common + taste * own), axis=2), axis=2)
    logits = -zipf * np.log1p(rank)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=2, keepdims=True)))


def _top_1(model: MoEModel, logits: NDArray[np.float64]) -> RoutedModel:
    profiles, layers, experts = logits.shape
    count = layers * experts
    probability = np.exp(logits).ravel()
    return RoutedModel(
        name=model.name,
        expert_layer=np.repeat(np.arange(layers, dtype=np.int32), experts),
        expert_bytes=np.full(count, float(model.expert_bytes)),
        sets=np.arange(count, dtype=np.int32)[:, None],
        indptr=np.arange(profiles + 1) * count,
        indices=np.tile(np.arange(count, dtype=np.int32), profiles),
        probability=np.where(probability < LEAST, 0.0, probability),  # steep ones fall below what a problem takes
    )


def _drawn_trace(
    rng: np.random.Generator, model: MoEModel, logits: NDArray[np.float64], tokens: int, co_activation: float
) -> RoutingTrace:
    """Return the routing of random tokens, `tokens` per profile: each token favours one of a few clusters of experts.

    Top-K of log-probability [P, L, E] plus Gumbel noise draws K experts without replacement (Plackett-Luce); the
    cluster's bonus makes experts of one cluster fire together. Profile by profile, to hold few tokens at once.
    """
    profiles, layers, experts = logits.shape
    clusters = max(2, experts // 8)
    member = rng.integers(0, clusters, (layers, experts))
    parts = []
    for p in range(profiles):
        topic = rng.integers(0, clusters, (1, tokens, layers, 1))
        drawn = rng.gumbel(size=(1, tokens, layers, experts)) + logits[p]
        drawn += co_activation * (member == topic)
        parts.append(RoutingTrace.from_router_logits(drawn, model.top_k, name=model.name))
    return RoutingTrace(
        name=model.name,
        num_layers=layers,
        num_experts=experts,
        set_user=np.repeat(np.arange(profiles, dtype=np.int32), [part.num_rows for part in parts]),
        set_layer=np.concatenate([part.set_layer for part in parts]),
        set_experts=np.concatenate([part.set_experts for part in parts]),
        set_count=np.concatenate([part.set_count for part in parts]),
        tokens_per_user=np.full(profiles, tokens, np.int64),
    )


def _held_on_devices(
    models: Sequence[RoutedModel], request: NDArray[np.float64], profile: NDArray[np.int64], capacity: float
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return CSR lists of the experts that each device holds: its own most used ones per byte while they fit."""
    num_users = profile.shape[0]
    if capacity <= 0:
        return np.zeros(num_users + 1, np.int64), np.zeros(0, np.int32)
    size = np.concatenate([model.expert_bytes for model in models])
    counts, lists = [np.zeros(1, np.int64)], []
    for start in range(0, num_users, CHUNK):
        users = slice(start, start + CHUNK)
        uses = np.concatenate(
            [request[users, m][:, None] * model.uses[profile[users, m]] for m, model in enumerate(models)], axis=1
        )
        order = np.argsort(-uses / size, axis=1, kind="stable")
        held = np.zeros(uses.shape, bool)
        np.put_along_axis(held, order, np.cumsum(size[order], axis=1) <= capacity, axis=1)
        counts.append(held.sum(axis=1))
        lists.append(np.nonzero(held)[1])
    return np.cumsum(np.concatenate(counts)), np.concatenate(lists).astype(np.int32)
