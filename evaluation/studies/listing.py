"""What there is to say about the studies: for the command line."""

from typing import Any

from edgeopt.errors import MissingDependencyError
from edgeopt.evaluation.studies import STUDIES, load_study
from edgeopt.evaluation.studies.stored import stored_verdicts
from edgeopt.evaluation.studies.study import settings
from edgeopt.storage import plain


def describe_studies() -> list[dict[str, Any]]:
    """Return each study with its claims and the stored verdicts; of one that lacks a package, only that it does."""
    return [_described(name) for name in STUDIES]


def _described(name: str) -> dict[str, Any]:
    try:
        study = load_study(name)
    except MissingDependencyError as error:
        return {"name": name, "title": str(error)}
    stored = stored_verdicts(name) or {"claims": []}
    verdicts = {claim["claim"]: claim["verdict"] for claim in stored["claims"]}
    found: dict[str, Any] = plain(
        {
            "name": name,
            "title": study.title,
            "system": study.system,
            "baselines": study.baselines,
            "ablations": study.ablations,
            "tasks": study.tasks,
            "on_demand": study.on_demand,
            "seeds": study.seeds,
            "settings": settings(study.full),
            "claims": [
                {
                    "claim": claim.text,
                    "source": claim.source,
                    "verdict": verdicts.get(claim.text, "not run in full yet"),
                }
                for claim in study.claims
            ],
        }
    )
    return found
