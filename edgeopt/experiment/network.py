"""The network of an experiment, and the problems on it that planners solve."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from edgeopt.device_profiles import DeviceProfile, assign_devices, read_device_profiles
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.experiment.config import Description
from edgeopt.experiment.options import about, argument_hints, checked, checked_options, hints_of
from edgeopt.network import EdgeNetwork
from edgeopt.problems import ClientSelection, CostFactors, SplitTraining
from edgeopt.problems.client_selection.build import well_covered_network
from edgeopt.quantities import Quantity
from edgeopt.series import TimeSeries
from edgeopt.training.algorithms import ALGORITHMS
from edgeopt.training.constants import GradientEstimator
from edgeopt.training.costs.selection_timing import update_cost
from edgeopt.training.task import Task

_DEFAULT_SERVERS = 3  # of an algorithm with several
_TIMING = {
    SplitTraining.kind: ("rate_sigma", "failure_probability", "joules_per_flop", "fed_rate_bps", "idle_s"),
    ClientSelection.kind: ("rate_sigma", "joules_per_flop"),
}
_SERIES: tuple[tuple[str, str, Quantity], ...] = (
    ("rates", "uplink", "rate"), ("downlink_rates", "downlink", "rate"), ("carbon", "carbon", "carbon"),
    ("availability", "available", "availability"),
)  # fmt: skip
SERIES_FILES = tuple(key for key, _, _ in _SERIES)
_DEVICES: dict[str, Any] = {"devices": dict, "utilisation": float}  # of `assign_devices`
_DEFAULT_PICKS = 4
_REGIMES: dict[str, Any] = {
    "regime_transition": ((0.97, 0.03), (0.06, 0.94)),  # as in ClientSelection.random: calm or loaded for a while
    "busy_probability": (0.05, 0.75),
}
_FADING = 0.3
_LARGEST_BATCH = 64
_MEASURED_CLIENTS, _MEASURED_SAMPLES = 8, 16


def has_several_servers(e: Description) -> bool:
    """Return whether the algorithm takes a number of servers."""
    return any("num_servers" in hints_of(kind) for kind in ALGORITHMS if kind.name == e.algorithm.name)


def servers_of(e: Description) -> int:
    """Return how many servers the random network has."""
    default = _DEFAULT_SERVERS if has_several_servers(e) else 1
    return default if e.network.servers is None else e.network.servers


def timing_options(e: Description, kind: str) -> dict[str, Any]:
    """Return those options of the network that are about time and energy."""
    given = {key: value for key, value in e.network.options.items() if key in _TIMING[kind]}
    return checked_options(e.source, "network", given, dict.fromkeys(_TIMING[kind], float))


def network_of(e: Description, kind: str, clients: int) -> EdgeNetwork:
    """Return the random network."""
    hints = argument_hints(EdgeNetwork.random, ("num_servers", "num_devices"))
    others = {key: value for key, value in e.network.options.items() if key not in _TIMING[kind]}
    known = hints | dict.fromkeys(_TIMING[kind], float) | {"coverage_radius_m": float} | _DEVICES
    options: Any = checked_options(e.source, "network", others, known)
    devices = {key: options.pop(key) for key in _DEVICES if key in options}
    for key, value in options.items():
        if isinstance(value, list):
            if len(value) != 2 or any(isinstance(end, list) for end in value):
                raise e.wrong("network", key, value, "a number, or a list of the lowest and the highest one")
            options[key] = tuple(value)
    seed = e.seed if e.network.seed is None else e.network.seed
    with about(e.source, "network"):
        return _of_devices(e, EdgeNetwork.random(servers_of(e), clients, seed=seed, **options), seed, **devices)


def _of_devices(
    e: Description, network: EdgeNetwork, seed: int, devices: Any = None, utilisation: float = 1.0
) -> EdgeNetwork:
    """Return the network with devices of the kinds that are asked for; as it is if none are."""
    table = e.network.device_table
    own = {} if table is None else {profile.name: profile for profile in read_device_profiles(table)}
    shares = dict.fromkeys(own, 1.0) if devices is None else devices
    if not isinstance(shares, Mapping):
        raise InvalidProblemError(
            f"devices = {quoted(devices)}: expected shares by name, such as {{ jetson-nano = 0.7, l4 = 0.3 }}"
        )
    if not shares and devices is None:
        if utilisation != 1.0:
            raise InvalidProblemError(f"utilisation = {utilisation}: expected devices or a device_table beside it")
        return network
    named: dict[str | DeviceProfile, float] = {own.get(name, name): share for name, share in shares.items()}
    return assign_devices(network, named, utilisation=utilisation, seed=seed).network


def series_of(e: Description, clients: int) -> dict[str, TimeSeries]:
    """Return what changes over virtual time: by the names of `EdgeTiming`, and who is ``available``."""
    found = {}
    for key, name, quantity in _SERIES:
        if (file := getattr(e.network, key)) is not None:
            series = TimeSeries.load(file, quantity)
            found[name] = series if name == "carbon" and series.num_columns == 1 else series.for_clients(clients)
    return found


def measured_network(network: EdgeNetwork, series: Mapping[str, TimeSeries]) -> EdgeNetwork:
    """Return the network with the rates that links have at the start; who has none then keeps what the network says."""
    if "uplink" not in series and "downlink" not in series:
        return network
    rates = []
    for name in ("uplink", "downlink"):
        usual = getattr(network, f"{name}_rate_bps")
        measured = series[name].at(0.0)[:, None] if name in series else np.zeros((network.num_devices, 1))
        rates.append(np.where(measured > 0, measured, usual))
    return network.with_rates(*rates)


def split_problem(e: Description, task: Task, lr: float, network: EdgeNetwork, factors: CostFactors) -> SplitTraining:
    """Return the problem of training the measured model on the network; its constants are measured, unless given.

    Largest batch sizes are what clients have, up to 64; the step size is the optimiser's.
    """
    given = dict(e.problem)
    measure = checked(e.source, "problem", "measure", given.pop("measure", True), bool)
    hints = argument_hints(SplitTraining.from_profile, ("server", "fed_rate_bps", "factors"))
    options = checked_options(e.source, "problem", given, hints | {"max_batch": int | list, "interval": int | list})
    largest = np.clip(task.partition.sizes, 1, _LARGEST_BATCH)
    chosen: dict[str, Any] = {"max_batch": largest, "interval": 1, "step_size": lr, "factors": factors}
    chosen |= _measured(task, lr) if measure else {}
    chosen |= {key: _pair(value) if key == "interval" else value for key, value in options.items()}
    if "fed_rate_bps" in (timing := timing_options(e, SplitTraining.kind)):
        chosen["fed_rate_bps"] = timing["fed_rate_bps"]
    with about(e.source, "problem"):
        return SplitTraining.from_profile(task.profile, network, **chosen)


def selection_problem(e: Description, task: Task, batch_size: int, network: EdgeNetwork) -> ClientSelection:
    """Return the problem of picking clients on the network, for updates of this model."""
    hints = argument_hints(ClientSelection.from_network, ("rounds", "seed", "work_flops", "payload_bits"))
    options = checked_options(e.source, "problem", e.problem, hints | {"picks": int})
    with about(e.source, "planner"):
        cost = update_cost(
            task,
            batch_size=e.planner.options.get("batch_size") or batch_size,
            local_steps=e.planner.options.get("local_steps", 1),
        )
    picks = max(1, min(_DEFAULT_PICKS, task.num_clients // network.num_servers))
    chosen: dict[str, Any] = {
        "picks": picks,
        "rate_sigma": timing_options(e, ClientSelection.kind).get("rate_sigma", _FADING),
    }
    if not options.keys() & {"busy", *_REGIMES}:
        chosen |= _REGIMES
    chosen |= options
    with about(e.source, "problem"):
        covered = well_covered_network(network.num_servers, task.num_clients, chosen["picks"], e.seed, network)
        return ClientSelection.from_network(covered, **cost._asdict(), **chosen, rounds=e.rounds, seed=e.seed)


def _pair(value: Any) -> Any:
    """Return lists of two as pairs: TOML and JSON have no others."""
    return tuple(value) if isinstance(value, list) and len(value) == 2 else value


def _measured(task: Task, lr: float) -> dict[str, Any]:
    """Return the constants of the convergence bound after one step from the initial weights, on samples of some clients."""
    clients = np.flatnonzero(task.partition.sizes)[:_MEASURED_CLIENTS]
    if clients.size < 2:
        raise InvalidProblemError("constants are measured on two clients at least: expected `measure = false`")
    start = task.initial_weights()
    rows = np.concatenate([task.partition.indices[client][:_MEASURED_SAMPLES] for client in clients])
    at = torch.from_numpy(rows).to(task.device)

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return task.batch_loss({**start, **parameters}, task.train.inputs[at], task.train.targets[at])[0]

    gradient, value = torch.func.grad_and_value(loss)(task.trained(start))
    stepped = {**start, **{name: start[name] - lr * g for name, g in gradient.items()}}
    found = GradientEstimator(num_clients=_MEASURED_CLIENTS).at(task, stepped, 0, start)
    measured: dict[str, Any] = {
        "gradient_variance": found.gradient_variance.value,
        "gradient_second_moment": found.gradient_second_moment.value,
        "initial_gap": float(value),
    }
    if found.smoothness is not None and found.smoothness.value > 0:
        measured["smoothness"] = float(found.smoothness.value)
    return measured
