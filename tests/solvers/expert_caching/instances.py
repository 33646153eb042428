"""Tiny instances of expert caching with known optima, and random small ones."""

import functools
from itertools import combinations

import numpy as np

from edgeopt.problems import ExpertCaching, Placement, RoutedModel
from tests.solvers.tiny import Tiny, by_name

CHUNK = 4096  # placements evaluated at a time


# --- enumeration -------------------------------------------------------------------------------------------------


def brute_force(problem: ExpertCaching) -> tuple[float, Placement]:
    """Return the optimum and a placement that attains it, by enumerating every feasible placement."""
    num_bits = problem.num_servers * problem.num_experts
    if num_bits > 18:
        raise ValueError(f"{num_bits} (server, expert) pairs are too many to enumerate")
    shape = (-1, problem.num_servers, problem.num_experts)
    best_value, best = -np.inf, np.zeros(shape[1:], bool)
    for start in range(0, 1 << num_bits, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, 1 << num_bits))
        cached = ((numbers[:, None] >> np.arange(num_bits)) & 1).astype(bool).reshape(shape)
        cached = cached[(cached @ problem.expert_bytes <= problem.storage_bytes * (1 + 1e-9)).all(axis=1)]
        if cached.size == 0:
            continue
        values = savings(problem, cached)
        if values.max() > best_value:
            best_value, best = float(values.max()), cached[values.argmax()]
    return best_value, Placement(best)


def savings(problem: ExpertCaching, cached: np.ndarray) -> np.ndarray:
    """Return the objective of many placements ``bool [P, N, E]``, straight from the definition of latency."""
    empty = np.zeros_like(cached[:1])
    return latency(problem, empty) - latency(problem, cached)


def latency(problem: ExpertCaching, cached: np.ndarray) -> np.ndarray:
    """Return float [P]: weighted expected seconds per token under each placement ``bool [P, N, E]``."""
    total = np.zeros(cached.shape[0])
    first = problem.first_expert
    for m, model in enumerate(problem.models):
        here = cached[:, :, first[m] : first[m + 1]]  # (P, N, E_m)
        for u in range(problem.num_users):
            held = [e - first[m] for e in problem.holds(u) if first[m] <= e < first[m + 1]]
            at_server = np.where(here, problem.server_latency_s[m, u][:, None], np.inf).min(axis=1)  # (P, E_m)
            time = np.minimum(at_server, problem.cloud_latency_s[m, u])
            time[:, held] = problem.device_latency_s[m, u]
            entries = slice(*model.indptr[problem.profile[u, m] : problem.profile[u, m] + 2])
            of_set = time[:, model.sets[model.indices[entries]]]  # (P, entries, K)
            added, largest = of_set.sum(axis=2), of_set.max(axis=2)
            mixed = (1 - problem.theta) * added + problem.theta * model.top_k * largest
            per_set = {"sum": added, "max": largest, "mix": mixed}[problem.latency]
            weight = problem.user_weight[u] * problem.request[u, m]
            total += weight * (per_set @ model.probability[entries])
    return total


# --- random small problems ---------------------------------------------------------------------------------------


def random_model(
    rng: np.random.Generator, *, num_experts: int, num_layers: int = 1, top_k: int = 1, num_profiles: int = 2,
    size: float = 1.0, name: str = "model",
) -> RoutedModel:  # fmt: skip
    """Return a model whose profiles activate a random choice of sets with random probabilities."""
    layer = np.sort(np.arange(num_experts) % num_layers)
    sets, of_layer = [], []
    for number in range(num_layers):
        found = list(combinations(np.flatnonzero(layer == number).tolist(), top_k))
        sets += found
        of_layer += [number] * len(found)
    indptr, indices, probability = [0], [], []
    for _ in range(num_profiles):
        for number in range(num_layers):
            choices = np.flatnonzero(np.array(of_layer) == number)
            chosen = rng.permutation(choices)[: rng.integers(1, choices.size + 1)]
            indices += chosen.tolist()
            probability += rng.dirichlet(np.ones(chosen.size)).tolist()
        indptr.append(len(indices))
    return RoutedModel(
        name=name, expert_layer=layer, expert_bytes=size, sets=np.array(sets), indptr=indptr, indices=indices,
        probability=probability,
    )  # fmt: skip


