from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import tinkergate_client._rendering as module
from tinkergate import v1
from tinkergate.tensors import array_from_tensor
from tinkergate_client import Client, InvalidRequest, NotFound, Renderer, conversation, message_dict

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Grüße."}]


@pytest.fixture
def renderer(client: Client) -> Renderer:
    return client.renderer()


def test_a_conversation_is_learned_and_sampled_without_a_tokenizer(
    client: Client, renderer: Renderer
) -> None:
    [rendered] = renderer.training([TURNS])
    assert not rendered.truncated
    targets = array_from_tensor(rendered.datum.loss_fn_inputs["target_tokens"])
    weights = array_from_tensor(rendered.datum.loss_fn_inputs["weights"])
    assert renderer.decode([targets[weights > 0]]) == ["Grüße.<|im_end|>"]
    with client.create_session() as session:
        model = session.create_model(rank=4)
        assert model.forward_backward([rendered.datum]).result().loss > 0
    prompt = renderer.prompt(TURNS[:1])
    np.testing.assert_array_equal(
        np.append(prompt, targets[weights > 0]), np.append(prompt, targets[prompt.size - 1 : -1])
    )
    sampled = client.sampler().sample(prompt, max_tokens=5, seed=1).sequences[0]
    [parsed] = renderer.parse([sampled.tokens])
    assert parsed.message.role == "assistant"
    assert parsed.complete == (int(sampled.tokens[-1]) in renderer.stop_tokens())


def test_texts_and_tokens(renderer: Renderer) -> None:
    tokens = renderer.encode(["You may", ""])
    assert [each.dtype for each in tokens] == [np.int32, np.int32]
    assert renderer.decode(tokens) == ["You may", ""]
    assert renderer.decode([[2]], skip_special_tokens=True) == [""]


def test_many_are_sent_in_batches_and_errors_count_them_all(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_ITEMS", 3)
    chats = [[{"role": "user", "content": str(n)}, *TURNS[1:]] for n in range(8)]
    assert len(renderer.training(chats)) == 8
    texts = renderer.decode(renderer.prompts([chat[:1] for chat in chats]))
    assert [text.split("\n")[1] for text in texts] == [f"{n}<|im_end|>" for n in range(8)]
    chats[4] = chats[4][:1]
    with pytest.raises(InvalidRequest) as caught:
        renderer.training(chats)
    assert caught.value.violations[0].field == "conversations[4].messages"
    assert caught.value.message.startswith("conversations[4].messages: has no assistant message")


def test_what_is_learned_can_be_chosen(renderer: Renderer) -> None:
    chat = [*TURNS, *TURNS]
    sums = [
        int(array_from_tensor(each.datum.loss_fn_inputs["weights"]).sum())
        for which in ("all_assistant_messages", "last_assistant_message", "all_tokens")
        for each in renderer.training([chat], train_on=which)  # type: ignore[arg-type]
    ]
    assert sums[0] == 2 * sums[1]
    assert sums[2] == renderer.training([chat])[0].total_tokens - 1
    assert renderer.training([chat], max_tokens=6)[0].truncated


def test_variables_reach_the_template(renderer: Renderer) -> None:
    with pytest.raises(InvalidRequest, match="cannot be set"):
        renderer.prompt(TURNS[:1], template_variables={"messages": []})
    assert renderer.prompt(TURNS[:1], template_variables={"enable_thinking": False}).size


def test_a_model_that_is_not_there_is_told(client: Client) -> None:
    with pytest.raises(NotFound, match="there is no base model 'nope'"):
        client.renderer("nope").encode(["a"])


def test_messages_go_there_and_back() -> None:
    message = {
        "role": "assistant",
        "content": "",
        "reasoning": "hm",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "f", "arguments": {"x": "ü"}},
            }
        ],
        "weight": 0.5,
    }
    answer = {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"}
    made = conversation([message, answer], tools=[{"name": "f"}])
    assert [message_dict(each) for each in made.messages] == [message, answer]
    assert [json.loads(tool) for tool in made.tools_json] == [{"name": "f"}]
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]}
    [call] = conversation([flat, v1.ChatMessage(role="user")]).messages[0].tool_calls
    assert (call.name, call.arguments_json) == ("f", '{"x": 1}')
    [thinking] = conversation([{"role": "a", "reasoning_content": "hm"}]).messages
    assert thinking.reasoning == "hm"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({}, r"messages\[0\].role: is None; must be a text"),
        ({"role": "user", "content": [1]}, r"messages\[0\].content: is \[1\]; must be a text"),
        ({"role": "user", "text": "a"}, r"messages\[0\].text: is not known"),
        ({"role": "user", "weight": True}, r"messages\[0\].weight: is True; must be a number"),
        ({"role": "user", "tool_calls": [3]}, r"tool_calls\[0\]: must be an object"),
        ({"role": "user", "tool_calls": [{}]}, r"tool_calls\[0\].name: is None; must be a text"),
    ],
)
def test_what_is_no_message_is_refused(message: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        conversation([message])
