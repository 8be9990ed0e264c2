from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tinkergate.cli.rendering import Renderer, RenderingError

TURNS = [
    {"role": "user", "content": "What is due?"},
    {"role": "assistant", "content": "The licence fee."},
    {"role": "user", "content": "When? Grüße"},
    {"role": "assistant", "content": "Näxt wéek."},
]


@pytest.fixture(scope="session")
def renderer(micro_model_dir: Path) -> Renderer:
    return Renderer.of_folder(micro_model_dir)


@pytest.fixture
def renderer_with(micro_model_dir: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """The micro model's tokenizer with another chat template."""

    def build(template: str) -> Renderer:
        folder = shutil.copytree(micro_model_dir, tmp_path / "model", dirs_exist_ok=True)
        (folder / "chat_template.jinja").write_text(template)
        return Renderer.of_folder(folder)

    return build


def learned(renderer: Renderer, turns: list[dict[str, str]]) -> str:
    tokens, mask = renderer.conversation(turns)
    return str(renderer._tokenizer.decode(tokens[mask]))


def test_only_the_assistants_words_and_their_end_are_learned(renderer: Renderer) -> None:
    assert learned(renderer, TURNS) == "The licence fee.<|im_end|>Näxt wéek.<|im_end|>"
    tokens, mask = renderer.conversation(TURNS)
    assert tokens.shape == mask.shape
    assert renderer._tokenizer.decode(tokens) == (
        "<|im_start|>user\nWhat is due?<|im_end|>\n<|im_start|>assistant\nThe licence fee."
        "<|im_end|>\n<|im_start|>user\nWhen? Grüße<|im_end|>\n<|im_start|>assistant\n"
        "Näxt wéek.<|im_end|>\n"
    )


def test_what_is_learned_begins_where_the_prompt_for_it_ends(renderer: Renderer) -> None:
    tokens, mask = renderer.conversation(TURNS[:2])
    prompt = renderer.prompt(TURNS[:1])
    np.testing.assert_array_equal(tokens[: prompt.size], prompt)
    assert int(np.flatnonzero(mask)[0]) == prompt.size
    np.testing.assert_array_equal(renderer.question("What is due?", raw=False), prompt)


def test_a_template_that_marks_the_assistants_part_is_believed(renderer_with) -> None:  # type: ignore[no-untyped-def]
    marking = renderer_with(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}<|im_end|>"
        "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    assert learned(marking, TURNS[:2]) == "The licence fee."


def test_a_template_that_rewrites_the_past_is_refused(renderer_with) -> None:  # type: ignore[no-untyped-def]
    counting = renderer_with(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(
        RenderingError, match=r"messages\[1\]: the chat template renders what comes"
    ):
        counting.conversation(TURNS[:2])


def test_a_token_across_the_border_is_refused(renderer_with) -> None:  # type: ignore[no-untyped-def]
    # Nothing between question and answer: "licen" and "ce" become one token.
    gluing = renderer_with("{% for m in messages %}{{ m.content }}{% endfor %}")
    turns = [{"role": "user", "content": "the Licen"}, {"role": "assistant", "content": "se is"}]
    with pytest.raises(RenderingError, match="a token reaches from the prompt into"):
        gluing.conversation(turns)


def test_a_template_that_refuses_is_quoted(renderer_with) -> None:  # type: ignore[no-untyped-def]
    strict = renderer_with("{{ raise_exception('no tools here') }}")
    with pytest.raises(RenderingError, match="the chat template refuses it: no tools here"):
        strict.conversation(TURNS[:2])


def test_the_assistant_cannot_begin(renderer: Renderer) -> None:
    with pytest.raises(RenderingError, match=r"messages\[0\].role: is 'assistant'"):
        renderer.conversation(TURNS[1:])


def test_a_pair_of_plain_text_ends_with_the_end_of_sequence(renderer: Renderer) -> None:
    tokens, mask = renderer.pair("You may", " copy it")
    assert renderer._tokenizer.decode(tokens) == "You may copy it<|im_end|>"
    assert renderer._tokenizer.decode(tokens[mask]) == " copy it<|im_end|>"


def test_text_leaves_special_tokens_out(renderer: Renderer) -> None:
    tokens, mask = renderer.conversation(TURNS[:2])
    assert renderer.text(tokens[mask]) == "The licence fee."


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(RenderingError, match="no tokenizer can be loaded from"):
        Renderer.of_folder(tmp_path)
