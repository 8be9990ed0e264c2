from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chat_templates import MARKING, THINKING, asked, assistant, chat, learned, rendered, user
from hypothesis import given
from hypothesis import strategies as st

from tinkergate.errors import GatewayError
from tinkergate.rendering import ChatTokenizer, render_training
from tinkergate.v1 import ChatMessage, RenderTrainingRequest, TrainOn

TURNS = ("What is due?", "The licence fee.", "When? Grüße", "Näxt wéek.")
END = "<|im_end|>"

# Any text: what has the form of a special token is one, in every chat template.
texts = st.text(max_size=30).filter(lambda text: "<|" not in text)


def test_only_the_assistants_words_and_their_end_are_learned(micro: ChatTokenizer) -> None:
    assert learned(micro, chat(*TURNS)) == ["The licence fee." + END, "Näxt wéek." + END]
    tokens, _ = rendered(micro, chat(*TURNS))
    assert micro.decode(tokens) == (
        "<|im_start|>user\nWhat is due?<|im_end|>\n<|im_start|>assistant\nThe licence fee."
        "<|im_end|>\n<|im_start|>user\nWhen? Grüße<|im_end|>\n<|im_start|>assistant\n"
        "Näxt wéek.<|im_end|>\n"
    )


@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_all_of_the_assistants_tokens_and_no_others_have_weight(
    micro: ChatTokenizer, turns: list[tuple[str, str]]
) -> None:
    conversation = chat(*(text for turn in turns for text in turn))
    assert learned(micro, conversation) == [answer + END for _, answer in turns]
    tokens, weights = rendered(micro, conversation)
    assert set(weights.tolist()) <= {0.0, 1.0}
    # What is learned first begins right where the prompt for it ends.
    prompt = asked(micro, chat(turns[0][0]))
    np.testing.assert_array_equal(tokens[: prompt.size], prompt)
    assert int(np.flatnonzero(weights)[0]) == prompt.size


@pytest.mark.slow
@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_it_holds_for_the_default_models_template(
    default_tokenizer: ChatTokenizer, turns: list[tuple[str, str]]
) -> None:
    conversation = chat(*(text for turn in turns for text in turn))
    # Its tokenizer has no tokens for some control characters, and leaves them out.
    kept = [default_tokenizer.decode(default_tokenizer.encode(answer)) for _, answer in turns]
    assert learned(default_tokenizer, conversation) == [answer + END for answer in kept]
    tokens, _ = rendered(default_tokenizer, conversation)
    prompt = asked(default_tokenizer, chat(turns[0][0]))
    np.testing.assert_array_equal(tokens[: prompt.size], prompt)


@pytest.fixture(scope="module")
def default_tokenizer(default_model_dir: Any) -> ChatTokenizer:
    return ChatTokenizer.load(default_model_dir, "default")


def test_the_last_message_alone_can_be_learned(micro: ChatTokenizer) -> None:
    which = TrainOn.TRAIN_ON_LAST_ASSISTANT_MESSAGE
    assert learned(micro, chat(*TURNS), train_on=which) == ["Näxt wéek." + END]


def test_every_token_can_be_learned(micro: ChatTokenizer) -> None:
    _, weights = rendered(micro, chat(*TURNS), train_on=TrainOn.TRAIN_ON_ALL_TOKENS)
    assert (weights[1:] == 1).all()


@pytest.mark.parametrize("which", TrainOn.values())
def test_a_messages_own_weight_goes_first(micro: ChatTokenizer, which: Any) -> None:
    conversation = chat(user("Who?", weight=0.25), assistant("Me.", weight=0.0), "And?", "You.")
    tokens, weights = rendered(micro, conversation, train_on=which)

    def weight_of(text: str) -> set[float]:
        start = micro.decode(tokens).index(text)
        before = micro.encode(micro.decode(tokens)[:start]).size
        return set(weights[before : before + micro.encode(text).size].tolist())

    assert weight_of("Who?" + END) == {0.25}
    assert weight_of("Me." + END) == {0.0}
    assert weight_of("You." + END) == {1.0}
    everything = which == TrainOn.TRAIN_ON_ALL_TOKENS
    assert weight_of("And?" + END) == {1.0 if everything else 0.0}


