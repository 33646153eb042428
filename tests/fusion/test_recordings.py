"""Recordings, their windows, packed tensors, and what is refused."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.errors import EdgeOptError
from edgeopt.fusion import Packing, Recordings
from tests.fusion import small

LABELS = np.zeros((2, 4), int)


def test_windows_by_hand():
    """Windows are stretches of the recordings, by subject and then by time."""
    labels = np.arange(10).reshape(1, 10) % 3
    labels = np.vstack([labels, labels[:, ::-1]])
    signal = np.arange(40.0).reshape(2, 20, 1)
    own = Recordings({"a": signal}, labels).windows(4, stride=3)
    assert own.subject.tolist() == [0, 0, 0, 1, 1, 1]
    assert own.labels[1].tolist() == labels[0, 3:7].tolist()
    np.testing.assert_array_equal(own.signals["a"][1].ravel(), np.arange(6, 14))
    late = Recordings({"a": signal}, labels).windows(2, span=(0.6, 1.0), subjects=[1])
    np.testing.assert_array_equal(late.signals["a"][:, 0, 0, 0], [32, 36])


@pytest.mark.parametrize(
    ("signals", "labels", "message"),
    [
        ({}, LABELS, "signals: expected arrays [subject, time, channels] by modality"),
        ({"a": np.zeros((2, 4))}, LABELS, "signals['a']: float64 of shape [2, 4]: expected numbers [subject, time, channels]"),
        ({"a": np.zeros((2, 6, 1))}, LABELS, "signals['a']: 6 samples for 4 steps: expected the same number in each step"),
        ({"a": np.zeros((3, 4, 1))}, LABELS, "signals['a']: 3 subjects, labels have 2"),
        ({"a": np.full((2, 4, 1), np.nan)}, LABELS, "signals['a']: never there: expected a sample that is not NaN"),
        ({"a": np.full((2, 4, 1), np.inf)}, LABELS, "signals['a'][0, 0, 0]: infinite: expected a number, or NaN"),
        ({"a": np.zeros((2, 4, 1))}, LABELS - 1, "labels[0, 0] = -1: expected"),
        ({"a": np.zeros((2, 4, 1))}, [1, 2], "labels = [1, 2]"),
    ],
)  # fmt: skip
def test_bad_recordings(signals: dict[str, object], labels: object, message: str):
    """One line names the modality, what was given and what was expected."""
    with pytest.raises(EdgeOptError) as error:
        Recordings(signals, labels)
    assert str(error.value).startswith(message.split(" = [1")[0] if "[1, 2]" in message else message)
    assert "\n" not in str(error.value)


def test_windows_that_do_not_fit():
    """A window longer than what it is cut from, and a part that is none."""
    own = Recordings({"a": np.zeros((2, 4, 1))}, LABELS)
    with pytest.raises(EdgeOptError, match=r"^length = 5: expected at most 4 steps, those of a recording$"):
        own.windows(5)
    with pytest.raises(EdgeOptError, match=r"^span = \(0.5, 0.2\): expected two shares"):
        own.windows(1, span=(0.5, 0.2))
    with pytest.raises(EdgeOptError, match=re.escape("no modality 'b': expected one of a")):
        own.windows(2).without(["b"])


def test_packing_by_hand():
    """Values are standardised; a sample that is missing becomes the mean, a step with too few of them is missing."""
    signal = np.array([[[1.0], [3.0], [np.nan], [3.0], [np.nan], [np.nan]]])  # three steps of two samples
    still = np.full((1, 3, 1), 7.0)
    own = Recordings({"a": signal, "still": still}, np.zeros((1, 3), int)).windows(3)
    mean, spread = 7 / 3, np.std([1, 3, 3])
    x = Packing.of(own).pack(own)[0]
    np.testing.assert_allclose(x[:, 0], [(1 - mean) / spread, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(x[:, 1], [(3 - mean) / spread, (3 - mean) / spread, 0], rtol=1e-5)
    assert x[:, 2].tolist() == [0, 0, 0]  # a constant channel
    assert x[:, 3:].tolist() == [[1, 1], [1, 1], [0, 1]]
    zero = Packing.of(own, fill="zero").pack(own)[0]
    np.testing.assert_allclose(zero[2, :2], [-mean / spread] * 2, rtol=1e-5)
    assert zero[:, 3:].min() == 1
    assert torch.equal(Packing.of(own, fill="mean").pack(own)[0, :, :3], x[:, :3])


def test_what_packing_refuses():
    """A modality that is never there in training, other modalities, and a fill that there is not."""
    own = small.windows()
    with pytest.raises(EdgeOptError, match=r"^signals\['fast'\]: channel 0 is never there in these windows"):
        Packing.of(own.without(["fast"]))
    other = Recordings({"fast": np.zeros((1, 6, 1))}, np.zeros((1, 6), int)).windows(6)
    with pytest.raises(EdgeOptError, match=r"^windows: fast 1 x 1: expected fast 16 x 1, middle 2 x 2, slow 1 x 3"):
        Packing.of(own).pack(other)
    with pytest.raises(EdgeOptError, match=r"^fill = 'x': expected 'mark', 'zero' or 'mean'$"):
        Packing.of(own, fill="x")
    with pytest.raises(EdgeOptError, match=r"^windows: expected at least one$"):
        Packing.of(own.take([]))
