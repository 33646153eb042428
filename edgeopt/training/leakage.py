"""How much of a sample what crosses a cut gives away: probes that are trained on smashed data.

What a server could learn that has samples of its own and the layers of the devices, or gets some samples' truth in another way: probes
are trained with what crossed for samples of the training set, and judged by held-out ones. Ours.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import nn

from edgeopt.data.arrays import ArrayData
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.rng import stream
from edgeopt.training.codecs.codec import Codec, Form
from edgeopt.training.codecs.identity import Identity
from edgeopt.training.keys import fold_in
from edgeopt.training.messages import State, Tensors
from edgeopt.training.task import Task, full_precision
from edgeopt.validate import integer

Floats = NDArray[np.float64]

_LABELS, _INPUTS = "labels", "inputs"
_WEIGHTS = np.logspace(-8, 4, 25)  # of squared weights, beside the mean squared number
_HIDDEN, _BATCH, _TRIED_EVERY = 128, 64, 25
_KEPT = 0.15  # share of the samples to train with by which the network's weights are chosen


class Leak(NamedTuple):
    """What probes find out about one thing.

    Parameters
    ----------
    kind : ``accuracy``, the share of held-out samples whose class was found; or ``r2``, the share of the squared deviation from the mean
        of training that was explained, below 0 where a guess was worse than that mean.
    linear : of ridge regression; classes are the highest of one output each.
    network : of two layers; chosen by samples kept back from training.
    chance : of the most frequent class of training, or 0, without any look at what crossed.
    """

    kind: str
    linear: float
    network: float
    chance: float


@dataclass(frozen=True, slots=True)
class Leakage:
    """What crosses a cut, and what it gives away.

    Parameters
    ----------
    cut : layers on the device.
    codec : name of what codes it.
    bytes_per_sample : that cross, on average.
    samples : to train probes with, and held-out ones.
    leaks : by what is looked for: ``labels``, ``inputs`` and the names of attributes.
    """

    cut: int
    codec: str
    bytes_per_sample: float
    samples: tuple[int, int]
    leaks: dict[str, Leak]


def leakage(
    task: Task,
    cut: int,
    *,
    codec: Codec | None = None,
    weights: Tensors | None = None,
    attributes: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    budget_bytes: float = math.inf,
    batch_size: int = 32,
    samples: int = 1000,
    steps: int = 300,
    seed: int = 0,
) -> Leakage:
    """Return how much of labels, inputs and attributes probes find in what crosses a cut.

    A probe that fails proves nothing: a better one may not. What it finds is what leaks at least, and the worse of two cuts or codecs
    for one probe need not be the worse one for another. Nor does a deeper cut leak less for sure.

    Parameters
    ----------
    cut : layers on the device, from 1; those above it stay out.
    codec : of `edgeopt.training.CODECS`, with its hyper-parameters; what the server decodes is looked at. Default: everything crosses as
        it is.
    weights : of the model. Default: those it starts with.
    attributes : by name, what is known of samples of ``task.train`` and of ``task.test``: numbers [n] or [n, k], or classes, integers [n].
    budget_bytes : for each mini-batch, for codecs that take one.
    batch_size : samples that cross at once.
    samples : to train with, and to judge by, drawn from those there are.
    steps : mini-batches of the network of two layers.
    seed : of draws, and of codecs and networks.

    Raises
    ------
    InvalidProblemError
        If there is no such cut, an attribute does not fit the samples, or nothing is to be looked for: labels are those of whole
        samples, and inputs numbers.

    References
    ----------
    Ridge regression whose weight is chosen by generalised cross-validation: G. Golub, M. Heath, G. Wahba, Technometrics, 1979.
    """
    codec = Identity() if codec is None else codec
    task.shape_at(cut := integer("cut", cut))  # refuses a cut that is none
    weights = task.initial_weights() if weights is None else weights
    batch_size, steps = integer("batch_size", batch_size, low=1), integer("steps", steps, low=1)
    samples = integer("samples", samples, low=2)
    if len(task.train) < 2:
        raise InvalidProblemError(f"train: {len(task.train)} samples: expected at least 2, to train probes with")
    rng = stream(seed, "leakage")
    chosen = [
        np.sort(rng.choice(len(data), min(samples, len(data)), replace=False)) for data in (task.train, task.test)
    ]
    wanted = _wanted(task, attributes or {}, chosen)
    sender: State = {}
    receiver: State = {}
    seen: list[Floats] = []
    total = 0
    for data, rows in zip((task.train, task.test), chosen, strict=True):
        parts = []
        for first in range(0, len(rows), batch_size):
            own = data.take(rows[first : first + batch_size])
            with torch.no_grad():
                smashed = task.as_sent(task.forward(weights, own.inputs, 0, cut, training=False).outputs)
                form = Form(tuple(smashed.shape), smashed.dtype)
                if (order := codec.order("up", form, budget_bytes, receiver)) is None:
                    raise InvalidProblemError(
                        f"budget_bytes = {budget_bytes:g}: nothing fits that {codec.name} can send"
                    )
                key = fold_in(torch.tensor(seed, device=smashed.device), len(seen), first)
                sent, sender = codec.encode("up", smashed, order, sender, labels=own.targets, key=key)
                found, receiver = codec.decode("up", sent, order, receiver, form)
            total += sum(value.nbytes for value in sent.values())
            parts.append(full_precision(found).reshape(len(found), -1).cpu().double().numpy())
        seen.append(np.concatenate(parts))
    known, held_out = seen
    linear = _Ridge(known)
    leaks = {
        name: _leak(truth, known, held_out, linear, steps, stream(seed, "leakage", name))
        for name, truth in wanted.items()
    }
    return Leakage(cut, codec.name, total / sum(map(len, chosen)), (len(known), len(held_out)), leaks)


class _Truth(NamedTuple):
    """What is looked for, of samples to train with and of held-out ones: numbers [n, k], or classes [n] if `classes` is not 0."""

    known: NDArray[np.int64] | Floats
    held_out: NDArray[np.int64] | Floats
    classes: int


def _wanted(
    task: Task, attributes: Mapping[str, tuple[ArrayLike, ArrayLike]], chosen: list[NDArray[np.int64]]
) -> dict[str, _Truth]:
    wanted: dict[str, _Truth] = {}
    both: tuple[ArrayData, ArrayData] = (task.train, task.test)
    if task.train.targets.ndim == 1:
        labels = [data.targets.numpy(force=True)[rows] for data, rows in zip(both, chosen, strict=True)]
        wanted[_LABELS] = _Truth(labels[0], labels[1], task.train.num_classes)
    if task.train.inputs.is_floating_point():
        inputs = [
            data.inputs[torch.from_numpy(rows)].flatten(1).double().numpy(force=True)
            for data, rows in zip(both, chosen, strict=True)
        ]
        wanted[_INPUTS] = _Truth(inputs[0], inputs[1], 0)
    for name, pair in attributes.items():
        if name in (_LABELS, _INPUTS):
            raise InvalidProblemError(f"attributes: {quoted(name)}: expected another name than labels and inputs")
        arrays = [np.asarray(values) for values in pair]
        for values, data, which in zip(arrays, both, ("train", "test"), strict=True):
            if values.ndim not in (1, 2) or len(values) != len(data) or values.dtype.kind not in "biuf":
                raise InvalidProblemError(
                    f"attributes[{name!r}]: of {which}: expected numbers of {len(data)} samples, [n] or [n, k], "
                    f"got {values.dtype} {list(values.shape)}"
                )
            if not np.isfinite(values).all() or (values.dtype.kind in "biu" and (values.ndim > 1 or values.min() < 0)):
                raise InvalidProblemError(
                    f"attributes[{name!r}]: of {which}: expected finite numbers [n, k], or classes from 0, integers [n]"
                )
        classes = 0 if arrays[0].dtype.kind == "f" else 1 + int(max(values.max() for values in arrays))
        known, held_out = (values[rows] for values, rows in zip(arrays, chosen, strict=True))
        if not classes:
            known, held_out = (values.reshape(len(values), -1).astype(np.float64) for values in (known, held_out))
        wanted[name] = _Truth(known, held_out, classes)
    if not wanted:
        raise InvalidProblemError(
            "attributes: none, and samples have neither labels nor inputs of numbers: expected some"
        )
    return wanted


def _leak(
    truth: _Truth, known: Floats, held_out: Floats, linear: "_Ridge", steps: int, rng: np.random.Generator
) -> Leak:
    targets = np.eye(truth.classes)[truth.known] if truth.classes else truth.known.astype(np.float64)  # (n, k)
    guesses = linear.fit(targets, held_out), _network(truth, known, held_out, steps, rng)
    if truth.classes:
        found = [float((guess.argmax(1) == truth.held_out).mean()) for guess in guesses]
        usual = np.bincount(truth.known.astype(np.int64)).argmax()
        return Leak("accuracy", found[0], found[1], float((truth.held_out == usual).mean()))
    spread = float(np.square(truth.held_out - targets.mean(0)).sum())
    if spread == 0:
        return Leak("r2", 0.0, 0.0, 0.0)  # nothing to find out
    found = [1 - float(np.square(truth.held_out - guess).sum()) / spread for guess in guesses]
    return Leak("r2", found[0], found[1], 0.0)


class _Ridge:
    """Ridge regression with a free constant, of any targets by the same features [n, d], solved among the samples."""

    def __init__(self, features: Floats) -> None:
        self.mean = features.mean(0)
        self.features = features - self.mean
        kernel = self.features @ self.features.T  # (n, n)
        values, self.vectors = np.linalg.eigh(kernel)
        self.values = values.clip(0)
        self.scale = float(np.trace(kernel)) / len(kernel)

    def fit(self, targets: Floats, others: Floats) -> Floats:
        """Return what targets [n, k] foretell of others [m, d]."""
        centre = targets.mean(0)
        turned = self.vectors.T @ (targets - centre)  # (n, k)
        if self.scale == 0:  # all alike
            return np.tile(centre, (len(others), 1))
        count = len(targets)
        scores = []
        for weight in _WEIGHTS * self.scale:
            left = weight / (self.values + weight)  # of each direction, what the fit leaves
            free = (left.sum() - 1) / count  # one is the constant's
            scores.append(float(np.square(left[:, None] * turned).sum()) / max(free, 1e-12) ** 2)
        weight = float(_WEIGHTS[int(np.argmin(scores))] * self.scale)
        dual = self.vectors @ (turned / (self.values + weight)[:, None])  # (n, k)
        fitted: Floats = centre + (others - self.mean) @ (self.features.T @ dual)
        return fitted


def _network(truth: _Truth, known: Floats, held_out: Floats, steps: int, rng: np.random.Generator) -> Floats:
    """Return what a network of two layers foretells; of its weights along the way the best for samples that were kept back."""
    centre, spread = known.mean(0), known.std(0)
    spread = np.where(spread > 1e-6 * (1 + np.abs(centre)), spread, 1.0)
    x, others = (torch.from_numpy(((z - centre) / spread).astype(np.float32)) for z in (known, held_out))
    middle, scale = np.zeros(1), np.ones(1)
    if truth.classes:
        y = torch.from_numpy(truth.known.astype(np.int64))
    else:
        numbers = truth.known.astype(np.float64)
        middle, scale = numbers.mean(0), np.full(1, max(float(numbers.std()), 1e-12))
        y = torch.from_numpy(((numbers - middle) / scale).astype(np.float32))

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        guess, target = network(x[rows]), y[rows]
        return F.cross_entropy(guess, target) if truth.classes else F.mse_loss(guess, target)

    order = rng.permutation(len(x))
    kept, used = np.split(order, [max(1, int(_KEPT * len(order)))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        last = nn.Linear(_HIDDEN, truth.classes or y.shape[1])
        network = nn.Sequential(nn.Linear(x.shape[1], _HIDDEN), nn.GELU(), last)
    for weights in last.parameters():  # the mean at first
        nn.init.zeros_(weights)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    best, guess = math.inf, torch.zeros(len(others), last.out_features)
    for step in range(steps + 1):
        if step % _TRIED_EVERY == 0 or step == steps:
            with torch.no_grad():
                if (now := float(loss(kept))) < best:
                    best, guess = now, network(others)
        if step < steps:
            optimizer.zero_grad()
            loss(rng.choice(used, min(_BATCH, len(used)), replace=False)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return guess.double().numpy() * scale + middle
