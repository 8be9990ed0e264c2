"""sessions/search: the newest sessions that fit a description, page by page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.core.checkpoints import CheckpointUse
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.console.objects import OWNER, time_of
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import FinishReason, Session, SessionState

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
MAX_OWNERS: Final = 10
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REASONS: Final = ("success", "errored", "interrupted")
_STATUSES: Final = ("active", "cancelled", "failed", "client_finished")

Rule = Callable[[Session], bool]


def routes(context: Context) -> list[Route]:
    """The one route."""
    gateway = context.gateway

    async def search(request: Request) -> Response:
        fields = await json_fields(request)
        rules = [_found_by_name(fields), _of_project(fields), _noted(fields), _owned(fields)]
        rules.append(_in_status(fields))
        limit = fields.optional_integer("limit")
        limit = DEFAULT_LIMIT if limit is None else limit
        if not 1 <= limit <= MAX_LIMIT:
            raise fields.wrong("limit", f"must lie in 1..{MAX_LIMIT}")
        found, more = gateway.sessions.search(
            lambda session: all(rule(session) for rule in rules), _cursor(fields), limit
        )
        uses, nothing = gateway.checkpoints.use_by_session(), CheckpointUse(0, 0)
        told: dict[str, Any] = {
            "sessions": [_summary(each, uses.get(each.session_id, nothing)) for each in found]
        }
        if more:
            last = found[-1]
            told["next_cursor"] = {
                "last_created_at": time_of(last.create_time),
                "last_session_id": last.session_id,
            }
        return json_response(told)

    return [Route(f"{API}/sessions/search", search, methods=["POST"])]


def _anything(_: Session) -> bool:
    return True


def _nothing(_: Session) -> bool:
    return False


def _found_by_name(fields: Fields) -> Rule:
    """By id, or by words that all are in the display name, in whatever case; given both, either
    will do."""
    session_id = fields.optional_text("session_id")
    name = fields.optional_text("display_name")
    words = (name or "").casefold().split()

    def named(session: Session) -> bool:
        return all(word in session.display_name.casefold() for word in words)

    if session_id is None:
        return named
    if name is None:
        return lambda session: session.session_id == session_id
    return lambda session: session.session_id == session_id or named(session)


def _of_project(fields: Fields) -> Rule:
    if "project_ids" not in fields:
        return _anything
    projects = set(fields.texts("project_ids"))
    return lambda session: session.project_id in projects


def _noted(fields: Fields) -> Rule:
    notes = fields.optional_fields("user_metadata")
    wanted = {} if notes is None else {key: notes.text(key) for key in notes.value}
    return lambda session: all(session.user_metadata.get(k) == v for k, v in wanted.items())


def _owned(fields: Fields) -> Rule:
    """All callers share what the gateway has; only other owners' names find nothing."""
    owner = fields.optional_fields("owner")
    kind = "own" if owner is None else owner.text("type")
    if owner is None or kind in ("own", "accessible"):
        return _anything
    if kind != "user":
        raise owner.wrong("type", "must be 'own', 'accessible' or 'user'")
    urns = owner.texts("owner_urns")
    if not 1 <= len(urns) <= MAX_OWNERS:
        raise owner.wrong("owner_urns", f"must have 1 to {MAX_OWNERS} names")
    ours = any(urn == OWNER or urn.startswith(f"{OWNER}:") for urn in urns)
    return _anything if ours else _nothing


def _in_status(fields: Fields) -> Rule:
    if "statuses" not in fields:
        return _anything
    listed = fields.items("statuses")
    if not listed:
        raise fields.wrong("statuses", "must name a status, or be absent")
    wanted: dict[str, set[str]] = {}
    for index, value in enumerate(listed):
        status = Fields(value, f"statuses[{index}]")
        kind = status.text("type")
        if kind not in _STATUSES:
            raise status.wrong("type", f"must be one of {', '.join(_STATUSES)}")
        reasons = status.texts("reasons") if "reasons" in status else _REASONS
        for reason in reasons:
            if reason not in _REASONS:
                raise status.wrong("reasons", f"must be of {', '.join(_REASONS)}")
        wanted.setdefault(kind, set()).update(reasons)

    def fits(session: Session) -> bool:
        status = _status(session)
        if status is None or status["type"] not in wanted:
            return False
        return "reason" not in status or status["reason"]["type"] in wanted[status["type"]]

    return fits


def _cursor(fields: Fields) -> tuple[int, str] | None:
    cursor = fields.optional_fields("cursor")
    if cursor is None:
        return None
    created: datetime | None = None
    with suppress(ValueError):
        created = datetime.fromisoformat(cursor.text("last_created_at"))
    if created is None or created.tzinfo is None:
        raise cursor.wrong("last_created_at", "must be a time in ISO 8601 with its zone")
    return (created - _EPOCH) // timedelta(microseconds=1), cursor.text("last_session_id")


def _status(session: Session) -> dict[str, Any] | None:
    """None for a session that expired: it neither finished nor is it running."""
    if session.state == SessionState.SESSION_STATE_ACTIVE:
        return {"type": "active"}
    if session.state != SessionState.SESSION_STATE_FINISHED:
        return None
    reason = FinishReason.Name(session.finish_reason).removeprefix("FINISH_REASON_").lower()
    return {
        "type": "client_finished",
        # A program that finishes and complains of nothing has done what it wanted.
        "reason": {"type": reason if reason in _REASONS else "success"},
        "detail": session.finish_detail or None,
    }


def _summary(session: Session, use: CheckpointUse) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "created_at": time_of(session.create_time),
        "owner": OWNER,
        "project_id": session.project_id,
        "status": _status(session),
        "checkpoints_count": use.checkpoints,
        "display_name": session.display_name or None,
        "user_metadata": dict(session.user_metadata) or None,
        "checkpoint_storage_bytes": use.size_bytes,
    }
