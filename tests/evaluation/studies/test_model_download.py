"""The study that downloads and runs trained models, at a small size."""

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.studies import Found, run_study
from edgeopt.evaluation.studies.model_download import STUDY, Setting
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = {"users": 6, "rounds": 2, "samples": 32}


@pytest.fixture(scope="module")
def found() -> Found[Setting]:
    """Return one small run."""
    return run_study(STUDY, quick=True, changes=SMALL, executor="serial", display=False)


def test_everybody_admitted_is_served_with_the_trained_weights(found: Found[Setting]):
    """Each admitted user's output equals that of the trained model, and each has its line."""
    (slide,) = found.of(variant="slide")
    assert len(slide["served"]) == slide["admitted"] > 0
    assert all(row["equal_output"] for row in slide["served"])
    assert slide["all_equal"]
    tables = STUDY.tables(found)
    assert [row["variant"] for row in tables["admitted"]] == list(STUDY.variants)
    assert len(tables["served"]) == slide["admitted"]


def test_slide_admits_at_least_as_many_as_the_others(found: Found[Setting]):
    """Slide is optimal here: its bound is met and no baseline admits more."""
    rows = {row["variant"]: row for row in found.rows}
    assert rows["slide"]["admitted"] == rows["slide"]["bound"]
    assert all(row["admitted"] <= rows["slide"]["admitted"] for row in rows.values())


def test_the_picture_is_drawn_from_the_row(found: Found[Setting]):
    """Every served user has a line, named with its model."""
    (slide,) = found.of(variant="slide")
    ax = STUDY.pictures(found)["served"].draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        f"{row['user']}: {row['model']}" for row in slide["served"]
    ]
