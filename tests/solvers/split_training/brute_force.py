"""Small split-training problems of every regime, and their optimum by trying every plan."""

import itertools

import numpy as np

from edgeopt.problems import CostFactors, SplitPlan, SplitTraining


def any_problem(seed: int, *, devices: int = 3, layers: int = 3, max_batch: int = 4) -> SplitTraining:
    """Return a small problem; over the seeds every term of objective and constraints decides some optimum."""
    rng = np.random.default_rng(seed)
    num_devices, num_layers = int(rng.integers(1, devices + 1)), int(rng.integers(1, layers + 1))

    def spread(size: int | None = None, factor: float = 10.0) -> np.ndarray:
        return np.exp(rng.uniform(-np.log(factor), np.log(factor), size)) * (rng.random(size) > 0.1)

    def positive(size: int | None = None, factor: float = 10.0) -> np.ndarray:
        return np.exp(rng.uniform(-np.log(factor), np.log(factor), size))

    parameters, kept = spread(num_layers), spread(num_layers)
    states = float(rng.choice([0.0, 3.0]))
    least = kept[0] + states * parameters[0]
    low = int(rng.choice([1, 1, 2, 3]))
    fields = {
        "forward_flops": spread(num_layers), "backward_flops": spread(num_layers),
        "activation_bits": spread(num_layers), "gradient_bits": spread(num_layers),
        "parameter_bits": parameters, "memory_bits": kept, "optimizer_states": states,
        "device_flops": positive(num_devices), "uplink_bps": positive(num_devices),
        "downlink_bps": positive(num_devices), "fed_uplink_bps": positive(num_devices),
        "fed_downlink_bps": positive(num_devices),
        "memory_bytes": np.where(rng.random(num_devices) < 0.5, np.inf, least * positive(num_devices) * 5 + least) / 8,
        "max_batch": rng.integers(1, max_batch + 1, num_devices), "server_flops": 3 * positive(),
        "server_fed_uplink_bps": 0.5 * positive(), "server_fed_downlink_bps": 0.5 * positive(),
        "smoothness": 1.0, "gradient_variance": spread(num_layers), "gradient_second_moment": 0.01 * spread(num_layers),
        "initial_gap": 1.0, "step_size": 1.0, "target": 1.0, "min_interval": low,
        "max_interval": low + int(rng.choice([0, 1, 4])),
    }  # fmt: skip
    problem = SplitTraining(**fields)
    return problem.replace(target=float(problem.least_target * rng.choice([1.01, 1.5, 4.0, 50.0])) or 1.0)


def any_factors(seed: int) -> CostFactors:
    """Return factors of which some are as of SplitFed, some nothing, and some anything."""
    rng = np.random.default_rng(seed)
    names = [name for name in CostFactors.__slots__ if name != "kept"]
    drawn = {name: float(rng.choice([0.0, 1.0, 1.0, np.exp(rng.uniform(-2, 2))])) for name in names}
    return CostFactors(**drawn, kept=float(rng.integers(2)))


def brute_force(problem: SplitTraining) -> tuple[float, SplitPlan]:
    """Return the least objective over all plans, and a plan that has it."""
    cuts = range(1, problem.num_layers + 1)
    options = [
        [(b, l) for l in cuts for b in range(1, int(problem.batch_limit[i, l - 1]) + 1)]
        for i in range(problem.num_devices)
    ]
    intervals = range(problem.min_interval, problem.max_interval + 1)
    best, found = np.inf, None
    for chosen in itertools.product(*options):
        batch, cut = np.transpose(chosen)
        for interval in intervals:
            plan = SplitPlan(batch_size=batch, cut_layer=cut, aggregation_interval=interval)
            if (value := problem.objective(plan)) < best:
                best, found = value, plan
    assert found is not None
    assert problem.is_feasible(found)
    return best, found
