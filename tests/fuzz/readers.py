"""All that reads a file of others: how to write a valid one, and how to read it and use what came out.

A new reader is covered by one line in `READERS`. The suffix of its name says how its files are spoilt.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

import edgeopt
from edgeopt import storage
from edgeopt.cli.train import configured
from edgeopt.data import byte_text, cifar10, mnist
from edgeopt.device_profiles import assign_devices, read_device_profiles
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.compare.performance import summarise
from edgeopt.evaluation.compare.rows import RowStore, add_gaps, read_row, read_rows, rows_frame
from edgeopt.evaluation.compare.solutions import read_solution
from edgeopt.evaluation.instances import library, load_instance
from edgeopt.evaluation.studies import Evidence, Level, run_study
from edgeopt.evaluation.studies.publish import verdict_document
from edgeopt.evaluation.studies.stored import read_verdicts
from edgeopt.evaluation.studies.study import check_row
from edgeopt.experiment import Experiment
from edgeopt.inference.routing import RoutingRecord
from edgeopt.models import add_lora, from_transformers, to_transformers
from edgeopt.network import EdgeNetwork
from edgeopt.problems import (
    ClientSelection,
    CostFactors,
    ExpertBalancing,
    ExpertCaching,
    ExpertTensors,
    ModelDownload,
    RoutingTrace,
    SplitTraining,
    placement_document,
    read_placement,
    tensor_list,
)
from edgeopt.profile import ModelProfile, model_profile
from edgeopt.schedule import Schedule
from edgeopt.solvers.client_selection import RlCrp
from edgeopt.solvers.client_selection.learner import Learner, LearnerSettings
from edgeopt.solvers.client_selection.trained_policy import TrainedPolicy
from edgeopt.storage import dumps
from edgeopt.training import Adam, FedAvg, SplitFed, train
from edgeopt.training.constants import GradientEstimator
from tests.data.test_data import write_cifar, write_mnist
from tests.evaluation.studies import toy
from tests.models.stand_in import StandIn
from tests.training.small_tasks import small_plan, small_task, small_timing


class Reader(NamedTuple):
    """Something that reads a file.

    Parameters
    ----------
    name : of the reader; ends as the file does.
    write : writes a valid file to a path, and beside it what else the reader needs.
    read : reads the file and does with it what the command line would do.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


# --- problems and their solutions --------------------------------------------------------------------------------


@cache
def problem(kind: type[Any]) -> Any:
    sizes: dict[type[Any], dict[str, Any]] = {
        ExpertCaching: {"num_servers": 2, "num_users": 3, "num_layers": 2, "experts_per_layer": 3, "top_k": 2},
        ModelDownload: {"num_users": 3, "num_models": 3},
        SplitTraining: {"num_devices": 3, "num_layers": 3, "interval": 2},
        ClientSelection: {"num_servers": 2, "num_clients": 4, "picks": 1, "rounds": 3},
        ExpertBalancing: {"num_devices": 2, "num_experts": 4, "num_groups": 2, "move_cost": 1.0},
    }
    made = kind.random(**sizes[kind], seed=1)
    return made.replace(factors=CostFactors(device_probes=2, kept=0)) if kind is SplitTraining else made


def describe(path: Path) -> None:
    found = edgeopt.load(path)
    found.describe(), found.fingerprint(), repr(found)
    assert edgeopt.problems.load(path) == found


SOLVERS = {
    ExpertCaching: "greedy",
    ModelDownload: "equal-bandwidth",
    SplitTraining: "fixed",
    ClientSelection: "fastest",
    ExpertBalancing: "eplb",
}


@cache
def result(kind: type[Any]) -> Any:
    return edgeopt.solve(problem(kind), SOLVERS[kind], seed=0)


def use_solution(kind: type[Any]) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        found = read_solution(problem(kind), path)
        problem(kind).objective(found), problem(kind).violations(found)

    return read


# --- rows --------------------------------------------------------------------------------------------------------


def write_row(path: Path) -> None:
    from edgeopt.evaluation.compare import comparison_rows

    out = path.parent / "out"
    comparison_rows({"tiny": problem(SplitTraining)}, ["fixed"], (0,), 5.0, out=out, executor="serial")
    (row,) = (out / "rows").glob("*.json")
    row.rename(path)


def use_rows(path: Path) -> None:
    RowStore(path.parent).get(path.stem)
    rows = add_gaps(read_rows(path.parent))
    assert len(rows) <= 1
    rows_frame(rows), summarise(rows)
    read_row(path)


