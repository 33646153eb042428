"""Building what an `Experiment` says: data, model, algorithm, network, problem, timing, planner."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.experiment.config import KINDS, Description
from edgeopt.experiment.options import (
    Options,
    about,
    checked_options,
    hints_of,
    unknown,
    unknown_name,
)
from edgeopt.experiment.planners import WITHOUT_PROBLEM, kind_of_solver, planner_for
from edgeopt.extras import needs
from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection, CostFactors, SplitTraining, load
from edgeopt.profile import ModelProfile
from edgeopt.rng import stream
from edgeopt.schedule import AvailableOnly, Planner

with needs("training", "train"):
    import torch
    from torch import nn

    from edgeopt.data import DATA_SETS, load_data
    from edgeopt.data.arrays import ArrayData, DataSplit
    from edgeopt.data.partition import Partition, by_column, dirichlet, iid, shards
    from edgeopt.data.text import byte_text, token_text
    from edgeopt.experiment.network import (
        SERIES_FILES,
        has_several_servers,
        measured_network,
        network_of,
        selection_problem,
        series_of,
        servers_of,
        split_problem,
        timing_options,
    )
    from edgeopt.models.hugging_face import from_transformers
    from edgeopt.models.language_model import LanguageModel, load_language_model
    from edgeopt.models.lora import add_lora, lora_layers
    from edgeopt.models.small import SMALL_MODELS, model_for
    from edgeopt.training.algorithm import SplitAlgorithm
    from edgeopt.training.algorithms import ALGORITHMS, Algorithm
    from edgeopt.training.codecs import CODECS, Compressed
    from edgeopt.training.constants import Estimator
    from edgeopt.training.costs.selection_timing import SelectionTiming
    from edgeopt.training.costs.timing import EdgeTiming, Timing
    from edgeopt.training.history import History
    from edgeopt.training.loop import OnRound, train
    from edgeopt.training.optimizers import Adam, Optimizer, Sgd
    from edgeopt.training.runners.local import Runner
    from edgeopt.training.task import Task

OPTIMIZERS: dict[str, type[Sgd | Adam]] = {"sgd": Sgd, "adam": Adam}
TRANSFORMERS = "transformers"
"""Name of the models that lie in a folder."""
_DEFAULT_CLIENTS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """An experiment that is ready to run; the parts are those of `edgeopt.training.train`.

    Parameters
    ----------
    problem : what the planner solves, as the run knows it before the first round; None for planners without one.
    original : the model of transformers that the task's adapters belong to; None for other tasks.
    """

    experiment: Description
    task: Task
    algorithm: Algorithm
    planner: Planner
    timing: Timing
    estimator: Estimator | None
    problem: Problem | None
    original: nn.Module | None = None

    __repr__ = one_line

    def train(
        self,
        *,
        runner: Runner | None = None,
        on_round: OnRound | Sequence[OnRound] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
        resume: bool = False,
        display: bool = False,
    ) -> History:
        """Train. A planner that remembers can do so once: build anew to train again."""
        return train(
            self.task,
            self.algorithm,
            self.planner,
            self.timing,
            rounds=self.experiment.rounds,
            evaluate_every=self.experiment.evaluate_every,
            until_accuracy=self.experiment.until_accuracy,
            estimator=self.estimator,
            runner=runner,
            on_round=on_round,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            display=display,
        )


def build(experiment: Description) -> Setup:
    """See `Experiment.build`."""
    e = experiment
    saved = _saved(e)
    kind = _kind(e, saved)
    algorithm = _algorithm(e, kind, saved)
    trained = _compressed(e, algorithm)
    language = _language_model(e)
    split = _data(e, language)
    partition = _partition(e, split, saved)
    task = _task(e, split, partition, saved, language)
    problem, timing = _surroundings(e, kind, task, algorithm, saved)
    with about(e.source, "planner"):
        planner, estimator = planner_for(e, task, problem, timing)
    if e.network.availability is not None:
        planner = AvailableOnly(planner, series_of(e, task.num_clients)["available"])
    original = language.model if language is not None and lora_layers(task.model) else None
    return Setup(e, task, trained, planner, timing, estimator, problem, original)


def _surroundings(
    e: Description, kind: str, task: Task, algorithm: Algorithm, saved: Problem | None
) -> tuple[Problem | None, Timing]:
    """Return the problem, if the planner needs one, and the timing; both are about the same network."""
    options = timing_options(e, kind)
    if saved is not None and (others := [key for key in e.network.options if key not in options]):
        raise unknown(e.source, "network", others[0], e.network.options[others[0]], ["file", "kind", *options])
    with about(e.source, "network"):
        series: dict[str, Any] = series_of(e, task.num_clients)
    given = [key for key in SERIES_FILES if getattr(e.network, key) is not None and key != "carbon"]
    if given and kind == ClientSelection.kind:
        name = given[0]
        raise e.wrong(
            "network", name, getattr(e.network, name), "it with split-training alone: see ClientSelection.from_rates"
        )
    series.pop("available", None)  # which is the planner's
    if saved is not None and e.network.device_table is not None:
        raise e.wrong("network", "device_table", e.network.device_table, "none, as the file has its devices")
    network = network_of(e, kind, task.num_clients) if saved is None else None
    if kind == ClientSelection.kind:
        power: dict[str, Any] = {} if network is None else {"device_power_w": network.device_power_w}
        energy: dict[str, Any] = {key: value for key, value in options.items() if key == "joules_per_flop"}
        if network is not None:
            saved = selection_problem(e, task, getattr(algorithm, "batch_size", 16), network)
        assert isinstance(saved, ClientSelection)
        with about(e.source, "network"):
            return saved, SelectionTiming(problem=saved, **power, **energy, **series)
    factors: CostFactors = getattr(algorithm, "cost_factors", CostFactors())
    with about(e.source, "network"):
        if network is None:
            assert isinstance(saved, SplitTraining)
            options.pop("fed_rate_bps", None)  # it has one
            saved = saved.replace(factors=factors)  # what rounds cost is the algorithm's to say
            return saved, EdgeTiming.from_problem(saved).replace(seed=e.seed, **options, **series)
        network = measured_network(network, series)
        timing = EdgeTiming.from_network(network, seed=e.seed, **options, **series)
    if e.planner.name in WITHOUT_PROBLEM:
        return None, timing
    optimizer = next((getattr(algorithm, name) for name in optimizer_fields(type(algorithm))), None)
    step_size = (optimizer if isinstance(optimizer, Sgd | Adam) else Sgd()).lr
    return split_problem(e, task, step_size, network, factors), timing


def optimizer_from(options: Options, source: str, table: str, usual: str = "sgd") -> Optimizer:
    """Return the optimiser that a table with ``name``, `usual` without, and the optimiser's fields describes."""
    given = dict(options)
    name = given.pop("name", usual)
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise unknown_name(source, table, name, OPTIMIZERS)
    kind = OPTIMIZERS[name]
    with about(source, table):
        return kind(**checked_options(source, table, given, hints_of(kind)))