def test_what_is_cut_off_is_told(micro: ChatTokenizer) -> None:
    whole, weights = rendered(micro, chat(*TURNS))
    tokens, cut = rendered(micro, chat(*TURNS), longest=whole.size - 5)
    np.testing.assert_array_equal(tokens, whole[:-5])
    np.testing.assert_array_equal(cut, weights[:-5])
    request = RenderTrainingRequest(conversations=[chat(*TURNS)])
    for longest, truncated in [(0, False), (whole.size, False), (whole.size - 1, True)]:
        [datum] = render_training(request, longest)(micro).datums
        assert (datum.total_tokens, datum.truncated) == (whole.size, truncated)


def test_a_template_that_marks_the_assistants_part_is_believed(tokenizer_with: Any) -> None:
    marking = tokenizer_with(MARKING.replace("<|im_end|>{% endgen", "{% endgen"))
    assert learned(marking, chat(*TURNS)) == ["The licence fee.", "Näxt wéek."]


def test_marks_are_told_apart_by_message(tokenizer_with: Any) -> None:
    marking = tokenizer_with(MARKING)
    weighted = chat("a", assistant("b", weight=0.5), "c", "d", "e", assistant("f", weight=0))
    _, weights = rendered(marking, weighted)
    assert learned(marking, weighted) == ["b" + END, "d" + END]
    assert sorted(set(weights.tolist())) == [0.0, 0.5, 1.0]
    which = TrainOn.TRAIN_ON_LAST_ASSISTANT_MESSAGE
    assert learned(marking, chat(*TURNS), train_on=which) == ["Näxt wéek." + END]


def test_thoughts_and_calls_are_learned(tokenizer_with: Any) -> None:
    thinking = tokenizer_with(THINKING)
    call = {"name": "clock", "arguments_json": '{"zone": "UTC"}'}
    conversation = chat(
        "What time is it?",
        assistant(reasoning="I need a clock.", tool_calls=[call]),
        ChatMessage(role="tool", content="12:00"),
        assistant("Noon."),
        tools=['{"name": "clock"}'],
    )
    assert learned(thinking, conversation) == [
        "<think>\nI need a clock.\n</think>\n\n<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>' + END,
        "<think>\n\n</think>\n\nNoon." + END,
    ]


def test_a_past_that_is_written_differently_is_still_told_apart(tokenizer_with: Any) -> None:
    """The template leaves out old thoughts, so a conversation that ends earlier is no beginning of
    the whole one; what asks for a message and what ends it are there nevertheless."""
    thinking = tokenizer_with(THINKING)
    conversation = chat(
        "One?",
        assistant("Two.", reasoning="Hm."),
        ChatMessage(role="tool", content="ping"),
        assistant("Three.", reasoning="Hm, hm."),
        user("Four?"),
        assistant("Five.", reasoning="Hm!"),
    )
    assert learned(thinking, conversation) == [
        "Two." + END,
        "Three." + END,
        "<think>\nHm!\n</think>\n\nFive." + END,
    ]


def test_thoughts_that_the_prompt_closes_are_not_learned(thinking: ChatTokenizer) -> None:
    hurried = {"template_variables_json": {"enable_thinking": "false"}}
    conversation = chat(user("One?"), assistant("Two."), user("Three?"), assistant("Four."))
    assert learned(thinking, conversation, **hurried) == ["Two." + END, "Four." + END]
    tokens, weights = rendered(thinking, conversation, **hurried)
    assert thinking.decode(tokens[weights == 0]).count("</think>") == 1  # before the last message


@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_it_holds_where_old_thoughts_are_left_out(
    thinking: ChatTokenizer, turns: list[tuple[str, str]]
) -> None:
    messages = [each for q, a in turns for each in (user(q), assistant(a, reasoning="so"))]
    *past, last = [answer + END for _, answer in turns]
    assert learned(thinking, chat(*messages)) == [*past, "<think>\nso\n</think>\n\n" + last]


