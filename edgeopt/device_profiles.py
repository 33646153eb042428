"""`DeviceProfile`: what a device computes, remembers and spends; a table of public figures, and shares of them for clients."""

import csv
import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import in_file
from edgeopt.files import read_file
from edgeopt.network import EdgeNetwork
from edgeopt.rng import stream
from edgeopt.validate import by_name, real

_MOST_BYTES = 1 << 20  # of a table
_LONGEST_NAME = 200
_NUMBERS = ("flops", "memory_bytes", "memory_bytes_per_s", "power_w")
_NUMBER = re.compile(r"\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    r"""A kind of device.

    Joules per FLOP are power over rate, and tokens per second of a language model at most

    .. math:: \min(B / S, f / c)

    with B bytes per second from memory, S bytes of weights that a token reads, f FLOP/s, c FLOPs per token: a decoder that
    handles one sequence reads its weights for every token. Both are bounds: a load reaches a part of the peak.

    Parameters
    ----------
    name : of the device.
    flops : FLOP/s at peak.
    memory_bytes : memory, bytes.
    memory_bytes_per_s : bandwidth of the memory, byte/s.
    power_w : power under full load, W.
    precision : of the FLOPs.
    source : where the figures are from, and which of them are derived from others, how.

    Raises
    ------
    InvalidProblemError
        If a number is not above 0, or the name is empty, longer than a line, or none.

    Examples
    --------
    >>> nano = device_profile("jetson-nano")
    >>> f"{nano.joules_per_flop:.3g}"
    '2.12e-11'
    >>> nano.tokens_per_s(weight_bytes=1e9)
    25.6
    """

    name: str
    flops: float
    memory_bytes: float
    memory_bytes_per_s: float
    power_w: float
    precision: str = "fp16"
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "precision", "source"):
            if not isinstance(getattr(self, name), str):
                raise InvalidProblemError(f"{name} = {quoted(getattr(self, name))}: expected a text")
        if not (self.name.isprintable() and 0 < len(self.name.strip()) <= _LONGEST_NAME):
            raise InvalidProblemError(
                f"name = {quoted(self.name)}: expected one line of 1 to {_LONGEST_NAME} characters"
            )
        for name in _NUMBERS:
            object.__setattr__(self, name, real(f"{self.name}: {name}", getattr(self, name), positive=True))

    @property
    def joules_per_flop(self) -> float:
        """Energy of a FLOP at peak, J: no load takes less."""
        return self.power_w / self.flops

    def tokens_per_s(self, weight_bytes: float, flops_per_token: float = 0.0) -> float:
        """Return how many tokens of one sequence a decoder makes in a second, at most.

        Parameters
        ----------
        weight_bytes : bytes of the weights that a token reads: of a mixture of experts, those of its experts.
        flops_per_token : default 0: only the memory counts.
        """
        read = self.memory_bytes_per_s / weight_bytes if weight_bytes > 0 else math.inf
        return min(read, self.flops / flops_per_token if flops_per_token > 0 else math.inf)


def _nvidia(
    name: str, flops: float, memory_gb: float, gb_per_s: float, power_w: float, source: str, precision: str = "fp16"
) -> DeviceProfile:
    return DeviceProfile(
        name=name, flops=flops, memory_bytes=1e9 * memory_gb, memory_bytes_per_s=1e9 * gb_per_s, power_w=power_w,
        precision=precision, source=source,
    )  # fmt: skip


DEVICE_PROFILES: tuple[DeviceProfile, ...] = (
    _nvidia("jetson-nano", 472e9, 4, 25.6, 10, "NVIDIA data sheet, Jetson Nano 4 GB, 10 W mode"),
    _nvidia(
        "jetson-tx2", 1.33e12, 8, 59.7, 15,
        "NVIDIA data sheet, Jetson TX2 8 GB; FLOP/s at the highest clock, power of the 15 W mode, whose clock may be lower",
    ),
    _nvidia(
        "jetson-orin-nano-8gb", 1.28e12, 8, 68, 15,
        "NVIDIA data sheet, 15 W mode; FLOP/s derived: 1,024 CUDA cores x 2 x 625 MHz", "fp32",
    ),
    _nvidia(
        "jetson-agx-xavier", 11e12, 32, 136.5, 30,
        "NVIDIA data sheet, Jetson AGX Xavier 32 GB, tensor cores; FLOP/s at the highest clock, power of the 30 W mode, whose "
        "clock may be lower",
    ),
    _nvidia(
        "jetson-agx-orin-64gb", 5.3e12, 64, 204.8, 60,
        "NVIDIA technical brief, Jetson AGX Orin 64 GB, CUDA cores at the highest clock; power is the limit of 60 W", "fp32",
    ),
    _nvidia("l4", 121e12, 24, 300, 72, "NVIDIA data sheet; FLOP/s derived: half of the figure with sparsity"),
    _nvidia("rtx-4090", 82.6e12, 24, 1008, 450, "NVIDIA Ada whitepaper, CUDA cores", "fp32"),
    _nvidia("v100-sxm2-32gb", 125e12, 32, 900, 300, "NVIDIA data sheet, tensor cores"),
    _nvidia("a100-sxm-80gb", 312e12, 80, 2039, 400, "NVIDIA data sheet, tensor cores without sparsity"),
    _nvidia("h100-sxm-80gb", 989e12, 80, 3350, 700, "NVIDIA data sheet; FLOP/s derived: half of the figure with sparsity"),
)  # fmt: skip
"""Devices by the public figures of their makers, none of them measured by us; powers are limits of modules or boards.

Where FLOP/s are those of a clock that the limit may not allow, `source` says so: joules per FLOP are a bound from below then, too.

There are no phones: their makers publish neither FLOP/s nor joules. `read_device_profiles` takes what has been measured.
"""


def device_profile(name: str) -> DeviceProfile:
    """Return the profile of `DEVICE_PROFILES` with this name.

    Raises
    ------
    InvalidProblemError
        If there is none; the message lists the names.

    Examples
    --------
    >>> device_profile("a100-sxm-80gb").flops
    312000000000000.0
    """
    return by_name("device", name, {profile.name: profile for profile in DEVICE_PROFILES})


def read_device_profiles(path: str | os.PathLike[str]) -> tuple[DeviceProfile, ...]:
    """Return the profiles of a table: a header and a row for each device, commas, semicolons or tabs between.

    Columns are ``name``, ``flops`` (FLOP/s), ``memory_bytes``, ``memory_bytes_per_s``, and ``power_w`` or
    ``joules_per_flop``; there may be ``precision`` and ``source``, and others, which are not looked at.

    Raises
    ------
    InvalidFileError
        If it is no such table; the message names file, row, column and what was expected.
    """
    with in_file(path):
        try:
            text = read_file(path, _MOST_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidFileError("not all of it is UTF-8") from None
        head = text.partition("\n")[0]
        try:
            header, *rows = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=head.count), strict=True)
        except (csv.Error, ValueError) as error:
            raise InvalidFileError(f"expected a table with a header: {error}") from None
        columns = [name.strip().lower() for name in header]
        energy = "joules_per_flop" if "joules_per_flop" in columns else "power_w"
        if energy != "power_w" and "power_w" in columns:
            raise InvalidFileError(f"columns {quoted(columns)}: expected either power_w or joules_per_flop")
        for name in ("name", *_NUMBERS[:-1], energy, "precision", "source"):
            if (count := columns.count(name)) != 1 and (count or name not in ("precision", "source")):
                raise InvalidFileError(f"columns {quoted(columns)}: expected one called {name}")
        found = [
            _profile(number, columns, row, energy) for number, row in enumerate(rows, 1) if any(map(str.strip, row))
        ]
        if not found:
            raise InvalidFileError("no row under the header: expected at least one")
        names = [profile.name for profile in found]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise InvalidFileError(f"name {quoted(repeated)} is there {names.count(repeated)} times: expected once")
    return tuple(found)


def _profile(number: int, columns: list[str], cells: list[str], energy: str) -> DeviceProfile:
    if any(map(str.strip, cells[len(columns) :])):  # a decimal comma where commas separate, say
        raise InvalidFileError(f"row {number}: {len(cells)} cells: expected {len(columns)}, as the header has")
    row = dict(zip(columns, cells, strict=False))
    values = {}
    for name in (*_NUMBERS[:-1], energy):
        text = row.get(name, "").strip()
        if not _NUMBER.fullmatch(text) or not 0 < float(text) < math.inf:
            raise InvalidFileError(f"row {number}: {name} = {quoted(text)}: expected a number above 0")
        values[name] = float(text)
    if energy != "power_w":
        values["power_w"] = values.pop(energy) * values["flops"]
    texts = {name: row[name].strip() for name in ("precision", "source") if row.get(name)}
    try:
        return DeviceProfile(name=row.get("name", "").strip(), **texts, **values)  # type: ignore[arg-type]
    except InvalidProblemError as error:
        raise InvalidFileError(f"row {number}: {error}") from None


class AssignedDevices(NamedTuple):
    """A network whose devices are of known kinds.

    Parameters
    ----------
    network : with ``device_flops`` and ``device_memory_bytes`` of the profiles.
    profiles : the kinds.
    kind : int64 [U], which of them each device is.
    joules_per_flop : float64 [U], of each device.
    """

    network: EdgeNetwork
    profiles: tuple[DeviceProfile, ...]
    kind: NDArray[np.int64]
    joules_per_flop: NDArray[np.float64]


def assign_devices(
    network: EdgeNetwork,
    shares: Mapping[str | DeviceProfile, float],
    *,
    utilisation: float = 1.0,
    seed: int = 0,
) -> AssignedDevices:
    """Return the network with its devices drawn from profiles, each with its share of them.

    Of U devices, a share s gets s U, rounded so that all together are U (largest remainders, the first on ties); which
    devices they are is drawn.

    Parameters
    ----------
    shares : by profile, or name in `DEVICE_PROFILES`: which part of the devices; they need not add up to one.
    utilisation : which part of the peak a load reaches, above 0 and at most 1: rates are so much less, joules per FLOP so much
        more.
    seed : same seed, same devices.

    Raises
    ------
    InvalidProblemError
        If a name is not known, a share is negative or none is above 0, or `utilisation` is out of range.

    Examples
    --------
    >>> network = EdgeNetwork.random(2, 10, seed=0)
    >>> found = assign_devices(network, {"jetson-nano": 0.7, "jetson-agx-orin-64gb": 0.3})
    >>> np.bincount(found.kind).tolist(), sorted(set(found.network.device_flops.tolist()))
    ([7, 3], [472000000000.0, 5300000000000.0])
    """
    profiles = tuple(key if isinstance(key, DeviceProfile) else device_profile(key) for key in shares)
    given = zip(profiles, shares.values(), strict=True)
    parts = np.array([real(f"share of {profile.name}", share, nonnegative=True) for profile, share in given])
    if not 0 < parts.sum() < math.inf:
        raise InvalidProblemError(f"shares = {quoted(parts.tolist())}: expected numbers of which one is above 0")
    if not 0 < real("utilisation", utilisation) <= 1:
        raise InvalidProblemError(f"utilisation = {quoted(utilisation)}: expected a number above 0 and at most 1")
    exact = parts / parts.sum() * network.num_devices
    count = np.floor(exact).astype(np.int64)
    count[np.argsort(count - exact, kind="stable")[: network.num_devices - count.sum()]] += 1
    kind = stream(seed, "device profiles").permutation(np.repeat(np.arange(len(profiles)), count))
    flops, memory, joules = (
        np.array([getattr(profile, name) for profile in profiles])[kind]
        for name in ("flops", "memory_bytes", "joules_per_flop")
    )
    return AssignedDevices(
        network=network.replace(device_flops=utilisation * flops, device_memory_bytes=memory),
        profiles=profiles,
        kind=kind,
        joules_per_flop=joules / utilisation,
    )
