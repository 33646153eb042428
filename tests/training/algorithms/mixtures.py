"""A small classifier with experts in double precision, and its pass written anew, token by token."""

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F

from edgeopt.models import moe_mlp
from edgeopt.training import Task, Tensors
from tests.training import split_tasks

EXPERTS, TOP_K, BALANCE = 4, 2, 0.01
NETWORKS = tuple(f"experts.{name}" for name in ("up", "up_bias", "down", "down_bias"))
ROUTER = "experts.router.weight"


def mixture_task(sizes: tuple[int, ...] = (9, 7, 8), frozen: bool = False, **options: object) -> Task:
    """Return a task for a classifier, whose stem and head may be frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = moe_mlp((1, 4, 4), split_tasks.CLASSES, width=5, hidden=3, experts=EXPERTS, top_k=TOP_K).double()
        with torch.no_grad():
            for parameter in (model.experts.router.weight, model.experts.up_bias, model.experts.down_bias):
                parameter.normal_()
            model.stem[1].bias.fill_(0.5)  # no sample is all zero behind the stem
    if frozen:
        for layer in (model.stem, model.head):
            layer.requires_grad_(False)
    return split_tasks.task(sizes=sizes, model=model, balance=BALANCE, **options)


class Seen(NamedTuple):
    """Outputs [N, classes], probabilities [N, E], experts of each sample, best first [N][K], hidden states [N, C]."""

    outputs: torch.Tensor
    probability: torch.Tensor
    chosen: list[list[int]]
    hidden: torch.Tensor


def seen(weights: Tensors, inputs: torch.Tensor, active: Collection[int] = range(EXPERTS)) -> Seen:
    """Run the model sample by sample; what experts that are not active answer is detached."""
    hidden = F.relu(inputs.flatten(1) @ weights["stem.1.weight"].T + weights["stem.1.bias"])
    logits = hidden @ weights[ROUTER].T
    rows, chosen = [], []
    for x, scores in zip(hidden, logits, strict=True):
        best = sorted(range(EXPERTS), key=lambda e, scores=scores: -float(scores[e].detach()))[:TOP_K]
        share = scores[best].softmax(0)
        row = torch.zeros_like(x)
        for place, e in enumerate(best):
            up, up_bias, down, down_bias = (weights[name][e] for name in NETWORKS)
            answer = F.gelu(x @ up + up_bias) @ down + down_bias
            row = row + share[place] * (answer if e in active else answer.detach())
        rows.append(row)
        chosen.append(best)
    outputs = torch.stack(rows) @ weights["head.weight"].T + weights["head.bias"]
    return Seen(outputs, logits.softmax(1), chosen, hidden)


def loss_of(passed: Seen, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy with the balance loss."""
    count = torch.zeros(EXPERTS, dtype=torch.float64)
    for best in passed.chosen:
        count[best] += 1 / (TOP_K * len(passed.chosen))
    return F.cross_entropy(passed.outputs, targets) + BALANCE * EXPERTS * (count * passed.probability.mean(0)).sum()


def stepped(weights: Tensors, loss: torch.Tensor, names: Collection[str], lr: float) -> Tensors:
    """Return the weights after a step of gradient descent on a loss of them."""
    found = torch.autograd.grad(loss, [weights[name] for name in names], materialize_grads=True)
    return {**weights, **{name: weights[name] - lr * g for name, g in zip(names, found, strict=True)}}


def leaf(weights: Tensors) -> Tensors:
    """Return the weights with gradients of their own."""
    return {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
