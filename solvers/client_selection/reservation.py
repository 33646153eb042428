"""`reservation`: servers keep to rounds of their own for the clients that they share, without a word and without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.environment import SelectionEnvironment, ServerView
from edgeopt.problems.client_selection.instance import SelectionInstance, covered_ids
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.client_selection.features import client_ids
from edgeopt.solvers.client_selection.policy import Policy, one_each, picks_of, play, supports_client_selection
from edgeopt.solvers.kernels.reservation import choose, fit_loads, hear, look, settle

Floats = NDArray[np.float64]

MOVES = np.array([[0.95, 0.05], [0.1, 0.9]])
"""Where fitting of loads starts: a calm client stays calm for twenty rounds, a loaded one loaded for ten."""
OFTEN = np.array([0.1, 0.6])
"""How often a calm and a loaded client are busy, before the first fit."""
SURE_OF_MOVES, SURE_OF_OFTEN = 20.0, (20.0, 10.0)
"""Pseudo-counts of the two, per load."""
GRID = np.array([0.0, 1.0, 4.0])
"""Weights of the logarithm of joint success, between which a server chooses by the reward that it expects."""
PRIORS = np.vstack([SURE_OF_MOVES * MOVES, np.column_stack([OFTEN, 1 - OFTEN]) * np.array(SURE_OF_OFTEN)[:, None]])
FIT_STEPS = 3
MOST_PHASES = 64
BETWEEN_TURNS = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    r"""Every server expects of each client that it is busy, or taken by others in this phase of a common cycle.

    Round t is of phase t mod L. Per client a server keeps a belief of its load, calm or loaded, moved on by a hidden
    Markov model that it fits to its own outcomes, and for each phase the chance q that another server comes: a pick
    without a conflict sets q to `slip`, one with a conflict raises it by Bayes' rule against the chance that the client
    was busy, and with every turn of the phase it moves a share `forget` back to `prior`. Servers so settle on different
    rounds for the clients that they share. A pick succeeds with chance p = (1 - busy)(1 - q); a server picks the set of
    most expected reward among those that a few weights on joint success lead to, so that risky picks come together in
    one round: its failures cost the time-out once. Our method; no truth of the environment is used.

    A client is *held* in a phase from a pick there without a conflict until one with a conflict that another server is
    likelier than not to have caused (q >= 1/2); `hold` is added to its worth, times p. With an infinite `hold`, held clients are picked first. Then, if nobody is ever busy, `noise` > 0, and there
    is room,

    .. math:: n_s \ge m_s + \sum_{s'} m_{s'} \qquad \mathrm{for\ every\ } s,

    the sum being over the other servers that share a client with s, all conflicts end after finitely many rounds with
    probability one, and the chance that they have not falls geometrically. *Proof.* Look at one phase, and the set H_s
    that server s holds in it. (i) H_s has at most m_s clients: all of H_s is picked first, and afterwards only picks are
    held. (ii) Held sets are disjoint: to hold what s holds, another server would have to pick it without a conflict, but
    s picks it every time. (iii) If every H_s has m_s clients, then all picks are held and disjoint, nothing conflicts,
    and that stays so. (iv) From any other state the next turn of the phase leads there with a chance of at least some
    delta > 0: by the room, servers one after another can fill up with clients that nobody holds or has been given;
    scores but for their noise are bounded, the noise is Gumbel's and independent, hence every choice of clients that are
    not held has a chance bounded from below. So (iv) fails k turns in a row with chance at most (1 - delta)^k. With a
    finite `hold`, which earns more where clients are busy, nothing is promised.

    O(T sum of n_s) time, n_s being the clients of server s, and as much per step of a fit. One iteration is one round.

    Parameters
    ----------
    phases : L, the same for all servers; None takes `phases_by_rule`.
    prior : chance that another server takes a client, before anything is known of the phase.
    slip : the same after a pick without a conflict.
    forget : share by which what is known of a phase moves back to `prior` at every turn of it.
    hold : added to the worth of held clients, times their chance; infinite puts them first.
    caution : factor on the weight of conflicts in the choice: one leads to others later, as both servers lose a hold.
    patience : exponent on the share of a full cycle since the last delivery: above 1, a pick too early counts less.
    noise : scale of Gumbel noise on the worth of a pick, which breaks ties between servers.
    fit_at : rounds before the first fit of the load model; it is fitted again whenever the rounds have doubled.
    """

    phases: int | None = None
    prior: float = 0.2
    slip: float = 0.005
    forget: float = 0.1
    hold: float = 0.4
    caution: float = 2.0
    patience: float = 2.0
    noise: float = 0.01
    fit_at: int = 25

    name: ClassVar[str] = "reservation"
    guarantee: ClassVar[Guarantee] = Heuristic("beliefs")

    def __post_init__(self) -> None:
        if self.phases is not None and not (isinstance(self.phases, int) and 1 <= self.phases <= MOST_PHASES):
            raise EdgeOptError(f"phases = {quoted(self.phases)}: expected an integer from 1 to {MOST_PHASES} or None")
        if not isinstance(self.fit_at, int) or self.fit_at < 1:
            raise EdgeOptError(f"fit_at = {quoted(self.fit_at)}: expected an integer >= 1")
        for name in ("prior", "slip"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected a number above 0 and below 1")
        if not 0 <= self.forget <= 1:
            raise EdgeOptError(f"forget = {quoted(self.forget)}: expected a number from 0 to 1")
        if not self.hold >= 0:
            raise EdgeOptError(f"hold = {quoted(self.hold)}: expected a number >= 0, inf for held clients first")
        for name in ("caution", "patience", "noise"):
            if not 0 <= (value := getattr(self, name)) < np.inf:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected a number >= 0")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised of the objective."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Solve by letting every server play what it believes."""
        with Run[SelectionPlan](self, problem, options) as run:
            policies = self.policies(problem, run.seed)
            play(run, problem, lambda environment: picks_of(policies, environment))
        return run.result()

    def policies(self, problem: ClientSelection, seed: int) -> Sequence[Policy]:
        """Return one policy for each server."""
        return one_each(_Source(self, problem), problem, seed)


