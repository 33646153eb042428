"""Make recordings of simulated subjects anew: ``python -m edgeopt.fusion.simulate health.npz``.

ECG, PPG, EDA and respiration are those of NeuroKit2 (D. Makowski et al., NeuroKit2: A Python Toolbox for
Neurophysiological Signal Processing, Behavior Research Methods 53, 2021), which the extra ``health`` installs. What is
ours: the hidden chain of states, what a state does to the parameters, irregular intervals between beats, and the vehicle.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt import storage
from edgeopt.errors import EdgeOptError
from edgeopt.extras import needs
from edgeopt.fusion.health import CHANNELS, SECONDS, STATES, layout_of
from edgeopt.npz import write_arrays
from edgeopt.rng import stream
from edgeopt.validate import integer

RATES = {"ecg": 24, "ppg": 12, "eda": 2, "resp": 4}
"""Samples per second that are kept; signals are made four times as fine, EDA and respiration eight times."""
_STAY = 0.96  # chance per step that the state stays
_HEART = {"rest": 0, "exertion": 45, "heat": 18, "arrhythmia": 8}
"""Beats per minute above the subject's own."""
_IRREGULAR = {"rest": 0.03, "exertion": 0.02, "heat": 0.03, "arrhythmia": 0.3}
"""Standard deviation of the factors by which intervals between beats are stretched."""
_BREATH = {"rest": 0, "exertion": 13, "heat": 4, "arrhythmia": 1}
_SWEAT = {"rest": 0.5, "exertion": 2.0, "heat": 5.0, "arrhythmia": 0.7}
"""Skin conductance responses per minute times two."""
_CABIN = {"rest": 0.0, "exertion": 0.5, "heat": 5.0, "arrhythmia": 0.0}
_SPEED = {"rest": 14.0, "exertion": 5.0, "heat": 12.0, "arrhythmia": 13.0}


def chain(steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a hidden Markov chain of states: it starts anywhere, mostly stays, and goes anywhere else alike."""
    state = np.empty(steps, np.int64)
    state[0] = rng.integers(len(STATES))
    for t in range(1, steps):
        moved = (state[t - 1] + rng.integers(1, len(STATES))) % len(STATES)
        state[t] = state[t - 1] if rng.random() < _STAY else moved
    return state


def subject(steps: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Return the states [T] of a subject, and its signals [T * samples, channels].

    Stretches of a state are simulated one by one, with the subject's own heart rate, breath and sweat as the base.
    """
    with needs("simulated recordings", "health"):
        import neurokit2 as nk
    states = chain(steps, rng)
    pulse, breath, sweat = rng.normal(68, 7), rng.normal(14, 1.5), rng.uniform(0.7, 1.3)
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in RATES}
    borders = [0, *(np.flatnonzero(np.diff(states)) + 1), steps]
    conductance = 0.0
    for first, last in pairwise(borders):
        name = STATES[states[first]]
        seconds = SECONDS * (last - first)
        made = max(seconds, 20)  # shorter ones are cut out of twenty seconds
        breathed = max(seconds, 60)
        rate = float(np.clip(pulse + _HEART[name] + rng.normal(0, 4), 45, 180))
        draw = [int(n) for n in rng.integers(2**31, size=6)]
        motion = float(rng.choice([0.05, 0.4]))  # artefacts of motion, whatever the state
        responses = round(made / 60 * 2 * _SWEAT[name] * sweat + rng.uniform(0, 0.8))
        slope = {"heat": 0.02, "exertion": 0.008}.get(name, -0.008) * sweat
        fine: dict[str, Any] = {
            "ecg": nk.ecg_simulate(
                duration=made, sampling_rate=96, heart_rate=rate, method="simple", noise=0.02, random_state=draw[0],
                random_state_distort=draw[1],
            ),
            "ppg": nk.ppg_simulate(
                duration=made, sampling_rate=48, heart_rate=rate, ibi_randomness=0.05,
                motion_amplitude=motion, drift=0.1, random_state=draw[2], random_state_distort=draw[3],
            ),
            "eda": nk.eda_simulate(
                duration=made, sampling_rate=16, scr_number=responses, drift=0, noise=0.01, random_state=draw[4],
            )[: 16 * made] + conductance + slope * np.arange(16 * made) / 16,  # it returns a little more
            "resp": nk.rsp_simulate(
                duration=breathed, sampling_rate=32, respiratory_rate=breath + _BREATH[name] + rng.normal(0, 1),
                random_state=draw[5],
            ),
        }  # fmt: skip
        stretched = _stretched(made, 60 / rate, _IRREGULAR[name], rng)
        for signal in ("ecg", "ppg"):
            at = np.arange(len(fine[signal])) * made / len(fine[signal])
            fine[signal] = np.interp(stretched(at), at, fine[signal])
        conductance = float(np.clip(conductance + slope * seconds, -1.5, 2.5))
        for signal, values in fine.items():
            count = RATES[signal] * seconds
            each = 8 if signal in ("eda", "resp") else 4
            parts[signal].append(np.asarray(values, np.float64)[: count * each].reshape(-1, each).mean(1))
    signals = {name: np.concatenate(values)[:, None] for name, values in parts.items()}
    return states, signals | {"vehicle": _vehicle(states, rng)}


