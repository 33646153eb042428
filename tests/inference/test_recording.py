"""Routing of models of transformers, recorded: against each text run by itself, and the largest outputs of its routers."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import EdgeNetwork
from edgeopt.errors import InvalidProblemError
from edgeopt.inference import record
from edgeopt.inference import recording as module
from edgeopt.problems import ExpertCaching, RoutingTrace

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "pad_token_id": 0,
}  # fmt: skip
SWITCH: dict[str, Any] = {
    "vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 4, "num_heads": 2,
    "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 2, "decoder_start_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any], int, tuple[int, int]]] = {  # class, settings, K, matrices x inner width
    "mixtral": ("Mixtral", SIZES | {"intermediate_size": 24, "num_local_experts": 4}, 2, (3, 24)),
    "olmoe": ("Olmoe", SIZES | {"intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 3}, 3, (3, 32)),
    "qwen-moe": (
        "Qwen2Moe",
        SIZES | {"intermediate_size": 24, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12,
                 "num_experts": 6, "num_experts_per_tok": 2, "num_hidden_layers": 3, "mlp_only_layers": [0]},
        2, (3, 12),
    ),
    "switch": ("SwitchTransformers", SWITCH | {"expert_capacity": 64}, 1, (2, 24)),
    "nllb": (
        "NllbMoe",
        {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 4, "encoder_ffn_dim": 24,
         "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_sparse_step": 2,
         "decoder_sparse_step": 2, "num_experts": 4},
        2, (2, 24),
    ),
    "llama4": (
        "Llama4",
        SIZES | {"intermediate_size": 24, "intermediate_size_mlp": 24, "head_dim": 8, "num_local_experts": 4,
                 "num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
        1, (3, 24),
    ),
}  # fmt: skip
TEXTS = {"ann": [[3, 4, 5, 6, 7, 8], [9, 10]], "bob": [[11, 3, 12]], "cleo": [[5], [6, 7, 8, 9, 20, 21, 22]]}


def tiny(family: str, **changes: Any) -> nn.Module:
    """Return a tiny model of random weights, from its configuration."""
    kind, settings, _, _ = FAMILIES[family]
    config = "Llama4TextConfig" if kind == "Llama4" else f"{kind}Config"
    suffix = "ForConditionalGeneration" if kind in ("SwitchTransformers", "NllbMoe") else "ForCausalLM"
    torch.manual_seed(3)
    return getattr(transformers, kind + suffix)(getattr(transformers, config)(**(settings | changes)))


def expected(model: nn.Module, texts: dict[str, list[list[int]]], top_k: int) -> Counter[tuple[Any, ...]]:
    """Return how often each (user, layer, set) is used: one text at a time, without padding, the largest outputs of routers."""
    found: Counter[tuple[Any, ...]] = Counter()
    names = ("encoder_router_logits", "decoder_router_logits", "router_logits")
    for user, own in enumerate(texts.values()):
        for text in own:
            ids = torch.tensor([text])
            more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
            with torch.no_grad():
                output = model.eval()(input_ids=ids, output_router_logits=True, use_cache=False, **more)
            layers = [layer for name in names for layer in getattr(output, name, None) or ()]
            for number, layer in enumerate(layers):
                for row in layer.reshape(len(text), -1):
                    found[user, number, tuple(sorted(row.topk(top_k).indices.tolist()))] += 1
    return found


def counts(trace: RoutingTrace) -> dict[tuple[Any, ...], int]:
    rows = zip(trace.set_user, trace.set_layer, trace.set_experts.tolist(), trace.set_count, strict=True)
    return {(int(user), int(layer), tuple(chosen)): int(count) for user, layer, chosen, count in rows}


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_what_routers_choose(family: str):
    """Padded, in batches across users, it counts what each text by itself uses; sizes are those of the module."""
    model, (_, settings, top_k, (matrices, inner)) = tiny(family), FAMILIES[family]
    model.train()
    if family == "nllb":
        with pytest.raises(InvalidProblemError, match="top_k: the configuration does not tell"):
            record(model, TEXTS)
    trace = record(model, TEXTS, batch_size=3, top_k=2 if family == "nllb" else None)
    assert model.training
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert counts(trace) == dict(expected(model, TEXTS, top_k))
    assert trace.tokens_per_user.tolist() == [8, 3, 8]
    assert trace.meta["users"] == ["ann", "bob", "cleo"]
    assert trace.num_experts == settings.get("num_local_experts", settings.get("num_experts"))
    biases = inner + 16 if family == "nllb" else 0
    assert trace.meta["bytes_per_expert"] == (matrices * 16 * inner + biases) * 4
    assert trace.meta["flops_per_token"] == 2 * matrices * 16 * inner
    assert trace.meta["hidden_bits"] == 16 * 32
    assert len(trace.meta["layers"]) == trace.num_layers
    problem = ExpertCaching.from_traces(trace, EdgeNetwork.random(2, 3, seed=0), storage=0.3)
    assert problem.expert_bytes[0] == trace.meta["bytes_per_expert"]
    assert problem.top_k == top_k


def test_bfloat16():
    """In bfloat16 an expert has half the bytes, and routing is what the model does in bfloat16."""
    model = tiny("olmoe").to(torch.bfloat16)
    trace = record(model, TEXTS, batch_size=1)
    assert counts(trace) == dict(expected(model, TEXTS, 3))
    assert (trace.meta["bytes_per_expert"], trace.meta["hidden_bits"]) == (3 * 16 * 32 * 2, 16 * 16)


def test_the_rule_of_the_model_counts_not_the_largest_logits():
    """A router that corrects its outputs by a bias, as DeepSeek's do, is recorded by what it hands to the experts."""
    model = tiny("mixtral")
    gate = next(part for path, part in model.named_modules() if path.endswith(".gate"))
    usual = gate.forward

    def always_the_last(hidden: torch.Tensor) -> Any:
        logits, weights, ids = usual(hidden)
        return logits, weights, torch.tensor([3, 1]).expand_as(ids)

    gate.forward = always_the_last
    trace = record(model, TEXTS)
    first = trace.set_layer == 0
    assert trace.set_experts[first].tolist() == [[1, 3]] * 3


