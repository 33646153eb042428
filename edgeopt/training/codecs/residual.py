"""What a coarse code has missed, coded once more in the bytes that are left: whole samples in 4 bits, or single values."""

from typing import Literal

import torch

from edgeopt.training.codecs.codec import Form, place_type
from edgeopt.training.codecs.quantise import Quantise
from edgeopt.training.codecs.top_k import TopK
from edgeopt.training.messages import Tensors

Residual = Literal["4-bit", "top-k", "none"]
RESIDUALS = ("4-bit", "top-k", "none")

_LEVELS, _VALUES = Quantise(4), TopK()


def num_coded(kind: Residual, form: Form, left_bytes: float) -> int:
    """Return how many samples (``4-bit``) or values (``top-k``) go into the bytes that are left."""
    if kind == "4-bit":
        scale = 2 * torch.promote_types(form.dtype, torch.float32).itemsize
        each = -(-form.size // 2) + scale + place_type(form.samples).itemsize
        return min(form.samples, int(left_bytes // each))
    if kind == "top-k":
        values = form.samples * form.size
        return min(values, int(left_bytes // (form.dtype.itemsize + place_type(values).itemsize)))
    return 0


def encode_residual(kind: Residual, missed: torch.Tensor, count: int, dtype: torch.dtype, key: torch.Tensor) -> Tensors:
    """Return the parts for what is missed [B, D]: the samples or the values that miss most.

    Parameters
    ----------
    dtype : of single values as they are sent.
    """
    if kind == "4-bit":
        worst = missed.norm(dim=1).argsort(stable=True, descending=True)[:count]
        parts, _ = _LEVELS.encode("up", missed[worst], {"bits": 4}, {}, labels=None, key=key)
        return {**parts, "samples": worst.to(place_type(missed.shape[0]))}
    parts, _ = _VALUES.encode("up", missed.reshape(1, -1).to(dtype), {"kept": count}, {}, labels=None, key=key)
    return parts


def decode_residual(kind: Residual, parts: Tensors, count: int, form: Form) -> torch.Tensor:
    """Return [B, D], zeros where nothing was coded."""
    if kind == "4-bit":
        wide = torch.promote_types(form.dtype, torch.float32)
        rows, _ = _LEVELS.decode("up", parts, {"bits": 4}, {}, Form((count, form.size), wide))
        return rows.new_zeros(form.samples, form.size).index_copy(0, parts["samples"].long(), rows)
    flat, _ = _VALUES.decode("up", parts, {}, {}, Form((1, form.samples * form.size), form.dtype))
    return flat.reshape(form.samples, form.size)
