"""What each user with each model needs by itself, from the programmes of the pairs, and the choice among them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from edgeopt.modelling import GenericModel, cvxpy_module, power_of_two, solve_quietly
from edgeopt.mps import LinearProgramme

Floats = NDArray[np.float64]
ROUNDING = 1e-9  # relative: a need is a whole number of blocks within this


def least_rates(
    problem: Any, check: Callable[[], object] = lambda: None
) -> tuple[Floats, dict[tuple[int, int], Floats]]:
    """Return the least rate in bit/s [K, I] of each pair by its programme in cvxpy, inf where there is none, and the Hz of its layers.

    `check` is called before each; it may leave by raising.
    """
    cp: Any = cvxpy_module()
    rate = np.full(problem.allowed.shape, np.inf)
    frequency = {}
    for user, model in np.argwhere(problem.allowed).tolist():
        check()
        part = problem.to_cvxpy(user, model)
        conic = "energy" in part.variables and problem.frequency_levels is None
        try:
            # Clarabel's own tolerances, tightened: rates are compared with what has closed forms
            options = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11} if conic else {}
            solve_quietly(part.problem, solver=cp.CLARABEL if conic else cp.HIGHS, **options)
        except cp.error.SolverError:
            continue
        if part.problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE) and part.value > 0:
            rate[user, model] = problem.model_bits[model] / part.value
            frequency[user, model] = part.solution().frequency_hz
    return rate, frequency


def bandwidths(problem: Any, rate: Floats) -> Floats:
    """Return the Hz [K, I] that carry some rates, whole blocks if there are any, inf where nothing does."""
    hz = np.full(rate.shape, np.inf)
    if problem.snr_hz is None:
        assert problem.spectral_efficiency is not None
        hz = rate / problem.spectral_efficiency[:, None]
    else:
        for k, i in np.argwhere(rate < problem.rate_ceiling_bps[:, None]).tolist():
            hz[k, i] = _hz_of_rate(float(rate[k, i]), float(problem.snr_hz[k]))
    if (block := problem.resource_block_hz) is not None:
        hz = block * np.ceil(hz / block * (1 - ROUNDING))
    return np.where(hz <= problem.bandwidth_limit_hz, hz, np.inf)


def choice_model(problem: Any, hz: Floats) -> GenericModel[NDArray[np.int32]]:
    """Return the choice of the most valuable pairs whose bandwidths fit; its solution is a model [K] for each user, -1 for none."""
    cp: Any = cvxpy_module()
    user, model = np.nonzero(np.isfinite(hz))
    worth = problem.value[user, model]
    unit = power_of_two(float(worth.max()) / 100)
    serve = cp.Variable(user.size, name="serve", boolean=True)
    by_user = (user == np.arange(problem.num_users)[:, None]).astype(np.float64)
    limits = {
        "one model": by_user @ serve <= 1,
        "band": (hz[user, model] / problem.bandwidth_hz) @ serve <= problem.bandwidth_limit_hz / problem.bandwidth_hz,
    }

    def read() -> NDArray[np.int32]:
        chosen = np.asarray(serve.value) > 0.5
        found = np.full(problem.num_users, -1, np.int32)
        found[user[chosen]] = model[chosen]
        return found

    task = cp.Problem(cp.Maximize((worth / unit) @ serve), list(limits.values()))
    return GenericModel(task, {"serve": serve}, limits, unit, read)


def linear_programme(problem: Any) -> LinearProgramme:
    """Return that choice by rows and columns."""
    hz = bandwidths(problem, least_rates(problem)[0])
    user, model = np.nonzero(np.isfinite(hz))
    by_user = sparse.csr_array((np.ones(user.size), (user, np.arange(user.size))), shape=(problem.num_users, user.size))
    return LinearProgramme(
        name="model-download",
        cost=problem.value[user, model],
        matrix=sparse.csr_array(sparse.vstack([sparse.csr_array(hz[user, model][None, :]), by_user])),
        upper=np.concatenate([[problem.bandwidth_hz], np.ones(problem.num_users)]),
        is_integer=np.ones(user.size, bool),
        columns=[f"serve_{k}_{i}" for k, i in zip(user.tolist(), model.tolist(), strict=True)],
        rows=["band", *(f"one_model_{k}" for k in range(problem.num_users))],
    )


def _hz_of_rate(rate_bps: float, snr_hz: float) -> float:
    """Return the bandwidth b with b log2(1 + snr / b) = rate, by root finding on a logarithmic scale."""

    def excess(log_hz: float) -> float:
        hz = math.exp(log_hz)
        return hz * math.log1p(snr_hz / hz) / math.log(2) / rate_bps - 1.0

    low = math.log(rate_bps) - 10.0
    while excess(low) > 0:
        low -= 10.0
    high = math.log(snr_hz)
    while excess(high) < 0:
        high += 3.0
        if high > 700.0:
            return math.inf
    return math.exp(float(optimize.brentq(excess, low, high, xtol=1e-15, rtol=1e-15)))
