"""Mixtures of experts: a layer whose networks a Top-K router picks per token, in a classifier and in a GPT-2.

Router and load-balancing loss are those of Switch Transformers (Fedus et al., arXiv:2101.03961, sections 2.1 and 2.2);
for K >= 2 the weights of the chosen experts are made to sum to one, as in Mixtral (arXiv:2401.04088, section 2.1).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.models.attention import SelfAttention, initialise
from edgeopt.models.decoder import Embedding, Head, Residual
from edgeopt.validate import integer, listed


@dataclass(frozen=True, slots=True, eq=False)
class LayerRouting:
    """What the router of one layer decided in one forward pass.

    Parameters
    ----------
    logits : (..., E), output of the router for each token.
    experts : int64 (..., K), the chosen experts, best first; ties go to the lowest index.
    hidden : (..., C), what entered the layer.
    layer : the layer.
    """

    logits: torch.Tensor
    experts: torch.Tensor
    hidden: torch.Tensor | None = None
    layer: "Experts | None" = None

    __repr__ = one_line

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the routing of several passes of a layer as one of all their samples."""
        hidden = [part.hidden for part in parts if part.hidden is not None]
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.experts for part in parts]),
            torch.cat(hidden) if len(hidden) == len(parts) else None,
            parts[0].layer,
        )

    @property
    def probability(self) -> torch.Tensor:
        """Softmax over all experts, (..., E), in float32 at least."""
        return _probability(self.logits)

    @property
    def is_chosen(self) -> torch.Tensor:
        """Bool (..., E), whether a token uses an expert."""
        return _one_hot(self.experts, self.logits.shape[-1]).any(dim=-2)

    @property
    def balance_loss(self) -> torch.Tensor:
        r"""Load-balancing loss (arXiv:2101.03961, equations 4 to 6), 1 if probabilities and choices are even.

        .. math:: E \sum_e f_e P_e

        f is the share of all choices that fell on expert e, P its mean probability; gradients flow through P alone.
        """
        probability = self.probability.flatten(0, -2).mean(dim=0)  # (E,)
        count = probability.shape[0]
        share = _one_hot(self.experts, count).to(probability.dtype).flatten(0, -2).mean(dim=0)  # (E,)
        return count * (share * probability).sum()  # ()


