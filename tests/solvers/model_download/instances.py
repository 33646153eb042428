"""Tiny instances of model download with known optima, random small ones, and an oracle that is slow but plain."""

import functools
import math
from itertools import product

import numpy as np

from edgeopt.problems import DownloadPlan, ModelDownload
from tests.solvers.tiny import Tiny, by_name

NEVER = 1e12  # a rate that no tiny instance reaches


# --- oracle ------------------------------------------------------------------------------------------------------


def brute_force(problem: ModelDownload) -> tuple[float, DownloadPlan]:
    """Return the optimum and a plan that attains it, by enumerating who gets which model."""
    choices = [(-1, *range(problem.num_models))] * problem.num_users
    if math.prod(map(len, choices)) > 5000:
        raise ValueError(f"{problem.num_users} users and {problem.num_models} models are too many to enumerate")
    ways = {
        (k, i): least(problem, k, i) for k in range(problem.num_users) for i in range(problem.num_models)
    }  # (bandwidth, speeds)
    best_value, best = 0.0, (-1,) * problem.num_users
    for models in product(*choices):
        pairs = [(k, i) for k, i in enumerate(models) if i >= 0]
        value = sum(problem.value[pair] for pair in pairs)
        if value > best_value and sum(ways[pair][0] for pair in pairs) <= problem.bandwidth_hz * (1 + 1e-10):
            best_value, best = float(value), models
    speeds = [ways[k, i][1] for k, i in enumerate(best) if i >= 0]
    plan = DownloadPlan(
        model=best,
        bandwidth_hz=[ways[k, i][0] if i >= 0 else 0.0 for k, i in enumerate(best)],
        frequency_hz=np.concatenate(speeds) if speeds else [],
    )
    return best_value, plan


def least(problem: ModelDownload, k: int, i: int) -> tuple[float, list[float]]:
    """Return the least bandwidth at which user k can finish model i, inf for never, and the frequencies that do it."""
    if not problem.allowed[k, i]:
        return np.inf, []
    rate, speeds = _least_rate(problem, k, i)
    if rate >= NEVER:
        return np.inf, []
    if problem.snr_hz is None:
        bandwidth = rate / problem.spectral_efficiency[k]
    else:
        snr_hz = problem.snr_hz[k]
        bandwidth = bisect(lambda b: b * math.log2(1 + snr_hz / b) >= rate)
    if bandwidth >= NEVER:
        return np.inf, []
    if problem.resource_block_hz is not None:
        bandwidth = problem.resource_block_hz * math.ceil(bandwidth / problem.resource_block_hz * (1 - 1e-11))
    return bandwidth, speeds


def _least_rate(problem: ModelDownload, k: int, i: int) -> tuple[float, list[float]]:
    bits, cycles, fixed = layers(problem, k, i)
    low, top = problem.min_frequency_hz[k], problem.top_frequency_hz[k]
    budget = problem.energy_j[k] - problem.receive_j_per_bit[k] * sum(bits)

    def energy(speeds: list[float]) -> float:
        return problem.energy_coefficient[k] * sum(c * f**2 for c, f in zip(cycles, speeds, strict=True))

    if problem.frequency_levels is not None:
        levels = [f for f in problem.frequency_levels * problem.max_frequency_hz[k] if f >= low]
        found: tuple[float, list[float]] = (NEVER, [])
        for speeds in map(list, product(levels, repeat=len(bits))):
            if energy(speeds) <= budget * (1 + 1e-12):
                rate = rate_at(problem, k, i, speeds)
                found = min(found, (rate, speeds))
        return found

    def speeds_at(rate: float) -> list[float]:
        return [max(low, f) for f in slowest_speeds(problem.deadline_s[k], rate, bits, cycles, fixed)]

    def works(rate: float) -> bool:
        speeds = speeds_at(rate)
        if max(speeds) > top * (1 + 1e-13) or energy(speeds) > budget * (1 + 1e-12):
            return False
        seconds = [v + c / f for v, c, f in zip(fixed, cycles, speeds, strict=True)]
        return finish(bits, seconds, rate) <= problem.deadline_s[k] * (1 + 1e-13)

    if budget == np.inf:
        return rate_at(problem, k, i, [top] * len(bits)), [top] * len(bits)
    rate = bisect(works)
    return rate, [] if rate >= NEVER else [min(top, f) for f in speeds_at(rate)]


