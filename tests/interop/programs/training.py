"""Create, forward, forward_backward with every loss, pipelined steps, a custom loss."""

from __future__ import annotations

from typing import Any

import tinker
import torch
from interop_examples import LOSSES, rollouts, soft_targets, supervised
from program import (
    ADAM,
    BASE_MODEL,
    VERSION,
    data,
    main,
    new_model,
    tell,
    tell_output,
    tensor,
)
from tinker import types

STEPS = 3


def squares(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[Any, dict[str, float]]:
    """A loss that no server has: the mean square of the logprobs of each datum."""
    loss = torch.stack([(row**2).mean() for row in logprobs]).sum()
    return loss, {"squares": float(loss.detach())}


def program() -> None:
    service = tinker.ServiceClient()
    capabilities = service.get_server_capabilities()
    tell("capabilities", models=[model.model_name for model in capabilities.supported_models])
    model = new_model(service, user_metadata={"made_by": "interop"})
    info = model.get_info()
    tell(
        "info",
        model_id=info.model_id,
        names=[info.model_name, info.model_data.model_name],
        is_lora=info.is_lora,
        lora_rank=info.lora_rank,
        base_model=BASE_MODEL,
    )
    tokenizer = model.get_tokenizer()
    text = "Permission is hereby granted, free of charge"
    tell("tokenizer", tokens=tokenizer.encode(text), text=tokenizer.decode(tokenizer.encode(text)))

    examples = data(supervised(6))
    tell_output("forward", model.forward(examples, "cross_entropy").result())

    # Everything is submitted before anything is waited for.
    steps = [
        (model.forward_backward(examples, "cross_entropy"), model.optim_step(ADAM))
        for _ in range(STEPS)
    ]
    for backward, step in steps:
        tell_output("step", backward.result(), optimizer=dict(step.result().metrics or {}))

    for loss_fn, config in LOSSES.items():
        examples_of_loss = data(supervised(5) if loss_fn == "cross_entropy" else rollouts(5))
        settings = config or None
        tell_output(
            "loss",
            model.forward_backward(examples_of_loss, loss_fn, settings).result(),
            loss_fn=loss_fn,
            forward=dict(model.forward(examples_of_loss, loss_fn, settings).result().metrics),
        )
    clipped = types.AdamParams(
        learning_rate=1e-3, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.1, grad_clip_norm=0.5
    )
    tell("clipped step", optimizer=dict(model.optim_step(clipped).result().metrics or {}))

    tell_output(
        "soft targets", model.forward_backward(data(soft_targets(4)), "cross_entropy").result()
    )
    custom = model.forward_backward_custom(examples, squares)
    step = model.optim_step(ADAM)
    tell_output("custom loss", custom.result(), optimizer=dict(step.result().metrics or {}))
    tell_output("after", model.forward(examples, "cross_entropy").result())

    if VERSION >= (0, 38):
        tell_since_038(model)
        service.close("success", "done").result()


def tell_since_038(model: Any) -> None:
    examples = rollouts(4, seed=9)
    inputs = data(examples)
    for example, entry in zip(examples, inputs, strict=True):
        mask = [float(index > 0) for index in range(len(example.tokens))]
        entry.loss_fn_inputs["sequence_ratio_mask"] = tensor(mask, "float32")
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    tell_output("gspo", model.forward_backward(inputs, "gspo", config).result())


if __name__ == "__main__":
    main(program)