def _probability(logits: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the experts, in float32 at least: routers suffer from less (arXiv:2101.03961, 2.4)."""
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))  # (..., E)


def _one_hot(experts: torch.Tensor, count: int) -> torch.Tensor:
    """Return bool (..., E); `torch.nn.functional.one_hot` looks at values, which vmap and the meta device forbid."""
    return experts[..., None] == torch.arange(count, device=experts.device)  # (..., E)


_RECORDER: ContextVar[list[LayerRouting] | None] = ContextVar("edgeopt_routing", default=None)


@contextmanager
def record_routing() -> Iterator[list[LayerRouting]]:
    """Collect the routing of every mixture-of-experts layer that runs inside, in order; of nested ones the inner collects.

    Inside `torch.func` transforms, open and read it within the transformed function: tensors made there mean nothing
    outside.

    Examples
    --------
    >>> model = moe_decoder(context=16, width=8, depth=2, heads=2, hidden=8, experts=4)
    >>> with record_routing() as routing:
    ...     logits = model(torch.zeros(3, 16, dtype=torch.int64))
    >>> len(routing), routing[0].experts.shape
    (2, torch.Size([3, 16, 2]))
    """
    routing: list[LayerRouting] = []
    token = _RECORDER.set(routing)
    try:
        yield routing
    finally:
        _RECORDER.reset(token)


Learners = Sequence[bool] | torch.Tensor
"""Which experts of a layer learn, [E]: plain truth values, or a tensor of them."""

Choice = Callable[[LayerRouting], Learners]
"""Decides in a pass which experts of a layer learn from it."""

_LEARNERS: ContextVar[Mapping["Experts", Learners | Choice]] = ContextVar("edgeopt_learners")


@contextmanager
def limit_learners(learners: Mapping["Experts", Learners | Choice]) -> Iterator[None]:
    """Let only some experts learn in the passes inside; layers without an entry learn as a whole, see `Experts`."""
    token = _LEARNERS.set(learners)
    try:
        yield
    finally:
        _LEARNERS.reset(token)


_EVERY_EXPERT: ContextVar[bool] = ContextVar("edgeopt_every_expert", default=False)

_WORTH_IT = 1 << 19
"""Multiplications that must be saved for each expert that is run on its own; measured on a CPU."""


@contextmanager
def every_expert() -> Iterator[None]:
    """Let every expert compute every token in the passes inside: for measuring, as nothing depends on the data then."""
    token = _EVERY_EXPERT.set(True)
    try:
        yield
    finally:
        _EVERY_EXPERT.reset(token)


class _StandIn(torch.autograd.Function):
    """The value of one tensor, with the gradients of another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient


class Experts(nn.Module):
    r"""A router and E feed-forward networks of which each token uses K.

    .. math:: y = \sum_{e \in A} w_e \, \mathrm{down}_e(\mathrm{gelu}(\mathrm{up}_e(x))), \qquad
              p = \mathrm{softmax}(\mathrm{router}(x)), \; A = \mathrm{top}_K(p), \;
              w_e = p_e \text{ if } K = 1, \text{ else } p_e / \sum_{a \in A} p_a

    Weights of all experts are stacked. Where values may be looked at and it saves work, each expert computes the tokens
    that use it: K / E of what all take. Within `torch.func.vmap`, on the meta device and in `every_expert`, every expert
    computes every token with the weight of the unchosen ones at zero, so that no shape depends on the data; the outputs
    are equal up to rounding.

    Inside `limit_learners` some experts do not learn: the output is the same to the last bit, but to their networks it is
    a constant. Their gradients are exactly zero, and none goes through them to x; the router learns from the outputs of
    all K experts of a token. Where the choice is plain values, these experts run without a graph and keep nothing for the
    backward pass but what they returned; where every expert computes every token, that is at the cost of running the
    learning ones twice. Where it is a tensor, which may differ from client to client within `torch.func.vmap`, their
    gradients are set to zero.

    Parameters
    ----------
    width, hidden : channels C of input and output, inner width D of one expert.
    experts, top_k : experts E, and how many of them (K) a token uses.
    """

    def __init__(self, width: int, hidden: int, experts: int, top_k: int) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise InvalidProblemError(f"top_k = {top_k}: expected 1 to the {experts} experts of a layer")
        self.top_k = top_k
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, width, hidden).normal_(std=0.02))
        self.up_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width).normal_(std=0.02))
        self.down_bias = nn.Parameter(torch.zeros(experts, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., C) of x (..., C), which has at least one leading axis."""
        logits = self.router(x)  # (..., E)
        order = logits.argsort(dim=-1, descending=True, stable=True)  # (..., E)
        chosen = order[..., : self.top_k]  # (..., K)
        routing = LayerRouting(logits, chosen, x, self)
        if (recorder := _RECORDER.get()) is not None:
            recorder.append(routing)
        is_chosen = routing.is_chosen  # (..., E)
        weight = routing.probability * is_chosen  # (..., E)
        if self.top_k > 1:
            weight = weight / weight.sum(dim=-1, keepdim=True)  # (..., E)
        weight = weight.to(x.dtype)  # (..., E)
        limit = _LEARNERS.get({}).get(self)
        learners = limit(routing) if callable(limit) else limit
        if (counts := self._counts(is_chosen)) is not None:
            return self._apart(x, weight, chosen, counts, learners)
        if isinstance(learners, torch.Tensor):
            return self._masked(x, weight, learners)
        if learners is None or all(learners) or not torch.is_grad_enabled():
            return _mixture(weight, _inner(x, self.up, self.up_bias), self.down, self.down_bias)
        return self._skipping(x, weight, chosen.contiguous(), learners)

    def _counts(self, is_chosen: torch.Tensor) -> list[int] | None:
        """Return how many tokens use each expert; None where that is not known, or every expert is to compute all."""
        experts, width, hidden = self.up.shape
        tokens = math.prod(is_chosen.shape[:-1])
        saved = tokens * (experts - self.top_k) * 2 * width * hidden
        if _EVERY_EXPERT.get() or not saved or saved < _WORTH_IT * min(experts, tokens * self.top_k):
            return None
        try:
            found: list[int] = is_chosen.flatten(0, -2).sum(dim=0).tolist()
        except RuntimeError:  # a tensor without a value to look at: of a batch of clients, on the meta device
            return None
        return found

    def _apart(
        self, x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor, counts: list[int], learners: Learners | None
    ) -> torch.Tensor:
        """Return (..., C); each expert computes the tokens that use it, as many as `counts` [E] says."""
        learns = [True] * len(counts) if learners is None else [bool(value) for value in learners]
        order = chosen.flatten().argsort(stable=True)  # (N K,), expert after expert
        rows = torch.split(x.flatten(0, -2)[order // self.top_k], counts)  # E of (n_e, C)
        weights = (part.unbind() for part in (self.up, self.up_bias, self.down))  # of each expert
        answers = []
        for own, learning, up, up_bias, down in zip(rows, learns, *weights, strict=True):
            with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
                answers.append(F.gelu(own @ up + up_bias) @ down)  # (n_e, C)
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))  # (N K,)
        answer = torch.cat(answers)[back].view(*chosen.shape, x.shape[-1])  # (..., K, C)
        y = (weight.gather(-1, chosen)[..., None] * answer).sum(dim=-2).to(answer.dtype)  # (..., C)
        return y + weight @ _constant_but(torch.tensor(learns, device=x.device)[:, None], self.down_bias)

    def _masked(self, x: torch.Tensor, weight: torch.Tensor, learners: torch.Tensor) -> torch.Tensor:
        """Return (..., C); gradients of and through the networks of experts outside of `learners` (E,) are zero."""
        inner = _constant_but(learners[:, None], _inner(x, self.up, self.up_bias))  # (..., E, D)
        down = _constant_but(learners[:, None, None], self.down)  # (E, D, C)
        return _mixture(weight, inner, down, _constant_but(learners[:, None], self.down_bias))

    def _skipping(
        self, x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor, learners: Sequence[bool]
    ) -> torch.Tensor:
        """Return (..., C); only the experts among `learners` [E] have a graph."""
        own = [e for e, learns in enumerate(learners) if learns]
        with torch.no_grad():
            inner = _inner(x, self.up, self.up_bias)  # (..., E, D)
            value = _mixture(weight, inner, self.down, self.down_bias)  # (..., C)
            answers = torch.einsum("...ed,edc->...ec", inner, self.down) + self.down_bias  # (..., E, C)
            constant = ~torch.tensor(learners, device=x.device)[chosen]  # (..., K)
            of_token = chosen[..., None].expand(*chosen.shape, x.shape[-1])  # (..., K, C)
            answers = answers.gather(-2, of_token) * constant[..., None]  # (..., K, C)
        y = (weight.gather(-1, chosen)[..., None] * answers).sum(dim=-2)  # (..., C), what the router learns from them
        for e in (slice(e, e + 1) for e in own):  # views: copies of the weights would be kept
            y = y + _mixture(weight[..., e], _inner(x, self.up[e], self.up_bias[e]), self.down[e], self.down_bias[e])
        stood_in: torch.Tensor = _StandIn.apply(value, y.to(value.dtype))  # type: ignore[no-untyped-call]
        return stood_in


def _inner(x: torch.Tensor, up: torch.Tensor, up_bias: torch.Tensor) -> torch.Tensor:
    """Return (..., E, D), what is inside of the experts."""
    return F.gelu(torch.einsum("...c,ecd->...ed", x, up) + up_bias)


def _mixture(weight: torch.Tensor, inner: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor) -> torch.Tensor:
    """Return (..., C), the weighted sum of what experts return."""
    y: torch.Tensor = torch.einsum("...ed,edc->...c", inner * weight[..., None], down)  # (..., C)
    return y + weight @ down_bias


def _constant_but(learners: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the values; where `learners` is False, they have no gradient."""
    return torch.where(learners, values, values.detach())


def expert_shares(model: nn.Sequential, inputs: torch.Tensor) -> dict[str, float]:
    """Return, by name of each layer of experts, which share of the FLOPs of the child that it is in are its networks'.

    The router is not one of them.

    Parameters
    ----------
    inputs : (B, ...), of the model.
    """
    with torch.inference_mode(), every_expert(), FlopCounterMode(display=False) as counter:
        model(inputs)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(model).__name__
    shares = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Experts):
            networks = flops[f"{root}.{name}"] - flops[f"{root}.{name}.router"]
            shares[name] = networks / flops[f"{root}.{name.split('.', 1)[0]}"]
    return shares


