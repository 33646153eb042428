import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgeopt import ModelProfile, model_profile, models
from edgeopt.errors import InvalidFileError, InvalidProblemError, MissingDependencyError
from edgeopt.models.measure_profiles import main, measure
from edgeopt.profile import BUNDLED_PROFILES

PUBLISHED = {  # parameters: torchvision's model pages; the configurations of the checkpoints on the model hub
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "mobilenetv2": 3_504_872,
    "vit-b16": 86_567_656,
    "bert-base": 109_482_240,
    "gpt2": 124_439_808,
    "tinyllama-1.1b": 1_100_048_384,
}
PUBLISHED_GMAC = {"resnet18": 1.81, "resnet50": 4.09, "vgg16": 15.47, "mobilenetv2": 0.30, "vit-b16": 17.56}
TINY = {  # model and sample of every family
    "resnet": (lambda: models.resnet(models.BasicBlock, (1, 1), width=4, num_classes=3), (2, 3, 32, 32)),
    "bottleneck": (lambda: models.resnet(models.Bottleneck, (2,), width=4, num_classes=3), (2, 3, 32, 32)),
    "vgg": (lambda: models.vgg(((4,), (6, 6)), hidden=8, num_classes=3), (2, 3, 32, 32)),
    "vit": (lambda: models.vision_transformer(image_size=16, patch_size=8, width=8, depth=2, heads=2, hidden=12), (2, 3, 16, 16)),
    "bert": (lambda: models.bert(vocabulary=11, context=9, width=8, depth=2, heads=2, hidden=12), (2, 7)),
    "gpt2": (lambda: models.gpt2(vocabulary=11, context=9, width=8, depth=2, heads=2), (2, 7)),
    "llama": (lambda: models.llama(vocabulary=11, width=8, depth=2, heads=4, kv_heads=2, hidden=12), (2, 7)),
}  # fmt: skip
PAGE = Path(__file__).resolve().parents[1] / "docs" / "model-profiles.md"
FIELDS = ("parameter_bytes", "forward_flops", "backward_flops", "activation_bytes", "memory_bytes")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors on a busy machine: threads would wait for each other for most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**change) -> ModelProfile:
    """Three layers, the second one without parameters."""
    fields = {
        "name": "small", "layer_names": ("a", "b", "c"), "parameter_bytes": [96, 0, 40], "forward_flops": [40, 5, 16],
        "backward_flops": [40, 6, 32], "activation_bytes": [16, 12, 8], "memory_bytes": [20, 16, 0], "input_bytes": 20,
    }  # fmt: skip
    return ModelProfile(**(fields | change))


