"""Models trained by several clients, downloaded and run layer by layer, for real, under an allocation of bandwidth.

``python -m edgeopt.evaluation.studies.model_download --out out/model-download``

Three models of different size are trained by FedAvg on the digits. Users ask for an accuracy within a deadline and share
a band; every solver decides who is served, with which model, over how much of the band. Then each user that ``slide``
admits gets its model over a real connection of this machine, throttled to its rate, and runs each layer when it is
there. What is measured is put beside what the plan says.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import edgeopt
from edgeopt import EdgeNetwork, RoundPlan, StaticPlanner
from edgeopt.data import digits
from edgeopt.data.partition import dirichlet
from edgeopt.evaluation.studies.common import Row, parser, quiet_threads, write
from edgeopt.inference.streaming import layer_bytes, run_over_loopback
from edgeopt.inference.timeline import LayerTimeline
from edgeopt.models.small import model_for
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.rng import stream
from edgeopt.training import EdgeTiming, FedAvg, Sgd, Task, train

MODELS = (("mlp", 64), ("small-cnn", 16), ("small-cnn", 64))  # name, width
SOLVERS = ("slide", "download-then-infer", "equal-bandwidth", "smallest-model", "random")
SAMPLES = 4096  # that each user runs through its model
RESERVE = 1.5  # planned compute time over the measured one


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model that can be served: its weights are in it; seconds of each layer on this machine; accuracy."""

    name: str
    model: nn.Sequential
    layer_s: NDArray[np.float64]
    accuracy: float


def trained_models(rounds: int, seed: int) -> list[Trained]:
    """Train the models, each by ten clients with uneven data."""
    data = digits()
    partition = dirichlet(data.train.labels, 10, alpha=0.5, seed=seed)
    timing = EdgeTiming.from_network(EdgeNetwork.random(1, 10, seed=seed))
    everybody = RoundPlan(client=np.arange(10, dtype=np.int32), batch_size=np.array(16), local_steps=np.array(5))
    planner = StaticPlanner(everybody)
    found = []
    for name, width in MODELS:
        shape = data.train.inputs.shape[1:]
        model = model_for(name, num_classes=data.train.num_classes, input_shape=shape, width=width, seed=seed)
        task = Task(model=model, train=data.train, partition=partition, test=data.test, seed=seed)
        history = train(task, FedAvg(Sgd(0.1)), planner, timing, rounds=rounds, evaluate_every=rounds)
        model.load_state_dict(history.models[0])
        model.eval()
        seconds = layer_seconds(model, inputs_of(0, seed))
        found.append(Trained(f"{name}-{width}", model, seconds, history.rows[-1]["accuracy"]))
    return found


def inputs_of(user: int, seed: int) -> torch.Tensor:
    """Return the samples that a user runs: draws from the test images."""
    test = digits().test
    rows = stream(seed, "inputs", user).integers(len(test), size=SAMPLES)
    return test.inputs[torch.from_numpy(rows)]


def layer_seconds(model: nn.Sequential, inputs: torch.Tensor, repeats: int = 7) -> NDArray[np.float64]:
    """Return the median seconds of each layer on this machine."""
    seconds = np.zeros((repeats, len(model)))
    with torch.no_grad():
        for repeat in range(repeats):
            value = inputs
            for index, layer in enumerate(model):
                start = time.perf_counter()
                value = layer(value)
                seconds[repeat, index] = time.perf_counter() - start
    return np.asarray(np.median(seconds, axis=0))


