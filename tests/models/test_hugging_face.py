"""Decoders of transformers as layers that may be cut, and adapters as checkpoints of peft; the models are made here.

transformers computes what we are compared with, peft reads what we write and writes what we read.
"""

import copy
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, whatever a folder lacks
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own future
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.data.partition import iid
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.models import add_lora, from_transformers, lora_layers, to_transformers
from edgeopt.training import (
    Adam,
    ArrayData,
    FedAvg,
    HetLora,
    HSplitLora,
    LocalRunner,
    SplitFed,
    Task,
    train,
)
from tests.training.small_tasks import assert_near, small_timing

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

VOCABULARY, WIDTH = 30, 16


def llama(kind: str = "Llama", *, attention: str = "eager", seed: int = 0, **options: Any) -> Any:
    fields = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**(fields | options))
    return made(getattr(transformers, f"{kind}ForCausalLM"), config, attention, seed)


def gpt2(*, attention: str = "eager", seed: int = 0, **options: Any) -> Any:
    fields = {
        "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 0,
        "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    return made(transformers.GPT2LMHeadModel, transformers.GPT2Config(**(fields | options)), attention, seed)


def made(cls: Any, config: Any, attention: str, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls._from_config(config, attn_implementation=attention).eval()
        for parameter in model.parameters():  # biases and norms other than zeros and ones
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


MODELS: dict[str, Callable[..., Any]] = {
    "llama": llama,
    "llama, tied": lambda **options: llama(tie_word_embeddings=True, **options),
    "llama, scaled": lambda **options: llama(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, attention_bias=True, **options
    ),
    "mistral": lambda **options: llama("Mistral", sliding_window=None, **options),
    "qwen2": lambda **options: llama("Qwen2", **options),
    "gpt2": gpt2,
}
PATTERNS = {"gpt2": ["*.c_attn", "*.c_fc"]}
every_model = pytest.mark.parametrize("name", MODELS)
every_family = pytest.mark.parametrize("name", ["llama, tied", "gpt2"])


def tokens(count: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def adapted(name: str, original: nn.Module, *, trained: bool = True) -> nn.Sequential:
    """Return the layers with adapters of two ranks, which have moved from zero."""
    pattern = PATTERNS.get(name, ["*.q_proj", "*.v_proj", "*.down_proj"])
    model = add_lora(from_transformers(original), [*pattern, "head"], rank=4, ranks={"block1*": 2}, alpha=6.0)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        if trained:
            nn.init.normal_(layer.lora_b, std=0.3, generator=generator)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_model
def test_outputs_are_those_of_the_original(name: str, attention: str):
    """To the last bit, whole and cut anywhere; the original stays as it is."""
    original = MODELS[name](attention=attention)
    before = copy.deepcopy(original.state_dict())
    model, x = from_transformers(original), tokens()
    assert [part for part, _ in model.named_children()] == ["embedding", "block1", "block2", "norm", "head"]
    with torch.no_grad():
        expected = original(x).logits
        assert torch.equal(model(x), expected)
        for cut in range(1, len(model)):
            assert torch.equal(model[cut:](model[:cut](x)), expected)
        for parameter in model.parameters():
            parameter += 1
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


@every_family
def test_gradients_are_those_of_the_original(name: str):
    """Of every weight, but that of a tied embedding is in two parts: one at each end."""
    original = MODELS[name]()
    model, x = from_transformers(original), tokens()
    for net in (lambda x: original(x).logits, model):
        nn.functional.cross_entropy(net(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    theirs = original.get_input_embeddings().weight.grad
    ends = [next(model.get_submodule(end).parameters()).grad for end in ("embedding", "head")]
    torch.testing.assert_close(ends[0] + ends[1], theirs)
    blocks = [p.grad for p in original.base_model.parameters()]
    own = [p.grad for end, part in model.named_children() if end != "head" for p in part.parameters()]
    assert len(blocks) == len(own)
    assert sum(torch.equal(a, b) for a, b in zip(blocks, own, strict=True)) >= len(own) - 1


@every_family
def test_weights_that_were_one_are_two(name: str):
    """A task refuses a tensor that occurs twice: the head has a copy, which starts equal."""
    original = MODELS[name]()
    assert original.lm_head.weight is original.get_input_embeddings().weight
    model = from_transformers(original)
    embedding = next(model.get_submodule("embedding").parameters())
    head = model.get_submodule("head").weight
    assert torch.equal(head, embedding)
    assert head.data_ptr() != embedding.data_ptr()


@every_family
def test_adapters_train_under_every_kind_of_round(name: str):
    """Clients of unequal rank in a batch learn what they learn one after another; what is frozen is not sent."""
    model = adapted(name, MODELS[name](), trained=False)
    x = tokens(24, 11)
    data = ArrayData(x[:, :-1].contiguous(), x[:, 1:].contiguous(), VOCABULARY, "tokens")
    task = Task(model=model, train=data, test=data, partition=iid(24, 3, seed=0))
    planner = StaticPlanner(RoundPlan(client=range(3), batch_size=4, local_steps=2, rank=[1, 2, 4]))
    sizes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    for algorithm in (
        HetLora(Adam(0.02)),
        HSplitLora(Adam(0.02), cut_layer=2),
        FedAvg(Adam(0.02)),
        SplitFed(Adam(0.02)),
    ):
        first, second = (
            train(task, algorithm, planner, small_timing(3), rounds=2, runner=LocalRunner(batched=batched))
            for batched in (True, False)
        )
        assert_near(first.models[0], second.models[0], 1e-5)
        assert first.rows[-1]["test_loss"] < task.evaluate(task.initial_weights()).loss
        assert first.rows[-1]["weights_up"] <= 2 * 3 * sizes


# --- checkpoints -----------------------------------------------------------------------------------------------------


def with_peft(original: nn.Module, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(copy.deepcopy(original), folder)


@every_model
def test_peft_reads_what_we_write(name: str, tmp_path: Path):
    """It computes the same with it, for ranks and scales that differ by layer; read again, so do we, to the last bit."""
    original = MODELS[name]()
    model = adapted(name, original)
    to_transformers(model, original, tmp_path / "new")
    again = from_transformers(original, adapters=tmp_path / "new")
    with torch.no_grad():
        expected = model(tokens())
        assert not torch.equal(expected, original(tokens()).logits)
        torch.testing.assert_close(with_peft(original, tmp_path / "new")(tokens()).logits, expected, rtol=0, atol=1e-6)
        assert torch.equal(again(tokens()), expected)
    layers = lora_layers(again)
    assert {n: (a.rank, a.scale) for n, a in layers.items()} == {
        n: (a.rank, pytest.approx(a.scale)) for n, a in lora_layers(model).items()
    }
    trained = {n.rpartition(".")[0] for n, p in again.named_parameters() if p.requires_grad}
    assert trained == set(layers)


@every_family
def test_we_read_what_peft_writes(name: str, tmp_path: Path):
    """A checkpoint that peft has saved gives the same outputs here."""
    original = MODELS[name]()
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=targets, rank_pattern={targets[0]: 2}, alpha_pattern={targets[0]: 5},
        init_lora_weights=False, fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = peft.get_peft_model(copy.deepcopy(original), config)
    theirs.save_pretrained(tmp_path)
    model = from_transformers(original, adapters=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-6)
    assert {layer.rank for layer in lora_layers(model).values()} == ({2} if name == "gpt2" else {2, 3})


@every_family
def test_what_was_folded_is_written_too(name: str, tmp_path: Path):
    """Frozen weights into which rounds of HSplitLoRA have folded: the checkpoint has the difference as factors."""
    original = MODELS[name]().double()
    model = adapted(name, original)
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(model).values():
        first, second = (torch.randn(n, 1, generator=generator, dtype=torch.float64) for n in layer.weight.shape)
        with torch.no_grad():
            layer.weight += 0.05 * first @ second.T
    to_transformers(model, original, tmp_path)
    ranks = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert sorted(set(ranks.values())) == [3, 5], "that of the adapter and one more"
    with torch.no_grad():
        found = with_peft(original, tmp_path)(tokens()).logits
        torch.testing.assert_close(found, model(tokens()), rtol=0, atol=1e-12)
        torch.testing.assert_close(from_transformers(original, adapters=tmp_path)(tokens()), found, rtol=0, atol=1e-12)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_models_that_are_no_such_decoder():
    """Told in one line: other types, other attention, windows, frequencies that change."""
    bert = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
        )
    )
    for model, message in (
        (
            nn.Linear(2, 2),
            r"^model: a Linear: expected a causal language model of transformers of one of the types llama",
        ),
        (bert, r"^model: a BertModel of type 'bert': expected a causal"),
        (llama().model, r"^model: a LlamaModel of type 'llama': expected a causal"),
        (llama("Mistral", sliding_window=4), r"^model: sliding_window = 4: expected attention to all earlier tokens$"),
        (
            llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            r"^model: rope_type = 'dynamic': expected one of default, linear",
        ),
        (gpt2(add_cross_attention=True), r"^model: add_cross_attention = True: expected a decoder alone$"),
    ):
        with pytest.raises(InvalidProblemError, match=message):
            from_transformers(model)
    other = llama()
    other.config._attn_implementation = "flex_attention"
    with pytest.raises(
        InvalidProblemError, match=r"^model: attn_implementation = 'flex_attention': expected 'eager' or"
    ):
        from_transformers(other)


def test_what_no_checkpoint_can_hold(tmp_path: Path):
    """No adapters, another original, weights that were trained beside adapters."""
    original = llama()
    model = adapted("llama", original)
    with pytest.raises(InvalidProblemError, match=r"^model: has no adapters to write: expected one of add_lora$"):
        to_transformers(from_transformers(original), original, tmp_path)
    with pytest.raises(
        InvalidProblemError, match=r"^original: block3\..*: expected the model that this one was made of$"
    ):
        to_transformers(model, llama(num_hidden_layers=3), tmp_path)
    with pytest.raises(
        InvalidProblemError, match=r"^original: embedding\.weight has shape \[40, 16\], here it is \[30, 16\]"
    ):
        to_transformers(model, llama(vocab_size=40), tmp_path)
    with pytest.raises(InvalidProblemError, match=r"^original: .*: expected the model that this one was made of$"):
        to_transformers(model, gpt2(), tmp_path)
    with torch.no_grad():
        model.get_submodule("norm").weight += 1
    with pytest.raises(InvalidProblemError, match=r"^model: norm\.weight was trained: expected adapters alone"):
        to_transformers(model, original, tmp_path)
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_do_not_fit(tmp_path: Path):
    """Of another model, of another method, damaged or halved: the file is named, and what was expected."""
    original = llama()
    to_transformers(adapted("llama", original), original, tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, plain = weights.read_bytes(), json.loads(config.read_text())

    def refused(message: str, model: Any = original) -> None:
        with pytest.raises(InvalidFileError, match=message):
            from_transformers(model, adapters=tmp_path)

    refused(r"adapter_model\.safetensors: model\.layers\.0\..*: the model has no such linear layer", gpt2())
    refused(
        r"adapter_model\.safetensors: lm_head: A \[4, 16\] and B \[30, 4\]: expected \[r, 32\]", llama(hidden_size=32)
    )
    for changes, message in (
        ({"peft_type": "IA3"}, r"adapter_config\.json: peft_type = 'IA3': expected 'LORA'$"),
        ({"use_dora": True}, r"adapter_config\.json: use_dora = True: expected false$"),
        ({"bias": "all"}, r"adapter_config\.json: bias = 'all': expected 'none'$"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]: expected nothing but adapters$"),
        ({"lora_alpha": "much"}, r"adapter_config\.json: lora_alpha = 'much': expected a number >= 0$"),
    ):
        config.write_text(json.dumps(plain | changes))
        refused(message)
    config.write_text(json.dumps(plain))
    for length in (0, 7, 100, len(whole) - 10):
        weights.write_bytes(whole[:length])
        refused(r"adapter_model\.safetensors: not a safetensors file")
    from safetensors.torch import load, save

    tensors = load(whole)
    name = next(iter(tensors))
    weights.write_bytes(save({key: value for key, value in tensors.items() if key != name}))
    refused(r"one half of its adapter is missing: expected lora_A and lora_B$")
    weights.write_bytes(save({"classifier.weight": torch.zeros(2)}))
    refused(r"classifier\.weight: expected adapters alone")
    config.unlink()
    with pytest.raises(FileNotFoundError):
        from_transformers(original, adapters=tmp_path)
