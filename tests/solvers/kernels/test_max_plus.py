"""(max,+) convolutions against the naive double loop."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.solvers.kernels import max_plus as module
from edgeopt.solvers.kernels.max_plus import (
    concave_envelope,
    is_concave,
    max_plus_concave,
    max_plus_concave_concave,
    max_plus_dense,
    max_plus_strided,
    max_plus_strided_dense,
)

LEVEL = st.one_of(st.integers(-9, 9).map(float), st.just(-np.inf))
PROFILE = st.lists(LEVEL, max_size=40).map(lambda x: np.array(x, np.float64))
STRIDE = st.integers(1, 5)


@st.composite
def concave(draw: st.DrawFn, max_size: int = 40) -> np.ndarray:
    """Draw a concave profile of whole numbers (many ties), perhaps with -inf at its ends."""
    steps = sorted(draw(st.lists(st.integers(-4, 6), max_size=max_size)), reverse=True)
    inner = draw(st.integers(-3, 3)) + np.append(0.0, np.cumsum(np.array(steps, np.float64)))
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return np.concatenate([np.full(before, -np.inf), inner, np.full(after, -np.inf)])


def naive(a: Any, b: Any, stride: int = 1, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Try every level in order and keep the first best one."""
    if size is None:
        size = len(a) + len(b) - 1 if len(a) and len(b) else 0
    out, levels = np.full(size, -np.inf), np.full(size, -1, np.int32)
    for i in range(size):
        for k in range(len(b)):
            j = i - k * stride
            if 0 <= j < len(a) and a[j] + b[k] > out[i]:
                out[i], levels[i] = a[j] + b[k], k
    return out, levels


def same(result: Any, expected: Any) -> None:
    """Both values and levels agree bit by bit."""
    assert np.array_equal(result[0], expected[0])
    assert np.array_equal(result[1], expected[1])
    assert result[1].dtype == np.int32


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


@given(PROFILE, PROFILE)
def test_dense_matches_naive(a: np.ndarray, b: np.ndarray) -> None:
    """Values and lowest levels for arbitrary profiles with unreachable entries."""
    same(max_plus_dense(a, b), naive(a, b))


@given(PROFILE, concave())
def test_concave_matches_naive(a: np.ndarray, b: np.ndarray) -> None:
    """Divide and conquer finds the values and lowest levels, also where rows have no reachable entry."""
    same(max_plus_concave(a, b), naive(a, b))


@given(concave(), concave())
def test_concave_concave_matches_naive(a: np.ndarray, b: np.ndarray) -> None:
    """Merging slopes finds the values and lowest levels, and the sum is concave again."""
    result = max_plus_concave_concave(a, b)
    same(result, naive(a, b))
    same(result, max_plus_concave(a, b))
    assert is_concave(result[0])


