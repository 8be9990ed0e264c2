"""Conversations of several turns, sampled and learned on every backend without a tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
from compatibility import proves_on

from tinkergate.tensors import array_from_tensor
from tinkergate_client import Client, message_dict


@proves_on("rendering", local="gateway", tinker="gateway", mint="gateway", loops="gateway")
def test_a_conversation_goes_on_and_is_learned(client: Client, front: Any, backend: str) -> None:
    renderer = client.renderer(front.base_model)
    chat: list[dict[str, Any]] = []
    with client.create_session() as session:
        model = session.create_model(front.base_model, backend=backend, rank=4, seed=11)
        sampler = model.save_weights_for_sampler("fresh").result(60)
        for question in ("What is due?", "When? Grüße"):
            chat.append({"role": "user", "content": question})
            prompt = renderer.prompt(chat)
            options = {"max_tokens": 6, "seed": 3, "stop": renderer.stop_tokens()}
            [drawn] = sampler.sample(prompt, **options).sequences
            [parsed] = renderer.parse([drawn.tokens])
            assert parsed.complete == (drawn.stop_reason == "stop")
            chat.append(message_dict(parsed.message))
        [rendered] = renderer.training([chat], train_on="last_assistant_message")
        targets = array_from_tensor(rendered.datum.loss_fn_inputs["target_tokens"])
        weights = array_from_tensor(rendered.datum.loss_fn_inputs["weights"])
        # What is learned is what the model said, with its end.
        [learned] = renderer.decode([targets[weights > 0]])
        assert learned == chat[-1]["content"] + "<|im_end|>"
        np.testing.assert_array_equal(targets[: prompt.size - 1], prompt[1:])
        losses = []
        for _ in range(4):
            losses.append(model.forward_backward([rendered.datum]))
            model.optim_step(learning_rate=1e-2)
        first, *_, last = (loss.result(60).loss for loss in losses)
    assert last < first
