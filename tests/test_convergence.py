"""Estimating smoothness, variance and second moments of gradients: against least squares, where the truth is known."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeopt.convergence import Estimate, GradientMoments, Secant, estimate_constants, smoothness
from edgeopt.errors import EdgeOptError
from edgeopt.rng import stream

SEEDS = 300
LAYERS = (slice(0, 3), slice(3, 4), slice(4, 10))


@dataclass
class LeastSquares:
    r"""One sample is a row a ~ N(0, diag(scale)) and y = a w* + noise; f(w) = E (a w - y)^2 / 2 is a quadratic.

    With u = w - w*: E g = diag(scale) u, and by Isserlis E a_i^2 (a u)^2 = scale_i u' diag(scale) u + 2 (scale_i u_i)^2.
    The largest slope of the gradient is the largest scale.
    """

    scale: NDArray[np.float64]
    target: NDArray[np.float64]
    noise: float = 0.5

    def rows(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        a = rng.normal(size=(count, self.scale.size)) * np.sqrt(self.scale)
        return a, a @ self.target + self.noise * rng.normal(size=count)

    def gradient(
        self, w: NDArray[np.float64], rows: tuple[NDArray[np.float64], NDArray[np.float64]]
    ) -> list[NDArray[np.float64]]:
        a, y = rows
        whole = a.T @ (a @ w - y) / len(y)
        return [whole[layer] for layer in LAYERS]

    def moments(self, w: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return sigma_j^2, ||E g_j||^2 and G_j^2 of one sample."""
        u = w - self.target
        mean = self.scale * u
        second = self.scale * (self.noise**2 + u @ mean) + 2 * mean**2
        squared, total = ([np.sum(x[layer]) for layer in LAYERS] for x in (mean**2, second))
        return np.subtract(total, squared), np.array(squared), np.array(total)


@pytest.fixture(scope="module")
def problem() -> LeastSquares:
    return LeastSquares(np.linspace(0.5, 3.0, 10), np.linspace(-1.0, 1.0, 10))


def blocks_of(problem: LeastSquares, w: NDArray[np.float64], seed: int, sizes: list[int]) -> GradientMoments:
    rng, moments = stream(seed, "rows"), GradientMoments(len(LAYERS))
    for size in sizes:
        moments.add(problem.gradient(w, problem.rows(rng, size)), size)
    return moments


