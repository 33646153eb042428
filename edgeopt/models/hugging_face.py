"""Decoders of Hugging Face transformers as layers that may be cut, and their adapters as checkpoints of peft.

The modules of the original do the work; transformers itself is not imported here. Needs the extra ``llm`` to have a model at all.
"""

import copy
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.extras import needs
from edgeopt.fields import Fields, in_file
from edgeopt.models.lora import LoraLinear, is_linear, lora_layers, put_layer
from edgeopt.tensors import load_any_tensors

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "gpt2": "gpt2"}
"""How models are built, by the type that their configuration names."""
_ROPES = ("default", "linear", "llama3", "yarn")  # whose frequencies do not change while they run
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of names in a checkpoint of peft


class LlamaBlock(nn.Module):
    """A block of a Llama-type decoder: hidden states in, hidden states out."""

    def __init__(self, layer: nn.Module, rotary: nn.Module, *, eager: bool) -> None:
        super().__init__()
        self.layer = layer
        self.rotary = rotary
        self.eager = eager

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        position = torch.arange(x.shape[1], device=x.device)[None]  # (1, T)
        mask = causal_mask(x) if self.eager else None
        y: torch.Tensor = self.layer(
            x, attention_mask=mask, position_ids=position, position_embeddings=self.rotary(x, position), use_cache=False
        )  # (B, T, C)
        return y