@given(PROFILE, PROFILE, concave(), STRIDE)
def test_strided_matches_naive(h: np.ndarray, profile: np.ndarray, rounded: np.ndarray, stride: int) -> None:
    """Both strided variants agree with the naive loop, cut off at the size of the table."""
    same(max_plus_strided_dense(h, profile, stride), naive(h, profile, stride, len(h)))
    same(max_plus_strided(h, rounded, stride), naive(h, rounded, stride, len(h)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_long_inputs(share: float) -> None:
    """Several tiles, several groups of levels and divide and conquer per residue class, with gaps in the table."""
    rng = np.random.default_rng(2)
    h = rng.integers(-9, 9, 1300).astype(np.float64)
    h[rng.random(h.size) < share] = -np.inf
    b = rng.integers(-9, 9, 700).astype(np.float64)
    rounded = np.append(0.0, np.cumsum(np.sort(rng.integers(-3, 5, 300))[::-1].astype(np.float64)))
    same(max_plus_dense(h, b), naive(h, b))
    same(max_plus_concave(h, rounded), naive(h, rounded))
    for stride in (1, 3, 8):
        same(max_plus_strided(h, rounded, stride), naive(h, rounded, stride, h.size))


def test_real_values_stay_within_rounding() -> None:
    """With rounded real sums the concave variants stay within a few units in the last place of the dense one."""
    rng = np.random.default_rng(4)
    for _ in range(5):
        a = rng.random(600) * 100
        b, c = (np.append(0.0, np.cumsum(np.sort(rng.random(400))[::-1])) for _ in range(2))
        np.testing.assert_allclose(max_plus_concave(a, b)[0], max_plus_dense(a, b)[0], rtol=1e-13, atol=0)
        np.testing.assert_allclose(max_plus_concave_concave(c, b)[0], max_plus_dense(c, b)[0], rtol=1e-13, atol=1e-13)


@given(PROFILE, PROFILE)
def test_dense_commutes(a: np.ndarray, b: np.ndarray) -> None:
    """Swapping the arguments keeps the values."""
    assert np.array_equal(max_plus_dense(a, b)[0], max_plus_dense(b, a)[0])


@given(PROFILE, concave(max_size=8), STRIDE)
def test_levels_backtrack_to_the_value(h: np.ndarray, profile: np.ndarray, stride: int) -> None:
    """Following a level reproduces the value; level -1 marks exactly the unreachable entries."""
    out, levels = max_plus_strided(h, profile, stride)
    assert np.array_equal(levels == -1, out == -np.inf)
    i = np.flatnonzero(levels >= 0)
    assert np.array_equal(out[i], h[i - levels[i] * stride] + profile[levels[i]])


def test_compiled_equals_uncompiled() -> None:
    """Compiled kernels give the same bits as the Python they are written in."""
    rng = np.random.default_rng(6)
    h = rng.random(130)
    h[rng.random(130) < 0.2] = -np.inf
    b, c = (np.append(0.0, np.cumsum(np.sort(rng.random(70) - 0.2)[::-1])) for _ in range(2))
    runs: list[tuple[Any, tuple[Any, ...]]] = [
        (module.dense_kernel, (h, b, 1, 200)),
        (module.dense_kernel, (h, b, 3, 130)),
        (module.concave_kernel, (h, b, 200)),
        (module.concave_kernel, (b, c, 141)),
        (module.concave_concave_kernel, (b, c)),
        (module.strided_concave_kernel, (h, b, 2)),
        (module.envelope_kernel, (h,)),
    ]
    for kernel, arguments in runs:
        for compiled, plain in zip(kernel(*arguments), python(kernel)(*arguments), strict=True):
            assert np.array_equal(compiled, plain)
    for profile in (h, b, np.array([0.0, -np.inf, -np.inf])):
        assert module.is_concave_kernel(profile, 0.0) == python(module.is_concave_kernel)(profile, 0.0)


def test_edges() -> None:
    """Empty arguments, single levels, nothing reachable."""
    for convolve in (max_plus_dense, max_plus_concave, max_plus_concave_concave):
        for a, b in (([], []), ([], [1.0]), ([1.0], [])):
            assert convolve(a, b)[0].size == convolve(a, b)[1].size == 0
        same(convolve([2.0], [3.0]), (np.array([5.0]), np.array([0])))
        same(convolve([-np.inf, -np.inf], [3.0]), (np.full(2, -np.inf), np.full(2, -1)))
        same(convolve([3.0], [-np.inf, 1.0]), (np.array([-np.inf, 4.0]), np.array([-1, 1])))
    for strided in (max_plus_strided, max_plus_strided_dense):
        assert strided([], [0.0], 2)[0].size == 0
        same(strided([1.0, 2.0], [], 2), (np.full(2, -np.inf), np.full(2, -1)))
        same(strided([1.0, 2.0], [0.0, 5.0], 10), (np.array([1.0, 2.0]), np.zeros(2)))
    assert is_concave([])
    assert is_concave([-np.inf])
    assert [x.size for x in concave_envelope([])] == [0, 0]
    assert concave_envelope([-np.inf, -np.inf])[1].size == 0


def test_ties_go_to_the_lowest_level() -> None:
    """Flat profiles: every level is as good, so the second argument takes as little as it can."""
    flat = np.zeros(4)
    for convolve in (max_plus_dense, max_plus_concave, max_plus_concave_concave):
        assert convolve(flat, flat)[1].tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert max_plus_strided(np.zeros(5), flat, 2)[1].tolist() == [0] * 5


def test_is_concave() -> None:
    """Falling increments are concave; a gap inside or a rising increment is not; rounding noise is forgiven."""
    assert is_concave([0.0, 3.0, 5.0, 5.0, 1.0])
    assert is_concave([-np.inf, 0.0, 1.0, -np.inf])
    assert not is_concave([0.0, 1.0, 3.0])
    assert not is_concave([0.0, -np.inf, 0.0])
    assert is_concave(np.cumsum(np.full(10_000, 0.1)))
    assert not is_concave(np.cumsum(np.full(10_000, 0.1)), tol=0.0)
    slowly_convex = np.square(np.arange(10_000.0)) * 1e-13 + np.arange(10_000.0)
    assert not is_concave(slowly_convex)  # each increment rises by 2e-13 only, but they add up to 2.5e-6


@given(PROFILE)
def test_envelope(profile: np.ndarray) -> None:
    """The envelope is concave, above the profile, touches it at the break levels and is finite between finite ones."""
    envelope, breaks = concave_envelope(profile)
    finite = np.flatnonzero(profile > -np.inf)
    assert (envelope >= profile).all()
    assert is_concave(envelope)
    assert np.array_equal(envelope[breaks], profile[breaks])
    if finite.size:
        assert breaks[0] == finite[0]
        assert breaks[-1] == finite[-1]
        levels = np.arange(profile.size)[finite[0] : finite[-1] + 1]
        np.testing.assert_allclose(envelope[levels], np.interp(levels, breaks, profile[breaks]), rtol=1e-12, atol=1e-12)
    else:
        assert (envelope == -np.inf).all()


def test_envelope_of_a_concave_profile_is_itself() -> None:
    """A concave profile keeps every level, those on a straight stretch included."""
    envelope, breaks = concave_envelope([0.0, 3.0, 5.0, 7.0, 7.0])
    assert envelope.tolist() == [0.0, 3.0, 5.0, 7.0, 7.0]
    assert breaks.tolist() == [0, 1, 2, 3, 4]


def test_bad_input() -> None:
    """NaN, +inf, matrices, bad strides and profiles that are not concave are refused by name."""
    with pytest.raises(InvalidProblemError, match=r"a\[1\] = nan, expected a number or -inf"):
        max_plus_dense([0.0, np.nan], [0.0])
    with pytest.raises(InvalidProblemError, match=r"b\[0\] = inf, expected a number or -inf"):
        max_plus_concave([0.0], [np.inf])
    with pytest.raises(InvalidProblemError, match="a: got 2 dimensions, expected 1"):
        max_plus_dense([[0.0]], [0.0])
    with pytest.raises(InvalidProblemError, match="b is not concave"):
        max_plus_concave([0.0], [0.0, 1.0, 3.0])
    with pytest.raises(InvalidProblemError, match="a is not concave"):
        max_plus_concave_concave([0.0, 1.0, 3.0], [0.0])
    with pytest.raises(InvalidProblemError, match="profile is not concave"):
        max_plus_strided([0.0], [0.0, 1.0, 3.0], 1)
    for stride in (0, 1.5, True):
        with pytest.raises(InvalidProblemError, match=r"stride = .*, expected an integer >= 1"):
            max_plus_strided_dense([0.0], [0.0], stride)
