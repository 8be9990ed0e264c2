"""A short run, of which every step counts."""

from __future__ import annotations

from baseten.loops import ServiceClient
from baseten.loops.models import ModelInput, SamplingParams
from interop_examples import PROMPT, supervised
from program import ADAM, SUMS, data, main, new_client, tell, tell_output


def program() -> None:
    client = new_client(ServiceClient())
    for _ in range(2):
        client.forward_backward(data(supervised(4)), "cross_entropy", SUMS)
        client.optim_step(ADAM)
    tell_output("after", client.forward(data(supervised(4))).result())
    sampler = client.save_weights_and_get_sampling_client("policy")
    params = SamplingParams(max_tokens=6, temperature=0.0)
    response = sampler.sample(ModelInput.from_ints(PROMPT), 1, params)
    tell("sampled", tokens=[sequence.tokens for sequence in response.sequences])
    tell("version", version=client.save_weights_for_sampler("last").result().version)


if __name__ == "__main__":
    main(program)