def phases_by_rule(problem: SelectionInstance) -> int:
    """Return L for a problem: three fifths of the rounds between two turns of a client, if a server takes its own in turn.

    The median over servers, rounded down, at least 1. Fewer phases find what is free sooner and know loads that are
    fresher: fewer conflicts. More phases spread the picks over more clients: more fairness. [ours, by trial]

    Examples
    --------
    >>> phases_by_rule(ClientSelection.random())  # 4 of 22 clients: a turn in 5.5 rounds
    2
    """
    turn = float(np.median(problem.num_covered / problem.picks))
    return int(np.clip(BETWEEN_TURNS * (turn - 1), 1, MOST_PHASES))


@dataclass(frozen=True, slots=True)
class _Source:
    """The solver on a problem: a source of policies."""

    solver: Reservation
    problem: ClientSelection

    def policy(self, server: int, seed: int) -> Policy:
        return _Policy(self.solver, self.problem, server, seed)


class _Policy:
    """One server, from its views alone."""

    def __init__(self, solver: Reservation, problem: ClientSelection, server: int, seed: int) -> None:
        self._timeout_s = problem.timeout_s
        self._beliefs = Beliefs(solver, problem, [seed], servers=[server])

    def pick(self, view: ServerView) -> NDArray[np.int64]:
        beliefs = self._beliefs
        if view.round > 0:
            beliefs.hear_view(view)
        share = (view.latency_s / self._timeout_s)[None, None]
        return view.clients[beliefs.choose(share, view.bonus[None, None])[0, 0, : view.num_picks]]


