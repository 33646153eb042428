import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt import EdgeNetwork, storage
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.inference.routing import RoutingRecord, record_users
from edgeopt.models import moe_decoder, moe_mlp, record_routing
from edgeopt.models.moe import Experts
from edgeopt.problems import ExpertCaching, RoutingTrace

SIZES = {"vocabulary": 256, "context": 16, "width": 8, "depth": 3, "heads": 2, "hidden": 6, "experts": 5}


def drawn_record(
    seed: int, users: int = 2, tokens: int = 6, layers: int = 2, experts: int = 4, top_k: int = 2
) -> RoutingRecord:
    """Return a record of random sets."""
    order = np.random.default_rng(seed).random((users, tokens, layers, experts)).argsort(axis=-1)
    return RoutingRecord(name="drawn", num_experts=experts, experts=np.sort(order[..., :top_k], axis=-1))


def model_and_text(top_k: int = 2) -> tuple[nn.Sequential, torch.Tensor]:
    """Return a decoder and random bytes, 3 users with 4 sequences of 7."""
    torch.manual_seed(0)
    model = moe_decoder(**SIZES, top_k=top_k)
    return model, torch.randint(256, (3, 4, 7), generator=torch.Generator().manual_seed(1))


# --- the trace ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 8), st.integers(1, 3), st.integers(1, 5), st.data()
)  # fmt: skip
def test_trace_counts_the_record(seed, users, tokens, layers, experts, data):
    """The trace has, for every user and layer, as many tokens per set as a Counter finds."""
    record = drawn_record(seed, users, tokens, layers, experts, data.draw(st.integers(1, experts)))
    trace = record.to_trace()
    rows = zip(trace.set_user, trace.set_layer, trace.set_experts.tolist(), trace.set_count, strict=True)
    counted = {(int(user), int(layer), tuple(chosen)): int(count) for user, layer, chosen, count in rows}
    expected = Counter(
        (user, layer, tuple(record.experts[user, token, layer].tolist()))
        for user in range(users)
        for token in range(tokens)
        for layer in range(layers)
    )
    assert counted == dict(expected)
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (layers, experts, record.top_k)
    assert trace.tokens_per_user.tolist() == [tokens] * users


def test_padding_is_left_out_of_the_trace():
    """With a mask, the trace is that of a record that never had the other tokens; a user without tokens is refused."""
    record = drawn_record(0, users=2, tokens=6)
    mask = np.array([[True] * 4 + [False] * 2] * 2)
    assert record.to_trace(mask) == record.part(0, 4).to_trace()
    assert record.to_trace(torch.ones(2, 6, dtype=torch.bool)) == record.to_trace()
    mask[1, 3] = False
    assert record.to_trace(mask).tokens_per_user.tolist() == [4, 3]
    mask[1] = False
    with pytest.raises(InvalidProblemError, match=r"^mask\[1\]: no token of user 1 counts: expected at least one$"):
        record.to_trace(mask)
    with pytest.raises(InvalidProblemError, match=r"^mask: expected booleans, got int64$"):
        record.to_trace(np.ones((2, 6), np.int64))


def test_a_router_that_returns_nan_is_refused():
    """The order of NaN is none: a model that has diverged votes for no expert."""
    model, tokens = model_and_text()
    with torch.no_grad():
        model.block1_experts.body.router.weight.fill_(torch.nan)
    with pytest.raises(InvalidProblemError, match=r"^model: a router returns NaN or infinities"):
        record_users(model, tokens)


def test_tokens_that_are_no_words_of_the_model():
    """A token beyond the vocabulary is told with the layer that does not know it."""
    model, tokens = model_and_text()
    with pytest.raises(
        InvalidProblemError, match=r"^model: does not run on the tokens: .*expected token ids from 0 to 255, found 256$"
    ):
        record_users(model, tokens.clone().fill_(256))
    with pytest.raises(InvalidProblemError, match=r"^tokens: expected a tensor of int64, got torch.float32 of shape"):
        record_users(model, tokens.float())