def write_study_row(path: Path) -> None:
    _study(path.parent / "out")
    first, *_ = sorted((path.parent / "out" / "rows").glob("*.json"))
    first.rename(path)


def use_study_row(path: Path) -> None:
    RowStore(path.parent, check_row).get(path.stem)
    row = read_row(path, check_row)
    evidence = Evidence(
        rows=[{"task": "near", "variant": "system", "seed": 0} | row["found"]], tasks=("near",), seeds=(0,)
    )
    with suppress(EdgeOptError):
        Level(metric="value", variant="system", above=0.0).decide(evidence)


def write_verdicts(path: Path) -> None:
    path.write_text(dumps(verdict_document(_study(None), "edgeopt study toy")))


def _study(out: Path | None) -> Any:
    return run_study(toy.STUDY, quick=True, seeds=3, out=out, executor="serial", display=False)


# --- networks ----------------------------------------------------------------------------------------------------


def write_network(path: Path) -> None:
    values = EdgeNetwork.random(2, 3, seed=0).to_dict()
    path.write_text(json.dumps({name: np.asarray(value).tolist() for name, value in values.items()}))


def write_graph(path: Path) -> None:
    graph = EdgeNetwork.random(2, 3, seed=0).to_graph()
    path.write_text(
        json.dumps({"nodes": dict(graph.nodes(data=True)), "edges": list(graph.edges(data=True)), "all": graph.graph})
    )


def read_graph(path: Path) -> None:
    document = storage.read_json(path)
    graph = nx.Graph()
    if isinstance(nodes := document.get("nodes"), dict) and isinstance(edges := document.get("edges"), list):
        graph.add_nodes_from((name, data) for name, data in nodes.items() if isinstance(data, dict))
        whole = [e for e in edges if isinstance(e, list) and len(e) == 3 and isinstance(e[2], dict)]
        graph.add_edges_from((str(a), str(b), data) for a, b, data in whole)
    if isinstance(document.get("all"), dict):
        graph.graph |= document["all"]
    EdgeNetwork.from_graph(graph)


# --- training ----------------------------------------------------------------------------------------------------


def _train(path: Path, algorithm: Any, rounds: int, *, resume: bool, **options: Any) -> None:
    from edgeopt import StaticPlanner

    planner = StaticPlanner(small_plan(cut_layer=2))
    timing = small_timing(seed=5)
    train(small_task(), algorithm, planner, timing, rounds=rounds, checkpoint=path, resume=resume, **options)


