"""Building split-training problems from a measured model and an edge network, or at random."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.foreign import as_array
from edgeopt.network import EdgeNetwork
from edgeopt.problems.split_training.factors import CostFactors
from edgeopt.problems.split_training.instance import SplitInstance
from edgeopt.profile import ModelProfile, model_profile
from edgeopt.rng import stream
from edgeopt.validate import float_array, integer, listed

Floats = NDArray[np.float64]

TARGET_FACTOR = 8.0  # default target, in least feasible ones
DEVICE_FLOPS = (1e11, 2e12)  # of random problems
SERVER_FLOPS_PER_DEVICE = 5e11
FED_BPS_PER_DEVICE = 5e8  # wire between edge and fed server
BANDWIDTH_HZ = 20e6
VARIANCE = 5000.0  # per device: the noise term falls as 1 / N, and should matter for any N
MOMENT = 1500.0


def profile_fields(
    profile: ModelProfile,
    network: EdgeNetwork,
    *,
    server: int = 0,
    fed_rate_bps: float | None = None,
    max_batch: ArrayLike = 64,
    optimizer_states: float = 3.0,
    smoothness: float = 0.02,
    gradient_variance: ArrayLike = 1e5,
    gradient_second_moment: ArrayLike = 1500.0,
    initial_gap: float = 2.3,
    step_size: float = 0.05,
    target: float | None = None,
    interval: int | tuple[int, int] = 8,
    factors: CostFactors | None = None,
) -> dict[str, Any]:
    """Build a problem from a measured model and a network; the network's devices take part.

    The fed server sits behind the edge server's link to the cloud, so that a device reaches it at the lower of its
    radio rate and that link's.

    Parameters
    ----------
    profile : the model's layers.
    network : devices, the edge server, rates.
    server : which edge server of the network trains the upper parts.
    fed_rate_bps : rate between edge and fed server, both ways. Default: the server's link to the cloud.
    max_batch, optimizer_states, smoothness, initial_gap, step_size : see the class.
    gradient_variance, gradient_second_moment : float64 [L], or the total over the model, which is spread over the
        layers evenly by one half and by parameters by the other.
    target : see the class. Default: 8 times the least that is feasible.
    interval : the aggregation interval, or its least and largest value.
    factors : what the algorithm costs, such as ``HoSfl().cost_factors``. Default: as SplitFed.

    Examples
    --------
    >>> from edgeopt import EdgeNetwork
    >>> from edgeopt.problems import SplitTraining
    >>> from edgeopt.profile import model_profile
    >>> problem = SplitTraining.from_profile(model_profile("resnet18"), EdgeNetwork.random(1, 20, seed=1))
    >>> problem.num_devices
    20
    """
    server = integer("server", server, low=0, high=network.num_servers - 1)
    uplink, downlink = network.uplink_rate_bps[:, server], network.downlink_rate_bps[:, server]
    if (cut_off := np.flatnonzero((uplink <= 0) | (downlink <= 0))).size:
        raise InvalidProblemError(f"server = {server}: device {cut_off[0]} has no link to it, expected one for each")
    fed = float(network.cloud_rate_bps[server]) if fed_rate_bps is None else fed_rate_bps
    layers = _layers(profile)
    parameters = layers["parameter_bits"]
    return _with_target(
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
        factors=CostFactors() if factors is None else factors,
    )


def random_fields(
    *,
    num_devices: int = 20,
    model: str = "resnet18",
    num_layers: int | None = None,
    target: float | None = None,
    heterogeneity: float = 1.0,
    interval: int | tuple[int, int] = 8,
    max_batch: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Build a random problem: devices of unequal speed, rates and memory around one edge server.

    The convergence constants are chosen, not measured, so that noise, drift and latency weigh against one another
    whatever the number of devices.

    Parameters
    ----------
    num_devices : devices of a random network with one server.
    model : name of a bundled profile, see `edgeopt.profile.model_profile`.
    num_layers : draw a random model of so many layers instead.
    target : see the class. Default: 8 times the least that is feasible.
    heterogeneity : exponent on each device's ratio to the geometric mean of its speed, rates and memory: 0 makes
        all devices equal, 1 keeps the random network, 2 squares the differences.
    interval : the aggregation interval, or its least and largest value.
    max_batch : largest batch size.
    seed : same seed, same problem.

    Examples
    --------
    >>> from edgeopt.problems import SplitTraining
    >>> SplitTraining.random(num_layers=8, seed=7) == SplitTraining.random(num_layers=8, seed=7)
    True
    """
    num_devices = integer("num_devices", num_devices, low=1)
    exponent = float_array("heterogeneity", heterogeneity, (), nonnegative=True).item()
    network = EdgeNetwork.random(
        1, num_devices, seed=seed, area_m=300.0, shadowing_db=4.0, fading=False, uplink_bandwidth_hz=BANDWIDTH_HZ,
        downlink_bandwidth_hz=2 * BANDWIDTH_HZ, device_flops=DEVICE_FLOPS,
        server_flops=SERVER_FLOPS_PER_DEVICE * num_devices,
    )  # fmt: skip
    layers = _layers(model_profile(model)) if num_layers is None else _random_layers(stream(seed, "layers"), num_layers)
    uplink = _around_mean(network.uplink_rate_bps[:, 0], exponent)
    downlink = _around_mean(network.downlink_rate_bps[:, 0], exponent)
    fed = FED_BPS_PER_DEVICE * num_devices
    noise = stream(seed, "gradients").lognormal(0.0, 0.3, (2, layers["parameter_bits"].size))
    variance = _spread("gradient_variance", VARIANCE * num_devices, layers["parameter_bits"]) * noise[0]
    moment = _spread("gradient_second_moment", MOMENT, layers["parameter_bits"]) * noise[1]
    return _with_target(
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


def _with_target(target: float | None, interval: int | tuple[int, int], **fields: Any) -> dict[str, Any]:
    ends = listed("interval", interval, single=(int, np.integer))
    given = ends * 2 if isinstance(interval, int | np.integer) else ends
    if len(given) != 2:
        raise InvalidProblemError(
            f"interval = {quoted(interval)}: expected an integer, or the least and the largest one"
        )
    fields |= {"min_interval": given[0], "max_interval": given[1]}
    if target is None:  # without noise and drift any target will do
        target = TARGET_FACTOR * SplitInstance(**fields, target=1.0).least_target or 1.0
    return fields | {"target": target}


def _layers(profile: ModelProfile) -> dict[str, Floats]:
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
