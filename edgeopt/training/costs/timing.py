"""Virtual time and energy: what each phase of a round costs on an edge network. Nothing is slept or read from a clock."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.energy import JOULES_PER_KWH
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.problems.client_selection.instance import MAX_RATE_SIGMA
from edgeopt.rng import stream
from edgeopt.schedule import RATES, RoundPlan
from edgeopt.series import TimeSeries
from edgeopt.training.messages import CATEGORIES, Category, Link
from edgeopt.validate import float_array, int_array

if TYPE_CHECKING:
    from edgeopt.network import EdgeNetwork
    from edgeopt.problems import SplitTraining

Floats = NDArray[np.float64]

TIMED: frozenset[Category] = frozenset({"weights", "activations", "gradients", "statistics"})
"""What takes time by default: labels and scalars are left out, as in the latency models of the problems."""


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """What one phase moves and computes: P entries of a plan.

    Parameters
    ----------
    entry : int64 [P], positions in the plan.
    down_bytes, up_bytes : int64 [P, 6], bytes of messages and replies by category.
    flops : float64 [P], work of the clients.
    served : int64 [R], the entries that have replied.
    server_flops : float64 [R], work of the server for each of those.
    lost : bool [P], entries whose reply does not arrive.
    link : which server the clients talk to.
    server_up_bytes, server_down_bytes : between edge and fed server.
    """

    entry: NDArray[np.int64]
    down_bytes: NDArray[np.int64]
    up_bytes: NDArray[np.int64]
    flops: Floats
    served: NDArray[np.int64]
    server_flops: Floats
    lost: NDArray[np.bool_]
    link: Link = "edge"
    server_up_bytes: float = 0.0
    server_down_bytes: float = 0.0

    __repr__ = one_line


@dataclass(frozen=True, slots=True, eq=False)
class PhaseTime:
    """When the parts of a phase happen, in seconds.

    Parameters
    ----------
    name : of the phase.
    start_s : when it starts, after the start of the round.
    seconds : how long it lasts.
    entry : int64 [P], positions in the plan.
    down_s, compute_s, up_s : float64 [P], the way down, the client's work, the way up, one after another.
    served : int64 [R], the entries that the server worked for after the slowest way up, one after another.
    server_s : float64 [R], its seconds for each of them.
    energy_j : float64 [P], of the client.
    carbon_g : float64 [P], grams of CO2 that this energy stands for; None where nobody knows.
    """

    name: str
    start_s: float
    seconds: float
    entry: NDArray[np.int64]
    down_s: Floats
    compute_s: Floats
    up_s: Floats
    served: NDArray[np.int64]
    server_s: Floats
    energy_j: Floats
    carbon_g: Floats | None = None

    __repr__ = one_line

    @property
    def client_s(self) -> Floats:
        """float64 [P], seconds from the start of the phase until each client has replied."""
        return self.down_s + self.compute_s + self.up_s

    @property
    def straggler(self) -> int | None:
        """The entry that the others wait for; None in a phase without clients."""
        return int(self.entry[self.client_s.argmax()]) if self.entry.size else None


class Timing(Protocol):
    """What charges time and energy. All methods are functions of their arguments: a resumed run sees the same.

    One that changes over virtual time has a method ``at(now_s)``, which returns what it is in a round that begins then: see
    `edgeopt.schedule.at_time`.
    """

    def lost(self, round: int, plan: RoundPlan) -> NDArray[np.bool_]:
        """Return bool [M], whose replies do not arrive in this round; their clients do no work that counts."""
        ...

    def conflicts(self, round: int, plan: RoundPlan) -> NDArray[np.bool_]:
        """Return bool [M], the entries that another server's pick or a busy client was in the way of."""
        ...

    def phase(self, round: int, plan: RoundPlan, name: str, start_s: float, traffic: Traffic) -> PhaseTime:
        """Return what a phase costs."""
        ...

    def rates(self, round: int, plan: RoundPlan) -> dict[str, Floats]:
        """Return the speeds and rates float64 [M] that the round has measured, by the names of `RATES`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeTiming:
    r"""Devices around one edge server, and a fed server behind it, as in `edgeopt.problems.SplitTraining`.

    In a phase, client i takes :math:`8 D_i / r^D_i + w_i / f_i + 8 U_i / r^U_i`: what it gets, computes and sends. The
    phase lasts as long as its slowest client, and then until the edge server has worked for one client after another.
    A phase on the fed link lasts as long as the slowest of the clients and the edge server's own exchange. A device
    spends `device_power_w` while it sends and `joules_per_flop` on its work.

    Parameters
    ----------
    device_flops : float64 [N], FLOP/s.
    uplink_bps, downlink_bps : float64 [N], between device and edge server.
    fed_uplink_bps, fed_downlink_bps : float64 [N], between device and fed server.
    server_flops : FLOP/s of the edge server.
    server_fed_uplink_bps, server_fed_downlink_bps : between edge server and fed server.
    device_power_w : float64 [N], while sending. Default 0.2 W.
    joules_per_flop : default 1e-10, ours: 10 GFLOP/s per watt.
    rate_sigma : standard deviation of the logarithm of a fading factor, mean one, on a client's rates: drawn for each
        round and client. Default: none.
    failure_probability : chance that a client is lost for a round; the others wait for its work, not for its reply.
    timed : the categories of tensors that take time.
    seed : decides fading and failures.
    uplink, downlink : rates over virtual time, a column for each device, in place of `uplink_bps` and `downlink_bps`; those of
        the fed link are then what that link carries at most. A device whose rate is 0 waits until it has a link again.
    carbon : grams of CO2 per kWh over virtual time, one column for all devices or one for each.
    now_s : virtual second at which the round begins; what trains sets it, see `at`.
    idle_s : how long a round without clients lasts, until somebody can be picked again. Default: no time.
    """

    device_flops: Floats
    uplink_bps: Floats
    downlink_bps: Floats
    fed_uplink_bps: Floats
    fed_downlink_bps: Floats
    server_flops: float
    server_fed_uplink_bps: float
    server_fed_downlink_bps: float
    device_power_w: Floats = 0.2  # type: ignore[assignment]
    joules_per_flop: float = 1e-10
    rate_sigma: float = 0.0
    failure_probability: float = 0.0
    timed: frozenset[Category] = TIMED
    seed: int = 0
    uplink: TimeSeries | None = None
    downlink: TimeSeries | None = None
    carbon: TimeSeries | None = None
    now_s: float = 0.0
    idle_s: float = 0.0

    __repr__ = one_line

    def __post_init__(self) -> None:
        count = float_array("device_flops", self.device_flops, (None,)).size
        for name in (*RATES, "device_power_w"):
            unit = {"device_flops": "FLOP/s", "device_power_w": "W"}.get(name, "bit/s")
            object.__setattr__(self, name, float_array(name, getattr(self, name), (count,), positive=True, unit=unit))
        for name in ("server_flops", "server_fed_uplink_bps", "server_fed_downlink_bps"):
            object.__setattr__(self, name, float_array(name, getattr(self, name), (), positive=True).item())
        for name in ("joules_per_flop", "rate_sigma", "failure_probability"):
            object.__setattr__(self, name, float_array(name, getattr(self, name), (), nonnegative=True).item())
        if self.rate_sigma > MAX_RATE_SIGMA:
            raise InvalidProblemError(f"rate_sigma = {quoted(self.rate_sigma)}: expected at most {MAX_RATE_SIGMA}")
        if self.failure_probability > 1:
            raise InvalidProblemError(f"failure_probability = {self.failure_probability}: expected a number up to 1")
        if unknown := sorted(set(self.timed) - set(CATEGORIES)):
            raise InvalidProblemError(f"timed: {quoted(unknown[0])}: expected some of {', '.join(CATEGORIES)}")
        object.__setattr__(self, "seed", int_array("seed", self.seed, (), low=0, dtype=np.int64).item())
        for name in ("now_s", "idle_s"):
            object.__setattr__(
                self, name, float_array(name, getattr(self, name), (), nonnegative=True, unit="s").item()
            )
        for name in ("uplink", "downlink", "carbon"):
            check_series(name, getattr(self, name), count)

    @classmethod
    def from_network(
        cls,
        network: "EdgeNetwork",
        *,
        server: int = 0,
        fed_rate_bps: float | None = None,
        joules_per_flop: float = 1e-10,
        rate_sigma: float = 0.0,
        failure_probability: float = 0.0,
        seed: int = 0,
        uplink: TimeSeries | None = None,
        downlink: TimeSeries | None = None,
        carbon: TimeSeries | None = None,
        idle_s: float = 0.0,
    ) -> Self:
        """Take the devices of a network, one of its servers, and a fed server behind that server's link to the cloud.

        Parameters
        ----------
        server : which edge server the devices train with.
        fed_rate_bps : rate between edge and fed server, both ways. Default: the server's link to the cloud.
        joules_per_flop, rate_sigma, ..., idle_s : as the fields.
        """
        if not 0 <= server < network.num_servers:
            raise InvalidProblemError(f"server = {server}: expected an integer from 0 to {network.num_servers - 1}")
        up, down = network.uplink_rate_bps[:, server], network.downlink_rate_bps[:, server]
        if (cut_off := np.flatnonzero((up <= 0) | (down <= 0))).size:
            raise InvalidProblemError(
                f"server = {server}: device {cut_off[0]} has no link to it, expected one for each"
            )
        fed = float(network.cloud_rate_bps[server]) if fed_rate_bps is None else fed_rate_bps
        return cls(
            device_flops=network.device_flops,
            uplink_bps=up,
            downlink_bps=down,
            fed_uplink_bps=np.minimum(up, fed) if uplink is None else np.full_like(up, fed),
            fed_downlink_bps=np.minimum(down, fed) if downlink is None else np.full_like(down, fed),
            server_flops=float(network.server_flops[server]),
            server_fed_uplink_bps=fed,
            server_fed_downlink_bps=fed,
            device_power_w=network.device_power_w,
            joules_per_flop=joules_per_flop,
            rate_sigma=rate_sigma,
            failure_probability=failure_probability,
            seed=seed,
            uplink=uplink,
            downlink=downlink,
            carbon=carbon,
            idle_s=idle_s,
        )

    @classmethod
    def from_problem(cls, problem: "SplitTraining", *, rate_sigma: float = 0.0, seed: int = 0) -> Self:
        """Take devices, servers and rates of a split-training problem."""
        names = (*RATES, "server_flops", "server_fed_uplink_bps", "server_fed_downlink_bps")
        fields: dict[str, Any] = {name: getattr(problem, name) for name in names}
        return cls(**fields, rate_sigma=rate_sigma, seed=seed)

    @property
    def num_clients(self) -> int:
        """Devices, N."""
        return self.device_flops.size

    def lost(self, round: int, plan: RoundPlan) -> NDArray[np.bool_]:
        """Return bool [M], the clients that are lost in this round."""
        self._check(plan)
        if self.failure_probability == 0:
            return np.zeros(len(plan), np.bool_)
        drawn = stream(self.seed, "failures", round).random(self.num_clients)
        return np.asarray(drawn[plan.client] < self.failure_probability)

    def conflicts(self, round: int, plan: RoundPlan) -> NDArray[np.bool_]:
        """Return bool [M], all False: there is one server, and nobody is busy."""
        return np.zeros(len(plan), np.bool_)

    def phase(self, round: int, plan: RoundPlan, name: str, start_s: float, traffic: Traffic) -> PhaseTime:
        """Return what a phase costs."""
        client = plan.client[traffic.entry]
        fading = self._fading(round)[client]
        columns = [CATEGORIES.index(category) for category in CATEGORIES if category in self.timed]
        down_bits, up_bits = (8 * sent[:, columns].sum(axis=1) for sent in (traffic.down_bytes, traffic.up_bytes))
        begin = self.now_s + start_s
        down = self._crossing("downlink", traffic.link, client, down_bits, fading, begin)
        compute = traffic.flops / self.device_flops[client]
        up = self._crossing("uplink", traffic.link, client, up_bits, fading, begin + down + compute)
        served = traffic.server_flops / self.server_flops
        sending_j, working_j = self.device_power_w[client] * up, self.joules_per_flop * traffic.flops
        slowest = float((down + compute + up).max(initial=0.0))
        exchanged = 8 * traffic.server_up_bytes / self.server_fed_uplink_bps
        exchanged += 8 * traffic.server_down_bytes / self.server_fed_downlink_bps
        return PhaseTime(
            name=name,
            start_s=start_s,
            seconds=max(slowest, exchanged) + float(served.sum()),
            entry=traffic.entry,
            down_s=down,
            compute_s=compute,
            up_s=up,
            served=traffic.served,
            server_s=served,
            energy_j=sending_j + working_j,
            carbon_g=grams(self.carbon, client, begin + down, (compute, working_j), (up, sending_j)),
        )

    def rates(self, round: int, plan: RoundPlan) -> dict[str, Floats]:
        """Return speeds and rates [M] as they are in this round, at its beginning; nan without a link."""
        fading = self._fading(round)[plan.client]
        found = {name: getattr(self, name)[plan.client] for name in RATES}
        for name in ("uplink", "downlink"):
            if (series := getattr(self, name)) is not None:
                now = series.at(self.now_s, plan.client)
                now[now == 0] = np.nan
                found |= {f"{name}_bps": now, f"fed_{name}_bps": np.minimum(now, found[f"fed_{name}_bps"])}
        return {name: rate if name == "device_flops" else rate * fading for name, rate in found.items()}

    def at(self, now_s: float) -> Self:
        """Return the timing of a round that begins at this virtual second."""
        return self.replace(now_s=now_s) if self.uplink or self.downlink or self.carbon else self

    def _crossing(
        self,
        name: Literal["uplink", "downlink"],
        link: Link,
        client: NDArray[np.int32],
        bits: Floats,
        fading: Floats,
        start_s: Floats | float,
    ) -> Floats:
        """Return the seconds [P] that bits take from a time on."""
        series: TimeSeries | None = getattr(self, name)
        fixed: Floats = getattr(self, f"fed_{name}_bps" if link == "fed" else f"{name}_bps")
        if series is None:
            return np.asarray(bits / (fixed[client] * fading))
        return (series.at_most(fixed) if link == "fed" else series).seconds(bits / fading, start_s, client)

    def _fading(self, round: int) -> Floats:
        if self.rate_sigma == 0:
            return np.ones(self.num_clients)
        normal = stream(self.seed, "fading", round).standard_normal(self.num_clients)
        return np.asarray(np.exp(self.rate_sigma * normal - self.rate_sigma**2 / 2))

    def _check(self, plan: RoundPlan) -> None:
        if (bad := np.flatnonzero(plan.client >= self.num_clients)).size:
            raise InvalidProblemError(
                f"client[{bad[0]}] = {plan.client[bad[0]]}: the timing knows clients 0 to {self.num_clients - 1}"
            )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)


def grams(
    carbon: TimeSeries | None,
    client: NDArray[np.int32],
    start_s: Floats | float,
    work: tuple[Floats, Floats],
    sending: tuple[Floats, Floats],
) -> Floats | None:
    """Return grams of CO2 [P]: energy is spent evenly while a client works, and while it sends after that.

    Parameters
    ----------
    carbon : grams per kWh over virtual time, one column for all clients or one for each; None where nobody knows.
    client : int32 [P].
    start_s : when the work begins.
    work, sending : seconds and joules, float64 [P].
    """
    if carbon is None:
        return None
    which = client if carbon.num_columns > 1 else np.zeros_like(client)
    begins = np.broadcast_to(start_s, work[0].shape)
    sends = begins + work[0]
    found = work[1] * carbon.mean(begins, sends, which)
    found += sending[1] * carbon.mean(sends, sends + sending[0], which)
    return np.asarray(found / JOULES_PER_KWH)


def check_series(name: str, series: TimeSeries | None, count: int) -> None:
    """Refuse series of another quantity or number of columns, and devices that never have a link."""
    if series is None:
        return
    quantity = "carbon" if name == "carbon" else "rate"
    if not isinstance(series, TimeSeries) or series.quantity != quantity:
        raise InvalidProblemError(f"{name}: expected a TimeSeries of the quantity {quantity}, got {quoted(series)}")
    wanted = (1, count) if name == "carbon" else (count,)
    if series.num_columns not in wanted:
        said = " or ".join(map(str, dict.fromkeys(wanted)))
        raise InvalidProblemError(f"{name}: {series.num_columns} columns, expected {said}: see TimeSeries.for_clients")
    if quantity == "rate" and (never := np.flatnonzero(np.isinf(series.seconds(1.0, 0.0)))).size:
        raise InvalidProblemError(f"{name}: {quoted(series.names[never[0]])} never has a link, expected a rate above 0")


def idle(start_s: float, seconds: float) -> PhaseTime:
    """Return a phase in which nobody does anything."""
    nobody, nothing = np.zeros(0, np.int64), np.zeros(0)
    return PhaseTime("idle", start_s, seconds, nobody, nothing, nothing, nothing, nobody, nothing, nothing)


def no_rates(size: int) -> dict[str, Floats]:
    """Return what a timing without measured rates gives: nan everywhere."""
    return {name: np.full(size, np.nan) for name in RATES}