def sample_of(shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if len(shape) == 2:
        return torch.randint(11, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def rows(profile: ModelProfile) -> dict[str, list[float]]:
    return {name: getattr(profile, name).tolist() for name in FIELDS}


# --- measuring ----------------------------------------------------------------------------------------------------


def test_measured_by_hand():
    """A small perceptron: every number derived in the comments."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))
    profile = ModelProfile.from_module(module, torch.zeros(7, 3, 4), name="mlp")
    assert profile.layer_names == ("0", "1", "2", "3")
    assert profile.input_bytes == 12 * 4
    assert rows(profile) == {
        "parameter_bytes": [0, 4 * (12 * 5 + 5), 0, 4 * 5 * 3],
        "forward_flops": [0, 2 * 12 * 5, 0, 2 * 5 * 3],
        # the first linear layer needs no gradient of its input, the second one needs both
        "backward_flops": [0, 2 * 12 * 5, 0, 2 * 2 * 5 * 3],
        "activation_bytes": [4 * 12, 4 * 5, 4 * 5, 4 * 3],
        # linear: its input; ReLU: its output, which is the input of the next layer and is not kept twice
        "memory_bytes": [0, 4 * 12, 4 * 5, 0],
    }


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_convolutions_by_hand(kind, groups):
    """Forward: every weight once per position and image (8 x 8); backward: as much for each of the two gradients."""
    first = kind(6, 6, 3, padding=1, groups=groups, bias=False)
    second = kind(6, 12, 3, padding=1, groups=groups, bias=False)
    profile = ModelProfile.from_module(nn.Sequential(first, second), torch.zeros(5, 6, 8, 8))
    one, two = (2 * 64 * 9 * 6 * out // groups for out in (6, 12))
    assert profile.forward_flops.tolist() == [one, two]
    assert profile.backward_flops.tolist() == [one, 2 * two]
    assert profile.parameter_bytes.tolist() == [4 * 9 * 6 * out // groups for out in (6, 12)]


def test_a_stride_by_hand():
    """Stride 2 on 8 x 8: a convolution works at its 4 x 4 outputs, a transposed one at its 4 x 4 inputs."""
    module = nn.Sequential(nn.Conv2d(3, 5, 2, stride=2, bias=False), nn.ConvTranspose2d(5, 4, 2, stride=2, bias=False))
    profile = ModelProfile.from_module(module, torch.zeros(2, 3, 8, 8))
    one, two = 2 * 16 * 4 * 3 * 5, 2 * 16 * 4 * 5 * 4
    assert profile.forward_flops.tolist() == [one, two]
    assert profile.backward_flops.tolist() == [one, 2 * two]


def test_nothing_is_kept_before_the_first_parameters():
    """No gradient is wanted there, so the tanh keeps nothing; its output is the input that the linear layer keeps."""
    profile = ModelProfile.from_module(nn.Sequential(nn.Tanh(), nn.Sigmoid(), nn.Linear(6, 2)), torch.zeros(3, 6))
    assert profile.memory_bytes.tolist() == [0, 0, 24]
    assert profile.backward_flops.tolist() == [0, 0, 24]


@pytest.mark.parametrize("frozen", [(), (0,), (2,), (4,), (0, 2), (0, 4), (2, 4), (0, 2, 4)])
def test_frozen_layers_keep_what_others_need(frozen):
    """By hand: a layer keeps its input for its own weights, an activation its output for trained layers below it."""
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for layer in frozen:
        module[layer].requires_grad_(False)
    profile = ModelProfile.from_module(module, torch.zeros(3, 6))
    first, second, third = (layer not in frozen for layer in (0, 2, 4))
    expected = [24 * first, 20 * first, 20 * (second and not first), 16 * (first or second)]
    assert profile.memory_bytes.tolist() == [*expected, 16 * (third and not (first or second))]
    assert profile.parameter_bytes.tolist() == [4 * 35, 0, 4 * 24, 0, 4 * 15]


def test_layers_that_write_in_place():
    """A layer may overwrite the output of the one before, where both are cut."""
    usual, in_place = (
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=inplace), nn.Linear(5, 2)) for inplace in (False, True)
    )
    sample = torch.zeros(3, 4)
    assert ModelProfile.from_module(in_place, sample) == ModelProfile.from_module(usual, sample)


class Bypass(nn.Module):
    """The second layer sees the input of the first one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        return self.third(self.second(self.first(x) + x))


def test_an_input_that_is_used_again_is_no_cut():
    """While the input is still needed, two tensors would cross."""
    assert ModelProfile.from_module(Bypass(), torch.zeros(1, 3)).layer_names == ("first..second", "third")


@pytest.mark.parametrize("name", TINY)
def test_a_real_run_agrees(name):
    """A run of the whole model with weights and data counts the same FLOPs, outputs and saved tensors."""
    build, shape = TINY[name]
    torch.manual_seed(0)
    module, sample = build(), sample_of(shape)
    profile = ModelProfile.from_module(module, sample)
    ours = {parameter.data_ptr() for parameter in (*module.parameters(), *module.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    outputs = []
    with sdpa_kernel(SDPBackend.MATH), saved_tensors_hooks(keep, lambda tensor: tensor):
        with FlopCounterMode(display=False) as forward:
            x = sample
            for layer in module:
                x = layer(x)
                outputs.append(x.nbytes / len(sample))
        with FlopCounterMode(display=False) as backward:
            x.sum().backward()
    assert profile.total_forward_flops * len(sample) == forward.get_total_flops()
    assert profile.total_backward_flops * len(sample) == backward.get_total_flops()
    assert profile.activation_bytes.tolist() == outputs
    kept = sum(tensor.untyped_storage().nbytes() for pointer, tensor in saved.items() if pointer not in ours)
    assert profile.total_memory_bytes * len(sample) == pytest.approx(kept)
    assert profile.num_parameters == sum(parameter.numel() for parameter in module.parameters())


def test_numbers_are_per_sample():
    """Without work shared by the batch, any batch size gives the same profile."""
    module = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))
    assert ModelProfile.from_module(module, torch.zeros(1, 4)) == ModelProfile.from_module(module, torch.zeros(6, 4))


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.norm(self.first(x)))) + x)


