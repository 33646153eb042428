"""`Ntrscc`: a picture as a header and an endless stream of symbols, decoded from any number of them in any number of iterations."""

import copy
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.coding.belief_propagation import OPERATIONS, BeliefPropagation
from edgeopt.coding.bit_planes import BITS, cells_of, soft_values
from edgeopt.coding.channels import Awgn
from edgeopt.coding.lt_code import DEGREES, MAX_BITS, Bits, Graph, LtCode
from edgeopt.coding.pictures import Picture, as_picture
from edgeopt.coding.transforms import SHRINK, Network, Shape, Side
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields
from edgeopt.models.weight_files import load_weights, save_weights
from edgeopt.validate import float_array, int_array, integer, seed_number

TILE = 128
"""Pixels along the longest side of a tile."""
WEIGHTS, DISTRIBUTIONS = ("learnt", "equal"), ("learnt", "learnt for equal", "robust soliton")
_MAGIC = b"NTR1"
_FIXED_BITS = 64  # of the header: height, width, checksum
_KIND, _SCHEMA_VERSION = "ntrscc", 1


@dataclass(frozen=True, eq=False)
class Header:
    """What every receiver must have before the stream makes sense; it is sent robustly, by other means.

    Parameters
    ----------
    height, width : of the picture, pixels.
    hyper : int8 [tiles, hyper, h, w], the hyperprior.
    checksum : of the code, its seed, and the network.
    """

    height: int
    width: int
    hyper: NDArray[np.int8]
    checksum: int

    def __repr__(self) -> str:
        return f"Header({self.height} x {self.width}, hyper={self.hyper.size} numbers, checksum={self.checksum:#010x})"

    def to_bytes(self) -> bytes:
        """Return the header as bytes; the hyperprior is packed by zlib, not by its distribution."""
        fixed = np.array([self.height, self.width, self.checksum, *self.hyper.shape], "<u4").tobytes()
        return _MAGIC + fixed + zlib.compress(self.hyper.tobytes(), 9)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises
        ------
        InvalidFileError
            If it is no header, or damaged.
        """
        size = len(_MAGIC) + 7 * 4
        if len(data) < size or data[: len(_MAGIC)] != _MAGIC:
            raise InvalidFileError(f"header: {quoted(bytes(data[:8]))}...: expected one that begins with {_MAGIC!r}")
        height, width, checksum, *shape = np.frombuffer(data[len(_MAGIC) : size], "<u4").tolist()
        count = shape[0] * shape[1] * shape[2] * shape[3]
        if not 0 < count <= MAX_BITS:
            raise InvalidFileError(f"header: hyper of shape {shape}: expected 1 to {MAX_BITS} numbers")
        try:
            packed = zlib.decompressobj()
            numbers = packed.decompress(data[size:], count)
            more = packed.decompress(packed.unconsumed_tail, 1)
            if len(numbers) != count or more or not packed.eof or packed.unused_data:
                raise InvalidFileError(f"header: damaged: expected {count} numbers, and nothing after them")
        except zlib.error as error:
            raise InvalidFileError(f"header: damaged: {error}") from None
        return cls(height, width, np.frombuffer(numbers, np.int8).reshape(shape), checksum)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a picture is cut: into tiles of sides that are multiples of 32, at most `TILE`; its edge is repeated to fill the last.

    Parameters
    ----------
    height, width : of the picture.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            integer(name, getattr(self, name), low=1)
        y, x = self.counts
        if (y * self.sides[0]) * (x * self.sides[1]) > MAX_BITS:
            raise InvalidProblemError(
                f"picture: {self.height} x {self.width} pixels: expected at most {MAX_BITS} once filled up to whole tiles"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a tile."""
        return tuple(min(TILE, -(-side // SHRINK) * SHRINK) for side in (self.height, self.width))  # type: ignore[return-value]

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles down and across."""
        return -(-self.height // self.sides[0]), -(-self.width // self.sides[1])

    def cut(self, picture: Picture) -> Tensor:
        """Return tiles float32 [N, 3, h, w] from 0 to 1."""
        (rows, columns), (h, w) = self.counts, self.sides
        filled = np.pad(picture, ((0, rows * h - self.height), (0, columns * w - self.width), (0, 0)), mode="edge")
        parts = filled.reshape(rows, h, columns, w, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, h, w)
        return torch.from_numpy(parts.astype(np.float32) / 255)

    def join(self, tiles: Tensor) -> Picture:
        """Return the picture uint8 [H, W, 3] of tiles."""
        (rows, columns), (h, w) = self.counts, self.sides
        whole = (tiles.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        joined = whole.reshape(rows, columns, 3, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
        return np.ascontiguousarray(joined[: self.height, : self.width])


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture at the sender.

    Parameters
    ----------
    header : for every receiver.
    bits : uint8 [K].
    code : of the stream.
    weights : float64 [K], of bits: how often they are drawn.
    header_bits : what the header takes at least: the hyperprior by its distribution, and 64 bits.
    source_bits : what the numbers take at least, given the hyperprior.
    """

    header: Header
    bits: Bits
    code: LtCode
    weights: NDArray[np.float64]
    header_bits: float
    source_bits: float

    def __repr__(self) -> str:
        return f"Encoded({self.header}, bits={len(self.bits)}, source_bits={self.source_bits:.0f})"

    def header_symbols(self, snr_db: float = 0.0) -> int:
        """Return how many symbols the header takes with an ideal code at a signal-to-noise ratio, that of the worst receiver."""
        return int(np.ceil(self.header_bits / Awgn(snr_db).capacity))

    def symbols(self, count: int, *, first: int = 0) -> Bits:
        """Return symbols first, ..., first + count - 1 of the stream, bits uint8."""
        return self.code.graph(len(self.bits), count, self.weights, first=first).encode(self.bits)

    def stream(self, chunk: int = 1024) -> Iterator[Bits]:
        """Yield symbols without end, uint8 [chunk] at a time."""
        return self.code.stream(self.bits, self.weights, chunk=chunk)


@dataclass(frozen=True, eq=False)
class Ntrscc:
    """One rateless stream of a picture for unequal receivers.

    Transforms make numbers of a picture, a hyperprior says how they are distributed, and their bits go into parities of a fountain
    code of which important bits are more often part. A receiver takes as many symbols as it wants, runs as many rounds of belief
    propagation as it can, starting from what the hyperprior says of bits, and makes the picture of the means and variances that it
    is left with.

    Parameters
    ----------
    network : what was learnt.
    weights : of bits: ``learnt``, or ``equal``.
    distribution : of degrees: ``learnt``; ``learnt for equal`` weights; ``robust soliton``.
    priors : whether belief propagation starts from what the hyperprior says; if not, that is used after it alone.

    Examples
    --------
    >>> system = Ntrscc.pretrained()
    >>> picture = np.zeros((32, 32, 3), np.uint8) + np.arange(0, 256, 8, dtype=np.uint8)[:, None]
    >>> sent = system.encode(picture, seed=1)
    >>> heard = Awgn(5.0).receive(sent.symbols(600), np.random.default_rng(0))
    >>> system.decode(sent.header, heard, iterations=10, seed=1).shape
    (32, 32, 3)
    """

    network: Network
    weights: str = "learnt"
    distribution: str = "learnt"
    priors: bool = True

    def __post_init__(self) -> None:
        for name, known in (("weights", WEIGHTS), ("distribution", DISTRIBUTIONS)):
            if (value := getattr(self, name)) not in known:
                raise InvalidProblemError(f"{name} = {quoted(value)}: expected one of {', '.join(known)}")

    def __repr__(self) -> str:
        return f"Ntrscc({self.network.shape}, weights={self.weights!r}, distribution={self.distribution!r}, priors={self.priors})"

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    # --- both ends ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, picture: Any, seed: int) -> Encoded:
        """Return a picture as header and stream.

        Parameters
        ----------
        picture : anything that `as_picture` takes.
        seed : that sender and receivers share.
        """
        whole = as_picture(picture)
        tiles = Tiles(*whole.shape[:2])
        numbers, hyper = self.network.analyse(tiles.cut(whole))
        rounded = hyper.round()
        side = self.side(rounded)
        cells = cells_of(numbers - side.mean)
        bits = BITS[cells].to(torch.uint8).reshape(-1).numpy()
        code, weights = self.code_of(side, seed)
        return Encoded(
            header=Header(
                tiles.height, tiles.width, rounded.to(torch.int8).numpy(), self._checksum(code, weights, side)
            ),
            bits=bits,
            code=code,
            weights=weights,
            header_bits=float(self.network.hyper_bits(rounded).sum()) + _FIXED_BITS,
            source_bits=float(-side.log_p.gather(-1, cells[..., None]).sum() / np.log(2)),
        )

    def receiver(self, header: Header, seed: int) -> "Receiver":
        """Return who decodes a stream.

        Raises
        ------
        InvalidProblemError
            If the header is of another seed, code or network.
        """
        return Receiver(self, header, seed)

    def decode(self, header: Header, heard: ArrayLike, iterations: int, seed: int, *, first: int = 0) -> Picture:
        """Return the picture uint8 [H, W, 3] that a receiver makes of what it has heard.

        Parameters
        ----------
        header : of the stream.
        heard : float64 [n], log-likelihood ratios of symbols first, first + 1, ... (see `edgeopt.coding.Channel`).
        iterations : rounds of belief propagation, T.
        seed : that sender and receivers share.
        first : number of the first symbol that was heard.

        Raises
        ------
        InvalidProblemError
            If nothing was heard, a ratio is no number, or the header is of another seed, code or network.
        """
        return self.receiver(header, seed).pictures(heard, [iterations], first=first)[0]

    @torch.no_grad()
    def side(self, hyper: Tensor) -> Side:
        """Return what both ends know from the hyperprior [N, hyper, h, w].

        In double precision: weights of bits become whole numbers, which machines that round differently must agree on.
        """
        found = self._double.side(hyper.double())
        mean, log_scale, log_p, ratios = (part.float() for part in found[:-1])
        return Side(mean, log_scale, log_p, ratios, found.log_weights)

    @cached_property
    def _double(self) -> Network:
        return copy.deepcopy(self.network).double()

    def code_of(self, side: Side, seed: int) -> tuple[LtCode, NDArray[np.float64]]:
        """Return the code of a picture, and the weights [K] of its bits."""
        size = side.ratios.numel()
        if self.distribution == "robust soliton":
            code = LtCode.robust_soliton(size, seed=seed)
        else:
            logits = self.network.degree_logits if self.distribution == "learnt" else self.network.plain_logits
            code = LtCode(DEGREES, logits.detach().double().softmax(0).numpy(), seed)
        equal = self.weights == "equal"
        weights = np.ones(size) if equal else side.log_weights.detach().reshape(-1).double().exp().numpy()
        return code, weights

    def _checksum(self, code: LtCode, weights: NDArray[np.float64], side: Side) -> int:
        return zlib.crc32(f"{code.checksum(len(weights), weights)} {self._fingerprint}".encode())

    @cached_property
    def _fingerprint(self) -> int:
        found = 0
        for name, value in sorted(self.network.state_dict().items()):
            found = zlib.crc32(value.numpy().tobytes(), zlib.crc32(name.encode(), found))
        return found

    def flops(self, height: int, width: int) -> float:
        """Return the FLOPs of everything that a receiver computes but belief propagation: one transform and the hyperprior's."""
        tiles = Tiles(height, width)
        h, w = tiles.sides
        count = tiles.counts[0] * tiles.counts[1]
        hyper = torch.zeros(count, self.network.shape.hyper, h // SHRINK, w // SHRINK)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            side = self.network.side(hyper)
            self.network.synthesise(side, torch.zeros_like(side.mean), torch.zeros_like(side.mean))
        return float(counter.get_total_flops())

    def flops_per_iteration(self) -> float:
        """Return the FLOPs of a round of belief propagation per symbol: 12 for each edge."""
        logits = self.network.degree_logits if self.distribution == "learnt" else self.network.plain_logits
        return OPERATIONS * float((torch.tensor(DEGREES) * logits.detach().softmax(0)).sum())

    # --- files ----------------------------------------------------------------------------------------------------------

    @classmethod
    def pretrained(cls) -> Self:
        """Return the system that comes with the package."""
        return cls.load(Path(str(files("edgeopt.coding") / "files" / "ntrscc.safetensors")))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt to a ``.safetensors`` file."""
        header = {"kind": _KIND, "schema_version": _SCHEMA_VERSION, "shape": asdict(self.network.shape)}
        save_weights(path, header, self.network)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If it is no such file, or damaged.
        """
        return cls(load_weights(path, _KIND, _SCHEMA_VERSION, _network)[0])


def _network(header: Fields) -> Network:
    given = header.table("shape")
    return Network(Shape(**{name: given.integer(name, low=1, high=512) for name in ("width", "channels", "hyper")}))


class Receiver:
    """Who decodes one stream; what follows from its header is computed once.

    Parameters
    ----------
    system : that the sender uses, too.
    header : of the stream.
    seed : that both share.

    Attributes
    ----------
    ratios : float64 [K], log-likelihood ratios of bits before anything was heard.
    """

    @torch.no_grad()
    def __init__(self, system: Ntrscc, header: Header, seed: int) -> None:
        self.system, self.header = system, header
        self.tiles = Tiles(header.height, header.width)
        h, w = self.tiles.sides
        count = self.tiles.counts[0] * self.tiles.counts[1]
        expected = (count, system.network.shape.hyper, h // SHRINK, w // SHRINK)
        if header.hyper.shape != expected:
            raise InvalidProblemError(
                f"header: a hyperprior of shape {list(header.hyper.shape)}: expected {list(expected)}, of another network or picture"
            )
        self._side = system.side(torch.from_numpy(header.hyper.astype(np.float32)))
        self.code, self.weights = system.code_of(self._side, seed_number("seed", seed))
        if system._checksum(self.code, self.weights, self._side) != header.checksum:
            raise InvalidProblemError(
                f"seed = {seed}: expected the one of the sender, and its network and code: the header's checksum is of others"
            )
        self.ratios = self._side.ratios.reshape(-1).double().numpy()

    def graph(self, count: int, *, first: int = 0) -> Graph:
        """Return the graph of symbols of the stream."""
        return self.code.graph(len(self.ratios), count, self.weights, first=first)

    def beliefs(self, heard: ArrayLike, iterations: Sequence[int], *, first: int = 0) -> NDArray[np.float64]:
        """Return log-likelihood ratios [I, K] of bits by what was heard alone, after several numbers of iterations."""
        ratios = float_array("heard", heard, (None,))
        if not len(ratios):
            raise InvalidProblemError("heard: no symbols: expected at least one")
        prior = self.ratios if self.system.priors else np.zeros_like(self.ratios)
        decoder = BeliefPropagation(self.graph(len(ratios), first=first))
        wanted = int_array("iterations", iterations, (None,), low=0)
        return np.asarray(decoder.decode(ratios, prior, wanted.tolist()) - prior)

    @torch.no_grad()
    def picture(self, extrinsic: ArrayLike | None = None) -> Picture:
        """Return the picture of log-likelihood ratios [K] of bits by what was heard; of the header alone, without any."""
        given = (
            np.zeros_like(self.ratios) if extrinsic is None else float_array("extrinsic", extrinsic, self.ratios.shape)
        )
        ratios = torch.from_numpy(given.astype(np.float32)).view(self._side.ratios.shape)
        mean, variance = soft_values(self._side.log_p, ratios)
        return self.tiles.join(self.system.network.synthesise(self._side, mean, variance))

    def pictures(self, heard: ArrayLike, iterations: Sequence[int], *, first: int = 0) -> list[Picture]:
        """Return the picture after each of several numbers of iterations, ascending, of one run to the last."""
        return [self.picture(beliefs) for beliefs in self.beliefs(heard, iterations, first=first)]
