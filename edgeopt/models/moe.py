"""Mixture-of-experts decoders: a GPT-2 whose feed-forward blocks are experts that a Top-K router picks per token.

Router and load-balancing loss are those of Switch Transformers (Fedus et al., arXiv:2101.03961, sections 2.1 and 2.2);
for K >= 2 the weights of the chosen experts are made to sum to one, as in Mixtral (arXiv:2401.04088, section 2.1).
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.errors import InvalidProblemError
from edgeopt.models.attention import SelfAttention, initialise
from edgeopt.models.decoder import Embedding, Head, Residual


@dataclass(frozen=True, slots=True, eq=False)
class LayerRouting:
    """What the router of one layer decided in one forward pass.

    Parameters
    ----------
    logits : (B, T, E), output of the router.
    experts : int64 (B, T, K), the chosen experts, best first; ties go to the lowest index.
    hidden : (B, T, C), what entered the layer.
    layer : the layer.
    """

    logits: torch.Tensor
    experts: torch.Tensor
    hidden: torch.Tensor | None = None
    layer: "Experts | None" = None

    @property
    def balance_loss(self) -> torch.Tensor:
        r"""Load-balancing loss (arXiv:2101.03961, equations 4 to 6), 1 if probabilities and choices are even.

        .. math:: E \sum_e f_e P_e

        f is the share of all choices that fell on expert e, P its mean probability; gradients flow through P alone.
        """
        probability = _probability(self.logits).mean(dim=(0, 1))  # (E,)
        count = probability.shape[0]
        share = _one_hot(self.experts, count).to(probability.dtype).mean(dim=(0, 1, 2))  # (E,)
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

_LEARNERS: ContextVar[Mapping["Experts", Learners]] = ContextVar("edgeopt_learners")


@contextmanager
def limit_learners(learners: Mapping["Experts", Learners]) -> Iterator[None]:
    """Let only some experts learn in the passes inside; layers without an entry learn as a whole, see `Experts`."""
    token = _LEARNERS.set(learners)
    try:
        yield
    finally:
        _LEARNERS.reset(token)


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

    Weights of all experts are stacked, and every expert computes every token with the weight of the unchosen ones at
    zero. That is E / K times the work that is needed, but no shape depends on the data: the layer runs inside
    `torch.func.vmap`, and on the meta device.

    Inside `limit_learners` some experts do not learn: the output is the same to the last bit, but to their networks it is
    a constant. Their gradients are exactly zero, and none goes through them to x; the router learns from the outputs of
    all K experts of a token. Where the choice is plain values, these experts run without a graph and keep nothing for the
    backward pass but those K outputs, at the cost of running the learning ones twice; where it is a tensor, which may
    differ from client to client within `torch.func.vmap`, their gradients are set to zero.

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
        """Return (B, T, C) of x (B, T, C)."""
        logits = self.router(x)  # (B, T, E)
        order = logits.argsort(dim=-1, descending=True, stable=True)  # (B, T, E)
        chosen = order[..., : self.top_k]  # (B, T, K)
        if (routing := _RECORDER.get()) is not None:
            routing.append(LayerRouting(logits, chosen, x, self))
        is_chosen = _one_hot(chosen, logits.shape[-1]).any(dim=-2)  # (B, T, E)
        weight = _probability(logits) * is_chosen  # (B, T, E)
        if self.top_k > 1:
            weight = weight / weight.sum(dim=-1, keepdim=True)  # (B, T, E)
        weight = weight.to(x.dtype)  # (B, T, E)
        learners = _LEARNERS.get({}).get(self)
        if isinstance(learners, torch.Tensor):
            return self._masked(x, weight, learners)
        if learners is None or all(learners) or not torch.is_grad_enabled():
            return _mixture(weight, _inner(x, self.up, self.up_bias), self.down, self.down_bias)
        return self._skipping(x, weight, chosen.contiguous(), learners)

    def _masked(self, x: torch.Tensor, weight: torch.Tensor, learners: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C); gradients of and through the networks of experts outside of `learners` (E,) are zero."""
        inner = _constant_but(learners[:, None], _inner(x, self.up, self.up_bias))  # (B, T, E, D)
        down = _constant_but(learners[:, None, None], self.down)  # (E, D, C)
        return _mixture(weight, inner, down, _constant_but(learners[:, None], self.down_bias))

    def _skipping(
        self, x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor, learners: Sequence[bool]
    ) -> torch.Tensor:
        """Return (B, T, C); only the experts among `learners` [E] have a graph."""
        own = [e for e, learns in enumerate(learners) if learns]
        with torch.no_grad():
            inner = _inner(x, self.up, self.up_bias)  # (B, T, E, D)
            value = _mixture(weight, inner, self.down, self.down_bias)  # (B, T, C)
            answers = torch.einsum("bted,edc->btec", inner, self.down) + self.down_bias  # (B, T, E, C)
            constant = ~torch.tensor(learners, device=x.device)[chosen]  # (B, T, K)
            of_token = chosen[..., None].expand(*chosen.shape, x.shape[-1])  # (B, T, K, C)
            answers = answers.gather(-2, of_token) * constant[..., None]  # (B, T, K, C)
        y = (weight.gather(-1, chosen)[..., None] * answers).sum(dim=-2)  # (B, T, C), what the router learns from them
        for e in (slice(e, e + 1) for e in own):  # views: copies of the weights would be kept
            y = y + _mixture(weight[..., e], _inner(x, self.up[e], self.up_bias[e]), self.down[e], self.down_bias[e])
        stood_in: torch.Tensor = _StandIn.apply(value, y.to(value.dtype))  # type: ignore[no-untyped-call]
        return stood_in


def _inner(x: torch.Tensor, up: torch.Tensor, up_bias: torch.Tensor) -> torch.Tensor:
    """Return (B, T, E, D), what is inside of the experts."""
    return F.gelu(torch.einsum("btc,ecd->bted", x, up) + up_bias)


def _mixture(weight: torch.Tensor, inner: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor) -> torch.Tensor:
    """Return (B, T, C), the weighted sum of what experts return."""
    y: torch.Tensor = torch.einsum("bted,edc->btc", inner * weight[..., None], down)  # (B, T, C)
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
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(inputs)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(model).__name__
    shares = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Experts):
            networks = flops[f"{root}.{name}"] - flops[f"{root}.{name}.router"]
            shares[name] = networks / flops[f"{root}.{name.split('.', 1)[0]}"]
    return shares


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
