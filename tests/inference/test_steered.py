"""Steered decoding of transformers' models against loops over two separate models, without caches, in plain torch."""

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, whatever a folder lacks
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own future
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")

from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.inference import (
    SteeredDecoding,
    SteeringVector,
    calibrate,
    load_steering,
    received,
    save_steering,
    score_answers,
    token_strengths,
    top_log_probabilities,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

V, PAD = 23, 0
STEERING = SteeringVector(strength=-2.0, alpha=0.05)


def base_model(kind: str = "gpt2", seed: int = 0) -> Any:
    """Return a small decoder that is not indifferent between tokens."""
    common = {"vocab_size": V, "bos_token_id": PAD, "eos_token_id": PAD, "pad_token_id": PAD}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40, resid_pdrop=0.1, **common)
        cls = transformers.GPT2LMHeadModel
    else:
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **common
        )  # fmt: skip
        cls = transformers.LlamaForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    return model


CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"),
    "llama": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True, task_type="CAUSAL_LM"),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}  # fmt: skip


def adapted_model(name: str = "lora", seed: int = 0) -> Any:
    """Return a model of peft whose adapter has learnt something."""
    base = base_model("llama" if name == "llama" else "gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(base, CONFIGS[name]())
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def prompts(batch: int, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, T] padded on the left by 0, 2, 1, 3 tokens, and their mask."""
    tokens = torch.randint(1, V, (batch, length), generator=torch.Generator().manual_seed(batch))
    mask = torch.ones_like(tokens)
    for row, padding in zip(range(batch), (0, 2, 1, 3), strict=False):
        tokens[row, :padding], mask[row, :padding] = PAD, 0
    return tokens, mask


@torch.no_grad()
def alone(model: Any, base: Any, row: list[int], steering: SteeringVector = STEERING) -> torch.Tensor:
    """Steered log-probabilities [V] after one text without padding: two whole passes of two models, and the formula."""
    tokens = torch.tensor([row])
    p, q = (of(input_ids=tokens).logits[0, -1].double().softmax(-1) for of in (model, base))
    g = -(torch.log(p / q) + 1)
    moved = p.log() + steering.strength * (torch.diag(p) - torch.outer(p, p)) @ g
    return torch.where(p >= steering.alpha * p.max(), moved, -math.inf).log_softmax(-1).float()


def naive(model: Any, base: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the same [n, V] of texts of which `mask` says where they begin."""
    return torch.stack([alone(model, base, row[own == 1].tolist()) for row, own in zip(tokens, mask, strict=True)])


def grown(tokens: torch.Tensor, mask: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([tokens, new[:, None]], 1), torch.cat([mask, torch.ones_like(new)[:, None]], 1)


def generated(model: Any, tokens: torch.Tensor, mask: torch.Tensor, steps: int = 5, **options: Any) -> Any:
    processor = options.pop("processor", None) or SteeredDecoding(model, STEERING, attention_mask=mask)
    return model.generate(
        input_ids=tokens, attention_mask=mask, logits_processor=[processor], max_new_tokens=steps, eos_token_id=None,
        pad_token_id=PAD, return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["lora", "llama", "ia3"])
def test_greedy_is_a_loop_over_two_models(name: str, batch: int):
    """Tokens and scores, with padding and the base's own cache."""
    model, base = adapted_model(name), base_model("llama" if name == "llama" else "gpt2")
    tokens, mask = prompts(batch)
    found = generated(model, tokens, mask, do_sample=False)
    plain = alone(model, base, tokens[0].tolist(), dataclasses.replace(STEERING, strength=0.0))
    assert (found.scores[0][0] - plain).nan_to_num(0.0).abs().max() > 1e-3, "steering does something"
    for scores in found.scores:
        expected = naive(model, base, tokens, mask)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        tokens, mask = grown(tokens, mask, expected.argmax(-1))
    assert torch.equal(found.sequences, tokens)


@pytest.mark.parametrize("batch", [1, 4])
def test_beams_are_a_loop_over_two_models(batch: int):
    """The best of three beams is that of a search over lists of texts; the base's cache follows the beams."""
    model, base = adapted_model(), base_model()
    tokens, mask = prompts(batch)
    processor = SteeredDecoding(model, STEERING, attention_mask=mask)
    found = generated(model, tokens, mask, do_sample=False, num_beams=3, processor=processor)
    assert processor._cache.get_seq_length() == tokens.shape[1] + 4
    for row in range(batch):
        start = tokens[row][mask[row] == 1].tolist()
        beams = [(0.0, start)]
        for _ in range(5):
            grown_beams = [
                (total + float(own), [*text, token])
                for total, text in beams
                for token, own in enumerate(alone(model, base, text))
                if own > -math.inf
            ]
            beams = sorted(grown_beams, key=lambda beam: -beam[0])[:3]
        assert found.sequences[row][-5:].tolist() == beams[0][1][-5:]
        assert float(found.sequences_scores[row]) == pytest.approx(beams[0][0] / 5, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.6, "top_k": 0}, {"temperature": 0.7, "top_k": 0}])
