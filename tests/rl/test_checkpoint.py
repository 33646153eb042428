"""The file of a run of learning: what is refused before anything is learned, and what tells one run from another."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.rl.checkpoint import Checkpoint, above, below

STATE = {"parameters": {"weight": torch.arange(3.0)}}


def test_where_a_run_is_kept(tmp_path: Path):
    """A run goes on from a file that is there; without a path, there is nothing to go on from."""
    path = tmp_path / "run.safetensors"
    assert Checkpoint.of(None, "toy", {}, resume=False) is None
    with pytest.raises(EdgeOptError, match="resume: expected a checkpoint to resume from"):
        Checkpoint.of(None, "toy", {}, resume=True)
    with pytest.raises(EdgeOptError, match="there is no folder"):
        Checkpoint.of(tmp_path / "no" / "run.safetensors", "toy", {}, resume=False)
    first = Checkpoint.of(path, "toy", {"seed": 1}, resume=True)
    assert first is not None
    assert not first.resumed
    first.save(STATE, [{"step": 1}], {"step": 1}, {"seen": np.arange(2)} | above("world/", {"a": np.ones(1)}))
    again = Checkpoint.of(path, "toy", {"seed": 1}, resume=True)
    assert again is not None
    assert again.resumed
    assert not Checkpoint.of(path, "toy", {"seed": 1}, resume=False).resumed  # type: ignore[union-attr]
    with again.read(STATE, "cpu") as (state, rows, given, arrays):
        assert torch.equal(state["parameters"]["weight"], STATE["parameters"]["weight"])  # type: ignore[index]
        assert (rows, given.integer("step"), arrays["seen"].tolist()) == ([{"step": 1}], 1, [0, 1])
        assert below(arrays, "world/")["a"].tolist() == [1.0]


def test_another_run(tmp_path: Path):
    """Of another identity or kind, or with states of other forms: the file is named, and what differs."""
    path = tmp_path / "run.safetensors"
    Checkpoint(path, "toy", {"seed": 1}, False).save(STATE, [], {}, {})
    longer = {"parameters": {"weight": torch.arange(4.0)}}
    for other, state, said in (
        (Checkpoint(path, "toy", {"seed": 2}, True), STATE, "seed = 1: this run has 2"),
        (Checkpoint(path, "game", {"seed": 1}, True), STATE, "game"),
        (Checkpoint(path, "toy", {"seed": 1}, True), longer, "weight"),
    ):
        with pytest.raises(InvalidFileError, match=said) as error, other.read(state, "cpu"):
            pass
        assert str(error.value).startswith(str(path))
