"""Recordings that a tiny model learns in a moment."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.fusion import DualHealth, Packing, Recordings, Windows


def recordings(subjects: int = 6, steps: int = 20, seed: int = 0) -> Recordings:
    """Return three modalities of which each shows the class, the slow one most clearly."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(3, size=(subjects, steps // 5)), 5, axis=1)
    fast = np.repeat(labels, 16, axis=1)[..., None] + 0.5 * rng.normal(size=(subjects, 16 * steps, 1))
    middle = np.repeat(labels, 2, axis=1)[..., None] * [1.0, -1.0] + 0.3 * rng.normal(size=(subjects, 2 * steps, 2))
    slow = labels[..., None] * [1.0, 0.0, 2.0] + 0.1 * rng.normal(size=(subjects, steps, 3))
    return Recordings({"fast": fast, "middle": middle, "slow": slow}, labels)


def windows(**options: Any) -> Windows:
    """Return windows of six steps."""
    return recordings(**options).windows(6, stride=2)


def model(seed: int = 0, **options: Any) -> DualHealth:
    """Return a tiny model of these recordings."""
    sizes = {"width": 8, "heads": 2, "common": 4, "window": 3, "context": 6} | options
    return DualHealth(recordings().modalities, 3, seed=seed, **sizes)


def packed(count: int = 4) -> tuple[Packing, Windows]:
    """Return a packing with some windows."""
    own = windows()
    return Packing.of(own), own.take(range(count))


def recorded() -> dict[str, NDArray[Any]]:
    """Return the arrays of a file without simulating."""
    shapes = {"ecg": (8, 1), "ppg": (4, 1), "eda": (1, 1), "resp": (2, 1), "vehicle": (1, 6)}
    arrays = {"labels": np.zeros((2, 5), np.uint8)}
    for name, (samples, channels) in shapes.items():
        arrays[name] = np.zeros((2, 5 * samples, channels), np.uint8)
        arrays[f"{name}_range"] = np.array([[0.0], [1.0]], np.float32).repeat(channels, 1)
    return arrays