def problem_of(models: Sequence[Trained], num_users: int, bandwidth_hz: float, seed: int) -> ModelDownload:
    """Return the problem: users with channels, deadlines and wishes of their own, and the models as they were measured."""
    rng = stream(seed, "users")
    accuracy = np.array([trained.accuracy for trained in models])
    return ModelDownload(
        layer_indptr=np.cumsum([0, *(len(trained.model) for trained in models)]),
        layer_bits=8.0 * np.concatenate([layer_bytes(trained.model) for trained in models]),
        layer_flops=np.array(0.0),  # seconds were measured, so that no frequency enters
        layer_fixed_s=RESERVE * np.concatenate([trained.layer_s for trained in models]),
        model_names=tuple(trained.name for trained in models),
        accuracy=accuracy,
        min_accuracy=rng.choice(accuracy - 1e-9, num_users),
        deadline_s=rng.uniform(0.2, 1.0, num_users),
        samples=np.array(float(SAMPLES)),
        cycles_per_flop=np.array(1.0),
        min_frequency_hz=np.array(1e9),
        max_frequency_hz=np.array(1e9),
        spectral_efficiency=rng.uniform(1.0, 6.0, num_users),
        bandwidth_hz=bandwidth_hz,
    )


def serve(
    problem: ModelDownload, plan: DownloadPlan, models: Sequence[Trained], seed: int
) -> tuple[list[Row], dict[int, LayerTimeline]]:
    """Serve every admitted user for real; return a row for each, and what was measured layer by layer."""
    rows: list[Row] = []
    measured: dict[int, LayerTimeline] = {}
    planned, rate = problem.simulate(plan), problem.rate_bps(plan.bandwidth_hz)
    for user in np.flatnonzero(plan.admitted).tolist():
        trained = models[plan.model[user]]
        shell = without_weights(trained.model)
        inputs = inputs_of(user, seed)
        run = run_over_loopback(trained.model, shell, inputs, rate_bps=float(rate[user]))
        measured[user] = run.timeline
        with torch.no_grad():
            equal = torch.equal(run.output, trained.model(inputs))
        rows.append(
            {
                "user": user,
                "model": trained.name,
                "bandwidth_mhz": float(plan.bandwidth_hz[user]) / 1e6,
                "rate_mbps": float(rate[user]) / 1e6,
                "deadline_s": float(problem.deadline_s[user]),
                "planned_s": float(planned.completion_s[user]),
                "measured_s": run.timeline.total_s,
                "in_time": run.timeline.total_s <= float(problem.deadline_s[user]),
                "equal_output": equal,
            }
        )
    return rows, measured


def without_weights(model: nn.Sequential) -> nn.Sequential:
    """Return a model of the same shape without its weights: what a user has before the download."""
    shell = copy.deepcopy(model)
    with torch.no_grad():
        for value in shell.state_dict().values():
            value.zero_()
    return shell


def main(argv: Sequence[str] | None = None) -> None:
    """Train, decide, serve, and write tables and a picture."""
    arguments = parser(__doc__, argv, options=_options)
    quiet_threads()
    models = trained_models(arguments.rounds, arguments.seed)
    problem = problem_of(models, arguments.users, arguments.mhz * 1e6, arguments.seed)
    results = {name: edgeopt.solve(problem, name, seed=arguments.seed, time_limit=20) for name in SOLVERS}
    plans: dict[str, Any] = {name: result.raise_for_status().solution for name, result in results.items()}
    admitted: list[Row] = [
        {"solver": name, "admitted": plan.num_admitted, "users": problem.num_users, "bound": results[name].bound}
        for name, plan in plans.items()
    ]
    plan = plans["slide"]
    served, measured = serve(problem, plan, models, arguments.seed)
    tables = {"admitted": admitted, "served": served}
    write(arguments, tables, {"model-download-served": lambda: _draw(problem, plan, measured)})


def _options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--users", type=int, default=24, help="users who ask for a model")
    options.add_argument("--mhz", type=float, default=8.0, help="band to share, MHz")
    options.add_argument("--rounds", type=int, default=60, help="rounds of training of each model")
    options.add_argument("--seed", type=int, default=0)


def _draw(problem: ModelDownload, plan: DownloadPlan, measured: dict[int, LayerTimeline]) -> Any:
    from edgeopt.evaluation.plots.download.served_timeline import plot_served_timeline

    return plot_served_timeline(problem, plan, measured)


if __name__ == "__main__":
    main()
