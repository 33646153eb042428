"""Experiments: plain values in and out, everything built from one network, every mistake named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt import Schedule, StaticPlanner
from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError
from edgeopt.experiment import Choice, Experiment
from edgeopt.problems import ClientSelection, CostFactors, SplitPlan, SplitTraining
from edgeopt.schedule import RoundPlan
from edgeopt.solvers.split_training.cut_planner import CutPlanner
from edgeopt.training import ALGORITHMS, CODECS, Compressed, ParallelSplit, TopK
from edgeopt.training.runners.local import LocalRunner

SMALL: dict[str, Any] = {"rounds": 2, "data": {"clients": 4}, "model": {"name": "mlp", "width": 8}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(**changes: Any) -> Experiment:
    return Experiment.from_dict(SMALL | changes)


TOML = """
rounds = 7
until_accuracy = 1
[algorithm]
name = "fedprox"
mu = 0.5
optimizer = { name = "adam", lr = 0.01 }
[data]
name = "text"
folder = "texts"
context = 16
[network]
servers = 2
seed = 3
device_flops = [1e9, 2e9]
[problem]
target = 0.5
[planner]
name = "schedule"
file = "plans.npz"
"""


# --- plain values ------------------------------------------------------------------------------------------------


def test_from_toml(tmp_path: Path):
    """Tables become choices, what a table does not know becomes an option, whole numbers become floats where needed."""
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    found = Experiment.from_toml(path)
    assert (found.rounds, found.until_accuracy, type(found.until_accuracy)) == (7, 1.0, float)
    assert found.algorithm == Choice("fedprox", {"mu": 0.5, "optimizer": {"name": "adam", "lr": 0.01}})
    assert (found.network.servers, found.network.seed) == (2, 3)
    assert found.network.options == {"device_flops": [1e9, 2e9]}
    assert found.problem == {"target": 0.5}


def test_paths_are_relative_to_the_file(tmp_path: Path):
    """Folders and files in a configuration are beside it, wherever the process runs."""
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    found = Experiment.load(path)
    assert found.data.folder == str(tmp_path / "texts")
    assert found.planner.options["file"] == str(tmp_path / "plans.npz")


def test_round_trip(tmp_path: Path):
    """Dictionaries, JSON files and TOML files give the experiment back; the copy is deep."""
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    experiment = Experiment.from_toml(path)
    values = json.loads(json.dumps(experiment.to_dict()))
    assert Experiment.from_dict(values) == experiment
    experiment.save(tmp_path / "run.json")
    assert Experiment.load(tmp_path / "run.json") == experiment
    experiment.to_dict()["algorithm"]["optimizer"]["lr"] = 99
    assert experiment.algorithm.options["optimizer"]["lr"] == 0.01


def test_saved_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A saved experiment finds its files from every folder."""
    monkeypatch.chdir(tmp_path)
    experiment = small(data={"name": "text", "folder": "texts"})
    (tmp_path / "out").mkdir()
    experiment.save(tmp_path / "out" / "run.json")
    assert Experiment.load("out/run.json").data.folder == str(tmp_path / "texts")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds = 0", "run.toml: rounds = 0: expected a whole number >= 1"),
        ("rounds = 2.5", "run.toml: rounds = 2.5: expected a whole number"),
        ("rounds = true", "run.toml: rounds = True: expected a whole number"),
        ("round = 5", "run.toml: round = 5: unknown; did you mean 'rounds'?"),
        ("data = 5", "run.toml: data = 5: expected a table [data]"),
        ('[data]\nalpha = "x"', "run.toml: [data] alpha = 'x': expected a number"),
        ("[data]\nalfa = 1", "run.toml: [data] alfa = 1: unknown; did you mean 'alpha'?"),
        ('[data]\npartition = "fair"', "run.toml: [data] partition = 'fair': expected one of iid, dirichlet"),
        ("[data]\nclients = 0", "run.toml: [data] clients = 0: expected"),
        ('[algorithm]\nmu = 1', "run.toml: [algorithm] name: expected a value, got nothing"),
        ("codec = 5", "run.toml: codec = 5: expected a table [codec]"),
        ("[codec]\nbits = 4", "run.toml: [codec] name: expected a value, got nothing"),
        ('[network]\nkind = "x"', "run.toml: [network] kind = 'x': expected one of split-training"),
        ("[problem]\ntarget = inf", "run.toml: [problem] target = inf: expected a finite number"),
        ("[problem]\nday = 2000-01-01", "run.toml: [problem] day = datetime.date"),
        ('precision = "int4"', "run.toml: precision = 'int4': expected 'fp32' or 'bf16'"),
        ("rounds = ", "run.toml: not valid TOML"),
        ('source = "x"', "run.toml: source = 'x': unknown"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file(text: str, message: str, tmp_path: Path):
    """File, table, key, value and what was expected are named."""
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InvalidFileError) as caught:
        Experiment.from_toml(path)
    assert message in str(caught.value)


