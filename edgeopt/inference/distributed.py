"""Distributed inference of mixture-of-experts models, simulated token by token on recorded routing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.inference.routing import RoutingRecord
from edgeopt.problems.expert_caching.placement import Placement
from edgeopt.problems.expert_caching.problem import ExpertCaching

TIERS = ("device", "own server", "other server", "cloud")
"""Where an expert may be used, in the order of the columns of `InferenceRun.uses`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferenceRun:
    """Seconds and places of every token of every user; the tokens of model m are T_m.

    Parameters
    ----------
    seconds : for each model float64 [U, T_m], seconds that a user's token spends on experts, all layers together.
    uses : for each model int64 [U, 4], how often a user's tokens used an expert at each tier of `TIERS`.
    share : float64 [U, M], weight of a user's tokens of a model in the means; they sum to one.
    text : int32 [U, M], the user of the record whose tokens a user of the problem had.
    """

    seconds: tuple[NDArray[np.float64], ...]
    uses: tuple[NDArray[np.int64], ...]
    share: NDArray[np.float64]
    text: NDArray[np.int32]

    @property
    def mean_s(self) -> float:
        """Mean seconds per token, weighted over users as in `ExpertCaching.report`."""
        means = np.stack([seconds.mean(axis=1) for seconds in self.seconds], axis=1)  # (U, M)
        return float((self.share * means).sum())

    @property
    def hit_ratio(self) -> dict[str, float]:
        """Share of expert uses served by each tier."""
        total = np.zeros(len(TIERS))
        for m, (uses, seconds) in enumerate(zip(self.uses, self.seconds, strict=True)):
            total += self.share[:, m] @ uses / seconds.shape[1]
        return dict(zip(TIERS, (total / total.sum()).tolist(), strict=True))

    def standard_error_s(self, block: int = 1) -> float:
        """Return the standard error of `mean_s` as an estimate for other tokens of the same sources.

        Parameters
        ----------
        block : consecutive tokens that may depend on each other, at most half of all; the means of such blocks are
            taken to be independent, and what does not fill a block is left out. 1 takes every token as independent,
            which those of a text are not. Users with the same text are not independent either, and not taken to be.

        Raises
        ------
        InvalidProblemError
            If there are fewer than two blocks.
        """
        variance = 0.0
        for m, seconds in enumerate(self.seconds):
            blocks = seconds.shape[1] // block if block >= 1 else 0
            if blocks < 2:
                raise InvalidProblemError(f"block = {block}: expected 1 to half of the {seconds.shape[1]} tokens")
            means = seconds[:, : blocks * block].reshape(len(seconds), blocks, block).mean(axis=2)  # (U, blocks)
            texts, which = np.unique(self.text[:, m], return_inverse=True)
            of_text = np.zeros((texts.size, blocks))
            np.add.at(of_text, which, self.share[:, [m]] * means)
            variance += float((of_text.var(axis=1, ddof=1) / blocks).sum())
        return float(np.sqrt(variance))

    def __repr__(self) -> str:
        tokens = tuple(seconds.shape[1] for seconds in self.seconds)
        return f"InferenceRun(users={len(self.share)}, tokens={tokens}, mean_s={self.mean_s:.6g})"


