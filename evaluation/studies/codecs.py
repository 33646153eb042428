"""Codecs at the cut: what is learnt from how many bytes, on links that stay as they are and on one that fades.

``edgeopt study codecs --out out/codecs``

SplitFed trains a small convolutional network on the digits, or a perceptron on MNIST-1D, with what crosses the cut coded.
A task says data, spread of the labels, and link. ``by-8`` lets a client send an eighth of the bytes of its activations, and
a hundredth of them more for masks and scales; on ``fading`` it is what its uplink carries in a slot, another number in every
round. All variants have these budgets, but for ``uncompressed``, ``nsc-8`` and, where links do not fade, ``acp-adaptive``.
``low-rank`` goes down in rank with them; ``low-rank-fixed`` is the largest rank that is always within.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgeopt import LinkBudget, RoundPlan, storage
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies import learning
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Level, Ratio
from edgeopt.evaluation.studies.learning import LearningSetting, learning_task, radio, trained
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.schedule import Planner
from edgeopt.training import (
    AcpCodec,
    Adam,
    Algorithm,
    Codec,
    Compressed,
    EdgeTiming,
    LocalRunner,
    LowRank,
    Message,
    NscCodec,
    Quantise,
    RandomChannels,
    Replies,
    Sgd,
    SplitFed,
    Task,
    TopK,
)
from edgeopt.training.codecs.wire import order_in
from edgeopt.training.messages import Category, Take

FADING = "fading"
SHARES = {"by-16": 1 / 16, "by-8": 1 / 8, "by-4": 1 / 4}
TASKS = (
    *(f"digits-0.5-{link}" for link in (*SHARES, FADING)),
    *(f"{data}-by-8" for data in ("digits-0.1", "digits-iid", "mnist-1d-0.5")),
)
SLOT_S = 0.05  # of a link that fades
OVERHEAD = 0.01  # of the raw bytes: for masks, places and scales
SCORES = {"acp": "label-aware", "acp-separability": "separability", "acp-l1": "l1", "acp-random": "random"}
LEAST, MOST = 0.5, 1.5  # of a share: how far an adaptive one may go
UNHEEDED = ("uncompressed", "nsc-8")  # whatever the budget is
_VALUE, _PLACE = 4, 2  # bytes


@dataclass(frozen=True, slots=True)
class Setting(LearningSetting):
    """What all runs have in common.

    Parameters
    ----------
    optimizer, lr, momentum : of clients and server; Adam has no momentum of this kind.
    rate_sigma : of rates that fade.
    slot_bytes : what a slot carries there, in the mean.
    """

    clients: int = 5
    rounds: int = 60
    steps: int = 5
    batch: int = 32
    every: int = 4
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    rate_sigma: float = 0.5
    slot_bytes: float = 35e3


@dataclass(frozen=True, slots=True)
class Link:
    """Rates, and what a client may send of its activations in each round.

    Parameters
    ----------
    planner : gives plans with budgets.
    share : of the activations that a budget carries; None where it changes.
    """

    planner: Planner
    timing: EdgeTiming
    share: float | None

    def budgets(self, rounds: int) -> NDArray[np.float64]:
        """Return the budgets in bytes, float64 [rounds, clients]."""
        return np.stack([self.planner.plan(number, None).budget_bytes for number in range(rounds)])


@dataclass(slots=True)
class Noting(LocalRunner):
    """Notes what crosses: round, client and bytes of all activations, and the channels that are ordered."""

    sent: list[tuple[int, int, int]] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)

    def deliver(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        take: Mapping[Category, Take] = MappingProxyType({}),
    ) -> Replies:
        """Deliver, and note."""
        replies = LocalRunner.deliver(self, algorithm, task, plan, messages, take)
        for entry, reply in replies.items():
            batches = messages[entry].batches
            if reply["activations"] and batches is not None:
                self.sent.append((batches.round, int(plan.client[entry]), reply.nbytes("activations")))
                self.channels += [int(kept) for kept in [order_in(messages[entry], "up").get("kept")] if kept]
        return replies


def conv_net(shape: tuple[int, ...]) -> nn.Sequential:
    """Return two convolutions and a linear layer; what leaves the first is [16, H, W], before any pooling."""
    channels, height, width = shape
    first = nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU())
    second = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(first, second, nn.Sequential(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 10)))


def task_of(name: str, setting: Setting, seed: int) -> Task:
    """Return data, partition and model of a task."""
    data, _ = _parts(name)
    return learning_task(data, setting.clients, seed, model=conv_net if data.startswith("digits") else None)


def link_of(name: str, task: Task, setting: Setting, seed: int) -> Link:
    """Return the link of a task."""
    _, link = _parts(name)
    if link == FADING:
        rates = np.full(setting.clients, 8 * setting.slot_bytes / SLOT_S)
        fading = radio(setting.clients, seed, rate_sigma=setting.rate_sigma)
        timing = fading.replace(uplink_bps=rates, downlink_bps=2 * rates)
        return Link(LinkBudget(setting.plan(), timing, slot_s=SLOT_S), timing, None)
    share = SHARES[link]
    budgets = (share + OVERHEAD) * _raw_bytes(task, setting)
    return Link(setting.plan(budget_bytes=budgets), radio(setting.clients, seed), share)


def codec_of(variant: str, link: Link, task: Task, setting: Setting) -> Codec:
    """Return the codec of a variant, made for the share of a link; where that changes, all that a budget may carry."""
    if variant in SCORES or variant == "acp-adaptive":
        return _acp(variant, link.share, setting.rounds * setting.steps)
    share = 1.0 if link.share is None else link.share
    carried = link.budgets(setting.rounds)
    ranks = (carried // _rank_bytes(task, setting)).astype(int)  # (rounds, clients)
    codecs: dict[str, Codec] = {
        "nsc": NscCodec(),
        "nsc-4-bit": NscCodec(max_rank=2, residual="4-bit"),
        "nsc-8": NscCodec(max_rank=8, energy=1.0),
        "random-channels": RandomChannels(share),
        "top-k": TopK(share * _VALUE / (_VALUE + _PLACE)),
        "quantise": Quantise(8 if link.share == SHARES["by-4"] else 4),
        "low-rank": LowRank(max(1, int(np.median(ranks)))),
        "low-rank-fixed": LowRank(max(1, int(ranks.min()))),
    }
    return codecs[variant]


def _acp(variant: str, share: float | None, horizon: int) -> AcpCodec:
    score: Any = SCORES.get(variant, "label-aware")
    if variant == "acp-adaptive" and share is None:  # the ratio of the paper
        return AcpCodec(score=score, horizon=horizon)
    base = 0.0 if share is None else 1 - share
    least, most = (1 - MOST * (1 - base), 1 - LEAST * (1 - base)) if variant == "acp-adaptive" else (base, base)
    return AcpCodec(score=score, pruned_base=base, pruned_least=least, pruned_most=most, horizon=horizon)


def run(cell: StudyCell[Setting]) -> Row:
    """Train; what does not depend on budgets is trained once for all links that do not fade."""
    data, link = _parts(cell.task)
    if cell.variant in UNHEEDED and link != FADING:
        path = cell.keep(f"{cell.variant}-{data}-{cell.seed}.json", partial(_train_and_write, cell))
        row: Row = storage.read_json(path)
        return row
    return train_one(cell.task, cell.variant, cell.setting, cell.seed)


def train_one(name: str, variant: str, setting: Setting, seed: int) -> Row:
    """Train a variant on a task; ``late`` is the share of messages of activations that were larger than their budget."""
    task = task_of(name, setting, seed)
    link = link_of(name, task, setting, seed)
    inner = SplitFed(Adam(setting.lr) if setting.optimizer == "adam" else Sgd(setting.lr, setting.momentum))
    algorithm: Algorithm = inner
    if variant != "uncompressed":
        algorithm = Compressed(inner, codec_of(variant, link, task, setting))
    free = variant in UNHEEDED or (variant == "acp-adaptive" and link.share is not None)
    runner = Noting()
    row = trained(
        task,
        algorithm,
        setting,
        seed,
        planner=setting.plan() if free else link.planner,
        timing=link.timing,
        runner=runner,
    )
    budgets = link.budgets(setting.rounds)
    row["late"] = float(np.mean([size > budgets[number, client] for number, client, size in runner.sent]))
    if runner.channels:
        least, most = min(runner.channels), max(runner.channels)
        row |= {"channels_least": least, "channels_most": most, "channels_range": most - least}
    return row


def _train_and_write(cell: StudyCell[Setting], path: Path) -> None:
    row = train_one(cell.task, cell.variant, cell.setting, cell.seed)
    storage.write_text(path, json.dumps({name: value for name, value in row.items() if name != "late"}))


def _parts(name: str) -> tuple[str, str]:
    """Return data with spread, and link, of the name of a task."""
    data, link = next((name.removesuffix(f"-{link}"), link) for link in (*SHARES, FADING) if name.endswith(f"-{link}"))
    return data, link


def _raw_bytes(task: Task, setting: Setting) -> NDArray[np.float64]:
    """Return the bytes of the activations of a mini-batch of each client, float64 [clients]."""
    samples = [task.samples(client, setting.batch) for client in range(setting.clients)]
    return np.array(samples) * math.prod(task.shape_at(setting.cut)) * float(_VALUE)


def _rank_bytes(task: Task, setting: Setting) -> NDArray[np.float64]:
    """Return the bytes of a rank of the same, float64 [clients]."""
    size = math.prod(task.shape_at(setting.cut))
    return _raw_bytes(task, setting) / size + size * float(_VALUE)


def summary(found: Found[Setting]) -> list[Row]:
    """Return the table of learning studies with what is late, and mean ranks and channels."""
    return learning.summary(found, ("accuracy", "late", "rank", "mean_alone", "skipped", "channels_kept"))


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds, and every run."""
    return learning.tables(found) | {"summary": summary(found)}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return accuracy against bytes and virtual seconds on each task, without ablations; and where it ends with each share."""
    shown = {found.study.system, *found.study.baselines}
    few = replace(found, rows=[row for row in found.rows if row["variant"] in shown])
    drawn = learning.pictures(few, against=("megabytes", "seconds"))
    if any(row["task"] in _STEADY for row in found.rows):
        drawn["shares"] = Picture(
            "Accuracy at the end on digits-0.5, by bytes up and down", partial(draw_shares, found)
        )
    return drawn


def draw_shares(found: Found[Setting]) -> Any:
    """Draw where the variants end on the steady links of the digits: means over seeds, a line through the shares."""
    from edgeopt.evaluation.plots.style import by_height, legend_outside, line_styles, new_axes, plain_log_ticks

    ax, drawn = new_axes(), {}
    for name, style in line_styles(found.study.variants).items():
        ends = [found.of(variant=name, task=task) for task in _STEADY]
        points = sorted(
            tuple(float(np.mean([row[column] for row in rows])) for column in ("megabytes", "accuracy"))
            for rows in ends
            if rows
        )
        if points:
            (line,) = ax.plot(*zip(*points, strict=True), label=name, **style)
            drawn[name] = points[-1][1], line
    ax.set_xscale("log")
    plain_log_ticks(ax.xaxis)
    ax.set_xlabel(learning.COSTS["megabytes"])
    ax.set_ylabel("accuracy on held-out samples")
    legend_outside(ax, by_height(drawn))
    return ax


_AT = {link: f"digits-0.5-{link}" for link in (*SHARES, FADING)}
_STEADY = tuple(_AT[link] for link in SHARES)


def _above(first: str, second: str, by: float, link: str) -> Difference:
    return Difference(metric="accuracy", first=first, second=second, above=by, task=_AT[link])


CLAIMS = (
    Claim(
        text="Channels by the paper's score are worth more than random ones that are used by the same rules",
        source="paper",
        test=_above("acp", "acp-random", 0.0, "by-8"),
    ),
    *(
        Claim(
            text=f"With {parts} of the channels, those by the {score} are worth at least 5 points more than random channels",
            source="ours",
            test=_above(variant, "random-channels", 0.05, link),
        )
        for parts, link in (("a sixteenth", "by-16"), ("an eighth", "by-8"))
        for variant, score in (("acp", "paper's score"), ("acp-separability", "score of separability"))
    ),
    *(
        Claim(
            text=f"With a quarter of the channels, those by the {score} end less than 2 points below all of them",
            source="ours",
            test=_above(variant, "uncompressed", -0.02, "by-4"),
        )
        for variant, score in (("acp", "paper's score"), ("acp-separability", "score of separability"))
    ),
    Claim(
        text="ACP ends above quantised activations of as many bytes",
        source="paper",
        test=_above("acp", "quantise", 0.0, "by-8"),
    ),
    Claim(
        text="ACP ends above the largest values of each sample, for as many bytes",
        source="paper",
        test=_above("acp", "top-k", 0.0, "by-8"),
    ),
    Claim(
        text="The adaptive ratio moves: at some time more channels are kept than at another, by two at least",
        source="ours",
        test=Level(metric="channels_range", variant="acp-adaptive", above=1.99, task=_AT["by-4"]),
    ),
    Claim(
        text="It stays within its limits, of 16 channels 2 to 6",
        source="ours",
        test=Always(metric="channels_least", variants=("acp-adaptive",), above=1.5, task=_AT["by-4"]),
    ),
    Claim(
        text="No message of NSC is larger than its budget, on any link",
        source="ours",
        test=Always(metric="late", variants=("nsc", "nsc-4-bit"), below=1e-12),
    ),
    Claim(
        text="On the link that fades, NSC ends above the largest rank that is always within the budget",
        source="ours",
        test=_above("nsc", "low-rank-fixed", 0.0, FADING),
    ),
    Claim(
        text="It ends above an uncentred low rank that goes down with the budget, too",
        source="ours",
        test=_above("nsc", "low-rank", 0.0, FADING),
    ),
    Claim(
        text="Rank 8 with the mean ends less than a point below uncompressed activations",
        source="ours",
        test=_above("nsc-8", "uncompressed", -0.01, "by-4"),
    ),
    Claim(
        text="It takes less than a third of their bytes, the model's own with them",
        source="ours",
        test=Ratio(metric="megabytes", first="nsc-8", second="uncompressed", below=1 / 3, task=_AT["by-4"]),
    ),
    Claim(
        text="4 bits for each value, an eighth of the bytes, are less than a point below uncompressed activations",
        source="ours",
        test=_above("quantise", "uncompressed", -0.01, "by-8"),
    ),
)

STUDY = Study(
    name="codecs",
    title="Codecs at the cut: what is learnt from how many bytes, on steady links and on one that fades",
    system="acp",
    baselines=("nsc", "random-channels", "top-k", "quantise", "low-rank", "uncompressed"),
    ablations=(
        "acp-separability", "acp-l1", "acp-random", "acp-adaptive", "nsc-4-bit", "nsc-8", "low-rank-fixed",
    ),
    tasks=TASKS,
    full=Setting(),
    quick=Setting(clients=3, rounds=4, batch=8, every=2, slot_bytes=9e3),
    quick_tasks=("digits-0.5-by-8", "digits-0.5-fading"),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)  # fmt: skip
