"""`edgeopt train` with adapters: of a model by name, and of a model of transformers, whose checkpoint peft reads."""

import io
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, whatever a folder lacks
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own future
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")

from edgeopt import cli
from edgeopt.cli.train import configured
from edgeopt.data import token_text
from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.experiment import Experiment
from edgeopt.experiment.folder import RunFolder
from edgeopt.models import from_transformers, load_language_model, lora_layers
from edgeopt.rl.language_models import LocalModel
from edgeopt.training import Adam, Sgd

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny run."""
    torch.set_num_threads(1)
    monkeypatch.setattr(RunFolder, "draw", lambda folder, setup, history: [])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, word in enumerate(("one two three ", "two one three ", "three three one ")):
        (folder / f"{number}.txt").write_text(30 * word)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder with a tiny model, without a tokeniser."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def words(model: Path, texts: Path, *more: object) -> list[str]:
    given = (
        "train", "--algorithm", "hsplit-lora", "--lr", 0.05, "--data", "text", "--folder", texts, "--clients", 3, "--set",
        "data.context=8", "--model", "transformers", "--set", f"model.folder={model}", "--batch-size", 4, "--rounds", 2, *more,
    )  # fmt: skip
    return [str(word) for word in given]


def run(given: list[str]) -> Any:
    return CliRunner().invoke(cli.app, given)


ADAPTED = ("--set", 'model.lora=["*.q_proj", "*.down_proj"]', "--set", "model.rank=2")


def test_a_run_leaves_a_checkpoint_of_peft_that_another_starts_from(model: Path, texts: Path, tmp_path: Path):
    """With it, peft computes what the trained model does; another run starts from there, and learns those adapters alone."""
    out = tmp_path / "out"
    done = run(words(model, texts, *ADAPTED, "--out", out, "--json"))
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    original = load_language_model(model).model
    there = from_transformers(original, adapters=out / "adapters")
    with_peft = peft.PeftModel.from_pretrained(original, out / "adapters")
    setup = Experiment.load(out / "experiment.json").build()
    with torch.no_grad():
        tokens = setup.task.test.inputs
        torch.testing.assert_close(with_peft(tokens).logits, there(tokens), rtol=1e-5, atol=1e-5)
    start = ("--set", f"model.adapters={out / 'adapters'}", "--algorithm", "fedavg", "--out", tmp_path / "more")
    more = run(words(model, texts, *start))
    assert more.exit_code == 0, more.stderr
    setup = Experiment.load(tmp_path / "more" / "experiment.json").build()
    assert setup.task.evaluate(setup.task.initial_weights()).loss == pytest.approx(document["test_loss"], rel=1e-4)
    assert set(setup.task.parameters) == {
        f"{name}.lora_{end}" for name in lora_layers(setup.task.model) for end in ("a", "b")
    }
    assert (tmp_path / "more" / "adapters" / "adapter_model.safetensors").exists()


def test_text_is_read_by_the_tokeniser_of_the_folder(model: Path, texts: Path):
    """With one in the folder, samples are its tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 5, "two": 6, "three": 7, "?": 0}, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?").save_pretrained(model)
    values = {
        "data": {"name": "text", "folder": str(texts), "context": 8, "clients": 3},
        "model": {"name": "transformers", "folder": str(model), "lora": "*.q_proj"},
    }
    task = Experiment.from_dict(values).build().task
    assert task.train.inputs[0].tolist() == [5, 6, 7, 5, 6, 7, 5, 6]
    assert task.train.num_classes == 256