def simulate_inference(
    problem: ExpertCaching, placement: Placement, records: RoutingRecord | Sequence[RoutingRecord]
) -> InferenceRun:
    """Charge every token the experts that it used, where the placement has them.

    Parameters
    ----------
    problem : latencies of device, servers and cloud; its users take the tokens of user ``profile[u, m]`` of record m.
    placement : what each server holds.
    records : one per model of the problem, in its order. On the record that the problem's trace was counted from,
        `InferenceRun.mean_s` is what `ExpertCaching.report` expects.

    Raises
    ------
    InvalidProblemError
        If a record does not fit its model, or the placement not the problem.
    """
    given = (records,) if isinstance(records, RoutingRecord) else tuple(records)
    if len(given) != len(problem.models):
        raise InvalidProblemError(f"records: expected one per model ({len(problem.models)}), got {len(given)}")
    if placement.cached.shape != (problem.num_servers, problem.num_experts):
        raise InvalidProblemError(
            f"cached: expected shape [{problem.num_servers}, {problem.num_experts}], got {list(placement.cached.shape)}"
        )
    on_device = problem.device_mask()  # (U, E)
    seconds, uses = [], []
    for m, record in enumerate(given):
        _check(problem, m, record)
        first, last = problem.first_expert[m], problem.first_expert[m + 1]
        cost, tier = _experts(problem, m, placement.cached[:, first:last], on_device[:, first:last])
        layer_start = np.arange(record.num_layers)[:, None] * record.num_experts  # (L, 1)
        spent = np.empty((problem.num_users, record.num_tokens))
        count = np.empty((problem.num_users, len(TIERS)), np.int64)
        for user in range(problem.num_users):
            ids = record.experts[problem.profile[user, m]] + layer_start  # (T, L, K)
            spent[user] = _set_latency(problem, cost[user][ids], problem.models[m].top_k).sum(axis=-1)
            count[user] = np.bincount(tier[user][ids].ravel(), minlength=len(TIERS))
        seconds.append(spent)
        uses.append(count)
    weight = np.asarray(problem.user_weight)
    weight = weight / weight.sum() if weight.sum() > 0 else np.full(weight.size, 1.0 / weight.size)
    return InferenceRun(
        seconds=tuple(seconds), uses=tuple(uses), share=weight[:, None] * problem.request, text=problem.profile
    )


def _check(problem: ExpertCaching, m: int, record: RoutingRecord) -> None:
    model = problem.models[m]
    theirs = (record.num_layers, record.num_experts, record.top_k)
    ours = (model.num_layers, int(np.bincount(model.expert_layer).max()), model.top_k)
    if theirs != ours:
        names = "layers, experts per layer, experts per token"
        raise InvalidProblemError(f"records[{m}]: ({names}) = {theirs}: expected {ours} of model {model.name}")
    expected = np.repeat(np.arange(record.num_layers), record.num_experts)  # (E,)
    if not np.array_equal(model.expert_layer, expected):
        raise InvalidProblemError(
            f"models[{m}]: the experts of {model.name} are not numbered layer by layer, {record.num_experts} in each, "
            "as in the record"
        )
    if (most := int(problem.profile[:, m].max())) >= record.num_users:
        raise InvalidProblemError(f"records[{m}]: {record.num_users} users, expected at least {most + 1}")


def _experts(
    problem: ExpertCaching, m: int, cached: NDArray[np.bool_], on_device: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Return [U, E]: seconds for one token and expert of model m, and the tier that takes them.

    The device if it holds the expert, else the fastest of the cloud and the servers that do; of equals the cloud, then
    the user's own server.
    """
    cloud = problem.cloud_latency_s[m][:, None]  # (U, 1)
    edge = np.full(on_device.shape, np.inf)
    own = np.full(on_device.shape, np.inf)
    for server, held in enumerate(cached):
        latency = np.where(held, problem.server_latency_s[m, :, server][:, None], np.inf)  # (U, E)
        np.minimum(edge, latency, out=edge)
        is_own = problem.access_server == server  # (U,)
        own[is_own] = latency[is_own]
    at_edge = np.where(edge < cloud, np.where(own == edge, 1, 2), 3)
    tier = np.where(on_device, 0, at_edge).astype(np.int8)
    device = problem.device_latency_s[m][:, None]  # (U, 1)
    return np.where(on_device, device, np.minimum(edge, cloud)), tier


def _set_latency(problem: ExpertCaching, seconds: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Return the latency of sets of experts whose own latencies are `seconds` [..., K]."""
    if problem.latency == "sum":
        return np.asarray(seconds.sum(axis=-1))
    if problem.latency == "max":
        return np.asarray(seconds.max(axis=-1))
    theta = problem.theta
    return np.asarray((1 - theta) * seconds.sum(axis=-1) + theta * top_k * seconds.max(axis=-1))
