"""Codecs, one per file; `edgeopt.training.codecs.codec` says what a codec is."""

from edgeopt.training.codecs.acp import AcpCodec as AcpCodec
from edgeopt.training.codecs.codec import Codec as Codec
from edgeopt.training.codecs.codec import CodecAtWork as CodecAtWork
from edgeopt.training.codecs.codec import Form as Form
from edgeopt.training.codecs.codec import Order as Order
from edgeopt.training.codecs.codec import ReportingCodec as ReportingCodec
from edgeopt.training.codecs.compressed import Compressed as Compressed
from edgeopt.training.codecs.identity import Identity as Identity
from edgeopt.training.codecs.low_rank import LowRank as LowRank
from edgeopt.training.codecs.nsc import NscCodec as NscCodec
from edgeopt.training.codecs.quantise import Quantise as Quantise
from edgeopt.training.codecs.random_channels import RandomChannels as RandomChannels
from edgeopt.training.codecs.top_k import TopK as TopK

CODECS: tuple[type[Codec], ...] = (Identity, RandomChannels, TopK, Quantise, LowRank, AcpCodec, NscCodec)
"""The codecs of the package; add yours here to have it on the command line."""
