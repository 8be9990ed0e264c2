from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chat_templates import THINKING, asked, assistant, chat, rendered, user
from hypothesis import given
from hypothesis import strategies as st

from tinkergate.errors import GatewayError
from tinkergate.rendering import ChatTokenizer, parse_responses
from tinkergate.tensors import token_bytes
from tinkergate.v1 import ChatMessage, ParsedMessage, ToolCall

END = "<|im_end|>"
texts = st.text(max_size=30).filter(lambda text: "<" not in text)


@pytest.fixture(scope="module")
def thinking(tokenizer_with: Any) -> ChatTokenizer:
    made: ChatTokenizer = tokenizer_with(THINKING)
    return made


def parsed(tokenizer: ChatTokenizer, text: str) -> ParsedMessage:
    [message] = parse_responses([token_bytes(tokenizer.encode(text))], 0)(tokenizer).messages
    return message


@given(text=texts)
def test_what_is_rendered_is_read_back(micro: ChatTokenizer, text: str) -> None:
    tokens, weights = rendered(micro, chat("?", text))
    [message] = parse_responses([token_bytes(tokens[weights > 0])], 0)(micro).messages
    assert message.complete
    assert message.message == assistant(text)


@given(
    content=texts.map(lambda text: text.strip("\n")),
    thoughts=texts.map(lambda text: text.strip("\n")),
    arguments=st.lists(st.dictionaries(texts, st.integers() | texts), max_size=3),
)
def test_thoughts_and_calls_are_read_back(
    thinking: ChatTokenizer, content: str, thoughts: str, arguments: list[dict[str, Any]]
) -> None:
    import json

    calls = [
        ToolCall(name="f", arguments_json=json.dumps(each, ensure_ascii=False))
        for each in arguments
    ]
    message = assistant(content, reasoning=thoughts, tool_calls=calls)
    tokens, weights = rendered(thinking, chat("?", message))
    [back] = parse_responses([token_bytes(tokens[weights > 0])], 0)(thinking).messages
    assert back.complete
    assert [json.loads(call.arguments_json) for call in back.message.tool_calls] == arguments
    assert (back.message.content, back.message.reasoning) == (content, thoughts)


@pytest.mark.parametrize(
    ("text", "message", "complete"),
    [
        ("Well" + END, assistant("Well"), True),
        ("Well", assistant("Well"), False),
        ("Well" + END + "more", assistant("Well"), True),
        (END, assistant(), True),
        ("<think>\nHm.\n</think>\n\nYes." + END, assistant("Yes.", reasoning="Hm."), True),
        ("<think>\nHm. But", assistant(reasoning="Hm. But"), False),
        ("Yes.</think>", assistant("Yes.</think>"), False),
        (
            '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>' + END,
            assistant(tool_calls=[ToolCall(name="f", arguments_json='{"a": "</tool_call>"}')]),
            True,
        ),
        (
            'See:\n<tool_call>{"name": "f"}</tool_call>',
            assistant("See:", tool_calls=[ToolCall(name="f", arguments_json="{}")]),
            False,
        ),
        ("<tool_call>\n{broken}\n</tool_call>", None, False),
        ('<tool_call>\n{"name": "f", "arguments": 3}\n</tool_call>', None, False),
        ('<tool_call>\n{"name": "f", "arguments": {"x": NaN}}\n</tool_call>', None, False),
        ('<tool_call>\n{"name": "f", "arguments": {"x": "\\ud800"}}\n</tool_call>', None, False),
        ('<tool_call>\n{"name": "", "arguments": {}}\n</tool_call>', None, False),
        ('<tool_call>\n{"name": "f", "arguments": {}}', None, False),
        ("<tool_call>", None, False),
    ],
)
def test_only_what_keeps_to_the_format_is_read(
    thinking: ChatTokenizer, text: str, message: ChatMessage | None, complete: bool
) -> None:
    found = parsed(thinking, text)
    assert found.message == (assistant(text) if message is None else message)
    assert found.complete == complete


def test_formats_that_the_template_does_not_show_are_content(micro: ChatTokenizer) -> None:
    text = '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "f"}\n</tool_call>'
    assert parsed(micro, text + END).message == assistant(text)


def test_thoughts_that_the_prompt_has_opened(tokenizer_with: Any) -> None:
    opening = tokenizer_with(
        THINKING.replace(
            "{%- if add_generation_prompt %}<|im_start|>assistant\n",
            "{%- if add_generation_prompt %}<|im_start|>assistant\n<think>\n",
        )
    )
    assert opening.opens_thoughts
    closed = parsed(opening, "Hm.\n</think>\n\nYes." + END).message
    assert closed == assistant("Yes.", reasoning="Hm.")
    assert parsed(opening, "Hm. But").message == assistant(reasoning="Hm. But")
    # A prompt may have closed them again: a message that ends without has none.
    assert parsed(opening, "Yes." + END).message == assistant("Yes.")


def test_other_special_tokens_are_left_out(micro: ChatTokenizer) -> None:
    assert parsed(micro, "a<|im_start|>b" + END).message == assistant("ab")


def test_stop_tokens_are_all_that_can_end_a_message(tokenizer_with: Any, micro: Any) -> None:
    pad, start, end = 0, 1, 2
    assert micro.stop_tokens == [end]
    template = "{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}"
    both = tokenizer_with(template, eos_token_id=[pad, end])
    assert both.stop_tokens == [end, pad, start]
    assert parsed(both, "a<|endoftext|>b").message == assistant("a")
    # They end the assistant's message in training, too.
    tokens, weights = rendered(both, chat("q", "a"))
    assert tokens[weights > 0][-1] == start


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (b"abc", r"tokens\[0\]: tokens has 3 bytes"),
        (token_bytes([1, -2]), r"tokens\[0\]\[1\]: is -2; must lie in 0..511"),
        (token_bytes([512]), r"tokens\[0\]\[0\]: is 512; must lie in 0..511"),
    ],
)
def test_what_are_no_tokens_is_refused(micro: ChatTokenizer, packed: bytes, said: str) -> None:
    with pytest.raises(GatewayError, match=said):
        parse_responses([packed], 0)(micro)


def test_tokens_of_the_model_that_stand_for_nothing_are_taken(micro: ChatTokenizer) -> None:
    packed = token_bytes([*micro.encode("a").tolist(), 600, *micro.encode("b").tolist()])
    [message] = parse_responses([packed], 1000)(micro).messages
    assert message.message.content == "ab"


def test_a_prompt_can_be_told_not_to_think(thinking: ChatTokenizer) -> None:
    plain, hurried = (
        thinking.decode(asked(thinking, chat(user("Hi")), **variables))
        for variables in ({}, {"enable_thinking": "false"})
    )
    assert plain.endswith("<|im_start|>assistant\n")
    assert hurried == plain + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"messages": "[]"}, "template_variables_json[\"messages\"]: 'messages' cannot be set"),
        ({"chat_template": '"x"'}, "cannot be set"),
        ({"no name": "1"}, "cannot be set"),
        ({"x": "nope"}, "template_variables_json[\"x\"]: is 'nope', which is not JSON"),
    ],
)
def test_variables_are_checked(micro: ChatTokenizer, variables: dict[str, str], said: str) -> None:
    with pytest.raises(GatewayError) as caught:
        asked(micro, chat("Hi"), **variables)
    assert said in str(caught.value)


def test_tokens_are_packed_as_int32(micro: ChatTokenizer) -> None:
    assert asked(micro, chat("Hi")).dtype == np.int32
