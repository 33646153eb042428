"""The seam between decisions and training: the plan of a round, planners that give it, what a round measured.

A training loop asks a `Planner` for the `RoundPlan` of every round, hands it the `Feedback` of the round before, and
knows nothing else about how the plan was made.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.convergence import ConvergenceEstimate
from edgeopt.display import one_line
from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.foreign import as_array
from edgeopt.npz import flags, numbers
from edgeopt.series import TimeSeries
from edgeopt.validate import bool_array, flag, float_array, int_array, listed

_KIND = "schedule"
_SCHEMA_VERSION = 2  # version 1 lacked the columns that came later

RATES = ("device_flops", "uplink_bps", "downlink_bps", "fed_uplink_bps", "fed_downlink_bps")
"""What `Feedback` may measure per client, in FLOP/s and bit/s; the fields of `SplitTraining` of the same names."""

MEASURED = ("client_seconds", "client_peak_bytes", "client_energy_j", *RATES)
"""What `Feedback` has per entry in floats, nan where it was not measured."""

# defaults: one value for every entry
_FALSE, _TRUE, _NAN = (functools.partial(np.array, value) for value in (False, True, np.nan))


class Column(NamedTuple):
    """What a plan says of each of its entries.

    Parameters
    ----------
    name : field of `RoundPlan` and `ClientPlan`.
    dtype : of the array, int32 or float64; only the latter may be infinite.
    default : where a plan does not say; None for what it has to say.
    least : smallest value.
    since : version of schedule files that has it first.
    """

    name: str
    dtype: type[np.int32 | np.float64]
    default: float | None
    least: float
    since: int = 1

    def array(self, value: ArrayLike, size: int) -> NDArray[Any]:
        """Return the column of `size` entries, read-only and checked."""
        if self.dtype is np.int32:
            return int_array(self.name, value, (size,), low=int(self.least))
        return float_array(self.name, value, (size,), nonnegative=True, finite=False)


COLUMNS = (
    Column("client", np.int32, None, 0),
    Column("server", np.int32, 0, 0),
    Column("batch_size", np.int32, 0, 0),
    Column("cut_layer", np.int32, 0, 0),
    Column("local_steps", np.int32, 1, 1),
    Column("local_epochs", np.int32, 0, 0, since=2),
    Column("budget_bytes", np.float64, np.inf, 0, since=2),
    Column("rank", np.int32, 0, 0, since=2),
    Column("experts", np.int32, 0, 0, since=2),
)
"""What a plan is made of: arrays, entries, files, checkpoints and messages of Flower follow from it."""

_DEFAULTS = {column.name: functools.partial(np.array, column.default) for column in COLUMNS}


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """What one client does in a round: one entry of a `RoundPlan`.

    Parameters
    ----------
    client : id of the client, from 0.
    server : the server it trains with.
    batch_size : samples per local step; 0 leaves it to the algorithm.
    cut_layer : layers 1 to ``cut_layer`` are trained on the client, the others on the server; 0 leaves it to the algorithm.
    local_steps : mini-batches before the client reports.
    local_epochs : passes over the client's own samples before it reports; 0: as many mini-batches as `local_steps` says.
    budget_bytes : what the client may send in one message at the cut.
    rank : of low-rank adapters; 0 leaves it to the algorithm.
    experts : how many experts of a mixture the client trains per mini-batch; 0 for no limit.
    """

    client: int
    server: int = 0
    batch_size: int = 0
    cut_layer: int = 0
    local_steps: int = 1
    local_epochs: int = 0
    budget_bytes: float = np.inf
    rank: int = 0
    experts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundPlan:
    """Who trains in a round, with which server, and how much: M entries, kept as arrays.

    A client that several servers have picked has one entry for each of them: a conflict, whose outcome is up to the
    environment. A round without entries is a valid plan. Entries are in the order in which clients train where the
    order matters.

    Parameters
    ----------
    client : int32 [M], ids from 0.
    server : int32 [M], server of each entry. Default 0.
    batch_size, cut_layer, rank : int32 [M], as in `ClientPlan`. Default 0: left to the algorithm.
    local_steps : int32 [M], >= 1. Default 1.
    local_epochs : int32 [M]. Where it is above 0 it counts in place of `local_steps`. Default 0.
    budget_bytes : float64 [M]. Default inf: no limit.
    experts : int32 [M]. Default 0: no limit.
    aggregate : whether the clients' models are averaged at the end of the round. Default True.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected; also if a server has picked a client twice.

    Examples
    --------
    >>> plan = RoundPlan(client=[0, 2, 2], server=[0, 0, 1], batch_size=[8, 16, 16], cut_layer=3)
    >>> plan[1].client, plan[1].batch_size, plan[1].budget_bytes
    (2, 16, inf)
    >>> plan.conflicts
    array([2], dtype=int32)
    """

    client: NDArray[np.int32]
    server: NDArray[np.int32] = field(default_factory=_DEFAULTS["server"])
    batch_size: NDArray[np.int32] = field(default_factory=_DEFAULTS["batch_size"])
    cut_layer: NDArray[np.int32] = field(default_factory=_DEFAULTS["cut_layer"])
    local_steps: NDArray[np.int32] = field(default_factory=_DEFAULTS["local_steps"])
    local_epochs: NDArray[np.int32] = field(default_factory=_DEFAULTS["local_epochs"])
    budget_bytes: NDArray[np.float64] = field(default_factory=_DEFAULTS["budget_bytes"])
    rank: NDArray[np.int32] = field(default_factory=_DEFAULTS["rank"])
    experts: NDArray[np.int32] = field(default_factory=_DEFAULTS["experts"])
    aggregate: bool = True

    __repr__ = one_line

    def __post_init__(self) -> None:
        size = int_array("client", self.client, (None,), low=0).size
        for column in COLUMNS:
            object.__setattr__(self, column.name, column.array(getattr(self, column.name), size))
        object.__setattr__(self, "aggregate", flag("aggregate", self.aggregate))
        order = np.lexsort((self.client, self.server))
        client, server = self.client[order], self.server[order]
        if (twice := np.flatnonzero((client[1:] == client[:-1]) & (server[1:] == server[:-1]))).size:
            raise InvalidProblemError(
                f"client[{order[twice[0] + 1]}] = {client[twice[0]]}: expected a client at most once for each server, "
                f"server {server[twice[0]]} has it twice"
            )

    def __len__(self) -> int:
        return self.client.size

    def __getitem__(self, entry: int) -> ClientPlan:
        return ClientPlan(**{name: array[entry].item() for name, array in self.columns().items()})

    def __iter__(self) -> Iterator[ClientPlan]:
        columns = self.columns()
        values = (array.tolist() for array in columns.values())
        return (ClientPlan(**dict(zip(columns, entry, strict=True))) for entry in zip(*values, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoundPlan):
            return NotImplemented
        others = other.columns()
        return self.aggregate == other.aggregate and all(
            np.array_equal(array, others[name]) for name, array in self.columns().items()
        )

    __hash__ = None  # type: ignore[assignment]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name: what `RoundPlan` is made of, but for `aggregate`."""
        return {column.name: getattr(self, column.name) for column in COLUMNS}

    @property
    def conflicts(self) -> NDArray[np.int32]:
        """Ids of the clients that more than one server has picked, ascending."""
        clients, times = np.unique(self.client, return_counts=True)
        return clients[times > 1]

    def of_server(self, server: int) -> Self:
        """Return the entries of one server only."""
        return self.take(np.flatnonzero(self.server == server))

    def take(self, entries: ArrayLike) -> Self:
        """Return the plan of some entries, by position."""
        at: Any = entries
        return self.replace(**{name: array[at] for name, array in self.columns().items()})

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feedback:
    """What a round of training measured, for the planner of the next.

    Parameters
    ----------
    round : number of the round, from 0.
    plan : what was planned; M entries.
    seconds : what the round took, in virtual time.
    now_s : virtual seconds since the run began, at the end of the round. Default 0.
    client_seconds : float64 [M], from the start of the round to the client's report; nan if not measured.
    completed : bool [M], whether the client's update arrived. Default: all.
    conflict : bool [M], whether another server's pick, or a busy client, was in the way. Default: none.
    device_flops, uplink_bps, downlink_bps, fed_uplink_bps, fed_downlink_bps : float64 [M], speed and rates of each
        entry's client in this round; nan where not measured, which is the default.
    client_peak_bytes : float64 [M], memory of each entry's client at the peak of its work; nan where not measured.
    client_energy_j : float64 [M], joules that each entry has taken its client; nan where not measured.
    constants : what the gradients say about the convergence bound, if they were looked at.
    measured : numbers by name that the algorithm has reported of the round.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.
    """

    round: int
    plan: RoundPlan
    seconds: float
    client_seconds: NDArray[np.float64] = field(default_factory=_NAN)
    completed: NDArray[np.bool_] = field(default_factory=_TRUE)
    conflict: NDArray[np.bool_] = field(default_factory=_FALSE)
    device_flops: NDArray[np.float64] = field(default_factory=_NAN)
    uplink_bps: NDArray[np.float64] = field(default_factory=_NAN)
    downlink_bps: NDArray[np.float64] = field(default_factory=_NAN)
    fed_uplink_bps: NDArray[np.float64] = field(default_factory=_NAN)
    fed_downlink_bps: NDArray[np.float64] = field(default_factory=_NAN)
    client_peak_bytes: NDArray[np.float64] = field(default_factory=_NAN)
    client_energy_j: NDArray[np.float64] = field(default_factory=_NAN)
    constants: ConvergenceEstimate | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    now_s: float = 0.0

    __repr__ = one_line

    def __post_init__(self) -> None:
        size = len(self.plan)
        checked = {
            "round": int_array("round", self.round, (), low=0).item(),
            "seconds": float_array("seconds", self.seconds, (), nonnegative=True, unit="s").item(),
            "now_s": float_array("now_s", self.now_s, (), nonnegative=True, unit="s").item(),
            "completed": bool_array("completed", self.completed, (size,)),
            "conflict": bool_array("conflict", self.conflict, (size,)),
        }
        checked |= {name: _measured(name, getattr(self, name), size) for name in MEASURED}
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def of_server(self, server: int) -> Self:
        """Return what one server knows: its own entries; as seconds those of its slowest client, 0 if none was measured."""
        own = np.flatnonzero(self.plan.server == server)
        columns = {name: getattr(self, name)[own] for name in ("completed", "conflict", *MEASURED)}
        slowest = float(np.fmax.reduce(columns["client_seconds"], initial=0.0))
        return dataclasses.replace(
            self, plan=self.plan.take(own), seconds=slowest, constants=None, measured={}, **columns
        )


