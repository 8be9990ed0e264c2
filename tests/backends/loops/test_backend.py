"""A backend from end to end, against Loops as a script: what it asks, in which order, and what it
makes of the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from local_backend import MODEL, batch, chunks, run, sample, step, tokens_of
from loops_script import KEY, LOGPROB, loops_script
from tinker_upstream import logprobs_of, make

from tinkergate.backends.base import Backend, LoadedState, SamplerReady
from tinkergate.v1 import (
    LoadStateRequest,
    ModelInput,
    SamplingParams,
    SaveStateRequest,
    SaveWeightsForSamplerRequest,
)

PROMPT = [5, 6, 7]
ASKED: dict[str, Any] = {
    "prompt": ModelInput(chunks=chunks(PROMPT)),
    "sampling_params": SamplingParams(max_tokens=4),
}


@pytest.fixture(params=[False, True], ids=["serverless", "dedicated"])
def dedicated(request: Any) -> bool:
    return bool(request.param)


async def test_a_run_from_end_to_end(dedicated: bool) -> None:
    async with loops_script(dedicated=dedicated) as (script, service, backend):
        checked: Backend = backend
        facts = await make(checked)
        assert facts.lora_config.rank == 4
        assert facts.max_context_length == 512
        assert facts.tokenizer_id == "org/tiny"
        assert facts.notes == ("train_unembed is false: Loops does not train that part of micro",)
        output = await run(backend, batch())
        values = logprobs_of(output)
        assert (values == np.float32(LOGPROB)).all()
        assert dict(output.metrics) == {"loss:sum": pytest.approx(-LOGPROB * values.size)}
        await run(backend, step())
        saved = await run(backend, SaveStateRequest(model_id=MODEL, name="ck"))
        assert saved.upstream_path == "bt://loops:run1/weights/ck"
        ready = await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        assert isinstance(ready, SamplerReady)
        answer = await sample(backend, sampler_id="s-1:sample:0", **ASKED)
        assert tokens_of(answer) == [[7, 8]]
        load = LoadStateRequest(
            model_id=MODEL, path=f"tinker://{MODEL}/weights/ck", with_optimizer=True
        )
        assert await run(backend, load) == LoadedState(7)
        await backend.unload_model(MODEL)
        assert dict(script.done) == {
            "init_trainer_server": 1,
            "forward_backward": 1,
            "optim_step": 1,
            "save_state": 1,
            "save_weights_for_sampler": 1,
            "load_state_with_optimizer": 1,
        }
        operations = [asked.json for asked in service.asked if "seq_id" in asked.body.decode()]
        assert [body["seq_id"] for body in operations] == [1, 2, 3, 4, 5, 6]
        assert {body["run_id"] for body in operations} == {"run1"}
        assert all(asked.headers["authorization"] == f"Api-Key {KEY}" for asked in service.asked)
        [session] = service.of("/v1/loops/sessions")
        assert (session.method, session.headers["content-length"]) == ("POST", "0")
        assert "content-type" not in session.headers
        assert all("//" not in asked.route.partition("?")[0] for asked in service.asked)
    # The sampler of its weights kept the trainer.
    assert [a.route for a in service.asked if "deactivate" in a.route] == [
        "/v1/loops/runs/run1/deactivate"
    ]