def test_trace_is_that_of_router_outputs():
    """Outputs of a router, counted directly or recorded first and counted then, give the same trace."""
    logits = np.random.default_rng(0).normal(size=(3, 40, 2, 5))
    best = np.sort((-logits).argsort(axis=-1)[..., :2], axis=-1)
    record = RoutingRecord(name="routing", num_experts=5, experts=best)
    assert record.to_trace() == RoutingTrace.from_router_logits(logits, 2)


def test_parts_add_up():
    """The counts of two parts of a record add up to those of the whole."""
    record = drawn_record(0, tokens=20)
    whole = record.to_trace().to_model(1.0).uses
    parts = [record.part(0, 5).to_trace().to_model(1.0).uses, record.part(5, 20).to_trace().to_model(1.0).uses]
    np.testing.assert_allclose((5 * parts[0] + 15 * parts[1]) / 20, whole, rtol=1e-12)


# --- recording ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2])
def test_recording_is_a_loop_over_sequences(top_k):
    """Tokens come in the order of the text of each user, layers in that of the model, whatever runs at once."""
    model, tokens = model_and_text(top_k)
    records = [record_users(model, tokens, batch_size=size) for size in (1, 5, 64)]
    for user in range(3):
        for sequence in range(4):
            with record_routing() as routing, torch.no_grad():
                model(tokens[user, sequence][None])
            for layer in range(3):
                chosen = np.sort(routing[layer].experts[0].numpy(), axis=-1)  # (T, K)
                for record in records:
                    assert np.array_equal(record.experts[user, 7 * sequence : 7 * sequence + 7, layer], chosen)
    assert records[0].experts.shape == (3, 28, 3, top_k)


def test_samples_of_a_classifier_are_tokens():
    """A model without an embedding takes samples of any shape; each of them is one token."""
    torch.manual_seed(0)
    model, samples = moe_mlp((1, 4, 4), experts=5), torch.randn(2, 6, 1, 4, 4)
    record = record_users(model, samples, batch_size=4)
    with record_routing() as routing, torch.no_grad():
        model(samples.flatten(0, 1))
    expected = np.sort(routing[0].experts.numpy(), axis=-1).reshape(2, 6, 1, 2)
    assert np.array_equal(record.experts, expected)
    assert record.meta["sequence_length"] == 1
    with pytest.raises(
        InvalidProblemError, match=r"^tokens: expected \[users, samples, \.\.\.\], none of them 0, got \[2, 6\]$"
    ):
        record_users(model, samples[..., 0, 0, 0])


def test_recording_leaves_the_model_alone():
    """Weights, gradients and the training mode of every part stay; given weights are used instead of the model's own."""
    model, tokens = model_and_text()
    model.train()
    model.block1_experts.eval()
    modes = [part.training for part in model.modules()]
    other = moe_decoder(**SIZES)
    own, theirs = record_users(model, tokens), record_users(other, tokens)
    assert own != theirs
    assert record_users(model, tokens, weights=other.state_dict()) == theirs
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert record_users(model, tokens) == own


def test_recorded_trace_makes_a_problem():
    """A trace of a recorded model knows sizes and work of its experts: a problem needs no more than a network."""
    model, tokens = model_and_text()
    trace = record_users(model, tokens, name="bytes").to_trace()
    problem = ExpertCaching.from_traces(trace, EdgeNetwork.random(3, 6, seed=1))
    layer = next(part for part in model.modules() if isinstance(part, Experts))
    values = sum(p.numel() for p in (layer.up, layer.up_bias, layer.down, layer.down_bias)) / layer.up.shape[0]
    assert (problem.expert_bytes == 2 * values).all()
    assert (problem.num_experts, problem.top_k, problem.models[0].name) == (15, 2, "bytes")


