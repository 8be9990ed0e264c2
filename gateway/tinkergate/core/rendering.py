"""RenderService: chat messages to tokens and back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from tinkergate.core.admission import Admission, queue_full, shutting_down
from tinkergate.core.faults import as_gateway_error
from tinkergate.core.router import Router
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field
from tinkergate.rendering import (
    ChatTokenizer,
    Tokenizers,
    decode_texts,
    encode_texts,
    parse_responses,
    render_prompts,
    render_training,
)
from tinkergate.v1 import (
    DecodeRequest,
    DecodeResponse,
    EncodeRequest,
    EncodeResponse,
    ParseResponseRequest,
    ParseResponseResponse,
    RenderPromptRequest,
    RenderPromptResponse,
    RenderTrainingRequest,
    RenderTrainingResponse,
    SupportedModel,
    TrainOn,
)

Answer = TypeVar("Answer", bound=Message)


class Rendering:
    """The RPCs of RenderService. All raise NOT_FOUND for a base model that is not there,
    UNSUPPORTED if the gateway lacks its tokenizer, EXHAUSTED if too much is being rendered."""

    def __init__(
        self,
        settings: CoreSettings,
        admission: Admission,
        router: Router,
        tokenizers: Tokenizers,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._router = router
        self._tokenizers = tokenizers
        self._running = 0
        self._running_bytes = 0

    async def render_prompt(self, request: RenderPromptRequest) -> RenderPromptResponse:
        """Answer RenderPrompt. Without conversations it answers the stop tokens alone."""
        model = await self._model(request.base_model)
        self._check_count("conversations", request.conversations)
        return await self._run(model, request, render_prompts(request))

    async def render_training(self, request: RenderTrainingRequest) -> RenderTrainingResponse:
        """Answer RenderTraining."""
        model = await self._model(request.base_model)
        self._check_count("conversations", request.conversations)
        if request.max_tokens < 0 or request.max_tokens == 1:
            raise invalid_field(
                "max_tokens", f"is {request.max_tokens}; must be 0, or 2 at the least"
            )
        if request.train_on not in TrainOn.values():
            raise invalid_field("train_on", f"is {request.train_on}; must be a TrainOn")
        longest = request.max_tokens or model.max_context_length
        return await self._run(model, request, render_training(request, longest))

    async def parse_response(self, request: ParseResponseRequest) -> ParseResponseResponse:
        """Answer ParseResponse."""
        model = await self._model(request.base_model)
        self._check_count("tokens", request.tokens)
        return await self._run(model, request, parse_responses(request.tokens, model.vocab_size))

    async def encode(self, request: EncodeRequest) -> EncodeResponse:
        """Answer Encode."""
        model = await self._model(request.base_model)
        self._check_count("texts", request.texts)
        work = encode_texts(request.texts, add_special_tokens=request.add_special_tokens)
        return await self._run(model, request, work)

    async def decode(self, request: DecodeRequest) -> DecodeResponse:
        """Answer Decode."""
        model = await self._model(request.base_model)
        self._check_count("tokens", request.tokens)
        work = decode_texts(
            request.tokens, model.vocab_size, skip_special_tokens=request.skip_special_tokens
        )
        return await self._run(model, request, work)

    def close(self) -> None:
        """Take no more work."""
        self._tokenizers.close()

    async def _model(self, base_model: str) -> SupportedModel:
        self._admission.check()
        if not base_model:
            raise invalid_field("base_model", "is empty; must name a base model")
        return (await self._router.route(base_model)).model

    def _check_count(self, field: str, items: Sequence[object]) -> None:
        most = self._settings.max_render_items
        if len(items) > most:
            raise invalid_field(field, f"has {len(items)} entries; at most {most} are allowed")

    def _give_back(self, size: int) -> None:
        self._running -= 1
        self._running_bytes -= size

    async def _run(
        self, model: SupportedModel, request: Message, work: Callable[[ChatTokenizer], Answer]
    ) -> Answer:
        size = request.ByteSize()
        limit = self._settings.max_running_render_bytes
        if self._running and self._running_bytes + size > limit:
            raise queue_full(
                f"{self._running} render calls of {self._running_bytes} bytes are running; try "
                "again when some are done",
                self._settings.queue_retry_delay,
            )
        self._running += 1
        self._running_bytes += size
        job = self._tokenizers.submit(model.tokenizer_id or model.name, work)
        loop = asyncio.get_running_loop()

        def done(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # of a loop that is closed
                loop.call_soon_threadsafe(self._give_back, size)

        # Work that has begun goes on when its caller has gone, so the caller does not count.
        job.add_done_callback(done)
        try:
            answer = await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise shutting_down() from None  # the caller still waits; `close` took the work away
        except Exception as error:
            raise as_gateway_error(error, "rendering") from None
        if answer.ByteSize() > self._settings.max_message_bytes:
            raise GatewayError(
                Kind.INVALID,
                ErrorReason.ERROR_REASON_TOO_LARGE,
                f"the answer would be {answer.ByteSize()} bytes, and a message has at most "
                f"{self._settings.max_message_bytes}; send fewer at once",
            )
        return answer