def layers(problem: ModelDownload, k: int, i: int) -> tuple[list[float], list[float], list[float]]:
    """Return bits, cycles and fixed seconds of the layers of model i on the device of user k."""
    part = slice(problem.layer_indptr[i], problem.layer_indptr[i + 1])
    cycles = problem.layer_flops[part] * problem.samples[k] * problem.cycles_per_flop[k]
    return problem.layer_bits[part].tolist(), cycles.tolist(), problem.layer_fixed_s[part].tolist()


def rate_at(problem: ModelDownload, k: int, i: int, speeds: list[float]) -> float:
    """Return the least rate at which user k is done with model i in time at given frequencies, by bisection."""
    bits, cycles, fixed = layers(problem, k, i)
    seconds = [v + c / f for v, c, f in zip(fixed, cycles, speeds, strict=True)]
    return bisect(lambda rate: finish(bits, seconds, rate) <= problem.deadline_s[k])


def finish(bits: list[float], seconds: list[float], rate: float) -> float:
    """Return when the last layer is done: the recursion as the definition has it."""
    arrived = now = 0.0
    for size, compute in zip(bits, seconds, strict=True):
        arrived += size / rate
        now = max(arrived, now) + compute
    return now


def slowest_speeds(
    deadline: float, rate: float, bits: list[float], cycles: list[float], fixed: list[float]
) -> list[float]:
    """Return the speeds of least energy at a rate, by the textbook's loop: the densest interval first; inf for never.

    All jobs have one deadline, so an interval is a run of layers up to the last one left.
    """
    left = [deadline - sum(bits[: l + 1]) / rate - sum(fixed[l:]) for l in range(len(bits))]
    speeds, last, base = [0.0] * len(bits), len(bits), 0.0
    while last > 0:
        density = [
            (sum(cycles[l:last]) / (left[l] - base) if left[l] > base else np.inf) if sum(cycles[l:last]) > 0 else 0.0
            for l in range(last)
        ]
        first = max(range(last), key=density.__getitem__)
        speeds[first:last] = [density[first]] * (last - first)
        last, base = first, left[first]
    return speeds


def bisect(works: object) -> float:
    """Return the least positive number that works, `NEVER` if none below it does; what works goes on working above."""
    low, high = 0.0, 1.0
    while not works(high):  # type: ignore[operator]
        low, high = high, 2 * high
        if high > NEVER:
            return NEVER
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (low, middle) if works(middle) else (middle, high)  # type: ignore[operator]
    return high


# --- random small problems ---------------------------------------------------------------------------------------


