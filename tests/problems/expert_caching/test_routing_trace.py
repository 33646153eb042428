import io
import json
import pickle
import sys
import zipfile
from collections import Counter
from importlib import resources
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt import EdgeNetwork
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.problems.expert_caching.counting import row_codes
from edgeopt.problems.expert_caching.routing_trace import BUNDLED_TRACES, RoutingTrace, bundled_trace

SIZES = {
    "switch32": (1, 32, 6, 73_728, 4_608),
    "mixtral8": (2, 8, 8, 92_160, 5_376),
    "fine64": (4, 64, 4, 27_648, 619_048),
}
ARRAYS = ("set_user", "set_layer", "set_experts", "set_count", "tokens_per_user")


def small(**change) -> RoutingTrace:
    """Two users, two layers, three experts, Top-2; each user has four tokens."""
    fields = {
        "name": "small",
        "num_layers": 2,
        "num_experts": 3,
        "set_user": [0, 0, 0, 1, 1],
        "set_layer": [0, 0, 1, 0, 1],
        "set_experts": [[0, 1], [1, 2], [0, 2], [0, 1], [1, 2]],
        "set_count": [3, 1, 4, 4, 4],
        "tokens_per_user": [4, 4],
        "meta": {"bytes_per_expert_fp16": 10},
    }
    return RoutingTrace(**(fields | change))


def raw_arrays(name: str) -> dict[str, np.ndarray]:
    with (
        (resources.files("edgeopt.problems.expert_caching") / "data" / f"routing-{name}.npz").open("rb") as file,
        np.load(file) as z,
    ):
        return dict(z)


@pytest.fixture
def members(tmp_path) -> dict[str, np.ndarray]:
    """Return the arrays of a good file, to be spoiled."""
    small().save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as z:
        return dict(z)


def load_members(tmp_path, members: dict[str, np.ndarray]) -> RoutingTrace:
    np.savez(tmp_path / "bad.npz", **members)
    return RoutingTrace.load(tmp_path / "bad.npz")


# --- bundled traces


@pytest.mark.parametrize("name", BUNDLED_TRACES)
def test_bundled_sizes(name):
    """Each bundled trace has the sizes its description states, and a meta with how it was recorded."""
    trace = bundled_trace(name)
    top_k, experts, layers, expert_bytes, rows = SIZES[name]
    assert trace.statistics() == {
        "users": 24, "layers": layers, "experts": experts, "top_k": top_k, "rows": rows, "tokens": 24 * 20_480,
    }  # fmt: skip
    assert trace.name == name
    assert trace.meta["bytes_per_expert_fp16"] == expert_bytes
    assert len(trace.meta["user_mixture"]) == 24


@pytest.mark.parametrize("name", BUNDLED_TRACES)
def test_saved_trace_has_the_arrays_of_the_shipped_file(tmp_path, name):
    """Saving a shipped trace writes the same arrays with the same types, and it loads back equal."""
    trace = bundled_trace(name)
    trace.save(tmp_path / "again.npz")
    assert RoutingTrace.load(tmp_path / "again.npz") == trace
    shipped = raw_arrays(name)
    with np.load(tmp_path / "again.npz") as saved:
        assert set(saved) == set(shipped)
        for key in ARRAYS:
            assert saved[key].dtype == shipped[key].dtype, key
            np.testing.assert_array_equal(saved[key], shipped[key], err_msg=key)
        assert json.loads(bytes(saved["meta"])) == json.loads(bytes(shipped["meta"]))