def _stretched(
    seconds: int, interval: float, spread: float, rng: np.random.Generator
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what maps seconds of a stretched signal to those of an even one: each interval gets a factor of its own."""
    count = int(seconds / interval * 3) + 2
    factors = rng.normal(1, spread, count).clip(0.5, 1.7)
    even = interval * np.arange(count + 1)
    uneven = np.concatenate([[0.0], np.cumsum(interval * factors)])
    return lambda at: np.interp(at, uneven, even)


def _vehicle(states: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return speed, acceleration, steering, throttle, brake and temperature of the cabin, [T, 6]."""
    names = [STATES[state] for state in states]
    speed, cabin = rng.uniform(4, 16), 22 + rng.normal(0, 1.5)
    rows = []
    for name in names:
        before = speed
        speed = max(0.0, 0.9 * speed + 0.1 * _SPEED[name] + rng.normal(0, 1.2))
        cabin = 0.95 * cabin + 0.05 * (22 + _CABIN[name]) + rng.normal(0, 0.2)
        change = speed - before
        sway = rng.normal(0, 0.06 if name == "arrhythmia" else 0.04)
        rows.append([speed, change / SECONDS, sway, max(0.0, 0.2 + 0.1 * change + rng.normal(0, 0.05)),
                     max(0.0, -0.1 * change + rng.normal(0, 0.05)), cabin])  # fmt: skip
    return np.array(rows)


def simulate(subjects: int, steps: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Return recordings as the arrays of a file: signals in bytes, with the range that these stand for.

    Parameters
    ----------
    subjects : S.
    steps : T, of `edgeopt.fusion.health.SECONDS` seconds.
    seed : the same seed gives the same recordings with the same version of NeuroKit2.

    Raises
    ------
    MissingDependencyError
        Without NeuroKit2.
    """
    subjects, steps = integer("subjects", subjects, low=1), integer("steps", steps, low=1)
    made = [subject(steps, stream(seed, "health", number)) for number in range(subjects)]
    arrays: dict[str, NDArray[np.generic]] = {"labels": np.stack([states for states, _ in made]).astype(np.uint8)}
    for name in CHANNELS:
        values = np.stack([signals[name] for _, signals in made])  # (S, T * samples, C)
        low, high = np.percentile(values, [0.05, 99.95], axis=(0, 1))
        scaled = (values - low) / np.maximum(high - low, 1e-12)
        arrays[name] = np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
        arrays[f"{name}_range"] = np.stack([low, high]).astype(np.float32)
    return arrays


def main(arguments: list[str] | None = None) -> int:
    """Write a file of recordings."""
    parser = argparse.ArgumentParser("python -m edgeopt.fusion.simulate", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="that is written, .npz")
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--steps", type=int, default=120, help=f"of {SECONDS} seconds, of each subject")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        arrays = simulate(options.subjects, options.steps, options.seed)
        layout_of(arrays)
        storage.write_atomic(options.file, lambda file: write_arrays(file, arrays))
    except (EdgeOptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.file}: {options.subjects} subjects, {options.steps} steps, {options.file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