class Gpt2Embedding(nn.Module):
    """Embeddings of tokens and positions of a GPT-2."""

    def __init__(self, wte: nn.Module, wpe: nn.Module, drop: nn.Module) -> None:
        super().__init__()
        self.wte = wte
        self.wpe = wpe
        self.drop = drop

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of token ids (B, T)."""
        position = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, T)
        y: torch.Tensor = self.drop(self.wte(tokens) + self.wpe(position))  # (B, T, C)
        return y


class Gpt2Block(nn.Module):
    """A block of a GPT-2: hidden states in, hidden states out."""

    def __init__(self, layer: nn.Module, *, eager: bool) -> None:
        super().__init__()
        self.layer = layer
        self.eager = eager

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        y: torch.Tensor = self.layer(x, attention_mask=causal_mask(x) if self.eager else None)  # (B, T, C)
        return y


def causal_mask(x: torch.Tensor) -> torch.Tensor:
    """Return (1, 1, T, T), what attention without a fused kernel adds to its scores: least numbers for later tokens."""
    shape = (x.shape[1], x.shape[1])
    return torch.full(shape, torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)[None, None]


def from_transformers(model: nn.Module, *, adapters: str | os.PathLike[str] | None = None) -> nn.Sequential:
    """Return a decoder of transformers as layers that may be cut: ``embedding``, ``block1``, ..., ``norm``, ``head``.

    It computes what the original does for sequences without padding, with the same modules, and so to the last bit. They are
    copies: the original stays as it is. Where the head scores tokens with the weights of the embedding, the copy has weights
    of its own with the same values, as both may be on different machines; trained, they no longer stay the same.

    Many clients run as one batch if the original was loaded with ``attn_implementation="eager"`` and has no dropout; with
    another they run one after another.

    Parameters
    ----------
    model : a ``LlamaForCausalLM``, or one of the types in `FAMILIES`, or a ``GPT2LMHeadModel``.
    adapters : a folder with a checkpoint of peft for this model; its layers get those adapters, and the rest is frozen.

    Raises
    ------
    InvalidProblemError
        If it is no such model, or attends by something that is not supported.
    InvalidFileError
        If the checkpoint is damaged, of another kind, or of another model.

    Examples
    --------
    A model of any local folder, cut after its second block::

        original = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        model = add_lora(from_transformers(original), "*.q_proj", rank=8)
    """
    layers = _layers(model)
    built = nn.Sequential(layers)
    return built if adapters is None else _with_adapters(built, Path(adapters))


def to_transformers(model: nn.Sequential, original: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the adapters of a model as a checkpoint of peft: ``PeftModel.from_pretrained(original, folder)`` computes the same.

    What was folded into frozen weights beside an adapter, as HSplitLoRA does, is written with it: as factors of the
    difference to the original, of as high a rank as it has.

    Parameters
    ----------
    model : of `from_transformers` and `edgeopt.models.add_lora`, trained: load the weights of a history with
        ``model.load_state_dict(history.models[0])``.
    original : of transformers, from which the model was made; only read.
    folder : made if it is not there; files of an older checkpoint are replaced.

    Raises
    ------
    InvalidProblemError
        If the model has no adapters, is not made of `original`, or has learnt something that is no adapter.
    """
    layers = lora_layers(model)
    if not layers:
        raise InvalidProblemError("model: has no adapters to write: expected one of add_lora")
    base = nn.Sequential(_layers(original, copied=False)).state_dict()
    own = {name: value for name, value in model.state_dict().items() if "lora_" not in name.rpartition(".")[2]}
    if odd := own.keys() ^ base.keys():
        raise InvalidProblemError(f"original: {min(odd)}: expected the model that this one was made of")
    folded = {f"{name}.weight" for name in layers}
    for name, value in own.items():
        if value.shape != base[name].shape:
            raise InvalidProblemError(
                f"original: {name} has shape {list(base[name].shape)}, here it is {list(value.shape)}: expected the model that "
                "this one was made of"
            )
        if name not in folded and not torch.equal(value, base[name]):
            raise InvalidProblemError(
                f"model: {name} was trained: expected adapters alone, a checkpoint has no place for more"
            )
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in layers.items():
        a, b, scale = _whole_adapter(layer, base[f"{name}.weight"])
        theirs = _their_name(model, name)
        tensors |= {f"{_PREFIX}{theirs}.lora_A.weight": a, f"{_PREFIX}{theirs}.lora_B.weight": b}
        ranks[theirs], alphas[theirs] = len(a), scale * len(a)
    first = next(iter(ranks))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none",
        "base_model_name_or_path": getattr(original.config, "_name_or_path", "") or None,
        "r": ranks[first], "lora_alpha": alphas[first], "lora_dropout": 0.0, "target_modules": list(ranks),
        "rank_pattern": ranks, "alpha_pattern": alphas,
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
    }  # fmt: skip
    with needs("a checkpoint of adapters", "train"):
        from safetensors.torch import save
    data = save({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, {"format": "pt"})
    path = storage.open_folder(folder)
    storage.write_atomic(path / _WEIGHTS, lambda file: file.write(data))
    storage.write_text(path / _CONFIG, storage.dumps(config, indent=2) + "\n")


# --- layers --------------------------------------------------------------------------------------------------------


def _layers(model: Any, *, copied: bool = True) -> OrderedDict[str, nn.Module]:
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES or getattr(model, "lm_head", None) is None:
        said = type(model).__name__ + (f" of type {quoted(kind)}" if kind else "")
        raise InvalidProblemError(
            f"model: a {said}: expected a causal language model of transformers of one of the types {', '.join(FAMILIES)}"
        )
    attention = config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise InvalidProblemError(f"model: attn_implementation = {quoted(attention)}: expected 'eager' or 'sdpa'")
    if FAMILIES[kind] == "llama":
        if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
            raise InvalidProblemError(
                f"model: sliding_window = {config.sliding_window}: expected attention to all earlier tokens"
            )
        if (rope := model.model.rotary_emb.rope_type) not in _ROPES:
            raise InvalidProblemError(f"model: rope_type = {quoted(rope)}: expected one of {', '.join(_ROPES)}")
    elif config.add_cross_attention:
        raise InvalidProblemError("model: add_cross_attention = True: expected a decoder alone")
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    model = copy.deepcopy(model) if copied else model
    eager = attention == "eager"
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if FAMILIES[kind] == "llama":
        inner = model.model
        layers["embedding"] = inner.embed_tokens
        for index, layer in enumerate(inner.layers):
            layers[f"block{index + 1}"] = LlamaBlock(layer, copy.deepcopy(inner.rotary_emb), eager=eager)
        layers["norm"] = inner.norm
    else:
        inner = model.transformer
        layers["embedding"] = Gpt2Embedding(inner.wte, inner.wpe, inner.drop)
        for index, layer in enumerate(inner.h):
            layers[f"block{index + 1}"] = Gpt2Block(layer, eager=eager)
        layers["norm"] = inner.ln_f
    layers["head"] = model.lm_head
    if copied and tied:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), model.lm_head.weight.requires_grad)
    return layers


def _their_name(model: nn.Sequential, name: str) -> str:
    """Return the name of a linear layer in the original, such as ``model.layers.2.self_attn.q_proj``."""
    found = re.fullmatch(r"block(\d+)\.layer\.(.*)", name)
    if found is None:
        return "lm_head"  # linear layers are nowhere else
    blocks = "transformer.h" if isinstance(model[1], Gpt2Block) else "model.layers"
    return f"{blocks}.{int(found[1]) - 1}.{found[2]}"


