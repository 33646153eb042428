"""The command ``edgeopt caching-limits``: what the routing of a model allows a cache. Heavy imports happen inside it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.generate import latency_mode, load_trace
from edgeopt.cli.options import JsonOption, SeedOption, check_writable
from edgeopt.cli.printing import console, number, print_json
from edgeopt.errors import EdgeOptError, quoted

if TYPE_CHECKING:
    from edgeopt.evaluation.caching_limits import CachingLimits


def caching_limits(
    trace: Annotated[str, typer.Argument(help="Routing trace: a file, or one of $traces.")],
    storage: Annotated[
        str, typer.Option(help="Shares of all experts that a server holds, with commas between.")
    ] = "5%,10%,20%",
    model: Annotated[
        str | None, typer.Option(help="Sizes of which model latencies are for: $moe_models. Default: as recorded.")
    ] = None,
    latency: Annotated[str, typer.Option(help="sum, max, or mix:THETA.")] = "sum",
    picture: Annotated[Path | None, typer.Option(help="Picture to write, .png or .svg.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds of the solver for each share.")] = 0.1,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Is a cache worth it? Upper bounds on what any placement of experts can bring, from their routing.

    Latencies are those of a random network of five servers; `edgeopt generate expert-caching` makes problems of others.
    """
    from edgeopt.evaluation.caching_limits import caching_limits as limits_of
    from edgeopt.evaluation.plots.caching.limits import plot_caching_limits
    from edgeopt.evaluation.plots.style import save_picture

    if picture is not None:
        check_writable(picture)
        if picture.suffix not in (".png", ".svg"):
            raise EdgeOptError(f"{picture}: expected a name that ends in .png or .svg")
    mode, theta = latency_mode(latency)
    found = limits_of(
        load_trace(trace), _shares(storage), model=model, latency=mode, theta=theta, time_limit=time_limit, seed=seed
    )
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)
    if picture is not None:
        save_picture(plot_caching_limits(found), picture)
        print(f"wrote {picture}", file=sys.stderr)


def _shares(text: str) -> list[float]:
    """Return shares from ``5%,0.1``."""
    try:
        return [
            float(part.strip().removesuffix("%")) / (100 if part.strip().endswith("%") else 1)
            for part in text.split(",")
        ]
    except ValueError:
        raise EdgeOptError(f"--storage = {quoted(text)}: expected shares such as 5%,10% with commas between") from None


def _show(found: "CachingLimits") -> None:
    from rich.table import Table

    table = Table(title=f"{found.name}: what a cache can bring at most")
    heads = {
        "storage": ("storage", 100, " %"),
        "hit_at_most": ("hits, own server", 100, " %"),
        "hit_common": ("one server for all", 100, " %"),
        "hit_random": ("at random", 100, " %"),
        "latency_without_s": ("no cache", 1e3, " ms"),
        "latency_random_s": ("at random", 1e3, " ms"),
        "latency_popularity_s": ("popularity", 1e3, " ms"),
        "latency_found_s": ("best found", 1e3, " ms"),
        "latency_at_least_s": ("at least", 1e3, " ms"),
    }
    known = {name: head for name, head in heads.items() if getattr(found.limits[0], name) is not None}
    for title, _, _ in known.values():
        table.add_column(title, justify="right")
    for limit in found.limits:
        table.add_row(*(number(getattr(limit, name), factor) + unit for name, (_, factor, unit) in known.items()))
    shown = console()
    shown.print(table)
    users = Table(
        title=f"hits of each user's own server with {found.limits[-1].storage:.3g} of all experts, and in each layer"
    )
    for title in ("", "least", "median", "most"):
        users.add_column(title, justify="right")
    for title, values in (("users", found.user_hits[-1]), ("layers", found.layer_hits[-1])):
        middle = sorted(values.tolist())
        users.add_row(title, *(f"{100 * middle[i]:.4g} %" for i in (0, len(middle) // 2, -1)))
    shown.print(users)
    print(found.verdict)