def _measured(name: str, value: ArrayLike, size: int) -> NDArray[np.float64]:
    """Return float64 [M], positive or nan."""
    unit = {"client_seconds": "s", "client_peak_bytes": "byte", "client_energy_j": "J", "device_flops": "FLOP/s"}.get(
        name, "bit/s"
    )
    given = as_array(name, value)
    missing = np.isnan(given) if given.dtype.kind == "f" else np.zeros(given.shape, bool)
    known = np.where(missing, 1.0, given) if missing.any() else given
    found = np.where(missing, np.nan, float_array(name, known, (size,), positive=True, unit=unit))
    found.flags.writeable = False
    return found


class Planner(Protocol):
    """Anything that gives the plan of the next round."""

    def plan(self, round: int, feedback: Feedback | None) -> RoundPlan:
        """Return the plan of a round.

        Parameters
        ----------
        round : its number, from 0, one after another.
        feedback : what the round before measured; None before the first, or if nothing was.
        """
        ...


@runtime_checkable
class StatefulPlanner(Planner, Protocol):
    """A planner that remembers: a checkpoint keeps its state, and a resumed run restores it."""

    def state(self) -> storage.Arrays:
        """Return named arrays that hold all that the next plans depend on, besides the planner's parameters."""
        ...

    def restore(self, state: storage.Arrays) -> None:
        """Continue from what `state` returned."""
        ...