def moe_mlp(
    in_shape: int | Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 32,
    hidden: int = 32,
    experts: int = 8,
    top_k: int = 2,
) -> nn.Sequential:
    """Return a classifier whose hidden layer is a mixture of experts; a sample is one token. It may be cut after any layer.

    Parameters
    ----------
    in_shape : features of a sample, or its shape, for example (1, 8, 8). Samples are flattened.
    num_classes : size of the output.
    width, hidden : of what enters the experts and leaves them; inner width of an expert.
    experts, top_k : experts, and how many of them a sample uses.

    Examples
    --------
    >>> [name for name, _ in moe_mlp((1, 8, 8)).named_children()]
    ['stem', 'experts', 'head']
    """
    features = math.prod(
        integer("in_shape", size, low=1) for size in listed("in_shape", in_shape, single=(int, np.integer))
    )
    layer = Experts(width, hidden, experts, top_k)
    for weights, fan_in in ((layer.up, width), (layer.down, hidden)):
        nn.init.normal_(weights, std=(2 / fan_in) ** 0.5)  # keeps the scale, as there is no path around the experts
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU())
    layers["experts"] = layer
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)


def moe_decoder(
    *,
    vocabulary: int = 256,
    context: int = 128,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    hidden: int = 128,
    experts: int = 8,
    top_k: int = 2,
) -> nn.Sequential:
    """Return a decoder that may be cut after every attention and every block of experts; for bytes by default.

    Parameters
    ----------
    vocabulary, context : token ids, longest sequence.
    width, depth, heads : channels of a token, blocks, heads.
    hidden, experts, top_k : inner width of an expert, experts per block, experts that a token uses per block.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["embedding"] = Embedding(vocabulary, context, width)
    for index in range(depth):
        attention = SelfAttention(width, heads, causal=True, fused=False)
        layers[f"block{index + 1}_attention"] = Residual(nn.LayerNorm(width), attention)
        layers[f"block{index + 1}_experts"] = Residual(nn.LayerNorm(width), Experts(width, hidden, experts, top_k))
    layers["head"] = Head(nn.LayerNorm(width), width, vocabulary)
    model = nn.Sequential(layers)
    initialise(model)
    return model
