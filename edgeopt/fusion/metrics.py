"""How good uncertainties and confidences are: rank correlation, calibration error, what is right among the surest."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from edgeopt.errors import InvalidProblemError


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return the rank correlation of two arrays of equal size; nan if one is constant. Equal values share a rank.

    Examples
    --------
    >>> spearman([1, 2, 3], [10, 40, 90])
    1.0
    """
    a, b = (rankdata(np.ravel(np.asarray(x, np.float64))) for x in (first, second))
    if a.size != b.size:
        raise InvalidProblemError(f"second: {b.size} values, expected {a.size} as in first")
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


def roc_area(score: ArrayLike, event: ArrayLike) -> float:
    """Return the chance that a score with the event is above one without it, ties by half; nan without either.

    Examples
    --------
    >>> roc_area([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    values, happened = np.ravel(np.asarray(score, np.float64)), np.ravel(np.asarray(event, bool))
    positive, negative = int(happened.sum()), int((~happened).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(values)
    return float((ranks[happened].sum() - positive * (positive + 1) / 2) / (positive * negative))


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> NDArray[np.float64]:
    """Return [bins, 3] of equally wide bins of confidence: mean confidence, share of right ones, share of all.

    Parameters
    ----------
    confidence : [n], from 0 to 1.
    right : bool [n].
    bins : of the confidence; one without any has nan.
    """
    p, hit = np.ravel(np.asarray(confidence, np.float64)), np.ravel(np.asarray(right, np.float64))
    at = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(at, minlength=bins)
    some = np.where(count, count, np.nan)
    sums = [np.bincount(at, weights=x, minlength=bins) / some for x in (p, hit)]
    return np.stack([*sums, count / max(p.size, 1)], 1)


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> float:
    """Return the expected calibration error: the mean distance of confidence and share of right ones, bin by bin.

    Examples
    --------
    >>> round(calibration_error([0.95, 0.95, 0.55, 0.55], [True, True, True, False]), 3)
    0.05
    """
    mean, hit, share = reliability(confidence, right, bins).T
    return float(np.nansum(share * np.abs(mean - hit)))


def risk_coverage(confidence: ArrayLike, right: ArrayLike, points: int = 20) -> NDArray[np.float64]:
    """Return [points, 2]: the share of what is answered, surest first, and the share of wrong answers among it.

    Parameters
    ----------
    confidence : [n].
    right : bool [n].
    points : equally far apart, the last all that there is.
    """
    p, hit = np.ravel(np.asarray(confidence, np.float64)), np.ravel(np.asarray(right, np.float64))
    wrong = np.cumsum(1 - hit[np.argsort(-p, kind="stable")])
    count = np.ceil(np.arange(1, points + 1) / points * p.size).astype(int)
    return np.stack([count / p.size, wrong[count - 1] / count], 1)


def risk_area(confidence: ArrayLike, right: ArrayLike) -> float:
    """Return the area under the curve of `risk_coverage`: the mean, over how many are answered, of the share of wrong ones."""
    p, hit = np.ravel(np.asarray(confidence, np.float64)), np.ravel(np.asarray(right, np.float64))
    wrong = np.cumsum(1 - hit[np.argsort(-p, kind="stable")])
    return float((wrong / np.arange(1, p.size + 1)).mean())
