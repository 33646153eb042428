"""The commands ``edgeopt export KIND``: decisions as files of other tools. Heavy imports happen inside the commands."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.names import ListingCommand
from edgeopt.cli.options import InstanceArgument, check_writable
from edgeopt.errors import EdgeOptError, quoted

if TYPE_CHECKING:
    from edgeopt.problems import ExpertCaching, Placement

export_app = typer.Typer(help="Turn decisions into files for other tools: one command per kind.")


@export_app.command("placement", cls=ListingCommand)
def export_placement(
    instance: InstanceArgument,
    result: Annotated[Path, typer.Argument(help="Result that `edgeopt solve --output` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, .json.")],
    form: Annotated[str, typer.Option("--as", help="placement, keep-list or tensors.")] = "placement",
    server: Annotated[
        int | None,
        typer.Option(help="Of this server, for keep-list and tensors. Default: what any server holds.", min=0),
    ] = None,
    model: Annotated[int, typer.Option(help="Of this model of the instance, counted from 0.", min=0)] = 0,
    model_file: Annotated[
        Path | None, typer.Option(help="The model: .gguf, .safetensors or .safetensors.index.json; for tensors.")
    ] = None,
) -> None:
    """Write a placement of experts: ids by server and layer, experts to keep by layer, or tensors of a model's file.

    Only the names in the header of the model's file are read.
    """
    from edgeopt.evaluation.compare.solutions import read_solution
    from edgeopt.evaluation.instances.library import load_instance
    from edgeopt.problems import ExpertCaching
    from edgeopt.storage import dumps, write_text

    check_writable(output)
    if output.suffix != ".json":
        raise EdgeOptError(f"{output}: expected a name that ends in .json")
    problem = load_instance(instance)
    if not isinstance(problem, ExpertCaching):
        raise EdgeOptError(f"{instance}: a problem of kind {problem.kind}: expected {ExpertCaching.kind}")
    document = _exported(problem, read_solution(problem, result), form, server, model, model_file)
    write_text(output, dumps(document, indent=1) + "\n")
    print(f"wrote {output}", file=sys.stderr)


def _exported(
    problem: "ExpertCaching", placement: "Placement", form: str, server: int | None, model: int, model_file: Path | None
) -> Any:
    from edgeopt.problems.expert_caching import exported

    tensors = None if model_file is None else exported.ExpertTensors.read(model_file)
    if form == "placement":
        return exported.placement_document(problem, placement)
    if form == "keep-list":
        return exported.keep_list(problem, placement, server=server, model=model, tensors=tensors)
    if form != "tensors":
        raise EdgeOptError(f"--as = {quoted(form)}: expected placement, keep-list or tensors")
    if tensors is None:
        raise EdgeOptError("--model-file is missing: expected the file whose tensors are listed")
    return exported.tensor_list(problem, placement, tensors, server=server, model=model)
