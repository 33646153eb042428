"""Recorded routing in the formats of others: each against the ids that were written, and what is spoilt in one line."""

import base64
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError
from edgeopt.problems import ROUTING_FORMATS, RoutingTrace

TOKENS, LAYERS, EXPERTS, TOP_K = 40, 3, 6, 2


def drawn(seed: int = 0) -> np.ndarray:
    """Return ids [T, L, K]; the largest expert is among them."""
    rng = np.random.default_rng(seed)
    ids = rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS, LAYERS, 1)), axis=-1)[..., :TOP_K]
    ids[0, 0] = [EXPERTS - 1, 0]
    return ids


IDS = drawn()
PLAIN = RoutingTrace.from_expert_ids(IDS)


def same(found: RoutingTrace, expected: RoutingTrace) -> bool:
    """Compare all but the name."""
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("set_user", "set_layer", "set_experts", "set_count", "tokens_per_user")
    ) and (found.num_layers, found.num_experts) == (expected.num_layers, expected.num_experts)


def per_token(path: Path, ids: np.ndarray = IDS, **more: Any) -> Path:
    """Write a dump of SGLang: dense layers, slots and tokens are -1, the tokens come in two passes."""
    torch = pytest.importorskip("torch")
    table = np.full((LAYERS + 2, TOKENS + 3, 8), -1)
    table[2:, :TOKENS, :TOP_K] = ids.transpose(1, 0, 2)
    parts = [torch.tensor(table[:, a:b], dtype=torch.int32) for a, b in ((0, 25), (25, TOKENS + 3))]
    records = [{"forward_pass_id": i, "rank": 0, "topk_ids_of_layer": part} for i, part in enumerate(parts)]
    torch.save({"records": records, **more}, path)
    return path


def test_sglang_per_token(tmp_path: Path):
    """Layers, slots and tokens without experts are left out, and passes are brought together."""
    assert same(RoutingTrace.read(per_token(tmp_path / "dump.pt")), PLAIN)
    with pytest.raises(InvalidFileError, match=r"dump.pt: 2 experts for a token, expected top_k = 4"):
        RoutingTrace.read(tmp_path / "dump.pt", top_k=4)
    with pytest.raises(InvalidFileError, match=r"dump.pt: 3 layers with experts, expected at most num_layers = 2"):
        RoutingTrace.read(tmp_path / "dump.pt", num_layers=2)


def test_sglang_replicas(tmp_path: Path):
    """Replicas of an expert are counted as the expert."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    table = np.tile(np.arange(2 * EXPERTS) % EXPERTS, (LAYERS + 2, 1))
    physical = IDS + EXPERTS * rng.integers(0, 2, IDS.shape)
    path = per_token(tmp_path / "dump.pt", physical, last_physical_to_logical_map=torch.tensor(table))
    assert same(RoutingTrace.read(path), PLAIN)


def test_sglang_statistics(tmp_path: Path):
    """Counts of several passes are added up; how many experts a token uses has to be said."""
    torch = pytest.importorskip("torch")
    counts = np.stack([np.bincount(IDS[:, layer].ravel(), minlength=EXPERTS) for layer in range(LAYERS)])
    both = np.stack([np.vstack([np.zeros((1, EXPERTS), int), counts])] * 2)
    torch.save({"logical_count": torch.tensor(both), "rank": 0}, tmp_path / "stat.pt")
    found = RoutingTrace.read(tmp_path / "stat.pt", top_k=TOP_K)
    assert same(found, RoutingTrace.from_counts(2 * counts[None], TOP_K))
    assert found.counts_only
    with pytest.raises(InvalidProblemError, match="counts do not tell how many experts a token uses: expected top_k"):
        RoutingTrace.read(tmp_path / "stat.pt")


class Dangerous:
    """Something whose pickle would run code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_sglang_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Anything but tensors and plain values is refused, before it could act."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"records": [], "more": Dangerous()}, tmp_path / "bad.pt")
    with pytest.raises(InvalidFileError, match=r"bad.pt: expected tensors, numbers, texts and lists of them"):
        RoutingTrace.read("bad.pt")
    assert not (tmp_path / "touched").exists()
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"records": []}))
    with pytest.raises(InvalidFileError, match=r"old.pt: not a file that torch.save has written"):
        RoutingTrace.read(tmp_path / "old.pt")


def test_sglang_sizes_are_checked_first(tmp_path: Path):
    """A tensor that claims more numbers than it has, and packed parts, are refused."""
    torch = pytest.importorskip("torch")
    huge = torch.zeros(1, dtype=torch.int32).expand(1 << 14, 1 << 14, 1 << 4)
    torch.save({"records": [{"topk_ids_of_layer": huge}]}, tmp_path / "huge.pt")
    with pytest.raises(InvalidFileError, match=r"records\[0\].topk_ids_of_layer: shape .* in 4 bytes"):
        RoutingTrace.read(tmp_path / "huge.pt")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1000)
    with pytest.raises(InvalidFileError, match=r"packed.pt: has packed parts"):
        RoutingTrace.read(tmp_path / "packed.pt")


