"""Public dimensions of published mixture-of-experts language models."""

from dataclasses import dataclass

from edgeopt.errors import InvalidProblemError
from edgeopt.validate import by_name, integer

_SWITCH = "arXiv:2101.03961; configuration of the checkpoint google/switch-base-{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEModel:
    r"""What caching needs to know of a mixture-of-experts model: how many experts, and how large they are.

    An expert is a feed-forward block of two matrices, or of three if it is gated:

    .. math:: s = 2 d d_{ff} \text{ or } 3 d d_{ff} \text{ values}, \qquad
              c = 4 d d_{ff} \text{ or } 6 d d_{ff} \text{ FLOPs per token}

    (biases and the activation function itself are left out). Only routed experts count: shared experts, attention,
    embeddings and routers belong to the part that every device holds.

    ==========  ============================
    symbol      field
    ==========  ============================
    d           ``d_model``
    d_ff        ``d_ff``
    K           ``top_k``
    E           ``experts_per_layer``
    L           ``num_layers``
    ==========  ============================

    Parameters
    ----------
    name : name to look it up by.
    num_layers : layers with routed experts; dense layers are not counted.
    experts_per_layer : routed experts in each of these layers.
    top_k : routed experts that a token uses in each of these layers.
    d_model : width of the hidden state, in values.
    d_ff : inner width of one expert, in values.
    gated : whether an expert has three matrices (SwiGLU and the like) instead of two.
    source : the paper and the checkpoint whose configuration was read.
    bits_per_value : bits of one weight and of one value of the hidden state.

    Raises
    ------
    InvalidProblemError
        If a number is not a positive integer, or `top_k` exceeds `experts_per_layer`.

    Examples
    --------
    >>> model = moe_model("mixtral-8x7b")
    >>> model.num_experts, model.expert_parameters, model.expert_bytes
    (256, 176160768, 352321536)
    >>> model.flops_per_token, model.hidden_bits
    (352321536, 65536)
    """

    name: str
    num_layers: int
    experts_per_layer: int
    top_k: int
    d_model: int
    d_ff: int
    gated: bool
    source: str
    bits_per_value: int = 16

    def __post_init__(self) -> None:
        for field in ("num_layers", "experts_per_layer", "top_k", "d_model", "d_ff", "bits_per_value"):
            object.__setattr__(self, field, integer(f"{self.name}: {field}", getattr(self, field), low=1))
        if self.top_k > self.experts_per_layer:
            raise InvalidProblemError(
                f"{self.name}: top_k = {self.top_k}: expected at most experts_per_layer = {self.experts_per_layer}"
            )
        if self.expert_parameters * self.bits_per_value % 8:
            raise InvalidProblemError(
                f"{self.name}: bits_per_value = {self.bits_per_value}: expected an expert of whole bytes"
            )

    @property
    def num_experts(self) -> int:
        """Routed experts over all layers."""
        return self.num_layers * self.experts_per_layer

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert."""
        return (3 if self.gated else 2) * self.d_model * self.d_ff

    @property
    def expert_bytes(self) -> int:
        """Size of one expert in bytes."""
        return self.expert_parameters * self.bits_per_value // 8

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of one expert for one token; a multiply-add counts as two."""
        return 2 * self.expert_parameters

    @property
    def hidden_bits(self) -> int:
        """Size in bits of the hidden state of one token, sent to an expert and back."""
        return self.d_model * self.bits_per_value


def _switch_base(experts: int) -> MoEModel:
    return MoEModel(  # T5-base: 12 encoder and 12 decoder layers, every other one sparse
        name=f"switch-base-{experts}", num_layers=12, experts_per_layer=experts, top_k=1, d_model=768, d_ff=3072,
        gated=False, source=_SWITCH.format(experts),
    )  # fmt: skip


MOE_MODELS: tuple[MoEModel, ...] = (
    _switch_base(8),
    _switch_base(16),
    _switch_base(32),
    _switch_base(64),
    _switch_base(128),
    MoEModel(
        name="mixtral-8x7b", num_layers=32, experts_per_layer=8, top_k=2, d_model=4096, d_ff=14336, gated=True,
        source="arXiv:2401.04088; configuration of mistralai/Mixtral-8x7B-v0.1",
    ),
    MoEModel(
        name="olmoe-1b-7b", num_layers=16, experts_per_layer=64, top_k=8, d_model=2048, d_ff=1024, gated=True,
        source="arXiv:2409.02060; configuration of allenai/OLMoE-1B-7B-0924",
    ),
    MoEModel(  # the first of 28 layers is dense; two shared experts per layer are not routed
        name="deepseek-moe-16b", num_layers=27, experts_per_layer=64, top_k=6, d_model=2048, d_ff=1408, gated=True,
        source="arXiv:2401.06066; configuration of deepseek-ai/deepseek-moe-16b-base",
    ),
    MoEModel(  # a shared expert of width 5632 per layer is not routed
        name="qwen1.5-moe-a2.7b", num_layers=24, experts_per_layer=60, top_k=4, d_model=2048, d_ff=1408, gated=True,
        source="qwenlm.github.io/blog/qwen-moe; configuration of Qwen/Qwen1.5-MoE-A2.7B",
    ),
)  # fmt: skip
"""Models by their published dimensions; weights are not included."""


def moe_model(name: str) -> MoEModel:
    """Return the model of `MOE_MODELS` with this name.

    Parameters
    ----------
    name : for example ``switch-base-32``.

    Raises
    ------
    InvalidProblemError
        If there is none; the message lists the names.

    Examples
    --------
    >>> moe_model("switch-base-32").expert_bytes
    9437184
    """
    return by_name("model", name, {model.name: model for model in MOE_MODELS})
