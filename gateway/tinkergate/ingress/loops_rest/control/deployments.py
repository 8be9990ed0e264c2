"""Deployments of dedicated trainers (wire section 4.4). Shared capacity has none."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.ingress.loops_rest.context import CONTROL, Context
from tinkergate.ingress.loops_rest.control.forms import USER, iso, not_found
from tinkergate.ingress.loops_rest.control.runs import (
    all_runs,
    deployment_id,
    end_run,
    require_model,
)
from tinkergate.ingress.loops_rest.ids import run_of
from tinkergate.ingress.loops_rest.runs import AVAILABILITY
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import Model, ModelState

_STATES = {
    ModelState.MODEL_STATE_CREATING: "DEPLOYING",
    ModelState.MODEL_STATE_READY: "RUNNING",
    ModelState.MODEL_STATE_FAILED: "FAILED",
}


def routes(context: Context) -> list[Route]:
    """The routes."""
    deployments = _Deployments(context)
    base = f"{CONTROL}loops/deployments"
    return [
        Route(base, deployments.list_all, methods=["GET"]),
        Route(f"{base}/{{id}}", deployments.get, methods=["GET"]),
        Route(f"{base}/{{id}}/deactivate", deployments.deactivate, methods=["POST"]),
    ]


class _Deployments:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def list_all(self, request: Request) -> Response:
        """Those of all runs, newest first."""
        told: list[dict[str, object]] = []
        if not self._context.serverless:
            told = [self._form(request, run.model) for run in all_runs(self._context)]
        return json_response({"deployments": told})

    async def get(self, request: Request) -> Response:
        """One deployment."""
        return json_response({"deployment": self._form(request, self._model(request))})

    async def deactivate(self, request: Request) -> Response:
        """Frees the trainer."""
        model = self._model(request)
        await end_run(self._context, model)
        told = {"id": request.path_params["id"], "base_model": model.base_model, "user": USER}
        return json_response(told)

    def _model(self, request: Request) -> Model:
        wanted = request.path_params["id"]
        run_id, _, _ = wanted.rpartition(":")
        if self._context.serverless or deployment_id(run_id) != wanted:
            raise not_found(f"there is no deployment {wanted[:300]!r}")
        return require_model(self._context, run_id)

    def _form(self, request: Request, model: Model) -> dict[str, object]:
        run_id = run_of(model.model_id)
        # One that is being ended may still have its model.
        ended = self._context.runs.find(run_id) is None
        running = model.state == ModelState.MODEL_STATE_READY and not ended
        failed = model.state == ModelState.MODEL_STATE_FAILED
        state = "STOPPED" if ended and not failed else _STATES.get(model.state, "STOPPED")
        return {
            "id": deployment_id(run_id),
            "status": {"name": state},
            "active_run_id": run_id if running else None,
            "latest_run_id": run_id,
            "base_model": model.base_model,
            "base_url": self._context.trainer_url(request, run_id),
            "user": USER,
            "created_at": iso(model.create_time),
            "availability_model": model.user_metadata.get(AVAILABILITY, "dedicated"),
            "instance_type": None,
            "node_count": 1,
            "sampler": None,
        }
