"""Rules for what callers write down for themselves: names for people, tags, metadata."""

from __future__ import annotations

from collections.abc import Mapping

from tinkergate.core.validation.report import Report
from tinkergate.v1 import CreateSessionRequest, FinishReason, FinishSessionRequest

MAX_ENTRIES = 64
MAX_KEY_CHARS = 128
MAX_NAME_CHARS = 256
MAX_TEXT_CHARS = 4096
MAX_REQUEST_ID_CHARS = 128


def check_text(report: Report, field: str, text: str, limit: int = MAX_TEXT_CHARS) -> None:
    """A text of at most `limit` characters."""
    if len(text) > limit:
        report.add(field, f"has {len(text)} characters; at most {limit} are allowed")


def check_request_id(report: Report, request_id: str) -> None:
    """An identity that the caller chose."""
    check_text(report, "request_id", request_id, MAX_REQUEST_ID_CHARS)


def check_metadata(report: Report, metadata: Mapping[str, str]) -> None:
    """The caller's own notes."""
    if len(metadata) > MAX_ENTRIES:
        report.add(
            "user_metadata", f"has {len(metadata)} entries; at most {MAX_ENTRIES} are allowed"
        )
        return
    for key, value in metadata.items():
        if not key:
            report.add("user_metadata", "has an empty key")
        check_text(report, f"user_metadata key {key[:32]!r}", key, MAX_KEY_CHARS)
        check_text(report, f'user_metadata["{key[:MAX_KEY_CHARS]}"]', value)


def check_session(request: CreateSessionRequest) -> None:
    """A CreateSession request."""
    report = Report()
    if len(request.tags) > MAX_ENTRIES:
        report.add("tags", f"has {len(request.tags)} entries; at most {MAX_ENTRIES} are allowed")
    else:
        for i, tag in enumerate(request.tags):
            check_text(report, f"tags[{i}]", tag, MAX_KEY_CHARS)
    check_metadata(report, request.user_metadata)
    for field in ("display_name", "project_id", "client_version"):
        check_text(report, field, getattr(request, field), MAX_NAME_CHARS)
    check_request_id(report, request.request_id)
    report.raise_if_any()


def check_project(project_id: str) -> None:
    """The project that a session is to be in."""
    report = Report()
    check_text(report, "project_id", project_id, MAX_NAME_CHARS)
    report.raise_if_any()


def check_finish(request: FinishSessionRequest) -> None:
    """A FinishSession request."""
    report = Report()
    if request.reason not in FinishReason.values():
        report.add("reason", f"is {request.reason}, which is no FinishReason")
    check_text(report, "detail", request.detail)
    report.raise_if_any()
