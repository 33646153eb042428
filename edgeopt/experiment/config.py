"""What a training run is in plain values, and how that is written down."""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.experiment.options import Options, checked, hints_of, label, plain, unknown
from edgeopt.files import read_file
from edgeopt.problems import ClientSelection, SplitTraining

PARTITIONS = ("iid", "dirichlet", "shards", "column")
Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
KINDS = (SplitTraining.kind, ClientSelection.kind)
"""The kinds of problems that say where clients are."""
MAX_CONFIG_BYTES = 1 << 18
MAX_PARTS = 64
"""Parts of a name such as ``algorithm.optimizer.lr``; the parser's work grows with their square."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that is picked by its name, and its options; what they may be, the picked thing says.

    Parameters
    ----------
    name : of an algorithm, a model, a planner.
    options : plain values.
    """

    name: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataChoice:
    """Which data there is, and who holds it.

    Parameters
    ----------
    name : as in `edgeopt.data.load_data`.
    folder : where its files are.
    partition : ``iid``, ``dirichlet``, ``shards``, or ``column``: one client for each group of samples, such as a document.
    alpha : of the Dirichlet distribution.
    shards : per client.
    clients : default: the devices of the network's file, or 20; with ``column`` the groups decide.
    context : bytes of a sample of text. Default: that of the data set.
    """

    name: str = "digits"
    folder: str | None = None
    partition: str = "iid"
    alpha: float = 0.5
    shards: int = 2
    clients: int | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChoice:
    """Where the clients are.

    Parameters
    ----------
    file : a saved `SplitTraining` or `ClientSelection` problem. Default: a random network.
    kind : what the network is for: ``split-training``, devices around one server, or ``client-selection``, several
        servers with overlapping coverage. Default: as the file, or as the algorithm needs it.
    servers : of the random network. Default: 1, and 3 for an algorithm of several.
    seed : of the random network. Default: the experiment's.
    rates, downlink_rates, carbon, availability : files of `edgeopt.series.TimeSeries`: what rates up and down, the grams of
        CO2 per kWh, and who can be picked are over virtual time. Client u follows column u, modulo their number.
    device_table : a file of `edgeopt.device_profiles.read_device_profiles`; without ``devices``, an even share of each.
    options : ``devices``, shares by name of device, and ``utilisation``, see `edgeopt.device_profiles.assign_devices`;
        arguments of `EdgeNetwork.random`, and ``rate_sigma``, ``failure_probability``, ``joules_per_flop``,
        ``fed_rate_bps``, ``idle_s`` as in `edgeopt.training.EdgeTiming.from_network`.
    """

    file: str | None = None
    kind: str | None = None
    servers: int | None = None
    seed: int | None = None
    rates: str | None = None
    downlink_rates: str | None = None
    carbon: str | None = None
    availability: str | None = None
    device_table: str | None = None
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The values of an `Experiment`, checked, read and written; what it is made of stands on them."""

    algorithm: Choice = field(default_factory=lambda: Choice("fedavg"))
    codec: Choice | None = None
    data: DataChoice = field(default_factory=DataChoice)
    model: Choice = field(default_factory=lambda: Choice("small-cnn"))
    network: NetworkChoice = field(default_factory=NetworkChoice)
    problem: Options = field(default_factory=dict)
    planner: Choice = field(default_factory=lambda: Choice("fixed"))
    rounds: int = 20
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "fp32"
    evaluate_every: int = 1
    until_accuracy: float | None = None
    source: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for key, low in (("rounds", 1), ("seed", 0), ("evaluate_every", 1)):
            if getattr(self, key) < low:
                raise self.wrong("", key, getattr(self, key), f"a whole number >= {low}")
        if self.until_accuracy is not None and not 0 <= self.until_accuracy <= 1:
            raise self.wrong("", "until_accuracy", self.until_accuracy, "a share of the samples, from 0 to 1")
        if self.data.partition not in PARTITIONS:
            raise self.wrong("data", "partition", self.data.partition, "one of " + ", ".join(PARTITIONS))
        if self.data.clients is not None and self.data.clients < 1:
            raise self.wrong("data", "clients", self.data.clients, "a whole number >= 1")
        if self.network.kind is not None and self.network.kind not in KINDS:
            raise self.wrong("network", "kind", self.network.kind, "one of " + ", ".join(KINDS))

    def wrong(self, table: str, key: str, value: object, expected: str) -> InvalidProblemError:
        """Return the error about a value of this experiment."""
        kind = InvalidFileError if self.source else InvalidProblemError
        return kind(f"{label(self.source, table)}{key} = {quoted(value)}: expected {expected}")

    # --- reading and writing -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a ``.toml`` file, or a ``.json`` file that `save` wrote."""
        if Path(path).suffix == ".json":
            document = storage.parse_json_object(path, read_file(path, MAX_CONFIG_BYTES))
            return cls.from_dict(document, source=os.fspath(path), folder=Path(path).absolute().parent)
        return cls.from_toml(path)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """Read a TOML file. Paths in it are relative to its folder.

        Raises
        ------
        InvalidFileError
            Naming file, table, key, value and what was expected.
        OSError
            If the file cannot be opened.
        """
        data = read_file(path, MAX_CONFIG_BYTES)
        if max(part.count(b".") for part in re.split(rb"[=\n{,]", data)) > MAX_PARTS:
            raise InvalidFileError(f"{path}: not valid TOML: expected no name of more than {MAX_PARTS} parts")
        try:
            document = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise InvalidFileError(f"{path}: not valid TOML: {quoted(str(error))[1:-1]}") from None
        return cls.from_dict(document, source=os.fspath(path), folder=Path(path).absolute().parent)

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, source: str = "", folder: str | os.PathLike[str] | None = None
    ) -> Self:
        """Build an experiment from plain values: tables as in a TOML file.

        Parameters
        ----------
        source : file they come from, for messages.
        folder : what paths are relative to. Default: they stay as they are.
        """
        given = dict(values)
        hints = hints_of(cls)
        fields_: dict[str, Any] = {"source": source}
        for key, value in given.items():
            if key not in hints or key == "source":
                raise unknown(source, "", key, value, [name for name in hints if name != "source"])
            if key in _TABLES or key == "problem":
                if not isinstance(value, Mapping):
                    raise InvalidFileError(f"{label(source, '')}{key} = {quoted(value)}: expected a table [{key}]")
                table = plain(source, key, value)
                fields_[key] = table if key == "problem" else _table(_TABLES[key], table, source, key, folder)
            else:
                fields_[key] = checked(source, "", key, plain(source, "", {key: value})[key], hints[key])
        return cls(**fields_)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without what is None: JSON and TOML can hold them, and `from_dict` reads them."""
        found: dict[str, Any] = {}
        for key in (entry.name for entry in fields(self) if entry.name != "source"):
            value = getattr(self, key)
            if key in _TABLES and value is not None:
                value = asdict(value)
                options = value.pop("options", {})
                value = {name: entry for name, entry in value.items() if entry is not None} | options
            if value is not None:
                found[key] = json.loads(json.dumps(dict(value) if key == "problem" else value))  # a deep copy
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the experiment to a ``.json`` file, atomically, with absolute paths in it."""
        moved = type(self).from_dict(self.to_dict(), folder=Path.cwd())
        storage.write_text(path, json.dumps(moved.to_dict(), indent=1) + "\n")


