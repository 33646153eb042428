"""Placements for others: read back, and applied to files of models by means that know nothing of this package."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.problems import (
    ExpertCaching,
    ExpertTensors,
    Placement,
    keep_list,
    placement_document,
    read_placement,
    tensor_list,
)

gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.numpy")

LAYERS, EXPERTS = 2, 4


def problem(num_models: int = 1) -> ExpertCaching:
    return ExpertCaching.random(
        num_servers=3, num_users=3, num_models=num_models, num_layers=LAYERS, experts_per_layer=EXPERTS, seed=0
    )


def placement(seed: int = 0, num_models: int = 1) -> Placement:
    return Placement(np.random.default_rng(seed).random((3, num_models * LAYERS * EXPERTS)) < 0.4)


# --- documents -----------------------------------------------------------------------------------------------------


@given(arrays.arrays(bool, (3, 2 * LAYERS * EXPERTS)))
def test_read_back(tmp_path_factory: pytest.TempPathFactory, cached: np.ndarray):
    """What was written is read as the same placement; experts by layer are those of the array."""
    path = tmp_path_factory.mktemp("placement") / "placement.json"
    caching, written = problem(2), Placement(cached)
    document = placement_document(caching, written)
    path.write_text(json.dumps(document))
    assert read_placement(caching, path) == written
    by_layer = cached.reshape(3, 2, LAYERS, EXPERTS)
    for n, server in enumerate(document["servers"]):
        assert server["bytes"] == pytest.approx(caching.storage_used(written)[n])
        for m in range(2):
            assert server["experts"][m] == [np.flatnonzero(by_layer[n, m, layer]).tolist() for layer in range(LAYERS)]


@given(arrays.arrays(bool, (3, 2 * LAYERS * EXPERTS)), st.sampled_from([None, 0, 1, 2]), st.integers(0, 1))
def test_keep_lists(cached: np.ndarray, server: int | None, model: int):
    """The experts of one server, or of all together, by layer."""
    by_layer = cached.reshape(3, 2, LAYERS, EXPERTS)[:, model]
    kept = by_layer.any(axis=0) if server is None else by_layer[server]
    expected = {str(layer): np.flatnonzero(kept[layer]).tolist() for layer in range(LAYERS)}
    assert keep_list(problem(2), Placement(cached), server=server, model=model) == expected


# --- files of models -----------------------------------------------------------------------------------------------

SINGLE = {
    "mixtral": "model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight",
    "qwen": "model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight",
    "switch": "{stack}.block.1.layer.1.mlp.experts.expert_{expert}.{part}.weight",
    "old": "blk.{layer}.ffn_{part}.{expert}.weight",
}
STACKED = {
    "fused": "model.layers.{layer}.mlp.experts.{part}_proj",
    "gguf": "blk.{layer}.ffn_{part}_exps.weight",
}
OTHERS = (
    "model.embed_tokens.weight", "model.layers.9.mlp.gate.weight", "model.layers.9.mlp.shared_expert.up_proj.weight",
    "model.layers.9.mlp.shared_experts.0.up_proj.weight", "blk.9.ffn_up.weight", "blk.9.ffn_gate_inp.weight",
    "blk.9.ffn_up_shexp.weight", "blk.0.attn_q.weight",
)  # fmt: skip


def tensors(naming: str) -> dict[str, np.ndarray]:
    """Return the tensors of a model in whose experts stand their layer and number; layers 3 and 11 have experts."""
    made = {name: np.full((2, 2), -1.0, np.float32) for name in OTHERS}
    for number, layer in enumerate((3, 11)):
        for part in ("up", "down"):
            values = np.full((EXPERTS, 2, 3), 100.0 * number, np.float32) + np.arange(EXPERTS)[:, None, None]
            values = values.astype(np.float32)
            if naming in STACKED:
                made[STACKED[naming].format(layer=layer, part=part)] = values
                continue
            for expert in range(EXPERTS):
                name = SINGLE[naming].format(
                    layer=layer, part=part, expert=expert, stack=("encoder", "decoder")[number]
                )
                made[name] = values[expert]
    return made


def held(found: list[dict[str, Any]], content: dict[str, np.ndarray]) -> set[tuple[int, int]]:
    """Return (layer, expert) of all that the entries choose, found by what stands in the tensors; each has two of them."""
    seen: list[float] = []
    for entry in found:
        if "pattern" in entry:
            chosen = [value for name, value in content.items() if re.fullmatch(entry["pattern"], name)]
            assert chosen
        else:
            chosen = list(np.take(content[entry["tensor"]], entry["indices"], axis=entry["axis"]))
        seen += [float(value.flat[0]) for value in chosen]
    values, count = np.unique(seen, return_counts=True)
    assert (count == 2).all()  # its way up and its way down
    assert (values >= 0).all()
    return {divmod(int(value), 100) for value in values}


@pytest.mark.parametrize("naming", [*SINGLE, *STACKED])
@pytest.mark.parametrize("server", [None, 1])
def test_tensors_of_files(naming: str, server: int | None, tmp_path: Path):
    """The tensors that are listed hold the experts of the placement and nothing else, in every way of naming."""
    content, chosen = tensors(naming), placement()
    if naming in ("gguf", "old"):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "qwen3moe")
        writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "déf"])
        writer.add_array("numbers", [1, 2, 3])
        writer.add_string("general.name", "tiny")
        writer.add_uint32("n", 7)
        for name, value in content.items():
            writer.add_tensor(name, value)
        writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
        writer.close()
    else:
        path = tmp_path / "model.safetensors"
        safetensors.save_file(content, path, {"format": "pt"})
    listed = tensor_list(problem(), chosen, ExpertTensors.read(path), server=server)
    kept = chosen.cached.any(axis=0) if server is None else chosen.cached[server]
    assert held(listed, content) == {divmod(int(e), EXPERTS) for e in np.flatnonzero(kept)}
    named = keep_list(problem(), chosen, server=server, tensors=ExpertTensors.read(path))
    assert list(named.values()) == list(keep_list(problem(), chosen, server=server).values())
    assert not any(name.endswith(".") for name in named)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(content, "model-1.safetensors")}))
    assert tensor_list(problem(), chosen, ExpertTensors.read(index), server=server) == listed


def test_layers_run_in_order():
    """An encoder's layers before a decoder's, numbers as numbers."""
    names = [f"{stack}.block.{b}.mlp.experts.0.wi.weight" for stack in ("decoder", "encoder") for b in (10, 9)]
    found = [layer.layer for layer in ExpertTensors.of_names(names).layers]
    assert found == [f"{stack}.block.{b}.mlp." for stack in ("encoder", "decoder") for b in (9, 10)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"experts.0.w": None, "experts.2.w": None}, "has expert 2 and not 1"),
        ({"blk.0.ffn_up_exps.weight": (3, 2, 2), "blk.0.ffn_down_exps.weight": (4, 2, 2)}, "expected one number"),
    ],
)
def test_names_that_contradict_each_other(names: dict[str, Any], said: str):
    """Missing experts and different numbers of them are named."""
    with pytest.raises(InvalidFileError, match=said):
        ExpertTensors.of_names(names)


def test_tensors_of_another_model():
    """Another number of layers or of experts is refused."""
    one = ExpertTensors.of_names([f"layers.0.experts.{e}.w" for e in range(EXPERTS)])
    with pytest.raises(InvalidProblemError, match="1 layers of experts, expected 2"):
        tensor_list(problem(), placement(), one)
    few = ExpertTensors.of_names([f"layers.{b}.experts.{e}.w" for b in range(2) for e in range(3)])
    with pytest.raises(InvalidProblemError, match=r"layers\.0 has 3 experts, expected 4 as layer 0"):
        tensor_list(problem(), placement(), few)


@pytest.mark.parametrize(
    ("suffix", "data", "said"),
    [
        (".gguf", b"GGML", "not a GGUF file"),
        (".gguf", b"GGUF" + struct.pack("<I", 1), "version 1"),
        (".gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "expected at most"),
        (".gguf", b"GGUF" + struct.pack("<IQQ", 3, 1000, 0), "bytes too early"),
        (".gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "bytes too early"),
        (".gguf", b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 60), "bytes too early"),
        (".gguf", b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "type 77"),
        (".gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "none of its 0 tensors"),
        (".safetensors", struct.pack("<Q", 1 << 62), "its header has"),
        (".safetensors", struct.pack("<Q", 2) + b"{}", "none of its 0 tensors"),
        (".json", b'{"weight_map": 3}', "weight_map = 3"),
        (".bin", b"", "expected a name that ends in"),
    ],
)
def test_damaged_files(suffix: str, data: bytes, said: str, tmp_path: Path):
    """One line that starts with the path; no memory is taken for what a header promises."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    with pytest.raises(InvalidFileError, match=re.escape(str(path))) as error:
        ExpertTensors.read(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("kind",), "x", "kind = 'x'"),
        (("models",), [], "models: 0 of them, expected 1"),
        (("models", 0, "name"), "x", "models[0].name = 'x'"),
        (("models", 0, "experts"), [4], "models[0].experts = [4]"),
        (("servers",), [], "servers: 0 of them, expected 3"),
        (("servers", 0, "experts"), [], "servers[0].experts: 0 lists"),
        (("servers", 0, "experts", 0), [[0]], "servers[0].experts[0]: expected 2 lists"),
        (("servers", 0, "experts", 0, 1), [4], "servers[0].experts[0][1]: expected a list of ids from 0 to 3"),
        (("servers", 0, "experts", 0, 1), [True], "expected a list of ids"),
    ],
)
def test_damaged_placements(path: tuple[Any, ...], value: Any, said: str, tmp_path: Path):
    """File, field, value, and what was expected."""
    document = placement_document(problem(), placement())
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file = tmp_path / "placement.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InvalidFileError) as error:
        read_placement(problem(), file)
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)