def test_switch_counts_tokens_that_a_full_expert_drops():
    """The router's choice is counted, whatever the capacity leaves of it."""
    roomy = record(tiny("switch"), {"a": [[7, 7, 7, 7]]}, batch_size=1)
    full = record(tiny("switch", expert_capacity=1), {"a": [[7, 7, 7, 7]]}, batch_size=1)
    first = full.set_layer == 0
    assert full.set_count[first].sum() == 4
    np.testing.assert_array_equal(full.set_experts[first], roomy.set_experts[roomy.set_layer == 0])


def test_all_forms_of_texts():
    """Strings, token ids, and what a tokenizer made with padding on either side are the same texts."""
    model = tiny("mixtral")
    plain = record(model, TEXTS)
    letters = {name: ["".join(map(chr, text)) for text in own] for name, own in TEXTS.items()}
    assert record(model, letters, tokenizer=lambda text: {"input_ids": [ord(c) for c in text]}) == plain
    for side in (0, 1):
        padded = {}
        for name, own in TEXTS.items():
            longest = max(map(len, own))
            fill = [[0] * (longest - len(text)) for text in own]
            rows = [f + t if side else t + f for t, f in zip(own, fill, strict=True)]
            masks = [
                [0] * len(f) + [1] * len(t) if side else [1] * len(t) + [0] * len(f)
                for t, f in zip(own, fill, strict=True)
            ]
            padded[name] = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        assert record(model, padded) == plain
    numbered = record(model, (iter(own) for own in TEXTS.values()))
    assert counts(numbered) == counts(plain)
    assert "users" not in numbered.meta


def test_texts_are_read_one_by_one_and_merged(monkeypatch: pytest.MonkeyPatch):
    """No more texts are asked for than a batch has, and counts that are merged on the way are the same."""
    model, asked, seen = tiny("mixtral"), 0, []

    def stream() -> Iterator[list[int]]:
        nonlocal asked
        for start in range(20):
            asked += 1
            yield [start + 1, start + 2, start + 3]

    layer = next(part for path, part in model.named_modules() if path.endswith("experts"))
    hook = layer.register_forward_hook(lambda *_: seen.append(asked))
    monkeypatch.setattr(module, "_MOST_ROWS", 5)
    trace = record(model, {"a": stream()}, batch_size=2)
    hook.remove()
    assert seen == list(range(2, 21, 2))
    texts = {"a": [[start + 1, start + 2, start + 3] for start in range(20)]}
    assert counts(trace) == dict(expected(model, texts, 2))


