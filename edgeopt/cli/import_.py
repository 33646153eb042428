"""The commands ``edgeopt import KIND``: files of others into files of ours. Heavy imports happen inside the commands."""

import sys
from pathlib import Path
from typing import Annotated, Any

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


Series = Annotated[Path, typer.Option("-o", "--output", help="Time series to write, .json or .npz.")]
Unit = Annotated[
    str | None, typer.Option(help="Of the values, such as Mbit/s, kB/s, g/kWh. Default: as the header says.")
]
TimeName = Annotated[str | None, typer.Option("--time", help="Column of the times. Default: by usual names.")]
ClientName = Annotated[str | None, typer.Option("--client", help="Column of the clients, or places.")]
ValueName = Annotated[str | None, typer.Option("--value", help="Column of the values.")]
Decimal = Annotated[
    str | None, typer.Option(help="Mark of decimals: . or , Default: the comma where there are no points.")
]
Hold = Annotated[float | None, typer.Option("--hold", help="Seconds that a value counts; then there is a gap, of 0.")]
SeriesFiles = Annotated[list[Path], typer.Argument(help="What was measured, one file or more.")]


@import_app.command("network", cls=ListingCommand)
def import_network(
    files: SeriesFiles,
    output: Series,
    format: Annotated[
        str | None, typer.Option(help="$series_formats. Default: by the first line of each file.")
    ] = None,
    unit: Unit = None,
    time: TimeName = None,
    client: ClientName = None,
    value: ValueName = None,
    decimal: Decimal = None,
    hold: Hold = None,
    as_json: JsonOption = False,
) -> None:
    """Measured rates of clients, as tables or as traces of Mahimahi and Pensieve, into a time series.

    `edgeopt train --set network.rates=FILE` lets virtual time follow it.
    """
    _import_series("rate", files, output, as_json, format=format, unit=unit, time=time, client=client, value=value, decimal=decimal, hold=hold)  # fmt: skip


@import_app.command("carbon")
def import_carbon(
    files: SeriesFiles,
    output: Series,
    unit: Unit = None,
    time: TimeName = None,
    place: ClientName = None,
    value: ValueName = None,
    decimal: Decimal = None,
    hold: Hold = None,
    as_json: JsonOption = False,
) -> None:
    """Carbon intensity of electricity over time, g of CO2 per kWh, into a time series.

    `edgeopt train --set network.carbon=FILE` charges rounds in grams of CO2.
    """
    _import_series("carbon", files, output, as_json, unit=unit, time=time, client=place, value=value, decimal=decimal, hold=hold)  # fmt: skip


@import_app.command("availability")
def import_availability(
    files: SeriesFiles,
    output: Series,
    time: TimeName = None,
    client: ClientName = None,
    value: ValueName = None,
    hold: Hold = None,
    as_json: JsonOption = False,
) -> None:
    """When clients can be picked, such as while they charge or are on Wi-Fi, into a time series."""
    _import_series("availability", files, output, as_json, time=time, client=client, value=value, hold=hold)


def _import_series(
    quantity: Any, files: list[Path], output: Path, as_json: bool, *, hold: float | None, **options: Any
) -> None:
    from edgeopt.series import TimeSeries

    check_writable(output)
    if output.suffix not in (".json", ".npz"):
        raise EdgeOptError(f"{output}: expected a name that ends in .json or .npz")
    if hold is not None:
        options["hold_s"] = hold
    series = TimeSeries.read(*files, quantity=quantity, **options)
    series.save(output)
    facts = series.statistics() | {"names": list(series.names)}
    if as_json:
        print_json({"series": str(output), **facts})
    else:
        shown = facts | {"names": ", ".join(series.names[:5]) + ", ..." * (series.num_columns > 5)}
        print_facts(
            {
                key.replace("_", " "): f"{value:.6g}" if isinstance(value, float) else str(value)
                for key, value in shown.items()
            }
        )
    print(f"wrote {output}", file=sys.stderr)
