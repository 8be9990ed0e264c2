"""The bounds and times that the core keeps to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class CoreSettings:
    """Every number the core goes by. Times are in seconds, sizes in bytes."""

    max_message_bytes: int = 64 * MIB
    """The largest message either way. The doors refuse larger requests; the core refuses requests
    whose answer would be larger."""
    chunk_datums: int = 1024
    """The most datums that clients should put in one forward or forward_backward."""
    chunk_bytes: int = 5_000_000
    """The most bytes of datums that clients should put in one forward or forward_backward."""

    max_queued_operations: int = 1024
    """The most operations of one model that may wait, parked ones included."""
    max_queued_bytes: int = 1024 * MIB
    """The most bytes of requests of all models that are not done. Clients that send the first
    chunk of a call last need room here for the whole call."""
    gap_timeout: float = 120.0
    """How long a missing seq_id is waited for, counted from the model's last arrival."""
    max_seq_ahead: int = 1_000_000
    """How far beyond the next seq_id an early one may be."""
    queue_retry_delay: float = 1.0
    """What callers who find a queue full are told to wait before they try again."""

    max_wait: float = 30.0
    """The most time that WaitOperation holds a call."""
    result_retention: float = 3600.0
    """How long the results of operations are kept."""
    result_byte_budget: int = 1024 * MIB
    """The most bytes of results of operations that are kept; the oldest go first."""
    operation_retention: float = 86_400.0
    """How long operations are remembered once they are done. Not under `result_retention`."""
    max_operations: int = 200_000
    """The most operations that are remembered; the oldest of those that are done go first."""

    max_samples_per_request: int = 1024
    """The most sequences that one sample call may draw."""
    max_running_samples: int = 16_384
    """The most sequences of all sample calls that run or wait in a backend."""
    max_running_scores: int = 256
    """The most score calls that run or wait in a backend."""
    max_running_score_bytes: int = 256 * MIB
    """The most bytes of the requests of those score calls."""
    max_render_items: int = 4096
    """The most conversations, texts or sequences of tokens in one call to render them."""
    max_running_render_bytes: int = 128 * MIB
    """The most bytes of the requests of the render calls that run or wait."""
    sample_retention: float = 300.0
    """How long the answer to a sample call with a seq_id is kept for a repeat of the call."""
    sample_byte_budget: int = 256 * MIB
    """The most bytes of such answers that are kept; the oldest go first."""
    sample_grace: float = 5.0
    """How long a sample call with a seq_id goes on when its last caller has gone, so that a caller
    whose connection broke can attach to it again."""

    heartbeat_interval: float = 10.0
    """How often clients should send a heartbeat."""
    session_expires_after: float = 300.0
    """After how long without any call a session expires."""
    history_retention: float = 30 * 86_400.0
    """How long ended sessions and their models are remembered."""
    reap_interval: float = 5.0
    """How often the core looks for what has expired."""

    max_import_bytes: int = 8 << 30
    """The largest adapter that ImportCheckpoint takes in."""
    scratch_dir: Path | None = None
    """Where imports are put together; absent means the system's temporary folder."""
