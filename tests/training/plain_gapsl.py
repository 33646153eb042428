"""GAPSL written anew: loops over vectors for the choice, torch's modules and autograd for the training."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from edgeopt.training import Batches, Gapsl, Task
from edgeopt.training.messages import Tensors

Floats = NDArray[np.float64]


def angle(first: Floats, second: Floats) -> float:
    """Return the angle between two vectors."""
    sizes = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(np.dot(first, second)) / sizes if sizes else 0.0
    return math.acos(min(1 - 1e-7, max(-1 + 1e-7, cosine)))


@dataclass
class Chosen:
    """Who leads, who is kept, and the angles behind it."""

    mean_angles: list[float]
    leads: list[bool]
    to_leader: list[float]
    kept: list[bool]


def pick(rows: Floats, share: float, eta: float) -> Chosen:
    """Choose among gradients [N, P], client by client."""
    number = len(rows)
    means = [
        sum(angle(rows[i], rows[j]) for j in range(number) if j != i) / (number - 1) if number > 1 else 0.0
        for i in range(number)
    ]
    count = max(1, math.ceil(share * number - 1e-9))
    last = sorted(means)[count - 1]
    leads = [mean <= last + 1e-6 for mean in means]
    leader = np.mean([row for row, lead in zip(rows, leads, strict=True) if lead], axis=0)
    to_leader = [angle(row, leader) for row in rows]
    limit = max(0.0, min(float(np.mean(to_leader) - eta * np.std(to_leader)), math.pi / 2))
    kept = [found <= limit + 1e-6 for found in to_leader]
    if not any(kept):
        kept = [found <= min(to_leader) + 1e-6 for found in to_leader]
    return Chosen(means, leads, to_leader, kept)


class PlainGapsl:
    """The stems of the clients and the server's model as modules, with plain SGD.

    Parameters
    ----------
    cuts : of each client; all take part in each step.
    """

    def __init__(self, of: Task, algorithm: Gapsl, cuts: Sequence[int]) -> None:
        self.task, self.algorithm, self.cuts = of, algorithm, cuts
        self.server = copy.deepcopy(of.model)
        self.stems = [copy.deepcopy(of.model)[:cut] for cut in cuts]
        self.least, self.most = math.inf, -math.inf
        self.chosen: list[Chosen] = []
        self.shares: list[float] = []
        self.spreads: list[float] = []

    def step(self, number: int, step: int, batch_size: int) -> None:
        """Take one step of a round."""
        deepest = max(self.cuts)
        batches = [
            [x[0] for x in self.task.batch(client, Batches(number, step, 1, batch_size))]
            for client in range(len(self.cuts))
        ]
        nets = [[*stem, *self.server[cut:]] for stem, cut in zip(self.stems, self.cuts, strict=True)]
        losses = []
        for net, (inputs, targets) in zip(nets, batches, strict=True):
            outputs = inputs
            for layer in net:
                outputs = layer(outputs)
            losses.append(F.cross_entropy(outputs, targets))
        common = [p for layer in self.server[deepest:] for p in layer.parameters()]
        keep_graph = self.algorithm.mode == "exact"
        own = [torch.autograd.grad(loss, common, create_graph=keep_graph, retain_graph=True) for loss in losses]
        rows = [torch.cat([g.flatten() for g in gradients]) for gradients in own]
        share = self._share(np.array([row.detach().numpy() for row in rows]), number)
        chosen = pick(np.array([row.detach().numpy() for row in rows]), share, self.algorithm.eta)
        self.chosen.append(chosen)
        led = [row.detach() for row, leads in zip(rows, chosen.leads, strict=True) if leads]
        leader = torch.stack(led).mean(0)
        if keep_graph:
            losses = [
                loss + self.algorithm.strength * (1 - torch.dot(row, leader) / (row.norm() * leader.norm()))
                for loss, row in zip(losses, rows, strict=True)
            ]
        self._move(nets, losses, chosen.kept, leader)

    def _share(self, rows: Floats, number: int) -> float:
        nu = float(np.float32(np.std(pick(rows, 1.0, 0.0).mean_angles)))
        self.least, self.most = min(self.least, nu), max(self.most, nu)
        fraction = (self.most - nu) / (self.most - self.least) if self.most > self.least else 1.0
        low, high = self.algorithm.min_share, self.algorithm.max_share
        share = low + min(1, (number + 1) / self.algorithm.horizon) * fraction * (high - low)
        self.shares.append(share)
        self.spreads.append(nu)
        return share

    def _move(self, nets: Any, losses: Any, kept: list[bool], leader: torch.Tensor) -> None:
        lr = self.algorithm.optimizer.lr  # type: ignore[attr-defined]
        found = []
        for net, loss in zip(nets, losses, strict=True):
            weights = [p for layer in net for p in layer.parameters()]
            slopes = dict(zip(map(id, weights), torch.autograd.grad(loss, weights, retain_graph=True), strict=True))
            found.append(slopes)
        deepest = max(self.cuts)
        common = [p for layer in self.server[deepest:] for p in layer.parameters()]
        if self.algorithm.mode == "rotate":
            for slopes in found:
                g = torch.cat([slopes[id(p)].flatten() for p in common])
                cosine = torch.dot(g, leader) / (g.norm() * leader.norm())
                turned = g + self.algorithm.strength * g.norm() * (leader / leader.norm() - cosine * g / g.norm())
                for p, part in zip(common, turned.split([p.numel() for p in common]), strict=True):
                    slopes[id(p)] = part.reshape(p.shape)
        with torch.no_grad():
            for layer in range(len(self.server)):
                there = [i for i, cut in enumerate(self.cuts) if cut <= layer and kept[i]]
                for p in self.server[layer].parameters():
                    if there:
                        p -= lr * torch.stack([found[i][id(p)] for i in there]).mean(0)
            for i, stem in enumerate(self.stems):
                if kept[i] or self.algorithm.all_clients_learn:
                    for p in stem.parameters():
                        p -= lr * found[i][id(p)]

    def model(self, client: int) -> Tensors:
        """Return the weights of a client's own model."""
        net: nn.Sequential = copy.deepcopy(self.server)
        net[: self.cuts[client]].load_state_dict(self.stems[client].state_dict())
        return {name: value.detach() for name, value in net.state_dict().items()}