def test_loading_takes_no_python_per_row():
    """Validation is vectorised: 619,048 rows are loaded with far fewer lines of Python than there are rows."""
    lines = 0

    def count(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        trace = bundled_trace("fine64")
    finally:
        sys.settrace(before)
    assert trace.set_count.size == 619_048
    assert 0 < lines < 619_048 / 10


def test_unknown_bundled_name():
    """A wrong name is answered with the right ones and never reaches the file system."""
    with pytest.raises(
        InvalidProblemError, match=r"no bundled trace '\.\./x': expected one of switch32, mixtral8, fine64"
    ):
        bundled_trace("../x")


# --- the object


def test_arrays_are_read_only_copies():
    """A trace cannot be changed through its arrays, nor through what it was built from."""
    given_count, given_meta = np.array([3, 1, 4, 4, 4]), {"list": [1]}
    trace = small(set_count=given_count, meta=given_meta)
    given_count[0], given_meta["list"][0] = 99, 99
    assert trace.set_count[0] == 3
    assert trace.meta["list"] == [1]
    assert [getattr(trace, name).dtype for name in ARRAYS] == [np.int32] * 3 + [np.int64] * 2
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(trace, name)[0] = 0


def test_equality():
    """Traces are equal if arrays and meta are; nothing else equals a trace."""
    assert small() == small()
    assert small() != small(set_count=[2, 2, 4, 4, 4])
    assert small() != small(meta={})
    assert small() != small(name="other")
    assert small() != 1


@given(
    st.integers(1, 40_000),
    st.dictionaries(
        st.text(max_size=5).map("x-{}".format),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
        max_size=3,
    ),
)
@settings(max_examples=30)
def test_round_trip(tmp_path_factory, scale, meta):
    """Any counts, below or above the narrow types of the file, and any JSON meta come back equal."""
    path = tmp_path_factory.mktemp("trace") / "trace.npz"
    factor = scale**3
    trace = small(
        set_count=np.array([3, 1, 4, 4, 4]) * factor, tokens_per_user=np.array([4, 4]) * factor, meta=meta
    )  # fmt: skip
    trace.save(path)
    assert RoutingTrace.load(path) == trace


def test_wide_ids_are_saved_wide(tmp_path):
    """Expert ids that do not fit 16 bits are saved in 32."""
    trace = RoutingTrace(
        name="wide", num_layers=1, num_experts=70_000, set_user=[0], set_layer=[0], set_experts=[[69_999]],
        set_count=[1], tokens_per_user=[1],
    )  # fmt: skip
    trace.save(tmp_path / "wide.npz")
    assert RoutingTrace.load(tmp_path / "wide.npz") == trace


# --- as a routed model


def test_model_of_a_small_trace():
    """The probabilities are counts over tokens; sets and entries are in ascending order, ids run layer by layer."""
    model = small().to_model()
    assert model.name == "small"
    assert model.expert_layer.tolist() == [0, 0, 0, 1, 1, 1]
    assert model.expert_bytes.tolist() == [10.0] * 6
    assert model.sets.tolist() == [[0, 1], [1, 2], [3, 5], [4, 5]]
    assert model.indptr.tolist() == [0, 3, 5]
    assert model.indices.tolist() == [0, 1, 2, 0, 3]
    assert model.probability.tolist() == [0.75, 0.25, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", BUNDLED_TRACES)
def test_uses_of_bundled_traces(name):
    """Expected uses per token equal a direct count over the raw rows and sum to K in every layer."""
    model, raw = bundled_trace(name).to_model(), raw_arrays(name)
    top_k, experts, layers = SIZES[name][:3]
    uses = np.zeros((24, layers, experts))
    for k in range(top_k):
        np.add.at(uses, (raw["set_user"], raw["set_layer"], raw["set_experts"][:, k]), raw["set_count"] / 20_480)
    np.testing.assert_allclose(model.uses, uses.reshape(24, -1), atol=1e-12)
    np.testing.assert_allclose(model.uses.reshape(24, layers, experts).sum(axis=2), top_k)


def test_row_order_does_not_matter_to_the_model():
    """Shuffled rows describe the same routing and give the same model."""
    trace, order = bundled_trace("mixtral8"), np.random.default_rng(0).permutation(5376)
    rows = {name: getattr(trace, name)[order] for name in ARRAYS[:4]}
    shuffled = RoutingTrace(
        name=trace.name, num_layers=8, num_experts=8, tokens_per_user=trace.tokens_per_user, meta=trace.meta, **rows
    )
    assert shuffled != trace
    assert shuffled.to_model() == trace.to_model()


def test_expert_bytes_scalar_or_array():
    """Sizes may be given for all experts at once or one by one."""
    assert small(meta={}).to_model(7).expert_bytes.tolist() == [7.0] * 6
    assert small().to_model([1, 2, 3, 4, 5, 6]).expert_bytes.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("meta", [{}, {"bytes_per_expert_fp16": "10"}, {"bytes_per_expert_fp16": True}])
def test_no_default_expert_bytes(meta):
    """Without a usable size in the meta, the caller is told to give one."""
    with pytest.raises(InvalidProblemError, match=r"meta: bytes_per_expert_fp16 = .*; give expert_bytes"):
        small(meta=meta).to_model()


@pytest.mark.parametrize("given", [0, -1.0, float("nan"), [1, 2], "x"])
def test_bad_expert_bytes(given):
    """Sizes that are not positive, or not one per expert, are refused."""
    with pytest.raises(InvalidProblemError, match="expert_bytes"):
        small().to_model(given)


# --- from router outputs


def naive(logits, top_k):
    """Count the Top-K sets one token at a time."""
    counts = Counter()
    for user, tokens in enumerate(logits):
        for token in tokens:
            for layer, values in enumerate(token):
                best = sorted(range(len(values)), key=lambda e: (-values[e], e))[:top_k]
                counts[user, layer, tuple(sorted(best))] += 1
    return counts


VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, np.inf, -np.inf]) | st.floats(-5, 5, width=32)


