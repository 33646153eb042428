"""One stream of a picture: both ends have the same code, every part says what it got, and the loss's terms are what they are called."""

import itertools
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

torch = pytest.importorskip("torch")
from edgeopt.coding import Awgn, BeliefPropagation, Encoded, Header, LtCode, Network, Ntrscc, Shape, psnr_db, psnr_table
from edgeopt.coding.ntrscc import Tiles
from edgeopt.errors import InvalidFileError, InvalidProblemError
from tests.coding import oracles

RNG = np.random.default_rng(0)
PICTURE = np.clip(np.add.outer(np.arange(40) * 4, np.arange(70)) [:, :, None] + RNG.integers(0, 40, (40, 70, 3)), 0, 255).astype(
    np.uint8
)  # fmt: skip


@pytest.fixture(scope="module")
def system() -> Ntrscc:
    """Return a small network with random weights: all but the quality of pictures is as in a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(Shape(width=6, channels=3, hyper=2))
        for parameter in network.neighbour.parameters():
            torch.nn.init.normal_(parameter)
    return Ntrscc(network.requires_grad_(False))


def test_from_bits_to_the_picture(system: Ntrscc):
    """With all bits certain the receiver has the sender's numbers, and the same picture as without a channel."""
    sent = system.encode(PICTURE, seed=3)
    receiver = system.receiver(Header.from_bytes(sent.header.to_bytes()), 3)
    exact = receiver.picture(30 * (1.0 - 2.0 * sent.bits))
    heard = Awgn(12).receive(sent.symbols(6 * len(sent.bits)), np.random.default_rng(0))
    assert (system.decode(sent.header, heard, 30, seed=3) == exact).all()
    assert exact.shape == PICTURE.shape
    early = receiver.pictures(heard[: len(sent.bits) // 2], [0, 4])
    assert (early[0] == receiver.picture()).all()  # no iteration: the header alone
    assert not (early[1] == early[0]).all()


def test_any_part_of_the_stream(system: Ntrscc):
    """Symbols by number, in chunks, and decoded from where a receiver came in."""
    sent = system.encode(PICTURE, seed=3)
    chunks = sent.stream(chunk=50)
    assert np.concatenate([next(chunks) for _ in range(3)]).tolist() == sent.symbols(150).tolist()
    assert sent.symbols(40, first=110).tolist() == sent.symbols(150)[110:].tolist()
    late = Awgn(12).receive(sent.symbols(5000, first=777), np.random.default_rng(0))
    whole = system.receiver(sent.header, 3)
    assert ((whole.beliefs(late, [20], first=777)[0] < 0) != sent.bits).mean() < 0.02
    assert ((whole.beliefs(late, [20], first=778)[0] < 0) != sent.bits).mean() > 0.2


@pytest.mark.parametrize(
    "changes", [{"weights": "equal", "distribution": "learnt for equal"}, {"distribution": "robust soliton"}, {"priors": False}]
)  # fmt: skip
def test_variants_decode(system: Ntrscc, changes: dict):
    """Each decodes its own stream; a receiver of another variant refuses it, unless only its own decoding differs."""
    own = system.replace(**changes)
    sent = own.encode(PICTURE, seed=1)
    heard = Awgn(12).receive(sent.symbols(4 * len(sent.bits)), np.random.default_rng(0))
    found = own.receiver(sent.header, 1).beliefs(heard, [40])[0]
    assert ((found < 0) != sent.bits).mean() < 0.02
    if "priors" in changes:
        system.receiver(sent.header, 1)
    else:
        with pytest.raises(InvalidProblemError, match="checksum"):
            system.receiver(sent.header, 1)


@pytest.mark.slow
def test_another_process_makes_the_same_graph_and_decodes(system: Ntrscc, tmp_path: Path):
    """With the file of the network, the header's bytes, what was heard, and the seed; a graph follows from the seed alone."""
    system.save(tmp_path / "net.safetensors")
    sent = system.encode(PICTURE, seed=5)
    heard = Awgn(3).receive(sent.symbols(900), np.random.default_rng(0))
    (tmp_path / "header").write_bytes(sent.header.to_bytes())
    np.save(tmp_path / "heard.npy", heard)
    code = (
        "import sys, zlib, numpy as np, torch\n"
        "torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from edgeopt.coding import Header, LtCode, Ntrscc\n"
        "folder = Path(sys.argv[1])\n"
        "system = Ntrscc.load(folder / 'net.safetensors')\n"
        "header = Header.from_bytes((folder / 'header').read_bytes())\n"
        "picture = system.decode(header, np.load(folder / 'heard.npy'), 5, seed=5)\n"
        "code = LtCode((1, 2, 3, 8), (0.1, 0.5, 0.3, 0.1), seed=11)\n"
        "graph = code.graph(50, 200, range(1, 51), first=7)\n"
        "print(zlib.crc32(picture.tobytes()), graph.start.tolist(), graph.neighbours.tolist(), code.checksum(50, range(1, 51)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    own = LtCode((1, 2, 3, 8), (0.1, 0.5, 0.3, 0.1), seed=11)
    graph = own.graph(50, 200, range(1, 51), first=7)
    picture = zlib.crc32(system.decode(sent.header, heard, 5, seed=5).tobytes())
    expected = f"{picture} {graph.start.tolist()} {graph.neighbours.tolist()} {own.checksum(50, range(1, 51))}"
    assert done.stdout.strip() == expected


def test_what_is_refused(system: Ntrscc, tmp_path: Path):
    """Another seed, network or code; nothing heard; damaged headers and files; names that there are not."""
    sent = system.encode(PICTURE, seed=3)
    heard = np.ones(10)
    with pytest.raises(InvalidProblemError, match="seed = 4: expected the one of the sender"):
        system.decode(sent.header, heard, 1, seed=4)
    other = Ntrscc(Network(Shape(width=6, channels=3, hyper=2)).requires_grad_(False))
    with pytest.raises(InvalidProblemError, match="and its network"):
        other.decode(sent.header, heard, 1, seed=3)
    with pytest.raises(InvalidProblemError, match=r"hyperprior of shape \[1, 2, 2, 3\]: expected \[1, 3, 2, 3\]"):
        Ntrscc(Network(Shape(width=4, channels=2, hyper=3))).decode(sent.header, heard, 1, seed=3)
    with pytest.raises(InvalidProblemError, match="heard: no symbols"):
        system.decode(sent.header, [], 1, seed=3)
    with pytest.raises(InvalidProblemError, match=r"heard\[1\] = nan"):
        system.decode(sent.header, [0.0, np.nan], 1, seed=3)
    with pytest.raises(InvalidProblemError, match="count = 0: expected an integer >= 1"):
        sent.symbols(0)
    data = sent.header.to_bytes()
    for bad, message in (
        (b"", "header"), (b"JFIF" + data[4:], "begins with"), (data[:-3], "damaged|numbers"), (data[:40], "damaged|numbers"),
        (data[:20] + b"\xff" * 8 + data[28:], "expected 1 to"),
    ):  # fmt: skip
        with pytest.raises(InvalidFileError, match=message):
            Header.from_bytes(bad)
    for changes in ({"weights": "heavy"}, {"distribution": "poisson"}):
        with pytest.raises(InvalidProblemError, match="expected one of"):
            system.replace(**changes)
    with pytest.raises(InvalidProblemError, match="2000 x 2000 pixels: expected at most 1048576"):
        Tiles(2000, 2000)


def test_machines_that_round_differently():
    """Other convolutions give other last digits, and yet the same whole weights of bits: the receiver accepts the header."""
    system = Ntrscc.pretrained()
    picture = np.tile(PICTURE, (4, 2, 1))[:128, :128]
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        sent = system.encode(picture, seed=1)
        one = system.network.side(torch.from_numpy(sent.header.hyper.astype(np.float32))).log_weights
    other = system.network.side(torch.from_numpy(sent.header.hyper.astype(np.float32))).log_weights
    assert not torch.backends.mkldnn.is_available() or not torch.equal(one, other)
    assert system.receiver(sent.header, 1).weights.tolist() == pytest.approx(sent.weights.tolist(), abs=1e-12)


@torch.no_grad()
def test_decoding_written_out_a_second_time(system: Ntrscc):
    """From the header and what was heard to pixels, in scipy's distribution function and messages in probabilities."""
    picture = PICTURE[:32, :32]
    sent = system.encode(picture, seed=2)
    heard = Awgn(6).receive(sent.symbols(70), np.random.default_rng(0))
    found = system.decode(sent.header, heard, 3, seed=2)

    hyper = torch.from_numpy(sent.header.hyper.astype(np.float32))
    mean, log_scale = system.network.hyper_synthesis(hyper).chunk(2, 1)
    scale = np.clip(np.exp(log_scale.double().numpy().reshape(-1, 1)), 0.1, 8.0)
    values = np.arange(-8, 8)
    chance = norm.cdf((values + 0.5) / scale) - norm.cdf((values - 0.5) / scale) + 1e-9
    chance /= chance.sum(1, keepdims=True)
    gray = np.array([[int(bit) for bit in f"{cell ^ (cell >> 1):04b}"] for cell in range(16)])
    one = np.clip(chance @ gray, 1e-7, 1 - 1e-7).reshape(-1)
    prior = np.clip(np.log((1 - one) / one), -12, 12)
    graph = system.receiver(sent.header, 2).graph(70)
    told = (oracles.messages(graph, heard, prior, 3) - prior).reshape(-1, 4)
    assert np.abs(told).max() > 1
    posterior = chance.copy()
    for cell in range(16):
        for plane in range(4):
            sign = 1 - 2 * gray[cell, plane]
            posterior[:, cell] *= 1 / (1 + np.exp(-sign * told[:, plane]))
    posterior /= posterior.sum(1, keepdims=True)
    centre = posterior @ values
    spread = posterior @ values**2 - centre**2
    centre, spread = (torch.from_numpy(x.astype(np.float32)).view(mean.shape) for x in (centre, spread))
    made = system.network.synthesis(torch.cat([mean + centre, spread], 1))[0].permute(1, 2, 0) + 0.5
    expected = np.round(np.clip(made.numpy(), 0, 1) * 255)
    assert np.abs(found - expected).max() <= 1  # a rounding that falls the other way
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (33, 20), (128, 129), (300, 451), (512, 768)])
def test_tiles(size: tuple[int, int]):
    """Cut and joined, a picture is what it was; sides of tiles are multiples of 32, at most 128."""
    picture = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    tiles = Tiles(*size)
    cut = tiles.cut(picture)
    assert (tiles.join(cut) == picture).all()
    assert all(side % 32 == 0 and side <= 128 for side in cut.shape[2:])


def test_one_pixel(system: Ntrscc):
    """It is filled up to a tile."""
    sent = system.encode(np.uint8([[[200, 100, 50]]]), seed=0)
    assert system.receiver(sent.header, 0).picture().shape == (1, 1, 3)


def test_rate_term():
    """The closed form of the entropy of a parity, and of what all tell together its bound, by enumeration of words."""
    rng = np.random.default_rng(1)
    graph = LtCode((1, 2, 3), (0.2, 0.4, 0.4), 1).graph(6, 5)
    p = rng.uniform(0.05, 0.95, 6)
    words = np.array([*itertools.product((0, 1), repeat=6)])
    chance = np.where(words == 1, p, 1 - p).prod(1)
    parities = np.array([graph.encode(word) for word in words])

    def entropy(q: np.ndarray) -> float:
        return float(-(q[q > 0] * np.log2(q[q > 0])).sum())

    each = sum(entropy(np.array([chance[parities[:, j] == v].sum() for v in (0, 1)])) for j in range(5))
    found = BeliefPropagation(graph).stream_bits(torch.tensor(np.log((1 - p) / p)))
    assert float(found) == pytest.approx(each, abs=1e-5)
    together: dict[tuple, float] = {}
    for row, c in zip(parities.tolist(), chance, strict=True):
        together[tuple(row)] = together.get(tuple(row), 0) + c
    assert entropy(np.array([*together.values()])) <= each + 1e-9


def test_header_bits(system: Ntrscc):
    """-log2 of the chance that each number of the hyperprior has under its logistic distribution, and 64 bits."""
    sent: Encoded = system.encode(PICTURE, seed=0)
    with torch.no_grad():
        scale = system.network.hyper_log_scale.exp().double().numpy()[:, None, None]
        centre = sent.header.hyper - system.network.hyper_mean.double().numpy()[:, None, None]
    upper, lower = (1 / (1 + np.exp(-(centre + half) / scale)) for half in (0.5, -0.5))
    assert sent.header_bits == pytest.approx(64 - np.log2(upper - lower).sum(), rel=1e-4)
    assert sent.header_symbols(0.0) == int(np.ceil(sent.header_bits / Awgn(0.0).capacity))


def test_table_for_plans(system: Ntrscc):
    """Rows are means over pictures of what a receiver makes; the costs are counted."""
    pictures = [PICTURE[:32, :32], PICTURE[8:40, 30:62]]
    table = psnr_table(system, pictures, snr_db=[0, 8], symbols=[50, 600], iterations=[1, 8], seed=2)
    assert table.psnr_db.shape == (2, 2, 2)
    nothing = []
    for i, picture in enumerate(pictures):
        sent = system.encode(picture, seed=i)
        nothing.append(psnr_db(picture, system.receiver(sent.header, i).picture()))
    assert table.nothing_db == pytest.approx(np.mean(nothing))
    assert table.flops_per_iteration == pytest.approx(
        12 * sum(d * c for d, c in zip(*_degrees(system), strict=True)), rel=1e-5
    )
    assert table.flops > 0
    with pytest.raises(InvalidProblemError, match="all of one size"):
        psnr_table(system, [PICTURE, PICTURE[:32]], snr_db=[0], symbols=[50], iterations=[1])


def _degrees(system: Ntrscc) -> tuple:
    code, _ = system.code_of(system.network.side(torch.zeros(1, 2, 1, 1)), 0)
    return code.degrees, code.chances