@pytest.fixture(scope="module")
def thinking(tokenizer_with: Any) -> ChatTokenizer:
    made: ChatTokenizer = tokenizer_with(THINKING)
    return made


@pytest.mark.parametrize(
    ("template", "conversation", "said"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            chat("a", "b"),
            "conversations[0].messages[1]: the chat template renders what comes before differently",
        ),
        (
            "{{ raise_exception('no tools here') }}",
            chat("a", "b"),
            "conversations[0]: the chat template refuses it: no tools here",
        ),
        (
            "{{ messages.nothing.at_all }}",
            chat("a", "b"),
            "conversations[0]: the chat template refuses it: ",
        ),
        (
            None,
            chat(assistant("I begin."), "Do."),
            "conversations[0].messages[0].role: is the assistant's; somebody else must begin",
        ),
        (None, chat("a"), "conversations[0].messages: has no assistant message, and none with"),
        (None, chat(), "conversations[0].messages: is empty"),
        (None, chat(ChatMessage(content="x")), "conversations[0].messages[0].role: is empty"),
        (
            None,
            chat("a", assistant("b", weight=float("nan"))),
            "conversations[0].messages[1].weight: is nan; must be finite",
        ),
        (
            None,
            chat("a", assistant("b", reasoning="hm")),
            "conversations[0].messages[1].reasoning: is given, and the chat template of 'micro' "
            "does not know reasoning",
        ),
        (
            None,
            chat("a", assistant(tool_calls=[{"name": "f"}])),
            "conversations[0].messages[1].tool_calls: is given, and the chat template",
        ),
        (None, chat("a", "b", tools=["{}"]), "conversations[0].tools_json: is given, and the chat"),
        (THINKING, chat("a", "b", tools=["[1]"]), "tools_json[0]: is '[1]'; must be a JSON object"),
        (THINKING, chat("a", "b", tools=["{"]), "tools_json[0]: is '{', which is not JSON"),
        (
            THINKING,
            chat("a", assistant(tool_calls=[{"name": "f", "arguments_json": "3"}])),
            "messages[1].tool_calls[0].arguments_json: is '3'; must be a JSON object",
        ),
        (
            THINKING,
            chat("a", assistant(tool_calls=[{"arguments_json": "{}"}])),
            "messages[1].tool_calls[0].name: is empty",
        ),
        (
            THINKING,
            chat("a", "b", tools=['{"name": "\\ud800"}']),
            "conversations[0]: the chat template refuses it: ",
        ),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_name(
    micro: ChatTokenizer, tokenizer_with: Any, template: str | None, conversation: Any, said: str
) -> None:
    tokenizer = micro if template is None else tokenizer_with(template)
    with pytest.raises(GatewayError) as caught:
        rendered(tokenizer, conversation)
    assert said in str(caught.value)


def test_every_conversation_that_breaks_a_rule_is_named(micro: ChatTokenizer) -> None:
    request = RenderTrainingRequest(conversations=[chat("a"), chat("a", "b"), chat()])
    with pytest.raises(GatewayError) as caught:
        render_training(request, 0)(micro)
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["conversations[0].messages", "conversations[2].messages"]


def test_a_token_across_the_border_is_parted(tokenizer_with: Any) -> None:
    # Nothing stands between question and answer: "the Licen" + "se is" would share a token.
    gluing = tokenizer_with("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokens, weights = rendered(gluing, chat("the Licen", "se is"))
    assert not np.array_equal(gluing.encode("the License is"), tokens)
    np.testing.assert_array_equal(tokens[weights == 0], gluing.encode("the Licen"))
    np.testing.assert_array_equal(tokens[weights == 1], gluing.encode("se is"))


def test_without_a_template_nothing_is_rendered(tokenizer_with: Any) -> None:
    with pytest.raises(GatewayError, match="the tokenizer of 'micro' has no chat template"):
        rendered(tokenizer_with(""), chat("a", "b"))
