"""Experts cached, models downloaded and clients trained on one network: the three decisions as contenders of a `JointPlan`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeopt.errors import EdgeOptError
from edgeopt.network import EdgeNetwork
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, ModelDownload, SplitTraining
from edgeopt.result import Result
from edgeopt.solve import solve
from edgeopt.solvers.joint import Contender, JointPlan, Shares, Valued

STORAGE, BANDWIDTH, ENERGY = "storage", "bandwidth", "energy"
BLOCKS = {STORAGE: 8, BANDWIDTH: 8, ENERGY: 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnNetwork:
    """What competes on a network, each with all of it, and how it is solved. Ours.

    Experts and models on offer compete for the servers' storage, downloads and training for bandwidth and for the devices' energy.

    Parameters
    ----------
    network : the network.
    caching : experts on its servers; a share of the storage is that share of each server's.
    download : models that one server sends. A share of the storage has room for the smallest models, as many as fit into that share of
        `storage_bytes`; only these are on offer. Shares of bandwidth and energy are shares of the band and of each user's energy limit.
    training : the split training of a network. Its share of bandwidth is that of each link's, up and down; its share of energy is that
        of each device's power, at which it computes at the cube root of it of its speed, as power rises with the cube of frequency.
    storage_bytes : of the server that sends models. Default: the largest of the caching problem.
    weights : what each of ``caching``, ``download``, ``training`` counts. The worth of each is relative to what its solver finds
        with all of the network: what is saved, how many are served, and the inverse of the seconds.
    solvers : by the same names.
    time_limit : seconds for each solve.
    """

    network: EdgeNetwork
    caching: ExpertCaching
    download: ModelDownload
    training: Callable[[EdgeNetwork], SplitTraining]
    storage_bytes: float | None = None
    weights: Mapping[str, float] | None = None
    solvers: Mapping[str, str] | None = None
    time_limit: float = 5.0

    def plan(self, blocks: Mapping[str, int] = BLOCKS) -> JointPlan:
        """Return the plan of the three, each solved once with all of the network.

        Raises
        ------
        EdgeOptError
            If one of them has no solution, or one that is worth nothing, with all of it.
        """
        weights = {"caching": 1.0, "download": 1.0, "training": 1.0} | dict(self.weights or {})
        takes = {"caching": (STORAGE,), "download": (STORAGE, BANDWIDTH, ENERGY), "training": (BANDWIDTH, ENERGY)}
        values = {"caching": self._caching, "download": self._download, "training": self._training}
        contenders = []
        for name, resources in takes.items():
            whole = values[name](dict.fromkeys(resources, 1.0), 1.0)
            if whole.low <= 0:
                raise EdgeOptError(f"{name}: it is worth nothing, or has no solution, with all of the network")
            contenders.append(
                Contender(
                    name=name, resources=resources, value=_Relative(values[name], whole.low), weight=weights[name]
                )
            )
        return JointPlan(contenders, blocks)

    def caching_at(self, shares: Shares) -> ExpertCaching:
        """Return the caching problem with a share of the storage."""
        return self.caching.replace(storage_bytes=shares[STORAGE] * self.caching.storage_bytes)

    def download_at(self, shares: Shares) -> ModelDownload:
        """Return the download problem with shares of storage, bandwidth and energy; models that find no room do no task."""
        problem = self.download
        storage = float(self.caching.storage_bytes.max()) if self.storage_bytes is None else self.storage_bytes
        smallest = np.argsort(problem.model_bits, kind="stable")
        fits = np.cumsum(problem.model_bits[smallest]) / 8 <= shares[STORAGE] * storage * (1 + 1e-12)
        task = problem.model_task.copy()
        task[smallest[~fits]] = int(max(problem.task.max(), problem.model_task.max())) + 1
        return problem.replace(
            model_task=task,
            bandwidth_hz=shares[BANDWIDTH] * problem.bandwidth_hz,
            energy_j=shares[ENERGY] * problem.energy_j,
        )

    def training_at(self, shares: Shares) -> SplitTraining:
        """Return the training problem with shares of bandwidth and energy."""
        network = self.network
        return self.training(
            network.replace(
                uplink_bandwidth_hz=shares[BANDWIDTH] * network.uplink_bandwidth_hz,
                downlink_bandwidth_hz=shares[BANDWIDTH] * network.downlink_bandwidth_hz,
                device_flops=math.cbrt(shares[ENERGY]) * network.device_flops,
            )
        )

    def _solved(self, name: str, problem: Problem) -> Result[Any]:
        solver = {"caching": "lagrangian", "download": "slide", "training": "exact"} | dict(self.solvers or {})
        return solve(problem, solver[name], time_limit=self.time_limit)

    def _caching(self, shares: Shares, unit: float) -> Valued:
        result = self._solved("caching", self.caching_at(shares))
        low, high = result.objective / unit, max(result.objective, result.bound) / unit
        prices = [price for price in result.prices if price.base is not None]
        if not prices:
            return Valued(low=low, high=high, result=result)
        slope = sum(price.worth * price.value for price in prices) / shares[STORAGE] / unit
        rounding = sum(price.worth * (price.grid or 0.0) for price in prices) / unit  # storage counts in whole units
        base = max(high, float(prices[0].base or 0.0) / unit + rounding)
        return Valued(low=low, high=high, slope={STORAGE: slope}, base=base, result=result)

    def _download(self, shares: Shares, unit: float) -> Valued:
        result = self._solved("download", self.download_at(shares))
        low, high = result.objective / unit, max(result.objective, result.bound) / unit
        price = next((one for one in result.prices if one.name == "bandwidth_hz" and one.base is not None), None)
        if price is None:
            return Valued(low=low, high=high, result=result)
        slope = price.worth * price.value / shares[BANDWIDTH] / unit
        rounding = price.worth * (price.grid or 0.0) / unit
        base = max(high, float(price.base or 0.0) / unit + rounding)
        return Valued(low=low, high=high, slope={BANDWIDTH: slope}, base=base, result=result)

    def _training(self, shares: Shares, unit: float) -> Valued:
        result = self._solved("training", self.training_at(shares))
        if result.solution is None:
            return Valued(low=0.0, high=0.0 if result.status == "infeasible" else math.inf, result=result)
        low = 1.0 / result.objective / unit
        bound = min(result.bound, result.objective)
        return Valued(low=low, high=1.0 / bound / unit if bound > 0 else math.inf, result=result)


@dataclass(frozen=True, slots=True)
class _Relative:
    """Values in units of what there is with all of the network."""

    value: Callable[[Shares, float], Valued]
    unit: float

    def __call__(self, shares: Shares) -> Valued:
        return self.value(shares, self.unit)
