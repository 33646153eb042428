"""`edgeopt train` and `edgeopt trace`: from flags or a file, nothing lost, the chain to caching works."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edgeopt import Schedule, cli
from edgeopt.errors import EdgeOptError
from edgeopt.experiment import Experiment
from edgeopt.experiment.folder import RunFolder
from edgeopt.inference.routing import RoutingRecord
from edgeopt.locks import FolderLock
from edgeopt.problems import SplitTraining, load
from edgeopt.problems.expert_caching.routing_trace import RoutingTrace

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--clients", 4, "--model", "mlp", "--set", "model.width=8", "--local-steps", 1)
FILES = {"experiment.json", "rows.csv", "history.json", "checkpoint.safetensors", "schedule.npz"}
PICTURES = {"accuracy-seconds.png", "accuracy-bytes.png", "last-round.png", "data.png"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny run."""
    monkeypatch.setattr(RunFolder, "draw", lambda folder, setup, history: [])


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


# --- train -------------------------------------------------------------------------------------------------------


def test_train_json():
    """--json prints one object: score, virtual time, energy, bytes by category, and the whole experiment."""
    done = run("train", *TINY, "--rounds", 2, "--seed", 3, "--json")
    assert done.exit_code == 0, done.stderr
    document = strict(done.stdout)
    assert (document["algorithm"], document["clients"], document["rounds"]) == ("fedavg", 4, 2)
    assert document["seconds"] > 0 < document["energy_j"]
    assert document["bytes"]["weights_up"] + document["bytes"]["scalars_up"] == document["bytes"]["bytes_up"]
    assert document["target"] is None
    again = Experiment.from_dict(document["experiment"])
    assert (again.rounds, again.seed, again.model.options) == (2, 3, {"width": 8})
    assert again.run().rows[-1]["accuracy"] == document["accuracy"]


def test_train_for_people():
    """Without --json there is a summary, with the target that was reached."""
    done = run("train", *TINY, "--rounds", 3, "--target-accuracy", 0.01)
    assert done.exit_code == 0, done.stderr
    assert "accuracy 0.01" in done.stdout
    assert "in round 0" in done.stdout
    assert "MB weights up" in done.stdout