@dataclass(frozen=True, slots=True)
class StaticPlanner:
    """The same plan in every round, with aggregation in every `interval`-th: rounds ``interval - 1``, ``2 interval - 1``, ...

    Parameters
    ----------
    round_plan : the plan; its own aggregation flag does not matter.
    interval : rounds between two aggregations, >= 1.

    Examples
    --------
    >>> planner = StaticPlanner(RoundPlan(client=[0, 1], batch_size=8), interval=3)
    >>> [planner.plan(round, None).aggregate for round in range(6)]
    [False, False, True, False, False, True]
    """

    round_plan: RoundPlan
    interval: int = 1

    __repr__ = one_line

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", int_array("interval", self.interval, (), low=1).item())

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        return self.round_plan.replace(aggregate=(round + 1) % self.interval == 0)


_T = TypeVar("_T")


def at_time(timing: _T, now_s: float) -> _T:
    """Return a timing as it is in a round that begins at a virtual second; one without a method ``at`` never changes."""
    at = getattr(timing, "at", None)
    found: _T = timing if at is None else at(now_s)
    return found


class LinkRates(Protocol):
    """What knows the rates of a round before it is played, such as `edgeopt.training.EdgeTiming`."""

    def rates(self, round: int, plan: RoundPlan) -> dict[str, NDArray[np.float64]]:
        """Return float64 [M] by the names of `RATES`."""
        ...


