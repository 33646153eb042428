"""The recordings that come with the package."""

import numpy as np
import pytest

pytest.importorskip("torch")
from edgeopt.errors import EdgeOptError
from edgeopt.fusion import STATES, health_recordings, quadrant_digits
from edgeopt.fusion.simulate import chain, main, simulate
from edgeopt.npz import write_arrays
from edgeopt.rng import stream
from edgeopt.storage import read_arrays
from tests.fusion import small


def test_simulated_subjects():
    """All states are there; hearts beat faster and breath is quicker in exertion than at rest."""
    own = health_recordings()
    labels = np.asarray(own.labels)
    assert labels.shape == (40, 120)
    assert np.bincount(labels.ravel()).min() > 500
    windows = own.windows(8, stride=4)
    rest, exertion = (windows.take(np.flatnonzero((windows.labels == state).all(1))) for state in (0, 1))

    def beats(part: object, name: str) -> float:
        signal = part.signals[name].reshape(len(part.labels), -1)
        power = np.abs(np.fft.rfft(signal - signal.mean(1, keepdims=True))) ** 2
        seconds = np.fft.rfftfreq(signal.shape[1], 16 / signal.shape[1])
        low, high = (0.6, 3.0) if name == "ppg" else (0.1, 0.8)
        band = (seconds >= low) & (seconds <= high)
        return 60 * float(np.median(seconds[band][power[:, band].argmax(1)]))

    assert beats(exertion, "ppg") - beats(rest, "ppg") == pytest.approx(45, abs=15)
    assert beats(exertion, "resp") - beats(rest, "resp") == pytest.approx(13, abs=5)


def test_states_stay():
    """The chain stays with a chance of 0.96, and all states are as frequent."""
    made = chain(20_000, stream(0, "chain"))
    assert (np.diff(made) == 0).mean() == pytest.approx(0.96, abs=0.005)
    assert np.bincount(made, minlength=len(STATES)).min() > 4000


def test_quadrants_make_the_digit():
    """Put together, the quadrants of every frame are the picture."""
    own = quadrant_digits(count=20, frames=3)
    windows = own.windows(3)
    parts = [windows.signals[name] for name in ("upper left", "upper right", "lower left", "lower right")]
    whole = np.concatenate([np.concatenate(parts[:2], -1), np.concatenate(parts[2:], -1)], -2)  # (n, 3, 8, 8)
    assert np.array_equal(whole[:, 0], whole[:, 2])
    from edgeopt.data import digits

    assert np.array_equal(whole[:, 0], digits(0).train.inputs[:20, 0].numpy())


def test_made_anew(tmp_path):
    """The command writes a file that is read like the one that comes with the package; the same seed makes the same."""
    pytest.importorskip("neurokit2")
    assert main([str(tmp_path / "made.npz"), "--subjects", "2", "--steps", "15"]) == 0
    own = health_recordings(tmp_path / "made.npz")
    assert (own.num_subjects, own.steps) == (2, 15)
    again = simulate(2, 15)
    made = read_arrays(tmp_path / "made.npz")
    assert all(np.array_equal(made[name], again[name]) for name in made)


def test_damaged_files(tmp_path):
    """What is no file of recordings is refused in one line that names it."""
    path = tmp_path / "bad.npz"
    with open(path, "wb") as file:
        write_arrays(file, {"labels": np.zeros((2, 3), np.uint8)})
    with pytest.raises(EdgeOptError, match=r"bad\.npz: no array 'ecg': not a file of recordings"):
        health_recordings(path)
    arrays = small.recorded()
    arrays["labels"] = arrays["labels"] + 9
    with open(path, "wb") as file:
        write_arrays(file, arrays)
    with pytest.raises(EdgeOptError, match=r"bad\.npz: labels: expected whole numbers from 0 to 3"):
        health_recordings(path)
