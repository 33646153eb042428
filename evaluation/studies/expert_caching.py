"""A mixture-of-experts model trained on text by several clients, its experts cached at the edge, inference simulated.

``edgeopt study expert-caching --out out/expert-caching``

Clients, each a place with an edge server, train a small language model by FedAvg on documentation topics of their own.
The trained router is recorded on held-out text of every client, dealt at random into two halves. From the counts of the
first half, every caching solver places the experts on the servers, whose storage has room for few of them; the devices
near a server read what its client reads. Then every recorded token pays for the experts that it used, where the
placement has them. On the counted half the mean is what the problem says; on the other half it differs by chance. Two
variants are no solvers: ``lagrangian-blind`` knows only how all clients together use experts, ``nothing`` caches none.
"""

import dataclasses
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import edgeopt
from edgeopt import EdgeNetwork, RoundPlan, StaticPlanner
from edgeopt.data.partition import Partition
from edgeopt.data.text import byte_text
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.compare.worker import warm_up
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Ratio
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell, finished
from edgeopt.inference.distributed import simulate_inference
from edgeopt.inference.routing import RoutingRecord, record_users
from edgeopt.models.moe import moe_decoder, record_routing
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.problems.expert_caching.routed_model import Latency
from edgeopt.result import Result, relative_gap
from edgeopt.rng import stream
from edgeopt.solve import Solver
from edgeopt.solvers.expert_caching import SOLVERS, Lagrangian
from edgeopt.storage import plain
from edgeopt.training import Adam, EdgeTiming, FedAvg, LocalRunner, Task, train

SYSTEM, BLIND, NOTHING = "lagrangian", "lagrangian-blind", "nothing"
VARIANTS = (*(solver.name for solver in SOLVERS), NOTHING, BLIND)
LATENCIES = (
    "predicted_ms", "counted_ms", "counted_off_by", "unseen_ms", "unseen_error_ms", "z", "device", "own server",
    "other server", "cloud",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How large the study is; every client has a server, and devices around it.

    Parameters
    ----------
    storage : of each server, a share of all experts.
    time_limit : of each solver, s.
    latency : of the experts of a token.
    batched : train clients as one batch; otherwise one after another, which gives the same.
    """

    clients: int = 6
    devices: int = 36
    depth: int = 4
    experts: int = 16
    width: int = 32
    hidden: int = 32
    context: int = 64
    rounds: int = 40
    local_steps: int = 8
    batch_size: int = 8
    lr: float = 0.006
    storage: float = 0.08
    time_limit: float = 30.0
    latency: Latency = "sum"
    batched: bool = True


class Halves(NamedTuple):
    """Recorded routing of the clients' held-out text: the half that is counted, and the other."""

    counted: RoutingRecord
    unseen: RoutingRecord


def client_task(size: Size, seed: int) -> tuple[Task, torch.Tensor]:
    """Return the model with the clients' text, and held-out windows of every client, int64 [G, S, T]."""
    text = byte_text(context=size.context, test_share=0.2, seed=seed)
    client = clients_of_topics(text.train.labels, size.clients)  # (topics,)
    owner = client[text.train.labels]  # (n,)
    partition = Partition(tuple(np.flatnonzero(owner == c) for c in range(size.clients)), len(owner))
    reader = client[text.test.labels]
    own = [np.flatnonzero(reader == c) for c in range(size.clients)]
    windows = min(map(len, own)) // 2 * 2  # of each client, for two halves
    dealt = np.stack([stream(seed, "halves", c).permutation(rows)[:windows] for c, rows in enumerate(own)])  # (G, S)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = moe_decoder(
            context=size.context, width=size.width, depth=size.depth, hidden=size.hidden, experts=size.experts
        )
    task = Task(model=model, train=text.train, partition=partition, test=text.test, seed=seed)
    return task, text.test.inputs[torch.from_numpy(dealt)]


