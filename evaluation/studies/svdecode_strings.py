"""Strings whose next token has a known distribution, and small decoders that are pre-trained and adapted on the spot.

A decoder learns to copy, reverse and sort strings and to add numbers. The task is to reverse under another rule: letter l of the
reversed string becomes the next letter of the alphabet, at times the one after, at times stays. What the next token is
distributed like is known exactly, so that the divergence of a model from the truth is too.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from edgeopt import storage
from edgeopt.extras import needs
from edgeopt.rng import stream

VOCABULARY = 64
LETTERS = 16
END, EQUALS, PLUS = 0, 1, 2
COPY, REVERSE, SORT, ADD = 4, 5, 6, 7  # the first token says what to do
DIGIT, LETTER = 10, 24  # the first of each
SHIFTS = {1: 0.7, 2: 0.2, 0: 0.1}
"""What becomes of a letter, and how often."""
METHODS = ("lora", "ia3", "prompt")
VIRTUAL = 8  # tokens of prompt tuning
NOISE = (
    0.3  # of the letters of an answer that is pre-trained on: others than they should be, so that the base is not sure
)

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Strings:
    """Samples of the task.

    Parameters
    ----------
    tokens : int64 [n, T], with an answer drawn from the truth.
    likeliest : int64 [n, T], with the likeliest answer.
    truth : float32 [n, T, V], the distribution of the token after each; zero where it is not part of the answer.
    start : where the answer begins.
    """

    tokens: torch.Tensor
    likeliest: torch.Tensor
    truth: torch.Tensor
    start: int

    def texts(self) -> list[tuple[list[int], list[int]]]:
        """Return pairs of prompt and answer."""
        return [(row[: self.start], row[self.start :]) for row in self.tokens.tolist()]


def mixture(rng: np.random.Generator, count: int, length: int) -> Tokens:
    """Return samples of pre-training [count, 2 length + 3]: copies, reversals, sorted strings and sums, a quarter each."""
    parts = np.array_split(np.arange(count), 4)
    rows = np.full((count, 2 * length + 3), END, np.int64)
    letters = rng.integers(0, LETTERS, (count, length))
    noise = np.where(rng.random((count, length)) < NOISE, rng.integers(0, LETTERS, (count, length)), -1)
    for marker, own, answer in zip(
        (COPY, REVERSE, SORT), parts, (letters, letters[:, ::-1], np.sort(letters, 1)), strict=False
    ):
        rows[own] = _rows(marker, letters[own], np.where(noise[own] < 0, answer[own], noise[own]))
    numbers = rng.integers(0, 100, (len(parts[3]), 2))
    for at, (a, b) in zip(parts[3], numbers.tolist(), strict=True):
        text = f"{a:02}+{b:02}={a + b:03}"
        row = [ADD] + [PLUS if c == "+" else EQUALS if c == "=" else DIGIT + int(c) for c in text]
        rows[at, : len(row[: rows.shape[1]])] = row[: rows.shape[1]]
    return rng.permutation(rows)


def strings(rng: np.random.Generator, count: int, length: int) -> Strings:
    """Return samples of the task."""
    letters = rng.integers(0, LETTERS, (count, length))
    backwards = letters[:, ::-1]
    moved = rng.choice(list(SHIFTS), (count, length), p=list(SHIFTS.values()))
    tokens = _rows(REVERSE, letters, (backwards + moved) % LETTERS)
    likeliest = _rows(REVERSE, letters, (backwards + max(SHIFTS, key=SHIFTS.__getitem__)) % LETTERS)
    start = length + 2
    truth = np.zeros((*tokens.shape, VOCABULARY), np.float32)
    every = np.arange(count)[:, None]
    for shift, probability in SHIFTS.items():
        truth[every, start - 1 + np.arange(length), LETTER + (backwards + shift) % LETTERS] += probability
    truth[:, start - 1 + length, END] = 1
    return Strings(torch.from_numpy(tokens), torch.from_numpy(likeliest), torch.from_numpy(truth), start)


def _rows(marker: int, letters: Tokens, answer: Tokens) -> Tokens:
    count = len(letters)
    ends = [np.full((count, 1), token, np.int64) for token in (marker, EQUALS, END)]
    return np.concatenate([ends[0], LETTER + letters, ends[1], LETTER + answer, ends[2]], 1)


# --- models ----------------------------------------------------------------------------------------------------------


def decoder(width: int, depth: int, length: int, seed: int) -> Any:
    """Return a GPT-2 of random weights."""
    with needs("the study svdecode", "llm"):
        from transformers import GPT2Config, GPT2LMHeadModel
    cls: Any = GPT2LMHeadModel
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=width, n_layer=depth, n_head=4, n_positions=2 * length + 3 + VIRTUAL,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=END, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config)


def adapted(base: Any, method: str, seed: int) -> Any:
    """Return a model of peft around a copy of the base, its adapter untrained."""
    with needs("the study svdecode", "llm"):
        import peft
    common: Any = {"task_type": "CAUSAL_LM"}
    layers: Any = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    configs: dict[str, Callable[[], Any]] = {
        "lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, **layers, **common),
        "ia3": lambda: peft.IA3Config(feedforward_modules=["c_proj"], **layers, **common),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=VIRTUAL, **common),
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own future
        torch.manual_seed(seed)
        return peft.get_peft_model(copy.deepcopy(base), configs[method]())


def fit(model: Any, batches: list[tuple[torch.Tensor, torch.Tensor]], lr: float, offsets: Sequence[int] = ()) -> Any:
    """Train what requires gradients, a step of Adam for each pair of tokens [b, T] and labels [b, T], -100 for none.

    With `offsets`, the tokens of a mini-batch are at positions from its offset on.
    """
    model.train()
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr)
    for step, (tokens, labels) in enumerate(batches):
        optimizer.zero_grad()
        at = {"position_ids": offsets[step] + torch.arange(tokens.shape[1])[None]} if offsets else {}
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **at).logits[:, -tokens.shape[1] : -1]
        loss: Any = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    return model.eval()


def batches_of(tokens: torch.Tensor, start: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return mini-batches in order; only tokens of the answer are labels."""
    labels = tokens.clone()
    labels[:, :start] = -100
    return [(tokens[at : at + size], labels[at : at + size]) for at in range(0, len(tokens), size)]


