"""A trained model at work: its routing recorded, experts cached over a network, layers that run while others arrive.

Needs the extra ``train``.
"""

from edgeopt.extras import needs

with needs("edgeopt.inference", "train"):
    from edgeopt.inference.distributed import TIERS as TIERS
    from edgeopt.inference.distributed import InferenceRun as InferenceRun
    from edgeopt.inference.distributed import simulate_inference as simulate_inference
    from edgeopt.inference.recording import record as record
    from edgeopt.inference.routing import RoutingRecord as RoutingRecord
    from edgeopt.inference.routing import record_users as record_users
    from edgeopt.inference.streaming import StreamedRun as StreamedRun
    from edgeopt.inference.streaming import layer_bytes as layer_bytes
    from edgeopt.inference.streaming import run_over_loopback as run_over_loopback
    from edgeopt.inference.streaming import run_while_receiving as run_while_receiving
    from edgeopt.inference.streaming import send_model as send_model
    from edgeopt.inference.timeline import LayerTimeline as LayerTimeline
    from edgeopt.inference.timeline import predict_timeline as predict_timeline
