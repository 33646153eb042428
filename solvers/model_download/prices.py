"""What bandwidth, deadlines and energy are worth to model download."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.prices import Price, whole
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.solvers.model_download.common import FILL
from edgeopt.solvers.model_download.reasons import least_bandwidth

Floats = NDArray[np.float64]

HALVINGS = 200  # of the interval of prices
SLOPE = 1e-3  # relative: the change of a deadline or an energy limit that its slope is taken over


def prices(problem: ModelDownload, plan: DownloadPlan) -> list[Price]:
    r"""Return prices of the bandwidth, and of each user's deadline and energy limit.

    With a price :math:`\lambda` on bandwidth users separate, and for every bandwidth B

    .. math:: OPT(B) \le \lambda B + \sum_k \max(0, \max_i v_{ki} - \lambda b_{ki}).

    The price is the one with the least bound here. A user's deadline and energy limit change its own :math:`b_{ki}`; their worth is
    the slope of the bound, an estimate. So is all where frequencies have levels and there are energy limits, as the
    bandwidths are then not known to be the least. Who is next to be let in, or to get a better model, is the user with most
    value for the bandwidth that lacks.
    """
    needs, value = least_bandwidth(problem), problem.value
    grid, bandwidth = problem.resource_block_hz, problem.bandwidth_hz * (1 + FILL)
    price, bound = best_price(needs, value, bandwidth if grid is None else grid * whole(bandwidth, grid))
    proved = problem.frequency_levels is None or not problem.is_energy_limited
    step, gain = _next(problem, plan, needs)
    found = [
        Price(
            name="bandwidth_hz",
            unit="Hz",
            value=problem.bandwidth_hz,
            worth=price,
            claim="at most" if proved else "estimate",
            base=bound if proved else None,
            grid=grid,
            step=step,
            gain=gain,
        )
    ]
    before = surplus(needs, value, price)
    for name, unit in (("deadline_s", "s"), ("energy_j", "J")):
        limit: Floats = getattr(problem, name)
        if not np.isfinite(limit).any():
            continue
        after = surplus(least_bandwidth(problem.replace(**{name: limit * (1 + SLOPE)})), value, price)
        for user in np.flatnonzero(np.isfinite(limit) & (after > before)).tolist():
            worth = float((after[user] - before[user]) / (SLOPE * limit[user]))
            found.append(
                Price(name=f"{name}[{user}]", unit=unit, value=limit[user].item(), worth=worth, claim="estimate")
            )
    return found


def surplus(needs: Floats, value: Floats, price: float) -> Floats:
    """Return float64 [K]: what is left to each user of its best model's value after paying for its bandwidth, at least 0."""
    paid = np.where(np.isfinite(needs), value - price * np.where(np.isfinite(needs), needs, 0.0), 0.0)
    return np.asarray(np.maximum(paid.max(axis=1), 0.0))


def best_price(needs: Floats, value: Floats, bandwidth_hz: float) -> tuple[float, float]:
    """Return the price of a hertz with the least bound, and that bound; by halving, as the bound is convex in the price."""
    served = np.isfinite(needs)
    low, high = (
        0.0,
        float(np.max(np.where(served, value / np.maximum(np.where(served, needs, 1.0), 1e-300), 0.0), initial=0.0)),
    )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        paid = np.where(served, value - middle * np.where(served, needs, 0.0), -np.inf)
        best = paid.argmax(axis=1)
        rows = np.arange(len(needs))
        asked = float(np.where(paid[rows, best] > 0, np.where(served, needs, 0.0)[rows, best], 0.0).sum())
        low, high = (middle, high) if asked > bandwidth_hz else (low, middle)
        if not low < (low + high) / 2 < high:
            break
    bounds = [(price * bandwidth_hz + float(surplus(needs, value, price).sum()), price) for price in (0.0, low, high)]
    bound, price = min(bounds)
    return price, bound


def _next(problem: ModelDownload, plan: DownloadPlan, needs: Floats) -> tuple[float | None, float | None]:
    """Return the hertz that lack for the most worthwhile change of one user, and what it brings."""
    users = np.arange(problem.num_users)
    model = plan.model
    held = np.where(model >= 0, needs[users, model], 0.0)
    now = np.where(model >= 0, problem.value[users, model], 0.0)
    gain = problem.value - now[:, None]
    lacks = held.sum() - held[:, None] + needs - problem.bandwidth_hz
    worth = np.where(np.isfinite(lacks) & (lacks > 0) & (gain > 0), gain / np.maximum(lacks, 1e-300), 0.0)
    user, other = np.unravel_index(int(worth.argmax()), worth.shape)
    if worth[user, other] <= 0:
        return None, None
    return float(lacks[user, other]), float(gain[user, other])