def pretrained(width: int, depth: int, length: int, seed: int, *, steps: int, batch: int, lr: float = 3e-3) -> Any:
    """Return a decoder that has learnt the mixture, at last also where virtual tokens move it to."""
    rng = stream(seed, "mixture")
    model = decoder(width, depth, length, seed)
    rows = [torch.from_numpy(mixture(rng, batch, length)) for _ in range(steps)]
    offsets = np.where(np.arange(steps) < 0.75 * steps, 0, rng.choice([0, VIRTUAL], steps)).tolist()
    return fit(model, [(row, row.masked_fill(_before_answer(row), -100)) for row in rows], lr, offsets)


def _before_answer(rows: torch.Tensor) -> torch.Tensor:
    """Return which tokens are no labels: up to the equals sign, and what fills up after the first end."""
    begun = (rows == EQUALS).cumsum(1) - (rows == EQUALS).int()
    over = (rows == END).cumsum(1) - (rows == END).int()
    return (begun == 0) | (over > 0)


def kept(cell: Any, name: str, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return weights that all cells of equal settings share."""

    def write(path: Path) -> None:
        data = save({key: value.detach().contiguous() for key, value in make().items()})
        storage.write_atomic(path, lambda file: file.write(data))

    return load_file(cell.keep(f"{name}.safetensors", write))


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of an adapter."""
    from peft import get_peft_model_state_dict

    return {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}


def with_adapter(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """Put weights into an adapter, and return its model."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, weights)
    return model.eval()