def test_large_files_are_refused(tmp_path: Path):
    """A configuration of megabytes is none."""
    path = tmp_path / "run.toml"
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(InvalidFileError, match="expected at most"):
        Experiment.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"name": "fedavgg"}}, "[algorithm] name = 'fedavgg': did you mean 'fedavg'?"),
        ({"algorithm": {"name": "fedavg", "mu": 1}}, "[algorithm] mu = 1: unknown"),
        ({"algorithm": {"name": "fedavg", "batch_size": 2.0}}, "[algorithm] batch_size = 2.0: expected a whole number"),
        ({"algorithm": {"name": "fedavg", "batch_size": 0}}, "[algorithm] batch_size = 0: expected"),
        ({"algorithm": {"name": "fedavg", "optimizer": 3}}, "[algorithm] optimizer = 3: expected a table"),
        ({"algorithm": {"name": "fedavg", "optimizer": {"name": "sdg"}}}, "[algorithm.optimizer] name = 'sdg'"),
        ({"algorithm": {"name": "fedavg", "optimizer": {"lr": -1}}}, "[algorithm.optimizer] lr = -1.0: expected"),
        ({"algorithm": {"name": "fedavg", "optimizer": {"rl": 1}}}, "[algorithm.optimizer] rl = 1: unknown"),
        ({"codec": {"name": "top-k"}}, "[algorithm] name = 'fedavg': expected with a codec one that has cuts: vanilla-split"),
        ({"algorithm": {"name": "psl"}, "codec": {"name": "topk"}}, "[codec] name = 'topk': did you mean 'top-k'?"),
        ({"algorithm": {"name": "psl"}, "codec": {"name": "top-k", "k": 3}}, "[codec] k = 3: unknown"),
        ({"algorithm": {"name": "psl"}, "codec": {"name": "top-k", "share": 2}}, "[codec] share = 2.0: expected above 0"),
        (
            {"algorithm": {"name": "psl"}, "codec": {"name": "identity", "report_errors": 1}},
            "[codec] report_errors = 1: expected true or false",
        ),
        ({"data": {"name": "digit"}}, "[data] name = 'digit': did you mean 'digits'?"),
        ({"data": {"folder": "x"}}, "[data] digits: comes with the package"),
        ({"data": {"context": 8}}, "[data] context = 8: digits has none"),
        ({"data": {"clients": 5000}}, "[data] num_clients = 5000"),
        ({"data": {"partition": "column"}}, "[data] partition = 'column'"),
        ({"model": {"name": "cnn"}}, "[model] name = 'cnn'"),
        ({"model": {"name": "small-vgg"}}, "[model] input_shape"),
        ({"model": {"name": "mlp", "depth": 3}}, "[model] depth = 3: unknown; "),
        ({"network": {"area": 3}}, "[network] area = 3: unknown; did you mean 'area_m'?"),
        ({"network": {"fading": 1}}, "[network] fading = 1: expected true or false"),
        ({"network": {"area_m": -1.0}}, "[network] area_m = -1.0: expected"),
        ({"network": {"failure_probability": 2.0}}, "[network] failure_probability = 2.0"),
        ({"network": {"servers": 3}}, "[network] server = 0: device"),
        ({"network": {"devices": 3}}, "[network] devices = 3: expected shares by name, such as { jetson"),
        ({"network": {"devices": {"x": 1}}}, "[network] no device 'x': expected one of jetson-nano"),
        ({"network": {"devices": {"l4": "x"}}}, "[network] share of l4 = 'x'"),
        ({"network": {"utilisation": 0.5}}, "[network] utilisation = 0.5: expected devices or a device_table"),
        ({"network": {"utilisation": "x"}}, "[network] utilisation = 'x': expected a number"),
        ({"planner": {"name": "hasf"}}, "[planner] name = 'hasf': did you mean 'hasfl'?"),
        ({"planner": {"name": "fixed", "batch": 3}}, "[planner] batch = 3: unknown; did you mean 'batch_size'?"),
        ({"planner": {"name": "fixed", "local_steps": 0}}, "[planner] local_steps[0] = 0: expected"),
        ({"planner": {"name": "fixed", "rank": [1, 2]}}, "[planner] rank = [1, 2]: expected one number, or one for each of "),
        ({"planner": {"name": "random", "interval": 0}}, "[planner] interval = 0: expected"),
        ({"planner": {"name": "schedule"}}, "[planner] file: expected a saved schedule"),
        ({"planner": {"name": "hasfl", "every": 0}}, "[planner] every = 0: expected"),
        ({"planner": {"name": "cuts", "kappa": 2.0}}, "[planner] kappa = 2.0: expected a number from 0 to 1"),
        ({"planner": {"name": "cuts", "kapa": 0.5}}, "[planner] kapa = 0.5: unknown; did you mean 'kappa'?"),
        ({"planner": {"name": "exact"}, "problem": {"targt": 1.0}}, "[problem] targt = 1.0: unknown; did you mean"),
        ({"planner": {"name": "exact"}, "problem": {"target": -1.0}}, "[problem] target = -1.0: expected a positive"),
        ({"planner": {"name": "exact"}, "problem": {"measure": 1}}, "[problem] measure = 1: expected true or false"),
        ({"device": "gpu"}, "device = 'gpu': expected cpu, cuda"),
        ({"device": "cpu:0"}, "device = 'cpu:0': expected"),
    ],
)  # fmt: skip
def test_mistakes_that_show_when_it_is_built(changes: dict[str, Any], message: str):
    """Names, options and values that do not fit are one error that names the table."""
    with pytest.raises(EdgeOptError) as caught:
        small(**changes).build()
    assert str(caught.value).startswith(message)


