"""The commands ``edgeopt generate KIND``: instances from a seed. Heavy imports happen inside the commands."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.names import ListingCommand
from edgeopt.cli.options import SeedOption, check_writable
from edgeopt.errors import EdgeOptError, quoted

if TYPE_CHECKING:
    from edgeopt.problem import Problem

generate_app = typer.Typer(help="Make an instance from a seed: one command per kind of problem.")

OutputOption = Annotated[Path, typer.Option("-o", "--output", help="File to write, .json or .npz.")]


@generate_app.command("expert-caching", cls=ListingCommand)
def generate_expert_caching(
    output: OutputOption,
    trace: Annotated[
        list[str] | None, typer.Option(help="Routing trace: a file, or one of $traces; repeatable.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Sizes of which model each trace is taken for: $moe_models. Default: as recorded."),
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
    mode, theta = latency_mode(latency)
    made: Problem
    if trace:
        from edgeopt.network import EdgeNetwork

        traces = [load_trace(name) for name in trace]
        network = EdgeNetwork.random(num_servers=servers, num_devices=devices, seed=seed)
        made = ExpertCaching.from_traces(
            traces, network, models=model or None, storage=storage, latency=mode, theta=theta
        )
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


@generate_app.command("model-download", cls=ListingCommand)
def generate_model_download(
    output: OutputOption,
    users: Annotated[int, typer.Option(help="Users, one task each.", min=1)] = 30,
    models: Annotated[int, typer.Option(help="Models to choose from.", min=1)] = 6,
    bandwidth_mhz: Annotated[float, typer.Option(help="Bandwidth to share, MHz.")] = 200.0,
    deadline: Annotated[str, typer.Option(help="Seconds: one number for all users, or LOW:HIGH.")] = "0.5:3",
    snr_db: Annotated[str, typer.Option(help="Signal-to-noise ratio in dB: one number, or LOW:HIGH.")] = "0:25",
    energy: Annotated[
        str,
        typer.Option(help="Energy limit, from 0 (least for the deadline) to 1 (full speed): number, LOW:HIGH, none."),
    ] = "-0.1:1.5",
    weighted: Annotated[bool, typer.Option("--weighted", help="Users of different weight.")] = False,
    rewarded: Annotated[bool, typer.Option("--rewarded", help="More accurate models are worth more.")] = False,
    fixed_power: Annotated[bool, typer.Option("--fixed-power", help="Rates concave in bandwidth.")] = False,
    resource_block_khz: Annotated[float | None, typer.Option(help="Whole blocks of this many kHz only.")] = None,
    frequency_levels: Annotated[
        str | None, typer.Option(help="Shares of the highest frequency, with commas between: no others.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Model download by users with deadlines, over measured models."""
    from edgeopt.problems import ModelDownload

    check_writable(output)
    made = ModelDownload.random(
        num_users=users,
        num_models=models,
        bandwidth_hz=1e6 * bandwidth_mhz,
        deadline_s=_range("--deadline", deadline),
        snr_db=_range("--snr-db", snr_db),
        energy=None if energy == "none" else _range("--energy", energy),
        weighted=weighted,
        rewarded=rewarded,
        fixed_power=fixed_power,
        resource_block_hz=None if resource_block_khz is None else 1e3 * resource_block_khz,
        frequency_levels=None if frequency_levels is None else _numbers("--frequency-levels", frequency_levels),
        seed=seed,
    )
    _write(made, output)


@generate_app.command("split-training", cls=ListingCommand)
def generate_split_training(
    output: OutputOption,
    devices: Annotated[int, typer.Option(help="Devices that train.", min=1)] = 20,
    model: Annotated[str, typer.Option(help="Measured model: $profiles.")] = "resnet18",
    layers: Annotated[int | None, typer.Option(help="A made-up model of so many layers instead.", min=1)] = None,
    target_eps: Annotated[
        float | None, typer.Option(help="Mean squared gradient norm to reach; default: some times the least feasible.")
    ] = None,
    heterogeneity: Annotated[float, typer.Option(help="0 makes all devices equal, 1 is a random network.")] = 1.0,
    interval: Annotated[str, typer.Option(help="Rounds between aggregations: one number, or LOW:HIGH.")] = "8",
    max_batch: Annotated[int, typer.Option(help="Largest batch size.", min=1)] = 64,
    seed: SeedOption = 0,
) -> None:
    """Split federated training on a random network, with a measured or a made-up model."""
    from edgeopt.problems import SplitTraining

    check_writable(output)
    made = SplitTraining.random(
        num_devices=devices,
        model=model,
        num_layers=layers,
        target=target_eps,
        heterogeneity=heterogeneity,
        interval=_interval(interval),
        max_batch=max_batch,
        seed=seed,
    )
    _write(made, output)


