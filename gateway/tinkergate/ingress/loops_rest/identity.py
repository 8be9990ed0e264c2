"""Whose a request is (wire section 2): shared capacity has to be told, and refuses what does not
say it rightly, in a way that no client repeats."""

from __future__ import annotations

from starlette.requests import Request

from tinkergate.errors import GatewayError
from tinkergate.ingress.loops_rest.context import Context
from tinkergate.ingress.loops_rest.errors import refusal
from tinkergate.ingress.loops_rest.ids import SamplerKey, run_of

RUN = "x-run-id"
SAMPLER = "x-sampler-id"
CHECKPOINT = "x-checkpoint-path"

REQUIRED = "run_or_sampler_required"
"""The one code that Loops is known to answer."""

CONFLICT = "run_or_sampler_conflict"
MISMATCH = "run_mismatch"
UNKNOWN = "sampler_not_found"
UNKNOWN_RUN = "run_not_found"


def check_trainer(context: Context, request: Request, run_id: str) -> None:
    """A call to a run's trainer. Raises GatewayError (DENIED)."""
    if not context.serverless:
        return
    named = request.headers.get(RUN)
    if named is None:
        raise refusal(REQUIRED, "the request names no run: send X-Run-Id")
    if named != run_id:
        raise refusal(MISMATCH, f"X-Run-Id is {named!r}; the trainer is of run {run_id!r}", 403)


def check_sampler(context: Context, request: Request, key: SamplerKey) -> None:
    """A call to a sampler. Raises GatewayError (DENIED)."""
    if not context.serverless:
        return
    run_id, sampler_id = request.headers.get(RUN), request.headers.get(SAMPLER)
    path = request.headers.get(CHECKPOINT)
    if run_id is None and sampler_id is None and path is None:
        raise refusal(
            REQUIRED,
            "the request names neither a run nor a sampler: send X-Run-Id, X-Sampler-Id or "
            "X-Checkpoint-Path",
        )
    if sampler_id is not None and (run_id is not None or path is not None):
        raise refusal(CONFLICT, "X-Sampler-Id is given together with a run; send one")
    if sampler_id is not None and sampler_id != key.sampler_id:
        raise refusal(
            MISMATCH, f"X-Sampler-Id is {sampler_id!r}; the sampler is {key.sampler_id!r}", 403
        )
    if run_id is not None and key.run_id and run_id != key.run_id:
        raise refusal(MISMATCH, f"X-Run-Id is {run_id!r}; the sampler is of {key.run_id!r}", 403)
    if run_id is not None and run_id != key.run_id:
        _check_known(context, run_id)
    if run_id is not None and path is not None:
        owner = run_of(path.removeprefix("bt://loops:").partition("/")[0])
        if owner != run_id:
            raise refusal(MISMATCH, f"X-Run-Id is {run_id!r}; the checkpoint is of {owner!r}", 403)


def _check_known(context: Context, run_id: str) -> None:
    """A run that there is, or was."""
    if context.runs.find(run_id) is None:
        try:
            context.gateway.training_runs.get(run_id)
        except GatewayError as error:
            raise refusal(UNKNOWN_RUN, error.message, 404) from None
