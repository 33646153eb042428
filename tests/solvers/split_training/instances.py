"""Tiny instances of split training with known optima."""

import functools
import itertools

import numpy as np

from edgeopt.problems import SplitPlan, SplitTraining
from tests.solvers.split_training.brute_force import any_problem
from tests.solvers.tiny import Tiny, by_name


def enumerate_plans(problem: SplitTraining, cuts: list[tuple[int, ...]] | None = None) -> tuple[float, SplitPlan]:
    """Return the least objective over all plans (or those with one of the given cuts), and a plan that attains it."""
    device = np.arange(problem.num_devices)
    best, found = np.inf, None
    for cut in cuts or itertools.product(range(1, problem.num_layers + 1), repeat=device.size):
        k = np.array(cut) - 1
        limits = problem.batch_limit[device, k]
        if limits.min() < 1:
            continue
        grids = np.meshgrid(*(np.arange(1, limit + 1) for limit in limits), indexing="ij")
        batch = np.stack(grids, axis=-1).reshape(-1, device.size)  # (plans, devices)
        up = (batch * problem.forward_s[device, k]).max(axis=1)
        down = (batch * problem.backward_s[device, k]).max(axis=1)
        held = problem.client_bits[k]
        extra = (held.max() - held).sum()
        fed = max((held / problem.fed_uplink_bps).max(), extra / problem.server_fed_uplink_bps)
        fed += max((held / problem.fed_downlink_bps).max(), extra / problem.server_fed_downlink_bps)
        for interval in range(problem.min_interval, problem.max_interval + 1):
            left = problem.target - problem.drift(max(cut), interval) - problem.noise_weight * (1 / batch).sum(axis=1)
            seconds = up + down + batch @ problem.server_s[k] + fed / interval
            value = np.where(left > 0, problem.time_scale * seconds / np.where(left > 0, left, 1.0), np.inf)
            if value.min() < best:
                best = float(value.min())
                found = SplitPlan(batch_size=batch[value.argmin()], cut_layer=cut, aggregation_interval=interval)
    assert found is not None
    return best, found


def one_device(**changes: object) -> SplitTraining:
    """Return one device and two layers where everything costs nothing but what `changes` says; 2 vartheta / gamma = 4."""
    fields: dict[str, object] = {
        "forward_flops": [0.0, 0.0], "backward_flops": 0.0, "activation_bits": 0.0, "gradient_bits": 0.0,
        "parameter_bits": 0.0, "memory_bits": 0.0, "device_flops": [1.0], "uplink_bps": 1.0, "downlink_bps": 1.0,
        "fed_uplink_bps": 1.0, "fed_downlink_bps": 1.0, "memory_bytes": np.inf, "max_batch": 4, "server_flops": 1.0,
        "server_fed_uplink_bps": 1.0, "server_fed_downlink_bps": 1.0, "smoothness": 0.5, "gradient_variance": 0.0,
        "gradient_second_moment": 0.0, "initial_gap": 1.0, "step_size": 0.5, "target": 1.0,
    }  # fmt: skip
    return SplitTraining(**(fields | changes))  # type: ignore[arg-type]


def varied(seed: int, *, devices: int = 3, layers: int = 4, max_batch: int = 8) -> SplitTraining:
    """Return a random problem with uneven devices, layers in any order, scarce memory and server, a tight target."""
    rng = np.random.default_rng(seed)
    made = SplitTraining.random(
        num_devices=devices, num_layers=layers, heterogeneity=float(rng.uniform(0, 3)), max_batch=max_batch,
        interval=(1, 12) if seed % 3 == 0 else 6, seed=seed,
    )  # fmt: skip
    order = rng.permutation(layers)
    return made.replace(
        activation_bits=made.activation_bits[order],
        gradient_bits=made.gradient_bits[order],
        server_flops=made.server_flops * 10 ** rng.uniform(-1.5, 0.5),
        server_fed_uplink_bps=made.server_fed_uplink_bps * 10 ** rng.uniform(-2, 0),
        target=made.least_target * rng.uniform(1.5, 8),
        memory_bytes=made.memory_bytes * 10 ** rng.uniform(-1, 0),
    )


Instance = functools.partial(Tiny, enumerate_plans)

TINY: tuple[Tiny, ...] = (
    # two samples on the device or at the server: 2 b seconds; c = 0.25 * 3.6 = 0.9; 2 b / (1 - 0.9 / b) is 20, 80 / 11,
    # 60 / 7 for b = 1, 2, 3
    Instance(
        "batch size against noise",
        one_device(forward_flops=[1.0, 1.0], gradient_variance=[3.6, 0.0]),
        4 * 80 / 11,
    ),
    # cut 2 takes 0.5 s per sample, cut 1 takes 1 + 0.5 s, but 4 beta^2 gamma^2 I^2 G^2 = 1 at cut 2 leaves nothing
    Instance(
        "drift forbids the fast cut",
        one_device(
            forward_flops=[0.0, 0.5],
            activation_bits=[1.0, 0.0],
            gradient_second_moment=[0.0, 1.0],
            min_interval=2,
            max_interval=2,
        ),
        4 * 1.5,
    ),
    # T_S = 1, T_A = 2 + 2, drift I^2 / 32: (1 + 4 / I) / (1 - I^2 / 32) is 5, 3 / (7 / 8), (7 / 3) / (23 / 32), 4 for
    # I = 1, 2, 3, 4
    Instance(
        "interval against drift",
        one_device(
            forward_flops=[1.0, 1e3],
            gradient_second_moment=[0.125, 0.0],
            parameter_bits=[2.0, 0.0],
            max_interval=5,
            server_flops=1e30,
        ),
        4 * (7 / 3) / (23 / 32),
    ),
    # a sample takes 2 s at cut 2 and 1 + 3 s at cut 1, but memory takes one sample there and two here: 2 / (1 - 0.9)
    # against 8 / (1 - 0.9 / 2)
    Instance(
        "memory forbids the fast cut",
        one_device(
            forward_flops=[1.0, 1.0],
            gradient_variance=[3.6, 0.0],
            memory_bits=8.0,
            memory_bytes=2.5,
            server_flops=1 / 3,
        ),
        4 * 8 / 0.55,
    ),
    *(Instance(f"any {seed}", any_problem(seed)) for seed in (0, 16, 25, 39, 41, 50, 55, 59)),
    *(Instance(f"varied {seed}", varied(seed)) for seed in (1, 3, 9, 13, 33, 42)),
)

instance = functools.partial(by_name, TINY)
