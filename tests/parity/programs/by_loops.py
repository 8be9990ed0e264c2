"""The lesson by the Loops-dialect door, with the official SDK."""

from __future__ import annotations

from typing import Any

from baseten.loops import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient, TensorData
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

SUMS = {"skip_token_normalization": True}
"""Has the trainer add gradients up as Tinker does."""


def data(step: int) -> list[Datum]:
    """The examples of a step as the SDK takes them."""
    return [
        Datum(
            model_input=ModelInput.from_ints(example.tokens),
            loss_fn_inputs={
                "target_tokens": tensor(example.targets, "int64"),
                "weights": tensor(example.weights, "float32"),
            },
        )
        for example in batch(step)
    ]


def tensor(values: list[Any], dtype: str) -> TensorData:
    """A list with its type."""
    return TensorData(data=values, dtype=dtype, shape=[len(values)])


def train(model: Any, first: int, end: int) -> list[float]:
    """Take steps, all submitted before any is waited for."""
    pending = []
    for step in range(first, end):
        pending.append((step, model.forward_backward(data(step), "cross_entropy", SUMS)))
        model.optim_step(AdamParams(**ADAM))
    outputs = [(step, future.result().loss_fn_outputs) for step, future in pending]
    return [
        loss(step, [record["logprobs"].data for record in records]) for step, records in outputs
    ]


def main() -> None:
    """Learn, stop, go on from the checkpoint, sample."""
    service = ServiceClient(base_url=PLACE["address"], api_key=PLACE["key"])
    model = service.create_lora_training_client(PLACE["base_model"], rank=RANK, seed=SEED)
    losses = train(model, 0, MIDDLE)
    path = model.save_state(f"{PLACE['run']}-middle").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    losses += train(resumed, MIDDLE, STEPS)
    sampler = resumed.save_weights_and_get_sampling_client(f"{PLACE['run']}-end")
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
    [drawn] = sampler.sample(ModelInput.from_ints(PROMPT), 1, params).sequences
    tell(losses, [int(token) for token in drawn.tokens], [float(x) for x in drawn.logprobs])


if __name__ == "__main__":
    run(main)
