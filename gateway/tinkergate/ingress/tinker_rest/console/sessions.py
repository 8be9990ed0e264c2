"""Sessions: listed, looked at, moved into projects."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.console.queries import check_scope, window_of
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import GetSessionRequest, SetSessionProjectRequest

SESSIONS_LIMIT = 20
NO_TRACE = "this gateway records no timelines of sessions; its request log tells each call"


def routes(context: Context) -> list[Route]:
    """sessions, sessions/{id}, its project and its trace."""
    sessions = context.gateway.sessions

    async def list_(request: Request) -> Response:
        check_scope(request)
        found = sessions.window(*window_of(request, SESSIONS_LIMIT))
        return json_response({"sessions": [session.session_id for session in found.items]})

    async def get(request: Request) -> Response:
        check_scope(request)
        wanted = GetSessionRequest(session_id=request.path_params["session_id"])
        session = (await sessions.get(wanted)).session
        return json_response(
            {
                "training_run_ids": list(session.model_ids),
                "sampler_ids": list(session.sampler_ids),
                "user_metadata": dict(session.user_metadata) or None,
                "display_name": session.display_name or None,
            }
        )

    async def set_project(request: Request) -> Response:
        project = (await json_fields(request)).text("project_id")
        session = request.path_params["session_id"]
        await sessions.set_project(SetSessionProjectRequest(session_id=session, project_id=project))
        return Response(status_code=204)

    async def trace(request: Request) -> Response:
        await sessions.get(GetSessionRequest(session_id=request.path_params["session_id"]))
        return json_response({"status": "failed", "error": NO_TRACE})

    return [
        Route(f"{API}/sessions", list_),
        Route(f"{API}/sessions/{{session_id}}", get),
        Route(f"{API}/sessions/{{session_id}}/project", set_project, methods=["PUT"]),
        Route(f"{API}/sessions/{{session_id}}/trace_export", trace),
    ]