@given(data=st.data())
def test_router_logits_equal_a_plain_loop(data):
    """Vectorised counts equal a loop over tokens with a sort, with ties to the lowest index and infinities."""
    shape = tuple(data.draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(1, 7))))
    logits = data.draw(hnp.arrays(np.float32, shape, elements=VALUES))
    top_k = data.draw(st.integers(1, shape[3]))
    logits[..., :top_k] = np.where((logits > -np.inf).sum(axis=-1, keepdims=True) < top_k, -7.0, logits[..., :top_k])
    trace = RoutingTrace.from_router_logits(logits, top_k)
    rows = zip(trace.set_user, trace.set_layer, map(tuple, trace.set_experts), trace.set_count, strict=True)
    found = {(int(u), int(layer), tuple(map(int, chosen))): int(count) for u, layer, chosen, count in rows}
    assert found == dict(naive(logits.tolist(), top_k))
    assert len(found) == trace.num_rows
    assert trace.tokens_per_user.tolist() == [shape[1]] * shape[0]
    assert (trace.num_users, trace.num_layers, trace.num_experts, trace.top_k) == (shape[0], shape[2], shape[3], top_k)


def test_many_experts_per_set():
    """Sets whose code exceeds 64 bits (20 of 256 experts) are counted by rank, and still exactly."""
    rng = np.random.default_rng(0)
    few = rng.normal(size=(3, 256))  # three kinds of tokens
    logits = few[rng.integers(3, size=50)][None, :, None, :]
    trace = RoutingTrace.from_router_logits(logits, 20)
    assert trace.num_rows == 3
    assert Counter(dict(zip(map(tuple, trace.set_experts.tolist()), trace.set_count.tolist(), strict=True))) == Counter(
        {chosen: count for (_, _, chosen), count in naive(logits, 20).items()}
    )


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 20), st.just(3)), elements=st.integers(0, (1 << 30) - 1)))
def test_row_codes_order_rows(table):
    """Codes of rows compare as the rows do, even when a plain code would take 90 bits."""
    code = row_codes(*((table[:, k], 1 << 30) for k in range(3)))
    rows = [tuple(row) for row in table.tolist()]
    for i in range(len(rows)):
        for j in range(len(rows)):
            assert (code[i] < code[j]) == (rows[i] < rows[j])
            assert (code[i] == code[j]) == (rows[i] == rows[j])


def test_integer_and_half_precision_logits():
    """Any real type of router output gives the same sets."""
    logits = np.random.default_rng(0).integers(0, 5, (2, 10, 2, 6))
    expected = RoutingTrace.from_router_logits(logits.astype(np.float64), 2)
    for dtype in (np.int8, np.uint16, np.float16, np.float32):
        assert RoutingTrace.from_router_logits(logits.astype(dtype), 2) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_tensors_of_a_router(dtype):
    """What a model returns is counted as it is: in bfloat16, with its gradients, or as a list with one tensor per user."""
    torch = pytest.importorskip("torch")
    drawn = torch.randint(-8, 8, (2, 10, 2, 6), generator=torch.Generator().manual_seed(0))
    logits = drawn.to(getattr(torch, dtype))
    expected = RoutingTrace.from_router_logits(logits.double().numpy(), 2)
    assert RoutingTrace.from_router_logits(logits.requires_grad_(), 2) == expected
    assert RoutingTrace.from_router_logits(list(logits), 2) == expected


@pytest.mark.parametrize("fill", [-np.inf, np.nan, 0.0])
def test_padding_is_no_vote(fill):
    """Masked tokens count as if they had never been there, whatever a padded row holds; users keep different lengths."""
    rng = np.random.default_rng(1)
    logits, mask = rng.normal(size=(3, 8, 2, 5)), np.arange(8) < np.array([[8], [5], [1]])
    expected = {}
    for user in range(3):
        own = RoutingTrace.from_router_logits(logits[user : user + 1, mask[user]], 2)
        rows = zip(own.set_layer.tolist(), map(tuple, own.set_experts.tolist()), own.set_count.tolist(), strict=True)
        expected |= {(user, layer, chosen): count for layer, chosen, count in rows}
    logits[~mask] = fill
    trace = RoutingTrace.from_router_logits(logits, 2, mask=mask)
    rows = zip(trace.set_user.tolist(), trace.set_layer.tolist(), map(tuple, trace.set_experts.tolist()), strict=True)
    assert dict(zip(rows, trace.set_count.tolist(), strict=True)) == expected
    assert trace.tokens_per_user.tolist() == [8, 5, 1]


