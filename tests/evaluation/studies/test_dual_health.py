"""The study of DUAL-Health, at a small size."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.dual_health import (
    ABLATIONS,
    LEVELS,
    MISSING,
    STUDY,
    Setting,
    hidden,
    pooled,
    windows_of,
)
from edgeopt.fusion import reliability
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

TINY = {"train": 2, "held": 1, "test": 1, "pictures": 8}


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    study = dataclasses.replace(STUDY, baselines=("attention", "mean-fill"), ablations=("no-alignment",))
    found = run_study(study, quick=True, changes=TINY, executor="serial", display=False)
    assert found.complete, found.failures
    for row in found.rows:
        assert ("noise_rank" in row) == (row["variant"] != "attention")
        assert {f"noise_{x:g}" for x in LEVELS} | {f"missing_{100 * x:g}" for x in MISSING} < set(row)
        assert row["ece_fall"] == pytest.approx(row["ece_before"] - row["ece"])
        assert 0 <= row["accuracy"] <= 1
    tables = STUDY.tables(found)
    assert {row["variant"] for row in tables["summary"]} == {"dual-health", "attention", "mean-fill", "no-alignment"}
    pictures = STUDY.pictures(found)
    assert len(pictures) == 8
    for picture in pictures.values():
        assert picture.draw().get_lines()
    metrics = {name for row in found.rows for name in row}
    for claim in STUDY.claims:
        assert claim.test.metric in metrics
        assert claim.decide(found.evidence).verdict == "not shown"


def test_variants_are_those_of_the_claims():
    """No claim is about a variant that is not run."""
    for claim in STUDY.claims:
        for field in ("variant", "first", "second"):
            assert getattr(claim.test, field, STUDY.system) in STUDY.variants
    assert set(ABLATIONS) == set(STUDY.ablations)


@pytest.mark.parametrize("task", STUDY.tasks)
def test_parts_are_apart(task: str):
    """No subject is in two parts; the parts of all variants of a seed are the same."""
    parts = windows_of(task, Setting(pictures=2), 3)
    subjects = [set(part.subject.tolist()) for part in parts]
    assert sum(map(len, subjects)) == len(set.union(*subjects))
    again = windows_of(task, Setting(pictures=2), 3)
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(parts, again, strict=True))


def test_hidden_modalities():
    """As many are missing as were asked for, each throughout its window."""
    _, _, test = windows_of("digits", Setting(), 0)
    gone = np.stack([np.isnan(values) for values in hidden(test, 0.7, 0).signals.values()])
    assert (gone.any((2, 3, 4)) == gone.all((2, 3, 4))).all()
    assert gone.mean() == pytest.approx(0.7, abs=0.05)


def test_pooled_tables_are_those_of_all_answers():
    """Tables of seeds with equally many answers, together, are the table of all of them."""
    rng = np.random.default_rng(0)
    confidence, right = rng.random((3, 50)), rng.random((3, 50)) < 0.5
    stack = np.stack([reliability(*seed) for seed in zip(confidence, right, strict=True)])
    np.testing.assert_allclose(pooled(stack), reliability(confidence, right))
