import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeopt import models
from edgeopt.errors import InvalidProblemError
from edgeopt.models.attention import SelfAttention, rotate
from edgeopt.profile import BUNDLED_PROFILES
from tests.models.cuts import assert_cuts_change_nothing

IMAGE, TOKENS = (2, 3, 32, 32), (2, 7)
TINY = {  # model, sample, shape of the output
    "resnet": (lambda: models.resnet(models.BasicBlock, (1, 1), width=4, num_classes=3), IMAGE, (2, 3)),
    "resnet50": (lambda: models.resnet(models.Bottleneck, (2, 1), width=4, num_classes=3), IMAGE, (2, 3)),
    "resnet-small": (
        lambda: models.resnet(models.BasicBlock, (2, 1), width=4, num_classes=3, in_channels=1, small_images=True),
        (2, 1, 8, 8), (2, 3),
    ),
    "vgg": (lambda: models.vgg(((4,), (6, 6)), hidden=8, num_classes=3), IMAGE, (2, 3)),
    "vgg-small": (
        lambda: models.vgg(
            ((4,), (6,)), hidden=8, num_classes=3, in_channels=1, small_images=True, batch_norm=True
        ),
        (2, 1, 8, 8), (2, 3),
    ),
    "mobilenet": (
        lambda: models.mobilenetv2(stages=((1, 4, 1, 1), (2, 6, 2, 2)), stem_channels=4, last_channels=8, num_classes=3),
        IMAGE, (2, 3),
    ),
    "mobilenet-small": (
        lambda: models.mobilenetv2(
            stages=((1, 4, 1, 1), (2, 6, 2, 2)), stem_channels=4, last_channels=8, num_classes=3, in_channels=1,
            small_images=True,
        ),
        (2, 1, 8, 8), (2, 3),
    ),
    "vit": (
        lambda: models.vision_transformer(
            image_size=32, patch_size=8, width=8, depth=2, heads=2, hidden=12, num_classes=3
        ),
        IMAGE, (2, 3),
    ),
    "bert": (lambda: models.bert(vocabulary=11, context=9, width=8, depth=2, heads=2, hidden=12), TOKENS, (2, 8)),
    "gpt2": (lambda: models.gpt2(vocabulary=11, context=9, width=8, depth=2, heads=2), TOKENS, (2, 7, 11)),
    "llama": (
        lambda: models.llama(vocabulary=11, width=8, depth=2, heads=4, kv_heads=2, hidden=12), TOKENS, (2, 7, 11)
    ),
}  # fmt: skip
DECODERS = ("gpt2", "llama")


def tiny(name: str) -> tuple[nn.Sequential, torch.Tensor]:
    """Return a model in double precision and evaluation mode, and a sample."""
    torch.manual_seed(1)
    build, shape, _ = TINY[name]
    sample = torch.randint(11, shape) if len(shape) == 2 else torch.randn(shape, dtype=torch.float64)
    return build().double().eval(), sample


@pytest.mark.parametrize("name", TINY)
def test_shapes(name):
    """Every family maps its inputs to outputs of the stated shape, finite and different for different samples."""
    model, sample = tiny(name)
    output = model(sample)
    assert output.shape == TINY[name][2]
    assert torch.isfinite(output).all()
    assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize("name", TINY)
def test_cut_anywhere_is_the_whole_model(name):
    """Halves that exchange an activation and its gradient are the whole model."""
    assert_cuts_change_nothing(*tiny(name))


@pytest.mark.parametrize("name", TINY)
def test_the_boundaries_have_names(name):
    """Layers are named, and all hold parameters."""
    model, _ = tiny(name)
    names = [key for key, _ in model.named_children()]
    assert len(names) == len(model)
    assert not any(key.isdigit() for key in names)
    assert all(any(True for _ in layer.parameters()) for layer in model)


