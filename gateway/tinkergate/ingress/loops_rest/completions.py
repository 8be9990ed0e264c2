"""Sample calls by the keys of their callers, and what came of them as it is told."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tinkergate.core.gateway import Gateway
from tinkergate.dialects.loops.write_results import completion_to_json, done_to_json
from tinkergate.dialects.tinker.json_text import write_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.ingress.http.bodies import THREAD_BYTES
from tinkergate.tensors import tokens_from_bytes
from tinkergate.v1 import DecodeRequest, SampleRequest, SampleResponse

PRUNE_FROM = 1024
"""From how many calls on those are looked for that are no longer kept."""

MAX_PROMPT_BYTES = 128 << 20
"""The most bytes of prompts of calls that are done; the answers of the oldest go with them."""


@dataclass(frozen=True)
class Drawing:
    """What to draw."""

    request: SampleRequest
    """Handed over when the call begins."""
    model: str
    """What it is drawn from, as this dialect tells it."""
    base_model: str
    version: int | None = None
    """The version of live weights; None where it is not told."""


@dataclass(frozen=True)
class _Note:
    """What telling the answer of a call takes beside the answer."""

    key: tuple[str, str]
    prompt: bytes | None
    """int32 tokens; None if it has images."""
    drawing: Drawing
    created: int
    """When it began, in seconds since 1970."""


class Completions:
    """The sample calls of this dialect."""

    def __init__(self, gateway: Gateway) -> None:
        self._futures = gateway.sample_futures
        self._rendering = gateway.rendering
        self._notes: OrderedDict[str, _Note] = OrderedDict()
        self._by_key: dict[tuple[str, str], str] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        """Of the calls that are being submitted."""
        self._prune_at = PRUNE_FROM
        self._bytes = 0
        """Of all prompts."""

    def known(self, sampler_id: str, call: str) -> str | None:
        """The name of the call with this key, if there was one whose answer is still kept."""
        name = self._by_key.get((sampler_id, call)) if call else None
        if name is None:
            return None
        try:
            self._futures.require(name)
        except GatewayError:
            self._forget(name)
            return None
        return name

    async def begin(self, sampler_id: str, call: str, drawing: Drawing) -> str:
        """Begin to draw; answers the call's name, that of an earlier call with the key if there was
        one. Raises GatewayError."""
        if not call:
            return await self._begin((sampler_id, ""), drawing)
        key = (sampler_id, call)
        async with self._locks.setdefault(key, asyncio.Lock()):
            try:
                return self.known(sampler_id, call) or await self._begin(key, drawing)
            finally:
                self._locks.pop(key, None)

    async def _begin(self, key: tuple[str, str], drawing: Drawing) -> str:
        asked = drawing.request
        chunks = asked.prompt.chunks
        text = all(chunk.WhichOneof("chunk") == "encoded_text" for chunk in chunks)
        prompt = b"".join(chunk.encoded_text.tokens for chunk in chunks) if text else None
        future = await self._futures.submit(asked)
        kept = replace(drawing, request=SampleRequest())
        self._notes[future.name] = _Note(key, prompt, kept, int(time.time()))
        self._bytes += len(prompt or b"")
        if key[1]:
            self._by_key[key] = future.name
        self._prune()
        return future.name

    def _prune(self) -> None:
        """Forget the calls whose answers are no longer kept; and of those that are done the oldest,
        where the prompts of all take too much."""
        crowded = self._bytes > MAX_PROMPT_BYTES
        if len(self._notes) < self._prune_at and not crowded:
            return
        for name in list(self._notes):
            try:
                done = self._futures.require(name).call.done
            except GatewayError:
                self._forget(name)
            else:
                if done and self._bytes > MAX_PROMPT_BYTES:
                    self._forget(name)
        self._prune_at = max(PRUNE_FROM, 2 * len(self._notes))

    def _forget(self, name: str) -> None:
        note = self._notes.pop(name, None)
        if note is None:
            return
        self._bytes -= len(note.prompt or b"")
        if self._by_key.get(note.key) == name:
            del self._by_key[note.key]

    def version(self, name: str) -> int | None:
        """The version of the weights that a call drew from, where that is told."""
        note = self._notes.get(name)
        return None if note is None else note.drawing.version

    def cancel(self, name: str) -> bool:
        """Stop a call. False for one that is done. Raises GatewayError (OPERATION_NOT_FOUND)."""
        future = self._futures.require(name)
        if future.call.done:
            return False
        self._futures.cancel(name)
        note = self._notes.get(name)
        if note is not None:
            # A repeat of the call draws anew.
            self._by_key.pop(note.key, None)
        return True

    async def wait(self, name: str, limit: float, *, wrapped: bool = False) -> bytes | None:
        """The completion in JSON, as the result of an operation if it is `wrapped`; None if it is
        not there within `limit` seconds. Raises GatewayError: OPERATION_NOT_FOUND, or the call's
        own."""
        try:
            response = await self._futures.wait(name, limit)
        except GatewayError:
            # A repeat of the call draws anew.
            if (failed := self._notes.get(name)) is not None:
                self._by_key.pop(failed.key, None)
            raise
        if response is None:
            return None
        note = self._notes.get(name)
        if note is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND,
                f"there is no sample call {name[:300]!r}",
            )
        prompt = None if note.prompt is None else tokens_from_bytes(note.prompt)
        texts = await self._texts(note, response)

        def write() -> bytes:
            told = _told(response, note, prompt, texts)
            return write_json(done_to_json(told) if wrapped else told)

        size = response.ByteSize() + len(response.sequences) * len(note.prompt or b"")
        return write() if size < THREAD_BYTES else await asyncio.to_thread(write)

    async def _texts(self, note: _Note, response: SampleResponse) -> list[str] | None:
        """What the sequences read as; None if there is no tokenizer for it here."""
        asked = DecodeRequest(
            base_model=note.drawing.base_model,
            tokens=[sequence.tokens for sequence in response.sequences],
            skip_special_tokens=True,
        )
        try:
            return list((await self._rendering.decode(asked)).texts)
        except GatewayError:
            return None


def _told(
    response: SampleResponse,
    note: _Note,
    prompt: NDArray[np.int32] | None,
    texts: list[str] | None,
) -> dict[str, object]:
    return completion_to_json(
        response, prompt, model=note.drawing.model, created=note.created, texts=texts
    )
