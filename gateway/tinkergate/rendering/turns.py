"""Which tokens of a rendered conversation are whose.

A template is a program that writes text, so what a message became has to be found out: the whole
conversation is rendered, then its beginnings are, and where the whole begins with such a beginning
a border is known. Where a template writes the past differently once the conversation goes on (many
leave out old thoughts), the border of a message of the assistant is still known if the whole has
there what asks for the message, or its beginning, and the token that ends it. Whatever cannot be
known is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.errors import GatewayError, invalid_field
from tinkergate.rendering.messages import Chat
from tinkergate.rendering.tokenizer import ChatTokenizer, RenderedText, TemplateRefusal

Span = tuple[int, int]
"""From and to, the latter not included."""


class Turns:
    """A conversation as tokens, with the borders of its messages."""

    def __init__(self, tokenizer: ChatTokenizer, chat: Chat, variables: Mapping[str, Any]) -> None:
        """Raises INVALID if the template refuses the conversation."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._variables = variables
        try:
            self._whole = self._render(chat.messages)
        except TemplateRefusal as error:
            raise invalid_field(chat.field, f"the chat template refuses it: {error}") from None
        self.tokens: NDArray[np.int32] = tokenizer.encode(self._whole.text)
        """int32 (N,). Known for good once `spans` has been asked."""
        self._parts: dict[tuple[int, bool], str | None] = {}

    def spans(self, indices: Sequence[int]) -> list[Sequence[Span]]:
        """The tokens of each of the messages: of the assistant's what the model is to write, the
        token that ends it included; of others all that the template writes of them. Raises INVALID
        if they cannot be told apart."""
        texts = [list(self._text_spans(index)) for index in indices]
        borders = self._token_borders(
            {border for spans in texts for span in spans for border in span}, indices
        )
        return [
            [
                self._closed(index, borders[start], borders[end])
                for start, end in spans
                if start < end
            ]
            for index, spans in zip(indices, texts, strict=True)
        ]

    def _text_spans(self, index: int) -> Iterable[Span]:
        if self._chat.messages[index]["role"] != "assistant":
            return [self._plain_span(index)]
        if self._whole.marked:
            return self._marked_spans(index)
        if index == 0:
            raise self._refusal(0, "is the assistant's; somebody else must begin", ".role")
        return [(self._start(index), self._end(index))]

    def _plain_span(self, index: int) -> Span:
        start = 0 if index == 0 else self._prefix(index)
        end = self._prefix(index + 1)
        if start is None or end is None:
            raise self._untold(index)
        return start, end

    def _marked_spans(self, index: int) -> Sequence[Span]:
        """Those of the template's marks that are in one message: as many as come up with it."""
        roles = [message["role"] for message in self._chat.messages]
        if roles.count("assistant") == 1:
            return self._whole.marked
        counts = []
        for stop in (index, index + 1):
            try:
                counts.append(len(self._render(self._chat.messages[:stop]).marked) if stop else 0)
            except TemplateRefusal:
                raise self._untold(index) from None
        return self._whole.marked[counts[0] : counts[1]]

    def _start(self, index: int) -> int:
        """Where the prompt that asks for a message of the assistant ends."""
        if (length := self._prefix(index, asking=True)) is not None:
            return length
        asked, before = self._part(index, asking=True), self._part(index, asking=False)
        if asked is None or before is None or not asked.startswith(before):
            raise self._untold(index)
        question = asked[len(before) :]
        first, last = self._content_start(index - 1), self._content_start(index)
        found = self._whole.text.rfind(question, first, last) if question else -1
        if found >= 0:
            return found + len(question)
        # Of what asks, such as closed thoughts, only the beginning may be there once it is past.
        for length in range(len(question) - 1, 0, -1):
            opening = question[:length]
            if self._whole.text.endswith(opening, first, last) and self._is_header(opening):
                return last
        raise self._untold(index)

    def _is_header(self, text: str) -> bool:
        """Whether a text has a special token in it, so that it cannot be there by chance."""
        return any(special in text for special in self._tokenizer.special_tokens.values())

    def _end(self, index: int) -> int:
        """Behind the end of a message of the assistant; before anything of the next one's words."""
        if (length := self._prefix(index + 1)) is not None:
            return length
        start, end = self._content_start(index), self._content_start(index + 1)
        closing = [self._tokenizer.decode(np.array([t])) for t in self._tokenizer.stop_tokens]
        found = [(self._whole.text.rfind(text, start, end), text) for text in closing if text]
        last, text = max(found, default=(-1, ""))
        if last < 0:
            raise self._untold(index)
        return last + len(text)

    def _content_start(self, index: int) -> int:
        """Where the first of a message's own words stands, found by changing them."""
        message = dict(self._chat.messages[index])
        first = str(message["content"]).lstrip()[:1]
        message["content"] = "y" if first == "x" else "x"
        for name in ("reasoning_content", "tool_calls"):
            message.pop(name, None)
        messages = [*self._chat.messages]
        messages[index] = message
        try:
            other = self._render(messages).text
        except TemplateRefusal:
            raise self._untold(index) from None
        return _common(self._whole.text, other)

    def _prefix(self, count: int, *, asking: bool = False) -> int | None:
        """How many characters of the whole the first messages take; None if it begins otherwise."""
        if count == len(self._chat.messages) and not asking:
            return len(self._whole.text)
        part = self._part(count, asking=asking)
        return len(part) if part is not None and self._whole.text.startswith(part) else None

    def _part(self, count: int, *, asking: bool) -> str | None:
        """The first messages as text; None where the template refuses to end there."""
        key = count, asking
        if key not in self._parts:
            try:
                self._parts[key] = self._render(self._chat.messages[:count], asking=asking).text
            except TemplateRefusal:
                self._parts[key] = None
        return self._parts[key]

    def _render(self, messages: Sequence[Mapping[str, Any]], asking: bool = False) -> RenderedText:
        return self._tokenizer.render(messages, self._chat.tools, self._variables, asking=asking)

    def _token_borders(self, borders: set[int], indices: Sequence[int]) -> dict[int, int]:
        """How many tokens stand before each of the characters. Where a token reaches over one of
        them the tokens are parted there: what is sampled begins with a token of its own, too."""
        ordered = sorted(borders)
        text, encode = self._whole.text, self._tokenizer.encode
        cuts = itertools.pairwise([0, *ordered, len(text)])
        pieces = [encode(text[start:end]) for start, end in cuts]
        parted = np.concatenate(pieces)
        if not np.array_equal(parted, self.tokens):
            heads = [encode(text[:border]) for border in ordered]
            if all(np.array_equal(head, self.tokens[: head.size]) for head in heads):
                # The tokenizer begins a text otherwise than it goes on with it.
                return dict(zip(ordered, (head.size for head in heads), strict=True))
            if self._tokenizer.decode(parted) != self._tokenizer.decode(self.tokens):
                raise self._refusal(
                    indices[0],
                    "a token reaches over the border of a message, and the tokenizer cannot part "
                    "it: the chat template must end what stands before a message at a token's end",
                )
            self.tokens = parted
        counts = itertools.accumulate(piece.size for piece in pieces)
        return dict(zip(ordered, counts, strict=False))

    def _closed(self, index: int, start: int, end: int) -> Span:
        """Without what the template writes after the token that ends the assistant's message."""
        if self._chat.messages[index]["role"] == "assistant" and not self._whole.marked:
            closing = np.isin(self.tokens[start:end], self._tokenizer.stop_tokens)
            if closing.any():
                end = start + int(np.flatnonzero(closing)[-1]) + 1
        return start, end

    def _untold(self, index: int) -> GatewayError:
        return self._refusal(
            index,
            "the chat template renders what comes before differently once the conversation goes "
            "on, so the message's part cannot be told apart",
        )

    def _refusal(self, index: int, description: str, attribute: str = "") -> GatewayError:
        return invalid_field(f"{self._chat.field}.messages[{index}]{attribute}", description)


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