@pytest.mark.parametrize(
    ("reached", "top_k", "message"),
    [
        (1, 2, r"logits\[0, 1, 2\]: 1 of 4 values are above -inf: expected at least top_k = 2; leave padding out with mask, or with short='leave out'"),
        (0, 1, r"logits\[0, 1, 2\]: 0 of 4 values are above -inf: expected at least top_k = 1; leave padding out with mask, or with short='leave out'"),
        (2, 2, None),
    ],
)  # fmt: skip
def test_experts_out_of_reach_are_never_voted_for(reached, top_k, message):
    """A token with fewer than K experts above -inf has no set: without a mask, it is refused by its index."""
    logits = np.zeros((1, 3, 3, 4))
    logits[0, 1, 2, : 4 - reached] = -np.inf
    if message is None:
        found = RoutingTrace.from_router_logits(logits, top_k)
        assert [2, 3] in found.set_experts.tolist()
    else:
        with pytest.raises(InvalidProblemError, match=f"^{message}$"):
            RoutingTrace.from_router_logits(logits, top_k)


@pytest.mark.parametrize(
    ("logits", "top_k", "message"),
    [
        ([[[[0.0, 1.0]], [[0.0]]]], 1, r"^logits\[0, 1\]: expected shape \[1, 2\] as in logits\[0, 0\], got \[1, 1\]$"),
        (np.ma.masked_equal([[[[0.0, 1.0]]]], 1.0), 1, r"^logits\[0, 0, 0, 1\] is masked: expected a value$"),
        ([[[[0.0, 1.0], [np.nan, 0.0]]]], 1, r"logits\[0, 0, 1, 0\] = nan: expected a number"),
        ([[[0.0, 1.0]]], 1, r"logits: expected numbers \[users, tokens, layers, experts\].* got float64 \[1, 1, 2\]"),
        (np.zeros((1, 0, 1, 2)), 1, r"logits: .* got float64 \[1, 0, 1, 2\]"),
        (np.array([[[["a", "b"]]]]), 1, r"logits: .* got <U1 \[1, 1, 1, 2\]"),
        ([[[[0.0, 1.0]]]], 3, "top_k = 3: expected at most the 2 experts of a layer"),
        ([[[[0.0, 1.0]]]], 0, "top_k = 0: expected a positive integer"),
        ([[[[0.0, 1.0]]]], 1.0, r"top_k = 1\.0: expected a positive integer"),
    ],
)
def test_bad_router_logits(logits, top_k, message):
    """NaN is named by its index; wrong shapes, types and K are refused."""
    with pytest.raises(InvalidProblemError, match=message):
        RoutingTrace.from_router_logits(logits, top_k)


