"""Joint source-channel coding: channels, fountain codes, belief propagation, and one stream of a picture for unequal receivers.

Needs the extra ``train``.
"""

from edgeopt.extras import needs

with needs("edgeopt.coding", "train"):
    from edgeopt.coding.belief_propagation import BeliefPropagation as BeliefPropagation
    from edgeopt.coding.broadcast_plan import BroadcastPlan as BroadcastPlan
    from edgeopt.coding.broadcast_plan import PsnrTable as PsnrTable
    from edgeopt.coding.channels import CHANNELS as CHANNELS
    from edgeopt.coding.channels import Awgn as Awgn
    from edgeopt.coding.channels import Channel as Channel
    from edgeopt.coding.channels import RayleighBlock as RayleighBlock
    from edgeopt.coding.channels import channel_of as channel_of
    from edgeopt.coding.channels import link_snr_db as link_snr_db
    from edgeopt.coding.density_evolution import Evolution as Evolution
    from edgeopt.coding.density_evolution import density_evolution as density_evolution
    from edgeopt.coding.lt_code import Graph as Graph
    from edgeopt.coding.lt_code import LtCode as LtCode
