"""Training in three stages: cut anywhere it goes on to the last bit, and each stage's loss goes where it should."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.coding import DeepJscc, DeepShape, Network, Ntrscc, Shape, Training, train_deep_jscc, train_ntrscc
from edgeopt.coding.losses import Weights, _drawn, _edge_weights, code_loss, importance, joint_loss, transforms_loss
from edgeopt.coding.lt_code import DEGREES
from edgeopt.coding.pretrain import main
from edgeopt.errors import InvalidFileError, InvalidProblemError

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 15, 3)).astype(np.uint8).repeat(6, 0).repeat(6, 1)
SMALL = Shape(width=6, channels=3, hyper=2)
TRAINING = Training(transforms=3, code=3, joint=3, batch=2, crop=32, row_every=2)


@pytest.mark.parametrize("cut", [1, 3, 4, 8])
def test_a_run_that_was_cut_is_the_long_run(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C after any mini-batch, then on from the checkpoint: weights and rows are equal to the bit."""
    whole = train_ntrscc([PICTURE], TRAINING, shape=SMALL, seed=1)
    from edgeopt.coding.training import _Run

    advance, done = _Run.advance, [0]

    def cut_off(self, pictures):
        if done[0] == cut:
            raise KeyboardInterrupt
        done[0] += 1
        return advance(self, pictures)

    path = tmp_path / "run.safetensors"
    monkeypatch.setattr(_Run, "advance", cut_off)
    first = train_ntrscc([PICTURE], TRAINING, shape=SMALL, seed=1, checkpoint=path)
    assert first.interrupted
    monkeypatch.setattr(_Run, "advance", advance)
    rest = train_ntrscc([PICTURE], TRAINING, shape=SMALL, seed=1, checkpoint=path, resume=True)
    assert not rest.interrupted
    assert rest.rows == whole.rows
    assert [row["step"] for row in whole.rows] == [2, 3, 4, 6, 8, 9]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, rest.network.state_dict()[name]), name
    with pytest.raises(InvalidFileError, match="seed = 1: this run has 2"):
        train_ntrscc([PICTURE], TRAINING, shape=SMALL, seed=2, checkpoint=path, resume=True)


def test_stages_train_what_they_should():
    """Transforms first, then the code alone, then both; equal weights' distribution belongs to the code."""
    before = Network(SMALL).state_dict()
    code = {name for name in before if name.startswith(("degree", "plain", "neighbour"))}
    for counts, moved in (((2, 0, 0), set(before) - code - {"importance"}), ((0, 2, 0), code | {"importance"})):
        steps = dict(zip(("transforms", "code", "joint"), counts, strict=True))
        start = Network(SMALL)
        found = train_ntrscc([PICTURE], Training(**steps, batch=2, crop=32), start=start).network.state_dict()
        changed = {name for name, value in start.state_dict().items() if not torch.equal(value, found[name])}
        assert changed <= moved
        assert {"degree_logits", "plain_logits"} <= changed or counts[1] == 0


