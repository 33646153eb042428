"""The commands ``edgeopt generate KIND``: instances from a seed. Heavy imports happen inside the commands."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.errors import EdgeOptError

if TYPE_CHECKING:
    from edgeopt.problem import Problem

generate_app = typer.Typer(help="Make an instance from a seed: one command per kind of problem.")

OutputOption = Annotated[Path, typer.Option("-o", "--output", help="File to write, .json or .npz.")]
SeedOption = Annotated[int, typer.Option(help="Same seed, same result.", min=0)]


@generate_app.command("expert-caching")
def generate_expert_caching(
    output: OutputOption,
    trace: Annotated[
        list[str] | None, typer.Option(help="Routing trace: a file, or switch32, mixtral8, fine64; repeatable.")
    ] = None,
    experts: Annotated[int, typer.Option(help="Experts per layer, without --trace.", min=1)] = 32,
    layers: Annotated[int, typer.Option(help="Layers, without --trace.", min=1)] = 4,
    top_k: Annotated[int, typer.Option(help="Experts per token and layer, without --trace.", min=1)] = 1,
    servers: Annotated[int, typer.Option(help="Edge servers.", min=1)] = 10,
    devices: Annotated[int, typer.Option(help="Devices, one user each.", min=1)] = 100,
    storage: Annotated[float, typer.Option(help="Storage per server, as a fraction of all experts' bytes.")] = 0.1,
    latency: Annotated[str, typer.Option(help="sum, max, or mix:THETA.")] = "sum",
    seed: SeedOption = 0,
) -> None:
    """Expert caching on a random network, with routing from traces or drawn at random."""
    from edgeopt.problems import ExpertCaching

    check_writable(output)
    mode, theta = _latency(latency)
    made: Problem
    if trace:
        from edgeopt.network import EdgeNetwork

        traces = [_load_trace(name) for name in trace]
        network = EdgeNetwork.random(num_servers=servers, num_devices=devices, seed=seed)
        made = ExpertCaching.from_traces(traces, network, storage=storage, latency=mode, theta=theta)
    else:
        made = ExpertCaching.random(
            num_servers=servers,
            num_users=devices,
            num_layers=layers,
            experts_per_layer=experts,
            top_k=top_k,
            storage=storage,
            latency=mode,
            theta=theta,
            seed=seed,
        )
    _write(made, output)


def check_writable(path: Path) -> None:
    """Complain about the output before the work, not after it."""
    if path.is_dir():
        raise EdgeOptError(f"{path}: is a folder, expected a file to write")
    if not path.absolute().parent.is_dir():
        raise EdgeOptError(f"{path}: there is no folder {path.absolute().parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise EdgeOptError(f"{path}: no permission to write in {path.absolute().parent}")


def _write(problem: "Problem", output: Path) -> None:
    problem.save(output)
    facts = ", ".join(f"{value} {name}" for name, value in problem.describe().items() if isinstance(value, int))
    print(f"wrote {output}: {problem.kind}, {facts}", file=sys.stderr)


def _latency(text: str) -> tuple[Any, float]:
    mode, colon, theta = text.partition(":")
    try:
        if (mode in ("sum", "max") and not colon) or (mode == "mix" and colon):
            return mode, float(theta) if colon else 0.5
    except ValueError:
        pass
    raise EdgeOptError(f"--latency = {text!r}: expected sum, max or mix:THETA with THETA from 0 to 1")


def _load_trace(name: str) -> Any:
    from edgeopt.problems.routing_trace import BUNDLED_TRACES, RoutingTrace, bundled_trace

    return bundled_trace(name) if name in BUNDLED_TRACES else RoutingTrace.load(name)
