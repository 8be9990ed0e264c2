"""Both forms of a sampler, sampling, scoring, the likeliest tokens, many calls at once, another
process."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from typing import Any

import tinker
from interop_examples import (
    NUM_SAMPLES,
    PROMPT,
    SAMPLING,
    TARGET_PROMPT_TOKENS,
    supervised,
)
from program import (
    ADAM,
    ARGUMENTS,
    BASE_MODEL,
    VERSION,
    data,
    failure,
    main,
    new_model,
    result,
    tell,
    tensor,
)
from tinker import types

AT_ONCE = 64


def prompt() -> types.ModelInput:
    return types.ModelInput.from_ints(PROMPT)


def tell_sample(what: str, answer: types.SampleResponse, **values: Any) -> None:
    """Tell all that every version's answer has."""
    tell(
        what,
        tokens=[sequence.tokens for sequence in answer.sequences],
        logprobs=[sequence.logprobs for sequence in answer.sequences],
        stop_reasons=[sequence.stop_reason for sequence in answer.sequences],
        prompt_logprobs=answer.prompt_logprobs,
        topk_prompt_logprobs=answer.topk_prompt_logprobs,
        **values,
    )


def train(model: Any) -> None:
    backward = model.forward_backward(data(supervised(4)), "cross_entropy")
    step = model.optim_step(ADAM)
    backward.result()
    step.result()


def program() -> None:
    service = tinker.ServiceClient()
    model = new_model(service)
    train(model)
    path = model.save_weights_for_sampler("named").result().path
    tell("named", path=path, model_id=model.model_id)
    named = result(service.create_sampling_client(model_path=path))
    through_model = result(model.create_sampling_client(path))
    ephemeral = result(model.save_weights_and_get_sampling_client())
    base = result(service.create_sampling_client(base_model=BASE_MODEL))
    # A sampler is what the weights were, whatever the model learns after.
    train(model)
    samplers = {"named": named, "through": through_model, "ephemeral": ephemeral, "base": base}
    for name, sampler in samplers.items():
        tell("scores", sampler=name, logprobs=sampler.compute_logprobs(prompt()).result())
        params = types.SamplingParams(**SAMPLING)
        tell_sample(
            "samples",
            sampler.sample(
                prompt(), NUM_SAMPLES, params, include_prompt_logprobs=True, topk_prompt_logprobs=4
            ).result(),
            sampler=name,
        )
    tell("base model", name=named.get_base_model())
    tell("tokenizer", same=named.get_tokenizer().encode("free of charge"))

    greedy = types.SamplingParams(max_tokens=6, temperature=0.0)
    first = named.sample(prompt(), 1, greedy).result().sequences[0]
    tell_sample("greedy", named.sample(prompt(), 1, greedy).result())
    stop = types.SamplingParams(max_tokens=6, temperature=0.0, stop=[first.tokens[2]])
    tell_sample("stopped", named.sample(prompt(), 1, stop).result(), stop=first.tokens[2])
    words = named.get_tokenizer().decode(first.tokens[2:3])
    by_text = types.SamplingParams(max_tokens=6, temperature=0.0, stop=words)
    tell_sample("stopped by text", named.sample(prompt(), 1, by_text).result(), stop=words)

    asyncio.run(tell_many(named))
    tell_other_process(named)
    if VERSION >= (0, 38):
        if ARGUMENTS.get("is_mint"):
            tell_refused(named)
        else:
            tell_since_038(named)


async def tell_many(sampler: Any) -> None:
    """Many calls at once, each with a seed of its own."""
    answers = await asyncio.gather(
        *(
            sampler.sample_async(
                prompt(), 2, types.SamplingParams(max_tokens=5, seed=seed, temperature=1.0)
            )
            for seed in range(AT_ONCE)
        )
    )
    tell("many", tokens=[[list(s.tokens) for s in answer.sequences] for answer in answers])


def tell_other_process(sampler: Any) -> None:
    """A sampling client goes to another process by pickle."""
    if not ARGUMENTS.get("other_process", True):
        return
    code = (
        "import pickle, sys\n"
        "from tinker import types\n"
        "sampler = pickle.load(sys.stdin.buffer)\n"
        f"prompt = types.ModelInput.from_ints({PROMPT})\n"
        "print(repr(sampler.compute_logprobs(prompt).result()), flush=True)\n"
        "import os; os._exit(0)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=pickle.dumps(sampler), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    tell("other process", logprobs=eval(done.stdout.decode()))


def tell_since_038(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=4, seed=3, temperature=1.0)
    answer = sampler.sample(
        prompt(),
        2,
        params,
        include_prompt_logprobs=True,
        topk_sample_logprobs=3,
        target_prompt_logprobs=tensor(TARGET_PROMPT_TOKENS, "int64"),
        prompt_alt_tokens_k=2,
        prompt_logprobs_last_n=4,
    ).result()
    assert answer.target_prompt_logprobs is not None
    assert answer.prompt_alt_tokens is not None
    tell_sample(
        "since 0.38",
        answer,
        topk=[sequence.topk_logprobs for sequence in answer.sequences],
        targets=list(answer.target_prompt_logprobs.data),
        alternatives=list(answer.prompt_alt_tokens.tokens.data),
        alternative_logprobs=list(answer.prompt_alt_tokens.logprobs.data),
        sequence_ids=len({sequence.sequence_id for sequence in answer.sequences}),
    )
    last = sampler.compute_logprobs(prompt(), prompt_logprobs_last_n=3).result()
    tell("last scores", logprobs=last)


def tell_refused(sampler: Any) -> None:
    """What the newest SDK can ask for and MinT does not have, each on its own."""
    params = types.SamplingParams(max_tokens=2, seed=3)
    later: dict[str, dict[str, Any]] = {
        "topk_sample_logprobs": {"topk_sample_logprobs": 3},
        "target_prompt_logprobs": {"target_prompt_logprobs": tensor(TARGET_PROMPT_TOKENS, "int64")},
        "prompt_alt_tokens_k": {"prompt_alt_tokens_k": 2},
        "prompt_logprobs_last_n": {"prompt_logprobs_last_n": 4, "include_prompt_logprobs": True},
    }
    for field, options in later.items():
        call = lambda options=options: sampler.sample(prompt(), 1, params, **options)  # noqa: E731
        tell("refused", field=field, failure=failure(call))


if __name__ == "__main__":
    main(program)
