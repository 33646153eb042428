"""The study of SIDeR, at a small size."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies import sider as study
from edgeopt.privacy import HELD_OUT, FaceModels, Protected, ssim
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    small = dataclasses.replace(study.STUDY, ablations=("one-recogniser", "balance-0"))
    found = run_study(small, quick=True, tasks=["synthetic"], executor="serial", display=False)
    assert found.complete, found.failures
    for row in found.rows:
        assert ("alike" in row) == (row["variant"] == study.SYSTEM)
        assert all(0 <= row[name] <= 1 for name in ("accepted", "enrolled", "genuine", "far", "reads", "reached"))
    assert {row["variant"] for row in study.tables(found)["summary"]} == set(small.variants)
    pictures = study.pictures(found)
    assert set(pictures) == {f"{task}-{what}" for task in found.tasks for what in ("frontier", "faces")}
    for picture in pictures.values():
        assert picture.draw().figure.axes
    metrics = {name for row in found.rows for name in row}
    for claim in study.STUDY.claims:
        assert claim.test.metric in metrics
        assert claim.decide(found.evidence).verdict == "not shown"


def test_variants_are_those_of_the_claims():
    """No claim is about a variant that is not run."""
    for claim in study.STUDY.claims:
        named = [getattr(claim.test, field, None) for field in ("variant", "first", "second")]
        named += list(getattr(claim.test, "variants", ()))
        assert {name for name in named if name} <= set(study.STUDY.variants)
    assert set(study.ABLATIONS) == set(study.STUDY.ablations)


def test_judged_by_hand():
    """An original that is returned as protected is accepted, looks alike and reads as itself; another person's is not accepted."""
    models = FaceModels.pretrained()
    there = study.originals(models, 8, 0)
    count = torch.zeros(8, dtype=torch.int64)

    def judged(pictures: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        made = Protected(pictures=pictures, targets=targets, iterations=count, reached=count > 0)
        return study.judged(models, there, made)

    same = judged(there.faces, -there.appearance)
    assert same["accepted"] == same["accepted_train"] == 1
    assert same["ssim"] == pytest.approx(1)
    assert same["reads"] <= 0.25
    assert same["enrolled"] == same["genuine"]
    strangers = judged(there.faces.roll(1, 0), there.appearance.roll(1, 0))
    network, threshold = models.recognisers[HELD_OUT], models.thresholds[HELD_OUT].cosine
    with torch.no_grad():
        a, b = network(there.faces).numpy(), network(there.others).numpy()
    assert strangers["accepted"] == np.mean((np.roll(a, 1, 0) * a).sum(1) > threshold)
    cosines = a @ b.T
    assert strangers["far"] == pytest.approx((cosines[~np.eye(8, dtype=bool)] > threshold).mean())
    assert strangers["genuine"] == pytest.approx((np.diag(cosines) > threshold).mean())
    assert strangers["reads"] >= 0.75


def test_alike():
    """The mean over all three pairs."""
    looks = [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    wanted = np.mean([ssim(looks[i], looks[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert study.mean_alike(looks) == pytest.approx(wanted, rel=1e-5)