class AroundPlanner:
    """What planners around another one share: what they remember is what `inner` remembers."""

    __slots__ = ()

    inner: Planner

    def state(self) -> storage.Arrays:
        """Return what the other planner remembers."""
        return self.inner.state() if isinstance(self.inner, StatefulPlanner) else {}

    def restore(self, state: storage.Arrays) -> None:
        """Continue from what `state` returned."""
        if isinstance(self.inner, StatefulPlanner):
            self.inner.restore(state)


@dataclass(frozen=True, slots=True)
class LinkBudget(AroundPlanner):
    """The plans of another planner, with what each client's uplink carries in a slot as its `budget_bytes`.

    A budget that the other planner has set stays where it is smaller; an uplink that is not measured is no limit.

    Parameters
    ----------
    inner : the other planner.
    timing : gives the uplink rates of a round.
    slot_s : seconds that one message at the cut may take, > 0.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> timing = SimpleNamespace(rates=lambda round, plan: {"uplink_bps": np.array([8e6, 4e6])})
    >>> LinkBudget(StaticPlanner(RoundPlan(client=[0, 1])), timing, slot_s=0.01).plan(0, None).budget_bytes
    array([10000.,  5000.])
    """

    inner: Planner
    timing: LinkRates
    slot_s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "slot_s", float_array("slot_s", self.slot_s, (), positive=True, unit="s").item())

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        plan = self.inner.plan(round, feedback)
        timing = at_time(self.timing, 0.0 if feedback is None else feedback.now_s)
        carried = timing.rates(round, plan)["uplink_bps"] * self.slot_s / 8
        return plan.replace(budget_bytes=np.fmin(carried, plan.budget_bytes))


@dataclass(frozen=True, slots=True)
class AvailableOnly(AroundPlanner):
    """The plans of another planner without the clients that cannot be picked when the round begins.

    A round in which nobody is left has no entries: `edgeopt.training.EdgeTiming.idle_s` says how long it lasts.

    Parameters
    ----------
    inner : the other planner.
    available : when each client can be picked, such as while it charges: 1 or 0 over virtual time, a column for each client.

    Examples
    --------
    >>> charging = TimeSeries.from_table([[1, 0], [1, 1]], step_s=3600, quantity="availability")
    >>> planner = AvailableOnly(StaticPlanner(RoundPlan(client=[0, 1])), charging)
    >>> planner.plan(0).client
    array([0], dtype=int32)
    """

    inner: Planner
    available: TimeSeries

    def __post_init__(self) -> None:
        if not isinstance(self.available, TimeSeries) or self.available.quantity != "availability":
            raise InvalidProblemError(
                f"available: expected a TimeSeries of the quantity availability, got {quoted(self.available)}"
            )

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        plan = self.inner.plan(round, feedback)
        if (unknown := np.flatnonzero(plan.client >= self.available.num_columns)).size:
            raise InvalidProblemError(
                f"client[{unknown[0]}] = {plan.client[unknown[0]]}: available has {self.available.num_columns} columns"
            )
        now = self.available.at(0.0 if feedback is None else feedback.now_s, plan.client)
        return plan if (now >= 0.5).all() else plan.take(np.flatnonzero(now >= 0.5))


