"""Joint source-channel coding: channels, fountain codes, belief propagation, and one stream of a picture for unequal receivers.

Needs the extra ``train``; photographs and files of pictures need ``images``.
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
    from edgeopt.coding.deep_jscc import DeepJscc as DeepJscc
    from edgeopt.coding.deep_jscc import DeepShape as DeepShape
    from edgeopt.coding.deep_jscc import train_deep_jscc as train_deep_jscc
    from edgeopt.coding.density_evolution import Evolution as Evolution
    from edgeopt.coding.density_evolution import density_evolution as density_evolution
    from edgeopt.coding.losses import Weights as Weights
    from edgeopt.coding.lt_code import Graph as Graph
    from edgeopt.coding.lt_code import LtCode as LtCode
    from edgeopt.coding.measuring import psnr_table as psnr_table
    from edgeopt.coding.ntrscc import Encoded as Encoded
    from edgeopt.coding.ntrscc import Header as Header
    from edgeopt.coding.ntrscc import Ntrscc as Ntrscc
    from edgeopt.coding.ntrscc import Receiver as Receiver
    from edgeopt.coding.pictures import as_picture as as_picture
    from edgeopt.coding.pictures import crops as crops
    from edgeopt.coding.pictures import folder_pictures as folder_pictures
    from edgeopt.coding.pictures import photographs as photographs
    from edgeopt.coding.quality import ms_ssim as ms_ssim
    from edgeopt.coding.quality import psnr_db as psnr_db
    from edgeopt.coding.training import Trained as Trained
    from edgeopt.coding.training import Training as Training
    from edgeopt.coding.training import train_ntrscc as train_ntrscc
    from edgeopt.coding.transforms import Network as Network
    from edgeopt.coding.transforms import Shape as Shape
