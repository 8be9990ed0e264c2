"""What a sampler answers (wire sections 8.3 and 8.4), as messages of the contract.

Some samplers answer the prompt and then what was drawn, and some what was drawn alone; nothing in
the answer says which, and what was drawn may begin as the prompt does. So that no token is lost and
none of the prompt passes for a drawn one, `Echo` goes by what can only be true of one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.dialects.tinker.json_fields import Fields, shown
from tinkergate.dialects.tinker.read_results import NO_LOGPROB
from tinkergate.dialects.tinker.tensors_json import array_from_list
from tinkergate.errors import GatewayError, invalid_field
from tinkergate.v1 import SampledSequence, SampleRequest, SampleResponse, StopReason, TopkLogprobs

IntArray = NDArray[np.int64]

_FLOAT32 = np.dtype("<f4")
_INT64 = np.dtype("<i8")
_INT32 = np.iinfo(np.int32)
_TOKEN_ID = "token_id:"
_FINISHED = {"stop": StopReason.STOP_REASON_STOP, "length": StopReason.STOP_REASON_LENGTH}


@dataclass
class Echo:
    """Whether a sampler answers the prompt too; None while nothing told."""

    known: bool | None = None


class _Choice:
    """One sequence as it came."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        reason = fields.optional_text("finish_reason") or "length"
        if reason not in _FINISHED:
            raise invalid_field(
                fields.path("finish_reason"), f"is {reason!r}; must be 'stop' or 'length'"
            )
        self.reason = _FINISHED[reason]
        self.logprobs = fields.optional_fields("logprobs")
        self.tokens = self._tokens()
        self.values = self._values()

    def _tokens(self) -> IntArray:
        if self.fields.items("token_ids"):
            return _ids(self.fields.raw("token_ids"), self.fields.path("token_ids"))
        if self.logprobs is None:
            if "token_ids" in self.fields:
                return np.empty(0, _INT64)
            raise invalid_field(self.fields.path("token_ids"), "is not given, nor are logprobs")
        path = self.logprobs.path("tokens")
        told = [
            int(token.removeprefix(_TOKEN_ID))
            if isinstance(token, str)
            and token.startswith(_TOKEN_ID)
            and token.removeprefix(_TOKEN_ID).isdecimal()
            else token
            for token in self.logprobs.items("tokens")
        ]
        return _ids(told, path)

    def _values(self) -> NDArray[np.float32] | None:
        """A logprob for each token, NaN for null; None if there are none."""
        if self.logprobs is None or "token_logprobs" not in self.logprobs:
            return None
        path = self.logprobs.path("token_logprobs")
        told = self.logprobs.raw("token_logprobs")
        values = np.asarray(array_from_list(told, _FLOAT32, path, null_is_nan=True), np.float32)
        if values.size != self.tokens.size:
            raise invalid_field(path, f"has {values.size}; there are {self.tokens.size} tokens")
        return values

    def begins_with(self, prompt: IntArray) -> bool:
        """Whether it may be the prompt and something more."""
        return bool(np.array_equal(self.tokens[: prompt.size], prompt))

    def cut(self, length: int) -> SampledSequence:
        """The sequence after so many tokens of the prompt."""
        tokens = self.tokens[length:]
        sequence = SampledSequence(stop_reason=self.reason, tokens=tokens.astype("<i4").tobytes())
        if self.values is not None:
            values = self.values[length:]
            if bool(np.isnan(values).any()):
                assert self.logprobs is not None
                raise invalid_field(
                    self.logprobs.path("token_logprobs"), "has null for a token that was drawn"
                )
            sequence.logprobs = values.tobytes()
        return sequence


def _ids(values: object, path: str) -> IntArray:
    tokens = np.asarray(array_from_list(values, _INT64, path), _INT64)
    wrong = (tokens < 0) | (tokens > _INT32.max)
    if bool(wrong.any()):
        place = int(wrong.argmax())
        raise invalid_field(f"{path}[{place}]", f"is {tokens[place]}; must be a token id")
    return tokens


