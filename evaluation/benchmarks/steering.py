"""Measure steered decoding: ``python -m edgeopt.evaluation.benchmarks.steering``.

A decoder of the shape of SmolLM2-135M with random weights and an adapter generates; its base alone, its adapter alone, and steered. What
steering costs is its time per token over those of the two passes together. Times of a step are the least of several runs.
"""

import argparse
import sys
import warnings
from typing import Any

import torch
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.extras import needs
from edgeopt.inference import SteeredDecoding, SteeringVector, received, top_log_probabilities

OVERHEAD = 0.03
_STEERING = SteeringVector(strength=-1.0)


def model_of(layers: int, width: int, vocabulary: int) -> Any:
    """Return a decoder of random weights with an adapter of rank 8 at queries and values."""
    with needs("this benchmark", "llm"):
        import peft
        from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    adapter = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own future
        torch.manual_seed(0)
        return peft.get_peft_model(LlamaForCausalLM(config), adapter).eval()


def per_token(model: Any, batch: int, tokens: int, repeats: int) -> Row:
    """Return seconds per generated token of either pass, of both steered, and of the arithmetic alone."""
    vocabulary = model.config.vocab_size
    prompt = torch.randint(1, vocabulary, (batch, 16), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {
        "input_ids": prompt, "attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": tokens,
        "min_new_tokens": tokens, "pad_token_id": 0,
    }  # fmt: skip
    base = model.get_base_model()

    def plain() -> Any:
        return model.generate(**options)

    def without() -> Any:
        with model.disable_adapter():
            return base.generate(**options)

    def steered() -> Any:
        return model.generate(logits_processor=[SteeredDecoding(model, _STEERING)], **options)

    found = {name: common.clock(run, repeats).least / tokens for name, run in
             (("adapted", plain), ("base", without), ("steered", steered))}  # fmt: skip
    p, q = torch.randn(2, batch, vocabulary, generator=torch.Generator().manual_seed(0))
    found["arithmetic"] = common.clock(lambda: _STEERING.steered(p, q), 10 * repeats).least
    found["sending"] = common.clock(lambda: received(*top_log_probabilities(q, 32), vocabulary), 10 * repeats).least
    return {"batch": batch, **found, "overhead": found["steered"] / (found["adapted"] + found["base"]) - 1}


def measure(options: argparse.Namespace) -> Row:
    """Measure everything on one thread."""
    if options.quick:
        options.layers, options.width, options.vocabulary, options.tokens, options.repeats = 2, 64, 500, 3, 1
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = model_of(options.layers, options.width, options.vocabulary)
        rows = []
        for batch in options.batch:
            common.say(f"batch of {batch}")
            rows.append(per_token(model, batch, options.tokens, options.repeats))
    finally:
        torch.set_num_threads(before)
    goals = [
        common.goal(
            f"steering beyond the two passes, batch of {row['batch']}", OVERHEAD, row["overhead"], "of their time"
        )
        for row in rows
    ]
    return {"rows": rows, "valid": True, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, "Time per token, one thread",
        ("batch", "adapted", "base", "steered", "beyond both", "arithmetic", "top 32, there and back"),
        [
            [str(row["batch"]), *(seconds(row[name]) for name in ("adapted", "base", "steered")),
             f"{100 * row['overhead']:.1f} %", seconds(row["arithmetic"]), seconds(row["sending"])]
            for row in report["rows"]
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="texts at once, one number or several")
    parser.add_argument("--tokens", type=int, default=32, help="that are generated")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every run; the least counts")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("steering", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
