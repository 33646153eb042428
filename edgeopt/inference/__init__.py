"""A trained model at work: its routing recorded, experts cached over a network, layers that run while others arrive, steered decoding.

Needs the extra ``train``; steered decoding also ``llm``, to have a language model at all.
"""

from edgeopt.extras import needs

with needs("edgeopt.inference", "train"):
    from edgeopt.inference.distributed import TIERS as TIERS
    from edgeopt.inference.distributed import InferenceRun as InferenceRun
    from edgeopt.inference.distributed import simulate_inference as simulate_inference
    from edgeopt.inference.recording import record as record
    from edgeopt.inference.remote import SteeringLatency as SteeringLatency
    from edgeopt.inference.remote import received as received
    from edgeopt.inference.remote import steering_bytes as steering_bytes
    from edgeopt.inference.remote import steering_latency as steering_latency
    from edgeopt.inference.remote import top_log_probabilities as top_log_probabilities
    from edgeopt.inference.routing import RoutingRecord as RoutingRecord
    from edgeopt.inference.routing import record_users as record_users
    from edgeopt.inference.steered import SteeredDecoding as SteeredDecoding
    from edgeopt.inference.steered import calibrate as calibrate
    from edgeopt.inference.steered import load_steering as load_steering
    from edgeopt.inference.steered import save_steering as save_steering
    from edgeopt.inference.steered import score_answers as score_answers
    from edgeopt.inference.steering import SteeringVector as SteeringVector
    from edgeopt.inference.steering import TokenStrengths as TokenStrengths
    from edgeopt.inference.steering import token_strengths as token_strengths
    from edgeopt.inference.streaming import StreamedRun as StreamedRun
    from edgeopt.inference.streaming import layer_bytes as layer_bytes
    from edgeopt.inference.streaming import run_over_loopback as run_over_loopback
    from edgeopt.inference.streaming import run_while_receiving as run_while_receiving
    from edgeopt.inference.streaming import send_model as send_model
    from edgeopt.inference.timeline import LayerTimeline as LayerTimeline
    from edgeopt.inference.timeline import predict_timeline as predict_timeline
