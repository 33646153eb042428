"""Where split-training problems end: numbers too large to compute with, and targets just in reach."""

from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING

import numpy as np

from edgeopt.errors import InvalidProblemError

if TYPE_CHECKING:
    from edgeopt.problems.split_training.problem import SplitTraining

CANCELLATION = 2.0**-53  # what is left of the target is 0 or at least this share of it


@np.errstate(all="ignore")
def refuse_overflow(problem: "SplitTraining") -> None:
    """Raise `InvalidProblemError` if a cost of a problem, or the objective of a plan, may not be a finite number.

    Names the fields that decide the first such cost.
    """
    num_devices, most = problem.num_devices, float(problem.max_batch.max())
    limited = problem.memory_bytes[np.isfinite(problem.memory_bytes)]
    held = problem.client_bits
    states = problem.optimizer_states * held[-1]
    samples = most * np.cumsum(problem.memory_bits)[-1]
    forward = most * problem.forward_s.max()
    backward = most * problem.backward_s.max()
    server = num_devices * most * problem.server_s.max()
    up = held[-1] / problem.fed_uplink_bps.min() + num_devices * held[-1] / problem.server_fed_uplink_bps
    down = held[-1] / problem.fed_downlink_bps.min() + num_devices * held[-1] / problem.server_fed_downlink_bps
    seconds = forward + backward + server + up + down
    noise = num_devices * problem.noise_weight
    drift = problem.drift_weight.max() * float(problem.max_interval) ** 2
    costs = (
        (forward, "forward_flops / device_flops + activation_bits / uplink_bps, times max_batch"),
        (backward, "backward_flops / device_flops + gradient_bits / downlink_bps, times max_batch"),
        (server, "(forward_flops + backward_flops) / server_flops, times max_batch"),
        (
            up + down,
            "parameter_bits over fed_uplink_bps, fed_downlink_bps, server_fed_uplink_bps, server_fed_downlink_bps",
        ),
        (states + samples, "parameter_bits, optimizer_states, memory_bits, max_batch"),
        (8 * limited.max(initial=0.0), "memory_bytes"),
        (noise, "smoothness, step_size, gradient_variance"),
        (drift, "smoothness, step_size, gradient_second_moment, max_interval"),
        (problem.time_scale, "initial_gap / step_size"),
        (
            problem.time_scale * seconds / problem.target / CANCELLATION,
            "seconds of a round (flops, bits and max_batch over speeds and rates) times initial_gap / step_size / target",
        ),
    )
    for value, fields in costs:
        if not np.isfinite(value):
            raise InvalidProblemError(f"{fields}: expected a finite number, got an overflow")


def reachable_target(noise: float, drift: float) -> Decimal:
    """Return a target of six digits that the least terms of the bound leave something of, the least such number."""
    digits = Context(prec=6, rounding=ROUND_CEILING)
    target = digits.create_decimal_from_float(noise + drift)
    while not float(target) - drift - noise > 0:
        target = digits.next_plus(target)
    return target
