"""Names in help texts come from the registries: ``$algorithms`` stands for the names of all algorithms, and so on.

They are looked up when help is shown and not before, since some registries need torch.
"""

import importlib
from string import Template
from typing import Any

from typer.core import TyperCommand

from edgeopt.errors import MissingDependencyError

REGISTRIES: dict[str, tuple[str, str]] = {
    "algorithms": ("edgeopt.training.algorithms", "ALGORITHMS"),
    "codecs": ("edgeopt.training.codecs", "CODECS"),
    "data_sets": ("edgeopt.data", "DATA_SETS"),
    "kinds": ("edgeopt.problems", "PROBLEMS"),
    "models": ("edgeopt.models", "SMALL_MODELS"),
    "moe_models": ("edgeopt.problems", "MOE_MODELS"),
    "partitions": ("edgeopt.experiment.config", "PARTITIONS"),
    "planners": ("edgeopt.experiment.planners", "OWN_PLANNERS"),
    "precisions": ("edgeopt.experiment.config", "PRECISIONS"),
    "profiles": ("edgeopt.profile", "BUNDLED_PROFILES"),
    "routing_formats": ("edgeopt.problems", "ROUTING_FORMATS"),
    "runners": ("edgeopt.cli.train", "RUNNERS"),
    "series_formats": ("edgeopt.series_files", "SERIES_FORMATS"),
    "studies": ("edgeopt.evaluation.studies", "STUDIES"),
    "traces": ("edgeopt.problems", "BUNDLED_TRACES"),
}
"""Module and name of the registry behind each ``$word``."""


def names_of(word: str) -> list[str]:
    """Return the names in a registry.

    Examples
    --------
    >>> names_of("traces")
    ['switch32', 'mixtral8', 'fine64']
    >>> names_of("kinds")[0]
    'expert-caching'
    """
    module, attribute = REGISTRIES[word]
    entries = getattr(importlib.import_module(module), attribute)
    key = "kind" if word == "kinds" else "name"
    return [entry if isinstance(entry, str) else getattr(entry, key) for entry in entries]


class ListingCommand(TyperCommand):
    """A command in whose help ``$word`` stands for names in a registry."""

    def format_help(self, *given: Any) -> None:
        """Write the help, with the names."""
        found = _Found()
        for parameter in self.params:
            if (text := getattr(parameter, "help", None)) is not None:
                parameter.help = Template(text).safe_substitute(found)  # type: ignore[attr-defined]
        super().format_help(*given)


class _Found(dict[str, str]):
    """Looks up what is asked for."""

    def __missing__(self, word: str) -> str:
        try:
            return ", ".join(names_of(word))
        except MissingDependencyError:  # brackets would be markup here
            return "(not installed, see edgeopt info)"