_TABLES: dict[str, type[Choice | DataChoice | NetworkChoice]] = {
    "algorithm": Choice, "codec": Choice, "data": DataChoice, "model": Choice, "network": NetworkChoice,
    "planner": Choice,
}  # fmt: skip
_PATHS = {
    "data": ("folder",),
    "model": ("folder", "adapters"),
    "network": ("file", "rates", "downlink_rates", "carbon", "availability", "device_table"),
    "planner": ("file", "policy"),
}


def _table(
    cls: type[Choice | DataChoice | NetworkChoice],
    values: Options,
    source: str,
    table: str,
    folder: str | os.PathLike[str] | None,
) -> Any:
    hints = {name: hint for name, hint in hints_of(cls).items() if name != "options"}
    own = {key: checked(source, table, key, value, hints[key]) for key, value in values.items() if key in hints}
    others = {key: value for key, value in values.items() if key not in hints}
    if folder is not None:
        for place in (own, others):
            place |= {
                key: str(Path(folder) / place[key]) for key in _PATHS.get(table, ()) if isinstance(place.get(key), str)
            }
    if others and cls is DataChoice:
        key = next(iter(others))
        raise unknown(source, table, key, others[key], list(hints))
    if cls is Choice and "name" not in own:
        raise InvalidFileError(f"{label(source, table)}name: expected a value, got nothing")
    made: Any = cls
    return made(**own) if cls is DataChoice else made(**own, options=others)
