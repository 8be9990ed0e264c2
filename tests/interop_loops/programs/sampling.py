"""Sampling clients of every kind, scores, stops, many at once, giving up."""

from __future__ import annotations

import asyncio
from typing import Any

from baseten.loops import ServiceClient
from baseten.loops.models import ModelInput, SamplingParams
from interop_examples import MANY, NUM_SAMPLES, PROMPT, SAMPLING, supervised
from program import (
    ADAM,
    ARGUMENTS,
    BASE_MODEL,
    DEDICATED,
    SUMS,
    data,
    failure,
    main,
    new_client,
    tell,
)

INPUT = ModelInput.from_ints(PROMPT)
GREEDY = SamplingParams(max_tokens=6, temperature=0.0)


def tell_samples(what: str, response: Any) -> None:
    topk = response.topk_prompt_logprobs
    tell(
        what,
        tokens=[sequence.tokens for sequence in response.sequences],
        logprobs=[sequence.logprobs for sequence in response.sequences],
        stop_reasons=[sequence.stop_reason for sequence in response.sequences],
        texts=[sequence.text for sequence in response.sequences],
        prompt_logprobs=response.prompt_logprobs,
        topk=topk,
        version=response.policy_version,
    )


def program() -> None:
    service = ServiceClient()
    client = new_client(service)
    untrained = client.save_weights_and_get_sampling_client("policy")
    tell_samples("untrained", untrained.sample(INPUT, 1, GREEDY))
    client.forward_backward(data(supervised(4)), "cross_entropy", SUMS)
    client.optim_step(ADAM)
    sampler = client.save_weights_and_get_sampling_client("policy")
    tell("pinned", path=sampler.checkpoint_path, run_id=client.run_id)
    base = service.create_sampling_client(base_model=BASE_MODEL)
    for name, each in (("trained", sampler), ("base", base)):
        tell(f"{name} scores", logprobs=each.compute_logprobs(INPUT))
        response = each.sample(
            INPUT,
            NUM_SAMPLES,
            SamplingParams(**SAMPLING),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=4,
        )
        tell_samples(f"{name} samples", response)
        assert each.get_base_model() == BASE_MODEL
    tell(
        "discovered",
        base=sampler.discover_base_model_name(),
        adapter=sampler.discover_adapter_name(),
    )

    named = client.save_weights_for_sampler("named").result()
    by_path = service.create_sampling_client(model_path=named.path)
    tell_samples("by path", by_path.sample(INPUT, 1, GREEDY))
    of_run = client.create_sampling_client(named.path)
    tell_samples("of the run", of_run.sample(INPUT, 1, GREEDY))
    tell("no such path", **failure(lambda: client.create_sampling_client(named.path + "x")))
    # Training goes on, and a new client gets the newer weights.
    client.forward_backward(data(supervised(4)), "cross_entropy", SUMS)
    client.optim_step(ADAM)
    newer = client.save_weights_and_get_sampling_client("policy")
    tell_samples("newer", newer.sample(INPUT, 1, GREEDY))
    tell_samples("old", by_path.sample(INPUT, 1, GREEDY))

    for name, stop in ARGUMENTS["stops"].items():
        params = SamplingParams(max_tokens=12, temperature=0.0, stop=stop)
        tell_samples(f"stop {name}", base.sample(INPUT, 1, params))
    own = ModelInput.from_ints(ARGUMENTS["own"])
    tell_samples("own prompt", base.sample(own, 1, GREEDY, include_prompt_logprobs=True))
    tell("too long", **failure(lambda: base.sample(ModelInput.from_ints([1] * 600), 1, GREEDY)))
    structured = SamplingParams(max_tokens=3, structured_outputs={"regex": "a+"})
    tell("structured", **failure(lambda: base.sample(INPUT, 1, structured)))
    asyncio.run(many(newer))
    if not DEDICATED:
        give_up(client)


async def many(sampler: Any) -> None:
    """Many calls at once."""
    calls = [
        sampler.sample_async(INPUT, 1, SamplingParams(max_tokens=4, seed=seed))
        for seed in range(MANY)
    ]
    told = await asyncio.gather(*calls)
    tell("many", tokens=[response.sequences[0].tokens for response in told])


def give_up(client: Any) -> None:
    """A queued sample that nobody waits for any more is cancelled."""
    impatient = ServiceClient().create_sampling_client(base_model=BASE_MODEL, timeout=0.2)
    params = SamplingParams(max_tokens=500, temperature=1.0, seed=1)
    prompt = ModelInput.from_ints(PROMPT[:1])
    tell("given up", **failure(lambda: impatient.sample(prompt, 512, params)))


if __name__ == "__main__":
    main(program)
