"""(max,+) convolution of profiles: dense, with concave arguments, and strided.

A profile is a vector whose k-th entry is the value of level k. An entry of -inf is a level that cannot be
reached; NaN and +inf are refused. Every convolution returns the values and, as int32, the level that the *second*
argument takes: the lowest such level when several are equally good, -1 where the value is -inf.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.jit import kernel
from edgeopt.solvers.kernels import Floats, Ints, float_vector, require

TILE = 512  # outputs computed at a time by the dense kernel: they and their arguments stay in the first-level cache
UNROLL = 8  # levels tried per pass over a tile
CONCAVITY_TOL = 1e-12  # relative distance from the concave envelope that still counts as concave
DENSE_LEVELS = 48  # up to so many levels the vectorised dense kernel beats divide and conquer

Convolution = tuple[Floats, NDArray[np.int32]]


@kernel
def dense_kernel(h: Floats, profile: Floats, stride: int, size: int) -> Convolution:
    """``out[i] = max over k of h[i - k * stride] + profile[k]`` for i < size, any profile, O(size * levels).

    Eight levels per pass keep the running maximum in registers. A pass only notes which group of eight improved an
    output; the level itself is looked up in that group afterwards.
    """
    out = np.empty(size)
    levels = np.empty(size, np.int32)
    n = h.size
    m = min(profile.size, (size - 1) // stride + 1) if size > 0 else 0
    groups = (m + UNROLL - 1) // UNROLL
    p = np.full(groups * UNROLL, -np.inf)
    p[:m] = profile[:m]
    front = groups * UNROLL * stride
    padded = np.full(front + max(size, n), -np.inf)
    padded[front : front + n] = h
    group = np.empty(TILE, np.int32)
    for first in range(0, size, TILE):
        length = min(TILE, size - first)
        best = out[first : first + length]
        best[:] = -np.inf
        group[:] = -1
        low = max(0, (first - n) // stride) // UNROLL
        high = min(groups, (first + length - 1) // (stride * UNROLL) + 1)
        for g in range(low, high):
            k = g * UNROLL
            p0, p1, p2, p3 = p[k], p[k + 1], p[k + 2], p[k + 3]
            p4, p5, p6, p7 = p[k + 4], p[k + 5], p[k + 6], p[k + 7]
            at = front + first - k * stride
            h0 = padded[at : at + length]
            h1 = padded[at - stride : at - stride + length]
            h2 = padded[at - 2 * stride : at - 2 * stride + length]
            h3 = padded[at - 3 * stride : at - 3 * stride + length]
            h4 = padded[at - 4 * stride : at - 4 * stride + length]
            h5 = padded[at - 5 * stride : at - 5 * stride + length]
            h6 = padded[at - 6 * stride : at - 6 * stride + length]
            h7 = padded[at - 7 * stride : at - 7 * stride + length]
            for t in range(length):
                x = max(
                    max(max(h0[t] + p0, h1[t] + p1), max(h2[t] + p2, h3[t] + p3)),
                    max(max(h4[t] + p4, h5[t] + p5), max(h6[t] + p6, h7[t] + p7)),
                )
                y = best[t]
                group[t] = g if x > y else group[t]
                best[t] = max(x, y)
        for t in range(length):
            levels[first + t] = -1
            if group[t] >= 0:
                k = group[t] * UNROLL
                at = front + first + t
                while padded[at - k * stride] + p[k] != best[t]:
                    k += 1
                levels[first + t] = k
    return out, levels


@kernel
def concave_kernel(a: Floats, b: Floats, size: int) -> Convolution:
    """``out[i] = max over k of a[i - k] + b[k]`` for i < size and concave b, O((len(a) + size) log(size)).

    Rows i are visited at strides size / 2, size / 4, ..., 1; the best column i - k never falls with i, so a row
    searches only between its two neighbours' columns. Columns of value -inf are left out, as are the
    ends of b that are -inf; a row without a column only separates those on its two sides.
    """
    out = np.full(size, -np.inf)
    levels = np.full(size, np.int32(-1), np.int32)
    begin = 0
    end = b.size
    while begin < end and b[begin] == -np.inf:
        begin += 1
    while begin < end and b[end - 1] == -np.inf:
        end -= 1
    m = end - begin
    columns = np.empty(min(a.size, size), np.int64)
    n = 0
    for j in range(columns.size):
        if a[j] > -np.inf:
            columns[n] = j
            n += 1
    if n == 0 or m == 0 or size <= begin:
        return out, levels
    compact = n == columns[n - 1] - columns[0] + 1  # the usual case: column j is just columns[0] + j
    shift = columns[0]
    source = np.empty(n)
    for j in range(n):
        source[j] = a[columns[j]]
    rows = size - begin  # row r is output r + begin; b[begin + r - column] is its entry in a column
    b = b[begin:end]
    choice = np.empty(rows, np.int64)  # best column of a row
    step = 1
    while step < rows:
        step *= 2
    while step >= 1:
        for r in range(step - 1, rows, 2 * step):
            low = choice[r - step] if r >= step else 0
            high = choice[r + step] if r + step < rows else n - 1
            if compact:
                low = max(low, r - m + 1 - shift)
                high = min(high, r - shift)
            else:
                while low < n and columns[low] < r - m + 1:
                    low += 1
                while high >= 0 and columns[high] > r:
                    high -= 1
            best = -np.inf
            column = min(max(low, 0), n - 1)
            if compact:
                base = r - shift
                for j in range(low, high + 1):
                    x = source[j] + b[base - j]
                    if x >= best:
                        best = x
                        column = j
            else:
                for j in range(low, high + 1):
                    x = source[j] + b[r - columns[j]]
                    if x >= best:
                        best = x
                        column = j
            choice[r] = column
            if low <= high:
                out[r + begin] = best
                levels[r + begin] = begin + r - columns[column]
        step //= 2
    return out, levels


@kernel
def concave_concave_kernel(a: Floats, b: Floats) -> Convolution:
    """Convolution of two concave vectors, O(n + m): both are climbed, the steeper next step first, a's at a tie.

    The climb is followed from both ends at once, as each step waits for the one before it; steps are added rather
    than branched on, as nobody can predict them.
    """
    size = a.size + b.size - 1 if a.size > 0 and b.size > 0 else 0
    out = np.full(size, -np.inf)
    levels = np.full(size, np.int32(-1), np.int32)
    i = 0
    j = 0
    last_i = a.size - 1
    last_j = b.size - 1
    while i <= last_i and a[i] == -np.inf:
        i += 1
    while j <= last_j and b[j] == -np.inf:
        j += 1
    if i > last_i or j > last_j:
        return out, levels
    while a[last_i] == -np.inf:
        last_i -= 1
    while b[last_j] == -np.inf:
        last_j -= 1
    k = i + j
    while last_i - i > 1 and last_j - j > 1:  # each end moves one step: they cannot cross
        out[k] = a[i] + b[j]
        levels[k] = j
        step = int(b[j + 1] - b[j] > a[i + 1] - a[i])
        j += step
        i += 1 - step
        k += 1
        out[last_i + last_j] = a[last_i] + b[last_j]
        levels[last_i + last_j] = last_j
        step = int(b[last_j] - b[last_j - 1] <= a[last_i] - a[last_i - 1])
        last_j -= step
        last_i -= 1 - step
    while i < last_i and j < last_j:
        out[k] = a[i] + b[j]
        levels[k] = j
        step = int(b[j + 1] - b[j] > a[i + 1] - a[i])
        j += step
        i += 1 - step
        k += 1
    while i < last_i:
        out[k] = a[i] + b[j]
        levels[k] = j
        i += 1
        k += 1
    while j < last_j:
        out[k] = a[i] + b[j]
        levels[k] = j
        j += 1
        k += 1
    out[k] = a[i] + b[j]
    levels[k] = j
    return out, levels


@kernel
def strided_concave_kernel(h: Floats, profile: Floats, stride: int) -> Convolution:
    """Like `dense_kernel` with size len(h), for a concave profile: each residue class is a convolution of its own."""
    size = h.size
    if size == 0 or min(profile.size, (size - 1) // stride + 1) <= DENSE_LEVELS:
        return dense_kernel(h, profile, stride, size)
    out = np.empty(size)
    levels = np.empty(size, np.int32)
    for residue in range(stride):
        part = h[residue::stride].copy()
        out[residue::stride], levels[residue::stride] = concave_kernel(part, profile, part.size)
    return out, levels


@kernel
def envelope_kernel(profile: Floats) -> tuple[Floats, Ints]:
    """Smallest concave vector above a profile, and the levels where they meet; see `concave_envelope`."""
    n = profile.size
    breaks = np.empty(n, np.int64)
    m = 0
    for k in range(n):
        if profile[k] == -np.inf:
            continue
        while m >= 2:  # the middle point goes if it lies below the chord of its neighbours
            i, j = breaks[m - 2], breaks[m - 1]
            if (profile[j] - profile[i]) * (k - j) < (profile[k] - profile[j]) * (j - i):
                m -= 1
            else:
                break
        breaks[m] = k
        m += 1
    breaks = breaks[:m].copy()
    envelope = np.full(n, -np.inf)
    if m > 0:
        envelope[breaks[m - 1]] = profile[breaks[m - 1]]
    for q in range(m - 1):
        i, j = breaks[q], breaks[q + 1]
        slope = (profile[j] - profile[i]) / (j - i)
        envelope[i] = profile[i]
        for k in range(i + 1, j):
            envelope[k] = max(profile[i] + slope * (k - i), profile[k])
    return envelope, breaks


@kernel
def is_concave_kernel(a: Floats, tol: float) -> bool:
    """Whether a lies within ``tol * max |a|`` of its concave envelope; see `is_concave`."""
    scale = 0.0
    falling = True  # all finite, and the increments never rise: nothing more to check
    for k in range(a.size):
        if a[k] > -np.inf:
            scale = max(scale, abs(a[k]))
        else:
            falling = False
        falling = falling and (k < 2 or a[k] - a[k - 1] <= a[k - 1] - a[k - 2])
    if falling:
        return True
    envelope, _ = envelope_kernel(a)
    worst = 0.0
    for k in range(a.size):
        if envelope[k] > -np.inf:
            worst = max(worst, envelope[k] - a[k])
    return worst <= tol * scale


def max_plus_dense(a: ArrayLike, b: ArrayLike) -> Convolution:
    """Convolve two arbitrary profiles: ``out[i] = max over k of a[i - k] + b[k]``, exact.

    Parameters
    ----------
    a, b
        Profiles, real [n] and [m]; -inf marks a level that cannot be reached.

    Returns
    -------
    out : NDArray[np.float64]
        Best sums, [n + m - 1]; empty if a or b is. Time O(n m), memory O(n + m).
    levels : NDArray[np.int32]
        Best k, the lowest at a tie, -1 where ``out`` is -inf, [n + m - 1].

    Raises
    ------
    InvalidProblemError
        If an entry is NaN or +inf, or an argument is not a vector.

    Examples
    --------
    >>> max_plus_dense([0, 1, 5], [0, 3])
    (array([0., 3., 5., 8.]), array([0, 1, 0, 1], dtype=int32))
    """
    x, y = _profile("a", a), _profile("b", b)
    return dense_kernel(x, y, 1, _full_size(x, y))


def max_plus_concave(a: ArrayLike, b: ArrayLike) -> Convolution:
    """Convolve an arbitrary profile with a concave one, ``out[i] = max over k of a[i - k] + b[k]``.

    Divide and conquer over the outputs: the best i - k never falls as i grows. Exact in exact arithmetic; rounded
    sums can cost a few units in the last place per level of the recursion.

    Parameters
    ----------
    a
        Arbitrary profile, real [n]; -inf marks a level that cannot be reached.
    b
        Concave profile, real [m]; -inf only at its two ends.

    Returns
    -------
    out : NDArray[np.float64]
        Best sums, [n + m - 1]; empty if a or b is. Time O((n + m) log(n + m)), memory O(n + m).
    levels : NDArray[np.int32]
        Best k, the lowest at a tie, -1 where ``out`` is -inf, [n + m - 1].

    Raises
    ------
    InvalidProblemError
        If an entry is NaN or +inf, an argument is not a vector, or b is not concave.

    References
    ----------
    Aggarwal, Klawe, Moran, Shor, Wilber, "Geometric applications of a matrix-searching algorithm",
    Algorithmica 2, 1987 (monotone matrices).

    Examples
    --------
    >>> max_plus_concave([0, 1, 5], [0, 3, 4])
    (array([0., 3., 5., 8., 9.]), array([0, 1, 0, 1, 2], dtype=int32))
    """
    x, y = _profile("a", a), _concave("b", b)
    return concave_kernel(x, y, _full_size(x, y))


def max_plus_concave_concave(a: ArrayLike, b: ArrayLike) -> Convolution:
    """Convolve two concave profiles by merging their increments, ``out[i] = max over k of a[i - k] + b[k]``.

    Parameters
    ----------
    a, b
        Concave profiles, real [n] and [m]; -inf only at their ends.

    Returns
    -------
    out : NDArray[np.float64]
        Best sums, concave, [n + m - 1]; empty if a or b is. Time and memory O(n + m).
    levels : NDArray[np.int32]
        Best k, the lowest at a tie, -1 where ``out`` is -inf, [n + m - 1].

    Raises
    ------
    InvalidProblemError
        If an entry is NaN or +inf, or an argument is not a vector or not concave.

    Examples
    --------
    >>> max_plus_concave_concave([0, 4, 5], [0, 3])
    (array([0., 4., 7., 8.]), array([0, 0, 1, 1], dtype=int32))
    """
    return concave_concave_kernel(_concave("a", a), _concave("b", b))


def max_plus_strided(h: ArrayLike, profile: ArrayLike, stride: int) -> Convolution:
    """Add a concave profile whose level k weighs k * stride to a table over capacity.

    ``out[i] = max over k of h[i - k * stride] + profile[k]``, as in `max_plus_concave` within each residue class of i
    modulo stride; with few levels, by the vectorised dense kernel instead.

    Parameters
    ----------
    h
        Best value per capacity so far, real [n]; -inf marks a capacity that cannot be used exactly.
    profile
        Concave profile, real [m]; -inf only at its ends. Level 0 is "nothing added".
    stride
        Weight of one level in units of capacity, >= 1.

    Returns
    -------
    out : NDArray[np.float64]
        New table, [n]; all -inf if the profile is empty. Time O(n min(m, log(n / stride))), memory O(n).
    levels : NDArray[np.int32]
        Best k, the lowest at a tie, -1 where ``out`` is -inf, [n].

    Raises
    ------
    InvalidProblemError
        If an entry is NaN or +inf, an argument is not a vector, the profile is not concave, or stride < 1.

    Examples
    --------
    >>> max_plus_strided([0, 0, 0, 0, 0], [0, 3, 5], 2)
    (array([0., 0., 3., 3., 5.]), array([0, 0, 1, 1, 2], dtype=int32))
    """
    return strided_concave_kernel(_profile("h", h), _concave("profile", profile), _stride(stride))


def max_plus_strided_dense(h: ArrayLike, profile: ArrayLike, stride: int) -> Convolution:
    """Like `max_plus_strided`, for an arbitrary profile; exact, time O(n min(m, n / stride)).

    Raises
    ------
    InvalidProblemError
        If an entry is NaN or +inf, an argument is not a vector, or stride < 1.

    Examples
    --------
    >>> max_plus_strided_dense([0, 0, 0, 0, 0], [0, 1, 5], 2)
    (array([0., 0., 1., 1., 5.]), array([0, 0, 1, 1, 2], dtype=int32))
    """
    x, y = _profile("h", h), _profile("profile", profile)
    return dense_kernel(x, y, _stride(stride), x.size)


def is_concave(a: ArrayLike, *, tol: float = CONCAVITY_TOL) -> bool:
    """Return whether a profile is concave: nowhere more than ``tol * max |a|`` below its concave envelope.

    An entry of -inf is allowed at the ends only. Time O(n).

    Raises
    ------
    InvalidProblemError
        If an entry is NaN or +inf, or the argument is not a vector.

    Examples
    --------
    >>> is_concave([0, 3, 5, 6]), is_concave([0, 1, 5])
    (True, False)
    """
    return bool(is_concave_kernel(_profile("a", a), tol))


def concave_envelope(profile: ArrayLike) -> tuple[Floats, Ints]:
    """Return the smallest concave profile above a profile, and the levels where the two meet.

    Returns
    -------
    envelope : NDArray[np.float64]
        Concave up to rounding, >= profile, -inf before the first and after the last finite entry, [n]. Time O(n).
    breaks : NDArray[np.int64]
        Levels where the envelope bends or touches the profile, rising: the first and the last finite level are among
        them, and envelope and profile agree there.

    Raises
    ------
    InvalidProblemError
        If an entry is NaN or +inf, or the argument is not a vector.

    References
    ----------
    Andrew, "Another efficient algorithm for convex hulls in two dimensions", Information Processing Letters 9, 1979.

    Examples
    --------
    >>> concave_envelope([0, 1, 6, 7])
    (array([0., 3., 6., 7.]), array([0, 2, 3]))
    """
    return envelope_kernel(_profile("profile", profile))


def warm_up() -> None:
    """Compile or load every kernel of this module.

    Examples
    --------
    >>> warm_up()
    """
    concave = -np.square(np.arange(3.0))
    max_plus_concave(concave, concave)
    max_plus_concave_concave(concave, concave)
    max_plus_strided(concave, concave, 1)
    concave_envelope(concave)


def _profile(name: str, data: ArrayLike) -> Floats:
    array = float_vector(name, data)
    require(name, array, array < np.inf, "a number or -inf")
    return array


def _concave(name: str, data: ArrayLike) -> Floats:
    array = _profile(name, data)
    if not is_concave_kernel(array, CONCAVITY_TOL):
        raise InvalidProblemError(f"{name} is not concave; use the dense variant, or concave_envelope for a bound")
    return array


def _full_size(a: Floats, b: Floats) -> int:
    return a.size + b.size - 1 if a.size and b.size else 0


def _stride(stride: int) -> int:
    if isinstance(stride, bool) or not isinstance(stride, int | np.integer) or stride < 1:
        raise InvalidProblemError(f"stride = {quoted(stride)}, expected an integer >= 1")
    return int(stride)
