"""Chat messages to tokens and back by the gateway: no tokenizer is needed here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from tinkergate.tensors import token_bytes, tokens_from_bytes
from tinkergate.v1 import (
    Conversation,
    DecodeRequest,
    EncodeRequest,
    ParsedMessage,
    ParseResponseRequest,
    RenderedDatum,
    RenderPromptRequest,
    RenderTrainingRequest,
    TrainOn,
)
from tinkergate_client._connection import Connection
from tinkergate_client._conversations import Message, conversation
from tinkergate_client._datums import Tokens, token_array
from tinkergate_client._errors import InvalidRequest, Violation

TrainOnName = Literal["all_assistant_messages", "last_assistant_message", "all_tokens"]
"""Which tokens of a conversation are learned."""

_BATCH_BYTES = 1 << 20
"""Of one request. The answer may have sixteen times as many, and must fit into a message."""
_BATCH_ITEMS = 512
_INDEX = re.compile(r"\b(conversations|tokens)\[(\d+)\]")

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")


class _Sized(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf's name


class Renderer:
    """The tokenizer and the chat template of one base model, at the gateway. All methods raise
    TinkergateError: Unsupported if the gateway has no tokenizer of the model, or the tokenizer no
    chat template; InvalidRequest for conversations that cannot be rendered.

    Conversations are sequences of messages, or what `conversation` makes of them.
    """

    def __init__(self, connection: Connection, base_model: str) -> None:
        self._connection = connection
        self.base_model = base_model
        """The base model."""
        self._stub = connection.rendering

    def prompt(
        self,
        messages: Sequence[Message] | Conversation,
        *,
        template_variables: Mapping[str, Any] | None = None,
    ) -> NDArray[np.int32]:
        """int32 (N,): the tokens that ask the assistant for its next message."""
        return self.prompts([messages], template_variables=template_variables)[0]

    def prompts(
        self,
        conversations: Iterable[Sequence[Message] | Conversation],
        *,
        template_variables: Mapping[str, Any] | None = None,
    ) -> list[NDArray[np.int32]]:
        """`prompt` of each conversation."""
        variables = _variables(template_variables)

        def request(batch: list[Conversation]) -> RenderPromptRequest:
            return RenderPromptRequest(
                base_model=self.base_model, conversations=batch, template_variables_json=variables
            )

        batches = _batches(map(_conversation, conversations), _message_size)
        answers = self._each(self._stub.RenderPrompt, batches, request)
        return [
            tokens_from_bytes(prompt.chunks[0].encoded_text.tokens)
            for answer in answers
            for prompt in answer.prompts
        ]

    def stop_tokens(self) -> list[int]:
        """What ends the model's message when sampling; the tokenizer's end of sequence is first."""
        request = RenderPromptRequest(base_model=self.base_model)
        return list(self._connection.call(self._stub.RenderPrompt, request).stop_tokens.values)

    def training(
        self,
        conversations: Iterable[Sequence[Message] | Conversation],
        *,
        train_on: TrainOnName = "all_assistant_messages",
        max_tokens: int = 0,
        template_variables: Mapping[str, Any] | None = None,
    ) -> list[RenderedDatum]:
        """One datum a conversation for the cross_entropy loss, with "target_tokens" and "weights"
        already shifted. Conversations are cut to `max_tokens` tokens, or to the model's context if
        it is 0."""
        variables = _variables(template_variables)
        which = TrainOn.Value(f"TRAIN_ON_{train_on.upper()}")

        def request(batch: list[Conversation]) -> RenderTrainingRequest:
            return RenderTrainingRequest(
                base_model=self.base_model,
                conversations=batch,
                train_on=which,
                max_tokens=max_tokens,
                template_variables_json=variables,
            )

        batches = _batches(map(_conversation, conversations), _message_size)
        answers = self._each(self._stub.RenderTraining, batches, request)
        return [rendered for answer in answers for rendered in answer.datums]

    def parse(self, sequences: Iterable[Tokens]) -> list[ParsedMessage]:
        """Sampled tokens as messages of the assistant."""

        def request(batch: list[bytes]) -> ParseResponseRequest:
            return ParseResponseRequest(base_model=self.base_model, tokens=batch)

        batches = _batches(map(_packed, sequences), len)
        answers = self._each(self._stub.ParseResponse, batches, request)
        return [message for answer in answers for message in answer.messages]

    def encode(
        self, texts: Iterable[str], *, add_special_tokens: bool = False
    ) -> list[NDArray[np.int32]]:
        """int32 (N,) each: the tokens of texts, without any template."""

        def request(batch: list[str]) -> EncodeRequest:
            return EncodeRequest(
                base_model=self.base_model, texts=batch, add_special_tokens=add_special_tokens
            )

        answers = self._each(self._stub.Encode, _batches(texts, len), request)
        return [tokens_from_bytes(tokens) for answer in answers for tokens in answer.tokens]

    def decode(
        self, sequences: Iterable[Tokens], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """The texts of token ids."""

        def request(batch: list[bytes]) -> DecodeRequest:
            return DecodeRequest(
                base_model=self.base_model, tokens=batch, skip_special_tokens=skip_special_tokens
            )

        answers = self._each(self._stub.Decode, _batches(map(_packed, sequences), len), request)
        return [text for answer in answers for text in answer.texts]

    def _each(
        self,
        rpc: grpc.UnaryUnaryMultiCallable[Request, Response],
        batches: Iterable[list[Item]],
        request: Callable[[list[Item]], Request],
    ) -> Iterator[Response]:
        """The answers to batches. Errors tell places in all of them, not in one."""
        before = 0
        for batch in batches:
            try:
                yield self._connection.call(rpc, request(batch))
            except InvalidRequest as error:
                raise _moved(error, before) from None
            before += len(batch)


def _conversation(given: Sequence[Message] | Conversation) -> Conversation:
    return given if isinstance(given, Conversation) else conversation(given)


def _packed(tokens: Tokens) -> bytes:
    return token_bytes(token_array(tokens))


def _message_size(message: _Sized) -> int:
    return message.ByteSize()


def _batches(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (size + size_of(item) > _BATCH_BYTES or len(batch) == _BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += size_of(item)
    if batch:
        yield batch


def _variables(variables: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in (variables or {}).items()}


def _moved(error: InvalidRequest, by: int) -> InvalidRequest:
    """The error of a batch that came after `by` items."""

    def move(text: str) -> str:
        return _INDEX.sub(lambda found: f"{found[1]}[{int(found[2]) + by}]", text, count=1)

    violations = tuple(Violation(move(v.field), v.description) for v in error.violations)
    message = "; ".join(f"{field}: {description}" for field, description in violations)
    return InvalidRequest(
        message or error.message,
        code=error.code,
        reason=error.reason,
        violations=violations,
        backend=error.backend,
        metadata=error.metadata,
    )