def test_sampling_is_a_loop_over_two_models(options: dict[str, Any], batch: int):
    """Steered first, then temperature, top-k and top-p; the same draws from the same seed."""
    model, base = adapted_model(), base_model()
    tokens, mask = prompts(batch)
    torch.manual_seed(3)
    found = generated(model, tokens, mask, do_sample=True, **options)
    torch.manual_seed(3)
    for scores in found.scores:
        expected = naive(model, base, tokens, mask) / options.get("temperature", 1.0)
        if options.get("top_k"):
            expected[expected < expected.topk(options["top_k"]).values[:, -1:]] = -math.inf
        if "top_p" in options:
            p, order = expected.softmax(-1).sort(descending=True)
            drop = p.cumsum(-1) - p >= options["top_p"]
            expected[drop.gather(-1, order.argsort(-1))] = -math.inf
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        tokens, mask = grown(tokens, mask, torch.multinomial(expected.softmax(-1), 1)[:, 0])
    assert torch.equal(found.sequences, tokens)


@pytest.mark.parametrize("name", ["prompt", "p-tuning", "prefix"])
def test_adapters_of_virtual_tokens(name: str):
    """Without transformers' cache, which peft's virtual tokens get lost in; the base keeps its own."""
    model, base = adapted_model(name), base_model()
    tokens, mask = prompts(1)
    found = generated(model, tokens, mask, do_sample=False, use_cache=False)
    for scores in found.scores:
        expected = naive(model, base, tokens, mask)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        tokens, mask = grown(tokens, mask, expected.argmax(-1))


