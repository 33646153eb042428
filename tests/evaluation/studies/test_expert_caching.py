"""The study that caches the experts of a trained model and simulates inference, at a tiny size."""

from pydoc_data.topics import topics

import numpy as np
import pytest

pytest.importorskip("torch")
from matplotlib.figure import Figure

from edgeopt.data.text import byte_text
from edgeopt.errors import InvalidProblemError
from edgeopt.evaluation.plots.caching.inference_latency import plot_inference_latency
from edgeopt.evaluation.studies import Found, expert_caching, run_study
from edgeopt.evaluation.studies.expert_caching import (
    STUDY,
    Size,
    client_task,
    clients_of_topics,
    halves_of,
    recorded,
)
from edgeopt.solvers.expert_caching import SOLVERS
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = {
    "clients": 2, "devices": 5, "depth": 1, "experts": 4, "width": 8, "hidden": 8, "context": 16, "rounds": 2,
    "local_steps": 2, "batch_size": 2, "storage": 0.25, "time_limit": 60.0,
}  # fmt: skip
TINY = Size(**SMALL)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Let the text be the beginnings of some topics."""
    files = [tmp_path_factory.mktemp("topics") / name for name in sorted(topics)[:30]]
    for file in files:
        file.write_bytes(topics[file.name].encode()[:2000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_caching, "byte_text", lambda **options: byte_text(files, **options))
        yield


@pytest.fixture(scope="module")
def found(tiny) -> Found[Size]:
    """Return one tiny run."""
    return run_study(STUDY, quick=True, changes=SMALL, executor="serial", display=False)


@pytest.fixture(scope="module")
def tables(found):
    return STUDY.tables(found)


def test_every_solver_is_there(tables):
    """Every solver of the problem has a row on itself, every variant one on the tokens; no gap is negative."""
    assert {row["variant"] for row in tables["solvers"]} == {solver.name for solver in SOLVERS}
    assert {row["variant"] for row in tables["latency"]} == set(STUDY.variants)
    assert all(row["gap_to_best_bound"] >= -1e-9 for row in tables["solvers"])


def test_counted_tokens_take_what_the_problem_says(tables):
    """On the counted half the simulated mean is the predicted latency to rounding, for every variant."""
    assert all(row["counted_off_by"] <= 1e-9 for row in tables["latency"])


def test_unseen_tokens_agree_within_sampling_error(tables):
    """On the other half it differs, and by no more than four standard errors; the shares of the tiers sum to one."""
    for row in tables["latency"]:
        assert sum(row[tier] for tier in ("device", "own server", "other server", "cloud")) == pytest.approx(1)
        if row["variant"] != "nothing":  # from the cloud every token takes the same
            assert 0 < abs(row["z"]) < 4
            assert row["unseen_error_ms"] < 0.1 * row["unseen_ms"]


def test_caching_helps(tables):
    """Every placement is faster than no cache, and the proved optimum is the fastest on the counted tokens."""
    rows = {row["variant"]: row["counted_ms"] for row in tables["latency"]}
    nothing = rows.pop("nothing")
    optimal = next(row["variant"] for row in tables["solvers"] if row["status"] == "optimal")
    assert rows[optimal] == pytest.approx(min(rows.values()), rel=1e-6)
    assert max(rows.values()) < nothing


def test_the_picture_is_drawn_from_the_rows(found):
    """Every variant has its line."""
    ax = STUDY.pictures(found)["latency"].draw()
    assert {label.get_text() for label in ax.get_yticklabels()} == set(STUDY.variants)


def test_halves_are_held_out_windows_of_each_client(tiny):
    """Both halves have as many windows of each client, all of them held-out text of its own topics."""
    task, tokens = client_task(TINY, seed=0)
    halves = halves_of(recorded(task, task.initial_weights(), tokens))
    windows = tokens.shape[1]
    assert [half.num_tokens for half in halves] == [windows // 2 * TINY.context] * 2
    own = {c: set(task.train.labels[rows].tolist()) for c, rows in enumerate(task.partition.indices)}
    text = {}
    for window, topic in zip(task.test.inputs, task.test.labels.tolist(), strict=True):
        text.setdefault(bytes(window.tolist()), set()).add(topic)
    assert not own[0] & own[1]
    assert all(text[bytes(window.tolist())] & own[c] for c in range(2) for window in tokens[c])


def test_topics_are_dealt_evenly():
    """The longest topic goes first, each next one to the client with the least text; no topic is with two clients."""
    topic = np.repeat([0, 1, 2, 3, 4], [5, 1, 4, 3, 3])
    assert clients_of_topics(topic, 2).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.slow
def test_the_maximum_skips_who_cannot(tiny):
    """With the maximum per set, solvers that do not support it are skipped, and the others agree as before."""
    found = run_study(STUDY, quick=True, changes=SMALL | {"latency": "max"}, executor="serial", display=False)
    assert [(row["variant"], row["status"]) for row in found.failures] == [("continuous-greedy", "skipped")]
    assert set(found.variants()) == set(STUDY.variants) - {"continuous-greedy"}
    assert all(row["counted_off_by"] <= 1e-9 for row in found.rows)


def test_picture():
    """Solvers come by predicted latency; ticks are predictions, bars of a solver fill its place up to 100 %."""
    shares = {"device": 0.0, "own server": 0.25, "other server": 0.25, "cloud": 0.5}
    rows = [
        {"solver": name, "predicted_ms": ms, "unseen_ms": ms + 1, "unseen_error_ms": 0.5, "z": 1.0, **shares}
        for name, ms in (("slow", 9.0), ("fast", 3.0))
    ]
    ax = plot_inference_latency(rows, Figure().add_subplot())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fast", "slow"]
    assert ax.collections[-1].get_offsets()[:, 0].tolist() == [3.0, 9.0]
    other = ax.figure.axes[1]
    assert max(bar.get_x() + bar.get_width() for bar in other.patches) == pytest.approx(100)
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["own server", "other server", "cloud"]
    with pytest.raises(InvalidProblemError, match="expected a subplot"):
        plot_inference_latency(rows, Figure().add_axes((0, 0, 1, 1)))
    for wrong, message in (([], "expected at least one solver"), ([{"solver": "x"}], "predicted_ms is missing")):
        with pytest.raises(InvalidProblemError, match=message):
            plot_inference_latency(wrong)