# --- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set_user": [0, 0, 0, 1, 2]}, r"set_user\[4\] = 2: expected an integer from 0 to 1"),
        ({"set_user": [-1, 0, 0, 1, 1]}, r"set_user\[0\] = -1: expected an integer from 0 to 1"),
        ({"set_layer": [0, 0, 1, 0, 2]}, r"set_layer\[4\] = 2: expected an integer from 0 to 1"),
        ({"set_experts": [[0, 1], [1, 2], [0, 3], [0, 1], [1, 2]]}, r"set_experts\[2, 1\] = 3: expected an integer from 0 to 2"),
        ({"set_experts": [[0, 1], [1, 2], [-1, 2], [0, 1], [1, 2]]}, r"set_experts\[2, 0\] = -1: expected an integer"),
        ({"set_experts": [[0, 1], [2, 2], [0, 2], [0, 1], [1, 2]]}, r"set_experts\[1\] = \[2, 2\]: expected distinct experts"),
        ({"set_experts": [[0, 1], [2, 1], [0, 2], [0, 1], [1, 2]]}, r"set_experts\[1\] = \[2, 1\]: expected experts in ascending order"),
        ({"set_experts": [[0, 1, 2, 3]] * 5}, "set_experts: K = 4 experts per set, expected 1 to num_experts = 3"),
        ({"set_experts": np.zeros((5, 0), int)}, "set_experts: K = 0 experts per set, expected 1 to num_experts = 3"),
        ({"set_experts": [[0, 1], [0, 1], [0, 2], [0, 1], [1, 2]]}, r"set_experts\[1\] = \[0, 1\]: user 0 and layer 0 have this set already in row 0"),
        ({"set_experts": [0, 1, 2, 0, 1]}, r"set_experts: expected shape \[any, any\], got \[5\]"),
        ({"set_count": [5, -1, 4, 4, 4]}, r"set_count\[1\] = -1: expected an integer from 0"),
        ({"set_count": [3, 1, 4, 4, 3]}, r"set_count: user 1, layer 1 sums to 3, expected tokens_per_user\[1\] = 4"),
        ({"set_count": [3, 1, 4, 4]}, "set_count: 4 rows, expected 5 as in set_experts"),
        ({"set_count": [[3], [1], [4], [4], [4]]}, r"set_count: expected shape \[any\], got \[5, 1\]"),
        ({"set_count": 4}, r"set_count: expected shape \[any\], got \[\]"),
        ({"set_count": [3.5, 0.5, 4, 4, 4]}, r"set_count\[0\] = 3\.5: expected an integer"),
        ({"set_count": [3, 1, 4, 4, 1 << 61]}, r"set_count\[4\] = 2305843009213693952: expected an integer from 0 to"),
        ({"set_layer": [0, 0, 0, 0, 1], "set_experts": [[0, 1], [1, 2], [0, 2], [0, 1], [1, 2]]}, r"set_count: user 0, layer 0 sums to 8"),
        ({"tokens_per_user": [4, 0]}, r"tokens_per_user\[1\] = 0: expected an integer from 1"),
        ({"tokens_per_user": []}, "tokens_per_user: expected at least one user"),
        ({"tokens_per_user": [4, 4, 4]}, "set_count: 5 rows, expected at least one for each of 3 users x 2 layers"),
        ({"num_layers": 10**5}, "set_count: 5 rows, expected at least one for each of 2 users x 100000 layers"),
        ({"num_layers": 10**9}, "num_layers . num_experts = 3000000000: expected at most 1048576 experts"),
        ({"num_layers": 0}, "num_layers = 0: expected a positive integer"),
        ({"num_experts": 2.0}, r"num_experts = 2\.0: expected a positive integer"),
        ({"name": 5}, "name = 5: expected a string"),
        ({"meta": {"x": float("nan")}}, "meta: expected JSON values"),
        ({"meta": {"x": object()}}, "meta: expected JSON values"),
        ({"meta": [1]}, "meta: expected a dictionary, got list"),
        ({"meta": {"top_k": 3}}, "meta: top_k = 3: expected 2"),
        ({"meta": {"num_users": 3}}, "meta: num_users = 3: expected 2"),
        ({"meta": {"format_version": 2}}, "meta: format_version = 2: expected 1"),
    ],
)  # fmt: skip
def test_bad_fields(change, message):
    """Each mistake is one line that names the array, the index, the value and what was expected."""
    with pytest.raises(InvalidProblemError, match=f"^{message}") as info:
        small(**change)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", [*ARRAYS, "meta"])
def test_missing_array(tmp_path, members, name):
    """A file without one of the arrays says which one is missing."""
    del members[name]
    with pytest.raises(InvalidFileError, match=rf"bad\.npz: no array '{name}': expected set_user, .*, meta"):
        load_members(tmp_path, members)


@pytest.mark.parametrize("name", [*ARRAYS, "meta"])
def test_wrong_dimensions_in_a_file(tmp_path, members, name):
    """An array with an axis too many is refused; so is a single number."""
    good = members[name]
    for bad in (good[None], good.ravel()[0]):
        with pytest.raises(InvalidFileError, match=rf"bad\.npz: {name}: expected "):
            load_members(tmp_path, members | {name: bad})


@pytest.mark.parametrize("name", ARRAYS)
def test_real_numbers_in_a_file(tmp_path, members, name):
    """Ids and counts are integers in a file; NaN and infinity cannot slip in as reals."""
    for value in (np.nan, np.inf):
        with pytest.raises(InvalidFileError, match=rf"bad\.npz: {name}: expected integers, got float64"):
            load_members(tmp_path, members | {name: np.full(members[name].shape, value)})


