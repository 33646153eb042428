"""Two sets of recordings that come with the package: simulated subjects, and digits that are seen in four quadrants."""

import os
from importlib import resources

import numpy as np
import torch

from edgeopt.data.handwritten import digits
from edgeopt.errors import InvalidFileError
from edgeopt.fusion.recordings import Recordings
from edgeopt.npz import Arrays, Layout, numbers
from edgeopt.storage import read_arrays
from edgeopt.validate import integer

STATES = ("rest", "exertion", "heat", "arrhythmia")
"""Health states, by class."""
CHANNELS = ("ecg", "ppg", "eda", "resp", "vehicle")
"""Modalities of the simulated subjects."""
SECONDS = 2
"""Of a step of time."""


def layout_of(arrays: object = None) -> Layout:
    """Return which arrays a file of recordings holds."""
    signals = {name: numbers(3) for name in CHANNELS} | {f"{name}_range": numbers(2) for name in CHANNELS}
    return {"labels": numbers(2), **signals}


def health_recordings(path: str | os.PathLike[str] | None = None) -> Recordings:
    """Return recordings of simulated subjects: 40 of four minutes, or those of a file.

    A step is two seconds: 48 samples of ECG, 24 of PPG, 4 of EDA, 8 of respiration, and six values of a vehicle. The
    class of a step is one of `STATES`.

    Parameters
    ----------
    path : a file that ``python -m edgeopt.fusion.simulate`` has written. Default: the one that comes with the package.

    Raises
    ------
    InvalidFileError
        If the file is damaged, or no such file.

    Examples
    --------
    >>> health_recordings()
    Recordings(40 subjects, 120 steps, ecg, ppg, eda, resp, vehicle, 4 classes)
    """
    if path is None:
        with resources.as_file(resources.files("edgeopt.fusion") / "files" / "health.npz") as own:
            return _recordings(own, read_arrays(own, layout_of()))
    return _recordings(path, read_arrays(path, layout_of()))


def _recordings(path: str | os.PathLike[str], arrays: Arrays) -> Recordings:
    if lost := next((name for name in layout_of() if name not in arrays), ""):
        raise InvalidFileError(f"{path}: no array {lost!r}: not a file of recordings")
    signals = {}
    for name in CHANNELS:
        values, ends = arrays[name], arrays[f"{name}_range"]
        if values.ndim != 3 or ends.shape != (2, values.shape[2]):
            raise InvalidFileError(f"{path}: {name}_range: shape {list(ends.shape)}: expected [2, channels]")
        if not np.isfinite(ends).all():
            raise InvalidFileError(f"{path}: {name}_range: expected finite numbers")
        low, high = ends.astype(np.float64)
        signals[name] = (low + values / 255 * (high - low)).astype(np.float32)
    labels = arrays["labels"]
    if labels.dtype.kind not in "iu" or labels.size == 0 or not 0 <= labels.min() <= labels.max() < len(STATES):
        raise InvalidFileError(f"{path}: labels: expected whole numbers from 0 to {len(STATES) - 1}")
    return Recordings(signals, labels, num_classes=len(STATES))


def quadrant_digits(seed: int = 0, *, frames: int = 8, count: int | None = None) -> Recordings:
    """Return handwritten digits as recordings of some equal frames, a quadrant of four times four pixels each modality.

    Frames are equal until noise is added, which may drift. A subject is one picture; the order is drawn.

    Parameters
    ----------
    seed : of the order.
    frames : steps of a recording.
    count : pictures. Default: all 1797.

    Examples
    --------
    >>> quadrant_digits(count=100)
    Recordings(100 subjects, 8 steps, upper left, upper right, lower left, lower right, 10 classes)
    """
    split = digits(seed)
    images = torch.cat([split.train.inputs, split.test.inputs])[:, 0].numpy()  # (n, 8, 8)
    labels = torch.cat([split.train.targets, split.test.targets]).numpy()
    number = len(images) if count is None else integer("count", count, low=1, high=len(images))
    frames = integer("frames", frames, low=1)
    signals = {}
    for row, above in enumerate(("upper", "lower")):
        for column, side in enumerate(("left", "right")):
            part = images[:number, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]  # (n, 4, 4)
            signals[f"{above} {side}"] = np.tile(part, (1, frames, 1))  # (n, 4 frames, 4)
    return Recordings(signals, labels[:number], steps=frames, num_classes=10)
