"""Models as ``nn.Sequential`` of named blocks: one tensor crosses every boundary, so every boundary is a valid cut.

Needs the extra ``train``.
"""

from collections.abc import Callable

from edgeopt.extras import needs
from edgeopt.validate import by_name

with needs("edgeopt.models", "train"):
    import torch
    from torch import nn

    from edgeopt.models.bert import bert as bert
    from edgeopt.models.cnn import small_cnn as small_cnn
    from edgeopt.models.decoder import gpt2 as gpt2
    from edgeopt.models.decoder import llama as llama
    from edgeopt.models.gguf import unpack_gguf as unpack_gguf
    from edgeopt.models.hugging_face import from_transformers as from_transformers
    from edgeopt.models.hugging_face import to_transformers as to_transformers
    from edgeopt.models.language_model import LanguageModel as LanguageModel
    from edgeopt.models.language_model import load_language_model as load_language_model
    from edgeopt.models.lora import LoraLinear as LoraLinear
    from edgeopt.models.lora import add_lora as add_lora
    from edgeopt.models.lora import lora_layers as lora_layers
    from edgeopt.models.mlp import mlp as mlp
    from edgeopt.models.mobilenet import mobilenetv2 as mobilenetv2
    from edgeopt.models.moe import LayerRouting as LayerRouting
    from edgeopt.models.moe import moe_decoder as moe_decoder
    from edgeopt.models.moe import moe_mlp as moe_mlp
    from edgeopt.models.moe import record_routing as record_routing
    from edgeopt.models.resnet import BasicBlock as BasicBlock
    from edgeopt.models.resnet import Bottleneck as Bottleneck
    from edgeopt.models.resnet import resnet as resnet
    from edgeopt.models.resnet import resnet18 as resnet18
    from edgeopt.models.resnet import resnet50 as resnet50
    from edgeopt.models.small import SMALL_MODELS as SMALL_MODELS
    from edgeopt.models.small import model_for as model_for
    from edgeopt.models.vgg import vgg as vgg
    from edgeopt.models.vgg import vgg16 as vgg16
    from edgeopt.models.vision_transformer import vision_transformer as vision_transformer

_MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "mobilenetv2": mobilenetv2,
    "vit-b16": vision_transformer,
    "bert-base": bert,
    "gpt2": gpt2,
    "tinyllama-1.1b": llama,
}
_TOKENS = {"bert-base": 30_522, "gpt2": 50_257, "tinyllama-1.1b": 32_000}

MODELS: tuple[str, ...] = tuple(_MODELS)
"""Names that `build_model` knows."""


def build_model(name: str, *, seed: int = 0) -> nn.Sequential:
    """Return a published model at its published size, with random weights.

    Parameters
    ----------
    name : one of `MODELS`. Other sizes are made by the functions of the families, for example `resnet18`.
    seed : the same seed gives the same weights; the global random state stays as it is.

    Raises
    ------
    InvalidProblemError
        If there is no model of this name.

    Examples
    --------
    >>> with torch.device("meta"):  # shapes only: takes no memory
    ...     model = build_model("tinyllama-1.1b")
    >>> sum(parameter.numel() for parameter in model.parameters())
    1100048384
    """
    build = by_name("model", name, _MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def sample_input(name: str, *, batch_size: int = 1, seed: int = 0) -> torch.Tensor:
    """Return random inputs of a model of `MODELS`: images (B, 3, 224, 224), or sequences of 128 token ids (B, 128).

    Parameters
    ----------
    name : one of `MODELS`.
    batch_size : samples B.
    seed : the same seed gives the same inputs.
    """
    by_name("model", name, _MODELS)
    generator = torch.Generator().manual_seed(seed)
    if name in _TOKENS:
        return torch.randint(_TOKENS[name], (batch_size, 128), generator=generator)  # (B, T)
    return torch.randn(batch_size, 3, 224, 224, generator=generator)  # (B, 3, H, W)