@pytest.mark.parametrize("name", ["resnet-small", "vgg-small", "mobilenet-small", "vit", "gpt2", "llama"])
def test_it_learns(name):
    """A few steps of gradient descent lower the loss on one batch."""
    model, sample = tiny(name)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    target = sample if name in DECODERS else torch.tensor([0, 2])
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(sample).flatten(0, -2), target.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_causal(name):
    """Changing a token changes its own and later outputs, and no earlier one."""
    model, tokens = tiny(name)
    before = model(tokens)
    for place in range(tokens.shape[1]):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % 11
        same = (model(other) == before).all(dim=-1).all(dim=0)  # (T,)
        assert same[:place].all()
        assert not same[place:].any()


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_encoders_see_everything(name):
    """The output depends on every token and on every pixel."""
    model, sample = tiny(name)
    if name == "bert":
        for place in range(sample.shape[1]):
            other = sample.clone()
            other[:, place] = (other[:, place] + 1) % 11
            assert not torch.equal(model(other), model(sample))
    else:
        sample.requires_grad_()
        model(sample).sum().backward()
        assert (sample.grad != 0).all()


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_blocks_equal_those_of_torch(name):
    """An attention and a feed-forward block together equal `torch.nn.TransformerEncoderLayer` with the same weights."""
    model, _ = tiny(name)
    attention, mlp = model.block1_attention, model.block1_mlp
    norm_first, hidden = name != "bert", mlp.body[0].out_features
    theirs = nn.TransformerEncoderLayer(
        8, 2, hidden, activation=mlp.body[1], norm_first=norm_first, batch_first=True, dtype=torch.float64,
        layer_norm_eps=attention.norm.eps, dropout=0.0,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in (*attention.parameters(), *mlp.parameters()):
            parameter.normal_()  # norms and biases are to matter, too
        for ours, other in (
            (attention.body.query_key_value.weight, theirs.self_attn.in_proj_weight),
            (attention.body.query_key_value.bias, theirs.self_attn.in_proj_bias),
        ):
            other.copy_(ours)
    for ours, other in (
        (attention.body.out, theirs.self_attn.out_proj),
        (mlp.body[0], theirs.linear1),
        (mlp.body[2], theirs.linear2),
        (attention.norm, theirs.norm1),
        (mlp.norm, theirs.norm2),
    ):
        other.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64) if name == "gpt2" else None
    torch.testing.assert_close(mlp(attention(x)), theirs(x, src_mask=mask))


def test_grouped_heads():
    """Two key and value heads for four query heads equal four of which pairs are the same."""
    torch.manual_seed(0)
    grouped = SelfAttention(8, 4, kv_heads=2, causal=True, rotary=True).double()
    full = SelfAttention(8, 4, causal=True, rotary=True).double()
    full.out = grouped.out
    query, key, value = grouped.query_key_value.weight.split((8, 4, 4))
    bias_query, bias_key, bias_value = grouped.query_key_value.bias.split((8, 4, 4))

    def twice(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (2, 2)).repeat_interleave(2, dim=0).flatten(0, 1)

    with torch.no_grad():
        full.query_key_value.weight.copy_(torch.cat((query, twice(key), twice(value))))
        full.query_key_value.bias.copy_(torch.cat((bias_query, twice(bias_key), twice(bias_value))))
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x))


def test_rotation():
    """Position 0 stays, lengths stay, and products of two tokens depend on their distance alone."""
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    turned_one, turned_two = (rotate(x.expand(1, 1, 9, 6))[0, 0] for x in (one, two))  # (T, D)
    torch.testing.assert_close(turned_one[0], one)
    torch.testing.assert_close(turned_one.norm(dim=-1), one.norm().expand(9), rtol=1e-6, atol=0)
    products = turned_one @ turned_two.T  # (T, T)
    for distance in range(1, 8):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), rtol=1e-5, atol=1e-6)
    assert products.diagonal(1)[0] != pytest.approx(products.diagonal(2)[0].item())


def test_tied_weights():
    """GPT-2 scores tokens with their embedding; LLaMA has weights of its own for that."""
    gpt2, llama = (TINY[name][0]() for name in DECODERS)
    assert gpt2.head.linear.weight is gpt2.embedding.token.weight
    assert llama.head.linear.weight is not llama.embedding.weight


def test_small_images_keep_their_resolution():
    """The variants for small images pool later: the same image gives larger activations in the blocks."""
    for family in (models.resnet18, models.mobilenetv2):
        with torch.device("meta"):
            usual, small = family(), family(small_images=True)
            image = torch.empty(1, 3, 32, 32)
            assert small[:3](image).shape[-1] == 4 * usual[:3](image).shape[-1]
        count = [sum(parameter.numel() for parameter in model.parameters()) for model in (usual, small)]
        assert count[1] <= count[0]


def test_same_seed_same_model():
    """A seed fixes the weights and leaves the global random state alone; another seed gives others."""
    state = torch.get_rng_state()
    first, again, other = (models.build_model("mobilenetv2", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.stem[0].weight, other.stem[0].weight)


@pytest.mark.parametrize("name", models.MODELS)
def test_samples(name):
    """Every model runs on its sample input; the names are those of the shipped profiles."""
    assert models.MODELS == BUNDLED_PROFILES
    sample = models.sample_input(name, batch_size=2, seed=5)
    assert torch.equal(sample, models.sample_input(name, batch_size=2, seed=5))
    with torch.device("meta"):
        model = models.build_model(name)
    assert len(model(sample.to("meta"))) == 2


def test_unknown_names():
    """A wrong name lists the right ones."""
    for function in (models.build_model, models.sample_input):
        with pytest.raises(InvalidProblemError, match="no model 'alexnet': expected one of resnet18, "):
            function("alexnet")