def clients_of_topics(topic: NDArray[np.int64], clients: int) -> NDArray[np.int64]:
    """Return the client of each topic, given the topic of each window: the longest first, to whom has the least text."""
    sizes = np.bincount(topic)
    client = np.zeros(sizes.size, np.int64)
    load = np.zeros(clients, np.int64)
    for number in np.argsort(-sizes, kind="stable"):
        client[number] = load.argmin()
        load[client[number]] += sizes[number]
    return client


def train_clients(task: Task, size: Size) -> tuple[dict[str, torch.Tensor], Row]:
    """Train by FedAvg with Adam; return the weights, and what the training did to the model."""
    everybody = RoundPlan(
        client=np.arange(size.clients, dtype=np.int32),
        batch_size=np.array(size.batch_size),
        local_steps=np.array(size.local_steps),
    )
    timing = EdgeTiming.from_network(EdgeNetwork.random(1, size.clients, seed=task.seed))
    before = task.evaluate(task.initial_weights())
    start = time.perf_counter()
    history = finished(
        train(
            task, FedAvg(Adam(size.lr)), StaticPlanner(everybody), timing, rounds=size.rounds,
            evaluate_every=size.rounds, runner=LocalRunner(batched=size.batched),
        )
    )  # fmt: skip
    seconds = time.perf_counter() - start
    after = history.rows[-1]
    tokens = size.rounds * size.local_steps * size.clients * size.batch_size * size.context
    row = {
        "clients": size.clients,
        "parameters": sum(value.numel() for value in task.model.parameters()),
        "tokens": tokens,
        "epochs": tokens / task.train.inputs.numel(),
        "bits_per_byte_before": before.loss / math.log(2),
        "bits_per_byte_after": after["test_loss"] / math.log(2),
        "bits_per_byte_of_counts": unigram_bits(task),
        "accuracy": after["accuracy"],
        "seconds": seconds,
        "runner": "batched" if size.batched else "one after another",
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return history.models[0], row


def unigram_bits(task: Task) -> float:
    """Return bits per byte of the held-out text by the frequencies of bytes in the training text, without any context."""
    count = np.bincount(task.train.targets.flatten().cpu().numpy(), minlength=256) + 1.0
    return float(-np.log2(count / count.sum())[task.test.targets.flatten().cpu().numpy()].mean())


def recorded(task: Task, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> RoutingRecord:
    """Return the routing of the held-out windows."""
    return record_users(task.model, tokens, name="byte-moe", weights=weights)


def halves_of(record: RoutingRecord) -> Halves:
    """Return the record in two parts, one half of each client's windows in either."""
    half = record.num_tokens // 2
    return Halves(record.part(0, half), record.part(half, record.num_tokens))


def routing_rows(task: Task, weights: dict[str, torch.Tensor], tokens: torch.Tensor, halves: Halves) -> list[Row]:
    """Return for each layer how sure and how balanced the router is, and how much its choices differ between clients."""
    probability = _mean_entropy_bits(task, weights, tokens)  # (L,)
    use, other = (_use(record) for record in halves)  # (G, L, E)
    clients = range(len(use))
    pairs = [(a, b) for a in clients for b in clients if a < b]
    mean = use.mean(axis=0)  # (L, E)
    rows = []
    for layer in range(use.shape[1]):
        between = [_variation(use[a, layer], other[b, layer]) for a, b in pairs]
        within = [_variation(use[c, layer], other[c, layer]) for c in clients]
        share = mean[layer]
        rows.append(
            {
                "layer": layer,
                "router_entropy_bits": float(probability[layer]),
                "use_entropy_bits": float(-(share[share > 0] * np.log2(share[share > 0])).sum()),
                "most_bits": math.log2(share.size),
                "largest_share_x_experts": float(share.max() * share.size),
                "variation_between_clients": float(np.mean(between)) if pairs else math.nan,
                "variation_within_client": float(np.mean(within)),
            }
        )
    return rows


def _mean_entropy_bits(task: Task, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> NDArray[np.float64]:
    """Return the mean entropy of the router's probabilities for a token [L], in bits, on some of each client's windows."""
    model = task.model.eval()
    with torch.inference_mode(), record_routing() as routing:
        torch.func.functional_call(model, weights, (tokens[:, :8].flatten(0, 1),))
    entropy = [torch.special.entr(layer.logits.softmax(dim=-1)).sum(dim=-1).mean() for layer in routing]
    return torch.stack(entropy).double().numpy() / math.log(2)


def _use(record: RoutingRecord) -> NDArray[np.float64]:
    """Return the share of each client's choices that fell on each expert of a layer, [G, L, E]."""
    chosen = record.experts[..., None] == np.arange(record.num_experts, dtype=np.int16)  # (G, T, L, K, E)
    return np.asarray(chosen.mean(axis=(1, 3)))


def _variation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the total variation distance of two distributions, 0 to 1."""
    return float(np.abs(one - other).sum()) / 2


def caching_problem(record: RoutingRecord, size: Size, seed: int) -> ExpertCaching:
    """Return the problem; the devices that are attached to a server behave like its client."""
    network = EdgeNetwork.random(size.clients, size.devices, seed=seed)
    readers = network.access_server[:, None] % record.num_users
    return ExpertCaching.from_traces(
        record.to_trace(), network, storage=size.storage, assignment=readers, latency=size.latency
    )


def solved(problem: ExpertCaching, solver: Solver, size: Size, seed: int) -> tuple[Result[Any], Placement]:
    """Return the result of a solver and its placement."""
    warm_up(problem, solver)  # compiling is not to eat the time limit
    result = edgeopt.solve(problem, solver, seed=seed, time_limit=size.time_limit).raise_for_status()
    placement: Any = result.solution
    return result, placement


def simulated(problem: ExpertCaching, placement: Placement, halves: Halves, size: Size) -> Row:
    """Return what the problem predicts, and what the tokens of both halves take."""
    predicted = problem.report(placement).latency_s
    counted, unseen = (simulate_inference(problem, placement, record) for record in halves)
    error = unseen.standard_error_s(block=size.context)
    both = math.hypot(error, counted.standard_error_s(block=size.context))
    return {
        "predicted_ms": 1e3 * predicted,
        "counted_ms": 1e3 * counted.mean_s,
        "counted_off_by": abs(counted.mean_s / predicted - 1),
        "unseen_ms": 1e3 * unseen.mean_s,
        "unseen_error_ms": 1e3 * error,
        "z": (unseen.mean_s - predicted) / both if both else 0.0,
        **unseen.hit_ratio,
    }


def run(cell: StudyCell[Size]) -> Row:
    """Place the experts under one variant and replay both halves; the model is trained once for all of a seed."""
    size, seed = cell.setting, cell.seed
    record = RoutingRecord.load(cell.keep(f"routing-{seed}.npz", partial(_train_and_record, size, seed)))
    found: Row = {"facts": record.meta.pop("facts")}
    halves = halves_of(record)
    problem = caching_problem(halves.counted, size, seed)
    if cell.variant == NOTHING:
        placement = Placement(np.zeros((problem.num_servers, problem.num_experts), bool))
    elif cell.variant == BLIND:
        counted = halves.counted
        together = counted.experts.reshape(1, -1, counted.num_layers, counted.top_k)  # (1, G T, L, K)
        blind = caching_problem(dataclasses.replace(counted, experts=together), size, seed)
        _, placement = solved(blind, Lagrangian(), size, seed)
    else:
        solver = next(solver for solver in SOLVERS if solver.name == cell.variant)
        result, placement = solved(problem, solver, size, seed)
        found |= {
            "status": str(result.status),
            "objective_ms": 1e3 * result.objective,
            "bound_ms": 1e3 * result.bound if math.isfinite(result.bound) else None,
            "solve_seconds": result.seconds.total,
        }
    return found | simulated(problem, placement, halves, size)


def _train_and_record(size: Size, seed: int, path: Path) -> None:
    """Write the routing of the trained model; what there is to say about model and router goes with it."""
    task, tokens = client_task(size, seed)
    weights, training = train_clients(task, size)
    record = recorded(task, weights, tokens)
    facts = {"training": training, "routing": routing_rows(task, weights, tokens, halves_of(record))}
    dataclasses.replace(record, meta=record.meta | {"facts": plain(facts)}).save(path)


def tables(found: Found[Size]) -> dict[str, list[Row]]:
    """Return what training did, how sure routers are, what solvers found, and what tokens take."""
    facts = {row["seed"]: row["facts"] for row in found.rows}
    placed = [row for row in found.rows if "status" in row]
    return {
        "training": [{"seed": seed, **known["training"]} for seed, known in facts.items()],
        "routing": [{"seed": seed, **layer} for seed, known in facts.items() for layer in known["routing"]],
        "solvers": [_solver_row(row, placed) for row in placed],
        "latency": [{name: row[name] for name in ("seed", "variant", *LATENCIES)} for row in found.rows],
    }


def _solver_row(row: Row, placed: Sequence[Row]) -> Row:
    bounds = [other["bound_ms"] for other in placed if other["seed"] == row["seed"] and other["bound_ms"] is not None]
    gap = relative_gap(row["objective_ms"], min(bounds)) if bounds else None
    names = ("seed", "variant", "status", "objective_ms", "bound_ms")
    return {name: row[name] for name in names} | {"gap_to_best_bound": gap, "solve_seconds": row["solve_seconds"]}


def pictures(found: Found[Size]) -> dict[str, Picture]:
    """Return predicted and simulated latencies under the first seed."""
    own = [row for row in found.rows if row["seed"] == found.rows[0]["seed"]]
    if not own:
        return {}
    return {"latency": Picture("Latency predicted and simulated, and who serves the experts", partial(draw, own))}


def draw(rows: Sequence[Row]) -> Any:
    """Draw the latencies of the variants."""
    from edgeopt.evaluation.plots.caching.inference_latency import plot_inference_latency

    return plot_inference_latency([{**row, "solver": row["variant"]} for row in rows])


CLAIMS = (
    Claim(
        text="The problem's objective is the latency of the tokens that were counted, for every variant, to rounding",
        source="ours",
        test=Always(metric="counted_off_by", variants=VARIANTS, below=1e-9),
    ),
    Claim(
        text="On tokens that were not counted it is off by less than four standard errors, wherever tokens differ",
        source="ours",
        test=Always(
            metric="z",
            variants=tuple(name for name in VARIANTS if name != NOTHING),  # from the cloud every token takes the same
            above=-4.0,
            below=4.0,
        ),
    ),
    *(
        Claim(
            text=f"Tokens wait less for experts under lagrangian than {under}",
            source="ours",
            test=Ratio(metric="unseen_ms", first=SYSTEM, second=name, below=1.0),
        )
        for name, under in (
            ("greedy", "under greedy"),
            ("popularity", "if every server caches what is popular"),
            ("random", "if servers are filled at random"),
            (NOTHING, "if nothing is cached"),
        )
    ),
    Claim(
        text="It is worth to know who reads what: tokens wait less than if only the use of all clients together is known",
        source="ours",
        test=Difference(metric="unseen_ms", first=SYSTEM, second=BLIND, below=0.0),
    ),
)

STUDY = Study(
    name="expert-caching",
    title="Experts of a trained mixture cached at the edge: latency predicted, and latency of simulated tokens",
    system=SYSTEM,
    baselines=tuple(name for name in VARIANTS if name not in (SYSTEM, BLIND)),
    ablations=(BLIND,),
    tasks=("text",),
    seeds=3,
    full=Size(),
    quick=Size(clients=4, devices=24, depth=2, experts=8, rounds=10, storage=0.125, time_limit=3.0),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)