class Branched(nn.Module):
    """What users write: functions between the layers, shortcuts, writing in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.Sequential(Shortcut(), Shortcut())
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        return F.log_softmax(self.head(self.blocks(self.stem(x)).mean((2, 3))), dim=-1)


def test_layers_end_where_one_tensor_crosses():
    """Pieces inside a shortcut are merged to the block; the totals are those of the whole module."""
    module = Branched()
    profile = ModelProfile.from_module(module, torch.zeros(2, 1, 10, 10))
    assert profile.layer_names == ("stem", "blocks.0", "blocks.1", "head")
    assert profile.activation_bytes.tolist() == [4 * 4 * 64, 4 * 4 * 64, 4 * 4 * 64, 4 * 10]
    assert profile.parameter_bytes.tolist() == [4 * 40, 4 * 304, 4 * 304, 4 * 50]
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(2, 1, 10, 10)).sum().backward()
    assert 2 * (profile.total_forward_flops + profile.total_backward_flops) == counter.get_total_flops()


def test_layers_by_name():
    """Named layers merge what lies between them; a name that is no cut, runs twice or does not exist is refused."""
    module, sample = Branched(), torch.zeros(2, 1, 10, 10)
    fine = ModelProfile.from_module(module, sample)
    coarse = ModelProfile.from_module(module, sample, layers=["head", "blocks"])
    assert coarse.layer_names == ("blocks", "head")
    for name in ("parameter_bytes", "forward_flops", "backward_flops", "memory_bytes"):
        np.testing.assert_allclose(getattr(coarse, name), np.add.reduceat(getattr(fine, name), [0, 3]))
    for layers, message in (
        (["blocks.0.first", "head"], "no cut after 'blocks.0.first'"),
        (["blocks.0.relu"], "'blocks.0.relu' runs 2 times"),
        (["stem", "tail"], r"layers\[1\] = 'tail'"),
        (["stem", "stem"], "none twice"),
        ([], "at least one"),
    ):
        with pytest.raises(InvalidProblemError, match=message):
            ModelProfile.from_module(module, sample, layers=layers)


def test_shared_parameters_are_charged_once():
    """Tied weights and a layer that runs twice: bytes go to the first use, work to every use."""
    decoder = ModelProfile.from_module(TINY["gpt2"][0](), sample_of((2, 7)))
    assert decoder.parameter_bytes[0] == 4 * (11 * 8 + 9 * 8)
    assert decoder.parameter_bytes[-1] == 4 * 2 * 8  # the norm alone
    assert decoder.backward_flops[-1] == 2 * decoder.forward_flops[-1] == 2 * 7 * 2 * 11 * 8
    linear = nn.Linear(3, 3)
    twice = ModelProfile.from_module(nn.Sequential(linear, nn.Tanh(), linear), torch.zeros(1, 3))
    assert twice.layer_names == ("0", "1", "0#2")
    assert twice.parameter_bytes.tolist() == [48, 0, 0]
    assert twice.forward_flops.tolist() == [18, 0, 18]
    assert twice.backward_flops.tolist() == [18, 0, 36]
    assert not any(parameter.is_meta for parameter in linear.parameters())  # it keeps its weights


def test_inputs_by_position_and_by_name():
    """A tuple and a mapping of inputs reach the module; all of them count as input."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x, *, mask=None, shift=None):
            y = self.linear(x)
            return y if mask is None else y * mask + shift

    plain = ModelProfile.from_module(Two(), (torch.zeros(4, 3),))
    named = ModelProfile.from_module(
        Two(), {"x": torch.zeros(4, 3), "mask": torch.ones(4, 2, dtype=torch.bool), "shift": torch.ones(4, 2)}
    )
    assert (plain.input_bytes, named.input_bytes) == (12, 12 + 2 + 8)
    assert plain.forward_flops.tolist() == named.forward_flops.tolist() == [12]