def random_problem(
    rng: np.random.Generator, *, num_servers: int = 2, num_users: int = 3, experts: tuple[int, ...] = (4,),
    num_layers: int = 1, top_k: tuple[int, ...] | int = 1, sizes: tuple[float, ...] = (1.0,), latency: str = "sum",
    theta: float = 0.5, storage: float = 0.5, reach: float = 0.8, device: float = 0.0,
) -> ExpertCaching:  # fmt: skip
    """Return a random problem.

    Parameters
    ----------
    experts, top_k, sizes : experts, K and bytes per expert of each model.
    storage : mean storage of a server as a share of the bytes of all experts.
    reach : probability that a user reaches a server.
    device : probability that a device holds an expert.
    """
    top_ks = (top_k,) * len(experts) if isinstance(top_k, int) else top_k
    models = tuple(
        random_model(
            rng, num_experts=count, num_layers=num_layers, top_k=k, size=sizes[m % len(sizes)], name=f"model {m}"
        )
        for m, (count, k) in enumerate(zip(experts, top_ks, strict=True))
    )
    shape = (len(models), num_users)
    server = np.round(rng.uniform(0.0, 1.2, (*shape, num_servers)), 2)
    server[rng.random(server.shape) >= reach] = np.inf
    held = rng.random((num_users, sum(experts))) < device
    total = sum(model.expert_bytes.sum() for model in models)
    return ExpertCaching(
        models=models,
        storage_bytes=np.round(total * storage * rng.uniform(0.4, 1.6, num_servers), 1),
        request=rng.dirichlet(np.ones(len(models)), num_users),
        profile=rng.integers(0, 2, (num_users, len(models))),
        server_latency_s=server,
        cloud_latency_s=np.round(rng.uniform(0.7, 1.0, shape), 2),
        device_latency_s=np.round(rng.uniform(0.1, 1.1, shape), 2),
        device_indptr=np.concatenate([[0], np.cumsum(held.sum(axis=1))]),
        device_experts=np.nonzero(held)[1],
        user_weight=np.round(rng.uniform(0.5, 2.0, num_users), 2),
        access_server=rng.integers(-1, num_servers, num_users),
        latency=latency,  # type: ignore[arg-type]
        theta=theta,
    )


# --- named instances ---------------------------------------------------------------------------------------------


def hand_made(
    *, sets: list[list[int]], probability: list[float], num_experts: int, server: list[float], storage: list[float],
    cloud: float = 1.0, **other: object,
) -> ExpertCaching:  # fmt: skip
    """Return a problem with one user and one model of one layer."""
    model = RoutedModel(
        name="by hand", expert_layer=np.zeros(num_experts, int), expert_bytes=1.0, sets=np.array(sets),
        indptr=[0, len(sets)], indices=np.arange(len(sets)), probability=probability,
    )  # fmt: skip
    fields: dict[str, object] = {
        "models": (model,), "storage_bytes": storage, "request": [[1.0]], "profile": [[0]],
        "server_latency_s": [[server]], "cloud_latency_s": [[cloud]], "device_latency_s": [[0.0]],
    }  # fmt: skip
    return ExpertCaching(**(fields | other))  # type: ignore[arg-type]


def greedy_gadget() -> ExpertCaching:
    """Return the instance on which greedy takes half: the first pick blocks the only server of user a."""
    return ExpertCaching.from_facility(
        gain=[[1.0, 0.0], [1.01, 1.0]], weight=[[1.0, 0.0], [0.0, 1.0]], size=[1.0, 1.0], capacity=[1.0, 1.0]
    )


def max_trap() -> ExpertCaching:
    """Return the instance on which every single placement gains nothing."""
    return hand_made(
        sets=[[0, 1]], probability=[1.0], num_experts=2, server=[0.25, 0.5], storage=[1.0, 1.0], latency="max"
    )


def two_sizes() -> ExpertCaching:
    """Return two Top-1 models whose experts take 1 and 3 bytes."""
    one, two = (
        RoutedModel(
            name=f"{size} bytes", expert_layer=[0, 0], expert_bytes=size, sets=[[0], [1]], indptr=[0, 2],
            indices=[0, 1], probability=probability,
        )
        for size, probability in ((1.0, [0.6, 0.4]), (3.0, [0.9, 0.1]))
    )  # fmt: skip
    return ExpertCaching(
        models=(one, two), storage_bytes=[3.0, 1.0], request=[[0.5, 0.5]], profile=[[0, 0]],
        server_latency_s=[[[0.0, 0.5]], [[0.0, 0.5]]], cloud_latency_s=2.0, device_latency_s=0.0,
    )  # fmt: skip


