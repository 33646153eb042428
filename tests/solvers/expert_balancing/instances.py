"""Tiny instances of expert balancing with known optima, and their optimum by trying every placement, in plain Python."""

import functools
import math
from itertools import combinations_with_replacement, product

import numpy as np

from edgeopt.problems import ExpertBalancing, Replicas
from tests.solvers.tiny import Tiny, by_name

MOST_PLACEMENTS = 200_000


def value(problem: ExpertBalancing, layer: int, held: tuple[tuple[int, ...], ...]) -> float:
    """Return what a layer costs whose devices hold these experts; inf where a limit is broken."""
    everywhere = [expert for experts in held for expert in experts]
    if set(everywhere) != set(range(problem.num_experts)):
        return math.inf
    if any(len(experts) > slots for experts, slots in zip(held, problem.slots.tolist(), strict=True)):
        return math.inf
    homes: dict[int, set[int]] = {}
    for device, experts in enumerate(held):
        for expert in experts:
            homes.setdefault(int(problem.expert_group[expert]), set()).add(int(problem.device_group[device]))
    if any(len(groups) > 1 for groups in homes.values()):
        return math.inf
    loads = [sum(problem.load[layer, e] / everywhere.count(e) for e in experts) for experts in held]
    moves = 0
    if problem.present is not None:
        for device, experts in enumerate(held):
            there = problem.present[layer, device].tolist()
            moves += sum(max(0, experts.count(e) - there.count(e)) for e in set(experts))
    return max(loads) + problem.move_cost * moves


def brute_force(problem: ExpertBalancing) -> tuple[float, Replicas]:
    """Return the optimum and a placement that attains it; layers do not depend on each other."""
    tried = math.prod(math.comb(problem.num_experts + slots, slots) for slots in problem.slots.tolist())
    if tried > MOST_PLACEMENTS:
        raise ValueError(f"{problem.num_devices} devices and {problem.num_experts} experts are too many to enumerate")
    options = [
        [held for size in range(slots + 1) for held in combinations_with_replacement(range(problem.num_experts), size)]
        for slots in problem.slots.tolist()
    ]
    total, experts = 0.0, np.full((problem.num_layers, problem.num_devices, int(problem.slots.max())), -1)
    for layer in range(problem.num_layers):
        best = min(product(*options), key=lambda held: value(problem, layer, held))
        total += value(problem, layer, best)
        for device, held in enumerate(best):
            experts[layer, device, : len(held)] = held
    return total, Replicas(experts)


def random_problem(seed: int) -> ExpertBalancing:
    """Return a small problem of any form: unequal slots, groups, a present placement, free and costly moves, zero loads."""
    rng = np.random.default_rng(seed)
    devices, experts = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    slots = rng.integers(0, 3, devices)
    while slots.sum() < experts:
        slots[rng.integers(devices)] += 1
    layers = int(rng.integers(1, 3))
    load = np.round(np.exp(2 * rng.standard_normal((layers, experts))), 2) * (rng.random((layers, experts)) > 0.1)
    fields: dict[str, object] = {"load": load, "slots": slots}
    if rng.random() < 0.4:
        fields["device_group"] = np.arange(devices) % 2
        fields["expert_group"] = rng.integers(0, 2, experts)
        room = np.bincount(np.arange(devices) % 2, slots)
        if np.bincount(fields["expert_group"]).max() > room.max():  # type: ignore[arg-type]
            del fields["device_group"], fields["expert_group"]
    if rng.random() < 0.5:
        fields["present"] = rng.integers(-1, experts, (layers, devices, 2))
        fields["move_cost"] = float(rng.choice([0.0, 0.1, 1.0]))
    return ExpertBalancing(**fields)  # type: ignore[arg-type]


Instance = functools.partial(Tiny, brute_force)

TINY: tuple[Tiny, ...] = (
    Instance("one each", ExpertBalancing(load=[[3.0, 1.0]], slots=[1, 1]), 3.0),
    Instance("one replica more", ExpertBalancing(load=[[4.0, 1.0]], slots=[2, 1]), 3.0),
    Instance("two layers", ExpertBalancing(load=[[4.0, 1.0, 1.0], [2.0, 2.0, 2.0]], slots=[2, 2]), 6.0),
    Instance(
        "groups",
        ExpertBalancing(load=[[6.0, 1.0, 2.0]], slots=[1, 1, 2], expert_group=[0, 1, 1], device_group=[0, 0, 1]),
        3.0,
    ),
    Instance(
        "moves cost more",
        ExpertBalancing(load=[[4.0, 2.0, 1.0]], slots=[2, 2], present=[[[0, 1], [2, -1]]], move_cost=3.0),
        6.0,
    ),
    Instance(
        "moves pay",
        ExpertBalancing(load=[[4.0, 2.0, 1.0]], slots=[2, 2], present=[[[0, 1], [2, -1]]], move_cost=0.5),
        4.5,
    ),
    Instance("nothing to do", ExpertBalancing(load=[[0.0, 0.0]], slots=[1, 2]), 0.0),
    Instance("mixed", random_problem(4)),
    Instance("all of it", ExpertBalancing(
        load=[[5.0, 2.0, 1.5], [0.5, 4.0, 4.5]], slots=[2, 1, 2], expert_group=[0, 0, 1], device_group=[0, 0, 1],
        present=[[[0, 1], [0, -1], [2, 2]], [[0, -1], [1, -1], [2, -1]]], move_cost=0.4,
    )),
)  # fmt: skip

instance = functools.partial(by_name, TINY)
