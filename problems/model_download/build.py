"""Building model-download problems from measured models and a network, or at random."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.foreign import as_array
from edgeopt.network import EdgeNetwork
from edgeopt.problems.model_download.instance import DownloadInstance, positive_hz
from edgeopt.profile import ModelProfile, Precision, model_profile
from edgeopt.rng import stream
from edgeopt.validate import float_array, int_array, listed

Range = tuple[float, float]

IMAGES, TEXT = 0, 1
TEXT_SHARE = 0.2  # of the users; this and what follows is for random problems
RANDOM_MODELS: tuple[tuple[str, Precision, int, float], ...] = (  # precision, task, accuracy
    ("mobilenetv2", "int8", IMAGES, 0.72),
    ("resnet18", "int8", IMAGES, 0.69),
    ("resnet50", "int8", IMAGES, 0.76),
    ("bert-base", "int8", TEXT, 0.84),
    ("vit-b16", "int8", IMAGES, 0.81),
    ("gpt2", "int8", TEXT, 0.82),
    ("mobilenetv2", "fp16", IMAGES, 0.72),
    ("resnet18", "fp16", IMAGES, 0.70),
    ("resnet50", "fp16", IMAGES, 0.76),
    ("vgg16", "int8", IMAGES, 0.72),
    ("vit-b16", "fp16", IMAGES, 0.81),
    ("bert-base", "fp16", TEXT, 0.84),
)
FLOOR_RANGE = 0.15  # by which the accuracy that a user asks for may be below the best
FIXED_S = 1e-4  # to instantiate one layer
MOST_SAMPLES = 16.0
LEAST_CYCLES_PER_FLOP = 0.004


def layer_tables(profiles: Sequence[ModelProfile]) -> dict[str, Any]:
    """Return the fields about layers of a sequence of models. Layers without parameters are run with the layer before."""
    parts = [profile.without_empty_layers() for profile in profiles]
    return {
        "model_names": tuple(profile.name for profile in profiles),
        "layer_indptr": np.cumsum([0, *(part.num_layers for part in parts)]),
        "layer_bits": 8.0 * np.concatenate([part.parameter_bytes for part in parts]),
        "layer_flops": np.concatenate([part.forward_flops for part in parts]),
    }


def profile_fields(
    profiles: Sequence[ModelProfile | str],
    network: EdgeNetwork,
    *,
    server: int = 0,
    bandwidth_hz: float = 200e6,
    deadline_s: ArrayLike = 1.5,
    samples: ArrayLike = 1.0,
    max_frequency_hz: ArrayLike = 1e9,
    min_frequency_hz: ArrayLike = 1e8,
    energy_j: ArrayLike = np.inf,
    task: ArrayLike = 0,
    min_accuracy: ArrayLike = 0.0,
    model_task: ArrayLike = 0,
    accuracy: ArrayLike = 1.0,
    fixed_s: float = 0.0,
    fixed_power: bool = False,
) -> dict[str, Any]:
    """Build a problem from measured models and one cell of a network; the devices that the server covers are the users.

    Memory and speed of the devices are the network's: ``cycles_per_flop = max_frequency_hz / device_flops``.

    Parameters
    ----------
    profiles : the models, or names of bundled profiles. Layers without parameters are run with the layer before.
    network : gains, powers, devices.
    server : the server that sends the models.
    bandwidth_hz, deadline_s, samples, max_frequency_hz, min_frequency_hz, energy_j, task, min_accuracy, model_task,
        accuracy : as the fields, K being the number of covered devices.
    fixed_s : seconds that every layer takes at any frequency.
    fixed_power : False spreads the server's power evenly over the band, so that rates are linear in bandwidth;
        True gives each user an equal share of the power whatever its bandwidth, so that rates are concave.

    Examples
    --------
    >>> from edgeopt import EdgeNetwork
    >>> from edgeopt.problems import ModelDownload
    >>> problem = ModelDownload.from_profiles(["resnet18"], EdgeNetwork.random(1, 20, seed=1))
    >>> problem.num_users, problem.num_models
    (20, 1)
    """
    if isinstance(profiles, str):
        raise InvalidProblemError(f"profiles = {quoted(profiles)}: expected a sequence of models")
    given = listed("profiles", profiles, single=ModelProfile)
    if not given:
        raise InvalidProblemError("profiles: expected at least one model")
    models = [model_profile(profile) if isinstance(profile, str) else profile for profile in given]
    for index, model in enumerate(models):
        if not isinstance(model, ModelProfile):
            raise InvalidProblemError(
                f"profiles[{index}] = {quoted(model)}: expected a ModelProfile or the name of one"
            )
    n = int_array("server", server, (), low=0, high=network.num_servers - 1).item()
    users = np.flatnonzero(network.coverage[:, n] & (network.channel_gain[:, n] > 0))
    if users.size == 0:
        raise InvalidProblemError(f"server = {n}: it covers no device")
    band = positive_hz("bandwidth_hz", bandwidth_hz)
    top = float_array("max_frequency_hz", max_frequency_hz, (users.size,), positive=True, unit="Hz")
    snr_hz = network.server_power_w[n] * network.channel_gain[users, n] / network.noise_w_per_hz
    efficiency = np.log1p(snr_hz / band) / np.log(2)
    channel = {"snr_hz": snr_hz / users.size} if fixed_power else {"spectral_efficiency": efficiency}
    return (
        layer_tables(models)
        | channel
        | {
            "deadline_s": float_array("deadline_s", deadline_s, (users.size,)),
            "samples": samples,
            "max_frequency_hz": top,
            "min_frequency_hz": min_frequency_hz,
            "energy_j": energy_j,
            "task": task,
            "min_accuracy": min_accuracy,
            "model_task": model_task,
            "accuracy": accuracy,
            "layer_fixed_s": fixed_s,
            "memory_bytes": network.device_memory_bytes[users],
            "cycles_per_flop": top / network.device_flops[users],
            "bandwidth_hz": band,
        }
    )


def random_fields(
    *,
    num_users: int = 30,
    num_models: int = 6,
    seed: int = 0,
    bandwidth_hz: float = 200e6,
    deadline_s: Range | float = (0.5, 3.0),
    snr_db: Range | float = (0.0, 25.0),
    energy: Range | float | None = (-0.1, 1.5),
    weighted: bool = False,
    rewarded: bool = False,
    fixed_power: bool = False,
    resource_block_hz: float | None = None,
    frequency_levels: ArrayLike | None = None,
) -> dict[str, Any]:
    """Build a random problem on measured models of images and text, some small and some accurate.

    Every ingredient has its own random stream: the same seed draws users equally whatever the other arguments.

    Parameters
    ----------
    num_users : K.
    num_models : I; the first of a list of architectures, then the same at other precisions.
    seed : same seed, same problem.
    bandwidth_hz : Hz to share.
    deadline_s : range ``(low, high)`` that deadlines are drawn from uniformly, or one for all.
    snr_db : range that the signal-to-noise ratios are drawn from uniformly, in dB, over an equal share of the band.
    energy : where energy limits lie, on a scale from the least energy that meets the deadline at any rate (0) to that of full
        speed (1), both for the allowed model of the least work; drawn from a range. None for no limits.
    weighted : draw the users' weights from 1, 2, ..., 5.
    rewarded : reward models by their accuracy, in steps of 0.01.
    fixed_power : rates concave in bandwidth, at fixed transmit power.
    resource_block_hz, frequency_levels : see the class.

    Notes
    -----
    Accuracies are published ones, rounded: ImageNet top-1 for images, MNLI for text.

    Examples
    --------
    >>> from edgeopt.problems import ModelDownload
    >>> ModelDownload.random(seed=7) == ModelDownload.random(seed=7)
    True
    """
    users = int_array("num_users", num_users, (), low=1).item()
    count = int_array("num_models", num_models, (), low=1, high=len(RANDOM_MODELS)).item()
    int_array("seed", seed, (), low=0, dtype=np.int64)
    band = positive_hz("bandwidth_hz", bandwidth_hz)
    chosen = RANDOM_MODELS[:count]
    tables = layer_tables([model_profile(name, precision) for name, precision, _, _ in chosen])
    names = tuple(f"{name} {precision}" for name, precision, _, _ in chosen)
    model_task, accuracy = np.array([m[2] for m in chosen]), np.array([m[3] for m in chosen])
    task = np.where(stream(seed, "task").random(users) < TEXT_SHARE, TEXT, IMAGES)
    task = np.where(np.isin(task, model_task), task, model_task[0])
    best = np.array([accuracy[model_task == t].max(initial=0.0) for t in (IMAGES, TEXT)])
    floor = best[task] - FLOOR_RANGE * stream(seed, "min_accuracy").random(users)
    snr = 10 ** (_draw(seed, "snr_db", snr_db, users, unit="dB") / 10)
    channel = {"snr_hz": snr * band / users} if fixed_power else {"spectral_efficiency": np.log2(1 + snr)}
    fields: dict[str, Any] = (
        tables
        | channel
        | {
            "model_names": names,
            "layer_fixed_s": np.array(FIXED_S),
            "model_task": model_task,
            "accuracy": accuracy,
            "model_reward": np.round(accuracy, 2) if rewarded else np.array(1.0),
            "task": task,
            "min_accuracy": floor,
            "memory_bytes": _draw(seed, "memory_bytes", (0.1e9, 2e9), users),
            "deadline_s": _draw(seed, "deadline_s", deadline_s, users, unit="s", positive=True),
            "samples": np.round(MOST_SAMPLES ** stream(seed, "samples").random(users)),
            "cycles_per_flop": LEAST_CYCLES_PER_FLOP * 10 ** stream(seed, "cycles_per_flop").random(users),
            "min_frequency_hz": np.array(0.1e9),
            "max_frequency_hz": _draw(seed, "max_frequency_hz", (0.6e9, 1.3e9), users),
            "bandwidth_hz": band,
            "resource_block_hz": resource_block_hz,
            "frequency_levels": None if frequency_levels is None else as_array("frequency_levels", frequency_levels),
            "user_weight": stream(seed, "user_weight").integers(1, 6, users) if weighted else np.array(1.0),
        }
    )
    if energy is None:
        return fields
    position = _draw(seed, "energy_j", energy, users, option="energy")
    return fields | {"energy_j": _energy_limits(DownloadInstance(**fields), position)}


def _energy_limits(problem: DownloadInstance, position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return limits [K] in J for the allowed model of the least work: between the least energy (0) and full speed (1)."""
    first = problem.layer_indptr[:-1]
    flops = np.where(problem.allowed, problem.suffix_flops[first], np.inf)
    work, least = flops.min(axis=1), flops.argmin(axis=1)
    cycles = problem.cycles_per_layer_flop * np.where(np.isfinite(work), work, 0.0)
    left = np.maximum(problem.deadline_s - problem.suffix_fixed_s[first][least], 0.01 * problem.deadline_s)
    slowest = np.clip(cycles / left, problem.min_frequency_hz, problem.max_frequency_hz)
    frequency = slowest * (problem.max_frequency_hz / slowest) ** position
    limit = problem.energy_coefficient * cycles * frequency**2
    return np.where(limit > 0, limit, np.inf)


def _draw(
    seed: int, name: str, limits: Range | float, size: int, *, option: str | None = None, unit: str = "", positive: bool = False
) -> Any:  # fmt: skip
    """Return `size` numbers of the stream `name`, uniform in ``(low, high)``; a single number stands for itself."""
    try:
        ends = float_array(name, limits, (2,), positive=positive)
    except InvalidProblemError:
        expected = f"a {'positive' if positive else 'finite'} number{f' ({unit})' if unit else ''}, or a range of them"
        raise InvalidProblemError(f"{option or name} = {quoted(limits)}: expected {expected}") from None
    low, high = ends.tolist()
    if low > high:
        raise InvalidProblemError(f"{option or name} = {quoted(limits)}: expected low <= high")
    return stream(seed, name).uniform(low, high, size)