def algorithm_class(name: str, source: str = "") -> type[Algorithm]:
    """Return the algorithm of a name."""
    classes = {algorithm.name: algorithm for algorithm in ALGORITHMS}
    if name not in classes:
        raise unknown_name(source, "algorithm", name, classes)
    return classes[name]


def optimizer_fields(algorithm: type[Algorithm]) -> list[str]:
    """Return the fields of an algorithm that are optimisers."""
    return [name for name in hints_of(algorithm) if name.endswith("optimizer")]


# --- parts -----------------------------------------------------------------------------------------------------


def _saved(e: Description) -> SplitTraining | ClientSelection | None:
    if e.network.file is None:
        return None
    saved = load(e.network.file)
    if not isinstance(saved, SplitTraining | ClientSelection):
        raise e.wrong("network", "file", e.network.file, f"a {' or '.join(KINDS)} problem, it is {saved.kind}")
    return saved


def _kind(e: Description, saved: Problem | None) -> str:
    if saved is not None:
        if e.network.kind not in (None, saved.kind):
            raise e.wrong("network", "kind", e.network.kind, f"{saved.kind!r} as in {e.network.file}")
        return saved.kind
    if e.network.kind is not None:
        return e.network.kind
    if has_several_servers(e):
        return ClientSelection.kind
    return kind_of_solver(e.planner.name) or SplitTraining.kind


