"""The study of codecs, at a small size: links and budgets, every variant, tables and pictures."""

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.codecs import (
    FADING,
    SHARES,
    STUDY,
    TASKS,
    UNHEEDED,
    Setting,
    codec_of,
    link_of,
    task_of,
    train_one,
)
from edgeopt.training import AcpCodec, Compressed, EdgeTiming, Sgd, SplitFed, train
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = Setting(clients=3, rounds=3, steps=1, batch=8, every=1, slot_bytes=9e3)


@pytest.fixture(scope="module")
def found():
    changes = {"rounds": 2, "steps": 1, "every": 1}
    return run_study(STUDY, quick=True, changes=changes, executor="serial", display=False)


@pytest.mark.slow
def test_every_variant_runs_on_both_kinds_of_links(found):
    """One row for each; what heeds budgets is never late but for those that have a least size; others are late."""
    assert found.complete
    for task in found.tasks:
        rows = {row["variant"]: row for row in found.of(task=task)}
        assert list(rows) == list(STUDY.variants)
        for name in ("acp", "nsc", "nsc-4-bit", "random-channels", "top-k", "low-rank", "low-rank-fixed"):
            assert rows[name]["late"] == 0, name
    fading = {row["variant"]: row for row in found.of(task=f"digits-0.5-{FADING}")}
    assert fading["uncompressed"]["late"] > 0
    assert all("late" not in found.of(task="digits-0.5-by-8", variant=name)[0] for name in UNHEEDED)


def test_tables_and_pictures(found):
    """A line for each variant and task; a curve for each that is no ablation."""
    tables = STUDY.tables(found)
    assert len(tables["summary"]) == len(STUDY.variants) * len(found.tasks)
    pictures = STUDY.pictures(found)
    shown = {STUDY.system, *STUDY.baselines}
    assert len(pictures) == 2 * len(found.tasks) + 1
    for name, picture in pictures.items():
        labels = {text.get_text() for text in picture.draw().get_legend().get_texts()}
        assert labels == (set(STUDY.variants) if name == "shares" else shown)


@pytest.mark.parametrize("link", SHARES)
def test_steady_budgets_are_shares_of_what_each_client_has(link: str):
    """Of its own mini-batch, which is smaller where it has few samples; the same in every round."""
    task = task_of(f"digits-0.1-{link}" if link == "by-8" else f"digits-0.5-{link}", SMALL, 0)
    budgets = link_of(f"digits-0.5-{link}", task, SMALL, 0).budgets(3)
    for client in range(3):
        raw = task.samples(client, 8) * math.prod(task.shape_at(1)) * 4
        assert budgets[:, client] == pytest.approx([raw * (SHARES[link] + 0.01)] * 3)


def test_budgets_that_fade_are_what_the_uplink_carries():
    """A message of that size takes a slot on the timing's own uplink; the mean is what the setting says."""
    setting = dataclasses.replace(SMALL, rounds=400)
    name = f"digits-0.5-{FADING}"
    link = link_of(name, task_of(name, setting, 0), setting, 0)
    budgets = link.budgets(400)
    assert isinstance(link.timing, EdgeTiming)
    rates = link.timing.rates(7, link.planner.plan(7, None))["uplink_bps"]
    assert 8 * budgets[7] / rates == pytest.approx([0.05] * 3)
    assert budgets.mean() == pytest.approx(9e3, rel=0.1)
    assert np.log(budgets).std() == pytest.approx(setting.rate_sigma, rel=0.1)


def test_a_fixed_rank_is_the_largest_that_is_always_within():
    """One more would be over the budget of some client in some round; without any rank there is no codec."""
    name = f"digits-0.5-{FADING}"
    task = task_of(name, SMALL, 0)
    link = link_of(name, task, SMALL, 0)
    rank = codec_of("low-rank-fixed", link, task, SMALL).rank  # type: ignore[attr-defined]
    samples = np.array([task.samples(client, 8) for client in range(3)])
    over = [4 * r * (samples + 1024) > link.budgets(SMALL.rounds).min(0) for r in (rank, rank + 1)]
    assert not over[0].any()
    assert over[1].any()


def test_a_row_is_that_of_training_with_the_codec():
    """Accuracy and bytes are those of `train` with the same parts; channels are within the ratio's limits."""
    name = "digits-0.5-by-4"
    row = train_one(name, "acp-adaptive", SMALL, 1)
    task = task_of(name, SMALL, 1)
    codec = AcpCodec(pruned_base=0.75, pruned_least=0.625, pruned_most=0.875, horizon=3)
    timing = link_of(name, task, SMALL, 1).timing
    history = train(task, Compressed(SplitFed(Sgd(0.05, 0.9)), codec), SMALL.plan(), timing, rounds=3)
    assert row["accuracy"] == pytest.approx(np.mean([found["accuracy"] for found in history.rows]))
    assert row["megabytes"] * 1e6 == history.rows[-1]["bytes_up"] + history.rows[-1]["bytes_down"]
    assert row["channels_kept"] == pytest.approx(np.mean([found["channels_kept"] for found in history.rows]))
    assert 2 <= row["channels_least"] <= row["channels_kept"] <= row["channels_most"] <= 6


def test_claims_are_about_what_is_run():
    """Every task and variant that a claim names is one of the study."""
    for claim in STUDY.claims:
        test = claim.test
        assert getattr(test, "task", None) in (None, *TASKS)
        names = {getattr(test, name, None) for name in ("first", "second", "variant")} | set(
            getattr(test, "variants", ())
        )
        assert names - {None} <= set(STUDY.variants)