def test_wrong_models_and_texts():
    """A model without experts or with several sizes of them, tokens without sequences, and empty batches are refused."""
    _, tokens = model_and_text()
    with pytest.raises(InvalidProblemError, match=r"all of one size .*, got none"):
        record_users(nn.Sequential(nn.Embedding(256, 4)), tokens)
    mixed = nn.Sequential(nn.Embedding(256, 4), Experts(4, 3, 2, 1), Experts(4, 5, 2, 1))
    with pytest.raises(InvalidProblemError, match=r"got \[2, 4, 3, 1\] and \[2, 4, 5, 1\]"):
        record_users(mixed, tokens)
    with pytest.raises(InvalidProblemError, match="batch_size = 0: expected an integer >= 1"):
        record_users(moe_decoder(**SIZES), tokens, batch_size=0)
    with pytest.raises(InvalidProblemError, match=r"expected \[users, sequences, length\].*got \[4, 7\]"):
        record_users(moe_decoder(**SIZES), tokens[0])


# --- files and checks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_files(tmp_path, suffix):
    """What is saved is read back equal."""
    model, tokens = model_and_text()
    record = record_users(model, tokens)
    record.save(path := tmp_path / f"record{suffix}")
    loaded = RoutingRecord.load(path)
    assert loaded == record
    assert loaded.experts.dtype == np.int16
    assert loaded.to_trace() == record.to_trace()


@pytest.mark.parametrize(
    ("header", "experts", "message"),
    [
        ({"kind": "model-profile"}, [[[[0]]]], "kind = 'model-profile': expected 'routing-record'"),
        ({"schema_version": 2}, [[[[0]]]], "schema_version = 2: expected 1"),
        ({"num_experts": "4"}, [[[[0]]]], "num_experts = '4': expected an integer"),
        ({"num_experts": 10**9}, [[[[0]]]], "num_experts = 1000000000: expected an integer from 1 to 32767"),
        ({"meta": []}, [[[[0]]]], "meta: expected a dictionary, got list"),
        ({"name": 3}, [[[[0]]]], "name = 3: expected a string"),
        ({}, [[[[4]]]], r"experts\[0, 0, 0, 0\] = 4: expected an integer from 0 to 3"),
        ({}, [[[[0, 1]], [[2, 2]]]], r"experts\[0, 1, 0\] = \[2, 2\]: expected distinct experts"),
        ({}, [[[[1, 0]]]], r"experts\[0, 0, 0\] = \[1, 0\]: expected distinct experts, ascending"),
        ({}, [[[0]]], r"experts: expected shape \[any, any, any, any\]"),
        ({}, np.zeros((0, 1, 1, 1), int), "experts: expected .*none of them 0, got"),
        ({}, [[[[0.5]]]], r"experts\[0, 0, 0, 0\] = 0.5: expected an integer from 0 to 3"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, header, experts, message):
    """A file with wrong content is refused with its path, the field, the value and what was expected."""
    good = {"kind": "routing-record", "schema_version": 1, "name": "x", "num_experts": 4, "meta": {}}
    storage.save(path := tmp_path / "record.npz", good | header, {"experts": np.asarray(experts)})
    with pytest.raises(InvalidFileError, match=f"{re.escape(str(path))}: {message}"):
        RoutingRecord.load(path)


def test_missing_fields(tmp_path):
    """A file that lacks a field or the array names it."""
    header = {"kind": "routing-record", "schema_version": 1, "name": "x", "num_experts": 4, "meta": {}}
    storage.save(path := tmp_path / "record.npz", header, {})
    with pytest.raises(InvalidFileError, match="experts: array is missing"):
        RoutingRecord.load(path)
    del header["meta"]
    storage.save(path, header, {"experts": np.zeros((1, 1, 1, 1), int)})
    with pytest.raises(InvalidFileError, match="meta: value is missing"):
        RoutingRecord.load(path)


def test_trace_files(tmp_path):
    """The trace of a record goes through a file, with what is known of the model."""
    model, tokens = model_and_text()
    trace = record_users(model, tokens).to_trace()
    trace.save(path := tmp_path / "trace.npz")
    assert RoutingTrace.load(path) == trace
    assert json.dumps(trace.meta)
    assert trace.meta["d_ff"] == SIZES["hidden"]
