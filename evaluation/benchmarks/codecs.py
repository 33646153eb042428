"""Measure codecs at the cut: ``python -m edgeopt.evaluation.benchmarks.codecs``.

Activations of a convolution on the digits, of ten clients at once through `torch.func.vmap`: encoded and decoded, with what
both sides remember of the messages before; MB of activations per second. Beside `low-rank` and `nsc`, `torch.svd_lowrank` of
the same rank on the centred activations, as one batch too; the errors are held against those of the whole SVD.
"""

import argparse
import math
import sys
from typing import Any

import torch
from rich.console import Console
from torch.func import vmap

from edgeopt.data import load_data
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.training import CODECS, Codec, Form, State
from edgeopt.training.keys import fold_in

CHANNELS, SIDE = 16, 8
BEFORE = 3  # messages that are not measured
FASTER, WITHIN = 1.0, 1.02
PEER = "torch.svd_lowrank"


def messages(clients: int, samples: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the activations [clients, samples, 16, 8, 8] of several messages, and their labels [clients, samples]."""
    data = load_data("digits").train
    rows = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        every = torch.nn.Conv2d(1, CHANNELS, 3, padding=1)(data.inputs).relu()
    drawn = [torch.randint(len(data), (clients, samples), generator=rows) for _ in range(BEFORE + 1)]
    return [every[own] for own in drawn], [data.targets[own] for own in drawn]


def coded(codec: Codec, xs: list[torch.Tensor], labels: list[torch.Tensor], repeats: int) -> Row:
    """Return seconds of the last message, how far what arrives is from the truth, and bytes over raw bytes."""
    clients, form = len(xs[0]), Form(tuple(xs[0].shape[1:]), xs[0].dtype)
    keys = fold_in(torch.tensor(0), torch.arange(clients))
    states: Any = ({}, {})

    def one(x: torch.Tensor, y: torch.Tensor, key: torch.Tensor, states: tuple[State, State], order: Any) -> Any:
        sent, client = codec.encode("up", x, order, states[0], labels=y, key=key)
        found, server = codec.decode("up", sent, order, states[1], form)
        return found, sent, (client, server)

    for x, y in zip(xs, labels, strict=True):
        order = codec.order("up", form, math.inf, _of_first(states[1]))

        def together(x: torch.Tensor = x, y: torch.Tensor = y, states: Any = states, order: Any = order) -> Any:
            return vmap(lambda x, y, key, states: one(x, y, key, states, order))(x, y, keys, states)

        found, sent, states = together()
    times = common.clock(together, repeats)
    taken = sum(part.nbytes for part in sent.values())
    return {"seconds": times.least, "error": _error(found, xs[-1]), "share": taken / xs[-1].nbytes}


def _of_first(states: State) -> State:
    """Return the memory of the first client."""
    return {name: value[0] if isinstance(value, torch.Tensor) else _of_first(value) for name, value in states.items()}


def _error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


def peer(x: torch.Tensor, rank: int, repeats: int) -> Row:
    """Return the same of `torch.svd_lowrank`."""
    flat = x.flatten(2)  # (clients, B, D)

    def factors() -> torch.Tensor:
        mean = flat.mean(1, keepdim=True)
        u, s, v = torch.svd_lowrank(flat - mean, q=rank)
        return mean + u * s.unsqueeze(1) @ v.mT

    times = common.clock(factors, repeats)
    samples, size = flat.shape[1:]
    taken = (size + rank * (samples + size)) / (samples * size)
    return {"seconds": times.least, "error": _error(factors(), flat), "share": taken}


def best(x: torch.Tensor, rank: int) -> float:
    """Return the error of the whole SVD of the centred activations."""
    flat = x.flatten(2)
    rest = flat - flat.mean(1, keepdim=True)
    u, s, v = torch.linalg.svd(rest, full_matrices=False)
    kept = u[..., :rank] * s[..., None, :rank] @ v[..., :rank, :]
    return float((rest - kept).norm() / flat.norm())


def table(clients: int, samples: int, rank: int, repeats: int) -> Row:
    """Return a row for each codec and for the peer, with mini-batches of a size."""
    rank = min(rank, samples - 1)
    given: dict[str, Any] = {"low-rank": {"rank": rank}, "nsc": {"max_rank": rank, "energy": 1.0}}
    xs, labels = messages(clients, samples)
    rows: list[Row] = []
    for kind in CODECS:
        common.say(f"{kind.name}, mini-batches of {samples}")
        codec: Any = kind(**given.get(kind.name, {}))
        rows.append({"codec": kind.name, **coded(codec, xs, labels, repeats)})
    rows.append({"codec": PEER, **peer(xs[-1], rank, repeats)})
    for row in rows:
        row["megabytes_per_s"] = xs[-1].nbytes / 1e6 / row["seconds"]
    return {"clients": clients, "samples": samples, "rank": rank, "svd_error": best(xs[-1], rank), "rows": rows}


def measure(options: argparse.Namespace) -> Row:
    """Measure everything on one thread."""
    if options.quick:
        options.clients, options.samples, options.repeats = 3, [4, 8], 1
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tables = [table(options.clients, samples, options.rank, options.repeats) for samples in options.samples]
    finally:
        torch.set_num_threads(before)
    goals, valid = [], True
    for found in tables:
        of = {row["codec"]: row for row in found["rows"]}
        title = f"nsc, mini-batches of {found['samples']}, rank {found['rank']}"
        faster = of[PEER]["seconds"] / of["nsc"]["seconds"]
        goals.append(common.goal(f"{title}: encode and decode faster than {PEER}", FASTER, faster, "x", at_least=True))
        wrong = of["nsc"]["error"] / found["svd_error"]
        goals.append(common.goal(f"{title}: error over that of the SVD", WITHIN, wrong, "x"))
        valid &= of["identity"]["error"] == 0 and all(math.isfinite(row["error"]) for row in found["rows"])
    return {"tables": tables, "valid": valid, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    for found in report["tables"]:
        title = (
            f"Activations [{found['samples']}, {CHANNELS}, {SIDE}, {SIDE}] of {found['clients']} clients at once, one "
            f"thread; error of the SVD of rank {found['rank']}: {found['svd_error']:.4f}"
        )
        common.show_table(
            console, title, ("codec", "encode and decode", "MB/s", "bytes", "error"),
            [
                [row["codec"], seconds(row["seconds"]), f"{row['megabytes_per_s']:.0f}", f"{100 * row['share']:.1f} %",
                 f"{row['error']:.4f}"]
                for row in found["rows"]
            ],
        )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--clients", type=int, default=10, help="clients of a batch")
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[32, 256], help="samples of a mini-batch, one or several"
    )
    parser.add_argument("--rank", type=int, default=8, help="of low-rank, nsc and the peer")
    parser.add_argument("--repeats", type=int, default=20, help="repeats of every call; the least counts")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("codecs", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
