"""The study of HO-SFL, at a small size."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.ho_sfl import ABLATIONS, STUDY, TEXT, Setting, algorithm, cosines, text_task
from edgeopt.evaluation.studies.learning import learning_task
from edgeopt.training import Adam, FedAvg, HoSfl, ZoSfl
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

PROBING = ("ho-sfl", *ABLATIONS)


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    found = run_study(STUDY, quick=True, changes={"rounds": 2, "every": 1}, executor="serial", display=False)
    assert found.complete
    for row in found.rows:
        assert ("number_bytes" in row) == (row["variant"] in PROBING)
        assert ("cosine_off" in row) == (row["variant"] == "ho-sfl")
        assert ("estimate_norm" in row) == (row["variant"] in (*PROBING, "zo-sfl"))
        assert [point["round"] for point in row["curve"]] == [1, 2]
    bytes_of = {row["variant"]: row["number_bytes"] for row in found.rows if "number_bytes" in row}
    assert bytes_of == {"ho-sfl": 20, "2-probes": 8, "20-probes": 80, "rademacher": 20}
    tables = STUDY.tables(found)
    assert {row["variant"] for row in tables["summary"]} == set(STUDY.variants)
    assert [row["task"] for row in tables["estimates"]] == ["digits-0.5", TEXT]
    assert {name.rsplit("-", 2)[0] for name in STUDY.pictures(found)} == {"digits-0.5", TEXT}
    for claim in STUDY.claims:
        assert claim.decide(found.evidence).verdict == "not shown"


def test_variants_differ_from_the_system_in_one_thing():
    """What an ablation changes is one field; all but FedAvg have the same optimiser, on text with another step size."""
    setting = Setting()
    for of in (setting, setting.on(TEXT)):
        system = algorithm("ho-sfl", of)
        for variant in STUDY.variants:
            own = algorithm(variant, of)
            assert own.optimizer == Adam(of.lr) or isinstance(own, FedAvg)
            if variant in ABLATIONS:
                fields = [field.name for field in dataclasses.fields(HoSfl)]
                assert sum(getattr(own, name) != getattr(system, name) for name in fields) == 1
        zeroth = algorithm("zo-sfl", of)
        assert isinstance(zeroth, ZoSfl)
        assert (zeroth.probes, zeroth.mu) == (system.probes, system.mu)
    assert setting.on("digits-iid") == setting


@pytest.mark.parametrize("task", ["digits-0.5", TEXT])
def test_the_estimate_is_as_good_as_the_law_at_the_initial_weights(task: str):
    """On both kinds of models, within the limit of the claim."""
    setting = dataclasses.replace(Setting(), clients=4).on(task)
    of = text_task(4, 0) if task == TEXT else learning_task(task, 4, 0)
    found = cosines(of, of.initial_weights(), setting)
    assert abs(found["cosine_off"]) < 0.03
    assert found["cosine_law"] == pytest.approx((1 + (1561 if task != TEXT else 5729) / 256) ** -0.5)
