"""From conversations to tokens and back, with the model's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tinkergate.v1 import SupportedModel

Message = Mapping[str, str]


class RenderingError(Exception):
    """The conversation cannot be rendered. The text says why, for people."""


class Rendered(NamedTuple):
    """A conversation as tokens."""

    tokens: NDArray[np.int64]
    """int64 (N,)."""
    loss_mask: NDArray[np.bool_]
    """bool (N,): whether the token is the assistant's."""


class Renderer:
    """A tokenizer with the rules of its chat template.

    The assistant's tokens are those that the template marks (`{% generation %}`), where it does;
    else those from the end of the prompt that asks for the message to the end of the message,
    the token that ends it included.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self.has_template = bool(template)
        """Whether there is a chat template."""
        self._marks_assistant = isinstance(template, str) and "generation %}" in template

    @classmethod
    def of_model(cls, model: SupportedModel) -> Self:
        """The renderer of a gateway's model, from this machine's files. Raises RenderingError."""
        from tinkergate.engine.model_files import ModelFiles
        from tinkergate.errors import GatewayError

        try:
            folder = ModelFiles().path(model.tokenizer_id or model.name)
        except GatewayError as error:
            raise RenderingError(f"the tokenizer of {model.name!r}: {error}") from error
        return cls.of_folder(folder)

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """The renderer of a Hugging Face folder. Raises RenderingError."""
        try:
            if (folder / "tokenizer.json").is_file():
                # AutoTokenizer would find the same, but loads torch to do so.
                from transformers import PreTrainedTokenizerFast as Tokenizer
            else:
                from transformers import AutoTokenizer as Tokenizer
            return cls(Tokenizer.from_pretrained(folder))
        except ImportError as error:
            raise RenderingError(f"tokenizers need the 'engine' extra: {error}") from error
        except (OSError, ValueError) as error:
            raise RenderingError(f"no tokenizer can be loaded from {folder}: {error}") from error

    def conversation(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation through the chat template. Raises RenderingError."""
        if self._marks_assistant:
            answer = self._tokenizer.apply_chat_template(
                list(messages), return_dict=True, return_assistant_tokens_mask=True
            )
            return Rendered(
                np.asarray(answer["input_ids"], dtype=np.int64),
                np.asarray(answer["assistant_masks"], dtype=np.bool_),
            )
        if messages[0]["role"] == "assistant":
            raise RenderingError("messages[0].role: is 'assistant'; somebody else must begin")
        whole = self._render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._prefix(whole, messages[:index], index, asking=True)
                end = self._prefix(whole, messages[: index + 1], index, asking=False)
                spans.append((start, end))
        return self._tokenize(whole, spans)

    def pair(self, prompt: str, completion: str) -> Rendered:
        """Plain text: the completion is to be learned, with the end-of-sequence token after it."""
        before = self.plain(prompt)
        after = self._tokenizer(completion, add_special_tokens=False)["input_ids"]
        if self._tokenizer.eos_token_id is not None:
            after = [*after, self._tokenizer.eos_token_id]
        mask = np.repeat([False, True], [before.size, len(after)])
        return Rendered(np.concatenate([before, np.asarray(after, dtype=np.int64)]), mask)

    def prompt(self, messages: Sequence[Message]) -> NDArray[np.int64]:
        """What asks the assistant for its next message. Raises RenderingError."""
        return self._tokenize(self._render(messages, asking=True), []).tokens

    def question(self, text: str, *, raw: bool) -> NDArray[np.int64]:
        """A user's message as the chat template asks it; plain text if `raw`, or without one."""
        if raw or not self.has_template:
            return self.plain(text)
        return self.prompt([{"role": "user", "content": text}])

    def plain(self, text: str) -> NDArray[np.int64]:
        """Text as it is, after the tokenizer's own beginning of text, if it has one."""
        return np.asarray(self._tokenizer(text)["input_ids"], dtype=np.int64)

    def text(self, tokens: Sequence[int] | NDArray[Any]) -> str:
        """Tokens as text, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _render(self, messages: Sequence[Message], *, asking: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=asking
                )
            )
        except TemplateError as error:
            raise RenderingError(f"the chat template refuses it: {error}") from error

    def _prefix(self, whole: str, messages: Sequence[Message], index: int, *, asking: bool) -> int:
        """How many characters of `whole` its first messages take."""
        prefix = self._render(messages, asking=asking)
        if not whole.startswith(prefix):
            raise RenderingError(
                f"messages[{index}]: the chat template renders what comes before differently once "
                "the conversation goes on, so the assistant's part cannot be told apart"
            )
        return len(prefix)

    def _tokenize(self, whole: str, spans: Sequence[tuple[int, int]]) -> Rendered:
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        tokens = np.asarray(encoded["input_ids"], dtype=np.int64)
        starts, ends = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        mask = np.zeros(tokens.size, dtype=np.bool_)
        for start, end in spans:
            if ((starts < start) & (ends > start)).any():
                raise RenderingError(
                    "a token reaches from the prompt into the assistant's part: the chat template "
                    "must end the prompt at a token's end"
                )
            inside = (starts >= start) & (ends <= end) & (ends > starts)
            # What the template writes after the end of the message is not the assistant's.
            if (closing := inside & (tokens == self._tokenizer.eos_token_id)).any():
                inside[int(np.flatnonzero(closing)[-1]) + 1 :] = False
            mask |= inside
        return Rendered(tokens, mask)
