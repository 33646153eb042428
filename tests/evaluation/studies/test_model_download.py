"""The experiment that downloads and runs trained models, at a small size."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.studies import model_download
from edgeopt.evaluation.studies.common import markdown, to_csv

SMALL = ["--users", "6", "--rounds", "2"]


@pytest.fixture
def few_samples(monkeypatch):
    monkeypatch.setattr(model_download, "SAMPLES", 32)


def test_everybody_admitted_is_served_with_the_trained_weights(few_samples, capsys, tmp_path):
    """Each admitted user's output equals that of the trained model, and tables and picture are written."""
    model_download.main([*SMALL, "--out", str(tmp_path), "--json"])
    tables = json.loads(capsys.readouterr().out)
    slide = next(row for row in tables["admitted"] if row["solver"] == "slide")
    assert len(tables["served"]) == slide["admitted"] > 0
    assert all(row["equal_output"] for row in tables["served"])
    assert {path.name for path in tmp_path.iterdir()} == {"admitted.csv", "served.csv", "model-download-served.png"}


def test_slide_admits_at_least_as_many_as_the_others(few_samples, capsys):
    """Slide is optimal here: its bound is met and no baseline admits more."""
    model_download.main([*SMALL, "--json"])
    rows = {row["solver"]: row for row in json.loads(capsys.readouterr().out)["admitted"]}
    assert rows["slide"]["admitted"] == rows["slide"]["bound"]
    assert all(row["admitted"] <= rows["slide"]["admitted"] for row in rows.values())


def test_tables_are_plain_text():
    """CSV has a header and a line per row; Markdown shows missing numbers as a dash."""
    rows = [{"name": "a", "value": 0.5, "ok": True}, {"name": "b", "value": np.nan, "ok": False}]
    assert to_csv(rows).splitlines() == ["name,value,ok", "a,0.5,True", "b,nan,False"]
    assert markdown(rows).splitlines()[-1] == "| b | - | no |"
