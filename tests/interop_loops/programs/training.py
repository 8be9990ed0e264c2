"""Create, forward, forward_backward with every loss and both normalizations, pipelined steps, what
Loops has of its own in a datum, a custom loss."""

from __future__ import annotations

from typing import Any

import torch
from baseten.loops import ServiceClient
from baseten.loops.models import AdamParams, Datum, ModelInput, TensorData
from interop_examples import LOSSES, rollouts, soft_targets, supervised
from program import (
    ADAM,
    BASE_MODEL,
    DEDICATED,
    SUMS,
    data,
    failure,
    main,
    new_client,
    tell,
    tell_output,
)

STEPS = 3
CLIPPED = AdamParams(
    learning_rate=1e-3, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.1, grad_clip_norm=0.05
)


def squares(data: list[Datum], logprobs: list[torch.Tensor]) -> tuple[Any, dict[str, float]]:
    """A loss that no server has: the mean square of the logprobs of each datum."""
    loss = torch.stack([(row**2).mean() for row in logprobs]).sum()
    return loss, {"squares": float(loss.detach())}


def program() -> None:
    service = ServiceClient()
    capabilities = service.get_server_capabilities()
    tell(
        "capabilities",
        models=[model.model_name for model in capabilities.supported_models],
        longest=[model.max_context_length for model in capabilities.supported_models],
    )
    client = new_client(service, name="interop", max_seq_len=256)
    info = client.get_info()
    tell("info", run_id=client.run_id, rank=info.lora_rank, base_model=BASE_MODEL)
    tokenizer = client.get_tokenizer()
    text = "Permission is hereby granted, free of charge"
    tell("tokenizer", tokens=tokenizer.encode(text), text=tokenizer.decode(tokenizer.encode(text)))

    examples = data(supervised(6))
    tell_output("forward", client.forward(examples).result())

    # Everything is submitted before anything is waited for.
    steps = [
        (client.forward_backward(examples, "cross_entropy", SUMS), client.optim_step(ADAM))
        for _ in range(STEPS)
    ]
    for backward, step in steps:
        tell_output("step", backward.result(), optimizer=step.result().metrics)

    halves = [client.forward_backward(part).result() for part in (examples[:2], examples[2:])]
    tell(
        "per token",
        losses=[half.loss for half in halves],
        metrics=[half.metrics for half in halves],
        optimizer=client.optim_step(ADAM).result().metrics,
    )
    for loss_fn, config in LOSSES.items():
        inputs = data(supervised(5) if loss_fn == "cross_entropy" else rollouts(5))
        config = config or None
        output = client.forward_backward(inputs, loss_fn, config).result()
        forward = client.forward(inputs, loss_fn, config).result()
        step = client.optim_step(ADAM).result()
        tell_output("loss", output, loss_fn=loss_fn, forward=forward.loss, optimizer=step.metrics)
    tell_output("soft targets", client.forward_backward(data(soft_targets(4))).result())
    tell("clipped step", optimizer=client.optim_step(CLIPPED).result().metrics)

    client.forward_backward(examples, "cross_entropy", SUMS).result()
    tell("mixed", **failure(client.forward_backward(examples).result))
    tell("after mixed", optimizer=client.optim_step(ADAM).result().metrics)

    own_forms(client)
    custom = client.forward_backward_custom(examples, squares).result()
    tell_output("custom loss", custom, optimizer=client.optim_step(ADAM).result().metrics)
    tell_output("after", client.forward(examples).result())
    if DEDICATED:
        tell("policy version", version=client.policy_version)
    else:
        tell("policy version", **failure(lambda: client.policy_version))
    client.close()


def own_forms(client: Any) -> None:
    """Ignored targets, no targets, one advantage for a row, a mask that nobody asked for."""
    example = supervised(1, seed=11, shortest=12)[0]
    assert not isinstance(example.targets[0], list)
    ignored = [-100, -100, *example.targets[2:]]
    tokens = ModelInput.from_ints(example.tokens)
    given = Datum(
        model_input=tokens,
        loss_fn_inputs={"target_tokens": TensorData.from_list(ignored, dtype="int64")},
    )
    tell_output("ignored", client.forward_backward([given]).result())
    tell("ignored step", optimizer=client.optim_step(ADAM).result().metrics)
    tell_output("no targets", client.forward([Datum(model_input=tokens)]).result())
    rollout = rollouts(1, seed=12)[0]
    spread = data([rollout])[0]
    spread.loss_fn_inputs["advantages"] = TensorData.from_list([0.5])
    spread.loss_fn_inputs["mask"] = TensorData.from_list([1.0] * len(rollout.tokens))
    tell_output("spread", client.forward_backward([spread], "importance_sampling").result())
    tell("spread step", optimizer=client.optim_step(ADAM).result().metrics)


if __name__ == "__main__":
    main(program)
