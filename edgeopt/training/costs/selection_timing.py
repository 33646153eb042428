"""`SelectionTiming`: virtual time where servers contend for clients, exactly as `ClientSelection` says."""

import copy
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.scenario import Scenarios, draw_scenarios
from edgeopt.schedule import RoundPlan, Schedule
from edgeopt.series import TimeSeries
from edgeopt.training.costs.timing import Floats, PhaseTime, Traffic, check_series, grams, no_rates
from edgeopt.training.task import Task
from edgeopt.validate import float_array, int_array, real


class UpdateCost(NamedTuple):
    """What one update takes: work of each client, float64 [N] in FLOPs, and its size in bits."""

    work_flops: Floats
    payload_bits: float


def update_cost(task: Task, *, batch_size: int, local_steps: int = 1) -> UpdateCost:
    """Return what training and sending a task's whole model takes, for `ClientSelection.from_network`.

    Parameters
    ----------
    batch_size : samples of a local step; clients with less take all that they have.
    local_steps : mini-batches of an update.

    Examples
    --------
    >>> from edgeopt.training import Task
    >>> from edgeopt.data import digits
    >>> from edgeopt.models import mlp
    >>> from edgeopt.data.partition import iid
    >>> data = digits()
    >>> task = Task(model=mlp((1, 8, 8), ()), train=data.train, test=data.test, partition=iid(len(data.train), 4))
    >>> update_cost(task, batch_size=8).payload_bits == 32 * (64 * 10 + 10)
    True
    """
    size = int_array("batch_size", batch_size, (), low=1).item()
    steps = int_array("local_steps", local_steps, (), low=1).item()
    work = [task.flops(steps * task.samples(client, size)) for client in range(task.num_clients)]
    state = task.model.state_dict()
    payload = 8.0 * sum(state[name].nbytes for name in task.weight_names)
    return UpdateCost(np.array(work), payload)


def selection_schedule(plan: SelectionPlan) -> Schedule:
    """Return the picks of a plan, which a solver has found beforehand, as the rounds of a training run.

    Examples
    --------
    >>> selection_schedule(SelectionPlan([[[4, 1], [2, -1]]])).plan(0).client
    array([1, 4, 2], dtype=int32)
    """
    rounds = []
    for picks in plan.picks:  # (S, M)
        server, position = np.nonzero(picks >= 0)
        rounds.append(RoundPlan(client=picks[server, position], server=server.astype(np.int32)))
    return Schedule(rounds)


