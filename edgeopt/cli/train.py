"""The command ``edgeopt train``. Heavy imports happen inside it."""

import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.options import INTERRUPTED, ConfigArgument, JsonOption, SetOption, key_and_value
from edgeopt.cli.printing import console, number, print_json
from edgeopt.errors import EdgeOptError, MissingDependencyError, quoted

if TYPE_CHECKING:
    from edgeopt.experiment import Experiment
    from edgeopt.experiment.build import Setup
    from edgeopt.experiment.folder import RunFolder
    from edgeopt.training.history import History

RUNNERS = ("auto", "batched", "sequential", "flower")

Changes = dict[str, Any]


def train(
    config: ConfigArgument = None,
    algorithm: Annotated[str | None, typer.Option(help="How clients and servers learn: $algorithms.")] = None,
    codec: Annotated[str | None, typer.Option(help="For what crosses a cut: $codecs.")] = None,
    data: Annotated[str | None, typer.Option(help="What they learn from: $data_sets.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the data's own files.")] = None,
    clients: Annotated[int | None, typer.Option(help="Clients that hold the data.")] = None,
    partition: Annotated[str | None, typer.Option(help="Who holds which samples: $partitions.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Of the Dirichlet partition.")] = None,
    model: Annotated[str | None, typer.Option(help="What they train: $models; or transformers, see [model].")] = None,
    planner: Annotated[
        str | None, typer.Option(help="Who does what in each round: $planners, or the name of a solver.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds at most.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a local step.")] = None,
    cut_layer: Annotated[int | None, typer.Option(help="Layers that clients train, of split algorithms.")] = None,
    local_steps: Annotated[int | None, typer.Option(help="Local steps of a round.")] = None,
    lr: Annotated[float | None, typer.Option(help="Step size of the optimiser.")] = None,
    servers: Annotated[int | None, typer.Option(help="Servers of the random network.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the layers: $precisions.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Rounds between two evaluations.")] = None,
    target_accuracy: Annotated[float | None, typer.Option(help="End when it is reached.")] = None,
    more: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for rows, checkpoint, plans and pictures.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Rounds between two checkpoints.", min=1)] = 10,
    runner: Annotated[
        str,
        typer.Option(
            help="How clients run: $runners. Side by side, one after another, whichever is faster, or in processes."
        ),
    ] = "auto",
    workers: Annotated[int, typer.Option(help="Threads that clients are shared out to.", min=1)] = 1,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model by many clients, in virtual time. Ctrl-C keeps all rounds; --resume goes on."""
    changes: Changes = {
        "algorithm.name": algorithm,
        "codec.name": codec,
        "data.name": data,
        "data.folder": None if folder is None else str(folder),
        "data.clients": clients,
        "data.partition": partition,
        "data.alpha": alpha,
        "model.name": model,
        "planner.name": planner,
        "rounds": rounds,
        "planner.batch_size": batch_size,
        "planner.cut_layer": cut_layer,
        "planner.local_steps": local_steps,
        "network.servers": servers,
        "seed": seed,
        "device": device,
        "precision": precision,
        "evaluate_every": evaluate_every,
        "until_accuracy": target_accuracy,
    }
    if resume and out is None:
        raise EdgeOptError("--resume: expected --out, the folder of the run")
    if resume and config is None and out is not None:
        config = out / "experiment.json"
        if not config.exists():
            raise EdgeOptError(f"{out}: holds no run to go on with: expected experiment.json in it")
    experiment = configured(config, changes, more or [], lr=lr)
    started = time.perf_counter()
    setup, history = _run(experiment, out, resume, checkpoint_every, (runner, workers), tensorboard)
    result = summary(setup, history) | {
        "wall_s": time.perf_counter() - started,
        "out": None if out is None else str(out),
    }
    if as_json:
        print_json(result)
    else:
        show(result)
    if history.interrupted:
        print(f"edgeopt: interrupted after {len(history.rows)} rounds{_where(out)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def configured(
    config: Path | None, changes: Changes, more: list[str], *, lr: float | None = None, base: Changes | None = None
) -> "Experiment":
    """Return the experiment of a file, or `base`, with the changes of the command line; None changes nothing.

    A new name of an algorithm, model or planner drops the options of the old one, but for the optimiser.
    """
    from edgeopt.experiment import Experiment

    if config is not None:
        values = Experiment.load(config).to_dict()
    else:
        values = {"planner": {"name": "fixed", "local_steps": 5}} if base is None else base
    source = "" if config is None else str(config)
    settings = dict(key_and_value("--set", text, "TABLE.KEY=VALUE") for text in more)
    given = {key: value for key, value in changes.items() if value is not None} | settings
    for key, value in sorted(given.items(), key=lambda entry: not entry[0].endswith(".name")):
        *path, last = key.split(".")
        table: Any = values
        for step in path:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise EdgeOptError(f"--set {key}: {step} is no table")
        if last == "name" and path and path[0] != "data" and table.get("name") != value:
            kept = {name: table[name] for name in table if name.endswith("optimizer")}
            table.clear()
            table |= kept
        table[last] = value
    if lr is not None:
        values.setdefault("algorithm", {})
    for table, name in (("algorithm", "fedavg"), ("planner", "fixed"), ("model", "small-cnn")):
        if isinstance(chosen := values.get(table), dict):  # others are refused below
            chosen.setdefault("name", name)
    if lr is not None and isinstance(algorithm := values["algorithm"], dict):
        from edgeopt.experiment.build import algorithm_class, optimizer_fields

        fields = optimizer_fields(algorithm_class(str(algorithm["name"]), source))
        if not fields:
            raise EdgeOptError(
                f"--lr {lr:g}: {algorithm['name']} has no optimizer, expected a field of it by --set algorithm.FIELD={lr:g}"
            )
        for name in fields:
            if isinstance(optimizer := algorithm.setdefault(name, {}), dict):
                optimizer["lr"] = lr
    return Experiment.from_dict(values, source=source, folder=Path.cwd())


def summary(setup: "Setup", history: "History") -> dict[str, Any]:
    """Return what came out, as plain values; None where nothing was measured."""
    experiment, task = setup.experiment, setup.task
    last: dict[str, Any] = dict(history.rows[-1]) if history.rows else {}
    evaluated = [row for row in history.rows if not math.isnan(row["accuracy"])]
    best = max(evaluated, key=lambda row: row["accuracy"], default=None)
    target = experiment.until_accuracy
    reached = None if target is None else history.first_reach(target)
    return {
        "algorithm": setup.algorithm.name,
        "data": experiment.data.name,
        "model": experiment.model.name,
        "planner": experiment.planner.name,
        "clients": task.num_clients,
        "seed": experiment.seed,
        "rounds": len(history.rows),
        "reason": history.reason,
        "interrupted": history.interrupted,
        "accuracy": evaluated[-1]["accuracy"] if evaluated else None,
        "best_accuracy": None if best is None else best["accuracy"],
        "test_loss": evaluated[-1]["test_loss"] if evaluated else None,
        "train_loss": last.get("train_loss"),
        "target_accuracy": target,
        "target": None
        if reached is None
        else {name: reached[name] for name in ("round", "seconds", "energy_j", "bytes_up", "bytes_down")},
        "seconds": last.get("seconds"),
        "energy_j": last.get("energy_j"),
        "carbon_g": last.get("carbon_g"),
        "conflicts": sum(int(row["conflicts"]) for row in history.rows),
        "lost": sum(int(row["planned"] - row["completed"]) for row in history.rows),
        "bytes": {name: last[name] for name in last if name.endswith(("_up", "_down"))},
        "experiment": experiment.to_dict(),
    }


def show(result: dict[str, Any]) -> None:
    """Print a summary for people."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    facts = {name: result[name] for name in ("algorithm", "data", "model", "planner", "clients", "seed")}
    facts["rounds"] = f"{result['rounds']} ({result['reason']})"
    facts["accuracy"] = f"{number(result['accuracy'])} (best {number(result['best_accuracy'])})"
    if result["target_accuracy"] is not None:
        facts[f"accuracy {result['target_accuracy']:g}"] = (
            "not reached"
            if result["target"] is None
            else f"in round {result['target']['round']}, after {number(result['target']['seconds'])} virtual s"
        )
    facts["train loss"] = number(result["train_loss"])
    facts["virtual time, s"], facts["energy, J"] = number(result["seconds"]), number(result["energy_j"])
    if result["carbon_g"] is not None:
        facts["CO2, g"] = number(result["carbon_g"])
    for name in ("conflicts", "lost"):
        if result[name]:
            facts[name] = f"{result[name]} updates"
    for name, value in result["bytes"].items():
        if value:
            facts[f"MB {name.replace('_', ' ').removeprefix('bytes ')}"] = f"{value / 1e6:.6g}"
    facts["computed in, s"] = f"{result['wall_s']:.3g}"
    if result["out"] is not None:
        facts["files"] = result["out"]
    for name, value in facts.items():
        table.add_row(name, str(value))
    console().print(table, highlight=False, markup=False)


# --- running ---------------------------------------------------------------------------------------------------


def _run(
    experiment: "Experiment",
    out: Path | None,
    resume: bool,
    every: int,
    where: tuple[str, int],
    tensorboard: Path | None,
) -> "tuple[Setup, History]":
    from edgeopt.experiment.folder import RunFolder

    if (runner := where[0]) not in RUNNERS:
        raise EdgeOptError(f"--runner = {quoted(runner)}: expected one of {', '.join(RUNNERS)}")
    files = None if out is None else RunFolder(out, every)
    if files is not None:
        files.check(experiment, resume=resume)
    setup = experiment.build()
    with ExitStack() as stack:
        if files is not None:
            files.open(experiment, resume=resume)
            stack.callback(files.close)
        if runner == "flower":
            if tensorboard is not None:
                raise EdgeOptError("--tensorboard: expected a runner in this process, not --runner flower")
            history = _on_flower(experiment, files, resume)
        else:
            history = _here(setup, files, every, resume, where, tensorboard)
        if files is not None:
            files.write(setup, history)
            try:
                files.draw(setup, history)
            except MissingDependencyError as error:  # the rows are there; pictures can be made later
                print(f"edgeopt: no pictures: {error}", file=sys.stderr)
    return setup, history


def _here(
    setup: "Setup",
    files: "RunFolder | None",
    every: int,
    resume: bool,
    where: tuple[str, int],
    tensorboard: Path | None,
) -> "History":
    from edgeopt.training.runners.local import LocalRunner

    runner, workers = where

    with ExitStack() as stack:
        watchers: list[Any] = [] if files is None else [files.on_round]
        if tensorboard is not None:
            from edgeopt.training.tensorboard import TensorBoardWriter

            watchers.append(stack.enter_context(TensorBoardWriter(tensorboard)))
        return setup.train(
            runner=LocalRunner(batched=None if runner == "auto" else runner == "batched", workers=workers),
            on_round=watchers,
            checkpoint=None if files is None else files.checkpoint,
            checkpoint_every=every,
            resume=resume,
            display=True,
        )


def _on_flower(experiment: "Experiment", files: "RunFolder | None", resume: bool) -> "History":
    """Train in processes; rows come back, plans stay with them."""
    from edgeopt.experiment.flower import FlowerExperiment

    described: Any = FlowerExperiment(experiment)
    from edgeopt.training.runners.flower_loopback import run_on_flower

    return run_on_flower(described, output=None if files is None else files.flower, resume=resume)


def _where(out: Path | None) -> str:
    return "" if out is None else f", kept in {out}"
