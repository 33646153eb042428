"""What held-out windows teach of uncertainties: a monotone map for each modality, and a temperature for the classes."""

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import nn

from edgeopt.errors import InvalidProblemError, quoted

Method = Literal["affine", "isotonic"]

_KNOTS = 12
_FLAT = 1e-9  # slope under a piecewise linear map
_LEAST_SLOPE = 0.05  # a > 0: the order of uncertainties within a modality stays


class Calibration(nn.Module):
    """A map of log U for each modality, and a temperature.

    ``log U' = a log U + b``: a > 0 and b learn with the model, so that weights are by U' from the start, and are fitted
    again afterwards; or to an isotonic regression, then by the piecewise linear function through the means of its
    parts, constant beyond them. The temperature of class scores is exp(g log U' + h) with the fused log U'. Before
    anything is learned, U' is U and the temperature 1.
    """

    at: torch.Tensor
    rise: torch.Tensor
    temperature: torch.Tensor

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.log_slope = nn.Parameter(torch.zeros(modalities))
        self.offset = nn.Parameter(torch.zeros(modalities))
        self.register_buffer("at", torch.arange(float(_KNOTS)).expand(modalities, -1).clone())  # knots of log U
        self.register_buffer("rise", torch.zeros(modalities, _KNOTS - 1))  # from knot to knot, none of them negative
        self.register_buffer("temperature", torch.zeros(2))

    def forward(self, log_u: torch.Tensor) -> torch.Tensor:
        """Return log U' (B, M, T) of log U (B, M, T)."""
        low, high = self.at[:, None, :-1], self.at[:, None, 1:]  # (M, 1, knots - 1)
        share = ((log_u[..., None] - low) / (high - low)).clamp(0, 1)  # (B, M, T, knots - 1)
        line = self.log_slope.exp()[:, None] * log_u + self.offset[:, None]  # (B, M, T)
        return line + (share * self.rise[:, None]).sum(-1)

    def tempered(self, scores: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
        """Return class scores (B, T, K) over their temperature, with the fused log U' (B, T)."""
        return scores / (self.temperature[0] * fused + self.temperature[1]).clamp(-3, 3).exp()[..., None]

    @torch.no_grad()
    def fit_maps(self, log_u: torch.Tensor, error: torch.Tensor, method: Method = "affine") -> None:
        """Fit the map of each modality, so that log U' predicts its error.

        Parameters
        ----------
        log_u : [B, M, T], not calibrated.
        error : [B, M, T], cross entropies of what each modality says alone.
        method : ``affine``: least squares; ``isotonic``: the monotone function of least squares.

        Raises
        ------
        InvalidProblemError
            If the method is unknown.
        """
        if method not in ("affine", "isotonic"):
            raise InvalidProblemError(f"method = {quoted(method)}: expected 'affine' or 'isotonic'")
        for m in range(len(self.offset)):
            x, y = (part[:, m].flatten().numpy(force=True) for part in (log_u, error))
            if np.ptp(x) < 1e-6:  # nothing to tell apart
                continue
            if method == "affine":
                slope, offset = affine_fit(x, y)
                at, heights = np.arange(_KNOTS, dtype=float), np.zeros(_KNOTS)
            else:
                at, heights = isotonic_fit(x, y)
                slope, offset = _FLAT, float(heights[0])
            self.log_slope[m], self.offset[m] = math.log(slope), offset
            self.at[m], self.rise[m] = torch.from_numpy(at), torch.from_numpy(np.diff(heights))

    def fit_temperature(self, scores: torch.Tensor, fused: torch.Tensor, labels: torch.Tensor) -> None:
        """Fit the temperature to class scores [B, T, K], fused log U' [B, T] and labels [B, T]: least cross entropy."""
        given = torch.zeros(2).requires_grad_()
        scores, fused = scores.detach(), fused.detach()
        optimizer: Any = torch.optim.LBFGS([given], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            tempered = scores / (given[0] * fused + given[1]).clamp(-3, 3).exp()[..., None]
            value = nn.functional.cross_entropy(tempered.flatten(0, -2), labels.flatten()) + 1e-3 * given[0].square()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        self.temperature.copy_(given.detach())


def affine_fit(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[float, float]:
    """Return slope and offset of least squares of y on x; the slope is positive at least a little.

    Examples
    --------
    >>> affine_fit(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    (2.0, 1.0)
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    spread = x - x.mean()
    slope = max(float(spread @ y / (spread @ spread)), _LEAST_SLOPE)
    return slope, float(y.mean() - slope * x.mean())


def isotonic_fit(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return knots and heights there of the monotone function of least squares, at quantiles of x.

    Parameters
    ----------
    x, y : [n].
    """
    order = np.argsort(x, kind="stable")
    ascending, fitted = x[order].astype(np.float64), isotonic_regression(y[order].astype(np.float64)).x
    edges = np.linspace(0, ascending.size, _KNOTS + 1).astype(int)
    middles = [
        slice(a, max(b, a + 1)) for a, b in zip(np.minimum(edges[:-1], ascending.size - 1), edges[1:], strict=True)
    ]
    at = np.array([ascending[part].mean() for part in middles])
    heights = np.array([fitted[part].mean() for part in middles])
    return np.maximum.accumulate(at) + 1e-6 * np.arange(_KNOTS), np.maximum.accumulate(heights)