def _algorithm(e: Description, kind: str, saved: Problem | None) -> Algorithm:
    cls = algorithm_class(e.algorithm.name, e.source)
    hints = hints_of(cls)
    if kind == ClientSelection.kind and "cut_layer" in hints:  # said before a policy is trained for minutes
        whole = ", ".join(other.name for other in ALGORITHMS if "cut_layer" not in hints_of(other))
        raise e.wrong("algorithm", "name", e.algorithm.name, f"with client selection one of {whole}")
    options: dict[str, Any] = {}
    if "num_servers" in hints and kind == ClientSelection.kind:  # as many as the network has
        options["num_servers"] = saved.num_servers if isinstance(saved, ClientSelection) else servers_of(e)
    options |= checked_options(e.source, "algorithm", e.algorithm.options, hints)
    for name in optimizer_fields(cls):
        if name in options:
            if not isinstance(options[name], dict):
                raise e.wrong("algorithm", name, options[name], "a table with the name of an optimiser and its fields")
            options[name] = optimizer_from(options[name], e.source, f"algorithm.{name}", _usual_optimizer(cls, name))
    with about(e.source, "algorithm"):
        return cls(**options)


def _usual_optimizer(algorithm: type[Any], name: str) -> str:
    """Return the name of the optimiser that a field of an algorithm has by default."""
    found = next(field for field in dataclasses.fields(algorithm) if field.name == name)
    default = found.default if found.default_factory is dataclasses.MISSING else found.default_factory()
    return next((usual for usual, kind in OPTIMIZERS.items() if type(default) is kind), "sgd")


def _compressed(e: Description, algorithm: Algorithm) -> Algorithm:
    """Return the algorithm with its codec around it, if there is one."""
    if e.codec is None:
        return algorithm
    codecs = {codec.name: codec for codec in CODECS}
    if e.codec.name not in codecs:
        raise unknown_name(e.source, "codec", e.codec.name, codecs)
    if not isinstance(algorithm, SplitAlgorithm):
        split = ", ".join(other.name for other in ALGORITHMS if "cut_layer" in hints_of(other))
        raise e.wrong("algorithm", "name", e.algorithm.name, f"with a codec one that has cuts: {split}")
    cls = codecs[e.codec.name]
    options = checked_options(e.source, "codec", e.codec.options, {**hints_of(cls), "report_errors": bool})
    report_errors = options.pop("report_errors", False)
    with about(e.source, "codec"):
        return Compressed(algorithm, cls(**options), report_errors)


def _language_model(e: Description) -> LanguageModel | None:
    """Return the model of a folder, if the experiment has one."""
    if e.model.name != TRANSFORMERS:
        return None
    folder = e.model.options.get("folder")
    if not isinstance(folder, str):
        raise e.wrong("model", "folder", folder, "a folder of transformers, or a GGUF file")
    with about(e.source, "model"):
        return load_language_model(folder)


def _data(e: Description, language: LanguageModel | None) -> DataSplit:
    data = e.data
    if data.name not in DATA_SETS:
        raise unknown_name(e.source, "data", data.name, DATA_SETS)
    if language is not None and data.name != "text":
        raise e.wrong("data", "name", data.name, f"'text' with {TRANSFORMERS}")
    with about(e.source, "data"):
        if language is not None and language.encode is not None:
            files = None if data.folder is None else text_files(data.folder)
            context = 128 if data.context is None else data.context
            return token_text(language.encode, language.vocabulary, files, context, seed=e.seed)
        if data.context is None:
            return load_data(data.name, data.folder, e.seed)
        if data.name != "text":
            raise InvalidProblemError(f"context = {data.context}: {data.name} has none, expected it for text only")
        files = None if data.folder is None else text_files(data.folder)
        return byte_text(files, data.context, seed=e.seed)