def test_long_texts_are_cut():
    """Pieces do not see each other, and no token is lost."""
    model = tiny("mixtral")
    text = list(range(1, 12))
    assert record(model, {"a": [text]}, max_length=4) == record(model, {"a": [text[:4], text[4:8], text[8:]]})


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        ({}, {}, "at least one user"),
        ({"a": []}, {}, "user 'a': expected tokens, got none"),
        ({"a": [[]], "b": [[1]]}, {}, "user 'a': expected tokens"),
        ({"a": "text"}, {}, "got one text"),
        ({"a": ["text"]}, {}, "text 0 of user 'a': a string: expected token ids, or a tokenizer"),
        (None, {}, "texts_by_user = None: expected a list of texts"),
        ("text", {}, "texts_by_user: expected a list of texts, got one text"),
        ([None], {}, "texts of user 0 = None: expected a list of texts"),
        ({"a": 5}, {}, "texts of user 'a' = 5: expected a list of texts"),
        ({"a": [[True, False]]}, {}, "text 0 of user 'a': expected integers with 1 axis, got torch.bool [2]"),
        ({"a": {"input_ids": [[1, 2]], "attention_mask": [[0, 5]]}}, {}, "attention_mask: expected zeros and ones"),
        ({"a": ["b"]}, {"tokenizer": lambda _: {}}, "text 0 of user 'a': its tokenizer returns {}: expected input_ids"),
        ({"a": ["b"]}, {"tokenizer": lambda _: [1]}, "its tokenizer returns [1]: expected input_ids"),
        ({"a": ["b"]}, {"tokenizer": 5}, "tokenizer = 5: expected one of transformers, or a function of a text"),
        ({"a": [[1.5]]}, {}, "expected integers with 1 axis"),
        ({"a": [[[1]]]}, {}, "expected integers with 1 axis, got torch.int64 [1, 1]"),
        ({"a": [[1, "x"]]}, {}, "expected token ids"),
        ({"a": {"input_ids": [[1, 2]], "attention_mask": [[1]]}}, {}, "attention_mask: shape [1, 1], expected [1, 2]"),
        ({"a": [[99]]}, {}, "does not run on the texts"),
        ({"a": [[1]]}, {"batch_size": 0}, "batch_size = 0"),
        ({"a": [[1]]}, {"max_length": 0}, "max_length = 0"),
    ],
)  # fmt: skip
def test_bad_texts(texts: Any, options: dict[str, Any], said: str):
    """One line: whose text, which one, what was expected."""
    with pytest.raises(InvalidProblemError) as error:
        record(tiny("mixtral"), texts, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_models():
    """Models without experts, with NaN, with layers of different experts."""
    with pytest.raises(InvalidProblemError, match="no modules named experts"):
        record(nn.Linear(2, 2), TEXTS)
    broken = tiny("mixtral")
    with torch.no_grad():
        next(part for path, part in broken.named_modules() if path.endswith(".gate")).weight.fill_(float("nan"))
    with pytest.raises(InvalidProblemError, match="NaN or infinities"):
        record(broken, TEXTS)
    broken = tiny("switch")
    with torch.no_grad():
        next(part for path, part in broken.named_modules() if path.endswith(".classifier")).weight.fill_(float("nan"))
    with pytest.raises(InvalidProblemError, match="NaN or infinities"):
        record(broken, TEXTS)
    config = transformers.JetMoeConfig(  # experts of attention, too
        **(SIZES | {"num_attention_heads": 2, "intermediate_size": 24, "kv_channels": 8, "num_local_experts": 4})
    )
    with pytest.raises(InvalidProblemError, match=r"none of its \d modules named experts runs: expected all"):
        record(transformers.JetMoeForCausalLM(config), TEXTS)
    mixed = tiny("mixtral")
    mixed.model.layers[1].mlp.experts.num_experts = 3
    with pytest.raises(InvalidProblemError, match=r"different numbers of experts, 3 in .* and 4 in"):
        record(mixed, TEXTS)


class Routed(nn.Module):
    """A model whose forward pass is as given: of itself, and the hidden states of the tokens."""

    class Experts(nn.Module):
        """They do nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.weights, self.num_experts = nn.Parameter(torch.zeros(4, 8, 8)), 4

        def forward(self, hidden: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
            return hidden

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.words, self.experts, self.run = nn.Embedding(50, 8), Routed.Experts(), run

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return self.run(self, self.words(input_ids).flatten(0, 1))


def routers(*logits: Any) -> Any:
    """Return a pass of the experts after which routers say something."""

    def run(model: Routed, hidden: torch.Tensor) -> Any:
        model.experts(hidden)
        return type("Output", (), {"router_logits": logits[0] if len(logits) == 1 else logits})

    return run


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda model, hidden: model.experts(hidden), "gives router_logits of 0 layers, and 1 modules named experts ran"),
        (lambda model, hidden: hidden, "none of its 1 modules named experts runs"),
        (routers(torch.zeros(2, 4)), "gives router_logits of 0 layers"),  # no layers, but one table
        (routers((torch.zeros(4),)), "gives router_logits of 0 layers"),
        (routers((torch.zeros(2, 7),)), "router_logits[0] are of 7 experts: expected 4, as the layers have"),
        (routers((torch.zeros(3, 4),)), "its routers see 3 of 2 tokens"),
        (lambda model, hidden: model.experts(hidden, torch.zeros(2, 0, dtype=torch.long)), "gives router_logits of 0 layers"),
    ],
)  # fmt: skip
def test_models_that_do_not_tell(run: Any, said: str):
    """Models without router logits, or with other ones than their experts need, are refused in one line."""
    with pytest.raises(InvalidProblemError) as error:
        record(Routed(run), {"a": [[1, 2]]}, top_k=2)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_model():
    """Neither a name nor nothing."""
    with pytest.raises(InvalidProblemError, match="model: a str: expected a model of transformers"):
        record("mixtral", TEXTS)  # type: ignore[arg-type]
