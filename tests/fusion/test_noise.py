"""What spoils windows, and the truth about it."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.errors import EdgeOptError
from edgeopt.fusion import Modality, Noise, Packing
from edgeopt.fusion.training import noisy_pairs

MODALITIES = (Modality("a", 20, 1), Modality("b", 5, 4))
MEAN = {"a": np.array([3.0]), "b": np.arange(4.0)}
PACKING = Packing(MODALITIES, MEAN, {"a": np.array([2.0]), "b": np.ones(4)})
CLEAN = torch.cat([torch.zeros(400, 12, 40), torch.ones(400, 12, 2)], -1)


def spoilt(**options: object):
    return Noise(**options).apply(CLEAN, PACKING, torch.Generator().manual_seed(0))


def test_noise_is_as_strong_as_it_says():
    """The root mean square of what is added is the strength that is told, level by level."""
    found = spoilt(levels=(0, 0.5, 2), bursts=0)
    for m, part in enumerate((slice(0, 20), slice(20, 40))):
        added = found.x[..., part].square().mean((1, 2)).sqrt()
        torch.testing.assert_close(added, found.noise[:, m, 0], rtol=0.3, atol=1e-6)
    assert set(found.noise.unique().tolist()) == {0.0, 0.5, 2.0}
    assert torch.equal(found.x[..., -2:], torch.ones(400, 12, 2))


def test_share_and_drift():
    """Some modalities have no noise; drifting noise changes from step to step around its level."""
    found = spoilt(levels=(1.0,), share=0.25, drift=0.3, bursts=0).noise
    quiet = (found == 0).all(-1)
    assert quiet.float().mean() == pytest.approx(0.75, abs=0.06)
    loud = found[~quiet]
    assert loud.log().mean() == pytest.approx(0, abs=1e-5)
    assert loud.log().diff().std() == pytest.approx(0.3, rel=0.1)


def test_bursts_are_where_they_are_said_to_be():
    """Without noise, values differ from zero in bursts and nowhere else; two to four steps, of the strength that was asked for."""
    found = spoilt(levels=(0,), bursts=0.5, burst_level=3.0)
    for m, part in enumerate((slice(0, 20), slice(20, 40))):
        assert torch.equal((found.x[..., part] != 0).any(-1), found.burst[:, m])
    lengths = found.burst.sum(-1)
    assert set(lengths.unique().tolist()) <= {0, 1, 2, 3, 4}  # one that starts before the end is cut
    assert (lengths > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert found.x[..., :-2][found.x[..., :-2] != 0].std() == pytest.approx(3, rel=0.1)


def test_missing_is_marked_and_zero():
    """What is missing is zero and marked so; half of the time it is missing throughout."""
    found = spoilt(levels=(1.0,), missing=0.4)
    there = found.x[..., -2:]
    gone = there[:, :, 0] == 0
    assert found.x[..., :20][gone].abs().max() == 0
    assert found.x[..., :20][~gone].abs().min() > 0
    assert gone.all(-1).float().mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_missing_is_filled(fill: str):
    """Where something stands for what is missing, that is there unmarked and without noise: zero samples, or the mean."""
    packing = dataclasses.replace(PACKING, fill=fill)
    found = Noise(levels=(1.0,), missing=1.0).apply(CLEAN, packing, torch.Generator().manual_seed(0))
    assert found.x[..., -2:].min() == 1
    expected = torch.tensor([-1.5] * 20 + [0.0, -1.0, -2.0, -3.0] * 5) if fill == "zero" else torch.zeros(40)
    whole = (found.x[..., :20] == expected[:20]).all(-1).all(-1)
    assert whole.float().mean() == pytest.approx(0.5, abs=0.1)
    assert (found.x[whole][..., :20] == expected[:20]).all()
    assert (found.x[..., 20:40] == expected[20:]).all(-1).any()


def test_pairs_are_ordered():
    """The second copy of a window has at least the noise of the first, modality by modality."""
    _, strengths = noisy_pairs(CLEAN[:50], PACKING, Noise(drift=0.1), torch.Generator().manual_seed(1))
    less, more = strengths.mean(-1).chunk(2)
    assert (less <= more).all()
    assert (less < more).float().mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, "levels: expected at least one"),
        ({"levels": (1.0, -1.0)}, "levels[1] = -1.0: expected a non-negative number"),
        ({"bursts": 1.5}, "bursts = 1.5: expected a chance, 0 to 1"),
    ],
)
def test_bad_noise(options: dict[str, object], message: str):
    """In one line, what was given and what was expected."""
    with pytest.raises(EdgeOptError) as error:
        Noise(**options)
    assert str(error.value).startswith(message)
