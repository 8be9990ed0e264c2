"""A script as Tinker's users write it, run by the shim on the Loops SDK."""

from __future__ import annotations

from typing import Any

import tinker
import torch
from interop_examples import LEARNING_RATE, PROMPT, RANK, SEED, Example, supervised
from program import BASE_MODEL, main, tell
from tinker import types
from tinker.types.tensor_data import TensorData


def datum(example: Example) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(example.tokens),
        loss_fn_inputs={
            "target_tokens": TensorData.from_torch(torch.tensor(example.targets)),
            "weights": TensorData.from_torch(torch.tensor(example.floats["weights"])),
        },
    )


def squares(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[Any, dict[str, float]]:
    loss = torch.stack([(row**2).mean() for row in logprobs]).sum()
    return loss, {"squares": float(loss.detach())}


def program() -> None:
    service = tinker.ServiceClient()
    client = service.create_lora_training_client(base_model=BASE_MODEL, rank=RANK, seed=SEED)
    batch = [datum(example) for example in supervised(6)]
    for _ in range(3):
        backward = client.forward_backward(batch, "cross_entropy")
        step = client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE))
        output = backward.result()
        tell("step", loss=output.loss, optimizer=step.result().metrics)
    custom = client.forward_backward_custom(batch, squares).result()
    tell("custom loss", squares=custom.metrics["squares"])
    client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE)).result()
    path = client.save_state("shim").result().path
    before = client.forward(batch, "cross_entropy").result().loss
    resumed = service.create_training_client_from_state(path)
    tell("resumed", before=before, after=resumed.forward(batch, "cross_entropy").result().loss)
    sampler = client.save_weights_and_get_sampling_client(name="shim")
    prompt = types.ModelInput.from_ints(PROMPT)
    params = types.SamplingParams(max_tokens=5, temperature=0.0)
    response = sampler.sample(prompt=prompt, num_samples=2, sampling_params=params)
    tell(
        "sample",
        tokens=[sequence.tokens for sequence in response.sequences],
        scores=sampler.compute_logprobs(prompt),
    )


if __name__ == "__main__":
    main(program)
