import dataclasses

import pytest

from edgeopt.errors import InvalidProblemError
from edgeopt.problems.expert_caching.moe_models import MOE_MODELS, MoEModel, moe_model

BILLION = 1e9


def attention(layers: int, width: int, kv_width: int | None = None) -> int:
    """Weights of the query, key, value and output matrices of all layers."""
    return layers * 2 * width * (width + (kv_width or width))


def switch_base_rest() -> int:
    """T5-base without experts: 12 self-attentions in the encoder, 24 in the decoder, 12 dense blocks, embedding."""
    return attention(36, 768) + 12 * 2 * 768 * 3072 + 32128 * 768


# name, weights that are not routed experts (from the same public configurations), published total, margin
PUBLISHED = [
    ("switch-base-128", switch_base_rest(), 7 * BILLION, 0.06),  # the paper rounds to a billion
    ("mixtral-8x7b", attention(32, 4096, 1024) + 2 * 32000 * 4096, 46.7 * BILLION, 0.002),
    ("olmoe-1b-7b", attention(16, 2048) + 2 * 50304 * 2048, 6.9 * BILLION, 0.005),
    (
        "deepseek-moe-16b",
        attention(28, 2048) + 2 * 102400 * 2048 + 27 * 2 * 3 * 2048 * 1408 + 3 * 2048 * 10944,
        16.4 * BILLION,
        0.005,
    ),
    ("qwen1.5-moe-a2.7b", attention(24, 2048) + 2 * 151936 * 2048 + 24 * 3 * 2048 * 5632, 14.3 * BILLION, 0.005),
]


@pytest.mark.parametrize(("name", "rest", "published", "margin"), PUBLISHED)
def test_total_parameters_match_the_published_count(name, rest, published, margin):
    """Routed experts plus attention, embeddings, shared and dense blocks give the published number of parameters."""
    model = moe_model(name)
    assert model.num_experts * model.expert_parameters + rest == pytest.approx(published, rel=margin)


@pytest.mark.parametrize(
    ("name", "num_experts", "billions"),
    [
        ("switch-base-8", 96, 0.453),
        ("switch-base-16", 192, 0.906),
        ("switch-base-32", 384, 1.812),
        ("switch-base-64", 768, 3.624),
        ("switch-base-128", 1536, 7.248),
        ("mixtral-8x7b", 256, 45.097),
        ("olmoe-1b-7b", 1024, 6.442),
        ("deepseek-moe-16b", 1728, 14.948),
        ("qwen1.5-moe-a2.7b", 1440, 12.457),
    ],
)
def test_routed_parameters(name, num_experts, billions):
    """The routed experts of each model, multiplied out by hand."""
    model = moe_model(name)
    assert model.num_experts == num_experts
    assert model.num_experts * model.expert_parameters == pytest.approx(billions * BILLION, abs=0.0005 * BILLION)


def test_active_parameters_of_mixtral():
    """Two of eight experts per token leave the published 12.9 billion active parameters."""
    model = moe_model("mixtral-8x7b")
    rest = attention(32, 4096, 1024) + 2 * 32000 * 4096
    active = model.num_layers * model.top_k * model.expert_parameters + rest
    assert active == pytest.approx(12.9 * BILLION, rel=0.005)


@pytest.mark.parametrize("model", MOE_MODELS, ids=lambda model: model.name)
def test_derived_sizes(model):
    """Bytes, FLOPs and hidden bits follow from the dimensions by the stated formulas."""
    matrices = 3 if model.gated else 2
    assert model.expert_parameters == matrices * model.d_model * model.d_ff
    assert model.expert_bytes == 2 * model.expert_parameters
    assert model.flops_per_token == (6 if model.gated else 4) * model.d_model * model.d_ff
    assert model.hidden_bits == 16 * model.d_model
    assert model.source
    assert moe_model(model.name) is model


def test_names_are_unique():
    """A name stands for one model."""
    assert len({model.name for model in MOE_MODELS}) == len(MOE_MODELS)


def test_quantised_model():
    """At 4 bits per value an expert and a hidden state take a quarter of the 16-bit size, FLOPs stay."""
    model = moe_model("olmoe-1b-7b")
    small = dataclasses.replace(model, bits_per_value=4)
    assert small.expert_bytes * 4 == model.expert_bytes
    assert small.hidden_bits * 4 == model.hidden_bits
    assert small.flops_per_token == model.flops_per_token


def test_unknown_name_lists_the_names():
    """A wrong name is answered with every right one."""
    with pytest.raises(InvalidProblemError, match="no model 'gpt': expected one of switch-base-8") as info:
        moe_model("gpt")
    assert all(model.name in str(info.value) for model in MOE_MODELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "x: num_layers = 0: expected an integer >= 1"),
        ({"d_ff": -1}, "x: d_ff = -1: expected an integer >= 1"),
        ({"d_model": 1.5}, r"x: d_model = 1\.5: expected an integer >= 1"),
        ({"top_k": True}, "x: top_k = True: expected an integer >= 1"),
        ({"top_k": 5}, "x: top_k = 5: expected at most experts_per_layer = 4"),
        ({"d_model": 1, "d_ff": 1, "bits_per_value": 3}, "x: bits_per_value = 3: expected an expert of whole bytes"),
    ],
)
def test_bad_dimensions(change, message):
    """Each impossible dimension is named with its value."""
    good = {"num_layers": 1, "experts_per_layer": 4, "top_k": 2, "d_model": 8, "d_ff": 8}
    with pytest.raises(InvalidProblemError, match=message):
        MoEModel(name="x", gated=False, source="none", **(good | change))