@generate_app.command("client-selection", cls=ListingCommand)
def generate_client_selection(
    output: OutputOption,
    servers: Annotated[int, typer.Option(help="Servers that pick.", min=1)] = 5,
    clients: Annotated[int, typer.Option(help="Clients to pick from.", min=1)] = 60,
    picks: Annotated[int, typer.Option(help="Clients per server and round.", min=1)] = 4,
    mode: Annotated[
        str, typer.Option(help="What a client does that several servers pick: fail, or share its rate among them.")
    ] = "fail",
    rounds: Annotated[int, typer.Option(help="Horizon.", min=1)] = 100,
    fading: Annotated[float, typer.Option(help="Standard deviation of the logarithm of the rates.")] = 0.3,
    latency_weight: Annotated[float, typer.Option(help="Weight of a round's length in the reward.")] = 1.0,
    conflict_weight: Annotated[float, typer.Option(help="Weight of conflicts in the reward.")] = 1.0,
    fairness_weight: Annotated[float, typer.Option(help="Weight of fairness in the reward.")] = 1.0,
    seed: SeedOption = 0,
) -> None:
    """Client selection by several servers on a random network, with clients that are busy now and then."""
    from edgeopt.problems import ClientSelection

    check_writable(output)
    made = ClientSelection.random(
        num_servers=servers,
        num_clients=clients,
        picks=picks,
        mode=mode,  # type: ignore[arg-type]  # the problem checks it
        rounds=rounds,
        rate_sigma=fading,
        latency_weight=latency_weight,
        conflict_weight=conflict_weight,
        fairness_weight=fairness_weight,
        seed=seed,
    )
    _write(made, output)


@generate_app.command("expert-balancing", cls=ListingCommand)
def generate_expert_balancing(
    output: OutputOption,
    devices: Annotated[int, typer.Option(help="Devices that the experts are spread over.", min=1)] = 8,
    experts: Annotated[int, typer.Option(help="Experts per layer.", min=1)] = 64,
    layers: Annotated[int, typer.Option(help="Layers.", min=1)] = 1,
    slots: Annotated[
        int | None,
        typer.Option(help="Replicas per device and layer; default: room for an eighth more than experts.", min=0),
    ] = None,
    groups: Annotated[
        int,
        typer.Option(help="Groups of devices, such as nodes, and as many of experts, of nearly equal sizes.", min=1),
    ] = 1,
    skew: Annotated[float, typer.Option(help="Standard deviation of the logarithm of the loads.")] = 1.0,
    move_cost: Annotated[float, typer.Option(help="Cost of fetching a replica, of 1e5 tokens per layer.")] = 0.0,
    trace: Annotated[
        str | None, typer.Option(help="Loads of a routing trace instead: a file, or one of $traces.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Replicas of experts on the devices that serve a mixture of experts."""
    from edgeopt.problems import ExpertBalancing

    check_writable(output)
    if trace is not None:
        made = ExpertBalancing.from_trace(load_trace(trace), num_devices=devices, slots=slots)
    else:
        made = ExpertBalancing.random(
            num_devices=devices, num_experts=experts, num_layers=layers, slots=slots, num_groups=groups, skew=skew,
            move_cost=move_cost, seed=seed,
        )  # fmt: skip
    _write(made, output)


def _write(problem: "Problem", output: Path) -> None:
    problem.save(output)
    facts = ", ".join(f"{value} {name}" for name, value in problem.describe().items() if isinstance(value, int))
    print(f"wrote {output}: {problem.kind}, {facts}", file=sys.stderr)


def latency_mode(text: str) -> tuple[Any, float]:
    """Return mode and theta of ``sum``, ``max`` or ``mix:THETA``."""
    mode, colon, theta = text.partition(":")
    try:
        if (mode in ("sum", "max") and not colon) or (mode == "mix" and colon):
            return mode, float(theta) if colon else 0.5
    except ValueError:
        pass
    raise EdgeOptError(f"--latency = {quoted(text)}: expected sum, max or mix:THETA with THETA from 0 to 1")


def load_trace(name: str) -> Any:
    """Return a bundled trace by its name, or that of a file."""
    from edgeopt.problems.expert_caching.routing_trace import BUNDLED_TRACES, RoutingTrace, bundled_trace

    return bundled_trace(name) if name in BUNDLED_TRACES else RoutingTrace.load(name)


def _range(option: str, text: str) -> float | tuple[float, float]:
    """Return a number, or a pair where there is a colon; whether they make sense, the problem says."""
    low, colon, high = text.partition(":")
    try:
        return (float(low), float(high)) if colon else float(low)
    except ValueError:
        raise EdgeOptError(f"{option} = {quoted(text)}: expected a number, or two as LOW:HIGH") from None


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise EdgeOptError(f"{option} = {quoted(text)}: expected numbers with commas between") from None


def _interval(text: str) -> int | tuple[int, int]:
    """Return a whole number, or a pair where there is a colon; whether they make sense, the problem says."""
    low, colon, high = text.partition(":")
    try:
        return (int(low), int(high)) if colon else int(low)
    except ValueError:
        raise EdgeOptError(f"--interval = {quoted(text)}: expected a whole number, or two as LOW:HIGH") from None