def encoded(ids: np.ndarray) -> str:
    """Return ids as servers send them."""
    return base64.b64encode(ids.astype("<i4").tobytes()).decode()


def test_routed_experts(tmp_path: Path):
    """Base64 and lists, at any of the places where servers put them, by user."""
    dense = np.concatenate([np.zeros((TOKENS, 1, TOP_K), int), IDS], axis=1)  # a layer without experts
    lines = [
        {"user": "ann", "meta_info": {"routed_experts": encoded(dense[:10])}},
        {"user": "bob", "choices": [{"routed_experts": dense[10:20].tolist()}, {"sglext": {"routed_experts": encoded(dense[20:30])}}]},
        {"user": "ann", "routed_experts": encoded(dense[30:])},
    ]  # fmt: skip
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    user = np.repeat(["ann", "bob", "bob", "ann"], 10)
    expected = RoutingTrace.from_expert_ids(IDS, user=user)
    found = RoutingTrace.read(path, num_layers=LAYERS + 1, top_k=TOP_K)
    assert same(found, expected)
    assert found.meta["users"] == ["ann", "bob"]
    with pytest.raises(InvalidProblemError, match="routed_experts in base64 has no shape: expected num_layers"):
        RoutingTrace.read(path, top_k=TOP_K)


def test_routed_experts_of_one_answer(tmp_path: Path):
    """One answer as it came; several files are as many users."""
    for i, part in enumerate((IDS[:15], IDS[15:])):
        (tmp_path / f"{'ab'[i]}.json").write_text(json.dumps({"routed_experts": part.tolist()}, indent=1))
    assert same(RoutingTrace.read(tmp_path / "a.json"), RoutingTrace.from_expert_ids(IDS[:15], num_experts=EXPERTS))
    both = RoutingTrace.read(tmp_path / "a.json", tmp_path / "b.json")
    assert same(both, RoutingTrace.from_expert_ids(IDS, user=np.repeat([0, 1], (15, TOKENS - 15))))
    assert both.meta["users"] == ["a", "b"]


def test_expert_load(tmp_path: Path):
    """The history is added up; a file is told from answers by what it begins with."""
    counts = np.stack([np.bincount(IDS[:, layer].ravel(), minlength=EXPERTS) for layer in range(LAYERS)])
    history = [{"logical_expert_load": counts.tolist()}, {"logical_expert_load": counts.astype(float).tolist()}]
    (tmp_path / "expert-load.json").write_text(json.dumps({"model": "m", "load_history": history}))
    found = RoutingTrace.read(tmp_path / "expert-load.json", top_k=TOP_K, name="m")
    assert found == RoutingTrace.from_counts(2 * counts[None], TOP_K, name="m")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_activations(tmp_path: Path, mark: str):
    """Rows in any order, with any columns beside; layers are numbered by those that there are."""
    rng = np.random.default_rng(2)
    rows = [
        (f"u{token % 2}", token // 2, 5 + 2 * layer, expert, 0.5)
        for token in range(TOKENS) for layer in range(LAYERS) for expert in IDS[token, layer]
    ]  # fmt: skip
    rng.shuffle(rows := [list(row) for row in rows])
    head = mark.join(["User", "token", "layer", "expert", "weight"])
    path = tmp_path / "activations.csv"
    path.write_text("\n".join([head, *(mark.join(map(str, row)) for row in rows)]))
    expected = RoutingTrace.from_expert_ids(IDS, user=np.arange(TOKENS) % 2)
    assert same(RoutingTrace.read(path), expected)
    path.write_text("\n".join(["layer,expert", *(f"{row[2]},{row[3]}" for row in rows)]))
    counts = np.stack([np.bincount(IDS[:, layer].ravel(), minlength=EXPERTS) for layer in range(LAYERS)])
    assert same(RoutingTrace.read(path, top_k=TOP_K), RoutingTrace.from_counts(counts[None], TOP_K))


def test_arrays(tmp_path: Path):
    """Arrays of NumPy, in either order, with users and a mask."""
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(IDS))
    assert same(RoutingTrace.read(tmp_path / "ids.npy"), PLAIN)
    assert same(RoutingTrace.read(tmp_path / "fortran.npy"), PLAIN)
    user, mask = np.arange(TOKENS) % 3, np.arange(TOKENS) < 30
    np.savez(tmp_path / "ids.npz", ids=IDS, user=user, mask=mask)
    expected = RoutingTrace.from_expert_ids(IDS, user=user, mask=mask)
    assert same(RoutingTrace.read(tmp_path / "ids.npz"), expected)
    named = RoutingTrace.read(tmp_path / "ids.npz", num_experts=9, name="mine")
    assert (named.name, named.num_experts) == ("mine", 9)


