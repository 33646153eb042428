"""When each layer of a model arrives and runs: the recursion of simultaneous download and inference, and its record."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.validate import float_array

_TIMES = ("download_start_s", "download_finish_s", "start_s", "finish_s")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTimeline:
    """Start and finish of the download and of the computation of L layers, predicted or measured.

    Parameters
    ----------
    layer_names : L names.
    download_start_s, download_finish_s : float64 [L], seconds after the download began.
    start_s, finish_s : float64 [L], seconds after the download began at which the layer was computed.
    """

    layer_names: tuple[str, ...]
    download_start_s: NDArray[np.float64]
    download_finish_s: NDArray[np.float64]
    start_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]

    __repr__ = one_line

    def __post_init__(self) -> None:
        if not self.layer_names:
            raise InvalidProblemError("layer_names: expected at least one layer")
        for name in _TIMES:
            object.__setattr__(self, name, float_array(name, getattr(self, name), (len(self.layer_names),), unit="s"))

    @property
    def compute_s(self) -> NDArray[np.float64]:
        """Seconds that the computation of each layer took, float64 [L]."""
        return self.finish_s - self.start_s

    @property
    def total_s(self) -> float:
        """Seconds from the start of the download to the end of the last layer."""
        return float(self.finish_s[-1])


def predict_timeline(
    layer_names: tuple[str, ...], layer_bytes: ArrayLike, rate_bps: float, compute_s: ArrayLike
) -> LayerTimeline:
    r"""Return the timeline of a download at a constant rate.

    .. math:: t_l = \max\Big(\frac{1}{r} \sum_{j \le l} S_j, \; t_{l-1}\Big) + c_l

    Parameters
    ----------
    layer_names : L names.
    layer_bytes : float64 [L], bytes of each layer; S is in bit.
    rate_bps : rate r, bit/s.
    compute_s : float64 [L], seconds c to compute each layer.

    Raises
    ------
    InvalidProblemError
        If a number is negative or not finite, or the rate is zero.

    Examples
    --------
    >>> timeline = predict_timeline(("first", "second"), [1000, 500], 8000.0, [0.25, 0.75])
    >>> timeline.start_s, timeline.finish_s
    (array([1. , 1.5]), array([1.25, 2.25]))
    """
    size = (len(layer_names),)
    bits = 8 * float_array("layer_bytes", layer_bytes, size, nonnegative=True, unit="byte")
    seconds = float_array("compute_s", compute_s, size, nonnegative=True, unit="s")
    rate = float_array("rate_bps", rate_bps, (), positive=True, unit="bit/s").item()
    arrived = np.cumsum(bits) / rate
    start, finish = np.empty(size), np.empty(size)
    done = 0.0
    for layer in range(size[0]):
        start[layer] = max(arrived[layer], done)
        done = finish[layer] = start[layer] + seconds[layer]
    return LayerTimeline(
        layer_names=layer_names,
        download_start_s=arrived - bits / rate,
        download_finish_s=arrived,
        start_s=start,
        finish_s=finish,
    )
