"""All that reads a file of others: how to write a valid one, and how to read it and use what came out.

A new reader is covered by one line in `READERS`. The suffix of its name says how its files are spoilt.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import networkx as nx
import numpy as np
from torch import nn

import edgeopt
from edgeopt import storage
from edgeopt.cli.train import configured
from edgeopt.coding import DeepJscc, DeepShape, Header, Network, Ntrscc, Shape, Training, as_picture, train_ntrscc
from edgeopt.data import byte_text, cifar10, mnist
from edgeopt.device_profiles import assign_devices, read_device_profiles
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation import what_if
from edgeopt.evaluation.compare.performance import summarise
from edgeopt.evaluation.compare.rows import RowStore, add_gaps, read_row, read_rows, rows_frame
from edgeopt.evaluation.compare.solutions import read_solution, solution_from_json
from edgeopt.evaluation.instances import library, load_instance
from edgeopt.evaluation.studies import Evidence, Level, run_study
from edgeopt.evaluation.studies.publish import verdict_document
from edgeopt.evaluation.studies.stored import read_verdicts
from edgeopt.evaluation.studies.study import check_row
from edgeopt.evaluation.what_if import check_point
from edgeopt.evaluation.what_if_page import decided
from edgeopt.experiment import Experiment
from edgeopt.fusion import health_recordings
from edgeopt.inference import run_while_receiving, send_model
from edgeopt.inference.routing import RoutingRecord
from edgeopt.inference.steered import load_steering, save_steering
from edgeopt.inference.steering import SteeringVector
from edgeopt.models import add_lora, from_transformers, load_language_model, to_transformers, unpack_gguf
from edgeopt.network import EdgeNetwork
from edgeopt.places import read_backhaul, read_places
from edgeopt.privacy import face_models
from edgeopt.privacy.face_models import FaceModels
from edgeopt.privacy.face_sets import FACE_SETS
from edgeopt.privacy.hiding import HaarNetwork
from edgeopt.privacy.nested import NestedNetwork
from edgeopt.privacy.picture_code import CONTEXTS, PictureCode
from edgeopt.privacy.range_coder import WHOLE
from edgeopt.privacy.recognisers import RECOGNISERS, Threshold
from edgeopt.privacy.vault import Vault
from edgeopt.privacy.vault_files import write_png
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
from edgeopt.rl import DeerReplay, Demonstrations, Dqn, Leed, ScriptedPlanner, TrueChange, learn, learn_together
from edgeopt.rl.environments import Routing, ServerBesideNeighbour
from edgeopt.schedule import Schedule
from edgeopt.series import TimeSeries
from edgeopt.solvers.client_selection import RlCrp
from edgeopt.solvers.client_selection.learner import Learner, LearnerSettings
from edgeopt.solvers.client_selection.trained_policy import TrainedPolicy
from edgeopt.storage import dumps
from edgeopt.training import Adam, FedAvg, SplitFed, train
from edgeopt.training.constants import GradientEstimator
from tests.data.test_data import write_cifar, write_mnist
from tests.evaluation.studies import toy
from tests.fusion.small import recorded
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


def write_point(path: Path) -> None:
    what_if(problem(ModelDownload), "bandwidth=x1", out=path.parent / "out", display=False)
    (row,) = (path.parent / "out" / "rows").glob("*.json")
    row.rename(path)


def use_point(path: Path) -> None:
    """Read a point as the next run does: its solution is where a neighbour starts, its numbers are shown."""
    row = read_row(path, check_point)
    decided(row)
    with suppress(EdgeOptError):
        if row.get("solution") is not None:
            solution_from_json(problem(ModelDownload), row["solution"])


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


def _learn(path: Path, steps: int, *, resume: bool) -> None:
    replay = DeerReplay(30, trigger=TrueChange(20))
    world = ServerBesideNeighbour([1, 2], clients=3, taken=1, horizon=8)
    agents = Dqn(hidden=(4,), explore_steps=10)
    learn(
        world, agents, replay, steps=steps, seeds=[1, 2], batch=4, learn_after=5, row_every=10, checkpoint=path,
        resume=resume,
    )  # fmt: skip


def write_agents(path: Path) -> None:
    _learn(path, 45, resume=False)


def resume_agents(path: Path) -> None:
    """Take all over; nothing is left to learn, as numbers that are finite and absurd may overflow there."""
    _learn(path, 45, resume=True)


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


# --- what others have measured -----------------------------------------------------------------------------------

MEASURED: dict[str, tuple[str, dict[str, Any]]] = {
    "rates.csv": ("time;client;rate (Mbit/s)\n0;a;1,5\n10;a;3\n0;b;2\n5;b;\n", {}),
    "wide.tsv": ("timestamp\t0\t1\n2030-01-01 00:00\t1.5\t2\n2030-01-01T00:01:00Z\t3\t\n", {"unit": "kB/s", "hold_s": 30.0}),
    "link.up": ("0\n0\n50\n120\n250\n", {}),
    "bus.log": ("0.5 1.0\n1.5 2.0\n2.5 0.1\n", {}),
    "grid.csv": ("time (h),zone,g/kWh\n0,DE,300\n1,DE,1e2\n0,FR,50\n", {"quantity": "carbon"}),
    "charging.csv": ("time,phone,charging\n0,a,yes\n60,a,no\n0,b,no\n", {"quantity": "availability"}),
}  # fmt: skip


PLACES: dict[str, str] = {
    "places.csv": "name;lat;lon;kind\nmast;52.5;13.4;server\nphone;52.6;13.3;device\n",
    "places.tsv": "x_km\ty_km\n0.5\t1\n2\t3\n",
    "places.geojson": json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [13.4, 52.5]}, "properties": {"name": "mast", "kind": "server"}}]}),
}  # fmt: skip


def write_graphml(path: Path) -> None:
    graph = nx.MultiGraph()
    graph.add_node("a", label="Aachen", Longitude=6.08, Latitude=50.78)
    graph.add_edge("a", "b", LinkSpeedRaw=1e9)
    graph.add_edge("b", "c", delay_s=0.002, rate_bps=5e8)
    nx.write_graphml(graph, path)


def use_backhaul(path: Path) -> None:
    found = read_backhaul(path, delay_s=0.001, rate_bps=1e9)
    links = {name: getattr(found, name) for name in ("link_servers", "link_delay_s", "link_rate_bps")}
    if (count := len(found.names)) < 50:
        EdgeNetwork.random(count, 2, seed=0, server_position_m=np.nan_to_num(found.position_m)).replace(**links)


def use_series(series: TimeSeries) -> None:
    """Ask a series everything; it has a finite answer, or says that there is never a link."""
    series.statistics()
    assert np.isfinite(series.mean(0.5, 3.0)).all()
    assert np.isfinite(series.table(3, 1.0)).all()
    assert not np.isnan(series.seconds(1e3, 0.5)).any()
    repr(series.for_clients(3).at_most(1e6)), series.at(2.0)


# --- agents that learn together -----------------------------------------------------------------------------------


def learn_in_team(path: Path, updates: int) -> None:
    """Learn on from a checkpoint if it is there."""
    learner = Leed(episodes=2, hidden=2, weight="distance", epochs=1, minibatches=1)
    team, shown = Routing(nx.path_graph(3), 2, seed=0), Demonstrations(ScriptedPlanner())
    learn_together(team, learner, shown, updates=updates, seed=0, checkpoint=path, resume=True)


# --- one stream of a picture --------------------------------------------------------------------------------------


def stream_system() -> Ntrscc:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Ntrscc(Network(Shape(width=2, channels=1, hyper=1)).requires_grad_(False))


SYSTEM = cache(stream_system)


def use_header(path: Path) -> None:
    """Decode what a receiver of this header would, if it is the sender's."""
    SYSTEM().receiver(Header.from_bytes(path.read_bytes()), 0).picture()