def random_problem(
    rng: np.random.Generator, *, num_users: int = 4, num_models: int = 2, max_layers: int = 4, energy: float = 0.0,
    weighted: bool = False, rewarded: bool = False, concave: bool = False, block: float | None = None,
    levels: tuple[float, ...] | None = None, fixed: bool = False, tasks: int = 1, band: float = 0.5,
) -> ModelDownload:  # fmt: skip
    """Return a random problem in small units: a few bits, seconds and hertz.

    Parameters
    ----------
    energy : probability that a user has an energy limit.
    band : the bandwidth, in shares of what all users would need together, roughly.
    """
    counts = rng.integers(1, max_layers + 1, num_models)
    total = int(counts.sum())
    deadline = rng.uniform(2.0, 8.0, num_users)
    flops = np.where(rng.random(total) < 0.2, 0.0, rng.uniform(0.0, 2.0, total))
    channel = {"snr_hz": rng.uniform(1.0, 30.0, num_users)} if concave else {
        "spectral_efficiency": rng.uniform(0.5, 4.0, num_users)
    }  # fmt: skip
    high = rng.uniform(0.8, 2.0, num_users)
    samples = rng.integers(1, 3, num_users).astype(float)
    limit = rng.uniform(0.1, 1.2, num_users) * samples * flops.sum() / num_models * high**2
    return ModelDownload(
        layer_indptr=np.concatenate([[0], np.cumsum(counts)]),
        layer_bits=rng.uniform(0.2, 4.0, total),
        layer_flops=flops,
        layer_fixed_s=rng.uniform(0.0, 0.4, total) if fixed else np.array(0.0),
        model_names=tuple(f"model {i}" for i in range(num_models)),
        model_task=np.arange(num_models) % tasks,
        accuracy=rng.uniform(0.5, 1.0, num_models),
        model_reward=rng.uniform(0.5, 2.0, num_models).round(1) if rewarded else np.array(1.0),
        task=rng.integers(0, tasks, num_users),
        min_accuracy=rng.uniform(0.3, 0.8, num_users),
        memory_bytes=np.where(rng.random(num_users) < 0.2, 0.6, np.inf),
        deadline_s=deadline,
        samples=samples,
        cycles_per_flop=rng.uniform(0.3, 1.0, num_users),
        min_frequency_hz=high * rng.uniform(0.05, 0.5, num_users),
        max_frequency_hz=high,
        energy_j=np.where(rng.random(num_users) < energy, np.maximum(limit, 1e-3), np.inf),
        energy_coefficient=np.array(1.0),
        receive_j_per_bit=rng.uniform(0.0, 0.05, num_users),
        bandwidth_hz=band * num_users,
        resource_block_hz=block,
        frequency_levels=None if levels is None else np.array(levels),
        user_weight=rng.integers(1, 5, num_users) if weighted else np.array(1.0),
        **channel,
    )


# --- named instances ---------------------------------------------------------------------------------------------


def hand_made(**other: object) -> ModelDownload:
    """Return one model of two layers of 4 bits and one second each at full speed, and users with three seconds.

    A user needs max(4 / (3 - 2), 8 / (3 - 1)) = 4 bit/s, and 8 / (3 - 2) = 8 bit/s if the download comes first.
    """
    fields: dict[str, object] = {
        "layer_indptr": [0, 2], "layer_bits": [4.0, 4.0], "layer_flops": [1.0, 1.0], "model_names": ("two layers",),
        "deadline_s": [3.0, 3.0], "cycles_per_flop": [1.0, 1.0], "min_frequency_hz": [0.1, 0.1],
        "max_frequency_hz": [1.0, 1.0], "energy_coefficient": 1.0, "spectral_efficiency": [1.0, 1.0],
        "bandwidth_hz": 8.0,
    }  # fmt: skip
    return ModelDownload(**(fields | other))  # type: ignore[arg-type]


def two_sizes(**other: object) -> ModelDownload:
    """Return two models of one layer of 2 and 6 bits without computing; a user needs 2 or 6 Hz to be done in one second."""
    fields: dict[str, object] = {
        "layer_indptr": [0, 1, 2], "layer_bits": [2.0, 6.0], "layer_flops": [0.0, 0.0],
        "model_names": ("small", "large"), "deadline_s": [1.0, 1.0, 1.0], "cycles_per_flop": [1.0, 1.0, 1.0],
        "min_frequency_hz": [0.1, 0.1, 0.1], "max_frequency_hz": [1.0, 1.0, 1.0],
        "spectral_efficiency": [1.0, 1.0, 1.0], "bandwidth_hz": 8.0,
    }  # fmt: skip
    return hand_made(**(fields | other))


def _random(seed: int, **options: object) -> ModelDownload:
    return random_problem(np.random.default_rng(seed), **options)  # type: ignore[arg-type]


Instance = functools.partial(Tiny, brute_force)