def test_losses_have_slopes():
    """Each reaches the parameters of its stage, none of them infinite."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    network = Network(SMALL)
    batch = torch.rand(2, 3, 32, 32)
    for loss_of, names in (
        (transforms_loss, ("analysis.0.weight", "synthesis.4.weight", "hyper_analysis.4.bias", "hyper_synthesis.0.weight", "hyper_log_scale")),
        (code_loss, ("degree_logits", "plain_logits", "neighbour.2.bias")),
        (joint_loss, ("analysis.0.weight", "hyper_synthesis.4.weight", "degree_logits", "neighbour.2.weight")),
    ):  # fmt: skip
        network.zero_grad()
        loss, said = loss_of(network, batch, rng, Weights(), 0.5)
        loss.backward()
        assert np.isfinite(list(said.values())).all()
        found = dict(network.named_parameters())
        for name in names:
            slope = found[name].grad
            assert slope is not None, (loss_of, name)
            assert torch.isfinite(slope).all(), (loss_of, name)
            assert name == "neighbour.2.bias" or (slope != 0).any(), (loss_of, name)


def test_drawn_graphs_are_those_of_the_code():
    """Own edges have weight 1, further ones 0; without these the graph is what the code draws; slopes push towards degrees."""
    rng = np.random.default_rng(0)
    network = Network(SMALL)
    side = network.side(torch.zeros(2, 2, 1, 1))
    decoder, own = _drawn(network, side, 400, rng)
    weights = _edge_weights(network, side, decoder.graph, own, torch.Generator().manual_seed(0), 0.7)
    mine = own.place < own.degree
    np.testing.assert_array_equal(weights.detach(), mine)
    assert own.graph.num_symbols == 800
    assert set(own.graph.degrees) <= {min(d, 192) for d in DEGREES}
    assert (own.graph.neighbours[: own.graph.start[400]] < 192).all()
    assert (own.graph.neighbours[own.graph.start[400] :] >= 192).all()
    weights.sum().backward()
    assert (network.degree_logits.grad[0] < 0) or (network.degree_logits.grad[-1] > 0)


def test_importance():
    """A channel that the picture does not follow counts nothing; twice as strong a synthesis counts four times."""
    torch.manual_seed(0)
    network = Network(SMALL)
    batch = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        network.synthesis[0].weight[0] = 0
        network.synthesis[0].weight[3] = 0
        first = importance(network, batch, 0)
        network.synthesis[4].weight *= 2
        second = importance(network, batch, 0)
    assert first[0] == 0
    assert (first[1:] > 0).all()
    torch.testing.assert_close(second, 4 * first)


def test_fixed_number_of_symbols(tmp_path: Path):
    """Symbols have mean power 1, training lowers the error, files give the same network back."""
    rows = []
    model = train_deep_jscc(
        [PICTURE], steps=60, shape=DeepShape(width=8, symbols=6), batch=4, crop=32, lr=5e-3, on_row=rows.append
    )
    sent = model.symbols(torch.rand(2, 3, 32, 64))
    torch.testing.assert_close(sent.square().mean((1, 2, 3)), torch.ones(2))
    assert rows[-1]["loss"] < 0.98 * rows[0]["loss"]
    model.save(tmp_path / "deep.safetensors")
    again = DeepJscc.load(tmp_path / "deep.safetensors")
    one, other = (m.sent_and_received(PICTURE, 3.0, np.random.default_rng(0)) for m in (model, again))
    assert (one[0] == other[0]).all()
    assert one[0].shape == PICTURE.shape
    assert one[1] == 96 * 96 * 6 // 64
    noise = np.random.default_rng(0).standard_normal((1, 6, 12, 12)).astype(np.float32)  # of variance 10^-0.3
    with torch.no_grad():
        tile = torch.zeros(1, 3, 96, 96)
        tile[0, :, :72, :90] = torch.from_numpy(PICTURE).permute(2, 0, 1) / 255
        tile[0, :, :72, 90:] = tile[0, :, :72, 89:90]
        tile[0, :, 72:] = tile[0, :, 71:72]
        made = model.decoder(model.symbols(tile) + 10**-0.15 * torch.from_numpy(noise))[0, :, :72, :90] + 0.5
    assert np.abs(one[0] - (made.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()).max() <= 1


def test_what_is_refused(tmp_path: Path):
    """Pictures that are too small or none, crops of odd sizes, a network of another kind of file."""
    with pytest.raises(InvalidProblemError, match=r"pictures\[0\]: 20 x 90 pixels: expected at least 32 x 32"):
        train_ntrscc([PICTURE[:20]], TRAINING)
    with pytest.raises(InvalidProblemError, match="expected uint8"):
        train_ntrscc([PICTURE / 255], TRAINING)
    with pytest.raises(InvalidProblemError, match="at least one"):
        train_ntrscc([], TRAINING)
    with pytest.raises(InvalidProblemError, match="crop = 40: expected a multiple of 32"):
        Training(crop=40)
    DeepJscc(DeepShape(width=2, symbols=2)).requires_grad_(False).save(tmp_path / "deep.safetensors")
    with pytest.raises(InvalidFileError, match="kind"):
        Ntrscc.load(tmp_path / "deep.safetensors")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It trains on a folder and writes what loads; what does not fit is one line."""
    image = pytest.importorskip("PIL.Image")
    image.fromarray(PICTURE).save(tmp_path / "a.png")
    out = tmp_path / "net.safetensors"
    common = ["--pictures", str(tmp_path), "--out", str(out)]
    assert main(["ntrscc", "--steps", "1", "1", "1", *common]) == 0
    assert Ntrscc.load(out).network.shape == Shape()
    assert main(["deep-jscc", "--steps", "1", "0", "0", *common]) == 0
    capsys.readouterr()
    assert main(["ntrscc", "--pictures", str(tmp_path), "--out", str(out), "--steps", "-1", "0", "0"]) == 2
    assert capsys.readouterr().err == "transforms = -1: expected an integer >= 0\n"