def test_a_second_model_and_no_cache():
    """The base as another model; a processor without a cache; one that serves a second text, and several samples of a prompt."""
    model, base = adapted_model(), base_model()
    merged = copy.deepcopy(model).merge_and_unload()
    tokens, mask = prompts(2)
    expected = generated(model, tokens, mask, do_sample=False)
    ratio = calibrate(model, texts(5), rule="ratio")
    base.train()
    assert calibrate(merged, texts(5), base=base, rule="ratio").strength == pytest.approx(ratio.strength, rel=1e-3)
    assert base.training
    base.eval()
    for options in ({"use_cache": False}, {}):
        processor = SteeredDecoding(merged, STEERING, base=base, attention_mask=mask, **options)
        found = generated(merged, tokens, mask, do_sample=False, processor=processor)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert processor._cache is not None
    processor = SteeredDecoding(model, STEERING)
    one, other = (torch.randint(1, V, (1, 6), generator=torch.Generator().manual_seed(i)) for i in (5, 6))
    for text in (one, other, one):
        found = generated(model, text, torch.ones_like(text), do_sample=False, processor=processor)
        torch.testing.assert_close(found.scores[0][0], alone(model, base, text[0].tolist()), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    several = generated(model, tokens, mask, do_sample=True, top_k=0, num_return_sequences=3)
    whole = torch.cat([mask.repeat_interleave(3, 0), torch.ones(6, 4, dtype=mask.dtype)], 1)
    torch.testing.assert_close(
        several.scores[-1], naive(model, base, several.sequences[:, :-1], whole), rtol=1e-5, atol=1e-5
    )


def test_a_remote_base_sends_its_likeliest():
    """The scores are those of the base that a device makes of them; all of them are the whole base, to half precision."""
    model, base = adapted_model(), base_model()
    text = prompts(1)[0]
    with torch.no_grad():
        p, q = (of(input_ids=text).logits[:, -1] for of in (model, base))
    found = SteeredDecoding(model, STEERING, top=4)(text, p)
    torch.testing.assert_close(
        found, STEERING.steered(p, received(*top_log_probabilities(q, 4), V)), rtol=1e-5, atol=1e-5
    )
    whole = SteeredDecoding(model, STEERING, top=V)(text, p)
    torch.testing.assert_close(whole, STEERING.steered(p, q), rtol=0, atol=0.01)


def test_masked_tokens_never_come():
    """However hot the temperature, only tokens of the mask are drawn."""
    model = adapted_model()
    tokens, mask = prompts(4)
    sharp = SteeringVector(strength=-1.0, alpha=0.9)
    torch.manual_seed(0)
    processor = SteeredDecoding(model, sharp, attention_mask=mask)
    found = generated(model, tokens, mask, do_sample=True, temperature=50.0, top_k=0, processor=processor)
    for step, scores in enumerate(found.scores):
        drawn = found.sequences[:, tokens.shape[1] + step]
        assert scores.gather(-1, drawn[:, None]).isfinite().all()
        assert (scores == -math.inf).sum() > V


def test_adapter_is_on_again_and_half_precision_works():
    """The base pass leaves the model as it was; weights of bfloat16 give scores of single precision."""
    model = adapted_model()
    text = prompts(1)[0]
    before = model(input_ids=text).logits
    processor = SteeredDecoding(model, STEERING)
    processor(text, before[:, -1])
    assert torch.equal(model(input_ids=text).logits, before)
    half = copy.deepcopy(model).bfloat16()
    logits = half(input_ids=text).logits[:, -1]
    found = SteeredDecoding(half, STEERING)(text, logits)
    assert logits.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    with half.disable_adapter():
        base = half(input_ids=text).logits[:, -1]
    torch.testing.assert_close(found, STEERING.steered(logits.float(), base.float()), rtol=1e-5, atol=1e-5)


# --- calibration, answers, files -------------------------------------------------------------------------------------


def texts(count: int, *, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, V, (count, 9), generator=rng).tolist()
    return [(row[:4], row[4 : 6 + i % 4]) for i, row in enumerate(rows)]


@pytest.mark.parametrize("name", ["lora", "ia3", "prompt"])
def test_calibration_is_over_the_tokens_of_answers(name: str):
    """Batches with padding give what texts one by one give, without dropout, in whatever mode the model was."""
    model, base = adapted_model(name), base_model()
    own = texts(7)
    slope, square = [], []
    for prompt, answer in own:
        for at, label in enumerate(answer):
            row = torch.tensor([prompt + answer[:at]])
            with torch.no_grad():
                p, q = (of(input_ids=row).logits[:, -1] for of in (model, base))
            told = token_strengths(p, q, torch.tensor([label]))
            slope.append(float(told.slope[0]))
            square.append(float(told.square[0]))
    longest = max(square)
    pairs = [(a, b) for a, b in zip(slope, square, strict=True) if b >= 1e-4 * longest]
    slope, square = [a for a, _ in pairs], [b for _, b in pairs]
    expected = sum(a / b for a, b in zip(slope, square, strict=True)) / len(slope)
    model.train()
    found = calibrate(model, own, batch_size=3)
    assert model.training
    assert found.strength == pytest.approx(expected, rel=1e-4)
    assert found == SteeringVector(strength=found.strength)
    ratio = calibrate(model, own, rule="ratio", alpha=0.1)
    assert ratio.strength == pytest.approx(sum(slope) / sum(square), rel=1e-4)


def test_curvature_is_halved_until_it_helps():
    """The step is Newton's over 1, 2, 4, ..., the first that lowers the loss, or zero."""
    model = adapted_model()
    own = texts(12, seed=1)
    whole = calibrate(model, own, rule="curvature")
    losses = {}
    for strength in (0.0, whole.strength, 2 * whole.strength):
        steering = SteeringVector(strength=strength)
        losses[strength] = -sum(float(score_answers(model, prompt, [answer], steering)[0]) for prompt, answer in own)
    assert whole.strength == 0 or losses[whole.strength] < losses[0.0]


def test_answers_are_scored_without_dropping_tokens():
    """Each answer's sum of steered log-probabilities, with the tokens outside the mask as they were."""
    model, base = adapted_model(), base_model()
    prompt, answers = [3, 4, 5], [[1, 2], [7], [9, 9, 9]]
    steering = SteeringVector(strength=-1.0, alpha=0.5)
    found = score_answers(model, prompt, answers, steering)
    for answer, own in zip(answers, found.tolist(), strict=True):
        total = 0.0
        for at, label in enumerate(answer):
            row = torch.tensor([prompt + answer[:at]])
            with torch.no_grad():
                p, q = (of(input_ids=row).logits[0, -1] for of in (model, base))
            kept = SteeringVector(strength=-1.0, alpha=0.5, outside="keep")
            total += float(kept.steered(p, q)[label])
        assert own == pytest.approx(total, abs=1e-5)
    assert found.isfinite().all()


def test_strings_need_a_tokenizer():
    """Prompt and answer are encoded apart, the answer without special tokens."""
    model = adapted_model()

    def tokenizer(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [2 + ord(c) % (V - 2) for c in text]}

    found = calibrate(model, [("ab", "cde"), "fgh"], tokenizer=tokenizer)
    ids = [tokenizer(text)["input_ids"] for text in ("ab", "fgh")]
    same = calibrate(model, [(ids[0], tokenizer("cde", add_special_tokens=False)["input_ids"]), ids[1]])
    assert found == same
    with pytest.raises(InvalidProblemError, match=r"texts\[0\]: a string: expected token ids, or a tokenizer"):
        calibrate(model, ["ab"])


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_files_know_their_model_and_adapter(name: str, tmp_path: Path):
    """What was saved is loaded for equal weights, and refused for another base or another adapter."""
    path = tmp_path / "steering.json"
    model = adapted_model(name)
    save_steering(path, STEERING, model)
    assert load_steering(path, adapted_model(name)) == STEERING
    with pytest.raises(InvalidFileError, match=r"steering.json: adapter = .*: of another adapter: expected"):
        load_steering(path, adapted_model(name, seed=1))
    other = adapted_model(name)
    next(iter(other.get_base_model().parameters())).data[0, 0] += 1
    with pytest.raises(InvalidFileError, match=r"steering.json: base = .*: of another base: expected"):
        load_steering(path, other)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"alpha": 3}))
    with pytest.raises(InvalidFileError, match=r"steering.json: alpha = 3.0: expected a number from 0 to 1"):
        load_steering(path, model)