def test_spoilt_value_in_a_file_names_the_file(tmp_path, members):
    """What the constructor refuses, `load` refuses with the name of the file in front."""
    members["set_count"][0] = -5
    with pytest.raises(
        InvalidFileError, match=rf"^{tmp_path}/bad\.npz: set_count\[0\] = -5: expected an integer from 0"
    ):
        load_members(tmp_path, members)


def test_object_array_in_a_file(tmp_path, members):
    """An array of objects is refused unread."""
    members["set_count"] = members["set_count"].astype(object)
    with pytest.raises(InvalidFileError, match="set_count: expected numbers, got dtype object"):
        load_members(tmp_path, members)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b"{", "meta: not valid JSON"),
        (b"\xff\xfe", "meta: not valid JSON"),
        (b"[" * 100_000, "meta: not valid JSON"),
        (b"[1]", "meta: expected a JSON object, got list"),
        (b"{}", "meta: name = None: expected str"),
        (b'{"name": "x", "num_layers": 2.0}', r"meta: num_layers = 2\.0: expected int"),
        (b'{"name": "x", "num_layers": true}', "meta: num_layers = True: expected int"),
        (b'{"name": "x", "num_layers": 2, "num_experts": 3}', "meta: top_k = None: expected int"),
        (b'{"name": "x", "num_layers": 2, "num_experts": 3, "top_k": 1}', "meta: top_k = 1: expected 2"),
        (b'{"name": "x", "num_layers": -2, "num_experts": 3, "top_k": 2}', "num_layers = -2: expected a positive integer"),
        (b'{"name": "x", "num_layers": 2, "num_experts": 3, "top_k": 2, "y": NaN}', "meta: expected JSON values"),
    ],
)  # fmt: skip
def test_bad_meta_in_a_file(tmp_path, members, meta, message):
    """The meta must be a JSON object with the sizes, and agree with the arrays."""
    with pytest.raises(InvalidFileError, match=message):
        load_members(tmp_path, members | {"meta": np.frombuffer(meta, np.uint8)})


def test_meta_of_wrong_type(tmp_path, members):
    """Wide integers are not bytes of text."""
    with pytest.raises(
        InvalidFileError, match=r"meta: expected the bytes of a JSON object as uint8 \[n\], got int64 \[3\]"
    ):
        load_members(tmp_path, members | {"meta": np.arange(3)})


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickle_dressed_up_as_npz(tmp_path, wrapped):
    """A pickle under the name of a trace, bare or inside an archive, is refused and never run."""
    path, data = tmp_path / "evil.npz", pickle.dumps(Trap())
    if wrapped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("set_user.npy", data)
    else:
        path.write_bytes(data)
    with pytest.raises(InvalidFileError, match=r"evil\.npz: "):
        RoutingTrace.load(path)


def test_oversized_file(tmp_path, monkeypatch):
    """A file with more data than the limit is refused before it is read."""
    small().save(tmp_path / "big.npz")
    monkeypatch.setattr("edgeopt.storage.MAX_BYTES", 100)
    with pytest.raises(InvalidFileError, match=r"big\.npz: arrays of \d+ bytes, expected at most 100"):
        RoutingTrace.load(tmp_path / "big.npz")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    """When writing fails, the trace saved before is still whole and no temporary is left."""
    path = tmp_path / "trace.npz"
    small().save(path)

    def fail(file, arrays):
        raise OSError("disk full")

    monkeypatch.setattr("edgeopt.storage.write_arrays", fail)
    with pytest.raises(OSError, match="disk full"):
        small(name="new").save(path)
    assert RoutingTrace.load(path) == small()
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.npz"]


@pytest.fixture(scope="module")
def saved() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **raw_arrays("switch32"))
    return file.getvalue()


@given(data=st.data())
@settings(max_examples=200)
def test_truncated_file(tmp_path_factory, saved, data):
    """A file cut at any point is an InvalidFileError, never another exception."""
    path = tmp_path_factory.mktemp("cut") / "cut.npz"
    path.write_bytes(saved[: data.draw(st.integers(0, len(saved) - 1))])
    with pytest.raises(InvalidFileError, match=r"cut\.npz: not a readable \.npz file"):
        RoutingTrace.load(path)


