"""Several modalities under uncertainty: recordings, what spoils them, DUAL-Health and what it is compared with.

Needs the extra ``train``; simulating recordings anew also ``health``.
"""

from edgeopt.extras import needs

with needs("edgeopt.fusion", "train"):
    from edgeopt.fusion.baselines import FUSINGS as FUSINGS
    from edgeopt.fusion.baselines import Baseline as Baseline
    from edgeopt.fusion.blocks import fusion_loss as fusion_loss
    from edgeopt.fusion.calibration import Calibration as Calibration
    from edgeopt.fusion.dual_health import DualHealth as DualHealth
    from edgeopt.fusion.dual_health import Seen as Seen
    from edgeopt.fusion.dual_health import Stream as Stream
    from edgeopt.fusion.dual_health import Weights as Weights
    from edgeopt.fusion.federated import fusion_task as fusion_task
    from edgeopt.fusion.health import STATES as STATES
    from edgeopt.fusion.health import health_recordings as health_recordings
    from edgeopt.fusion.health import quadrant_digits as quadrant_digits
    from edgeopt.fusion.metrics import calibration_error as calibration_error
    from edgeopt.fusion.metrics import reliability as reliability
    from edgeopt.fusion.metrics import risk_area as risk_area
    from edgeopt.fusion.metrics import risk_coverage as risk_coverage
    from edgeopt.fusion.metrics import roc_area as roc_area
    from edgeopt.fusion.metrics import spearman as spearman
    from edgeopt.fusion.noise import Noise as Noise
    from edgeopt.fusion.noise import Spoilt as Spoilt
    from edgeopt.fusion.packing import Packing as Packing
    from edgeopt.fusion.recordings import Modality as Modality
    from edgeopt.fusion.recordings import Recordings as Recordings
    from edgeopt.fusion.recordings import Windows as Windows
    from edgeopt.fusion.training import calibrate as calibrate
    from edgeopt.fusion.training import fit as fit
