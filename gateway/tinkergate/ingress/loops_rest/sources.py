"""What samplers are of."""

from __future__ import annotations

from tinkergate.ingress.loops_rest.context import Context
from tinkergate.ingress.loops_rest.ids import SamplerKey


async def base_model_of(context: Context, key: SamplerKey) -> str:
    """The base model of a sampler. Raises GatewayError for a run or checkpoint that is not
    known."""
    if key.base_model:
        return key.base_model
    if key.checkpoint:
        path = await context.runs.canonical("model_path", key.checkpoint)
        return (await context.runs.checkpoint(path)).base_model
    run = context.runs.find(key.run_id)
    if run is not None:
        return run.base_model
    return context.gateway.training_runs.get(key.run_id).model.base_model
