"""The loop: same seed same run, alone or among others, resumed or not; what it says; what it refuses."""

import itertools

import numpy as np
import pytest
import torch

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.rl import Dqn, LearningHistory, PrioritisedReplay, Replay, StepRecord, learn
from edgeopt.rl.environments import CartPole
from edgeopt.rl.loop import returns_of
from edgeopt.tensors import load_tensors, save_tensors

DQN = Dqn(hidden=(16,), explore_steps=200)
REPLAYS = {
    "uniform": lambda: Replay(150),
    "window": lambda: Replay(300, window=50),
    "prioritised": lambda: PrioritisedReplay(150),
}


def run(replay: Replay, seeds: list[int], steps: int = 300, **options) -> LearningHistory:
    options = {"batch": 8, "learn_after": 40, "learn_every": 2, "row_every": 100} | options
    return learn(CartPole(seeds), DQN, replay, steps=steps, seeds=seeds, **options)


def assert_same(one: LearningHistory, other: LearningHistory) -> None:
    np.testing.assert_array_equal(one.reward, other.reward)
    np.testing.assert_array_equal(one.ended, other.ended)
    np.testing.assert_equal(one.rows, other.rows)
    for part in ("online", "target"):
        torch.testing.assert_close(one.state[part], other.state[part], rtol=0, atol=0)


@pytest.mark.parametrize("make", REPLAYS.values(), ids=REPLAYS)
def test_same_seed_same_run_and_resumed_is_one_long_run(make, tmp_path):
    """To the bit: weights, rewards, rows."""
    path = tmp_path / "run.safetensors"
    long = run(make(), [1, 2])
    run(make(), [1, 2], steps=173, checkpoint=path)
    resumed = run(make(), [1, 2], checkpoint=path, resume=True)
    assert resumed.rows[-1] == long.rows[-1]
    resumed.rows = [row for row in resumed.rows if row["step"] % 100 == 0]
    assert_same(resumed, long)
    assert_same(run(make(), [1, 2]), long)


@pytest.mark.parametrize("make", REPLAYS.values(), ids=REPLAYS)
def test_an_agent_is_the_same_alone_and_among_others(make):
    """Its actions and rewards are equal, its weights are up to rounding."""
    both, alone = run(make(), [1, 2]), run(make(), [2])
    np.testing.assert_array_equal(both.reward[:, 1:], alone.reward)
    torch.testing.assert_close(both.state["online"][1:], alone.state["online"], rtol=1e-3, atol=1e-4)


def test_ctrl_c_keeps_what_is_done(tmp_path):
    """A run that was interrupted goes on from its checkpoint as if it had not been."""
    path = tmp_path / "run.safetensors"

    def interrupt(record: StepRecord) -> None:
        if record.number == 200:
            raise KeyboardInterrupt

    cut = run(Replay(150), [1, 2], on_row=interrupt, checkpoint=path)
    assert cut.interrupted
    assert len(cut.reward) == 200
    assert_same(run(Replay(150), [1, 2], checkpoint=path, resume=True), run(Replay(150), [1, 2]))


def test_rows_and_callbacks():
    """A row at every hundredth step and at the end; a callback that returns False ends the run."""
    seen = []
    history = run(Replay(150), [1], steps=250, on_row=[lambda record: seen.append(record.row["step"])])
    assert seen == [100, 200, 250] == [row["step"] for row in history.rows]
    ended = run(Replay(150), [1], on_row=lambda record: record.number < 200)
    assert len(ended.reward) == 200
    first = history.rows[0]
    own = history.returns()[:100][history.ended[:100]]
    assert first["return"] == pytest.approx(own.mean())


def test_returns_of_unfinished_episodes():
    """The last one counts with the one before it, unless it has more already."""
    reward = np.ones((6, 2), np.float32)
    ended = np.zeros((6, 2), bool)
    ended[3, 0], ended[1, 1] = True, True
    assert returns_of(reward, ended).T.tolist() == [[4, 4, 4, 4, 4, 4], [2, 2, 4, 4, 4, 4]]


def test_bad_input(tmp_path):
    """One line that says what is wrong."""
    with pytest.raises(EdgeOptError, match="seeds: 1 of them: expected 2"):
        learn(CartPole([0, 1]), DQN, Replay(), steps=5, seeds=[0])
    for name, value in itertools.product(("steps", "batch", "learn_every"), (0, 1.5)):
        with pytest.raises(EdgeOptError, match=name):
            run(Replay(), [0], **{name: value})
    with pytest.raises(EdgeOptError, match="resume: expected a checkpoint"):
        run(Replay(), [0], resume=True)
    path = tmp_path / "run.safetensors"
    run(Replay(50), [0], steps=100, checkpoint=path)
    with pytest.raises(InvalidFileError, match=r"seeds = \[0\]: this run has \[1\]"):
        run(Replay(50), [1], checkpoint=path, resume=True)
    with pytest.raises(InvalidFileError, match=r"observation: expected float32 \[1, 40, 4\], got float32 \[1, 50, 4\]"):
        run(Replay(40), [0], steps=150, checkpoint=path, resume=True)
    header, arrays = load_tensors(path, "learning")
    for changes in (np.zeros((), np.int64), np.zeros(3, np.int64), np.zeros((1, 3))):
        save_tensors(path, header, arrays | {"replay/changes": changes})
        with pytest.raises(InvalidFileError, match=r"changes: expected int64 \[0, 3\]"):
            run(Replay(50), [0], steps=150, checkpoint=path, resume=True)
    with pytest.raises(EdgeOptError, match="there is no folder"):
        run(Replay(50), [1], checkpoint=tmp_path / "none" / "run.safetensors")
