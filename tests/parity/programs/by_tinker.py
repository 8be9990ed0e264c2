"""The lesson by the Tinker-dialect door, with the official SDK."""

from __future__ import annotations

from typing import Any

import tinker
from lesson import (
    ADAM,
    MAX_TOKENS,
    MIDDLE,
    PLACE,
    PROMPT,
    RANK,
    SEED,
    STEPS,
    batch,
    loss,
    run,
    tell,
)
from tinker import types


def data(step: int) -> list[types.Datum]:
    """The examples of a step as the SDK takes them."""
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(example.tokens),
            loss_fn_inputs={
                "target_tokens": tensor(example.targets, "int64"),
                "weights": tensor(example.weights, "float32"),
            },
        )
        for example in batch(step)
    ]


def tensor(values: list[Any], dtype: Any) -> types.TensorData:
    """A list with its type."""
    return types.TensorData(data=values, dtype=dtype, shape=[len(values)])


def train(model: Any, first: int, end: int) -> list[float]:
    """Take steps, all submitted before any is waited for."""
    pending = []
    for step in range(first, end):
        pending.append((step, model.forward_backward(data(step), "cross_entropy")))
        model.optim_step(types.AdamParams(**ADAM))
    outputs = [(step, future.result().loss_fn_outputs) for step, future in pending]
    return [
        loss(step, [[float(x) for x in record["logprobs"].data] for record in records])
        for step, records in outputs
    ]


def main() -> None:
    """Learn, stop, go on from the checkpoint, sample."""
    service = tinker.ServiceClient(base_url=PLACE["address"], api_key=PLACE["key"])
    model = service.create_lora_training_client(
        base_model=PLACE["base_model"], rank=RANK, seed=SEED, train_unembed=False
    ).result()
    losses = train(model, 0, MIDDLE)
    path = model.save_state(f"{PLACE['run']}-middle").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    losses += train(resumed, MIDDLE, STEPS)
    sampler = resumed.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
    prompt = types.ModelInput.from_ints(PROMPT)
    answer = sampler.sample(prompt=prompt, num_samples=1, sampling_params=params).result()
    [drawn] = answer.sequences
    tell(losses, [int(token) for token in drawn.tokens], [float(x) for x in drawn.logprobs])


if __name__ == "__main__":
    run(main)