def test_files_of_two_models(tmp_path: Path):
    """A base that is a second model is told by its weights; it has the digest of the base under an adapter."""
    path, base = tmp_path / "steering.json", base_model()
    model = base_model(seed=1)
    save_steering(path, STEERING, model, base=base)
    assert load_steering(path, model, base=base_model()) == STEERING
    with pytest.raises(InvalidFileError, match="of another base"):
        load_steering(path, model, base=base_model(seed=2))
    saved = json.loads(path.read_text())
    save_steering(path, STEERING, adapted_model())
    assert json.loads(path.read_text())["base"] == saved["base"]


def test_wrong_models_are_named():
    """No adapter, no model, other vocabularies, biases that stay, no texts, nan, a mask of other prompts."""
    base, model = base_model(), adapted_model()
    with pytest.raises(InvalidProblemError, match="model: has no adapter to switch off: expected a model of peft"):
        SteeredDecoding(base, STEERING)
    with pytest.raises(InvalidProblemError, match="model: a str: expected a language model of transformers"):
        SteeredDecoding("gpt2", STEERING)
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V + 1, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InvalidProblemError, match="base: a vocabulary of 24 tokens: expected that of the model, 23"):
        SteeredDecoding(model, STEERING, base=other)
    biased = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, bias="all", task_type="CAUSAL_LM")
    with pytest.raises(InvalidProblemError, match="bias = 'all', which stay when it is switched off"):
        SteeredDecoding(peft.get_peft_model(base_model(), biased), STEERING)
    with pytest.raises(InvalidProblemError, match="texts: none: expected at least one to calibrate on"):
        calibrate(model, [])
    with pytest.raises(InvalidProblemError, match=r"texts\[1\]: 1 tokens: expected at least one after the first"):
        calibrate(model, [[1, 2], [3]])
    with pytest.raises(InvalidProblemError, match="alpha = 2: expected a number from 0 to 1"):
        calibrate(model, [[1, 2]], alpha=2)
    text, mask = prompts(2)
    scores = torch.zeros(2, V)
    scores[1, 0] = math.nan
    with pytest.raises(InvalidProblemError, match="adapted: row 1 has scores that are nan or infinite"):
        SteeredDecoding(model, STEERING)(text, scores)
    with pytest.raises(InvalidProblemError, match=r"attention_mask: shape \[2, 6\], the tokens \[1, 6\]"):
        SteeredDecoding(model, STEERING, attention_mask=mask)(text[:1], scores[:1])