def test_bad_numbers():
    """A server or model that is not there."""
    with pytest.raises(InvalidProblemError, match="server = 3"):
        keep_list(problem(), placement(), server=3)
    with pytest.raises(InvalidProblemError, match="model = 1"):
        keep_list(problem(), placement(), model=1)


def test_names_are_numbers_as_patterns_write_them():
    """A number with zeros before, of other digits or of thousands of them would be in no pattern: it is refused."""
    for number in ("00", "01", "\u0660", "1" * 5000):
        with pytest.raises(InvalidFileError, match="expected a number of at most 9 digits, with no 0 before") as error:
            ExpertTensors.of_names(["m.experts.0.w", f"m.experts.{number}.w"])
        assert len(str(error.value)) < 500


def test_layers_come_by_their_numbers():
    """However long these are; equal ones have an order, too."""
    layers = ["blk.00.", "blk.0.", "blk.2.", "blk.10.", f"blk.{'9' * 5000}."]
    found = ExpertTensors.of_names([f"{layer}ffn_up.{e}.weight" for layer in reversed(layers) for e in range(2)])
    assert [layer.layer for layer in found.layers] == ["blk.0.", "blk.00.", *layers[2:]]


def test_patterns_fit_their_own_names_alone():
    """Whatever stands in a name: it is written as it is, and takes no other tensor."""
    names = [f"a+b(.*[x.layers.{b}.mlp.experts.{e}.w1.weight" for b in range(2) for e in range(12)]
    found = ExpertTensors.of_names(names)
    for b, layer in enumerate(found.layers):
        (entry,) = layer.patterns([1, 11])
        taken = [name for name in names if re.fullmatch(entry["pattern"], name)]
        assert taken == [names[12 * b + 1], names[12 * b + 11]]