def test_modules_with_several_outputs():
    """A recurrent layer gives its output and its state: no cut there, so it joins what follows."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.LSTM(4, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.memory(x)[0][:, -1])

    profile = ModelProfile.from_module(Reader(), torch.zeros(2, 5, 4))
    assert profile.layer_names == ("memory..head",)
    assert profile.num_parameters == 4 * 6 * (4 + 6 + 2) + 14
    assert profile.total_forward_flops == 5 * 2 * 24 * (4 + 6) + 24


def test_the_module_stays_as_it_was():
    """Weights, buffers, modes, gradients, hooks and the random state are untouched; half precision is measured as fp32."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 2))
    module[1].eval()
    module[4].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        profile = ModelProfile.from_module(module, torch.zeros(2, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert [part.training for part in module] == [True, False, True, True, True]
    assert not module[4].weight.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())
    half = ModelProfile.from_module(module.half(), torch.zeros(2, 1, 8, 8, dtype=torch.float16))
    assert half == profile


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("module", "sample", "message"),
    [
        (Deciding(), torch.zeros(1, 3), "Deciding: does not run on the meta device"),
        (Idle(), torch.zeros(1, 3), "spare.weight: expected a parameter that the output depends on"),
        (nn.Linear(3, 3), torch.zeros(1, 4), "Linear: does not run"),
        (nn.Linear(3, 3), (torch.zeros(1, 3), torch.zeros(2, 3)), r"batch sizes \[1, 2\]"),
        (nn.Linear(3, 3), torch.zeros(0, 3), r"batch sizes \[0\]"),
        (nn.Linear(3, 3), torch.tensor(1.0), "with a batch dimension"),
        (nn.Linear(3, 3), (), "with a batch dimension"),
        (nn.Linear(3, 3), np.zeros((1, 3)), "with a batch dimension"),
        (torch.tanh, torch.zeros(1, 3), "expected a torch.nn.Module"),
        (nn.Sequential(), torch.zeros(1, 3), "module: expected layers, got an empty Sequential"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_measured(module, sample, message):
    """Modules and samples that cannot be measured are refused with the reason."""
    with pytest.raises(InvalidProblemError, match=message):
        ModelProfile.from_module(module, sample)


def test_without_torch(monkeypatch):
    """Shipped profiles need no torch; measuring says what to install."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import edgeopt\nprint(edgeopt.model_profile('gpt2').num_layers)\n"
        "try: edgeopt.ModelProfile.from_module(None, None)\n"
        "except edgeopt.MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "26", "edgeopt.models needs torch: pip install 'edgeopt[train]'",
    ]  # fmt: skip
    assert issubclass(MissingDependencyError, ImportError)


# --- shipped profiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED_PROFILES)
def test_shipped_profiles(name):
    """Parameters equal the published count, work the published one to its last digit; 10 to 60 layers, all with work to do."""
    profile = model_profile(name)
    assert profile.num_parameters == PUBLISHED[name]
    assert 10 <= profile.num_layers <= 60
    assert (profile.parameter_bytes > 0).all()
    assert (profile.activation_bytes > 0).all()
    if name in PUBLISHED_GMAC:
        assert profile.total_forward_flops / 2e9 == pytest.approx(PUBLISHED_GMAC[name], abs=0.01)
    for precision, width in (("fp16", 2), ("int8", 1)):
        narrow = model_profile(name, precision)
        assert (narrow.num_parameters, narrow.total_bytes) == (PUBLISHED[name], PUBLISHED[name] * width)


@pytest.mark.parametrize(
    "name",
    [name if name in ("resnet18", "gpt2") else pytest.param(name, marks=pytest.mark.slow) for name in BUNDLED_PROFILES],
)
def test_shipped_profiles_are_what_is_measured_now(name):
    """Measuring again gives the shipped numbers."""
    assert measure(name) == model_profile(name)


def test_the_script_writes_profiles(tmp_path, capsys, monkeypatch):
    """The script writes one file per name."""
    monkeypatch.setattr("edgeopt.models.measure_profiles.BUNDLED_PROFILES", ("resnet18",))
    main(tmp_path / "new")
    assert ModelProfile.load(tmp_path / "new" / "resnet18.json") == model_profile("resnet18")
    assert "11,689,512 parameters" in capsys.readouterr().out


@pytest.mark.skipif(not PAGE.is_file(), reason="an installed package has no documentation beside it")
def test_the_table_of_the_documentation():
    """The page lists every shipped profile with its numbers."""
    listed = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    expected = [
        f"| `{name}` | {profile.num_layers} | {profile.num_parameters:,} | {profile.total_bytes / 1e6:,.1f} |"
        f" {profile.input_bytes:,.0f} | {profile.total_forward_flops / 1e9:.2f} |"
        f" {profile.total_backward_flops / 1e9:.2f} | {profile.total_memory_bytes / 1e6:.1f} |"
        for name, profile in ((name, model_profile(name)) for name in BUNDLED_PROFILES)
    ]
    assert listed[-len(expected) :] == expected


def test_unknown_names():
    """A wrong name or precision lists the right ones."""
    with pytest.raises(InvalidProblemError, match="no bundled profile 'alexnet': expected one of resnet18, "):
        model_profile("alexnet")
    with pytest.raises(InvalidProblemError, match="precision = 'fp8': expected one of fp32, fp16, int8"):
        model_profile("gpt2", "fp8")
    with pytest.raises(InvalidProblemError, match="precision = 'fp8'"):
        small(precision="fp8")


# --- the object ---------------------------------------------------------------------------------------------------


def test_precision():
    """Parameters, activations and memory scale with the width; FLOPs and the input stay; back again gives the same."""
    profile = small()
    narrow = profile.with_precision("int8")
    assert narrow.parameter_bytes.tolist() == [24, 0, 10]
    assert narrow.activation_bytes.tolist() == [4, 3, 2]
    assert narrow.memory_bytes.tolist() == [5, 4, 0]
    assert narrow.forward_flops.tolist() == [40, 5, 16]
    assert (narrow.num_parameters, narrow.input_bytes) == (34, 20)
    assert narrow.with_precision("fp32") == profile


def test_merging_empty_layers_by_hand():
    """The empty second layer goes to the first: sums of work and memory, the second one's output."""
    merged = small().without_empty_layers()
    assert merged.layer_names == ("a", "c")
    assert rows(merged) == {
        "parameter_bytes": [96, 40], "forward_flops": [45, 16], "backward_flops": [46, 32],
        "activation_bytes": [12, 8], "memory_bytes": [36, 0],
    }  # fmt: skip
    with pytest.raises(InvalidProblemError, match="no layer has parameters"):
        small(parameter_bytes=0).without_empty_layers()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), *[st.integers(0, 100)] * 4), min_size=1, max_size=12))