@dataclass(frozen=True, slots=True, eq=False)
class PickTimes:
    """What becomes of the M entries of a round's plan.

    Parameters
    ----------
    compute_s : float64 [M], seconds of the client's work.
    up_s : float64 [M], seconds until the server has the update after that, or stops to wait for it.
    airtime_s : float64 [M], seconds in which the client's radio works for this server alone.
    busy : bool [M], clients that are taken by work of their own: they neither train nor send.
    conflict : bool [M], entries that a busy client or another server's pick was in the way of.
    delivered : bool [M], whether the update arrives before the server stops to wait.
    """

    compute_s: Floats
    up_s: Floats
    airtime_s: Floats
    busy: NDArray[np.bool_]
    conflict: NDArray[np.bool_]
    delivered: NDArray[np.bool_]

    __repr__ = one_line


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectionTiming:
    r"""Time, conflicts and losses of a client-selection problem, on the draw of chance of the problem's own seed.

    Client c, picked by j servers in round t, needs :math:`q_c + j b / R_{sc}(t)` for server s. Who is busy delivers
    nothing, nor does who is picked twice in the mode ``fail``; a server waits at most :math:`T_{max}`. Rounds are
    common: one lasts until the slowest server has gone on, :math:`\max_s D_s(t)`. Local work and the size of an update
    are those of the problem, whatever a plan says of local steps and batch sizes: `update_cost` gives them. As in the
    problem, the way down and the servers' work take no time. For algorithms of one phase per round.

    A client spends `device_power_w` while it sends, and `joules_per_flop` on its work, also if the update is lost; a
    busy one spends nothing. Updates that share a client's rate share its power.

    Parameters
    ----------
    problem : coverage, compute times, rates, who is busy, time-out, mode.
    device_power_w : float64 [C], while sending; a network has them under the same name. Default 0.2 W.
    joules_per_flop : default 1e-10, ours: 10 GFLOP/s per watt.
    carbon : grams of CO2 per kWh over virtual time, one column for all clients or one for each.
    now_s : virtual second at which a round begins, for `carbon`.

    Examples
    --------
    Two servers pick client 1: in the mode ``fail`` neither gets its update, and both wait for four seconds.

    >>> problem = ClientSelection(coverage=[[True, True, False], [False, True, True]], picks=1, compute_s=1.0,
    ...                           payload_bits=1e6, rate_bps=1e6, timeout_s=4.0, rounds=2)
    >>> times = SelectionTiming(problem=problem).picks(0, RoundPlan(client=[1, 1], server=[0, 1]))
    >>> times.compute_s + times.up_s, times.delivered, times.conflict
    (array([4., 4.]), array([False, False]), array([ True,  True]))
    """

    problem: ClientSelection
    device_power_w: Floats = 0.2  # type: ignore[assignment]
    joules_per_flop: float = 1e-10
    carbon: TimeSeries | None = None
    now_s: float = 0.0
    _chance: Scenarios = field(init=False, repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        power = float_array("device_power_w", self.device_power_w, (self.problem.num_clients,), positive=True, unit="W")
        object.__setattr__(self, "device_power_w", power)
        joules = float_array("joules_per_flop", self.joules_per_flop, (), nonnegative=True).item()
        object.__setattr__(self, "joules_per_flop", joules)
        check_series("carbon", self.carbon, self.problem.num_clients)
        object.__setattr__(self, "now_s", real("now_s", self.now_s, nonnegative=True, unit="s"))
        object.__setattr__(self, "_chance", draw_scenarios(self.problem, [self.problem.seed]))

    def at(self, now_s: float) -> Self:
        """Return the timing of a round that begins at this virtual second."""
        if self.carbon is None:
            return self
        later = copy.copy(self)  # the draw of chance is the same
        object.__setattr__(later, "now_s", real("now_s", now_s, nonnegative=True, unit="s"))
        return later

    def picks(self, round: int, plan: RoundPlan) -> PickTimes:
        """Return what becomes of each entry of a plan.

        Raises
        ------
        InvalidProblemError
            If the problem has no such round, client or server, or the server does not cover the client.
        """
        problem, rate = self.problem, self._rate_bps(round, plan)
        busy = self._chance.busy[0, round, plan.client]
        demand = np.bincount(plan.client, minlength=problem.num_clients)[plan.client]
        shares = problem.mode == "share"
        work = problem.compute_s[plan.client]
        sending = demand * problem.payload_bits / rate  # as the environment computes it: the same bits
        reachable = ~busy if shares else ~busy & (demand == 1)
        delivered = reachable & (work + sending <= problem.timeout_s)
        cut = np.where(busy, 0.0, np.minimum(work, problem.timeout_s))  # what is in vain ends with the time-out
        in_vain = problem.timeout_s - cut
        cut = problem.timeout_s - in_vain  # rounded so that the two add up to the time-out exactly
        up = np.where(delivered, sending, in_vain)
        airtime = up / demand if shares else np.minimum(problem.payload_bits / rate, up)
        return PickTimes(
            compute_s=np.where(delivered, work, cut),
            up_s=up,
            airtime_s=np.where(busy, 0.0, airtime),
            busy=busy,
            conflict=busy | (demand > 1),
            delivered=delivered,
        )

    def latency_s(self, round: int) -> Floats:
        """Return float64 [S, C], seconds of an undisturbed update in a round; inf where not covered.

        Servers measure their channels before they pick: hand this to `SelectionPlanner` as ``latency_s``.
        """
        self._check_round(round)
        rate = self.problem.rate_at(round)
        seconds = np.full(rate.shape, np.inf)
        np.divide(self.problem.payload_bits, rate, out=seconds, where=rate > 0)
        return np.asarray(self.problem.compute_s + seconds / self._chance.fading[0, round])

    # --- what a timing is asked --------------------------------------------------------------------------------

    def lost(self, round: int, plan: RoundPlan) -> NDArray[np.bool_]:
        """Return bool [M], the entries whose update does not arrive."""
        return ~self.picks(round, plan).delivered

    def conflicts(self, round: int, plan: RoundPlan) -> NDArray[np.bool_]:
        """Return bool [M], the entries that a busy client or another server's pick was in the way of."""
        return self.picks(round, plan).conflict

    def phase(self, round: int, plan: RoundPlan, name: str, start_s: float, traffic: Traffic) -> PhaseTime:
        """Return what the one phase of a round costs; entries without a reply last until the time-out.

        Raises
        ------
        InvalidProblemError
            If it is not the first phase of the round, or there is more than the clients' exchange with their servers.
        """
        if start_s > 0 or traffic.link != "edge" or traffic.server_flops.any():
            raise InvalidProblemError(
                f"round {round}, phase {name!r}: client selection knows one exchange of models per round: expected an "
                "algorithm such as multi-server-fedavg"
            )
        times, entry = self.picks(round, plan), traffic.entry
        work = np.where(times.busy[entry], 0.0, traffic.flops)
        compute, up = times.compute_s[entry], times.up_s[entry]
        up = np.where(traffic.lost & times.delivered[entry], self.problem.timeout_s - compute, up)  # failed for real
        client, airtime = plan.client[entry], times.airtime_s[entry]
        working_j, sending_j = self.joules_per_flop * work, self.device_power_w[client] * airtime
        sends = up if self.problem.mode == "share" else airtime  # by turns with other servers, or at once
        return PhaseTime(
            name=name,
            start_s=start_s,
            seconds=float((compute + up).max(initial=0.0)),
            entry=entry,
            down_s=np.zeros(entry.size),
            compute_s=compute,
            up_s=up,
            served=traffic.served,
            server_s=np.zeros(traffic.served.size),
            energy_j=sending_j + working_j,
            carbon_g=grams(self.carbon, client, self.now_s + start_s, (compute, working_j), (sends, sending_j)),
        )

    def rates(self, round: int, plan: RoundPlan) -> dict[str, Floats]:
        """Return the uplink rates [M] that clients without conflict have in the round; nothing else is measured."""
        return {**no_rates(len(plan)), "uplink_bps": self._rate_bps(round, plan)}

    def _rate_bps(self, round: int, plan: RoundPlan) -> Floats:
        self._check_round(round)
        problem = self.problem
        for name, count in (("client", problem.num_clients), ("server", problem.num_servers)):
            ids = getattr(plan, name)
            if (bad := np.flatnonzero(ids >= count)).size:
                raise InvalidProblemError(
                    f"round {round}: {name}[{bad[0]}] = {ids[bad[0]]}: the problem has {name}s 0 to {count - 1}"
                )
        where = (plan.server, plan.client)
        if (bad := np.flatnonzero(~problem.coverage[where])).size:
            raise InvalidProblemError(
                f"round {round}: client[{bad[0]}] = {plan.client[bad[0]]}: expected a client that server "
                f"{plan.server[bad[0]]} covers"
            )
        return np.asarray(problem.rate_at(round)[where] * self._chance.fading[0, round, plan.client])

    def _check_round(self, round: int) -> None:
        if not 0 <= round < self.problem.rounds:
            raise InvalidProblemError(
                f"round {round}: the problem has {self.problem.rounds} rounds: train for no more, or take a problem "
                "with more"
            )
