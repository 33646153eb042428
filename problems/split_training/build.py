"""Building split-training problems from a measured model and an edge network, or at random."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.foreign import as_array
from edgeopt.network import EdgeNetwork
from edgeopt.rng import stream
from edgeopt.validate import float_array, integer, listed

if TYPE_CHECKING:
    from edgeopt.problems.split_training.problem import SplitTraining
    from edgeopt.profile import ModelProfile

Floats = NDArray[np.float64]

TARGET_FACTOR = 8.0  # default target, in least feasible ones
DEVICE_FLOPS = (1e11, 2e12)  # of random problems
SERVER_FLOPS_PER_DEVICE = 5e11
FED_BPS_PER_DEVICE = 5e8  # wire between edge and fed server
BANDWIDTH_HZ = 20e6
VARIANCE = 5000.0  # per device: the noise term falls as 1 / N, and should matter for any N
MOMENT = 1500.0


def from_profile(
    cls: "type[SplitTraining]",
    profile: "ModelProfile",
    network: EdgeNetwork,
    *,
    server: int,
    fed_rate_bps: float | None,
    max_batch: ArrayLike,
    optimizer_states: float,
    smoothness: float,
    gradient_variance: ArrayLike,
    gradient_second_moment: ArrayLike,
    initial_gap: float,
    step_size: float,
    target: float | None,
    interval: int | tuple[int, int],
) -> "SplitTraining":
    """See `SplitTraining.from_profile`."""
    server = integer("server", server, low=0, high=network.num_servers - 1)
    uplink, downlink = network.uplink_rate_bps[:, server], network.downlink_rate_bps[:, server]
    if (cut_off := np.flatnonzero((uplink <= 0) | (downlink <= 0))).size:
        raise InvalidProblemError(f"server = {server}: device {cut_off[0]} has no link to it, expected one for each")
    fed = float(network.cloud_rate_bps[server]) if fed_rate_bps is None else fed_rate_bps
    layers = _layers(profile)
    parameters = layers["parameter_bits"]
    return _with_target(
        cls,
        target,
        interval,
        **layers,
        optimizer_states=optimizer_states,
        device_flops=network.device_flops,
        uplink_bps=uplink,
        downlink_bps=downlink,
        fed_uplink_bps=np.minimum(uplink, fed),
        fed_downlink_bps=np.minimum(downlink, fed),
        memory_bytes=network.device_memory_bytes,
        max_batch=max_batch,
        server_flops=float(network.server_flops[server]),
        server_fed_uplink_bps=fed,
        server_fed_downlink_bps=fed,
        smoothness=smoothness,
        gradient_variance=_spread("gradient_variance", gradient_variance, parameters),
        gradient_second_moment=_spread("gradient_second_moment", gradient_second_moment, parameters),
        initial_gap=initial_gap,
        step_size=step_size,
    )


def random_problem(
    cls: "type[SplitTraining]",
    *,
    num_devices: int,
    model: str,
    num_layers: int | None,
    target: float | None,
    heterogeneity: float,
    interval: int | tuple[int, int],
    max_batch: int,
    seed: int,
) -> "SplitTraining":
    """See `SplitTraining.random`."""
    num_devices = integer("num_devices", num_devices, low=1)
    exponent = float_array("heterogeneity", heterogeneity, (), nonnegative=True).item()
    network = EdgeNetwork.random(
        1, num_devices, seed=seed, area_m=300.0, shadowing_db=4.0, fading=False, uplink_bandwidth_hz=BANDWIDTH_HZ,
        downlink_bandwidth_hz=2 * BANDWIDTH_HZ, device_flops=DEVICE_FLOPS,
        server_flops=SERVER_FLOPS_PER_DEVICE * num_devices,
    )  # fmt: skip
    if num_layers is None:
        from edgeopt.profile import model_profile

        layers = _layers(model_profile(model))
    else:
        layers = _random_layers(stream(seed, "layers"), num_layers)
    uplink = _around_mean(network.uplink_rate_bps[:, 0], exponent)
    downlink = _around_mean(network.downlink_rate_bps[:, 0], exponent)
    fed = FED_BPS_PER_DEVICE * num_devices
    noise = stream(seed, "gradients").lognormal(0.0, 0.3, (2, layers["parameter_bits"].size))
    variance = _spread("gradient_variance", VARIANCE * num_devices, layers["parameter_bits"]) * noise[0]
    moment = _spread("gradient_second_moment", MOMENT, layers["parameter_bits"]) * noise[1]
    return _with_target(
        cls,
        target,
        interval,
        **layers,
        device_flops=_around_mean(network.device_flops, exponent),
        uplink_bps=uplink,
        downlink_bps=downlink,
        fed_uplink_bps=np.minimum(uplink, fed),
        fed_downlink_bps=np.minimum(downlink, fed),
        memory_bytes=_around_mean(network.device_memory_bytes, exponent),
        max_batch=max_batch,
        server_flops=float(network.server_flops[0]),
        server_fed_uplink_bps=fed,
        server_fed_downlink_bps=fed,
        smoothness=0.02,
        gradient_variance=variance,
        gradient_second_moment=moment,
        initial_gap=2.3,
        step_size=0.05,
    )


def _with_target(
    cls: "type[SplitTraining]", target: float | None, interval: int | tuple[int, int], **fields: Any
) -> "SplitTraining":
    ends = listed("interval", interval, single=(int, np.integer))
    given = ends * 2 if isinstance(interval, int | np.integer) else ends
    if len(given) != 2:
        raise InvalidProblemError(f"interval = {interval!r}: expected an integer, or the least and the largest one")
    low, high = given
    problem = cls(**fields, target=1.0 if target is None else target, min_interval=low, max_interval=high)
    # without noise and drift any target will do
    return problem if target is not None else problem.replace(target=TARGET_FACTOR * problem.least_target or 1.0)


def _layers(profile: "ModelProfile") -> dict[str, Floats]:
    """Return the per-layer fields; nothing crosses the cut after the last layer, where the device trains alone."""
    crossing = 8 * profile.activation_bytes
    crossing[-1] = 0.0
    return {
        "forward_flops": profile.forward_flops,
        "backward_flops": profile.backward_flops,
        "activation_bits": crossing,
        "gradient_bits": crossing,
        "parameter_bits": 8 * profile.parameter_bytes,
        "memory_bits": 8 * profile.memory_bytes,
    }


def _random_layers(rng: np.random.Generator, num_layers: int) -> dict[str, Floats]:
    """Return a made-up convolutional model: activations shrink with depth, parameters grow, work per layer is even."""
    num_layers = integer("num_layers", num_layers, low=1)
    depth = np.linspace(0.0, 1.0, num_layers)
    uneven = rng.lognormal(0.0, 0.4, (3, num_layers))
    forward = 4e9 / num_layers * uneven[0]
    crossing = 2.5e7 * 0.03**depth * uneven[1]
    parameters = 4e8 * 30**depth * uneven[2]
    parameters *= 4e8 / parameters.sum()
    memory = 3 * crossing
    crossing[-1] = 0.0
    return {
        "forward_flops": forward,
        "backward_flops": 2 * forward,
        "activation_bits": crossing,
        "gradient_bits": crossing,
        "parameter_bits": parameters,
        "memory_bits": memory,
    }


def _spread(name: str, value: ArrayLike, parameters: Floats) -> Floats:
    """Return float64 [L]: the value itself, or a total spread over the layers, half evenly, half by parameters."""
    given = float_array(name, value, as_array(name, value).shape, nonnegative=True)
    if given.ndim:
        return given
    total = float(parameters.sum())
    by_size = parameters / total if total > 0 else np.full(parameters.size, 1.0 / parameters.size)
    return np.asarray(given * 0.5 * (by_size + 1.0 / parameters.size))


def _around_mean(values: Floats, exponent: float) -> Floats:
    """Return values with each ratio to their geometric mean raised to a power."""
    mean = np.exp(np.log(values).mean())
    return np.asarray(mean * (values / mean) ** exponent)