TINY: tuple[Tiny, ...] = (
    # 4 Hz each: both fit into 8 Hz, to the last bit
    Instance("exactly the band", hand_made(), 2.0),
    Instance("just too little", hand_made(bandwidth_hz=8.0 * (1 - 1e-6)), 1.0),
    # computing alone takes two seconds
    Instance("deadline too early", hand_made(deadline_s=[2.0, 2.0]), 0.0),
    # least energy at any rate: 2 cycles in 3 seconds, 2 * (2 / 3)^2 = 0.89 J
    Instance("no energy", hand_made(energy_j=[0.88, 0.88]), 0.0),
    # 1.28 J is one speed of 0.8 Hz: 1.25 s for each layer, so they must be there after 0.5 and 1.75 s: 8 bit/s
    Instance("energy of one user", hand_made(energy_j=[1.28, np.inf], bandwidth_hz=12.01), 2.0),
    Instance("energy of one user, just too little", hand_made(energy_j=[1.28, np.inf], bandwidth_hz=11.99), 1.0),
    # blocks of 3 Hz: 4 Hz is two of them, 8 Hz has two blocks only
    Instance("resource blocks", hand_made(resource_block_hz=3.0), 1.0),
    # the channel carries less than 2.5 / ln 2 = 3.6 bit/s, 4 are needed; the other needs about 4.35 Hz of 8
    Instance("above the ceiling", hand_made(spectral_efficiency=None, snr_hz=[2.5, 4.0]), 1.0),
    # with levels 0.5 and 1 only full speed meets the deadline, as without levels
    Instance("levels at full speed", hand_made(frequency_levels=[0.5, 1.0]), 2.0),
    # three small models take 6 of 8 Hz
    Instance("small for all", two_sizes(), 3.0),
    # a large one instead of a small one would be worth 4 more, but 6 + 2 Hz leave nobody a third: 5 + 1
    Instance("one large", two_sizes(model_reward=[1.0, 5.0]), 6.0),
    # weights 1, 1, 9 and accuracy: user 2 wants the large model, which leaves 2 Hz for one of the others
    Instance(
        "accuracy", two_sizes(accuracy=[0.5, 0.9], min_accuracy=[0.0, 0.0, 0.8], user_weight=[1.0, 1.0, 9.0]), 10.0
    ),
    # the large model does not fit the memory of user 2, who accepts no other
    Instance("memory", two_sizes(accuracy=[0.5, 0.9], min_accuracy=[0.0, 0.0, 0.8], memory_bytes=[1.0, 1.0, 0.7]), 2.0),
    # users 0 and 1 ask for tasks that a model does, user 2 does not: 2 + 6 Hz
    Instance("tasks", two_sizes(model_task=[0, 1], task=[0, 1, 2]), 2.0),
    Instance("plain", _random(1, num_users=5, band=0.3)),
    Instance("two tasks, fixed seconds", _random(2, num_users=5, num_models=3, tasks=2, fixed=True)),
    Instance("energy", _random(3, energy=1.0, band=0.2)),
    Instance("some energy, fixed seconds", _random(4, num_users=5, energy=0.6, fixed=True, band=0.25)),
    Instance("weights", _random(5, num_users=6, num_models=1, weighted=True, energy=0.5, band=0.3)),
    Instance("rewards", _random(6, num_models=3, rewarded=True, weighted=True, energy=0.5, band=0.25)),
    Instance("concave", _random(7, num_users=5, concave=True, energy=0.5, band=0.6)),
    Instance("concave, blocks, rewards", _random(8, concave=True, block=0.25, rewarded=True, energy=0.5, band=0.7)),
    Instance("blocks, weights", _random(9, num_users=5, block=0.3, weighted=True, energy=0.5, band=0.35)),
    Instance("levels", _random(10, levels=(0.3, 0.6, 1.0), band=0.8)),
    Instance("levels and energy", _random(11, levels=(0.25, 0.5, 0.75, 1.0), energy=1.0, max_layers=3, band=0.3)),
    Instance("levels below one, energy, weights", _random(12, levels=(0.4, 0.9), energy=0.7, weighted=True, band=0.4)),
)

instance = functools.partial(by_name, TINY)
