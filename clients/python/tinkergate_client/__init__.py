"""The Python client of the Tinkergate gateway."""

from tinkergate.v1 import (
    Chunk,
    Datum,
    ModelInput,
    OptimizerConfig,
    OptimizerParams,
    ReverseKlDatum,
    RolloutCorrection,
)
from tinkergate_client._actions import ActionSession, observation
from tinkergate_client._checkpoint_downloads import Downloaded, DownloadProgress
from tinkergate_client._checkpoint_records import ArchiveUrl, Checkpoint, CheckpointFile
from tinkergate_client._checkpoints import Checkpoints
from tinkergate_client._client import Client, connect
from tinkergate_client._connection import DEFAULT_ADDRESS, Tls
from tinkergate_client._conversations import conversation, message_dict
from tinkergate_client._datums import (
    Tokens,
    datum,
    image,
    model_input,
    reverse_kl_datum,
    supervised_datum,
    text,
)
from tinkergate_client._errors import (
    AccessDenied,
    Conflict,
    FailedPrecondition,
    GatewayUnreachable,
    InvalidRequest,
    NotFound,
    OperationCancelled,
    OperationFailed,
    Overloaded,
    TinkergateError,
    Unsupported,
    Violation,
)
from tinkergate_client._futures import CallFuture, OperationFuture
from tinkergate_client._rendering import Renderer
from tinkergate_client._results import ForwardBackwardResult, OptimStepResult
from tinkergate_client._sampling import (
    SampledSequence,
    SampleOptions,
    Sampler,
    SampleResult,
    TopK,
)
from tinkergate_client._scoring import Score, ScoreOptions
from tinkergate_client._session import Session
from tinkergate_client._training import TrainingModel

__all__ = [
    "DEFAULT_ADDRESS",
    "AccessDenied",
    "ActionSession",
    "ArchiveUrl",
    "CallFuture",
    "Checkpoint",
    "CheckpointFile",
    "Checkpoints",
    "Chunk",
    "Client",
    "Conflict",
    "Datum",
    "DownloadProgress",
    "Downloaded",
    "FailedPrecondition",
    "ForwardBackwardResult",
    "GatewayUnreachable",
    "InvalidRequest",
    "ModelInput",
    "NotFound",
    "OperationCancelled",
    "OperationFailed",
    "OperationFuture",
    "OptimStepResult",
    "OptimizerConfig",
    "OptimizerParams",
    "Overloaded",
    "Renderer",
    "ReverseKlDatum",
    "RolloutCorrection",
    "SampleOptions",
    "SampleResult",
    "SampledSequence",
    "Sampler",
    "Score",
    "ScoreOptions",
    "Session",
    "TinkergateError",
    "Tls",
    "Tokens",
    "TopK",
    "TrainingModel",
    "Unsupported",
    "Violation",
    "connect",
    "conversation",
    "datum",
    "image",
    "message_dict",
    "model_input",
    "observation",
    "reverse_kl_datum",
    "supervised_datum",
    "text",
]
