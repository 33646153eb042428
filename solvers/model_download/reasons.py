"""Why users of model download are refused: which of their limits would have to give, and by how much."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import numba
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.explain import Change, Explanation, Refused, Way, rounded_up
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.solvers.kernels.download import energy_rates, level_rates
from edgeopt.solvers.model_download.common import FILL, bandwidth_needed
from edgeopt.solvers.model_download.rates import Tables

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DOUBLINGS = 40
"""How often a limit is doubled until it is enough; one that is not enough then never is."""
PRECISION = 1e-8  # relative, to which the least limit is found before it is rounded up to six digits
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
    the lifted bandwidth is the whole one. All users are looked at together: about fifty times the work of finding the least
    rates of the refused users.
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
    reasons = {refusal.user: refusal.message for refusal in problem.refusals()}
    with _few_threads(who.size):
        refused = _Refusals(users_of(problem, who), room)
        ways = refused.ways()
    entries = []
    for place, user in enumerate(who.tolist()):
        message = reasons.get(user) or refused.message(place, user)
        entries.append(Refused(what="user", index=user, message=message, ways=_named(ways[place], user)))
    how = "even alone" if plan is None else f"by this plan, which leaves {room:.6g} of {problem.bandwidth_hz:.6g} Hz"
    verb = "cannot be served" if plan is None else "are refused"
    message = f"never infeasible: all may be refused; {who.size} of {problem.num_users} users {verb} {how}"
    return _explanation(problem, message, tuple(entries))


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


class _Refusals:
    """Refused users, and what is left of the bandwidth for one of them."""

    def __init__(self, users: ModelDownload, room: float) -> None:
        self.users, self.room = users, room
        self.needs = least_bandwidth(users).min(axis=1)

    def message(self, place: int, user: int) -> str:
        """Return why a user is refused that `ModelDownload.refusals` does not have."""
        needed = self.needs[place]
        if not np.isfinite(needed):
            return f"user {user}: deadline_s = {self.users.deadline_s[place]:.6g} and energy_j = {self.users.energy_j[place]:.6g} cannot both be met"
        if needed <= self.room * (1 + FILL):
            return f"user {user}: needs {needed:.6g} Hz, {self.room:.6g} are left: it could be served as things are"
        return f"user {user}: needs {needed:.6g} Hz, {self.room:.6g} are left"

    def ways(self) -> list[tuple[Way, ...]]:
        """Return the ways of every user, with fields that still lack the index of the user."""
        found: list[list[Way]] = [[] for _ in range(self.users.num_users)]
        waiting = self.needs > self.room * (1 + FILL)
        for place in np.flatnonzero(~waiting).tolist():  # the plan has merely left them out
            found[place].append(Way(()))
        for count in range(1, len(LIMITS) + 1):
            for names in combinations(LIMITS, count):
                for place, way in self._together(names, np.flatnonzero(waiting)):
                    found[place].append(way)
            waiting &= np.array([not own for own in found])
            if not waiting.any():
                break
        return [tuple(sorted(own, key=lambda way: way.relative)) for own in found]

    def _together(self, names: tuple[str, ...], places: NDArray[np.int64]) -> list[tuple[int, Way]]:
        """Return the users among these whom giving way in all of `names` lets in, with how far each has to."""
        for name in {"memory_bytes", "energy_j"}.intersection(names):  # no limit, nothing to give
            places = places[np.isfinite(getattr(self.users, name)[places])]
        if places.size == 0:
            return []
        users = before = users_of(self.users, places)
        room = self.room
        if "bandwidth_hz" in names:
            room = users.bandwidth_hz if "deadline_s" in names else np.inf
        lifted = _lifted(users, names)
        able = np.flatnonzero(self._served(users.replace(**lifted), room))
        if able.size == 0:
            return []
        places, users, before = places[able], users_of(users, able), users_of(before, able)
        lifted = _lifted(users, names)
        needed: list[Floats] = []
        for name in names:
            lifted.pop(name, None)
            if name == "bandwidth_hz":
                extra = np.maximum(least_bandwidth(users).min(axis=1) - self.room, 0.0)
                needed.append(np.array([rounded_up(users.bandwidth_hz + hertz, 9) for hertz in extra]))
            else:
                needed.append(self._least(name, users, users.replace(**lifted), room))
                users = users.replace(**{name: needed[-1]})
        whole = needed[-1] if names[-1] == "bandwidth_hz" else users.bandwidth_hz
        enough = self._served(users, self.room + whole - users.bandwidth_hz)
        found = []
        for row in np.flatnonzero(enough).tolist():
            old = [
                before.bandwidth_hz if name == "bandwidth_hz" else getattr(before, name)[row].item() for name in names
            ]
            changes = [
                Change(name=name, value=value, needed=values[row].item())
                for name, value, values in zip(names, old, needed, strict=True)
            ]
            if all(change.needed != change.value for change in changes):  # else a smaller set is enough
                found.append((int(places[row]), Way(tuple(changes))))
        return found

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
        return self._bisected(lifted, name, room)

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
        return np.where(same, value, [rounded_up(number) for number in high.tolist()])

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


def _named(ways: tuple[Way, ...], user: int) -> tuple[Way, ...]:
    def named(change: Change) -> Change:
        of_user = change.name != "bandwidth_hz"
        return Change(name=f"{change.name}[{user}]", value=change.value, needed=change.needed) if of_user else change

    return tuple(Way(tuple(map(named, way.changes))) for way in ways)


def _explanation(problem: ModelDownload, message: str, refused: tuple[Refused, ...] = ()) -> Explanation:
    return Explanation(problem=problem.kind, verdict="feasible", message=message, refused=refused)
