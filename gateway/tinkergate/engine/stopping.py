"""When a sequence that is being drawn ends."""

from __future__ import annotations

from typing import Any

from tinkergate.engine.base import BaseModel
from tinkergate.engine.sampling import Stops

_INCOMPLETE = "\ufffd"
"""What a tokenizer makes of bytes that are not a whole character (yet)."""

_LONGEST_INCOMPLETE = 16
"""Tokens after which bytes that never become a character are taken as they are."""


class StopWatch:
    """Follows one sequence and tells when it ends by its tokens or its text."""

    def __init__(self, stops: Stops, base: BaseModel) -> None:
        self._tokens = stops.tokens | (base.eos_token_ids if stops.eos else frozenset())
        # The tokenizer is asked for only where there is text to look at: it loads on first use.
        self._text = _StopText(stops.strings, base.tokenizer) if stops.strings else None

    def ends(self, token: int) -> bool:
        """Whether the sequence ends with this token, its next."""
        # The text is followed for every token: no short cut around it.
        by_text = self._text is not None and self._text.ends(token)
        return by_text or token in self._tokens


class _StopText:
    """Decodes a sequence bit by bit: only the last few tokens at each step.

    A token's text depends on its left neighbours (spaces, characters of several tokens), so new
    text is what decoding with a few settled tokens before adds to decoding those alone.
    """

    def __init__(self, strings: tuple[str, ...], tokenizer: Any) -> None:
        self._strings = strings
        self._reach = max(map(len, strings)) - 1
        """How much old text can be part of a new match."""
        self._tokenizer = tokenizer
        self._recent: list[int] = []
        """The tokens whose text is not settled, after those that give them their surroundings."""
        self._settled = 0
        """How many of `_recent` are settled."""
        self._before = ""
        """The text of those."""
        self._tail = ""
        """The last `_reach` characters of the settled text."""

    def ends(self, token: int) -> bool:
        self._recent.append(token)
        new = self._decode(self._recent)[len(self._before) :]
        text = self._tail + new
        found = any(string in text for string in self._strings)
        pending = len(self._recent) - self._settled
        if (new and not new.endswith(_INCOMPLETE)) or pending >= _LONGEST_INCOMPLETE:
            self._tail = text[-self._reach :] if self._reach else ""
            self._recent = self._recent[self._settled :]
            self._settled = len(self._recent)
            self._before = self._decode(self._recent)
        return found

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