def text_files(folder: str) -> list[str]:
    """Return the ``*.txt`` of a folder in the order of their names."""
    if not os.path.isdir(folder) or not (found := sorted(n for n in os.listdir(folder) if n.endswith(".txt"))):
        raise InvalidProblemError(f"folder = {quoted(folder)}: expected a folder with files *.txt")
    return [os.path.join(folder, name) for name in found]


def _partition(e: Description, split: DataSplit, saved: SplitTraining | ClientSelection | None) -> Partition:
    data, train = e.data, split.train
    wanted = data.clients
    if saved is not None:
        wanted = saved.num_devices if isinstance(saved, SplitTraining) else saved.num_clients
        if data.clients not in (None, wanted):
            raise e.wrong("data", "clients", data.clients, f"{wanted} as in {e.network.file}")
    clients = wanted or _DEFAULT_CLIENTS
    with about(e.source, "data"):
        if data.partition == "iid":
            return iid(len(train), clients, e.seed)
        if data.partition == "dirichlet":
            return dirichlet(train.labels, clients, data.alpha, e.seed)
        if data.partition == "shards":
            return shards(train.labels, clients, data.shards, e.seed)
        if train.group is None:
            raise InvalidProblemError(f"partition = 'column': {data.name} does not say where its samples come from")
        found = by_column(train.group)
        if wanted not in (None, found.num_clients):
            raise InvalidProblemError(
                f"clients = {wanted}: {data.name} has {found.num_clients} groups, one for each client"
            )
        return found


def _model(e: Description, train: ArrayData, language: LanguageModel | None) -> nn.Sequential:
    """Return the model, with its adapters."""
    if language is None and e.model.name not in SMALL_MODELS:
        raise unknown_name(e.source, "model", e.model.name, [*SMALL_MODELS, TRANSFORMERS])
    own: dict[str, Any] = {"width": int} if language is None else {"folder": str, "adapters": str}
    hints = own | {"lora": str | tuple[str, ...], "rank": int, "alpha": float}
    options = checked_options(e.source, "model", e.model.options, hints)
    lora, adapters = options.pop("lora", None), options.get("adapters")
    settings = {name: options.pop(name) for name in ("rank", "alpha") if name in options}
    if settings and lora is None:
        name, value = next(iter(settings.items()))
        raise e.wrong("model", name, value, "with lora, names of the layers that have adapters")
    if lora is not None and adapters is not None:
        raise e.wrong("model", "lora", lora, "without adapters, a checkpoint that has layers of its own")
    seed = int(stream(e.seed, "model").integers(1 << 31))
    with about(e.source, "model"):
        if language is not None:
            model = from_transformers(language.model, adapters=adapters)
        else:
            shape = tuple(train.inputs.shape[1:])
            model = model_for(e.model.name, num_classes=train.num_classes, input_shape=shape, seed=seed, **options)
        return model if lora is None else add_lora(model, lora, **settings, seed=seed)


def _task(
    e: Description, split: DataSplit, partition: Partition, saved: Problem | None, language: LanguageModel | None
) -> Task:
    train = split.train
    model = _model(e, train, language)
    profile = ModelProfile.from_module(model, train.inputs[:1], name=e.model.name)
    if isinstance(saved, SplitTraining):
        if saved.num_layers != profile.num_layers:
            layers = f"a problem about the {profile.num_layers} layers of {e.model.name}, it has {saved.num_layers}"
            raise e.wrong("network", "file", e.network.file, layers)
        work = {name: getattr(saved, name) for name in ("forward_flops", "backward_flops")}
        profile = dataclasses.replace(profile, **work)  # the problem's own work is charged
    return Task(
        model=model,
        train=train,
        partition=partition,
        test=split.test,
        profile=profile,
        seed=e.seed,
        device=_device(e),
        precision=e.precision,
    )


def _device(e: Description) -> str:
    name, _, number = e.device.partition(":")
    there = {"cpu": not number, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name not in there or (number and not number.isdigit()):
        raise e.wrong("", "device", e.device, "cpu, cuda, cuda:NUMBER or mps")
    if not there[name] or (name == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise e.wrong("", "device", e.device, "a device that torch finds here")
    return e.device