@given(data=st.data())
def test_damaged_file(tmp_path_factory, saved, data):
    """Damage anywhere gives an InvalidFileError or the same trace, never another exception."""
    raw = bytearray(saved)
    start = data.draw(st.integers(0, len(raw) - 1))
    raw[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.mktemp("damaged") / "damaged.npz"
    path.write_bytes(raw)
    try:
        trace = RoutingTrace.load(path)
    except InvalidFileError as error:
        assert str(path) in str(error)  # noqa: PT017 - any other exception fails the test
    else:
        assert trace == bundled_trace("switch32")


def test_users_of_unequal_length():
    """A list of arrays, one for each user, counts what the padded array with a mask counts; tensors too."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    padded, mask = rng.normal(size=(3, 8, 2, 5)), np.arange(8) < np.array([[8], [5], [1]])
    expected = RoutingTrace.from_router_logits(padded, 2, mask=mask)
    parts = [own[which] for own, which in zip(padded, mask, strict=True)]
    assert RoutingTrace.from_router_logits(parts, 2) == expected
    tensors = [torch.tensor(part, requires_grad=True) for part in parts]
    assert RoutingTrace.from_router_logits(tensors, 2) == expected
    first = [np.arange(len(part)) < 1 for part in parts]
    once = RoutingTrace.from_router_logits(parts, 2, mask=first)
    assert once == RoutingTrace.from_router_logits(padded[:, :1], 2)


def test_padding_is_left_out_when_asked():
    """Tokens with fewer than K experts within reach in some layer are as if a mask had left them out."""
    logits = np.random.default_rng(6).normal(size=(2, 6, 3, 4))
    mask = np.ones((2, 6), bool)
    for user, token, layer in ((0, 2, 1), (1, 5, 0)):
        logits[user, token, layer, 1:] = -np.inf
        mask[user, token] = False
    assert RoutingTrace.from_router_logits(logits, 2, short="leave out") == RoutingTrace.from_router_logits(
        logits, 2, mask=mask
    )


@pytest.mark.parametrize(
    ("logits", "more", "message"),
    [
        (
            [np.zeros((2, 1, 3)), np.zeros((2, 2, 3))],
            {},
            r"logits\[1\]: .* as in logits\[0\], \[1, 3\], got float64 \[2, 2, 3\]",
        ),
        ([np.zeros((2, 1, 3)), np.zeros(3)], {}, r"logits\[1\]: .* got float64 \[3\]"),
        ([], {}, r"logits: .*"),
        ([np.zeros((2, 1, 3)), np.zeros((1, 1, 3))], {"mask": [[True, True]]}, "mask: .* each of 2 users"),
        (
            [np.zeros((2, 1, 3)), np.zeros((1, 1, 3))],
            {"mask": [[True, True], [False]]},
            r"mask\[1\]: no token of user 1",
        ),
        (np.zeros((1, 2, 1, 3)), {"short": "skip"}, "short = 'skip': expected 'refuse' or 'leave out'"),
        (np.full((1, 2, 1, 3), -np.inf), {"short": "leave out"}, r"logits\[0\]: no token has top_k = 1"),
    ],
)
def test_bad_router_logits_of_users(logits, more, message):
    """What is wrong is named with the user."""
    with pytest.raises(InvalidProblemError, match=message):
        RoutingTrace.from_router_logits(logits, 1, **more)


@given(st.data())
def test_expert_ids_equal_a_plain_loop(data):
    """Sets are counted whatever the order of their ids, by user, without the tokens that a mask leaves out."""
    tokens, layers, experts = (data.draw(st.integers(1, most)) for most in (6, 3, 5))
    top_k = data.draw(st.integers(1, experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ids = rng.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=-1)[..., :top_k]
    user = rng.choice(["b", "a", "c"], tokens).tolist() if data.draw(st.booleans()) else rng.integers(5, 8, tokens)
    mask = rng.random(tokens) < 0.7
    mask[0] = True
    spoilt = np.where(mask[:, None, None], ids, -1)
    trace = RoutingTrace.from_expert_ids(spoilt, num_experts=experts, user=user, mask=mask)
    names = sorted({user[t] for t in range(tokens) if mask[t]})
    expected = Counter(
        (names.index(user[t]), layer, tuple(sorted(ids[t, layer].tolist())))
        for t in range(tokens) if mask[t] for layer in range(layers)
    )  # fmt: skip
    rows = zip(trace.set_user.tolist(), trace.set_layer.tolist(), map(tuple, trace.set_experts.tolist()), strict=True)
    assert dict(zip(rows, trace.set_count.tolist(), strict=True)) == expected
    assert trace.meta["users"] == names


def test_expert_ids_of_many_tokens_are_counted_in_parts(monkeypatch):
    """In parts or at once, the counts are the same."""
    ids = np.random.default_rng(1).integers(0, 7, (200, 3, 1))
    expected = RoutingTrace.from_expert_ids(ids)
    monkeypatch.setattr("edgeopt.problems.expert_caching.counting.CHUNK", 10)
    assert RoutingTrace.from_expert_ids(ids) == expected


@pytest.mark.parametrize(
    ("ids", "more", "message"),
    [
        ([[[0, 0]]], {}, r"ids\[0, 0\] = \[0, 0\]: expected different experts"),
        ([[[0, -1]]], {}, r"ids\[0, 0, 1\] = -1: expected an expert, 0 or more"),
        ([[[0, 3]]], {"num_experts": 3}, r"ids\[0, 0, 1\] = 3: expected an expert, 0 to 2"),
        ([[0, 1]], {}, r"ids: expected integers \[tokens, layers, K\].* got int64 \[1, 2\]"),
        ([[[0.5]]], {}, "ids: expected integers .* got float64"),
        ([[[0]]], {"mask": [False]}, "mask: no token counts"),
        ([[[0]]], {"user": [0, 1]}, r"user: shape \[2\], expected \[1\]"),
        ([[[0]]], {"user": [0.5]}, "user: expected integers or texts, got float64"),
        ([[[2_000_000_000]]], {}, r"num_layers \* num_experts = 2000000001: expected at most"),
    ],
)
def test_bad_expert_ids(ids, more, message):
    """What is wrong is named with its place."""
    with pytest.raises(InvalidProblemError, match=message):
        RoutingTrace.from_expert_ids(ids, **more)


def test_counts_only():
    """Counts of K >= 2 experts keep the sum of the latencies exactly, and are refused where sets matter."""
    trace = bundled_trace("mixtral8")
    counts = np.zeros((trace.num_users, trace.num_layers, trace.num_experts), np.int64)
    for k in range(trace.top_k):
        np.add.at(counts, (trace.set_user, trace.set_layer, trace.set_experts[:, k]), trace.set_count)
    known = RoutingTrace.from_counts(counts, trace.top_k, name=trace.name)
    assert (known.counts_only, known.top_k, known.experts_per_token) == (True, 1, 2)
    network = EdgeNetwork.random(3, 12, seed=1)
    exact, summed = (
        ExpertCaching.from_traces(t, network, models=["mixtral-8x7b"], storage=0.2) for t in (trace, known)
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        placement = Placement(rng.random((3, exact.num_experts)) < 0.15)
        assert summed.objective(placement) == pytest.approx(exact.objective(placement), rel=1e-12)
        assert summed.report(placement).latency_s == pytest.approx(exact.report(placement).latency_s, rel=1e-12)
    with pytest.raises(
        InvalidProblemError, match=r"latency = 'max': trace mixtral8.* has counts only: which 2 experts"
    ):
        ExpertCaching.from_traces(known, network, models=["mixtral-8x7b"], latency="max")
    one = RoutingTrace.from_counts([[[2, 1]]], 1)
    assert not one.counts_only


def test_counts_only_survive_a_file(tmp_path):
    """A trace of counts is still one when it is read back; a file that contradicts itself is refused."""
    trace = RoutingTrace.from_counts([[[3, 1, 0], [2, 1, 1]]], 2)
    trace.save(tmp_path / "trace.npz")
    assert RoutingTrace.load(tmp_path / "trace.npz") == trace
    assert RoutingTrace.load(tmp_path / "trace.npz").experts_per_token == 2
    for wrong in ({"counts_only": True}, {"counts_only": True, "experts_per_token": 0}):
        with pytest.raises(InvalidProblemError, match="meta: counts_only with experts_per_token"):
            RoutingTrace(
                name="x", num_layers=1, num_experts=2, set_user=[0], set_layer=[0], set_experts=[[0]], set_count=[1],
                tokens_per_user=[1], meta=wrong,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "top_k", "message"),
    [
        ([[[1, 1], [1, 2]]], 1, r"counts\[0, 1\] sums to 3, counts\[0, 0\] to 2"),
        ([[[2, 1]]], 2, r"counts\[0, 0\] sums to 3, .* 2 for each token"),
        ([[[0, 0]]], 1, r"counts\[0, 0\] sums to 0"),
        ([[[2, 1]]], 3, "top_k = 3: expected at most the 2 experts"),
        ([[2, 1]], 1, "counts"),
    ],
)
def test_bad_counts(counts, top_k, message):
    """What is wrong is named with its place."""
    with pytest.raises(InvalidProblemError, match=message):
        RoutingTrace.from_counts(counts, top_k)
