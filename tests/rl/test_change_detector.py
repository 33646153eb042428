"""The change detector on series whose changes are known: what it finds, when, and how often it errs."""

import numpy as np
import pytest

from edgeopt.errors import EdgeOptError
from edgeopt.rl import ChangeDetector, TrueChange

AT = 800


def series(
    agents: int, steps: int, seed: int, *, shift: float = 0.0, scale: float = 1.0, tie: float = 0.3
) -> np.ndarray:
    """Return series [G, T] of deviation 1 in which neighbours are alike, and which change at step `AT`."""
    drawn = np.random.default_rng(seed).standard_normal((agents, steps))
    drawn[:, 0] /= np.sqrt(1 - tie**2)
    for t in range(1, steps):
        drawn[:, t] += tie * drawn[:, t - 1]
    later = np.arange(steps) >= AT
    return (drawn * np.sqrt(1 - tie**2) * np.where(later, scale, 1.0) + shift * later).astype(np.float32)


def looked(detector: ChangeDetector, errors: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (step, agent, date) of all that is found."""
    detector.start(range(len(errors)))
    found = []
    for now in range(detector.interval, errors.shape[1] + 1, detector.interval):
        dates = detector.look(now, errors[:, now - detector.interval : now])
        found += [(now, int(g), int(dates[g])) for g in np.flatnonzero(dates >= 0)]
    return found


@pytest.mark.parametrize("change", [{"shift": 1.5}, {"scale": 3.0}], ids=["shift", "scale"])
def test_finds_changes_and_their_dates(change):
    """A shift of the mean, and one of the scale alone: found within the window, dated to within a few runs."""
    found = looked(ChangeDetector(), series(4, 1100, 0, **change))
    right = {g: (now, date) for now, g, date in reversed(found) if now > AT}
    assert sorted(right) == list(range(4))
    assert all(now - AT <= 250 for now, _ in right.values())
    assert np.median([abs(date - AT) for _, date in right.values()]) <= 20


def test_seldom_errs():
    """Where nothing changes, a look errs about as often as it may: once in 200 looks, of which there are 12 x 11."""
    found = looked(ChangeDetector(), series(12, 900, 1, tie=0.0))
    assert len(found) <= 4  # 0.7 are expected


def test_odds_are_those_of_unseen_blocks():
    """On noise the statistic is 0 on average, as classifiers are scored where they have not learned."""
    detector = ChangeDetector()
    detector.start(range(40))
    looked_at = detector._runs(series(40, 400, 2, tie=0.0).astype(np.float64))
    labels = np.repeat([0.0, 1.0], detector.window // detector.block)
    seen = detector._tell_apart(looked_at, np.broadcast_to(labels, (40, len(labels))))
    assert abs(seen.divergence.mean()) < 3 * seen.divergence.std() / np.sqrt(40)
    apart = detector._tell_apart(
        detector._runs(series(40, AT + 200, 2, shift=2.0)[:, -400:].astype(np.float64)),
        np.broadcast_to(labels, (40, len(labels))),
    )
    assert apart.divergence.min() > 1.0


def test_goes_on_where_it_stopped():
    """What `arrays` gives is all that the next looks depend on."""
    errors = series(2, 1100, 3, shift=2.0)
    one, other = ChangeDetector(), ChangeDetector()
    one.start([5, 6])
    other.start([5, 6])
    found = []
    for now in range(50, 1101, 50):
        found.append(one.look(now, errors[:, now - 50 : now]).tolist())
        if now == 850:
            other.restore(one.arrays())
        elif now > 850:
            assert other.look(now, errors[:, now - 50 : now]).tolist() == found[-1]
    assert max(max(dates) for dates in found) >= 0


def test_the_true_change_is_known_at_once():
    """It is told with the first entry from after it."""
    trigger = TrueChange([3, 5])
    trigger.start([0, 1])
    told = [trigger.look(now, np.zeros((2, 0), np.float32)).tolist() for now in range(1, 8)]
    assert [told.index([3, -1]), told.index([-1, 5])] == [3, 5]
    assert sum(d != [-1, -1] for d in told) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 100, "block": 30}, "block = 30: expected a divisor of window = 100"),
        ({"run": 30}, "run = 30: expected at most block = 20"),
        ({"false_alarms": 0.0}, r"false_alarms = 0.0: expected a number between 0 and 1"),
        ({"epochs": 0}, "epochs = 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(EdgeOptError, match=message):
        ChangeDetector(**options)
