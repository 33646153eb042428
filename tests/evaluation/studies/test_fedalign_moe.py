"""The study of FedAlign-MoE, at a small size."""

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.fedalign_moe import ABLATIONS, BASELINES, STUDY, SYSTEM, Setting, algorithm
from edgeopt.training import FedAlignMoe
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    changes = {"rounds": 2, "every": 1, "steps": 2}
    found = run_study(STUDY, quick=True, changes=changes, executor="serial", display=False)
    assert found.complete
    rows = {row["variant"]: row for row in found.rows}
    assert rows.keys() == {SYSTEM, *BASELINES, *ABLATIONS}
    for variant, row in rows.items():
        assert 0 <= row["local_worst"] <= row["local_accuracy"] <= 1
        assert ("latency_ms" in row) == (variant != "local-only")
        assert ("semantic_consistency_rise" in row) == (variant in (SYSTEM, *ABLATIONS))
        personal = variant in (SYSTEM, "local-only", *ABLATIONS) and variant != "one-router"
        assert ("personal_accuracy" in row) == personal
        if personal:
            assert row["curve"][-1]["personal_accuracy"] == pytest.approx(row["local_accuracy"])
    assert rows["local-only"]["megabytes_up"] < 0.01
    tables = STUDY.tables(found)
    assert [row["variant"] for row in tables["summary"]] == list(STUDY.variants)
    assert [row["variant"] for row in tables["agreement"]] == [SYSTEM, *ABLATIONS]
    assert [row["variant"] for row in tables["caching"]] == [v for v in STUDY.variants if v != "local-only"]
    assert "digits-0.1-accuracy-round" in STUDY.pictures(found)
    for claim in STUDY.claims:
        assert claim.decide(found.evidence).verdict == "not shown"


def test_variants_differ_from_the_system_in_one_thing():
    """What an ablation changes is one field."""
    system = algorithm(SYSTEM, Setting())
    fields = [field.name for field in dataclasses.fields(FedAlignMoe)]
    for variant in ABLATIONS:
        own = algorithm(variant, Setting())
        assert sum(getattr(own, name) != getattr(system, name) for name in fields) == 1, variant


def test_claims_name_variants_and_numbers_that_there_are():
    """Those of the claims are variants, and tasks those of the study."""
    for claim in STUDY.claims:
        test = claim.test
        for name in ("first", "second", "variant"):
            assert getattr(test, name, SYSTEM) in STUDY.variants
        assert test.task in (None, *STUDY.tasks)
        assert not math.isnan(test.above)
    assert np.unique([claim.text for claim in STUDY.claims]).size == len(STUDY.claims)
