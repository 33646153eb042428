"""The command ``edgeopt trace``: a routing trace from a mixture-of-experts model that is trained here."""

import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.options import INTERRUPTED, ConfigArgument, JsonOption, SetOption, check_writable
from edgeopt.cli.printing import number, print_facts, print_json
from edgeopt.cli.train import Changes, configured, summary
from edgeopt.errors import EdgeOptError

if TYPE_CHECKING:
    from edgeopt.experiment import Experiment
    from edgeopt.experiment.build import Setup
    from edgeopt.training.history import History
    from edgeopt.training.messages import Tensors

_DEFAULTS: Changes = {
    "data": {"name": "text", "partition": "shards", "clients": 6, "context": 64},
    "model": {"name": "moe", "width": 32},
    "algorithm": {"name": "fedavg", "batch_size": 8, "optimizer": {"name": "adam", "lr": 5e-3}},
    "planner": {"name": "fixed", "local_steps": 5},
    "rounds": 10,
    "evaluate_every": 10,
}


def trace(
    output: Annotated[Path, typer.Option("-o", "--output", help="Routing trace to write, .npz.")],
    config: ConfigArgument = None,
    record: Annotated[
        Path | None, typer.Option(help="Token by token, .npz. Default: beside the trace, -tokens in its name.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder of a run of `edgeopt train` to take the model from, instead of training."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of *.txt; default: the text of Python's help.")] = None,
    clients: Annotated[int | None, typer.Option(help="Clients that train; they are the users of the trace.")] = None,
    sequences: Annotated[int, typer.Option(help="Held-out sequences of each user, at most.", min=1)] = 16,
    rounds: Annotated[int | None, typer.Option(help="Rounds of training.")] = None,
    local_steps: Annotated[int | None, typer.Option(help="Local steps of a round.")] = None,
    lr: Annotated[float | None, typer.Option(help="Step size of the optimiser.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result.")] = None,
    more: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a small mixture-of-experts decoder by FedAvg and record which experts each client's held-out text takes.

    `edgeopt generate expert-caching --trace FILE` makes a problem of the trace.
    """
    for path in (output, record):
        if path is not None:
            check_writable(path)
            if path.suffix != ".npz":
                raise EdgeOptError(f"{path}: expected a name that ends in .npz")
    if checkpoint is not None and config is None:
        config = checkpoint / "experiment.json"
    changes: Changes = {
        "data.folder": None if folder is None else str(folder),
        "data.clients": clients,
        "rounds": rounds,
        "planner.local_steps": local_steps,
        "seed": seed,
    }
    experiment = configured(config, changes, more or [], lr=lr, base=copy.deepcopy(_DEFAULTS))
    setup, weights, result = _trained(experiment, checkpoint)
    from edgeopt.experiment.trace import client_routing, routing_statistics

    routing = client_routing(setup.task, weights, sequences, name=f"{experiment.model.name}-{experiment.data.name}")
    tokens = output.with_name(f"{output.stem}-tokens.npz") if record is None else record
    routing.to_trace().save(output)
    routing.save(tokens)
    facts = routing_statistics(routing)
    if as_json:
        print_json({"trace": str(output), "record": str(tokens), **facts, "training": result})
    else:
        _show(facts, result)
    print(f"wrote {output} and {tokens}", file=sys.stderr)
    if result is not None and result["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def _trained(experiment: "Experiment", checkpoint: Path | None) -> "tuple[Setup, Tensors, dict[str, Any] | None]":
    """Return the setup, the weights of its first model, and what training brought."""
    setup = experiment.build()
    if checkpoint is not None:
        from edgeopt.training.judging import judged, models_of
        from edgeopt.training.run_state import RunState

        path = checkpoint / "checkpoint.safetensors"
        start = RunState.start(setup.task, setup.algorithm, setup.planner, setup.estimator)
        run = RunState.load(path, setup.task, start.identity, start.server)
        models = models_of(setup.algorithm, setup.task, run.server, run.clients)
        return setup, setup.task.whole(judged(models)[0]), None
    history: History = setup.train(display=True)
    return setup, history.models[0], summary(setup, history)


def _show(facts: dict[str, Any], result: dict[str, Any] | None) -> None:
    if result is not None:
        accuracy = number(result["accuracy"])
        print(f"trained {result['rounds']} rounds ({result['reason']}), accuracy on the next byte {accuracy}")
    shown = {name: value if isinstance(value, list) else [value] for name, value in facts.items()}
    print_facts({name.replace("_", " "): ", ".join(map(number, values)) for name, values in shown.items()})
