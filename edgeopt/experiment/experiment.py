"""`Experiment`: a training run that is described, built and run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeopt.experiment.config import Description

if TYPE_CHECKING:
    from edgeopt.experiment.build import Setup
    from edgeopt.training.history import History
    from edgeopt.training.loop import OnRound
    from edgeopt.training.runners.local import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment(Description):
    """A training run: everything that decides its result.

    Parameters
    ----------
    algorithm : one of `edgeopt.training.algorithms.ALGORITHMS`; its options are its fields, and ``optimizer`` a table with
        ``name`` (``sgd`` or ``adam``) and the fields of that.
    codec : one of `edgeopt.training.CODECS`, for what crosses the cuts of a split algorithm; its options are its fields, and
        ``report_errors`` as in `edgeopt.training.Compressed`. Default: nothing is coded.
    data : samples and clients.
    model : one of `edgeopt.models.small.SMALL_MODELS`, with the option ``width``; or ``transformers``, with ``folder`` as in
        `edgeopt.models.load_language_model`, and ``adapters``, a checkpoint of peft to start from. With ``lora``, the pattern of
        `edgeopt.models.add_lora` or a list of them, ``rank`` and ``alpha`` it has adapters, and nothing else is trained.
    network : devices, servers, rates.
    problem : arguments of `SplitTraining.from_profile` or `ClientSelection.from_network`, for planners that solve one; and
        ``measure``, whether the constants of the convergence bound are measured at the start (default) or not.
    planner : ``fixed``, ``random``, ``schedule``, ``hasfl``, or the name of a solver; see
        `edgeopt.experiment.planners.planner_for`.
    rounds : how many rounds there are at most.
    seed : decides data, partition, model, network and mini-batches.
    device, precision : as in `edgeopt.training.Task`.
    evaluate_every : rounds between two evaluations.
    until_accuracy : end when it is reached.
    source : file that it comes from, for messages.

    Raises
    ------
    InvalidProblemError
        Naming table, key, value and what was expected.

    Examples
    --------
    >>> experiment = Experiment.from_dict({"rounds": 5, "data": {"clients": 4}, "algorithm": {"name": "fedprox", "mu": 0.1}})
    >>> experiment.algorithm
    Choice(name='fedprox', options={'mu': 0.1})
    >>> Experiment.from_dict(experiment.to_dict()) == experiment
    True
    """

    def build(self) -> "Setup":
        """Load data and network, make model, algorithm and planner.

        Raises
        ------
        MissingDependencyError
            Without torch.
        EdgeOptError
            If something does not exist or does not fit; the message says which entry is to blame.
        """
        from edgeopt.experiment.build import build

        return build(self)

    def run(
        self,
        *,
        runner: "Runner | None" = None,
        on_round: "OnRound | Sequence[OnRound]" = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
        resume: bool = False,
        display: bool = False,
    ) -> "History":
        """Build and train; the arguments are those of `edgeopt.training.train`."""
        return self.build().train(
            runner=runner,
            on_round=on_round,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            display=display,
        )
