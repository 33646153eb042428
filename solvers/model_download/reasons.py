"""Why users of model download are refused: which of their limits would have to give, and by how much."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import NamedTuple, overload

import numba
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.explain import Change, Explanation, Refused, Way, all_rounded_up
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.problems.model_download.checks import RefusalOfUser
from edgeopt.solvers.kernels.download import FIT, energy_rates, least_deadlines, least_energies, level_rates
from edgeopt.solvers.model_download.common import FILL, bandwidth_needed
from edgeopt.solvers.model_download.rates import Tables

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DOUBLINGS = 40
"""How often a limit is doubled until it is enough; one that is not enough then never is."""
PRECISION = 1e-8  # relative, to which the least limit is found before it is rounded up to six digits
SLOWEST = 1e-280  # bit/s that stand for none, so that seconds per bit stay finite
THREADED = 2000  # refused users from which kernels use all threads
OF_USERS = (
    "task", "min_accuracy", "memory_bytes", "deadline_s", "samples", "cycles_per_flop", "min_frequency_hz", "max_frequency_hz",
    "energy_j", "energy_coefficient", "receive_j_per_bit", "spectral_efficiency", "snr_hz", "user_weight",
)  # fmt: skip
LIMITS = ("min_accuracy", "memory_bytes", "deadline_s", "energy_j", "bandwidth_hz")
"""What may give, in the order in which a way of several is made up."""


def explain(problem: ModelDownload, plan: DownloadPlan | None = None) -> Explanation:
    """Return for each refused user which limits would have to give so that this user can be served too.

    With a plan, those are the users that it refuses: the others keep their models, each over the least bandwidth it needs, and
    what they leave is there for the user. Without one, they are those who cannot be served over the whole bandwidth, alone.

    For each of accuracy, memory, deadline, energy and bandwidth the least value is found that is enough, all else unchanged; ways
    are sorted by the largest relative change. Where no limit is enough alone, sets of two are tried, then of three and so on, each
    limit at the least value with those after it lifted; what is listed is enough, and no smaller set is. In a set with others,
    the lifted bandwidth is the whole one. All users are looked at together, and entries of `refused` are made when they are asked
    for. Deadlines and energies are found in closed form or by Newton's method at the rate that the bandwidth carries; with
    energy limits and levels of frequencies by bisection, about fifty times the work of finding least rates.
    """
    needs = least_bandwidth(problem)
    if plan is None:
        who, room = np.flatnonzero(needs.min(axis=1) > problem.bandwidth_hz * (1 + FILL)), problem.bandwidth_hz
    else:
        if not isinstance(plan, DownloadPlan):
            raise InvalidProblemError(f"solution: expected a DownloadPlan, got {type(plan).__name__}")
        if violations := problem.violations(plan):
            raise InvalidProblemError(f"solution: {violations[0].message}")
        served = np.flatnonzero(plan.admitted)
        taken = np.minimum(needs[served, plan.model[served]], plan.bandwidth_hz[served])
        who, room = np.flatnonzero(~plan.admitted), max(0.0, problem.bandwidth_hz - math.fsum(taken))
    if who.size == 0:
        served_all = "every user is served" if plan is not None else "every user can be served alone"
        return _explanation(problem, f"never infeasible: all may be refused; {served_all}")
    with _few_threads(who.size):
        refused = RefusedUsers(problem, who, room)
    how = "even alone" if plan is None else f"by this plan, which leaves {room:.6g} of {problem.bandwidth_hz:.6g} Hz"
    verb = "cannot be served" if plan is None else "are refused"
    message = f"never infeasible: all may be refused; {who.size} of {problem.num_users} users {verb} {how}"
    return _explanation(problem, message, refused)


@contextmanager
def _few_threads(num_users: int) -> Iterator[None]:
    """Run kernels on one thread where users are few: waiting for the others would take longer than the work."""
    before = numba.get_num_threads()
    numba.set_num_threads(1 if num_users < THREADED else before)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def least_bandwidth(problem: ModelDownload) -> Floats:
    """Return the least Hz [K, I] over which each user can be served with each model; inf for never."""
    tables = Tables.of(problem)
    rate = tables.full_speed_rates(problem)
    if problem.is_energy_limited:
        energy_rates(rate, False, tables.users, tables.layers)
        if tables.levels.size:
            level_rates(rate, False, tables.users, tables.layers, tables.levels)
    return bandwidth_needed(problem, rate)


def users_of(problem: ModelDownload, who: NDArray[np.int64]) -> ModelDownload:
    """Return the problem of these users alone."""
    fields = {name: getattr(problem, name) for name in OF_USERS}
    return problem.replace(**{name: value[who] for name, value in fields.items() if value is not None})


class _Found(NamedTuple):
    """Ways of several users that change the same limits."""

    names: tuple[str, ...]
    places: Ints
    """int64 [R], which of the refused users."""
    values: Floats
    """float64 [R, n], what the limits are."""
    needed: Floats
    """float64 [R, n], what they would have to be."""

    @property
    def relative(self) -> Floats:
        """float64 [R], the largest relative change of each."""
        change = np.abs(self.needed - self.values)
        share = np.divide(change, np.abs(self.values), out=np.full_like(change, np.inf), where=self.values != 0)
        return np.asarray(np.where(change == 0, 0.0, share).max(axis=1, initial=0.0))


class RefusedUsers(Sequence[Refused]):
    """Refused users, and what would let each of them in. Entries are made when they are asked for: there may be many.

    Parameters
    ----------
    problem : the problem.
    who : int64 [R], who is refused, ascending.
    room : what is left of the bandwidth for one of them.
    """

    def __init__(self, problem: ModelDownload, who: Ints, room: float) -> None:
        self._users, self._room, self._who = users_of(problem, who), room, who
        self._alone = RefusalOfUser(problem)
        self._needs = least_bandwidth(self._users).min(axis=1)
        found = self._ways()
        of_user = np.concatenate([ways.places for ways in found])
        order = np.lexsort((np.concatenate([ways.relative for ways in found]), of_user))  # stable
        rows = [np.arange(ways.places.size) for ways in found]
        numbers = [np.full(ways.places.size, number) for number, ways in enumerate(found)]
        self._rows, self._numbers = (np.concatenate(parts)[order] for parts in (rows, numbers))
        self._first = np.searchsorted(of_user[order], np.arange(who.size + 1))
        self._found = found

    def __len__(self) -> int:
        return len(self._who)

    @overload
    def __getitem__(self, index: int) -> Refused: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Refused, ...]: ...

    def __getitem__(self, index: int | slice) -> Refused | tuple[Refused, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        user = int(self._who[place])
        ways = tuple(self._way(at, user) for at in range(self._first[place], self._first[place + 1]))
        alone = self._alone(user)
        message = self._message(place, user) if alone is None else alone.message
        return Refused(what="user", index=user, message=message, ways=ways)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def _way(self, at: int, user: int) -> Way:
        found, row = self._found[self._numbers[at]], self._rows[at]
        return Way(
            tuple(
                Change(name=name if name == "bandwidth_hz" else f"{name}[{user}]", value=value, needed=enough)
                for name, value, enough in zip(
                    found.names, found.values[row].tolist(), found.needed[row].tolist(), strict=True
                )
            )
        )

    def _message(self, place: int, user: int) -> str:
        """Return why a user is refused that `ModelDownload.refusals` does not have."""
        users, needed, room = self._users, self._needs[place], self._room
        if not np.isfinite(needed):
            return f"user {user}: deadline_s = {users.deadline_s[place]:.6g} and energy_j = {users.energy_j[place]:.6g} cannot both be met"
        served = ": it could be served as things are" if needed <= room * (1 + FILL) else ""
        return f"user {user}: needs {needed:.6g} Hz, {room:.6g} are left{served}"

    def _ways(self) -> list[_Found]:
        """Return the ways of all users, the fewest limits first."""
        waiting = self._needs > self._room * (1 + FILL)
        merely_left_out = np.flatnonzero(~waiting)
        nothing = np.zeros((merely_left_out.size, 0))
        found = [_Found((), merely_left_out, nothing, nothing)]
        for count in range(1, len(LIMITS) + 1):
            together = [self._together(names, np.flatnonzero(waiting)) for names in combinations(LIMITS, count)]
            found += [ways for ways in together if ways is not None]
            for ways in found:
                waiting[ways.places] = False
            if not waiting.any():
                break
        return found

    def _together(self, names: tuple[str, ...], places: Ints) -> _Found | None:
        """Return the users among these whom giving way in all of `names` lets in, with how far each has to."""
        for name in {"memory_bytes", "energy_j"}.intersection(names):  # no limit, nothing to give
            places = places[np.isfinite(getattr(self._users, name)[places])]
        if places.size == 0:
            return None
        users = users_of(self._users, places)
        room = self._room
        if "bandwidth_hz" in names:
            room = users.bandwidth_hz if "deadline_s" in names else np.inf
        able = np.flatnonzero(self._served(users.replace(**_lifted(users, names)), room))
        if able.size == 0:
            return None
        places, users = places[able], users_of(users, able)
        values = [np.broadcast_to(getattr(users, name), places.size) for name in names]
        lifted = _lifted(users, names)
        needed: list[Floats] = []
        for name in names:
            lifted.pop(name, None)
            if name == "bandwidth_hz":
                extra = np.maximum(least_bandwidth(users).min(axis=1) - self._room, 0.0)
                needed.append(all_rounded_up(users.bandwidth_hz + extra, 9))
            else:
                needed.append(self._least(name, users, users.replace(**lifted), room))
                users = users.replace(**{name: needed[-1]})
        whole = needed[-1] if names[-1] == "bandwidth_hz" else users.bandwidth_hz
        enough = self._served(users, self._room + whole - users.bandwidth_hz)
        was, is_needed = np.column_stack(values), np.column_stack(needed)
        enough &= (is_needed != was).all(axis=1)  # else a smaller set is enough
        return _Found(names, places[enough], was[enough], is_needed[enough])

    def _least(self, name: str, users: ModelDownload, lifted: ModelDownload, room: float) -> Floats:
        """Return the least value [K] of a limit of `users` that is enough where those after it are lifted."""
        if name == "min_accuracy":
            fits = _fits(least_bandwidth(lifted.replace(min_accuracy=0.0)), room)
            least = np.where(fits, users.accuracy, -np.inf).max(axis=1)
            return np.asarray(np.minimum(users.min_accuracy, least))
        if name == "memory_bytes":
            fits = _fits(least_bandwidth(lifted.replace(memory_bytes=np.inf)), room)
            least = np.where(fits, users.model_bits / 8, np.inf).min(axis=1)
            return np.asarray(np.maximum(users.memory_bytes, least))
        if users.frequency_levels is not None and lifted.is_energy_limited:
            return self._bisected(lifted, name, room)
        return self._solved(lifted, name, room)

    def _solved(self, users: ModelDownload, name: str, room: float) -> Floats:
        """Return the least deadlines or energy limits [K] with which users fit, at the rate of the room; never lowered."""
        tables = Tables.of(users)
        seconds = 1.0 / np.maximum(_rate(users, room), SLOWEST)
        least = least_deadlines if name == "deadline_s" else least_energies
        value = least(seconds, np.array(users.allowed), tables.users, tables.layers)
        as_it_is = self._served(users, room) | ~np.isfinite(value)
        return np.where(as_it_is, getattr(users, name), all_rounded_up(value * (1 + PRECISION)))

    def _bisected(self, users: ModelDownload, name: str, room: float) -> Floats:
        """Return the least values [K] of a limit with which users fit, found by doubling and halving; it is never lowered."""
        value: Floats = getattr(users, name)
        low, high = value.copy(), value.copy()
        fits = self._served(users, room)
        same = fits.copy()
        for _ in range(DOUBLINGS):
            if fits.all():
                break
            low = np.where(fits, low, high)
            high = np.where(fits, high, 2 * high)
            fits = self._served(users.replace(**{name: high}), room)
        while (high - low > PRECISION * high).any():
            middle = (low + high) / 2
            enough = self._served(users.replace(**{name: middle}), room)
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(same, value, all_rounded_up(high))

    @staticmethod
    def _served(users: ModelDownload, room: float | Floats) -> Bools:
        return _fits(least_bandwidth(users).min(axis=1), room)


def _fits(needed: Floats, room: float | Floats) -> Bools:
    """Return whether so many Hz fit; infinitely many never do, whatever the room."""
    return np.asarray(np.isfinite(needed) & (needed <= room * (1 + FILL)))


def _lifted(users: ModelDownload, names: tuple[str, ...]) -> dict[str, float | Floats]:
    """Return values at which the limits of users limit nothing."""
    none: dict[str, float | Floats] = {
        "min_accuracy": 0.0,
        "memory_bytes": np.inf,
        "deadline_s": 2.0**DOUBLINGS * users.deadline_s,
        "energy_j": np.inf,
    }
    return {name: none[name] for name in names if name in none}


def _rate(users: ModelDownload, room: float) -> Floats:
    """Return what so many Hz carry for each user, in bit/s; of infinitely many, what no bandwidth exceeds."""
    if room == np.inf:
        return users.rate_ceiling_bps
    room *= 1 + FILL
    if (block := users.resource_block_hz) is not None:
        room = block * math.floor(room / block * (1 + FIT))
    return users.rate_bps(room)


def _explanation(problem: ModelDownload, message: str, refused: Sequence[Refused] = ()) -> Explanation:
    return Explanation(problem=problem.kind, verdict="feasible", message=message, refused=refused)