class Beliefs:
    """What servers believe in many episodes at once, and whom they pick by that; arrays are [E, S, N], see the kernels.

    A server's row depends on its own outcomes and noise alone.

    Parameters
    ----------
    settings : of the solver.
    problem : sizes, weights and mode.
    seeds : of the noise, one per episode.
    servers : only these servers. Default: all.
    """

    def __init__(
        self,
        settings: Reservation,
        problem: SelectionInstance,
        seeds: Sequence[int],
        servers: Sequence[int] | None = None,
    ) -> None:
        servers = range(problem.num_servers) if servers is None else servers
        self.settings, self.shares = settings, problem.mode == "share"
        self._picks = problem.picks[list(servers)].copy()
        self._count = problem.num_covered[list(servers)].copy()
        self._clients = covered_ids(problem.coverage[list(servers)])
        self._rngs = [[stream(seed, settings.name, server) for server in servers] for seed in seeds]
        weight = np.array([problem.latency_weight, problem.conflict_weight, problem.fairness_weight])
        weight /= weight.max() or 1.0  # `hold` and `noise` are in units of the largest
        self.weight = weight * [1.0, settings.caution, 1.0]
        shape = self.shape = (len(seeds), len(self._count), int(self._count.max()))
        phases = phases_by_rule(problem) if settings.phases is None else settings.phases
        self._phases = np.full(len(self._count), phases, np.int32)
        self.now = 0
        self.transition, self.often = np.tile(MOVES, (*shape[:2], 1, 1)), np.tile(OFTEN, (*shape[:2], 1))
        start = np.empty(2)
        settle(MOVES, start)
        self.load = np.tile(start, (*shape, 1))
        self.busy = np.full(shape, float(start @ OFTEN))
        self.taken = np.full((*shape[:2], phases, shape[2]), settings.prior)
        self.held = np.zeros(self.taken.shape, bool)
        self._outcomes = np.full((*shape, problem.rounds), -1, np.int8)
        self._others = np.zeros((*shape, problem.rounds), np.float32)

    @property
    def filled(self) -> NDArray[np.bool_]:
        """Bool [S, N], where there are clients."""
        return np.asarray(np.arange(self.shape[2]) < self._count[:, None])

    def in_this_phase(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Return taken float64 and held bool [E, S, N] of the phase of the coming round."""
        servers, phase = np.arange(self.shape[1]), self.now % self._phases
        return self.taken[:, servers, phase], self.held[:, servers, phase]

    def choose(self, latency: Floats, bonus: Floats) -> NDArray[np.int32]:
        """Return the picks int32 [E, S, M] of the coming round, positions among the covered, -1 to fill up.

        Parameters
        ----------
        latency : of each client, as a share of the time-out.
        bonus : fairness that a delivery would earn, from 0 to 1.
        """
        picks = np.empty((*self.shape[:2], int(self._picks.max())), np.int32)
        settings = self.settings
        choose(
            self.now, self._phases, self._count, self._picks, self.weight, settings.patience, self.shares,
            settings.hold, GRID, latency, bonus, self.busy, self.taken, self.held, self._noise(), picks,
        )  # fmt: skip
        return picks

    def hear(self, outcome: NDArray[np.int8], arrived: NDArray[np.bool_]) -> None:
        """Take in a round: outcomes int8 [E, S, N], -1 not picked, 0 no conflict, 1 conflict, and which updates arrived."""
        settings, phase = self.settings, np.asarray(self.now % self._phases, np.int32)
        if self.now < self._outcomes.shape[3]:
            self._outcomes[..., self.now] = np.where((outcome == 1) & arrived, 2, outcome)
            self._others[..., self.now] = self.in_this_phase()[0]
        hear(
            phase, self._count, np.ascontiguousarray(outcome), np.ascontiguousarray(arrived), settings.slip,
            settings.prior, settings.forget, self.transition, self.often, self.load, self.busy, self.taken, self.held,
        )  # fmt: skip
        self.now += 1
        times = self.now // settings.fit_at
        if self.now == times * settings.fit_at and times.bit_count() == 1 and self.now < self._outcomes.shape[3]:
            fit_loads(
                self.now, self._count, self._outcomes, self._others, FIT_STEPS, PRIORS, self.transition, self.often,
                self.load, self.busy,
            )  # fmt: skip

    def picks(self, environment: SelectionEnvironment) -> NDArray[np.int32]:
        """Return the picks int32 [E, S, M] of all servers in the coming round, client ids."""
        problem, now = environment.problem, environment.now
        latency, bonus = np.zeros(self.shape), np.zeros(self.shape)
        look(
            now, self._clients, self._count, self._picks, np.ascontiguousarray(environment.scenarios.fading[:, now]),
            problem.compute_s.copy(), problem.rate_at(now).copy(), problem.payload_bits, problem.timeout_s,
            environment.last, latency, bonus,
        )  # fmt: skip
        return client_ids(self._clients, self.choose(latency, bonus))

    def update(self, environment: SelectionEnvironment) -> None:
        """Take in the last round of an environment, each server its own outcomes."""
        servers = np.arange(self.shape[1])[:, None]
        arrived = environment.last[:, servers, self._clients] == environment.now - 1
        self.hear(environment.outcome[:, servers, self._clients], arrived)

    def hear_view(self, view: ServerView) -> None:
        """Take in what the view of one server says of the round before; for beliefs of one server and one episode."""
        self.hear(view.outcome.reshape(self.shape), (view.last == view.round - 1).reshape(self.shape))

    def _noise(self) -> Floats:
        noise = np.zeros(self.shape)
        if self.settings.noise > 0:
            for e, row in enumerate(self._rngs):
                for s, rng in enumerate(row):
                    noise[e, s, : self._count[s]] = self.settings.noise * rng.gumbel(size=self._count[s])
        return noise