def test_out_holds_the_run(tmp_path: Path):
    """Rows, checkpoint, experiment, plans and pictures are there, and say the same."""
    out = tmp_path / "run"
    done = run(
        "train", *TINY, "--rounds", 3, "--planner", "cut-only", "--set", "planner.batch=4", "--out", out, "--json"
    )
    # `cut-only` decides the work itself
    assert (done.exit_code, "local_steps = 1: unknown" in done.stderr) == (2, True)
    words = [word for word in TINY if word not in ("--local-steps", 1)]
    done = run(
        "train", *words, "--rounds", 3, "--planner", "cut-only", "--set", "planner.batch=4", "--out", out, "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert {path.name for path in out.iterdir()} >= FILES | PICTURES | {"problem.npz"}
    with open(out / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    document = strict(done.stdout)
    assert [int(row["round"]) for row in rows] == [0, 1, 2]
    assert float(rows[-1]["seconds"]) == document["seconds"]
    assert strict((out / "history.json").read_text())["rounds"] == 3
    assert Experiment.load(out / "experiment.json").to_dict() == document["experiment"]
    assert len(Schedule.load(out / "schedule.npz")) == 3
    assert isinstance(load(out / "problem.npz"), SplitTraining)


@pytest.mark.usefixtures("_no_pictures")
def test_resume_is_one_long_run(tmp_path: Path):
    """Two rounds and three more give the rows, the plans and the weights of five."""
    long, short = tmp_path / "long", tmp_path / "short"
    words = ("train", *TINY, "--seed", 1, "--set", "planner.batch_size=5")
    assert run(*words, "--rounds", 5, "--out", long).exit_code == 0
    assert run(*words, "--rounds", 2, "--out", short).exit_code == 0
    done = run("train", "--resume", "--out", short, "--rounds", 5, "--json")  # the folder knows the rest
    assert done.exit_code == 0, done.stderr
    assert strict(done.stdout)["rounds"] == 5
    assert (short / "rows.csv").read_text() == (long / "rows.csv").read_text()
    assert (short / "checkpoint.safetensors").read_bytes() == (long / "checkpoint.safetensors").read_bytes()
    played, whole = (Schedule.load(folder / "schedule.npz") for folder in (short, long))
    assert played.rounds == whole.rounds


@pytest.mark.usefixtures("_no_pictures")
def test_a_played_schedule_is_the_same_run(tmp_path: Path):
    """The plans in the folder, played again, give the same rows."""
    out = tmp_path / "run"
    words = [word for word in TINY if word not in ("--local-steps", 1)]
    assert run("train", *words, "--planner", "random", "--rounds", 3, "--out", out).exit_code == 0
    played = run(
        "train",
        *words,
        "--planner",
        "schedule",
        "--set",
        f"planner.file={out / 'schedule.npz'}",
        "--rounds",
        3,
        "--json",
    )
    assert played.exit_code == 0, played.stderr
    assert strict(played.stdout)["accuracy"] == strict((out / "history.json").read_text())["rows"][-1]["accuracy"]


def test_flags_override_the_file(tmp_path: Path):
    """Flags win; a new algorithm drops the options of the old one but keeps the optimiser."""
    path = tmp_path / "run.toml"
    path.write_text(
        'rounds = 9\n[data]\nclients = 4\n[model]\nname = "mlp"\nwidth = 8\n'
        '[algorithm]\nname = "fedprox"\nmu = 0.5\noptimizer = { name = "adam", lr = 0.5 }\n'
    )
    done = run("train", path, "--rounds", 1, "--algorithm", "fedavg", "--lr", 0.01, "--json")
    assert done.exit_code == 0, done.stderr
    experiment = strict(done.stdout)["experiment"]
    assert experiment["algorithm"] == {"name": "fedavg", "optimizer": {"name": "adam", "lr": 0.01}}
    assert (experiment["rounds"], experiment["data"]["clients"]) == (1, 4)


def test_a_codec_makes_messages_smaller():
    """`--codec` with its options; a new one drops those of the old one; the codec and what it costs are in the summary."""
    words = [*TINY, "--rounds", 1, "--algorithm", "psl", "--codec", "quantise", "--set", "codec.bits=4", "--json"]
    done = run("train", *words)
    assert done.exit_code == 0, done.stderr
    found, plain = (
        strict(done.stdout),
        strict(run("train", *TINY, "--rounds", 1, "--algorithm", "psl", "--json").stdout),
    )
    assert found["experiment"]["codec"] == {"name": "quantise", "bits": 4}
    assert found["algorithm"] == "psl with quantise"
    for name in ("activations_up", "gradients_down"):
        assert found["bytes"][name] < plain["bytes"][name]


def test_the_help_names_all_codecs():
    """Those that are registered."""
    from edgeopt.training.codecs import CODECS

    words = " ".join(run("train", "--help").stdout.replace("│", " ").split())
    assert [codec.name for codec in CODECS if codec.name not in words] == []


def test_sequential_runner_gives_the_same_result():
    """Clients one after another instead of side by side: the same up to rounding."""
    first, second = (
        strict(run("train", *TINY, "--rounds", 2, "--runner", name, "--json").stdout)
        for name in ("batched", "sequential")
    )
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-5)
    assert first["bytes"] == second["bytes"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--algorithm", "fedavgg"], "[algorithm] name = 'fedavgg': did you mean 'fedavg'?"),
        (["--codec", "quantise"], "[algorithm] name = 'fedavg': expected with a codec one that has cuts"),
        (["--data", "mnist"], "[data] mnist: expected the folder"),
        (["--clients", 0], "[data] clients = 0: expected a whole number >= 1"),
        (["--alpha", -1, "--partition", "dirichlet"], "[data] alpha = -1.0: expected a positive"),
        (["--planner", "fixd"], "[planner] name = 'fixd': did you mean 'fixed'?"),
        (["--lr", -1], "[algorithm.optimizer] lr = -1.0: expected a positive"),
        (["--rounds", "many"], "--rounds"),
        (["--rounds", 0], "rounds = 0: expected a whole number >= 1"),
        (["--device", "gpu"], "device = 'gpu': expected cpu"),
        (["--set", "rounds"], "--set = 'rounds': expected TABLE.KEY=VALUE"),
        (["--set", "seed.x=1"], "seed"),
        (["--set", "planner=3"], "planner = 3: expected a table [planner]"),
        (["--set", "name=mine"], "name = 'mine': unknown"),
        (["--set", "algorithm=fedavg", "--lr", 0.1], "algorithm = 'fedavg': expected a table [algorithm]"),
        (["--set", "algorithm.name=3", "--lr", 0.1], "[algorithm] name = '3'"),
        (["--set", "algorithm.optimizer=adam", "--lr", 0.1], "[algorithm] optimizer = 'adam': expected a table"),
        (
            ["--set", "network.device_flops=[1e9]"],
            "[network] device_flops = [1000000000.0]: expected a number, or a list",
        ),
        (
            ["--set", "network.device_flops=[[1],[2]]"],
            "[network] device_flops = [[1], [2]]: expected a number, or a list",
        ),
        (["--set", "network.coverage_radius_m=[1,2]"], "[network] coverage_radius_m = [1, 2]: expected a number"),
        (["--target-accuracy", 80], "until_accuracy = 80.0: expected a share of the samples, from 0 to 1"),
        (["--set", "data.colour=1"], "[data] colour = 1: unknown"),
        (["--resume"], "--resume: expected --out"),
        (["--runner", "ray"], "--runner = 'ray': expected one of auto, batched"),
        (["none.toml"], "none.toml: No such file"),
    ],
)
def test_bad_input_is_one_line(words: list[object], expected: str):
    """Bad input: exit status 2 and one line that names the culprit, nothing on standard output."""
    done = run("train", *words)
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_step_size_needs_an_optimizer(monkeypatch: pytest.MonkeyPatch):
    """`--lr` for an algorithm without an optimiser is refused, not dropped."""

    @dataclass
    class Plain:
        name: ClassVar[str] = "plain"

        step: float = 0.1

    monkeypatch.setattr("edgeopt.experiment.build.ALGORITHMS", (Plain,))
    done = run("train", "--algorithm", "plain", "--lr", 0.3)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--lr 0.3: plain has no optimizer, expected a field of it by --set algorithm.FIELD=0.3" in done.stderr


