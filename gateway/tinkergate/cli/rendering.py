"""What commands render by the gateway: data to learn, texts and questions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinkergate.cli.conversations import DataError, Example, listing
from tinkergate.tensors import array_from_tensor, tokens_from_bytes
from tinkergate.v1 import Conversation, Datum, RenderedDatum
from tinkergate_client import (
    InvalidRequest,
    Renderer,
    Unsupported,
    conversation,
    supervised_datum,
)

_PLACE = re.compile(r"conversations\[(\d+)\]\.?(.*)")


class Encoded(NamedTuple):
    """An example, ready to be sent."""

    datum: Datum
    tokens: int
    learned_tokens: int


def has_template(renderer: Renderer) -> bool:
    """Whether the model has a chat template. Raises TinkergateError."""
    try:
        renderer.prompt([{"role": "user", "content": "?"}])
    except Unsupported as error:
        if error.metadata.get("feature") != "chat template":
            raise
        return False
    except InvalidRequest:  # it is there, and is particular
        return True
    return True


def plain(renderer: Renderer, text: str) -> NDArray[np.int32]:
    """Text as it is, after the tokenizer's own beginning of text, if it has one."""
    return renderer.encode([text], add_special_tokens=True)[0]


def question(renderer: Renderer, text: str, *, raw: bool) -> NDArray[np.int32]:
    """A user's message as the chat template asks it; plain text if `raw`, or without one."""
    if raw or not has_template(renderer):
        return plain(renderer, text)
    return renderer.prompt([{"role": "user", "content": text}])


def text_of(renderer: Renderer, tokens: NDArray[np.int32]) -> str:
    """Tokens as text, without special tokens."""
    return renderer.decode([tokens], skip_special_tokens=True)[0]


def encode(
    examples: Sequence[Example], renderer: Renderer, *, raw: bool, max_tokens: int
) -> list[Encoded]:
    """The examples as datums. Conversations go through the chat template; pairs, too, unless `raw`
    or there is none. Raises DataError, with the first few bad lines."""
    chat = has_template(renderer)
    as_chat = [example for example in examples if not example.is_pair or (chat and not raw)]
    as_text = [example for example in examples if example.is_pair and (raw or not chat)]
    if as_chat and not chat:
        raise DataError(
            listing(
                [
                    f"{e.place}: is a conversation, and the model has no chat template"
                    for e in as_chat
                ]
            )
        )
    with places([example.place for example in as_chat]):
        rendered = renderer.training(conversation_of(example) for example in as_chat)
    done = {
        example.place: (each.total_tokens, each.datum)
        for example, each in zip(as_chat, rendered, strict=True)
    }
    done |= _pairs(as_text, renderer)
    problems = []
    for example in examples:
        total, _ = done[example.place]
        if max_tokens and total > max_tokens:
            problems.append(
                f"{example.place}: has {total} tokens; the model takes at most {max_tokens}"
            )
    if problems:
        raise DataError(listing(problems))
    return [_encoded(*done[example.place]) for example in examples]


def conversation_of(example: Example) -> Conversation:
    """The example as a message. Raises DataError."""
    try:
        return conversation(example.messages, example.tools)
    except ValueError as error:
        raise DataError(f"{example.place}: {error}") from None


def whole(rendered: RenderedDatum) -> NDArray[np.int32]:
    """int32 (N,): all tokens of a conversation, of which the datum has the first as an input only
    and the last as a target only."""
    inputs = tokens_from_bytes(rendered.datum.model_input[0].encoded_text.tokens)
    targets = array_from_tensor(rendered.datum.loss_fn_inputs["target_tokens"])
    return np.append(inputs, targets[-1:]).astype(np.int32)


@contextmanager
def places(names: Sequence[str]) -> Iterator[None]:
    """What the gateway finds wrong with conversations is told by the places they came from: raises
    DataError."""
    try:
        yield
    except InvalidRequest as error:
        problems = []
        for field, description in error.violations:
            found = _PLACE.fullmatch(field)
            if found is None:
                raise
            rest = f"{found[2]}: " if found[2] else ""
            problems.append(f"{names[int(found[1])]}: {rest}{description}")
        if not problems:
            raise
        raise DataError(listing(problems)) from None


def _pairs(examples: Sequence[Example], renderer: Renderer) -> dict[str, tuple[int, Datum]]:
    """Plain text: the completion is to be learned, with the end-of-sequence token after it."""
    if not examples:
        return {}
    texts = [[message["content"] for message in example.messages] for example in examples]
    prompts = renderer.encode([prompt for prompt, _ in texts], add_special_tokens=True)
    completions = renderer.encode([completion for _, completion in texts])
    end = np.array(renderer.stop_tokens()[:1], dtype=np.int32)
    done = {}
    for example, prompt, completion in zip(examples, prompts, completions, strict=True):
        tokens = np.concatenate([prompt, completion, end])
        mask = np.arange(tokens.size) >= prompt.size
        done[example.place] = int(tokens.size), supervised_datum(tokens, mask)
    return done


def _encoded(total: int, datum: Datum) -> Encoded:
    learned = int(np.count_nonzero(array_from_tensor(datum.loss_fn_inputs["weights"])))
    return Encoded(datum, total - 1, learned)