def write_picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(path)


def train_stream(path: Path) -> None:
    """Train on from a checkpoint if it is there."""
    picture = np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)
    shape = Shape(width=2, channels=1, hyper=1)
    train_ntrscc(
        [picture], Training(transforms=1, code=0, joint=0, batch=1, crop=32), shape=shape, checkpoint=path, resume=True
    )


DEVICES = "name;flops;memory_bytes;memory_bytes_per_s;power_w\nphone;1e11;6e9;3e10;2\npad;2e11;8e9;5e10;3\n"


# --- weights of pictures and faces, and vaults --------------------------------------------------------------------


def drawn_code() -> PictureCode:
    return PictureCode(HaarNetwork(2).requires_grad_(False), np.full(CONTEXTS, WHOLE // 2))


def use_code(path: Path) -> None:
    """Hide with a code what then opens, if it is one."""
    code = PictureCode.load(path)
    vault = Vault("right", cost=10, code=code)
    vault.restore(vault.hide(*PICTURES))


PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
VAULT = cache(lambda: Vault("right", cost=10))


def write_vault(path: Path) -> None:
    write_png(path, VAULT().hide(*PICTURES))


def small_faces(name: str) -> FaceModels:
    """Stand in for the networks of a face set, whose sizes are fixed."""
    names = ("reader", "judge", "coder", "denoiser")
    recognisers = {name: nn.Linear(2, 1) for name in RECOGNISERS}
    return FaceModels(
        faces=FACE_SETS[name], recognisers=recognisers, thresholds={}, **{name: nn.Linear(1, 1) for name in names}
    )


def write_faces(path: Path) -> None:
    found = small_faces("synthetic")
    found.thresholds.update(dict.fromkeys(RECOGNISERS, Threshold(0.5, 0.01)))
    found.save(path)


def use_faces(path: Path) -> None:
    with patch.object(face_models, "untrained", small_faces):
        repr(FaceModels.load(path).thresholds)


# --- weights that arrive while they are used ----------------------------------------------------------------------


def streamed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def write_stream(path: Path) -> None:
    with open(path, "wb") as file:
        send_model(streamed(), file.write)


def use_stream(path: Path) -> None:
    import torch

    with open(path, "rb") as file:
        run_while_receiving(streamed(), file, torch.ones(1, 2))


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


# --- language models ----------------------------------------------------------------------------------------------


def write_language_model(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # of their own future
        from tests.models.test_gguf import written

        written(path.with_name("lm.gguf"))
        if path.suffix != ".gguf":
            folder = unpack_gguf(path.with_name("lm.gguf"), cache=path.parent / "cache").rename(path.parent / "model")
            path.write_bytes((folder / path.name.removeprefix("lm-")).read_bytes())


def use_language_model(path: Path) -> None:
    """Read a model whose file has gone over to its folder."""
    with warnings.catch_warnings(action="ignore"):
        (path.parent / "model" / path.name.removeprefix("lm-")).write_bytes(path.read_bytes())
        load_language_model(path.parent / "model")


def use_language_model_of_one_file(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        shutil.rmtree(path.parent / "cache", ignore_errors=True)
        unpack_gguf(path, cache=path.parent / "cache")


LANGUAGE_MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


# --- adapters ------------------------------------------------------------------------------------------------------


def write_adapters(path: Path) -> None:
    original = StandIn()
    to_transformers(add_lora(from_transformers(original), ["*.q_proj", "head"], rank=2), original, path.parent)


def use_adapters(path: Path) -> None:
    repr(from_transformers(StandIn(), adapters=path.parent))


def write_steering(path: Path) -> None:
    save_steering(path, SteeringVector(strength=-1.5), StandIn(), base=StandIn())


def write_recordings(path: Path) -> None:
    with open(path, "wb") as file:
        storage.write_arrays(file, recorded())


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
    Reader("point.json", write_point, use_point),
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
    *(Reader(name, lambda path, text=text: path.write_text(text), lambda path, options=options: use_series(TimeSeries.read(path, **options))) for name, (text, options) in MEASURED.items()),
    *(Reader(name, lambda path, text=text: path.write_text(text), lambda path: repr(read_places(path, kind="server").of("device"))) for name, text in PLACES.items()),
    Reader("zoo.graphml", write_graphml, use_backhaul),
    Reader("series.json", lambda path: TimeSeries.random(clients=2, duration_s=3).save(path), lambda path: use_series(TimeSeries.load(path))),
    Reader("series.npz", lambda path: TimeSeries.random(clients=2, duration_s=3).save(path), lambda path: use_series(TimeSeries.load(path))),
    Reader("devices.csv", lambda path: path.write_text(DEVICES), lambda path: assign_devices(EdgeNetwork.random(1, 5, seed=0), dict.fromkeys(read_device_profiles(path), 1.0))),
    Reader("placement.json", write_placement, lambda path: read_placement(problem(ExpertCaching), path)),
    Reader("model.gguf", write_gguf, use_tensors),
    Reader("model.safetensors", write_tensors, use_tensors),
    Reader("model.safetensors.index.json", lambda path: path.write_text(json.dumps({"weight_map": dict.fromkeys(model_tensors(), "a")})), use_tensors),
    Reader("record.npz", lambda path: record().save(path), lambda path: RoutingRecord.load(path).to_trace()),
    Reader("record.json", lambda path: record().save(path), lambda path: RoutingRecord.load(path).to_trace()),
    Reader("adapter_config.json", write_adapters, use_adapters),
    Reader("adapter_model.safetensors", write_adapters, use_adapters),
    *(Reader(f"lm-{name}", write_language_model, use_language_model) for name in LANGUAGE_MODEL),
    Reader("lm.gguf", write_language_model, use_language_model_of_one_file),
    Reader("steering.json", write_steering, lambda path: load_steering(path, StandIn(), base=StandIn())),
    Reader("ntrscc.safetensors", lambda path: SYSTEM().save(path), Ntrscc.load),
    Reader("ntrscc-run.safetensors", train_stream, train_stream),
    Reader("deep-jscc.safetensors", lambda path: DeepJscc(DeepShape(width=2, symbols=1)).save(path), DeepJscc.load),
    Reader("nested.safetensors", lambda path: NestedNetwork(blocks=1, width=2).save(path), NestedNetwork.load),
    Reader("code.safetensors", lambda path: drawn_code().save(path), use_code),
    Reader("faces.safetensors", write_faces, use_faces),
    Reader("vault.png", write_vault, lambda path: VAULT().restore_file(path, path.parent / "found.png")),
    Reader("stream.bin", write_stream, use_stream),
    Reader("header.bin", lambda path: path.write_bytes(SYSTEM().encode(np.zeros((40, 40, 3), np.uint8), 0).header.to_bytes()), use_header),
    Reader("picture.png", write_picture, as_picture),
    Reader("picture.jpg", write_picture, as_picture),
    Reader("picture.tif", write_picture, as_picture),
    Reader("policy.safetensors", lambda path: policy().save(path), use_policy),
    Reader("learner.safetensors", write_learner, restore_learner),
    Reader("team.safetensors", lambda path: learn_in_team(path, 1), lambda path: learn_in_team(path, 2)),
    Reader("run-fedavg.safetensors", write_run(FedAvg(Adam(0.02)), **CONSTANTS), resume(FedAvg(Adam(0.02)), **CONSTANTS)),
    Reader("run-splitfed.safetensors", write_run(SplitFed(Adam(0.02))), resume(SplitFed(Adam(0.02)))),
    Reader("agents.safetensors", write_agents, resume_agents),
    Reader("recordings.npz", write_recordings, lambda path: health_recordings(path).windows(2)),
    Reader("train.toml", lambda path: path.write_text(TRAIN_TOML), build_toml),
    Reader("selection.toml", lambda path: path.write_text(SELECTION_TOML), build_toml),
    Reader("experiment.json", write_experiment, Experiment.load),
    Reader("train-images-idx3-ubyte", lambda path: write_mnist(path.parent), lambda path: mnist(path.parent)),
    Reader("t10k-labels-idx1-ubyte.gz", lambda path: write_mnist(path.parent, zipped=True), lambda path: mnist(path.parent)),
    Reader("data_batch_1.bin", lambda path: write_cifar(path.parent), lambda path: cifar10(path.parent)),
    Reader("text.txt", lambda path: path.write_text("what was said " * 40), lambda path: byte_text([path], 8)),
)  # fmt: skip