# --- checkpoints ---------------------------------------------------------------------------------------------------


def _whole_adapter(layer: LoraLinear, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return A, B and scale of all that a layer has learnt: its adapter, and what was folded into its weight."""
    a, b = layer.lora_a.detach(), layer.lora_b.detach()
    folded = layer.weight.detach().double() - base.detach().double()
    if not folded.any():
        return a, b, layer.scale
    whole = (folded.T if layer.transposed else folded) + layer.scale * b.double() @ a.double()  # (out, in)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    rounding = torch.finfo(base.dtype).eps * layer.weight.detach().norm()  # of a fold, at most in any direction
    rounding = rounding + max(whole.shape) * torch.finfo(whole.dtype).eps * values[0]  # and of the factors
    rank = max(1, int((values > rounding).sum()))
    return right[:rank].to(a), (left[:, :rank] * values[:rank]).to(b), 1.0


def _with_adapters(model: nn.Sequential, folder: Path) -> nn.Sequential:
    """Return the model with the adapters of a checkpoint of peft."""
    path, config = folder / _CONFIG, Fields(storage.read_json(folder / _CONFIG))
    with in_file(path):
        config.expect("peft_type", "LORA")
        for name in ("use_dora", "use_rslora"):
            if name in config and config.flag(name):
                raise config.wrong(name, "false")
        if "bias" in config:
            config.expect("bias", "none")
        if "modules_to_save" in config and config.value("modules_to_save"):
            raise config.wrong("modules_to_save", "nothing but adapters")
        alpha = config.number("lora_alpha", low=0)
        patterns = config.table("alpha_pattern") if "alpha_pattern" in config else Fields({})
        alphas = {name: patterns.number(name, low=0) for name in patterns}
    linear = {_their_name(model, name): name for name, layer in model.named_modules() if is_linear(layer)}
    weights = folder / _WEIGHTS
    tensors = load_any_tensors(weights)
    with in_file(weights):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for theirs in dict.fromkeys(_of_layer(name) for name in tensors):
            if theirs not in linear:
                raise InvalidFileError(
                    f"{theirs}: the model has no such linear layer: expected a checkpoint of this model"
                )
            pair = [tensors.get(f"{_PREFIX}{theirs}.lora_{end}.weight") for end in "AB"]
            own = next(
                (value for name, value in alphas.items() if re.fullmatch(rf"(.*\.)?({re.escape(name)})", theirs)), alpha
            )
            _put(model, linear[theirs], theirs, pair, own)
    return model


def _of_layer(name: str) -> str:
    """Return the layer of a tensor of a checkpoint, as the original names it."""
    found = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_[AB]\.weight", name)
    if found is None:
        raise InvalidFileError(f"{name}: expected adapters alone, {_PREFIX}<layer>.lora_A.weight and .lora_B.weight")
    return found[1]


def _put(model: nn.Module, name: str, theirs: str, pair: list[torch.Tensor | None], alpha: float) -> None:
    """Put an adapter A [r, in], B [out, r] beside a layer."""
    layer = model.get_submodule(name)
    assert isinstance(layer.weight, torch.Tensor)
    transposed = not isinstance(layer, nn.Linear)
    outputs, inputs = layer.weight.shape[::-1] if transposed else layer.weight.shape
    a, b = pair
    if a is None or b is None:
        raise InvalidFileError(f"{theirs}: one half of its adapter is missing: expected lora_A and lora_B")
    fits = a.ndim == b.ndim == 2 and a.shape[1] == inputs and b.shape[0] == outputs and len(a) == b.shape[1]
    if not (fits and 1 <= len(a) <= min(inputs, outputs)):
        raise InvalidFileError(
            f"{theirs}: A {list(a.shape)} and B {list(b.shape)}: expected [r, {inputs}] and [{outputs}, r] with r from 1 to "
            f"{min(inputs, outputs)}, as of this model"
        )
    bias = layer.bias if isinstance(layer.bias, torch.Tensor) else None
    adapted = LoraLinear(layer.weight, bias, rank=len(a), alpha=alpha, transposed=transposed)
    adapted.lora_a.data, adapted.lora_b.data = a.to(layer.weight), b.to(layer.weight)
    put_layer(model, name, adapted)