def covered(estimate: Estimate, truth: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (estimate.low <= truth) & (truth <= estimate.high)


def test_moments_are_unbiased_and_covered(problem: LeastSquares):
    """Over 300 seeds the mean of each estimate is the truth, and the 95 % intervals hold in 91 % of them or more.

    The bounds can tell: the same test refuses a variance that forgets the batch size and a squared mean that keeps its
    noise. An interval that held in 95 % of the cases would fall below 91 % of 300 with probability 0.001.
    """
    w = np.full(10, 0.2)
    truth = problem.moments(w)
    sizes = [8, 16, 8, 4] * 20
    values, held, naive = [], [], []
    for seed in range(SEEDS):
        estimate = blocks_of(problem, w, seed, sizes).estimate()
        parts = (estimate.gradient_variance, estimate.squared_mean, estimate.gradient_second_moment)
        values.append([part.value for part in parts])
        held.append([covered(part, of) for part, of in zip(parts, truth, strict=True)])
        naive.append([parts[0].value / 8, parts[1].value + parts[0].value / sum(sizes[:4])])

    def distance(sample: list[list[NDArray[np.float64]]], of: int) -> NDArray[np.float64]:
        """Return how many standard errors the mean over seeds is away from the truth, per layer."""
        found = np.array(sample)[:, of]
        return np.abs(found.mean(axis=0) - truth[of]) / (found.std(axis=0, ddof=1) / np.sqrt(SEEDS))

    for of in range(3):
        assert distance(values, of).max() < 4, of
    assert distance(naive, 0).min() > 20
    assert distance(naive, 1).min() > 8
    share = np.mean(held, axis=0)
    assert share.min() > 0.91
    assert share.max() < 0.995  # no interval is so wide that it says nothing


def test_cross_fitting_where_the_mean_is_zero(problem: LeastSquares):
    """At the minimiser the squared mean is zero: estimates fall on both sides, and the intervals reach down to it."""
    values, held = [], []
    for seed in range(SEEDS):
        estimate = blocks_of(problem, problem.target, seed, [4] * 40).estimate()
        values.append(estimate.squared_mean.value)
        held.append(covered(estimate.squared_mean, np.zeros(len(LAYERS))))
    assert 0.2 < np.mean(np.array(values) < 0) < 0.8
    assert np.mean(held) > 0.91


def test_intervals_are_never_empty():
    """Where the mean is zero its squared norm is often estimated below it; the interval still has two ends in order."""
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(300):
        moments = GradientMoments(1)
        for _ in range(40):
            moments.add([rng.normal(size=5)], batch_size=1)
        estimate = moments.estimate().squared_mean
        below += int(estimate.value[0] < 0)
        assert 0 <= estimate.low[0] <= estimate.high[0]
    assert below > 100


def test_smoothness_of_the_quadratic(problem: LeastSquares):
    """The secant along the steepest axis gives beta = 3; the interval for the maximum holds; a naive slope does not.

    The naive slope takes the norm of a noisy difference, from different mini-batches at the two ends.
    """
    axes = np.eye(10)
    start = np.zeros(10)
    held, naive = [], []
    for seed in range(100):
        rng = stream(seed, "rows")
        secants = [Secant([start], [start + 0.3 * axes[i]]) for i in (0, 5, 9)]
        for _ in range(40):
            rows, others = problem.rows(rng, 8), problem.rows(rng, 8)
            at = [problem.gradient(start + 0.3 * axes[i], rows) for i in (0, 5, 9)]
            for secant, end in zip(secants, at, strict=True):
                secant.add(problem.gradient(start, rows), end)
            apart = np.concatenate(problem.gradient(start, others)) - np.concatenate(at[2])
        found = smoothness(secants)
        held.append(bool(covered(found, np.array(3.0))))
        naive.append(found.low <= np.linalg.norm(apart) / 0.3 <= found.high)
        assert found.low <= found.value <= found.high
    assert np.mean(held) > 0.9
    assert np.mean(naive) < 0.5


def test_exact_without_noise():
    """Equal mini-batches have no variance; a deterministic quadratic gives its slope to the last digits."""
    points = [[np.zeros(2)], [np.array([1.0, 0.0])], [np.array([1.0, 2.0])]]
    curvature = np.array([1.0, 5.0])
    gradients = [[[curvature * w] for _ in range(8)] for [w] in points]
    found = estimate_constants(points, gradients, batch_size=3)
    assert found.smoothness is not None
    np.testing.assert_allclose([found.smoothness.low, found.smoothness.value, found.smoothness.high], 5.0)
    np.testing.assert_array_equal(found.gradient_variance.high, 0.0)
    np.testing.assert_allclose(found.gradient_second_moment.value, 101.0)  # the last point: 1^2 + 10^2


def test_block_by_hand():
    """One block of two mini-batches: the squared mean is their inner product, the variance half their squared distance."""
    first, second = np.array([1.0, 2.0]), np.array([3.0, -1.0])
    moments = GradientMoments(1, block=2)
    for gradient in (first, second, first, second):
        moments.add([gradient], 5)
    estimate = moments.estimate()
    np.testing.assert_allclose(estimate.squared_mean.value, first @ second)
    np.testing.assert_allclose(estimate.gradient_variance.value, 5 * np.sum((first - second) ** 2) / 2)
    np.testing.assert_allclose(estimate.gradient_second_moment.value, first @ second + 5 * 13 / 2)


def test_streaming_equals_two_passes():
    """Welford's updates agree with the plain formula, far from the origin too, where naive sums of squares cancel."""
    rng = stream(3, "gradients")
    batches = [rng.normal(1e6, 1.0, size=7) for _ in range(6)]
    sizes = np.array([1, 5, 2, 1, 5, 2])
    moments = GradientMoments(1, block=3)
    for gradient, size in zip(batches, sizes, strict=True):
        moments.add([gradient], int(size))
    expected = []
    for g, b in zip(np.array(batches).reshape(2, 3, 7), sizes.reshape(2, 3), strict=True):
        mean = np.average(g, axis=0, weights=b)
        expected.append((b * ((g - mean) ** 2).sum(axis=1)).sum() / 2)
    np.testing.assert_allclose(moments.estimate().gradient_variance.value, np.mean(expected), rtol=1e-9)


def test_merge_is_one_stream(problem: LeastSquares):
    """Two accumulators merged know what one would from all blocks; merging an empty one changes nothing."""
    w, sizes = np.zeros(10), [4] * 24
    whole = blocks_of(problem, w, 5, sizes)
    rng, parts = stream(5, "rows"), [GradientMoments(3), GradientMoments(3)]
    for k, size in enumerate(sizes):
        parts[k >= 8].add(problem.gradient(w, problem.rows(rng, size)), size)
    parts[0].merge(parts[1])
    parts[0].merge(GradientMoments(3))
    assert parts[0].num_blocks == whole.num_blocks == 6
    for name in ("gradient_variance", "squared_mean", "gradient_second_moment"):
        for end in ("value", "low", "high"):
            one, two = (getattr(getattr(m.estimate(), name), end) for m in (whole, parts[0]))
            np.testing.assert_allclose(one, two, rtol=1e-10)


def test_variance_within_devices():
    """Merged over devices whose means differ, the variance stays that within a device."""
    merged = GradientMoments(1)
    for device, centre in enumerate((-50.0, 50.0)):
        rng, own = stream(device, "device"), GradientMoments(1)
        for _ in range(400):
            own.add([rng.normal(centre, 2.0, size=1)], 1)
        merged.merge(own)
    assert covered(merged.estimate().gradient_variance, np.array([4.0])).all()


def test_more_batches_narrow_the_interval(problem: LeastSquares):
    """Sixteen times the mini-batches, about a quarter of the width; a higher confidence is wider."""
    few, many = (blocks_of(problem, np.zeros(10), 1, [4] * n).estimate() for n in (80, 1280))
    width = [np.sum(e.gradient_variance.high - e.gradient_variance.low) for e in (few, many)]
    assert 2.5 < width[0] / width[1] < 6.5
    sure = blocks_of(problem, np.zeros(10), 1, [4] * 80).estimate(0.999)
    assert (sure.gradient_variance.high > few.gradient_variance.high).all()
    assert (sure.gradient_variance.low < few.gradient_variance.low).all()


def test_torch_gradients_are_numpy_gradients():
    """Tensors, in half precision and with a graph behind them too, and layers of several parameters are understood."""
    rng = stream(0, "torch")
    plain, tensors = GradientMoments(2), GradientMoments(2)
    for _ in range(8):
        weight, bias, last = rng.normal(size=(3, 2)), rng.normal(size=3), rng.integers(-4, 5, size=5)
        plain.add([np.concatenate([weight.ravel(), bias]), last], 2)
        half = torch.tensor(last, dtype=torch.bfloat16, requires_grad=True) * 1
        tensors.add([[torch.tensor(weight), torch.tensor(bias)], half], 2)
    one, two = plain.estimate(), tensors.estimate()
    np.testing.assert_array_equal(one.gradient_variance.value, two.gradient_variance.value)
    np.testing.assert_array_equal(one.squared_mean.value, two.squared_mean.value)


def test_reused_buffers_are_safe():
    """Gradients are read, not kept: a caller that overwrites its buffer changes nothing, and is not written to."""
    rng, moments, copies = stream(1, "buffers"), GradientMoments(1), GradientMoments(1)
    buffer = np.empty(4)
    for _ in range(8):
        fresh = rng.normal(size=4)
        buffer[:] = fresh
        moments.add([buffer], 1)
        assert np.array_equal(buffer, fresh)
        copies.add([fresh.copy()], 1)
    np.testing.assert_array_equal(moments.estimate().squared_mean.value, copies.estimate().squared_mean.value)


def test_memory_does_not_grow():
    """Nothing but the block's mean and numbers per layer is kept, however many mini-batches there are."""
    moments = GradientMoments(1)
    for _ in range(402):
        moments.add([np.ones(1000)], 1)
    arrays = [
        a for v in vars(moments).values() for a in (v if isinstance(v, list) else [v]) if isinstance(a, np.ndarray)
    ]
    assert sum(a.size for a in arrays) < 1100


GOOD = [np.ones(2), np.ones(3)]
MISTAKES = {
    "layers": (lambda m: m.add([np.ones(2)], 1), "gradients: expected 2 layers, got 1"),
    "size": (lambda m: m.add([np.ones(2), np.ones(4)], 1), "layer 1: expected 3 numbers, got 4"),
    "nan": (lambda m: m.add([np.ones(2), [np.nan, 1, 1]], 1), "layer 1: expected finite numbers"),
    "batch": (lambda m: m.add(GOOD, 0), "batch_size = 0: expected an integer >= 1"),
    "few": (lambda m: m.estimate(), "1 blocks of 4 mini-batches: expected at least 2"),
    "merge": (lambda m: m.merge(GradientMoments(3)), "expected 2 layers, got 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str):
    """Bad gradients are errors that say which layer and what was expected, and they change nothing."""
    moments, untouched = GradientMoments(2), GradientMoments(2)
    for m, _ in itertools.product((moments, untouched), range(5)):
        m.add(GOOD, 1)
    call, message = MISTAKES[mistake]
    with pytest.raises(EdgeOptError, match=message.replace("[", r"\[")):
        call(moments)
    for m, _ in itertools.product((moments, untouched), range(3)):
        m.add(GOOD, 1)
    np.testing.assert_array_equal(moments.estimate().squared_mean.value, untouched.estimate().squared_mean.value)


def test_more_mistakes():
    """Impossible sizes, equal points, missing gradients and confidences outside (0, 1) are refused."""
    with pytest.raises(EdgeOptError, match="num_layers = 0"):
        GradientMoments(0)
    with pytest.raises(EdgeOptError, match="block = 1"):
        GradientMoments(1, block=1)
    with pytest.raises(EdgeOptError, match="two points are equal"):
        Secant([np.ones(2)], [np.ones(2)])
    with pytest.raises(EdgeOptError, match="secants: expected at least one"):
        smoothness([])
    with pytest.raises(EdgeOptError, match="one list for each of the points"):
        estimate_constants([GOOD], [], 1)
    with pytest.raises(EdgeOptError, match="8 mini-batches as at the point before"):
        estimate_constants([GOOD, [np.zeros(2), np.zeros(3)]], [[GOOD] * 8, [GOOD] * 4], 1)
    moments = GradientMoments(2)
    for _ in range(8):
        moments.add(GOOD, 1)
    with pytest.raises(EdgeOptError, match="confidence = 1"):
        moments.estimate(1)