def device_caps(device_latency: float, latency: str = "max") -> ExpertCaching:
    """Return a user whose device holds expert 0, used together with expert 1."""
    return hand_made(
        sets=[[0, 1], [1, 2]], probability=[0.5, 0.5], num_experts=3, server=[0.2, 0.4], storage=[1.0, 1.0],
        device_latency_s=[[device_latency]], device_indptr=[0, 1], device_experts=[0], latency=latency,
    )  # fmt: skip


def _random(seed: int, **options: object) -> ExpertCaching:
    return random_problem(np.random.default_rng(seed), **options)  # type: ignore[arg-type]


Instance = functools.partial(Tiny, brute_force)

TINY: tuple[Tiny, ...] = (
    # e1 at A saves 1, e2 at B saves 1; e2 at A would save 1.01 but then e1 has no place
    Instance("greedy gadget", greedy_gadget(), 2.0),
    # one expert at each server: the slower server, 0.5, decides: 1 - 0.5
    Instance("max trap", max_trap(), 0.5),
    # 3-byte expert 0 at server 0: 0.5 * 0.9 * 2 = 0.9; 1-byte expert 0 at server 1: 0.5 * 0.6 * 1.5 = 0.45
    Instance("two sizes", two_sizes(), 1.35),
    # e1 at server 0, e2 at server 1: set {0, 1} saves 1 - max(0.5, 0.2), set {1, 2} saves 1 - 0.4
    Instance("device caps the saving", device_caps(0.5), 0.5 * 0.5 + 0.5 * 0.6),
    # the device is slower than the cloud: set {0, 1} saves nothing, set {1, 2} saves 1 - 0.4
    Instance("device slower than the cloud", device_caps(1.5), 0.3),
    # mix, K = 2: 0.5 * sum + 0.5 * 2 * max; e1 at server 0 and e2 at server 1:
    # {0, 1}: 0.5 * 0.8 + 0.5 = 0.9, {1, 2}: 0.5 * (0.8 + 0.6) + 0.6 = 1.3
    Instance("device in a mix", device_caps(0.5, "mix"), 1.1),
    # no server is within reach
    Instance(
        "unreachable",
        hand_made(sets=[[0], [1]], probability=[0.5, 0.5], num_experts=2, server=[np.inf], storage=[2.0]),
        0.0,
    ),
    # every server is slower than the cloud
    Instance(
        "useless servers",
        hand_made(sets=[[0], [1]], probability=[0.5, 0.5], num_experts=2, server=[1.5, 1.0], storage=[2.0, 1.0]),
        0.0,
    ),
    # the fast server has no storage; the slow one holds the more popular expert: 0.7 * (1 - 0.6)
    Instance(
        "server without storage",
        hand_made(sets=[[0], [1]], probability=[0.3, 0.7], num_experts=2, server=[0.1, 0.6], storage=[0.0, 1.5]),
        0.28,
    ),
    Instance("K = 1", _random(1, num_servers=3, num_users=5, experts=(5,))),
    Instance("K = 1, devices, two models", _random(2, num_users=4, experts=(3, 4), sizes=(1.0, 2.0), device=0.2)),
    Instance("K = 1, real sizes", _random(3, num_servers=2, num_users=4, experts=(4, 3), sizes=(2**0.5, 5**0.5))),
    Instance("K = 2, sum", _random(4, num_users=4, experts=(6,), num_layers=2, top_k=2, device=0.1)),
    Instance("K = 2, max", _random(5, num_users=4, experts=(6,), num_layers=2, top_k=2, latency="max")),
    Instance("K = 2, max, devices", _random(6, num_users=4, experts=(7,), top_k=2, latency="max", device=0.3)),
    Instance("K = 2, mix", _random(7, num_servers=3, num_users=3, experts=(5,), top_k=2, latency="mix", theta=0.3)),
    Instance("K = 3, max", _random(8, num_users=3, experts=(5,), top_k=3, latency="max", device=0.2, storage=0.7)),
    Instance("K = 3, mix", _random(9, num_users=3, experts=(6,), top_k=3, latency="mix", theta=0.8, device=0.2)),
    Instance(
        "K = 1 and K = 2, max, two sizes",
        _random(10, num_users=4, experts=(3, 4), top_k=(1, 2), sizes=(1.0, 2.0), latency="max", device=0.2),
    ),
)

instance = functools.partial(by_name, TINY)
