"""Low-rank adapters (E. Hu et al., LoRA, arXiv:2106.09685): linear layers that keep their weights and learn a small product beside them."""

import copy
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.validate import integer, listed, real, seed_number

Model = TypeVar("Model", bound=nn.Module)

_ADAPTERS = ("lora_a", "lora_b")


class LoraLinear(nn.Module):
    r"""A linear layer with an adapter: :math:`y = W x + b + s B A x`, with :math:`s = \alpha / r` and W, b frozen.

    A is (r, in), B is (out, r) and starts at zero, so that the layer starts as the one that it takes the place of, to the last
    bit. The scale belongs to the layer, not to a client: whoever uses the first rows of A and columns of B alone, with
    zeros in place of the others, has the layer of that lower rank under the same scale. Zeros stay zeros in training, as
    the gradient of a row of A is a multiple of its column of B, and the other way round.

    Parameters
    ----------
    weight, bias : of the layer, (out, in) or, if `transposed`, (in, out); and (out,) or None. They are used, not copied.
    rank : r, from 1 to the smaller of both sizes.
    alpha : numerator of the scale, > 0. Default: the rank, which is a scale of 1.
    transposed : whether the weight lies as in ``Conv1D`` of transformers.
    generator : draws A from N(0, 1 / in).
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        rank: int,
        alpha: float | None = None,
        transposed: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.transposed = transposed
        sides = tuple(weight.shape)[::-1] if transposed else tuple(weight.shape)
        self.out_features, self.in_features = sides
        self.rank = integer("rank", rank, low=1, high=min(sides))
        self.alpha = float(rank if alpha is None else alpha)
        if not real("alpha", self.alpha) > 0:
            raise InvalidProblemError(f"alpha = {quoted(alpha)}: expected a number above 0")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        first = torch.randn(self.rank, self.in_features, generator=generator) / math.sqrt(self.in_features)  # (r, in)
        self.lora_a = nn.Parameter(first.to(weight))
        self.lora_b = nn.Parameter(weight.new_zeros(self.out_features, self.rank))

    @property
    def scale(self) -> float:
        """Factor s of the product."""
        return self.alpha / self.rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out) of x (..., in)."""
        low = F.linear(F.linear(x, self.lora_a), self.lora_b)  # (..., out)
        return self._base(x) + self.scale * low  # (..., out)

    def _base(self, x: torch.Tensor) -> torch.Tensor:
        if not self.transposed:
            return F.linear(x, self.weight, self.bias)  # (..., out)
        flat = x.reshape(-1, self.in_features)  # (n, in), as Conv1D does it
        product = flat @ self.weight if self.bias is None else torch.addmm(self.bias, flat, self.weight)  # (n, out)
        return product.reshape(*x.shape[:-1], self.out_features)  # (..., out)

    def extra_repr(self) -> str:
        """Return sizes and rank."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, alpha={self.alpha:g}"
        )


def add_lora(
    model: Model,
    pattern: str | Sequence[str],
    *,
    rank: int = 8,
    ranks: Mapping[str, int] | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> Model:
    """Return a copy of a model with adapters at some linear layers; everything else is frozen.

    What shall be trained beside the adapters, such as a head, is made to require gradients afterwards.

    Parameters
    ----------
    model : of `torch.nn` layers. ``Conv1D`` of transformers is a linear layer, too.
    pattern : names of layers as in ``model.named_modules()``, with the wildcards ``*`` and ``?``: ``"hidden*"``,
        ``["*.q_proj", "*.v_proj"]``. Each fits a linear layer.
    rank : of the adapters.
    ranks : of those that a pattern of these fits, the first that does.
    alpha : numerator of the scale, see `LoraLinear`. Default: the rank of each layer, a scale of 1.
    seed : decides the adapters' first weights; the global random state stays as it is.

    Raises
    ------
    InvalidProblemError
        If a pattern fits no linear layer, a rank is above the size of its layer, a layer has an adapter already, or its
        weight is that of another layer, too.

    Examples
    --------
    >>> from edgeopt.models import mlp
    >>> model = add_lora(mlp(40, (64, 32)), "hidden*", rank=4, ranks={"hidden2*": 2})
    >>> [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]  # doctest: +ELLIPSIS
    [('hidden1.1.lora_a', (4, 40)), ..., ('hidden2.0.lora_b', (32, 2))]
    """
    model = copy.deepcopy(model)
    layers = {name: layer for name, layer in model.named_modules() if is_linear(layer)}
    wanted = listed("pattern", pattern)
    chosen = [name for name in layers if any(fnmatchcase(name, one) for one in wanted)]
    for given, known in ((wanted, list(layers)), (list(ranks or {}), chosen)):
        if unknown := next((one for one in given if not any(fnmatchcase(name, one) for name in known)), None):
            raise InvalidProblemError(
                f"pattern {quoted(unknown)} fits no linear layer: expected one of {', '.join(known) or 'none there is'}"
            )
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        if other != name and {layer.rpartition(".")[0] for layer in (name, other)} & set(chosen):
            raise InvalidProblemError(
                f"model: {other} and {name} are the same tensor, expected a layer with a weight of its own for an adapter"
            )
    generator = torch.Generator().manual_seed(seed_number("seed", seed))
    for name in chosen:
        own = next((value for one, value in (ranks or {}).items() if fnmatchcase(name, one)), rank)
        put_layer(model, name, _adapted(name, layers[name], own, alpha, generator))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] in _ADAPTERS)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Return the layers with adapters by name, in the order of the model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


def _adapted(name: str, layer: nn.Module, rank: int, alpha: float | None, generator: torch.Generator) -> LoraLinear:
    if isinstance(layer, LoraLinear):
        raise InvalidProblemError(f"{name}: has an adapter already, expected a linear layer without")
    assert isinstance(layer.weight, torch.Tensor)
    outputs, inputs = layer.weight.shape
    if not 1 <= integer(f"rank of {name}", rank) <= min(inputs, outputs):
        size = f"the smaller side of its {outputs} x {inputs} weights"
        raise InvalidProblemError(f"rank of {name} = {rank}: expected 1 to {min(inputs, outputs)}, {size}")
    bias = layer.bias if isinstance(layer.bias, torch.Tensor) else None
    transposed = not isinstance(layer, nn.Linear)
    return LoraLinear(layer.weight, bias, rank=rank, alpha=alpha, transposed=transposed, generator=generator)


def is_linear(layer: nn.Module) -> bool:
    """Return whether a layer may have an adapter, or has one; subclasses with a rule of their own are left alone."""
    conv1d = type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers.")
    return type(layer) is nn.Linear or isinstance(layer, LoraLinear) or conv1d


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer into the place of the one of a name."""
    parent, _, own = name.rpartition(".")
    model.get_submodule(parent)._modules[own] = layer