def test_training_does_not_need_solvers():
    """`edgeopt.training` loads no solver; `edgeopt.experiment` loads neither torch nor solvers before it builds."""
    code = (
        "import sys, edgeopt.experiment; assert 'torch' not in sys.modules; "
        "assert 'edgeopt.solvers' not in sys.modules; import edgeopt.training; "
        "assert not [name for name in sys.modules if name.startswith('edgeopt.solvers')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is built -------------------------------------------------------------------------------------------------


def test_same_values_same_run():
    """Two builds of the same values train to the same rows."""
    first, second = (small(planner={"name": "random"}).run() for _ in range(2))
    assert str(first.rows) == str(second.rows)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_partitions(kind: str):
    """Every kind gives as many clients as asked."""
    partition = small(data={"clients": 6, "partition": kind}).build().task.partition
    assert partition.num_clients == 6
    assert partition.sizes.min() >= 1


def test_optimizer_options_arrive():
    """The table of the optimiser becomes the optimiser."""
    algorithm: Any = small(algorithm={"name": "fedavg", "optimizer": {"name": "adam", "lr": 1}}).build().algorithm
    assert (type(algorithm.optimizer).__name__, algorithm.optimizer.lr) == ("Adam", 1.0)


@pytest.mark.parametrize("codec", CODECS, ids=lambda kind: kind.name)
def test_codecs_are_found_by_their_names(codec: Any):
    """Every registered codec comes around the algorithm, with its options, and goes through files."""
    values = {"name": codec.name, "report_errors": True} | ({"share": 0.5} if codec is TopK else {})
    experiment = small(algorithm={"name": "psl"}, codec=values)
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment
    algorithm = experiment.build().algorithm
    assert algorithm == Compressed(ParallelSplit(), TopK(0.5) if codec is TopK else codec(), report_errors=True)


def test_a_run_is_not_continued_with_another_codec(tmp_path: Path):
    """The codec and its options are part of what a checkpoint belongs to."""
    file = tmp_path / "run"
    small(algorithm={"name": "psl"}, codec={"name": "top-k"}).run(checkpoint=file)
    for codec in ({"name": "quantise"}, {"name": "top-k", "share": 0.2}):
        with pytest.raises(InvalidFileError, match=r"algorithm = .*this run has"):
            small(algorithm={"name": "psl"}, codec=codec).run(checkpoint=file, resume=True)


def test_fixed_planner():
    """The plan is the options, with aggregation after every interval."""
    options = {"batch_size": 4, "cut_layer": 1, "local_steps": 3, "interval": 2}
    planner = small(planner={"name": "fixed", **options}).build().planner
    plan = planner.plan(0, None)
    assert [(entry.batch_size, entry.cut_layer, entry.local_steps) for entry in plan] == [(4, 1, 3)] * 4
    assert [planner.plan(number, None).aggregate for number in range(4)] == [False, True, False, True]


def test_random_planner_depends_on_the_round_alone():
    """Batches and cuts are in range, stay within an aggregation interval, change after it, and do not depend on history."""

    def build() -> Any:
        return small(planner={"name": "random", "interval": 2, "max_batch": 7}).build().planner

    planner = build()
    plans = [planner.plan(number, None) for number in range(6)]
    assert build().plan(5, None) == plans[5]
    assert np.array_equal(plans[0].batch_size, plans[1].batch_size)
    assert not all(np.array_equal(plans[0].batch_size, plan.batch_size) for plan in plans)
    assert 1 <= min(plan.batch_size.min() for plan in plans) <= max(plan.batch_size.max() for plan in plans) <= 7
    assert all((plan.cut_layer == 1).all() for plan in plans)  # two layers: one place to cut


def test_schedule_planner(tmp_path: Path):
    """A saved schedule is played."""
    plans = [RoundPlan(client=[0, 1]), RoundPlan(client=[2], batch_size=3)]
    Schedule(plans).save(tmp_path / "plans.npz")
    history = small(planner={"name": "schedule", "file": str(tmp_path / "plans.npz")}).run()
    assert [row["planned"] for row in history.rows] == [2, 1]


def test_solver_is_solved_once_and_repeated():
    """A split-training solver's plan is feasible for the problem that is built, and played in every round."""
    setup = small(planner={"name": "cut-only", "batch": 8}).build()
    assert isinstance(setup.problem, SplitTraining)
    assert isinstance(setup.planner, StaticPlanner)
    assert setup.problem.num_layers == setup.task.num_layers
    assert (setup.problem.max_batch <= setup.task.partition.sizes).all()
    assert setup.planner.plan(0).batch_size.max() <= setup.problem.max_batch.max()


def test_cuts_are_weighed_by_name():
    """The planner `cuts` is a `CutPlanner` on the experiment's own problem, with the options that are given."""
    options = {"kappa": 0.0, "accuracy": [0.9], "cuts": [1], "batch_size": 3, "local_steps": 2}
    setup = small(planner={"name": "cuts", **options}, problem={"measure": False}).build()
    assert isinstance(setup.planner, CutPlanner)
    assert setup.planner.problem is setup.problem
    plan = setup.planner.plan(0)
    assert set(plan.cut_layer) == {1}
    assert set(plan.batch_size) == {3}
    assert set(plan.local_steps) == {2}


def test_constants_are_measured_unless_told_otherwise():
    """With `measure` the variance is the network's own; given values count in any case."""
    measured = small(planner={"name": "fixed"} | {"name": "cut-only"}, problem={"smoothness": 3.0}).build().problem
    chosen = small(planner={"name": "cut-only"}, problem={"measure": False}).build().problem
    assert isinstance(measured, SplitTraining)
    assert isinstance(chosen, SplitTraining)
    assert measured.smoothness == 3.0
    assert chosen.gradient_variance.sum() == pytest.approx(1e5)
    assert 0 < measured.gradient_variance.sum() < 1e4
    assert measured.step_size == 0.1  # that of the optimiser


def test_hasfl_plans_again_with_measured_constants():
    """The planner's problem changes while the model trains, and the estimator is there for it."""
    setup = small(planner={"name": "hasfl", "every": 1}, rounds=3).build()
    assert setup.estimator is not None
    before = setup.problem
    setup.train()
    planner: Any = setup.planner
    assert isinstance(before, SplitTraining)
    assert not np.array_equal(planner.problem.gradient_variance, before.gradient_variance)


def test_network_and_timing_are_one():
    """Problem and timing have the same speeds and rates."""
    setup = small(planner={"name": "cut-only"}, network={"device_flops": [1e9, 2e9], "rate_sigma": 0.5}).build()
    problem, timing = setup.problem, setup.timing
    assert isinstance(problem, SplitTraining)
    for name in ("device_flops", "uplink_bps", "fed_downlink_bps", "server_flops"):
        assert np.array_equal(getattr(problem, name), getattr(timing, name))
    assert ((problem.device_flops >= 1e9) & (problem.device_flops <= 2e9)).all()
    assert getattr(timing, "rate_sigma") == 0.5  # noqa: B009 - of the protocol only this timing has it


def test_devices_of_known_kinds(tmp_path: Path):
    """Clients are devices of the table that comes with the package, or of one's own, by shares."""
    slow = small(network={"devices": {"jetson-nano": 1, "l4": 0}, "utilisation": 0.5}).build()
    assert set(getattr(slow.timing, "device_flops")) == {236e9}  # noqa: B009 - of the protocol only this timing has it
    path = tmp_path / "phones.csv"
    path.write_text("name,flops,memory_bytes,memory_bytes_per_s,power_w\na,1e9,1e9,1e9,1\nb,2e9,1e9,1e9,1\n")
    toml = tmp_path / "run.toml"
    toml.write_text('[network]\ndevice_table = "phones.csv"\n')
    loaded = Experiment.load(toml)
    assert loaded.network.device_table == str(path)
    assert Experiment.from_dict(loaded.to_dict()) == loaded
    both = small(network={"device_table": str(path)}).build()
    assert set(getattr(both.timing, "device_flops")) == {1e9, 2e9}  # noqa: B009
    mixed = small(network={"device_table": str(path), "devices": {"a": 1, "l4": 1}}).build()
    assert set(getattr(mixed.timing, "device_flops")) == {1e9, 121e12}  # noqa: B009


def test_saved_split_problem(tmp_path: Path):
    """A saved problem gives clients, network and work; it is solved as it is."""
    built = small(planner={"name": "cut-only"}).build().problem
    assert isinstance(built, SplitTraining)
    doubled = built.replace(forward_flops=2 * built.forward_flops)
    doubled.save(tmp_path / "problem.npz")
    values = {
        "model": SMALL["model"],
        "planner": {"name": "cut-only"},
        "network": {"file": str(tmp_path / "problem.npz")},
    }
    setup = Experiment.from_dict(values).build()
    assert setup.problem == doubled
    assert setup.task.num_clients == 4
    assert np.array_equal(setup.task.profile.forward_flops, doubled.forward_flops)
    for changes, message in (
        ({"data": {"clients": 5}}, r"\[data\] clients = 5: expected 4"),
        ({"model": {"name": "small-cnn"}}, "the 3 layers of small-cnn, it has 2"),
        ({"network": values["network"] | {"area_m": 5.0}}, "area_m = 5.0: unknown"),
        ({"network": values["network"] | {"kind": "client-selection"}}, "kind = 'client-selection': expected 'split"),
    ):
        with pytest.raises(InvalidProblemError, match=message):
            Experiment.from_dict(values | changes).build()


def test_problem_of_another_kind(tmp_path: Path):
    """A caching problem is no network to train on."""
    from edgeopt.problems import ExpertCaching

    ExpertCaching.random(num_servers=2, num_users=3, seed=0).save(tmp_path / "c.npz")
    with pytest.raises(InvalidProblemError, match="expected a split-training or client-selection problem"):
        small(network={"file": str(tmp_path / "c.npz")}).build()


SELECTION: dict[str, Any] = SMALL | {"data": {"clients": 8}, "network": {"servers": 2}, "rounds": 3}


@pytest.mark.parametrize("name", ["random", "fastest", "client-selection/round-robin", "matching"])
def test_selection_planners(name: str):
    """Servers pick as many clients as the problem says, with the work that the planner says, and time is the problem's."""
    values = SELECTION | {"algorithm": {"name": "multi-server-fedavg"}, "planner": {"name": name, "local_steps": 2}}
    setup = Experiment.from_dict(values).build()
    assert isinstance(setup.problem, ClientSelection)
    assert (setup.problem.rounds, setup.problem.num_servers) == (3, 2)
    plans = []
    history = setup.train(on_round=lambda record: plans.append(record.plan))
    assert all((plan.local_steps == 2).all() for plan in plans)
    assert [len(plan) for plan in plans] == [setup.problem.picks.sum()] * 3
    assert 0 < history.rows[-1]["round_seconds"] <= setup.problem.timeout_s


@pytest.mark.parametrize("name", ["splitfed-v1", "psl"])
def test_client_selection_is_not_for_split_models(name: str):
    """Split learning under client selection is refused before a policy is trained."""
    whole = ", ".join(kind.name for kind in ALGORITHMS if not hasattr(kind(), "cut_layer"))
    with pytest.raises(InvalidProblemError, match=rf"^\[algorithm\] name = .* one of {whole}$"):
        Experiment.from_dict(SMALL | {"algorithm": {"name": name}, "planner": {"name": "rl-crp"}}).build()


def test_the_fixed_planner_does_not_pick_clients():
    """Among several servers, the default planner is refused with the names of those that pick."""
    with pytest.raises(
        InvalidProblemError, match=r"^\[planner\] name = 'fixed': expected one that .*: schedule, rl-crp,"
    ):
        Experiment.from_dict(SELECTION | {"algorithm": {"name": "multi-server-fedavg"}}).build()


@pytest.mark.parametrize("name", ["hasfl", "split-training/exact", "fixd"])
def test_split_planners_do_not_pick_clients(name: str):
    """Among several servers only planners that pick are known."""
    values = SELECTION | {"algorithm": {"name": "multi-server-fedavg"}, "planner": {"name": name}}
    with pytest.raises(InvalidFileError, match=r"\[planner\] name = "):
        Experiment.from_dict(values).build()


def test_learnt_policy_does_not_depend_on_the_number_of_rounds():
    """A run that is resumed for more rounds gets the same policies: the plans of the first rounds agree."""

    def plans(rounds: int) -> list[RoundPlan]:
        planner = {"name": "rl-no-crp", "iterations": 1, "episodes": 1, "hidden": 4}
        values = SELECTION | {"algorithm": {"name": "multi-server-fedavg"}, "planner": planner, "rounds": rounds}
        found: list[RoundPlan] = []
        Experiment.from_dict(values).build().train(on_round=lambda record: found.append(record.plan))
        return found

    assert plans(4)[:2] == plans(2)


def test_saved_selection_problem(tmp_path: Path):
    """A saved client-selection problem is the one that the timing charges, also for a fixed plan."""
    problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=4, seed=1)
    problem.save(tmp_path / "selection.json")
    values = {"model": SMALL["model"], "rounds": 4, "network": {"file": str(tmp_path / "selection.json")}}
    setup = Experiment.from_dict(
        values | {"algorithm": {"name": "multi-server-fedavg"}, "planner": {"name": "fastest"}}
    ).build()
    assert setup.problem == problem
    assert getattr(setup.algorithm, "num_servers") == 2  # noqa: B009


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", ["splitfed-v1", "psl", "ho-sfl", "zo-sfl"])
def test_virtual_time_is_the_problems(name: str, saved: bool, tmp_path: Path):
    """A round under a solver's plan takes what the problem that the solver was given says, with the algorithm's costs."""
    values = SMALL | {
        "model": {"name": "small-cnn", "width": 4},
        "algorithm": {"name": name},
        "planner": {"name": "split-training/fixed", "batch": 6, "cut": 2},
        "problem": {"interval": 2},
    }
    if saved:
        plain = Experiment.from_dict(values | {"algorithm": {"name": "splitfed-v1"}}).build().problem
        assert isinstance(plain, SplitTraining)
        plain.save(tmp_path / "problem.npz")
        del values["problem"]
        values |= {"network": {"file": str(tmp_path / "problem.npz")}}
    setup = Experiment.from_dict(values).build()
    assert isinstance(setup.problem, SplitTraining)
    assert setup.problem.factors == getattr(setup.algorithm, "cost_factors", CostFactors())
    first = setup.planner.plan(0, None)
    assert first.cut_layer.tolist() == [2] * 4
    plan = SplitPlan(batch_size=first.batch_size, cut_layer=first.cut_layer, aggregation_interval=2)
    report = setup.problem.report(plan)
    history = setup.train(runner=LocalRunner(batched=False))
    wanted = [report.round_s, report.round_s + report.aggregation_s]
    assert history.column("round_seconds") == pytest.approx(wanted, rel=1e-12)
