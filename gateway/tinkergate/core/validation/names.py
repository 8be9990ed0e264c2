"""Rules for the names and lives of checkpoints."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from tinkergate.core.ids import (
    NAME_PATTERN,
    NAME_RULE,
    PATH_RULE,
    CheckpointPath,
    parse_path,
)
from tinkergate.core.validation.report import Report
from tinkergate.errors import invalid_field

MAX_TTL_SECONDS = 10 * 366 * 86_400


def check_name(report: Report, field: str, name: str) -> None:
    """The name of a new checkpoint."""
    if not NAME_PATTERN.fullmatch(name):
        report.add(field, f"is {name[:160]!r}; must be {NAME_RULE}")


def check_ttl(report: Report, ttl: Duration) -> None:
    """The life of a new checkpoint: more than nothing, ten years at most."""
    if not 0 <= ttl.nanos < 1_000_000_000 or not 0 <= ttl.seconds <= MAX_TTL_SECONDS:
        report.add("ttl", f"is {ttl.seconds} s {ttl.nanos} ns; must be up to {MAX_TTL_SECONDS} s")
    elif not ttl.seconds and not ttl.nanos:
        report.add("ttl", "is 0; must be more, or absent for no end")


def parse_checkpoint_path(field: str, path: str) -> CheckpointPath:
    """The path of a checkpoint taken apart. Raises INVALID."""
    parsed = parse_path(path)
    if parsed is None:
        raise invalid_field(field, f"is {path[:700]!r}; must be {PATH_RULE}")
    return parsed
