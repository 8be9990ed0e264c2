"""One model's tokenizer with its chat template."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tinkergate.errors import ErrorReason, GatewayError, Kind

Message = Mapping[str, Any]
"""A message as templates see it: "role", "content", and what else there is."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "tinkergate"
_GENERATION_CONFIG = "generation_config.json"


class TemplateRefusal(Exception):
    """The chat template does not take the conversation. The text is the template's own."""


class RenderedText(NamedTuple):
    """A conversation as the template writes it."""

    text: str
    marked: Sequence[tuple[int, int]]
    """What the template marks as the assistant's (`{% generation %}`): from and to which character,
    in order. Empty if it marks nothing."""


class ChatTokenizer:
    """A tokenizer with its chat template. Any one thread at a time may use it."""

    def __init__(self, tokenizer: Any, name: str, end_tokens: Sequence[int] = ()) -> None:
        """`tokenizer` is one of `transformers`; `end_tokens` end a text by the model's generation
        config; `name` is what error messages call it."""
        self.name = name
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """The tokenizer of a Hugging Face folder, from its files alone; code in the folder is never
        run. Raises GatewayError UNSUPPORTED where there is none that can be loaded."""
        try:
            if (folder / "tokenizer.json").is_file():
                # AutoTokenizer would find the same, but loads torch to do so.
                from transformers import PreTrainedTokenizerFast

                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            else:
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
        except ImportError as error:
            raise no_tokenizer(
                name,
                f"{error}; tokenizers need more: pip install 'tinkergate[engine]'",
            ) from error
        except Exception as error:  # the libraries raise what they like at damaged files
            raise no_tokenizer(name, f"none can be loaded from {folder}: {error}") from error
        return cls(tokenizer, name, _generation_end_tokens(folder))

    @functools.cached_property
    def template(self) -> str:
        """The source of the chat template, all of them if there are several; empty without one."""
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            return "\n".join(map(str, template.values()))
        return str(template or "")

    def knows(self, *words: str) -> bool:
        """Whether the template has one of these words in its source."""
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", self.template) for word in words)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        *,
        asking: bool = False,
    ) -> RenderedText:
        """The conversation as text; `asking` for the assistant's next message. Raises
        TemplateRefusal, and GatewayError UNSUPPORTED if there is no template."""
        if not self.template:
            raise GatewayError(
                Kind.UNSUPPORTED,
                ErrorReason.ERROR_REASON_UNSUPPORTED,
                f"the tokenizer of {self.name!r} has no chat template; send tokens of plain text, "
                "which Encode makes",
                metadata={"feature": "chat template"},
            )
        from transformers.utils.chat_template_utils import render_jinja_template

        given = [dict(tool) for tool in tools] or None
        try:
            template = self._tokenizer.get_chat_template(tools=given)
            marks = bool(_GENERATION.search(template))
            texts, marked = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=given,
                chat_template=template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=asking,
                **{**self._tokenizer.special_tokens_map, **variables},
            )
            texts[0].encode()  # JSON may have brought half a surrogate pair, which is no text
        except Exception as error:  # a template can fail in any way that Python can
            raise TemplateRefusal(str(error) or type(error).__name__) from error
        return RenderedText(str(texts[0]), marked[0] if marks else ())

    def encode(self, text: str, *, add_special_tokens: bool = False) -> NDArray[np.int32]:
        """int32 (N,): the text's tokens."""
        ids = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return np.asarray(ids["input_ids"], dtype=np.int32)

    def decode(self, tokens: NDArray[np.int32], *, skip_special_tokens: bool = False) -> str:
        """The text of int32 (N,) token ids."""
        return str(
            self._tokenizer.decode(
                tokens.tolist(),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        )

    @functools.cached_property
    def size(self) -> int:
        """One more than the highest token id."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @functools.cached_property
    def special_tokens(self) -> Mapping[int, str]:
        """The special tokens by their ids."""
        return {
            number: token.content
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
        }

    @functools.cached_property
    def stop_tokens(self) -> Sequence[int]:
        """What ends the model's message: the tokenizer's end of sequence first, then those of the
        generation config, then what the template writes after a message of the assistant."""
        found = [self._tokenizer.eos_token_id, *self._end_tokens, self._turn_end()]
        return list(dict.fromkeys(int(token) for token in found if token is not None))

    @functools.cached_property
    def opens_thoughts(self) -> bool:
        """Whether the template begins the assistant's message with an open `<think>`."""
        try:
            asked = self.render([{"role": "user", "content": _PROBE}], (), {}, asking=True)
        except (TemplateRefusal, GatewayError):
            return False
        return asked.text.rstrip().endswith("<think>")

    def _turn_end(self) -> int | None:
        """The special token that the template writes right after a message of the assistant."""
        turns: list[Message] = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _PROBE},
        ]
        try:
            text = self.render(turns, (), {}).text
        except (TemplateRefusal, GatewayError):
            return None
        _, found, rest = text.rpartition(_PROBE)
        for token in self.encode(rest.lstrip()).tolist() if found else ():
            return int(token) if token in self.special_tokens else None
        return None


def no_tokenizer(name: str, why: str) -> GatewayError:
    """The gateway has no tokenizer of a model."""
    return GatewayError(
        Kind.UNSUPPORTED,
        ErrorReason.ERROR_REASON_UNSUPPORTED,
        f"the gateway has no tokenizer of {name!r}: {why}",
        metadata={"feature": "rendering", "tokenizer": name},
    )


def _generation_end_tokens(folder: Path) -> list[int]:
    try:
        config = json.loads((folder / _GENERATION_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    ids = config.get("eos_token_id") if isinstance(config, dict) else None
    return [each for each in (ids if isinstance(ids, list) else [ids]) if isinstance(each, int)]
