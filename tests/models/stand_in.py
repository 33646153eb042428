"""A decoder that has the parts of one of transformers, where only its weights are looked at and nothing runs."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

VOCABULARY, WIDTH = 11, 6


class StandIn(nn.Module):
    """The parts of a Llama-type decoder of one block, with one linear layer in it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
            block = nn.ModuleDict({"q_proj": nn.Linear(WIDTH, WIDTH)})
            inner: dict[str, nn.Module] = {
                "embed_tokens": nn.Embedding(VOCABULARY, WIDTH), "layers": nn.ModuleList([block]), "norm": nn.LayerNorm(WIDTH)
            }  # fmt: skip
        self.model = nn.Module()
        for name, part in inner.items():
            self.model.add_module(name, part)
        self.model.rotary_emb = nn.Identity()
        self.model.rotary_emb.rope_type = "default"  # type: ignore[assignment]
        self.config: Any = SimpleNamespace(
            model_type="llama", _attn_implementation="eager", _name_or_path="", is_encoder_decoder=False,
            get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY),
        )  # fmt: skip

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding, as transformers does."""
        return self.model.get_submodule("embed_tokens")
