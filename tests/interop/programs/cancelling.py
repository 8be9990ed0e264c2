"""A long sample is begun and given up; the sampler goes on."""

from __future__ import annotations

import asyncio
import time

import tinker
from interop_examples import PROMPT
from program import BASE_MODEL, main, result, tell
from tinker import types

LONG = types.SamplingParams(max_tokens=480, seed=1, temperature=1.0, stop=[])


async def give_up(sampler: tinker.SamplingClient, prompt: types.ModelInput) -> bool:
    task = asyncio.ensure_future(sampler.sample_async(prompt, 64, LONG))
    await asyncio.sleep(1.0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


def program() -> None:
    service = tinker.ServiceClient()
    sampler = result(service.create_sampling_client(base_model=BASE_MODEL))
    prompt = types.ModelInput.from_ints(PROMPT)
    before = sampler.compute_logprobs(prompt).result()
    cancelled = asyncio.run(give_up(sampler, prompt))
    time.sleep(2.0)  # the SDK tells of it in the background
    after = sampler.compute_logprobs(prompt).result()
    tell("cancelled", cancelled=cancelled, before=before, after=after)


if __name__ == "__main__":
    main(program)