@pytest.mark.usefixtures("_no_pictures")
def test_a_finished_folder_is_not_overwritten(tmp_path: Path):
    """A second run into the same folder is refused, and so is going on with other settings."""
    assert run("train", *TINY, "--rounds", 1, "--out", tmp_path).exit_code == 0
    again = run("train", *TINY, "--rounds", 1, "--out", tmp_path)
    assert (again.exit_code, "holds a run already" in again.stderr) == (2, True)
    other = run("train", *TINY, "--rounds", 1, "--seed", 5, "--out", tmp_path, "--resume")
    assert (other.exit_code, "seed = 0: this run has 5" in other.stderr) == (2, True)


def test_folders_are_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is wrong with the folder is said before anything is built, and nothing is left there."""
    monkeypatch.setattr(Experiment, "build", lambda experiment: pytest.fail("built"))
    (file := tmp_path / "file").touch()
    (locked := tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked)
    for words, expected in (
        (["--out", file], f"{file} is a file, expected a folder"),
        (["--out", file / "run"], f"{file} is a file, expected a folder"),
        (["--out", locked / "a" / "b"], f"no permission to write in {locked}"),
        (["--out", tmp_path / "none", "--resume"], "none: holds no run to go on with"),
    ):
        done = run("train", *words)
        assert (done.exit_code, expected in done.stderr) == (2, True), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"file", "locked"}


def test_diverging_training_is_one_line():
    """A loss that is not finite ends with the round and the client named."""
    done = run("train", *TINY, "--rounds", 5, "--lr", 1e20)
    assert done.exit_code == 2
    assert "client" in done.stderr
    assert done.stderr.count("\n") == 1


def test_tensorboard_gets_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every round is written; without the package the message says what to install."""
    written: list[tuple[str, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int, walltime: float) -> None:
            written.append((name, step))

        def close(self) -> None:
            written.append(("closed", -1))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert run("train", *TINY, "--rounds", 2, "--tensorboard", tmp_path).exit_code == 0
    assert {("accuracy", 0), ("accuracy", 1), ("seconds", 1)} <= set(written)
    assert written[-1] == ("closed", -1)


def test_flower_gets_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`--runner flower` hands over a description that other processes can build; its rows are written like others."""
    from edgeopt.experiment.flower import FlowerExperiment
    from edgeopt.training.loop import train

    def run_on_flower(experiment: Any, *, output: Path, resume: bool) -> Any:
        assert (output, resume) == (tmp_path / "flower", False)
        there = FlowerExperiment.from_dict(json.loads(json.dumps(experiment.to_dict())))
        return train(*there.build(), rounds=there.rounds)

    module = types.ModuleType("edgeopt.training.runners.flower_loopback")
    module.run_on_flower = run_on_flower  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    done = run("train", *TINY, "--rounds", 2, "--runner", "flower", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    plain = strict(run("train", *TINY, "--rounds", 2, "--json").stdout)
    assert strict(done.stdout)["accuracy"] == plain["accuracy"]
    assert (tmp_path / "rows.csv").exists()
    refused = run("train", *TINY, "--runner", "flower", "--target-accuracy", 0.5)
    assert (refused.exit_code, "until_accuracy = 0.5" in refused.stderr) == (2, True)


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_folder_in_use_is_left_alone(tmp_path: Path, more: list[str]):
    """A second run into the folder of one that goes on is refused at once, in one line, and writes nothing there."""
    assert run("train", *TINY, "--rounds", 1, "--out", tmp_path).exit_code == 0
    with FolderLock(tmp_path):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        done = run("train", *TINY, "--out", tmp_path, *more)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert done.exit_code == 2
    assert f"{tmp_path}: in use by process {os.getpid()} on " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_is_kept_for_a_run_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From its first file to its last, also by an error, a run has its folder for itself; afterwards it is free."""
    (tmp_path / ".rows.csv.12345678.part").write_text("what a run that was killed leaves")
    refused = []

    def write(folder: RunFolder, setup: object, history: object) -> None:
        with pytest.raises(EdgeOptError, match="in use by") as error:
            FolderLock(folder.path)
        refused.append(error)
        raise EdgeOptError("full")

    monkeypatch.setattr(RunFolder, "write", write)
    done = run("train", *TINY, "--rounds", 1, "--out", tmp_path)
    assert done.exit_code == 2
    assert len(refused) == 1
    FolderLock(tmp_path).release()
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.slow
def test_ctrl_c_keeps_everything(tmp_path: Path):
    """Ctrl-C: exit status 130, the rounds so far in the folder and in the JSON, and the run can go on."""
    out = tmp_path / "run"
    words = [sys.executable, "-m", "edgeopt", "train", *map(str, TINY), "--rounds", "100000", "--out", str(out)]
    process = subprocess.Popen(
        [*words, "--checkpoint-every", "1", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (out / "schedule.npz").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)  # until a round is done; nothing is timed
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    document = strict(stdout)
    assert document["interrupted"]
    assert "Traceback" not in stderr
    done = run("train", "--out", out, "--resume", "--rounds", document["rounds"] + 1, "--json")
    assert done.exit_code == 0, done.stderr
    assert len(Schedule.load(out / "schedule.npz")) == document["rounds"] + 1


# --- trace -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six documents of different letters."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for number in range(6):
        letters = rng.integers(97 + 3 * number, 100 + 3 * number, 700).astype(np.uint8)
        (folder / f"{number}.txt").write_bytes(letters.tobytes())
    return folder


SMALL = ("--clients", 3, "--set", "data.context=16", "--set", "model.width=8", "--local-steps", 1, "--rounds", 1)


def test_trace_to_caching(texts: Path, tmp_path: Path):
    """Train, record, generate, solve: users of the trace are clients, and its counts are those of the tokens."""
    trace = tmp_path / "routing.npz"
    done = run("trace", "-o", trace, "--folder", texts, *SMALL, "--sequences", 3, "--json")
    assert done.exit_code == 0, done.stderr
    document = strict(done.stdout)
    found, record = RoutingTrace.load(trace), RoutingRecord.load(tmp_path / "routing-tokens.npz")
    assert found == record.to_trace()
    assert (found.num_users, found.tokens_per_user.tolist()) == (3, [48] * 3)
    assert (document["users"], document["tokens_per_user"], document["layers"]) == (3, 48, found.num_layers)
    assert document["training"]["rounds"] == 1
    instance = tmp_path / "caching.npz"
    words = ("--servers", 2, "--devices", 6, "--storage", 0.3, "-o", instance)
    assert run("generate", "expert-caching", "--trace", trace, *words).exit_code == 0
    solved = run("solve", instance, "--solver", "greedy", "--json")
    assert solved.exit_code == 0, solved.stderr
    assert strict(solved.stdout)["feasible"]


@pytest.mark.usefixtures("_no_pictures")
def test_trace_of_a_trained_model(texts: Path, tmp_path: Path):
    """The model of a run's folder gives the trace that training in the command gives."""
    out = tmp_path / "run"
    defaults = {
        "data.name": "text", "data.partition": "shards", "data.folder": texts, "data.context": 16, "model.name": "moe",
        "model.width": 8, "algorithm.batch_size": 8, "algorithm.optimizer.name": "adam",
        "algorithm.optimizer.lr": 0.005,
    }  # fmt: skip
    more = [word for key, value in defaults.items() for word in ("--set", f"{key}={value}")]
    assert run("train", "--clients", 3, "--rounds", 1, "--local-steps", 1, *more, "--out", out).exit_code == 0
    assert run("trace", "-o", tmp_path / "a.npz", "--checkpoint", out).exit_code == 0
    assert run("trace", "-o", tmp_path / "b.npz", "--folder", texts, *SMALL).exit_code == 0
    assert RoutingTrace.load(tmp_path / "a.npz") == RoutingTrace.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "model.name=decoder"], "model: expected layers of experts"),
        (["--clients", 500], "expected at least"),
        (["--folder", "nowhere"], "nowhere': expected a folder with files *.txt"),
        (["--checkpoint", "nowhere"], "No such file"),
        (["-o", "trace.json"], "trace.json: expected a name that ends in .npz"),
        (["-o", "no/trace.npz"], "there is no folder"),
    ],
)
def test_bad_input_of_trace(words: list[object], expected: str, texts: Path, tmp_path: Path):
    """Bad input: exit status 2 and one line that names the culprit."""
    done = run("trace", "-o", tmp_path / "x.npz", "--folder", texts, *SMALL, *words)
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


# --- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="an installed package has no documentation beside it")
def test_the_example_of_the_page_is_valid(tmp_path: Path):
    """The TOML file on the page is read, builds, and runs a round."""
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    path = tmp_path / "train.toml"
    path.write_text(page.split("```toml\n", 1)[1].split("```", 1)[0], encoding="utf-8")
    done = run("train", path, "--rounds", 1, "--runner", "sequential", "--json")
    assert done.exit_code == 0, done.stderr
    assert strict(done.stdout)["rounds"] == 1