def test_a_model_by_name_has_adapters(tmp_path: Path):
    """Nothing else is trained or sent; peft knows no such model, so there is no checkpoint."""
    given = ("--model", "mlp", "--set", "model.width=8", "--set", "model.lora=*", "--set", "model.rank=2")
    given = (*given, "--algorithm", "het-lora", "--clients", 3, "--set", "planner.rank=[1, 2, 2]", "--rounds", 1)
    done = run([str(word) for word in ("train", *given, "--out", tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    task = Experiment.load(tmp_path / "out" / "experiment.json").build().task
    assert {name.rpartition(".")[2] for name in task.parameters} == {"lora_a", "lora_b"}
    assert not (tmp_path / "out" / "adapters").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "nowhere"}, "[model] folder = 'nowhere': expected a folder of transformers, or a GGUF file"),
        ({"folder": None}, "[model] folder = None: expected a folder of transformers, or a GGUF file"),
        ({"rank": 2}, "[model] rank = 2: expected with lora, names of the layers that have adapters"),
        ({"lora": "*.q_proj", "adapters": "x"}, "[model] lora = '*.q_proj': expected without adapters, a checkpoint"),
        ({"lora": "*.wq"}, "[model] pattern '*.wq' fits no linear layer"),
        ({"lora": "*.q_proj", "rank": 17}, "[model] rank of block1.layer.self_attn.q_proj = 17: expected 1 to 16"),
        ({"adapters": "nowhere"}, "adapter_config.json"),
        ({"width": 8}, "[model] width = 8: unknown"),
        ({"lora": 3}, "[model] lora = 3: expected a text or a list, each a text"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str, model: Path):
    """In one line that names the entry."""
    options = {"name": "transformers", "folder": str(model)} | changes
    given = {"data": {"name": "text"}, "model": {key: value for key, value in options.items() if value is not None}}
    with pytest.raises((EdgeOptError, OSError), match=re.escape(message)) as caught:
        Experiment.from_dict(given).build()
    assert "\n" not in str(caught.value)


def test_other_data_than_text_are_refused(model: Path):
    """A language model reads text."""
    with pytest.raises(EdgeOptError, match=r"^\[data\] name = 'digits': expected 'text' with transformers$"):
        Experiment.from_dict({"model": {"name": "transformers", "folder": str(model)}}).build()


def test_a_folder_with_something_else_is_refused(tmp_path: Path):
    """In one line that starts with the path."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EdgeOptError, match=r"not a causal language model of transformers: ") as caught:
        load_language_model(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InvalidFileError, match=r"config\.json: a pipe, expected a regular file"):
        load_language_model(tmp_path)


@pytest.mark.parametrize("read", [load_language_model, lambda folder: LocalModel(str(folder)).instructions(None)])
def test_code_that_comes_with_a_model_is_never_run(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Nobody is asked whether it may be, either, so that a yes on standard input does nothing."""
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(InvalidFileError, match="not a causal language model of transformers: ") as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert not (tmp_path / "run").exists()
    assert "[y/N]" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (3, "not a causal language model of transformers: 'model.layers.2.input_layernorm.weight' is missing"),
        (10**9, "1000000000 layers: expected at most 1000"),
    ],
)
def test_layers_without_weights_are_refused(layers: int, message: str, model: Path):
    """They are not drawn at random, and millions of them are not built first."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(InvalidFileError, match=f"^{re.escape(f'{model}: {message}')}$"):
        load_language_model(model)


def test_tokens_beyond_the_vocabulary_are_refused():
    """Naming what there is."""
    with pytest.raises(EdgeOptError, match=r"^encode: tokens 2 to \d+ of document 0: expected 0 to 3$"):
        token_text(lambda text: [len(word) for word in text.split() if len(word) > 1], 4)


@pytest.mark.parametrize(("name", "kind"), [("hsplit-lora", Adam), ("het-lora", Adam), ("fedavg", Sgd)])
def test_a_step_size_is_that_of_the_optimiser_that_the_algorithm_has(name: str, kind: type):
    """--lr changes the step size, and not Adam to plain gradient descent, with which adapters hardly move."""
    given = configured(None, {"algorithm.name": name}, ["model.name=mlp", "model.lora=*"], lr=0.05)
    assert given.build().algorithm.optimizer == kind(0.05)
