"""How good the models of a round are: the common one on all held-out samples, clients' own on what is like their data."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgeopt.training.algorithm import Algorithm, Models, PredictingAlgorithm
from edgeopt.training.history import PERSONAL
from edgeopt.training.messages import State, Tensors
from edgeopt.training.task import Predict, Score, Task
from edgeopt.training.trouble import TrainingError, described


class Scores(NamedTuple):
    """What a row says of the models of a round; nan for what was not measured.

    Parameters
    ----------
    loss, accuracy : on all held-out samples, see `judged`.
    personal_accuracy : of the clients' own models, each on held-out samples with the labels of its own data: their mean.
    personal_accuracy_worst_tenth : the mean over the tenth of them that are worst, at least one.
    """

    loss: float = np.nan
    accuracy: float = np.nan
    personal_accuracy: float = np.nan
    personal_accuracy_worst_tenth: float = np.nan

    def personal(self) -> dict[str, float]:
        """Return the columns of a row that are there only where clients have models of their own."""
        names = () if np.isnan(self.personal_accuracy) else PERSONAL
        return {name: getattr(self, name) for name in names}


def models_of(algorithm: Algorithm, task: Task, state: State, clients: Mapping[int, State]) -> Models:
    """Return the models of an algorithm; refuse what are none."""
    models: object = algorithm.models(task, state, clients)
    if not isinstance(models, Mapping):
        raise TrainingError(f"models: {described(models)}: expected weights by client, None for the common model")
    for key, weights in models.items():
        if isinstance(key, int) and not 0 <= key < task.num_clients:
            raise TrainingError(f"models: client {key}: expected 0 to {task.num_clients - 1}")
        if not isinstance(weights, Mapping):
            raise TrainingError(
                f"models[{key!r}] is {described(weights)}: expected weights by name, those of the common model under None"
            )
        # frozen weights may be among them: an algorithm may have folded into them what was learnt
        if unknown := set(weights) - set(task.layer_of) | set(task.weight_names) - set(weights):
            raise TrainingError(
                f"models[{key!r}]: {min(unknown)}: expected the weights of the model, no more and no less"
            )
    return models


def judged(models: Models) -> list[Tensors]:
    """Return the models whose mean score is the accuracy: those of servers, or of clients where no other is there."""
    common = [weights for key, weights in models.items() if not isinstance(key, int)]
    return common or list(models.values())


def personal(models: Models) -> dict[int, Tensors]:
    """Return the clients' own models, by id."""
    return {key: weights for key, weights in models.items() if isinstance(key, int)}


def score(algorithm: Algorithm, task: Task, models: Models, state: State, clients: Mapping[int, State]) -> Scores:
    """Judge the models of a round."""
    if not models:
        return Scores()
    common = {key: weights for key, weights in models.items() if not isinstance(key, int)} or models
    loss, accuracy = np.mean(
        [task.evaluate(w, predict=_predict(algorithm, task, state, clients, key)) for key, w in common.items()], axis=0
    )
    own: list[Score] = [
        task.evaluate(w, client=client, predict=_predict(algorithm, task, state, clients, client))
        for client, w in personal(models).items()
    ]
    accuracies = np.array([found.accuracy for found in own if not np.isnan(found.accuracy)])
    if not accuracies.size:
        return Scores(float(loss), float(accuracy))
    worst = np.sort(accuracies)[: -(-accuracies.size // 10)]
    return Scores(float(loss), float(accuracy), float(accuracies.mean()), float(worst.mean()))


def _predict(
    algorithm: Algorithm, task: Task, state: State, clients: Mapping[int, State], key: int | str | None
) -> Predict:
    if not isinstance(algorithm, PredictingAlgorithm):
        return task.predict
    return lambda weights, inputs: algorithm.predict(task, weights, inputs, key, state, clients)
