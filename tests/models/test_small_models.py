import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from edgeopt.errors import InvalidProblemError
from edgeopt.models import SMALL_MODELS, gpt2, mlp, model_for, small_cnn
from edgeopt.profile import ModelProfile
from tests.models.cuts import assert_cuts_change_nothing

CASES = [  # name, shape of a sample
    ("mlp", (1, 8, 8)), ("mlp", (5,)), ("small-cnn", (1, 8, 8)), ("small-cnn", (1, 28, 28)), ("small-cnn", (3, 32, 32)),
    ("small-resnet", (1, 8, 8)), ("small-resnet", (3, 32, 32)), ("small-vgg", (3, 32, 32)), ("decoder", (12,)), ("moe", (12,)),
    ("moe-mlp", (1, 8, 8)), ("moe-mlp", (40,)),
]  # fmt: skip
IDS = [f"{name}-{'x'.join(map(str, shape))}" for name, shape in CASES]


def built(name: str, shape: tuple[int, ...], clients: tuple[int, ...] = ()) -> tuple[nn.Sequential, torch.Tensor]:
    """Return a narrow model in double precision and a batch of two samples, for each client."""
    generator = torch.Generator().manual_seed(1)
    model = model_for(name, num_classes=7, input_shape=shape, width=4, seed=3).double()
    if SMALL_MODELS[name].takes == "sequences":
        return model, torch.randint(7, (*clients, 2, *shape), generator=generator)
    return model, torch.randn(*clients, 2, *shape, generator=generator, dtype=torch.float64)


def test_cases_have_every_name():
    """The cases below are of all models."""
    assert {name for name, _ in CASES} == set(SMALL_MODELS)


@pytest.mark.parametrize(("name", "shape"), CASES, ids=IDS)
def test_shape_and_layers(name, shape):
    """Outputs have the stated size, layers have names and parameters, and no two of them share any."""
    model, sample = built(name, shape)
    output = model.eval()(sample)
    assert output.shape == ((2, *shape, 7) if SMALL_MODELS[name].takes == "sequences" else (2, 7))
    assert torch.isfinite(output).all()
    names = [child for child, _ in model.named_children()]
    assert not any(child.isdigit() for child in names)
    assert all(any(True for _ in layer.parameters()) for layer in model)
    ids = [id(parameter) for layer in model for parameter in layer.parameters()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("name", "shape"), CASES, ids=IDS)
def test_profile_has_the_children_as_layers(name, shape):
    """Measuring a model gives one layer per child, and its parameters."""
    model, sample = built(name, shape)
    profile = ModelProfile.from_module(model, sample)
    assert profile.layer_names == tuple(child for child, _ in model.named_children())
    assert profile.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "shape"), [case for case in CASES if case != ("small-resnet", (3, 32, 32))])
def test_cut_anywhere_is_the_whole_model(name, shape):
    """Halves that exchange an activation and its gradient are the whole model."""
    model, sample = built(name, shape)
    model.eval()  # batch normalisation would otherwise count every pass
    assert_cuts_change_nothing(model, sample)


@pytest.mark.parametrize(("name", "shape"), [case for case in CASES if case[0] != "small-resnet"])
def test_batched_clients_are_single_clients(name, shape):
    """vmap(grad) over clients gives the gradients of each client, without a fall-back (that would be a warning)."""
    model, samples = built(name, shape, (3,))
    targets = samples if SMALL_MODELS[name].takes == "sequences" else torch.tensor([[0, 1], [2, 3], [4, 5]])
    generator = torch.Generator().manual_seed(2)
    weights = {
        key: value.detach() * (1 + 0.1 * torch.randn(3, *value.shape, dtype=value.dtype, generator=generator))
        for key, value in model.named_parameters()
    }

    def loss(weights, sample, target):
        outputs = functional_call(model, weights, (sample,))
        return F.cross_entropy(outputs.flatten(0, -2), target.flatten())

    together = vmap(grad(loss))(weights, samples, targets)
    for client in range(3):
        own = {key: value[client] for key, value in weights.items()}
        for key, value in grad(loss)(own, samples[client], targets[client]).items():
            torch.testing.assert_close(together[key][client], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_same_seed_same_model(name):
    """A seed fixes the weights and leaves the global random state alone; another seed gives others; training draws nothing."""
    shape = dict(CASES)[name]
    sizes = {"num_classes": 7, "input_shape": shape, "width": 4}
    state = torch.get_rng_state()
    first, again, other = (model_for(name, **sizes, seed=seed) for seed in (3, 3, 4))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not all(map(torch.equal, first.parameters(), other.parameters()))
    _, sample = built(name, shape)
    first.train()(sample if sample.dtype == torch.int64 else sample.float())
    assert torch.equal(torch.get_rng_state(), state)


def test_parameter_counts():
    """Perceptron and convolutional network have the parameters of their formula."""
    count = {
        mlp((1, 8, 8), (32, 16), 10): 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10,
        mlp(6, (), 3): 6 * 3 + 3,
        small_cnn(in_channels=3, image_size=28, channels=(4, 5), num_classes=2): (
            4 * 27 + 4 + 5 * 36 + 5 + 2 * 5 * 49 + 2
        ),
    }  # fmt: skip
    for model, parameters in count.items():
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "decoder", "moe"])
def test_it_learns(name):
    """A few steps of gradient descent lower the loss on one batch."""
    model, sample = built(name, dict(CASES)[name])
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    target = sample if SMALL_MODELS[name].takes == "sequences" else torch.tensor([0, 2])
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(model(sample).flatten(0, -2), target.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_untied_decoder():
    """Without tying, the head has weights of its own and the model has that many parameters more."""
    sizes = {"vocabulary": 11, "context": 9, "width": 8, "depth": 1, "heads": 2}
    tied, untied = gpt2(**sizes), gpt2(**sizes, tied=False)
    assert untied.head.linear.weight is not untied.embedding.token.weight
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (tied, untied)]
    assert counts[1] == counts[0] + 11 * 8


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("alexnet", {}, "no model 'alexnet': expected one of mlp, small-cnn, "),
        ("small-cnn", {"input_shape": (64,)}, "expected \\(channels, size, size\\)"),
        ("small-cnn", {"input_shape": (1, 8, 9)}, "expected \\(channels, size, size\\)"),
        ("small-cnn", {"input_shape": (1, 3, 3)}, "image_size = 3: expected at least 4 pixels"),
        ("small-vgg", {"input_shape": (1, 28, 28)}, "expected at least 32 x 32"),
        ("moe", {"input_shape": (1, 8, 8)}, "moe takes sequences"),
        ("decoder", {"input_shape": (8,), "width": 6}, "width = 6: expected a positive number of channels, a multiple of 4"),
        ("mlp", {"input_shape": ()}, "expected positive sizes"),
        ("mlp", {"width": 0}, "width = 0: expected a positive"),
        ("mlp", {"num_classes": 0}, "num_classes = 0"),
    ],
)  # fmt: skip
def test_wrong_arguments(name, change, message):
    """A model that does not fit says what was given and what it takes."""
    with pytest.raises(InvalidProblemError, match=message):
        model_for(name, **({"num_classes": 3, "input_shape": (1, 8, 8)} | change))
