"""Model download: bandwidth, models and computing speed of users that run a model while it arrives."""

from edgeopt.problems.model_download.checks import Refusal as Refusal
from edgeopt.problems.model_download.plan import DownloadPlan as DownloadPlan
from edgeopt.problems.model_download.plan import DownloadTimeline as DownloadTimeline
from edgeopt.problems.model_download.problem import ModelDownload as ModelDownload
