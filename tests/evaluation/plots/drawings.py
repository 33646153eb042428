"""Every picture with any number of names, from small made-up data: what `test_any_number.py` draws."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeopt import EdgeNetwork
from edgeopt.evaluation import plots
from edgeopt.evaluation.benchmarks.held_out_selection import METRICS
from edgeopt.evaluation.compare.rows import Row
from edgeopt.inference.timeline import LayerTimeline
from edgeopt.problems import (
    ClientSelection,
    DownloadPlan,
    ExpertCaching,
    ModelDownload,
    Placement,
    SelectionPlan,
    SplitPlan,
    SplitTraining,
)
from edgeopt.schedule import RoundPlan
from edgeopt.solvers.model_download.rolling_result import RollingResult

Names = Sequence[str]


def short_names(count: int) -> list[str]:
    """Return names as solvers have them."""
    return [f"solver-{i}" for i in range(count)]


def long_names(count: int) -> list[str]:
    """Return names of forty letters."""
    return [f"a solver with many parameters, number {i:>3}" for i in range(count)]


def odd_names(count: int) -> list[str]:
    """Return names with accents, underscores in front, dollars, spaces and lines."""
    return [f"{('_', 'é ', '$x$ ', 'a$', chr(10) + 'b')[i % 5]}{i} _ü" for i in range(count)]


def comparison(names: Names, instances: int = 3, seeds: int = 2) -> list[Row]:
    """Return rows with histories: the further down a name, the worse and the slower."""
    rng, rows = np.random.default_rng(0), []
    for instance in range(instances):
        for seed in range(seeds):
            for place, name in enumerate(names):
                objective = 100.0 - place * rng.uniform(0.5, 1.0) if instance or place else 100.0
                seconds = 0.002 * (1 + place) ** 2
                history = [[seconds / 10, 1, objective - 20, None], [seconds, 2, objective, None]]
                rows.append({
                    "instance": f"instance {instance}", "problem": "expert-caching", "sense": "max", "solver": name,
                    "seed": seed, "status": "feasible", "limit": None, "feasible": True, "objective": objective,
                    "bound": objective + 10.0 if place % 2 else None, "gap": None, "guarantee": "heuristic",
                    "best_known": 100.0, "gap_to_best": 1 - objective / 100, "message": "",
                    "seconds_total": seconds, "seconds_compile": 0.0, "history": history,
                    "facts": {"servers": 10 * (instance + 1)},
                })  # fmt: skip
    return rows


def profile(names: Names) -> Any:
    """Draw gaps to the best."""
    return plots.plot_performance_profile(comparison(names))


def profile_of_times(names: Names) -> Any:
    """Draw multiples of the fastest."""
    return plots.plot_performance_profile(comparison(names), metric="time")


def bounds(names: Names) -> Any:
    """Draw objectives and bounds."""
    return plots.plot_bounds(comparison(names, instances=1))


def gap_against_time(names: Names) -> Any:
    """Draw gaps against seconds."""
    return plots.plot_gap_against_time(comparison(names, instances=1))


def objective_against(names: Names) -> Any:
    """Draw the objective against a fact."""
    return plots.plot_objective_against(comparison(names), "servers")


def heterogeneity(names: Names) -> Any:
    """Draw seconds against the inequality of devices."""
    rows = [
        {"instance": f"{level} {seed}", "solver": name, "feasible": True, "heterogeneity": level,
         "objective": 10.0 + (place * level + seed) / 3}
        for level in (0.0, 1.0, 2.0) for seed in (0, 1) for place, name in enumerate(names)
    ]  # fmt: skip
    return plots.plot_split_heterogeneity(rows, reference=names[0])


def target(names: Names) -> Any:
    """Draw seconds against the target."""
    rows = comparison(names, instances=8)
    for row in rows:
        at = 1.2 ** int(row["instance"].split()[1])
        row["facts"] = {"target": at, "least target, gradient noise": 0.5, "least target, client drift": 0.5}
    return plots.plot_split_target(rows)


def throughput(names: Names) -> Any:
    """Draw tasks done against bandwidth."""
    rows = [
        {"solver": name, "seed": seed, "bandwidth_hz": 1e8 * step, "done": 40 * step - place + seed}
        for step in (1, 2, 3) for seed in (0, 1) for place, name in enumerate(names)
    ]  # fmt: skip
    return plots.plot_download_throughput(rows)


def training_curves(names: Names) -> Any:
    """Draw accuracy against seconds."""
    rounds = np.arange(1, 41)
    return plots.plot_training_curves({
        name: [
            [{"seconds": float(t), "accuracy": float(1 - np.exp(-t / (5 + place + seed))), "round": t} for t in rounds]
            for seed in (0, 1)
        ]
        for place, name in enumerate(names)
    })  # fmt: skip


def _download(count: int, names: Names, models: int = 1) -> ModelDownload:
    return ModelDownload(
        layer_indptr=3 * np.arange(models + 1),
        layer_bits=np.full(3 * models, 4e6),
        layer_flops=np.full(3 * models, 1e8),
        model_names=list(names[:models]),
        deadline_s=np.linspace(13, 30, count),
        cycles_per_flop=np.ones(count),
        min_frequency_hz=np.full(count, 1e8),
        max_frequency_hz=np.full(count, 1e9),
        spectral_efficiency=np.full(count, 4.0),
        bandwidth_hz=1e6 * count,
    )  # fmt: skip


def _plan(count: int, models: int = 1) -> DownloadPlan:
    width = np.linspace(0.5, 1.0, count) * 1e6
    return DownloadPlan(model=np.arange(count) % models, bandwidth_hz=width, frequency_hz=np.full(3 * count, 1e9))


def download_timeline(names: Names) -> Any:
    """Draw one plan for as many users as there are names."""
    return plots.plot_download_timeline(_download(len(names), names), _plan(len(names)))


def download_plans(names: Names) -> Any:
    """Draw as many plans as there are names, for three users."""
    return plots.plot_download_timeline(_download(3, names), dict.fromkeys(names, _plan(3)))


def bandwidth_bars(names: Names) -> Any:
    """Draw the band of as many users, each with a model of its own."""
    count = len(names)
    return plots.plot_bandwidth_bars(_download(count, names, models=count), _plan(count, models=count))


def served_timeline(names: Names) -> Any:
    """Draw what users were served."""
    count = len(names)
    problem, plan = _download(count, names, models=count), _plan(count, models=count)
    steps = np.array([1.0, 2.0, 3.0])
    served = LayerTimeline(
        layer_names=("a", "b", "c"), download_start_s=steps - 1, download_finish_s=steps, start_s=steps, finish_s=steps + 0.5,
    )  # fmt: skip
    return plots.plot_served_timeline(problem, plan, dict.fromkeys(range(count), served))


def rolling(names: Names) -> Any:
    """Draw as many requests, decided by a solver of that name."""
    count = len(names)
    at = np.arange(count, dtype=np.float64)
    nobody = np.full(count, np.nan)
    result = RollingResult(
        solver=names[-1], seed=0, num_solves=count, band_hz=1e6 * count, arrival_s=at, deadline_s=at * 0 + 30,
        start_s=at + 1, downloaded_s=at + 5, finish_s=at + 6, refused_s=nobody, reason=("",) * count, plan=_plan(count),
    )  # fmt: skip
    return plots.plot_rolling(result)


def network(names: Names) -> Any:
    """Draw as many servers, and three times as many devices."""
    return plots.plot_network(EdgeNetwork.random(len(names), 3 * len(names), seed=0))


def placement(names: Names) -> Any:
    """Draw as many servers and experts."""
    count = len(names)
    problem = ExpertCaching.from_facility(np.eye(count), np.eye(count), np.ones(count), np.full(count, 2))
    return plots.plot_placement(problem, Placement(np.eye(count, dtype=bool)))


def inference_latency(names: Names) -> Any:
    """Draw the latency under as many placements."""
    return plots.plot_inference_latency([
        {"solver": name, "predicted_ms": 10.0 + place, "unseen_ms": 10.5 + place, "unseen_error_ms": 0.4, "z": 1.2,
         "device": 0.0, "own server": 0.5, "other server": 0.3, "cloud": 0.2}
        for place, name in enumerate(names)
    ])  # fmt: skip


def _selection(clients: int, servers: int, rounds: int) -> tuple[ClientSelection, SelectionPlan]:
    problem = ClientSelection(
        coverage=np.ones((servers, clients), bool), picks=1, compute_s=1.0, payload_bits=1e6, rate_bps=1e6, timeout_s=4.0,
        rounds=rounds,
    )  # fmt: skip
    picks = (np.arange(rounds)[:, None, None] * servers + np.arange(servers)[None, :, None]) % clients
    return problem, SelectionPlan(picks)


def selection_rounds(names: Names) -> Any:
    """Draw as many clients, and up to seven servers, over as many rounds."""
    return plots.plot_selection_rounds(*_selection(len(names), min(7, len(names)), len(names)))


def selection_heat(names: Names) -> Any:
    """Draw as many servers over so many rounds that a heat map remains."""
    return plots.plot_selection_rounds(*_selection(200, len(names), 20))


def selection_fairness(names: Names) -> Any:
    """Draw the deliveries under as many plans."""
    problem, _ = _selection(40, 2, 60)
    rng = np.random.default_rng(0)
    plans = {
        name: SelectionPlan(np.minimum(39, rng.geometric(0.02 * (1 + place), (60, 2, 1))) % 40)
        for place, name in enumerate(names)
    }
    return plots.plot_selection_fairness(problem, plans)


def selection_deliveries(names: Names) -> Any:
    """Draw the deliveries of as many clients."""
    return plots.plot_selection_fairness(*_selection(len(names), 1, 2 * len(names) + 1))


def forecast_calibration(names: Names) -> Any:
    """Draw as many forecasts."""
    rng = np.random.default_rng(0)
    chance = rng.random(300)
    return plots.plot_forecast_calibration({
        name: (chance / (1 + place / 30), rng.random(300) < chance) for place, name in enumerate(names)
    })  # fmt: skip


def selection_frontier(names: Names) -> Any:
    """Draw half of the solvers with several weights of fairness, and half with one."""
    rows = []
    for place, name in enumerate(names):
        for weight in (0.0, 0.5, 1.0) if place % 2 == 0 else (0.5,):
            for seed in (0, 1):
                row = dict.fromkeys(METRICS, 0.5)
                jain, conflicts = 0.5 + 0.4 * weight * (1 - place / 60), 0.02 * place + 0.1 * weight
                rows.append(row | {"solver": name, "fairness_weight": weight, "seed": seed, "jain_index": jain,
                                   "conflict_rate": conflicts})  # fmt: skip
    return plots.plot_selection_frontier(rows)


def selection_training(names: Names) -> Any:
    """Draw how as many learners get better."""
    from edgeopt.solvers.client_selection.learner import Iteration

    rng = np.random.default_rng(0)
    return plots.plot_selection_training({
        name: [Iteration(i, 1 - np.exp(-i / (9 + place)) + 0.05 * rng.random(), 0.2) for i in range(1, 61)]
        for place, name in enumerate(names)
    })  # fmt: skip


def _split(count: int) -> tuple[SplitTraining, SplitPlan]:
    problem = SplitTraining.random(num_devices=count, model="resnet18", seed=1)
    return problem, SplitPlan(
        batch_size=1 + np.arange(count) % 9, cut_layer=1 + np.arange(count) % 9, aggregation_interval=3
    )


def split_latency(names: Names) -> Any:
    """Draw a round of as many devices."""
    return plots.plot_split_latency(*_split(len(names)))


def split_decisions(names: Names) -> Any:
    """Draw batch sizes and cuts of as many devices."""
    return plots.plot_split_decisions(*_split(len(names)))


def split_descent(names: Names) -> Any:
    """Draw as many descents."""
    return plots.plot_split_descent({i + 1: 10.0 + 30.0 * 0.5 ** np.arange(i % 5 + 2) for i in range(len(names))})


def data_partition(names: Names) -> Any:
    """Draw as many clients and labels."""
    from edgeopt.data.partition import dirichlet

    labels = np.random.default_rng(1).integers(0, len(names), 900)
    return plots.plot_data_partition(dirichlet(labels, len(names), 0.3), labels)


def round_timeline(names: Names) -> Any:
    """Draw a round of as many clients, and a server."""
    from edgeopt.training import RoundRecord
    from edgeopt.training.costs.timing import PhaseTime

    count = len(names)
    down, compute, up = np.ones(count), 2.0 + np.arange(count) / 5, np.ones(count)
    phase = PhaseTime(
        name="train", start_s=0.0, seconds=float(compute.max() + 2.0 + 0.1 * count), entry=np.arange(count), down_s=down,
        compute_s=compute, up_s=up, served=np.arange(count), server_s=np.full(count, 0.1), energy_j=np.zeros(count),
    )  # fmt: skip
    return plots.plot_round_timeline(
        RoundRecord(
            number=1, phases=(phase,), row={}, plan=RoundPlan(client=range(count)), completed=np.ones(count, bool),
            conflict=np.zeros(count, bool),
        )
    )  # fmt: skip


def uncertainty(names: Names) -> Any:
    """Draw as many modalities, and bursts."""
    rng = np.random.default_rng(0)
    signals, log_u = rng.normal(size=(2, len(names), 20))
    return plots.plot_uncertainty(list(names), signals, log_u, log_u > 1)


def modality_weights(names: Names) -> Any:
    """Draw as many weights."""
    weights = np.random.default_rng(0).dirichlet(np.ones(len(names)), 20)
    return plots.plot_modality_weights({name: weights[:, m] for m, name in enumerate(names)})


def reliability(names: Names) -> Any:
    """Draw as many lines."""
    mean = np.linspace(0.05, 0.95, 10)
    return plots.plot_reliability(
        {name: np.stack([mean, mean ** (1 + m / 9), np.full(10, 0.1)], 1) for m, name in enumerate(names)}
    )


NAMED: tuple[Callable[[Names], Any], ...] = (
    profile, profile_of_times, bounds, gap_against_time, objective_against, heterogeneity, target, throughput,
    training_curves, download_plans, bandwidth_bars, served_timeline, rolling, inference_latency, selection_fairness,
    forecast_calibration, selection_frontier, selection_training, modality_weights, reliability,
)  # fmt: skip
"""Pictures that show the names."""

COUNTED: tuple[Callable[[Names], Any], ...] = (
    download_timeline, network, placement, selection_rounds, selection_heat, selection_deliveries, split_latency,
    split_decisions, split_descent, data_partition, round_timeline, uncertainty,
)  # fmt: skip
"""Pictures of as many things as there are names."""
