"""The lesson by the gRPC door, with the project's own client."""

from __future__ import annotations

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

from tinkergate_client import Datum, TrainingModel, connect, datum

PATIENCE = 120.0


def data(step: int) -> list[Datum]:
    """The examples of a step as the client takes them."""
    return [datum(example.tokens, example.targets, example.weights) for example in batch(step)]


def train(model: TrainingModel, first: int, end: int) -> list[float]:
    """Take steps, all submitted before any is waited for."""
    pending = []
    for step in range(first, end):
        pending.append((step, model.forward_backward(data(step))))
        model.optim_step(**ADAM)
    rows = [(step, future.result(PATIENCE).logprobs) for step, future in pending]
    return [loss(step, [row.tolist() for row in logprobs]) for step, logprobs in rows]


def main() -> None:
    """Learn, stop, go on from the checkpoint, sample."""
    with (
        connect(PLACE["address"], api_key=PLACE["key"], patience=60.0) as client,
        client.create_session() as session,
    ):
        model = session.create_model(PLACE["base_model"], rank=RANK, seed=SEED, train_unembed=False)
        losses = train(model, 0, MIDDLE)
        path = model.save_state(f"{PLACE['run']}-middle").result(PATIENCE)
        resumed = session.create_model_from_checkpoint(path, with_optimizer=True)
        losses += train(resumed, MIDDLE, STEPS)
        sampler = resumed.save_weights_for_sampler().result(PATIENCE)
        [drawn] = sampler.sample(PROMPT, temperature=0.0, max_tokens=MAX_TOKENS).sequences
        tell(losses, [int(token) for token in drawn.tokens], [float(x) for x in drawn.logprobs])


if __name__ == "__main__":
    run(main)
