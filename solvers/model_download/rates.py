"""The least rate at which each user can finish each model, and the frequencies that go with it."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems import ModelDownload
from edgeopt.problems.model_download.kernels import least_rates
from edgeopt.solve import Run
from edgeopt.solvers.kernels.download import FIT, Layers, Users, energy_rates, frequencies, level_rates

USERS_PER_STEP = 8192  # between two looks at the clock

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tables:
    """A problem as the kernels take it: contiguous, writable arrays.

    Parameters
    ----------
    users, layers : see there. The frequencies of the users go from the lowest to the highest they can be set to.
    levels : float64 [F], shares of the maximum frequency; empty if frequencies are free.
    """

    users: Users
    layers: Layers
    levels: Floats

    @classmethod
    def of(cls, problem: ModelDownload) -> Self:
        """Convert a problem."""
        low, levels = np.array(problem.min_frequency_hz), np.zeros(0)
        if problem.frequency_levels is not None:  # what counts is the lowest level within the range
            levels = np.array(problem.frequency_levels)
            at = np.searchsorted(levels, low / problem.max_frequency_hz * (1 - FIT))
            low = levels[np.minimum(at, levels.size - 1)] * problem.max_frequency_hz
        users = Users(
            deadline=np.array(problem.deadline_s),
            cycles=problem.cycles_per_layer_flop,
            coefficient=np.array(problem.energy_coefficient),
            receive=np.array(problem.receive_j_per_bit),
            energy=np.array(problem.energy_j),
            low=low,
            high=np.array(problem.top_frequency_hz),
        )
        layers = Layers(
            indptr=np.array(problem.layer_indptr),
            prefix_bits=problem.prefix_bits,
            suffix_flops=problem.suffix_flops,
            suffix_fixed=problem.suffix_fixed_s,
        )
        return cls(users, layers, levels)

    def full_speed_rates(self, problem: ModelDownload) -> Floats:
        """Return the least rates [K, I] at the highest frequency, whatever the energy; inf where there is none."""
        users, layers = self.users, self.layers
        return least_rates(
            np.array(problem.allowed), layers.indptr, layers.prefix_bits, layers.suffix_flops, layers.suffix_fixed,
            users.deadline, users.cycles / users.high,
        )  # fmt: skip

    def frequencies(self, problem: ModelDownload, model: NDArray[np.int32], rate: Floats) -> Floats:
        """Return frequencies for ``DownloadPlan.frequency_hz`` at rates [K]: least energy for users with an energy limit."""
        return frequencies(
            model.astype(np.int64), rate, problem.plan_indptr(model), self.users, self.layers, self.levels
        )


def overlapped_rates(run: Run[Any], problem: ModelDownload, tables: Tables, *, prune: bool) -> tuple[Floats, Floats]:
    """Return rates [K, I] in bit/s at which users can finish models in time, inf for never, and lower bounds on them.

    Both are the same array if the rates are the least ones: unless frequencies have levels and there are energy limits,
    or the run was stopped, which leaves users out. One iteration is up to 8,192 users.

    Parameters
    ----------
    prune : only the least rate of each user is needed; others may be inf.
    """
    rate = tables.full_speed_rates(problem)
    if not problem.is_energy_limited:
        return rate, rate
    rounded = tables.levels.size > 0
    done = _in_steps(
        run, rate, tables, lambda rates, users: energy_rates(rates, prune and not rounded, users, tables.layers)
    )
    lower = rate
    if rounded:
        rate = lower.copy()
        done = _in_steps(
            run, rate, tables, lambda rates, users: level_rates(rates, prune, users, tables.layers, tables.levels)
        )
    if done < problem.num_users:
        rate = rate.copy()
        rate[done:][np.isfinite(tables.users.energy[done:])] = np.inf
    return rate, lower


def _in_steps(run: Run[Any], rate: Floats, tables: Tables, work: Any) -> int:
    """Call ``work(rate, users)`` on slices of the users, and return how many were done before a limit."""
    for start in range(0, len(rate), USERS_PER_STEP):
        if run.stopped():
            return start
        some = slice(start, start + USERS_PER_STEP)
        work(rate[some], Users(*(column[some] for column in tables.users)))
        run.step()
    return len(rate)