def test_transformers_is_not_imported():
    """Neither by the package nor by its inference."""
    code = (
        "import sys, edgeopt.inference\n"
        "print([name for name in ('transformers', 'peft', 'safetensors', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "texts: none: expected at least one"),
        ([[]], "texts[0]: 0 tokens: expected at least one after the first"),
        ([[1, 2], [1]], "texts[1]: 1 tokens: expected at least one after the first"),
        ([([], [1])], "texts[0]: 1 tokens"),
        ([([1], [])], "texts[0]: 1 tokens"),
        ([""], "texts[0]: 0 tokens"),
        ([None], "texts[0] = None: expected a text, or token ids"),
        ([5], "texts[0] = 5: expected a text, or token ids"),
        ([([1], [2], [3])], "texts[0]: 3 parts: expected a prompt and its answer"),
        ([[1, V]], f"texts: token {V}: expected at most {V - 1}, as the model knows"),
        ([[1, 2.5]], "texts[0] = 2.5: expected an integer >= 0"),
    ],
)
def test_texts_that_cannot_be_scored(given: Any, said: str):
    """Empty ones, those of one token, and what is none: one line that says which, and what was expected."""
    model = adapted_model()
    with pytest.raises(InvalidProblemError) as error:
        calibrate(model, given, tokenizer=lambda text, **_: {"input_ids": [1] * len(text)})
    assert said in str(error.value)
    if len(given) == 1 and not isinstance(given[0], tuple):
        with pytest.raises(InvalidProblemError, match=r"^(answers\[0\]|texts)"):
            score_answers(model, [], given, STEERING, tokenizer=lambda text, **_: {"input_ids": [1] * len(text)})


def test_tuples_of_ids_are_texts():
    """Only of a prompt and its answer, which are texts themselves, a pair is made."""
    model = adapted_model()
    assert calibrate(model, [(1, 2), (3, 4, 5)]) == calibrate(model, [[1, 2], [3, 4, 5]])


def test_what_cannot_be_steered():
    """No answers, no steering, no model, no tokens, masks of other shapes."""
    model = adapted_model()
    with pytest.raises(InvalidProblemError, match="answers: none: expected at least one"):
        score_answers(model, [1], [], STEERING)
    for call in (lambda: score_answers(model, [1], [[2]], None), lambda: SteeredDecoding(model, None)):  # type: ignore[arg-type]
        with pytest.raises(InvalidProblemError, match="steering: a NoneType: expected a SteeringVector"):
            call()
    with pytest.raises(InvalidProblemError, match="base: a str: expected a language model of transformers"):
        SteeredDecoding(model, STEERING, base="gpt2")
    with pytest.raises(InvalidProblemError, match="texts\\[0\\]: its tokenizer returns \\{\\}: expected input_ids"):
        calibrate(model, ["ab"], tokenizer=lambda text: {})
    for shape in ((1, 0), (0, 3)):
        with pytest.raises(InvalidProblemError, match=r"input_ids: shape \[., .\]: expected at least one token"):
            SteeredDecoding(model, STEERING)(torch.zeros(shape, dtype=torch.long), torch.zeros(shape[0], V))
    for mask in (torch.zeros(0, 3), torch.ones(3)):
        with pytest.raises(InvalidProblemError, match="attention_mask: shape"):
            SteeredDecoding(model, STEERING, attention_mask=mask)
    tokens, mask = prompts(2)
    plain, listed = (SteeredDecoding(model, STEERING, attention_mask=m) for m in (mask, mask.tolist()))
    scores = torch.zeros(2, V)
    assert torch.equal(plain(tokens, scores), listed(tokens, scores))  # a mask may be a list
    one = generated(model, torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.long))
    assert one.sequences.shape == (1, 6)  # a prompt of one token is enough
