"""What travels between server and clients: small frozen records with one message form each.

A model travels as the record ``arrays`` (or ``expert``), settings as ``config``, numbers as
``metrics``, and what clustering and gating need as ``signature``.
"""

from disue.errors import WireError
from disue.wire.arrays import Records
from disue.wire.compare import CompareReply, CompareRequest
from disue.wire.describe import DescribeReply, DescribeRequest
from disue.wire.early import EarlyReply, EarlyRequest
from disue.wire.evaluate import EvaluateReply, EvaluateRequest
from disue.wire.features import FeaturesReply, FeaturesRequest
from disue.wire.forget import ForgetRequest
from disue.wire.hello import HelloReply, HelloRequest
from disue.wire.reading import error_reason, message_bytes
from disue.wire.secagg import KeptReply, MaskedReply, Parcels, PublicKeys, ShareRequest, Turn, UnmaskRequest
from disue.wire.train import TrainReply, TrainRequest

__all__ = [
    "CompareReply",
    "CompareRequest",
    "DescribeReply",
    "DescribeRequest",
    "EarlyReply",
    "EarlyRequest",
    "EvaluateReply",
    "EvaluateRequest",
    "FeaturesReply",
    "FeaturesRequest",
    "ForgetRequest",
    "HelloReply",
    "HelloRequest",
    "KeptReply",
    "MaskedReply",
    "Parcels",
    "PublicKeys",
    "Records",
    "ShareRequest",
    "TrainReply",
    "TrainRequest",
    "Turn",
    "UnmaskRequest",
    "WireError",
    "error_reason",
    "message_bytes",
]
