"""The instance library: every entry loads, and its best known values can be trusted."""

import json
import math
import shutil
from pathlib import Path

import pytest

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.evaluation import best_known, library_names, load_instance
from edgeopt.evaluation.instances import library
from edgeopt.evaluation.instances.library import BestKnown, library_entry
from edgeopt.evaluation.instances.refresh import improve, refresh


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a library that may be written to."""
    shutil.copytree(library.FOLDER, tmp_path / "library")
    monkeypatch.setattr(library, "FOLDER", tmp_path / "library")
    return tmp_path / "library"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", library_names())
def test_every_entry_loads(name: str):
    """An entry's name, kind and recipe agree with the instance, which is the same each time."""
    entry, problem = library_entry(name), load_instance(name)
    assert entry.name == name
    assert entry.kind == problem.kind
    assert entry.description
    assert load_instance(name).fingerprint() == problem.fingerprint()
    assert entry.to_json() == json.loads((library.FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("name", library_names())
def test_best_known_is_within_its_bound(name: str):
    """No best known objective beats the best known bound, and both say where they come from."""
    known, sign = best_known(name), 1.0 if load_instance(name).sense == "max" else -1.0
    if known.objective is not None and known.bound is not None:
        assert sign * (known.objective - known.bound) <= known.rounded_to + 1e-6 * abs(known.bound)
        assert known.command


def test_facility_instances_are_the_published_ones():
    """Sizes and published optima of the four facility instances."""
    sizes = {
        name: tuple(load_instance(f"facility-{name}").describe()[key] for key in ("servers", "experts", "users"))
        for name in ("tiny", "small", "mid", "full")
    }
    assert sizes == {"tiny": (4, 32, 30), "small": (5, 64, 30), "mid": (6, 256, 60), "full": (10, 1536, 100)}
    optima = {"tiny": 16.3347, "small": 42.8784, "mid": 78.0518}
    for name, value in optima.items():
        assert best_known(f"facility-{name}").objective == pytest.approx(value, abs=1e-4)
        assert best_known(f"facility-{name}").bound == pytest.approx(value, abs=1e-4)


def test_unknown_name_suggests():
    """A misspelt name is answered with the right one; damaged entries say which file."""
    with pytest.raises(EdgeOptError, match="did you mean 'facility-tiny'"):
        load_instance("facility-tyni")


def test_damaged_entry_names_its_file(copy: Path):
    """An entry that lacks something is an error that names it."""
    (copy / "facility-tiny.json").write_text('{"name": "facility-tiny"}')
    with pytest.raises(InvalidFileError, match=r"facility-tiny\.json"):
        library_entry("facility-tiny")


def test_refresh_writes_down_what_is_better(copy: Path):
    """A better objective is recorded with its command; a worse one changes nothing, not even the file's bytes."""
    path = copy / "facility-tiny.json"
    document = json.loads(path.read_text())
    document["best_known"] |= {"objective": 1.0, "bound": None, "rounded_to": 0.0}
    path.write_text(json.dumps(document))
    assert refresh(["facility-tiny"], ["random"], time_limit=math.inf, command="again") == ["facility-tiny"]
    known = best_known("facility-tiny")
    assert known.objective > 1.0
    assert known.bound >= known.objective
    assert known.command == "again: random, seed 0"
    before = path.read_bytes()
    assert refresh(["facility-tiny"], ["random"], time_limit=math.inf, command="once more") == []
    assert path.read_bytes() == before


def test_refresh_refuses_a_contradiction(copy: Path):
    """An objective beyond the recorded bound means that one is wrong: nothing is written."""
    path = copy / "facility-tiny.json"
    document = json.loads(path.read_text())
    document["best_known"] |= {"objective": 1.0, "bound": 2.0, "rounded_to": 0.0}
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    with pytest.raises(EdgeOptError, match="one of them is wrong"):
        refresh(["facility-tiny"], ["random"], time_limit=math.inf)
    assert path.read_bytes() == before


def test_improve():
    """Objectives rise and bounds fall when maximising, the other way round when minimising; exact replaces rounded."""
    known = BestKnown(objective=4.0, bound=9.0)
    assert improve(known, "max", 5.0, 10.0, "x") == BestKnown(objective=5.0, bound=9.0, command="x")
    assert improve(known, "max", 4.0, 9.0, "x") is known
    assert improve(known, "max", 3.0, None, "x") is known
    assert improve(BestKnown(objective=4.0, bound=1.0), "min", 3.0, 2.0, "x").bound == 2.0
    rounded = BestKnown(objective=4.0, bound=4.0, rounded_to=0.1)
    assert improve(rounded, "max", 3.98, 3.99, "x") == BestKnown(objective=3.98, bound=3.99, command="x")
