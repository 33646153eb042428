"""Studies: what a system is worth beside its baselines and ablations, as rows, pictures, a report and verdicts on claims.

A study is the `STUDY` of a module of this package, or of one of your own.
"""

import importlib
from typing import Any

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.evaluation.studies.claims import Always as Always
from edgeopt.evaluation.studies.claims import Claim as Claim
from edgeopt.evaluation.studies.claims import Decision as Decision
from edgeopt.evaluation.studies.claims import Difference as Difference
from edgeopt.evaluation.studies.claims import Evidence as Evidence
from edgeopt.evaluation.studies.claims import Figure as Figure
from edgeopt.evaluation.studies.claims import Level as Level
from edgeopt.evaluation.studies.claims import Ordering as Ordering
from edgeopt.evaluation.studies.claims import Rate as Rate
from edgeopt.evaluation.studies.claims import Ratio as Ratio
from edgeopt.evaluation.studies.study import Found as Found
from edgeopt.evaluation.studies.study import Picture as Picture
from edgeopt.evaluation.studies.study import Study as Study
from edgeopt.evaluation.studies.study import StudyCell as StudyCell
from edgeopt.evaluation.studies.study import run_study as run_study
from edgeopt.extras import needs

STUDIES = (
    "client-selection",
    "codecs",
    "deer",
    "download-regret",
    "dual-health",
    "expert-caching",
    "fedalign-moe",
    "flexp-sfl",
    "gapsl",
    "hfedmoe",
    "ho-sfl",
    "hsplit-lora",
    "joint-plan",
    "leed",
    "model-download",
    "ntrscc",
    "rate-regret",
    "sider",
    "split-training",
    "svdecode",
)
"""Names of the studies; the module of each is called so, with underscores."""


def load_study(name: str) -> Study[Any]:
    """Return a study by its name.

    Raises
    ------
    EdgeOptError
        If there is none.
    MissingDependencyError
        Without what the study trains with.
    """
    if name not in STUDIES:
        raise EdgeOptError(f"study = {quoted(name)}: expected one of {', '.join(STUDIES)}")
    with needs(f"the study {name}", "train"):
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    study: Study[Any] = module.STUDY
    return study
