"""`rl-crp`, `rl-no-crp`, `rl-no-fairness`: servers that learn whom to pick, each by itself."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.extras import needs
from edgeopt.interrupts import interrupted, interrupts_noted, is_interrupt
from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.progress import TrainingBar
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.client_selection.policy import Policy, cyclic_plan, one_each, picks_of, supports_client_selection
from edgeopt.solvers.client_selection.trained_policy import TrainedPolicy
from edgeopt.stop import Limit

if TYPE_CHECKING:
    from edgeopt.solvers.client_selection.learner import Iteration, Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class RlCrp:
    """One network for all servers learns to pick, from the views and rewards of each, with the beliefs of `reservation`.

    A network that does not depend on the order of clients, or on their number, scores those of a server. It sees the
    forecast of a conflict and its two causes, busy or taken in this phase, what `reservation` thinks of the pick, and a
    number of the client's own, drawn for each server and episode: by it equal servers decide differently. The score
    starts from the worth of `reservation`. Training draws Plackett-Luce picks and improves the scores by proximal policy
    optimisation; a pick answers for conflict and fairness of its own, and for the time by which it alone made the round
    longer. The trained policy picks the clients of highest score, also on problems of other sizes.
    Trained on episodes of their own chance, never on the one that the plan is judged on; but a recorded table leaves
    nothing to chance: who is busy, or the rates in it, are then the same in training as when judged. Our formulation,
    after RL-CRP (arXiv 2602.02458), whose learner and reward are not known to us; `RlCrpPlain` is nearer to what is known
    of it. Needs the extra ``train``, but not to play a trained policy.

    O(T sum of n_s H^2) time per episode, n_s being the clients of server s and H the width of the networks. One iteration
    is one update.

    Parameters
    ----------
    iterations : updates; each plays `episodes` episodes.
    episodes, hidden, epochs, minibatches, learning_rate : see `LearnerSettings`.
    demonstrations : first iterations in which servers also see what `matching` picks, as agents of `Leed` see a planner; it
        counts less from one to the next. 0 never.
    patience : stop early when the mean reward of ten iterations has not risen for so many; None never does.
    checkpoint : file to write every ten iterations and at the end, and to go on from if it is there.
    policy : file of a trained policy to play, instead of training.
    """

    iterations: int = 100
    episodes: int = 8
    hidden: int = 16
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    demonstrations: int = 0
    patience: int | None = None
    checkpoint: str | None = None
    policy: str | None = None

    name: ClassVar[str] = "rl-crp"
    guarantee: ClassVar[Guarantee] = Heuristic("learned")
    forecasts: ClassVar[bool] = False
    reserves: ClassVar[bool] = True
    fair: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("iterations", "episodes", "hidden", "epochs", "minibatches"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected an integer >= 1")
        if not isinstance(self.demonstrations, int) or self.demonstrations < 0:
            raise EdgeOptError(f"demonstrations = {quoted(self.demonstrations)}: expected an integer >= 0")
        if self.patience is not None and self.patience < 1:
            raise EdgeOptError(f"patience = {quoted(self.patience)}: expected an integer >= 1 or None")
        if not 0 < self.learning_rate < np.inf:
            raise EdgeOptError(f"learning_rate = {quoted(self.learning_rate)}: expected a number > 0")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Train, unless there is a policy, and play it on the problem's own episode."""
        with Run[SelectionPlan](self, problem, options) as run:
            if self.policy is not None:
                run.offer(play_policy(problem, TrainedPolicy.load(self.policy), run.stopped))
            else:
                self._train_and_play(run, problem)
        return run.result()

    def _train_and_play(self, run: Run[SelectionPlan], problem: ClientSelection) -> None:
        """Train until a limit leaves just the time to play what has been learned, and play it; `cyclic_plan` if it is over now."""
        plan, needed_s = SelectionPlan(cyclic_plan(problem)), 0.0
        if run.stopped():
            run.offer(plan)
            return
        with run.building():
            learner = self._learner(problem, run.seed)
        played = 0  # iterations that the plan knows of

        def stopped() -> bool:
            if run.remaining <= needed_s:
                run.limit = run.limit or Limit.TIME
            return run.stopped()

        try:
            if math.isfinite(run.options.time_limit):
                before = run.seconds
                plan, played = play_policy(problem, learner.policy(), run.stopped), learner.iteration
                needed_s = run.seconds - before
            for _ in self._iterations(learner, stopped):
                run.step()
        finally:  # what has been learned is played also after an interrupt
            if learner.iteration > played:
                plan = play_policy(problem, learner.policy())
            run.offer(plan)

    def policies(self, problem: ClientSelection, seed: int) -> list[Policy]:
        """Return what each server has learned, on `HORIZON` rounds of the problem or as many as are recorded.

        So a run that is resumed for more rounds has the same policies. Where a policy is given, nothing is learned.
        """
        if self.policy is not None:
            trained = TrainedPolicy.load(self.policy)
        else:
            recorded = [problem.busy, problem.rate_bps if problem.rate_bps.ndim == 3 else None]
            rounds = min([HORIZON, *(len(table) for table in recorded if table is not None)])
            trained = self.train(problem.replace(rounds=rounds), seed=seed, display=True)
        return one_each(trained.on(problem), problem, seed)

    def train(self, problem: ClientSelection, *, seed: int = 0, display: bool = False) -> TrainedPolicy:
        """Train on a problem and return the policy; Ctrl-C returns what has been learned so far.

        Parameters
        ----------
        problem : what to train on; its own seed is not used.
        seed : same seed, same policy.
        display : show a progress bar on a terminal.

        Raises
        ------
        MissingDependencyError
            Without torch.
        InvalidFileError
            If the checkpoint is of another problem, other settings or another seed.
        """
        learner = self._learner(problem, seed)
        with interrupts_noted(), TrainingBar(self.name, self.iterations) if display else nullcontext() as bar:
            try:
                for done in self._iterations(learner, interrupted):
                    if bar is not None:
                        bar.update(done.number, f"reward {done.reward:.3f}  conflicts {100 * done.conflict_rate:.1f} %")
            except (KeyboardInterrupt, SystemError) as error:
                if not is_interrupt(error):
                    raise
        return learner.policy()

    def _learner(self, problem: ClientSelection, seed: int) -> "Learner":
        with needs(self.name, "train"):
            from edgeopt.solvers.client_selection.learner import Learner, LearnerSettings
        settings = LearnerSettings(
            episodes=self.episodes,
            hidden=self.hidden,
            epochs=self.epochs,
            minibatches=self.minibatches,
            learning_rate=self.learning_rate,
            forecasts=self.forecasts,
            reserves=self.reserves,
            demonstrations=self.demonstrations,
        )
        learner = Learner(problem if self.fair else problem.replace(fairness_weight=0.0), settings, seed)
        if self.checkpoint is not None:
            if not (folder := Path(self.checkpoint).absolute().parent).is_dir():
                raise EdgeOptError(f"checkpoint = {quoted(self.checkpoint)}: there is no folder {folder}")
            if Path(self.checkpoint).exists():
                learner.restore(self.checkpoint)
        return learner

    def _iterations(self, learner: "Learner", stopped: Callable[[], bool] = lambda: False) -> "Iterator[Iteration]":
        """Train until the last iteration, a limit, or until patience ends; checkpoints every ten iterations and at the end."""
        saved = learner.iteration
        try:
            while learner.iteration < self.iterations and not self._has_stalled(learner.rewards):
                if (done := learner.step(stopped)) is None:
                    return
                yield done
                if self.checkpoint is not None and learner.iteration % CHECKPOINT_EVERY == 0:
                    learner.save(self.checkpoint)
                    saved = learner.iteration
        finally:
            if self.checkpoint is not None and learner.iteration > saved:
                learner.save(self.checkpoint)

    def _has_stalled(self, rewards: list[float]) -> bool:
        if self.patience is None or len(rewards) < SMOOTHED + self.patience:
            return False
        means = np.convolve(rewards, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
        return len(means) - 1 - int(means.argmax()) >= self.patience


@dataclass(frozen=True, slots=True, kw_only=True)
class RlCrpPlain(RlCrp):
    """Each server learns by itself to pick, with a network of its own and forecasts of conflicts by a hidden Markov model.

    What is known of RL-CRP, and no more: no phases, nothing shared, nothing that breaks ties between servers, and every
    pick answers for the time of the whole round. The model is fitted to the server's own outcomes, whatever the cause of
    a conflict. A policy is for as many servers as it was trained with. O(T sum of n_s H^2) time per episode, see `RlCrp`.
    One iteration is one update.
    """

    minibatches: int = 2
    learning_rate: float = 1e-2

    name: ClassVar[str] = "rl-crp-plain"
    forecasts: ClassVar[bool] = True
    reserves: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RlNoCrp(RlCrpPlain):
    """The plain learner without forecasts of conflicts: how often picks have failed is all that a server knows.

    O(T sum of n_s H^2) time per episode, see `RlCrp`. An ablation. One iteration is one update.
    """

    name: ClassVar[str] = "rl-no-crp"
    forecasts: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RlNoFairness(RlCrpPlain):
    """The plain learner with forecasts, trained without the fairness term; it is judged with it.

    O(T sum of n_s H^2) time per episode, see `RlCrp`. An ablation. One iteration is one update.
    """

    name: ClassVar[str] = "rl-no-fairness"
    fair: ClassVar[bool] = False


CHECKPOINT_EVERY = 10  # iterations
HORIZON = 100  # rounds
SMOOTHED = 10  # iterations


def play_policy(
    problem: ClientSelection, trained: TrainedPolicy, stopped: Callable[[], bool] = lambda: False
) -> SelectionPlan:
    """Return the plan of a trained policy on the problem's own episode, every server seeing its own views only.

    The rounds after it is `stopped` are filled with `cyclic_plan`.

    Raises
    ------
    UnsupportedProblemError
        If the policy was trained for another number of servers.
    """
    policies = one_each(trained.on(problem), problem, seed=0)
    environment = SelectionEnvironment(problem)
    picks = cyclic_plan(problem)
    while not environment.done and not stopped():
        now = environment.now
        picks[now] = picks_of(policies, environment)
        environment.step(picks[now : now + 1])
    return SelectionPlan(picks)