def write_run(algorithm: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: _train(path, algorithm, 2, resume=False, **{k: v() for k, v in options.items()})


def resume(algorithm: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: _train(path, algorithm, 3, resume=True, **{k: v() for k, v in options.items()})


CONSTANTS: dict[str, Any] = {"estimator": lambda: GradientEstimator(every=1, num_clients=2)}


def learner() -> Learner:
    return Learner(problem(ClientSelection), LearnerSettings(episodes=2, hidden=4, epochs=1, minibatches=1), 3)


def write_learner(path: Path) -> None:
    started = learner()
    started.step()
    started.save(path)


def restore_learner(path: Path) -> None:
    found = learner()
    found.restore(path)
    found.policy()


@cache
def policy() -> TrainedPolicy:
    return RlCrp(iterations=1, episodes=2).train(problem(ClientSelection), seed=0)


def use_policy(path: Path) -> None:
    TrainedPolicy.load(path)
    edgeopt.solve(problem(ClientSelection), RlCrp(policy=str(path)), seed=0)


TRAIN_TOML = """\
rounds = 3
seed = 1
evaluate_every = 1
until_accuracy = 0.5
[data]
name = "digits"
partition = "dirichlet"
alpha = 0.3
clients = 3
[model]
name = "mlp"
width = 4
[algorithm]
name = "fedprox"
mu = 0.1
optimizer = { name = "adam", lr = 0.01 }
[network]
servers = 1
rate_sigma = 0.3
server_storage_bytes = [1e6, 2e6]
[planner]
name = "random"
max_batch = 8
"""
SELECTION_TOML = """\
rounds = 2
[data]
clients = 4
[model]
name = "mlp"
width = 4
[algorithm]
name = "multi-server-fedavg"
[network]
servers = 2
kind = "client-selection"
[problem]
picks = 1
conflict_weight = 0.5
[planner]
name = "fastest"
"""


def build_toml(path: Path) -> None:
    experiment = Experiment.load(path)
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    if (
        experiment.data.name == "digits"
        and experiment.model.name == "mlp"
        and experiment.planner.name in ("random", "fastest")
    ):
        experiment.build()


def write_experiment(path: Path) -> None:
    toml = path.with_suffix(".toml")
    toml.write_text(TRAIN_TOML)
    configured(toml, {}, []).save(path)
    toml.unlink()


def write_trace(path: Path) -> None:
    record().to_trace().save(path)


@cache
def record() -> RoutingRecord:
    experts = np.sort(np.random.default_rng(0).permuted(np.tile(np.arange(4), (2, 6, 2, 1)), axis=-1)[..., :2], axis=-1)
    return RoutingRecord(
        name="tiny", num_experts=4, experts=experts, meta={"bytes_per_expert_fp16": 100, "by": ["test"]}
    )


def use_trace(path: Path) -> None:
    trace = RoutingTrace.load(path)
    trace.statistics(), trace.to_model(expert_bytes=8.0)


# --- routing that others have recorded ---------------------------------------------------------------------------

IDS = np.array([[[0, 1], [2, 0]], [[1, 2], [0, 1]], [[0, 2], [1, 2]]])  # (T, L, K)


def _sglang(path: Path) -> None:
    import torch

    ids = torch.tensor(np.pad(IDS.transpose(1, 0, 2), ((1, 0), (0, 1), (0, 1)), constant_values=-1))
    table = torch.arange(3).expand(3, 3).clone()
    torch.save({"records": [{"topk_ids_of_layer": ids}], "last_physical_to_logical_map": table}, path)


RECORDED: dict[str, Callable[[Path], object]] = {
    "sglang.pt": _sglang,
    "answers.jsonl": lambda path: path.write_text(
        "\n".join(json.dumps({"user": u, "meta_info": {"routed_experts": IDS.tolist()}}) for u in (3, 5))
    ),
    "answer.json": lambda path: path.write_text(json.dumps({"choices": [{"routed_experts": "AAAAAAEAAAABAAAAAgAAAA=="}]})),
    "expert-load.json": lambda path: path.write_text(
        json.dumps({"load_history": [{"logical_expert_load": [[2, 4, 0], [3, 1, 2]]}] * 2})
    ),
    "activations.csv": lambda path: path.write_text(
        "user,token,layer,expert\n"
        + "".join(f"u{t},{t},{layer},{e}\n" for t in range(3) for layer in range(2) for e in IDS[t, layer])
    ),
    "uses.tsv": lambda path: path.write_text("layer\texpert\n0\t1\n0\t2\n1\t0\n1\t1\n"),
    "ids.npy": lambda path: np.save(path, IDS),
    "ids.npz": lambda path: np.savez(path, ids=IDS, user=[1, 1, 4], mask=[True, True, False]),
}  # fmt: skip


def use_recorded(path: Path) -> None:
    trace = RoutingTrace.read(path, num_layers=2, top_k=2)
    trace.statistics(), trace.to_model(8.0)


DEVICES = "name;flops;memory_bytes;memory_bytes_per_s;power_w\nphone;1e11;6e9;3e10;2\npad;2e11;8e9;5e10;3\n"


# --- placements for others ---------------------------------------------------------------------------------------


def write_placement(path: Path) -> None:
    path.write_text(json.dumps(placement_document(problem(ExpertCaching), result(ExpertCaching).solution)))


def model_tensors() -> dict[str, np.ndarray]:
    names = [f"model.layers.{b}.mlp.experts.{e}.up_proj.weight" for b in range(2) for e in range(3)]
    stacked = {f"blk.{b}.ffn_up_exps.weight": np.zeros((3, 2, 2), np.float32) for b in range(2, 4)}
    return dict.fromkeys(names, np.zeros((2, 2), np.float32)) | stacked


def write_gguf(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    for name, value in model_tensors().items():
        writer.add_tensor(name, value)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def write_tensors(path: Path) -> None:
    from safetensors import numpy

    path.write_bytes(numpy.save(model_tensors(), {"format": "pt"}))


def use_tensors(path: Path) -> None:
    tensors = ExpertTensors.read(path)
    first = tensors._replace(layers=tensors.layers[:2])
    tensor_list(problem(ExpertCaching), result(ExpertCaching).solution, first, server=0)


# --- adapters ------------------------------------------------------------------------------------------------------


def write_adapters(path: Path) -> None:
    original = StandIn()
    to_transformers(add_lora(from_transformers(original), ["*.q_proj", "head"], rank=2), original, path.parent)


def use_adapters(path: Path) -> None:
    repr(from_transformers(StandIn(), adapters=path.parent))


READERS = (
    Reader("expert-caching.json", lambda path: problem(ExpertCaching).save(path), describe),
    Reader("expert-caching.npz", lambda path: problem(ExpertCaching).save(path), describe),
    Reader("model-download.json", lambda path: problem(ModelDownload).save(path), describe),
    Reader("model-download.npz", lambda path: problem(ModelDownload).save(path), describe),
    Reader("split-training.json", lambda path: problem(SplitTraining).save(path), describe),
    Reader("split-training.npz", lambda path: problem(SplitTraining).save(path), describe),
    Reader("client-selection.json", lambda path: problem(ClientSelection).save(path), describe),
    Reader("client-selection.npz", lambda path: problem(ClientSelection).save(path), describe),
    Reader("expert-balancing.json", lambda path: problem(ExpertBalancing).save(path), describe),
    Reader("expert-balancing.npz", lambda path: problem(ExpertBalancing).save(path), describe),
    *(Reader(f"solution-{kind.kind}.json", lambda path, kind=kind: result(kind).save(path), use_solution(kind)) for kind in SOLVERS),
    Reader("row.json", write_row, use_rows),
    Reader("study-row.json", write_study_row, use_study_row),
    Reader("verdicts.json", write_verdicts, read_verdicts),
    Reader("library.json", lambda path: path.write_bytes((library.FOLDER / "facility-tiny.json").read_bytes()), library.read_entry),
    Reader("instance.json", lambda path: problem(SplitTraining).save(path), load_instance),
    Reader("network.json", write_network, lambda path: repr(EdgeNetwork.from_dict(storage.read_json(path)))),
    Reader("graph.json", write_graph, read_graph),
    Reader("profile.json", lambda path: model_profile("resnet18").save(path), lambda path: repr(ModelProfile.load(path).with_precision("int8"))),
    Reader("profile.npz", lambda path: model_profile("resnet18").save(path), lambda path: repr(ModelProfile.load(path).without_empty_layers())),
    Reader("profile-values.json", lambda path: path.write_text(json.dumps(model_profile("vgg16").to_json())), lambda path: ModelProfile.from_json(storage.read_json(path))),
    Reader("schedule.json", lambda path: Schedule([small_plan(2), small_plan(2, aggregate=False)] * 2).save(path), Schedule.load),
    Reader("schedule.npz", lambda path: Schedule([small_plan(2), small_plan(2, aggregate=False)] * 2).save(path), Schedule.load),
    Reader("trace.npz", write_trace, use_trace),
    *(Reader(name, write, use_recorded) for name, write in RECORDED.items()),
    Reader("devices.csv", lambda path: path.write_text(DEVICES), lambda path: assign_devices(EdgeNetwork.random(1, 5, seed=0), dict.fromkeys(read_device_profiles(path), 1.0))),
    Reader("placement.json", write_placement, lambda path: read_placement(problem(ExpertCaching), path)),
    Reader("model.gguf", write_gguf, use_tensors),
    Reader("model.safetensors", write_tensors, use_tensors),
    Reader("model.safetensors.index.json", lambda path: path.write_text(json.dumps({"weight_map": dict.fromkeys(model_tensors(), "a")})), use_tensors),
    Reader("record.npz", lambda path: record().save(path), lambda path: RoutingRecord.load(path).to_trace()),
    Reader("record.json", lambda path: record().save(path), lambda path: RoutingRecord.load(path).to_trace()),
    Reader("adapter_config.json", write_adapters, use_adapters),
    Reader("adapter_model.safetensors", write_adapters, use_adapters),
    Reader("policy.safetensors", lambda path: policy().save(path), use_policy),
    Reader("learner.safetensors", write_learner, restore_learner),
    Reader("run-fedavg.safetensors", write_run(FedAvg(Adam(0.02)), **CONSTANTS), resume(FedAvg(Adam(0.02)), **CONSTANTS)),
    Reader("run-splitfed.safetensors", write_run(SplitFed(Adam(0.02))), resume(SplitFed(Adam(0.02)))),
    Reader("train.toml", lambda path: path.write_text(TRAIN_TOML), build_toml),
    Reader("selection.toml", lambda path: path.write_text(SELECTION_TOML), build_toml),
    Reader("experiment.json", write_experiment, Experiment.load),
    Reader("train-images-idx3-ubyte", lambda path: write_mnist(path.parent), lambda path: mnist(path.parent)),
    Reader("t10k-labels-idx1-ubyte.gz", lambda path: write_mnist(path.parent, zipped=True), lambda path: mnist(path.parent)),
    Reader("data_batch_1.bin", lambda path: write_cifar(path.parent), lambda path: cifar10(path.parent)),
    Reader("text.txt", lambda path: path.write_text("what was said " * 40), lambda path: byte_text([path], 8)),
)  # fmt: skip