BAD: dict[str, tuple[str, Any, str]] = {
    "lengths": ("a.jsonl", '{"routed_experts": "AAAA"}', "line 1: routed_experts: 3 bytes, expected a multiple of 4 x 3"),
    "base64": ("a.jsonl", '{"routed_experts": "A!"}', "line 1: routed_experts: not base64"),
    "nothing": ("a.jsonl", '{"x": 1}', "line 1: no routed_experts"),
    "mixed users": (
        "a.jsonl",
        '{"user": 1, "routed_experts": [[[0]]]}\n{"user": "a", "routed_experts": [[[0]]]}',
        "line 2: user = 'a': expected numbers everywhere, or texts everywhere",
    ),
    "layers": ("a.jsonl", '{"routed_experts": [[[0]]]}\n{"routed_experts": [[[0], [1]]]}', r"line 2: .* \[2, 1\] layers"),
    "empty lines": ("a.jsonl", "\n", "no token: expected at least one"),
    "no history": ("a.json", '{"load_history": []}', "load_history: expected at least one entry"),
    "halves": ("a.json", '{"load_history": [{"logical_expert_load": [[0.5]]}]}', r"logical_expert_load\[0, 0\] = 0.5"),
    "idle": ("a.json", '{"load_history": [{"logical_expert_load": [[0]]}]}', "no expert is used"),
    "ragged": ("a.json", '{"load_history": [{"logical_expert_load": [[0, 1], [1]]}]}', "logical_expert_load"),
    "no header": ("a.csv", "0,1\n0,2\n", "columns .*: expected a header with layer and expert"),
    "half a line break": ("a.csv", "layer\rx,expert\n0,1\n", "expected a table with a header: new-line character seen"),
    "a long header": ("a.csv", "layer,expert," + "x" * 140_000 + "\n0,1\n", "expected a table with a header: field larger"),
    "no rows": ("a.csv", "layer,expert\n", "no row under the header"),
    "negative": ("a.csv", "layer,expert\n0,-1\n", "row 1: expert = -1"),
    "words": ("a.csv", "layer,expert\n0,first\n", "first"),
    "twice": ("a.csv", "layer,layer,expert\n0,0,0\n", "column layer is there 2 times"),
    "irregular": ("a.csv", "token,layer,expert\n0,0,0\n0,0,1\n1,0,0\n", "expected as many experts for each token"),
    "uneven": (
        "a.csv", "token,layer,expert\n0,0,0\n0,0,1\n0,0,2\n1,0,0\n", "row 3: token 0, layer 0: expected as many experts for each token",
    ),
    "no array": ("a.npy", "x", "not a plain array"),
    "unknown": ("a.bin", "x", "expected a name that ends in one of .pt"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str):
    """One line that names the file, the place, what is there and what was expected."""
    name, content, message = BAD[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(EdgeOptError, match=message) as error:
        RoutingTrace.read(tmp_path / name, num_layers=3, top_k=1)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_arrays(tmp_path: Path):
    """Sizes that the file cannot hold, other kinds of numbers and objects are refused."""
    np.save(tmp_path / "short.npy", IDS)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-1])
    np.save(tmp_path / "float.npy", IDS * 0.5)
    np.save(tmp_path / "object.npy", np.array([[[{}]]], object))
    with open(tmp_path / "truth.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (True, 1, 1)})
        file.write(bytes(8))
    np.savez(tmp_path / "user.npz", ids=IDS, user=[0])
    for name, message in (
        ("short.npy", "does not fit the file"), ("float.npy", "expected integers"), ("object.npy", "expected numbers, got dtype object"), ("truth.npy", "does not fit an array"),
        ("user.npz", r"user: shape \[1\], expected \[40\]"),
    ):  # fmt: skip
        with pytest.raises(InvalidFileError, match=message):
            RoutingTrace.read(tmp_path / name)


def test_bad_calls(tmp_path: Path):
    """No file, an unknown format, files that do not go together."""
    with pytest.raises(InvalidProblemError, match="paths: expected at least one file"):
        RoutingTrace.read()
    with pytest.raises(InvalidProblemError, match=f"format = 'x': expected one of {', '.join(ROUTING_FORMATS)}"):
        RoutingTrace.read(tmp_path / "a.npy", format="x")
    np.save(tmp_path / "a.npy", IDS)
    np.save(tmp_path / "b.npy", IDS[:, :2])
    with pytest.raises(InvalidFileError, match=r"b.npy: 2 layers and K = 2, expected 3 layers and K = 2 as in .*a.npy"):
        RoutingTrace.read(tmp_path / "a.npy", tmp_path / "b.npy")
    with pytest.raises(FileNotFoundError):
        RoutingTrace.read(tmp_path / "none.npy")