def test_merging_keeps_totals(layers):
    """Merged layers all have parameters, and totals and the last output are the same."""
    columns = np.array(layers, np.float64).T
    profile = small(
        layer_names=tuple(f"layer{i}" for i in range(len(layers))), **dict(zip(FIELDS, columns, strict=True))
    )
    if not columns[0].any():
        return
    merged = profile.without_empty_layers()
    assert (merged.parameter_bytes > 0).all()
    assert merged.num_layers == (columns[0] > 0).sum()
    assert merged.activation_bytes[-1] == profile.activation_bytes[-1]
    for total in ("total_bytes", "total_forward_flops", "total_backward_flops", "total_memory_bytes"):
        assert getattr(merged, total) == getattr(profile, total)
    assert merged.without_empty_layers() == merged


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_save_and_load(tmp_path, suffix):
    """A saved profile loads equal, at every precision; so do its plain values."""
    for profile in (small(), small().with_precision("int8"), model_profile("resnet18")):
        profile.save(tmp_path / f"profile.{suffix}")
        assert ModelProfile.load(tmp_path / f"profile.{suffix}") == profile
        assert ModelProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_equality_sees_every_field():
    """A change of any field makes profiles unequal."""
    for field, value in {
        "name": "other", "layer_names": ("a", "b", "d"), "input_bytes": 21, "precision": "fp16", **dict.fromkeys(FIELDS, 1),
    }.items():  # fmt: skip
        assert small(**{field: value}) != small(), field
    assert small() != "small"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_names": ()}, "layer_names"),
        ({"layer_names": "abc"}, "layer_names = 'abc': expected at least one name"),
        ({"layer_names": ("a", "b", "a")}, r"layer_names\[2\] = 'a': expected distinct names"),
        ({"layer_names": ("a", 2, "c")}, r"layer_names\[1\] = 2: expected a name"),
        ({"name": ""}, "name = ''"),
        ({"parameter_bytes": [1, -1, 0]}, r"parameter_bytes\[1\] = -1.0: expected a non-negative number \(byte\)"),
        ({"forward_flops": [1, np.nan, 0]}, r"forward_flops\[1\] = nan"),
        ({"backward_flops": [1, np.inf, 0]}, r"backward_flops\[1\] = inf"),
        ({"memory_bytes": [1, 2]}, r"memory_bytes: expected shape \[3\], got \[2\]"),
        ({"activation_bytes": ["1", "2", "3"]}, r"activation_bytes\[0\] = '1': expected a non-negative number"),
        ({"input_bytes": -1}, "input_bytes = -1.0"),
        ({"input_bytes": None}, "input_bytes = None: expected a non-negative number"),
    ],
)
def test_bad_values(change, message):
    """Every wrong value is named with field, index and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        small(**change)


def test_arrays_are_copies_that_cannot_be_written():
    """A profile does not change with the arrays it was made from, nor through its own."""
    given_bytes = np.array([1.0, 2.0, 3.0])
    profile = small(parameter_bytes=given_bytes)
    given_bytes[0] = 9
    assert profile.parameter_bytes[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        profile.parameter_bytes[0] = 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "expert-caching"}, "kind = 'expert-caching': expected 'model-profile'"),
        ({"schema_version": 2}, "schema_version = 2: expected 1"),
        ({"arrays": {}}, "arrays: expected parameter_bytes, "),
        ({"arrays": {name: [-1, 0, 0] for name in FIELDS}}, r"_bytes\[0\] = -1.0"),
        ({"layer_names": None}, "layer_names = None"),
        ({"precision": ["fp32"]}, r"precision = \['fp32'\]"),
    ],
)
def test_bad_files(tmp_path, change, message):
    """A file with wrong contents is refused with its name and the place; so are the plain values."""
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(small().to_json() | change))
    with pytest.raises(InvalidFileError, match=f"bad.json: .*{message}"):
        ModelProfile.load(path)
    with pytest.raises(InvalidProblemError, match=message):
        ModelProfile.from_json(small().to_json() | change)


def test_files_that_lack_something(tmp_path):
    """A missing field is named; a missing file is an OSError."""
    values = small().to_json()
    del values["input_bytes"]
    with pytest.raises(InvalidProblemError, match="input_bytes: value is missing"):
        ModelProfile.from_json(values)
    with pytest.raises(InvalidProblemError, match="arrays: expected"):
        ModelProfile.from_json({key: value for key, value in small().to_json().items() if key != "arrays"})
    with pytest.raises(FileNotFoundError):
        ModelProfile.load(tmp_path / "none.json")