@dataclass(frozen=True, slots=True)
class Schedule:
    """The plans of R rounds, written beforehand or recorded: a planner that plays them back.

    Parameters
    ----------
    rounds : the plan of each round.

    Examples
    --------
    >>> planner = StaticPlanner(RoundPlan(client=[0, 1], batch_size=8), interval=2)
    >>> schedule = Schedule([planner.plan(round) for round in range(4)])
    >>> len(schedule), schedule.plan(3).aggregate
    (4, True)
    """

    rounds: Sequence[RoundPlan]

    __repr__ = one_line

    def __post_init__(self) -> None:
        rounds = tuple(listed("rounds", self.rounds, single=RoundPlan))
        for i, plan in enumerate(rounds):
            if not isinstance(plan, RoundPlan):
                raise InvalidProblemError(f"rounds[{i}]: expected a RoundPlan, got {quoted(plan)}")
        object.__setattr__(self, "rounds", rounds)

    def __len__(self) -> int:
        return len(self.rounds)

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round.

        Raises
        ------
        EdgeOptError
            After the last one.
        """
        if not 0 <= round < len(self.rounds):
            raise EdgeOptError(f"round {round}: the schedule has {len(self.rounds)} rounds")
        return self.rounds[round]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule to a ``.json`` or ``.npz`` file, atomically. Equal rounds are written once."""
        distinct: dict[bytes, int] = {}
        kept: list[RoundPlan] = []
        which = []
        for plan in self.rounds:
            key = b"".join([bytes([plan.aggregate]), *(array.tobytes() for array in plan.columns().values())])
            which.append(distinct.setdefault(key, len(kept)))
            if which[-1] == len(kept):
                kept.append(plan)
        arrays: storage.Arrays = {
            "plan_of_round": np.array(which, np.int64),
            "indptr": np.cumsum([0, *map(len, kept)], dtype=np.int64),
            "aggregate": np.array([plan.aggregate for plan in kept], bool),
        }
        for name, dtype, *_ in COLUMNS:
            arrays[name] = np.concatenate([np.empty(0, dtype), *(getattr(plan, name) for plan in kept)])
        storage.save(path, {"kind": _KIND, "schema_version": _SCHEMA_VERSION}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If the file is corrupt, too large, no schedule, or of another version; the message starts with the path.
        """
        header, arrays = storage.load(path, _layout)
        if missing := [name for name in _layout(header) if name not in arrays]:
            raise InvalidFileError(f"{path}: {missing[0]}: array is missing")
        with in_file(path):
            return cls(_rounds(arrays))


def _layout(header: dict[str, Any]) -> storage.Layout:
    given = Fields(header)
    given.expect("kind", _KIND)
    version = given.integer("schema_version", low=1, high=_SCHEMA_VERSION)
    columns = {column.name: numbers(1) for column in COLUMNS if column.since <= version}
    return {"plan_of_round": numbers(1), "indptr": numbers(1), "aggregate": flags(1)} | columns


def _rounds(arrays: storage.Arrays) -> list[RoundPlan]:
    entries = int_array("client", arrays["client"], (None,), low=0).size
    indptr = int_array("indptr", arrays["indptr"], (None,), low=0, high=entries, dtype=np.int64)
    if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != entries or (np.diff(indptr) < 0).any():
        raise InvalidFileError(f"indptr: expected starts ascending from 0 to {entries}")
    if (np.diff(indptr) == 0).sum() > 2:  # one with and one without aggregation: equal rounds are written once
        raise InvalidFileError("indptr: expected distinct rounds, of which two at most have no entries")
    columns = {column.name: column.array(arrays[column.name], entries) for column in COLUMNS if column.name in arrays}
    aggregate = bool_array("aggregate", arrays["aggregate"], (indptr.size - 1,))
    which = int_array("plan_of_round", arrays["plan_of_round"], (None,), low=0, high=indptr.size - 2)
    plans = []
    for p, (start, end) in enumerate(itertools.pairwise(indptr)):
        own = {name: column[start:end] for name, column in columns.items()}
        plans.append(RoundPlan(**own, aggregate=bool(aggregate[p])))
    return [plans[p] for p in which]