def response_from_json(
    fields: Fields, request: SampleRequest, prompt: IntArray | None, max_tokens: int, echo: Echo
) -> SampleResponse:
    """What a sampler answered to `request`, whose prompt is these tokens, or has an image if it is
    None. `max_tokens` is what was sent. What is learnt of the sampler's way to answer goes into
    `echo`."""
    choices = [
        _Choice(Fields(value, f"choices[{index}]"))
        for index, value in enumerate(_in_order(fields.items("choices")))
    ]
    wanted = request.num_samples or 1
    if len(choices) != wanted:
        raise invalid_field("choices", f"has {len(choices)}; {wanted} were asked for")
    told = _told_prompt(fields, choices)
    if told is not None:
        prompt = told
    length = 0
    if prompt is not None and prompt.size and _echoes(fields, choices, prompt, max_tokens, echo):
        length = prompt.size
    response = SampleResponse(sequences=[choice.cut(length) for choice in choices])
    if request.prompt_logprobs or request.topk_prompt_logprobs:
        _read_prompt(response, fields, choices, request, prompt)
    return response


def _in_order(choices: list[Any]) -> list[Any]:
    """The choices by their `index`, where all have one."""
    placed: dict[int, Any] = {}
    for choice in choices:
        place = choice.get("index") if isinstance(choice, dict) else None
        if isinstance(place, int):
            placed[place] = choice
    if placed.keys() != set(range(len(choices))):
        return choices
    return [placed[place] for place in range(len(choices))]


def _told_prompt(fields: Fields, choices: Sequence[_Choice]) -> IntArray | None:
    """The prompt as the sampler has it, images expanded."""
    for each in (*(choice.fields for choice in choices), fields):
        if each.items("prompt_token_ids"):
            return _ids(each.raw("prompt_token_ids"), each.path("prompt_token_ids"))
    return None


def _echoes(
    fields: Fields, choices: Sequence[_Choice], prompt: IntArray, max_tokens: int, echo: Echo
) -> bool:
    """Whether the tokens are the prompt and what was drawn. Raises GatewayError if that cannot be
    told."""
    if not all(choice.begins_with(prompt) for choice in choices):
        echo.known = False
        return False
    decided = _by_length(fields, choices, prompt.size, max_tokens)
    if decided is None:
        decided = echo.known
    if decided is None:
        raise invalid_field(
            "choices",
            "begin as the prompt does, and nothing tells whether it is a part of them; usage."
            "completion_tokens would",
        )
    echo.known = decided
    return decided


def _by_length(
    fields: Fields, choices: Sequence[_Choice], prompt: int, max_tokens: int
) -> bool | None:
    """The same by how many tokens there are; None if that fits both."""
    for choice in choices:
        if choice.tokens.size > max_tokens:
            return True
        # What is drawn always has a logprob.
        if choice.values is not None and bool(np.isnan(choice.values[:prompt]).any()):
            return True
    usage = fields.optional_fields("usage")
    drawn = None if usage is None else usage.optional_integer("completion_tokens", bits=64)
    sizes = sum(choice.tokens.size for choice in choices)
    if drawn is not None:
        if drawn == sizes:
            return False
        if drawn == sizes - prompt * len(choices):
            return True
    return None


def _read_prompt(
    response: SampleResponse,
    fields: Fields,
    choices: Sequence[_Choice],
    request: SampleRequest,
    prompt: IntArray | None,
) -> None:
    """The logprobs of the prompt's tokens, and the likeliest of each place."""
    told = next((c.fields for c in choices if "prompt_logprobs" in c.fields), fields)
    if prompt is None:
        raise invalid_field("prompt_token_ids", "is not given for a prompt with an image")
    rows = told.raw("prompt_logprobs")
    path = told.path("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != prompt.size:
        raise invalid_field(path, f"is {shown(rows)}; must be a list of {prompt.size}")
    k = request.topk_prompt_logprobs
    logprobs = np.full(prompt.size, np.nan, _FLOAT32)
    ids = np.zeros((prompt.size, k), "<i4")
    values = np.full((prompt.size, k), NO_LOGPROB, _FLOAT32)
    for place, row in enumerate(rows):
        if row is None:
            continue
        try:
            found = {int(token): float(each["logprob"]) for token, each in row.items()}
            logprobs[place] = found[int(prompt[place])]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _odd_row(f"{path}[{place}]", row, int(prompt[place])) from None
        # The prompt's own token comes along whether it is likely or not, and in any order.
        best = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        for column, (token, value) in enumerate(best):
            ids[place, column], values[place, column] = token, value
    if request.prompt_logprobs:
        response.prompt_logprobs = logprobs.tobytes()
    if k:
        response.topk_prompt_logprobs.CopyFrom(
            TopkLogprobs(
                token_ids=ids.tobytes(), logprobs=values.tobytes(), k=k, length=prompt.size
            )
        )


def _odd_row(path: str, row: object, token: int) -> GatewayError:
    return invalid_field(
        path, f"is {shown(row)}; must be an object with the logprob of token {token}"
    )
