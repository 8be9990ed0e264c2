"""Lists of training runs and of checkpoints."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.core.paging import MAX_PAGE
from tinkergate.ingress.tinker_rest.console.objects import (
    checkpoint_object,
    cursor_object,
    run_object,
)
from tinkergate.ingress.tinker_rest.console.queries import check_scope, run_of, window_of
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.ingress.tinker_rest.versions import unknown_types

RUNS_LIMIT = 20
CHECKPOINTS_LIMIT = 100


def routes(context: Context) -> list[Route]:
    """training_runs, training_runs/{id}, training_runs/{id}/checkpoints and checkpoints."""
    gateway = context.gateway

    async def training_runs(request: Request) -> Response:
        check_scope(request)
        found = gateway.training_runs.window(
            *window_of(request, RUNS_LIMIT), request.query_params.get("project_id", "")
        )
        runs = [run_object(run) for run in found.items]
        return json_response({"training_runs": runs, "cursor": cursor_object(found)})

    async def training_run(request: Request) -> Response:
        check_scope(request)
        return json_response(run_object(gateway.training_runs.get(run_of(request))))

    async def run_checkpoints(request: Request) -> Response:
        # The clients ask for no window here, and expect all.
        run = gateway.training_runs.get(run_of(request)).model.model_id
        offset, held = 0, []
        while True:
            found = gateway.checkpoints.window(offset, MAX_PAGE, run, unknown_types(request))
            held += [checkpoint_object(checkpoint) for checkpoint in found.items]
            offset += MAX_PAGE
            if offset >= found.total:
                return json_response({"checkpoints": held})

    async def all_checkpoints(request: Request) -> Response:
        check_scope(request)
        found = gateway.checkpoints.window(
            *window_of(request, CHECKPOINTS_LIMIT), without=unknown_types(request)
        )
        held = [checkpoint_object(checkpoint) for checkpoint in found.items]
        return json_response({"checkpoints": held, "cursor": cursor_object(found)})

    return [
        Route(f"{API}/training_runs", training_runs),
        Route(f"{API}/training_runs/{{run_id}}", training_run),
        Route(f"{API}/training_runs/{{run_id}}/checkpoints", run_checkpoints),
        Route(f"{API}/checkpoints", all_checkpoints),
    ]
