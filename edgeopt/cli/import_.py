"""The commands ``edgeopt import KIND``: files of others into files of ours. Heavy imports happen inside the commands."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.names import ListingCommand
from edgeopt.cli.options import JsonOption, check_writable
from edgeopt.cli.printing import print_facts, print_json
from edgeopt.errors import EdgeOptError

import_app = typer.Typer(help="Turn files of other tools into files of edgeopt: one command per kind.")


@import_app.command("routing", cls=ListingCommand)
def import_routing(
    files: Annotated[list[Path], typer.Argument(help="Recorded routing; each file is a user, where it does not say.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Routing trace to write, .npz.")],
    format: Annotated[
        str | None, typer.Option(help="$routing_formats. Default: by the name and the first lines of the first file.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Layers, where the files do not tell.", min=1)] = None,
    experts: Annotated[
        int | None, typer.Option(help="Experts per layer. Default: up to the largest id.", min=1)
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token, where the files do not tell.", min=1)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: that of the first file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Routing of a mixture-of-experts model, as a server or a script has recorded it, into a routing trace.

    `edgeopt generate expert-caching --trace FILE --model NAME` makes a problem of the trace.
    """
    from edgeopt.problems import RoutingTrace

    check_writable(output)
    if output.suffix != ".npz":
        raise EdgeOptError(f"{output}: expected a name that ends in .npz")
    trace = RoutingTrace.read(*files, format=format, num_layers=layers, num_experts=experts, top_k=top_k, name=name)
    trace.save(output)
    facts = {"name": trace.name} | trace.statistics() | {"counts_only": trace.counts_only}
    if as_json:
        print_json({"trace": str(output), **facts})
    else:
        print_facts({key.replace("_", " "): str(value) for key, value in facts.items()})
    print(f"wrote {output}", file=sys.stderr)
