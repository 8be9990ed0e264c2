from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from chat_templates import chat

from tinkergate.core.rendering import Rendering
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.rendering import Tokenizers
from tinkergate.tensors import tokens_from_bytes
from tinkergate.v1 import (
    Conversation,
    DecodeRequest,
    EncodeRequest,
    ParseResponseRequest,
    RenderPromptRequest,
    RenderTrainingRequest,
)

BASE = "accounts/small"
TOKENIZER = "accounts/tokenizer"


class Shelf:
    """Finds one folder by one name, and counts how often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def find(self, name: str) -> Path:
        self.asked.append(name)
        self.gate.wait()
        return self.folder


@pytest.fixture
def shelf(micro_model_dir: Path) -> Shelf:
    return Shelf(micro_model_dir)


@pytest.fixture
async def rendering(open_house: Any, shelf: Shelf) -> Any:
    house = await open_house()
    made: list[Rendering] = []

    def make(tokenizers: Tokenizers | None = None, **settings: Any) -> Rendering:
        gateway = house.gateway
        rendering = Rendering(
            CoreSettings(**settings),
            gateway._admission,
            gateway._router,
            tokenizers or Tokenizers(shelf.find),
        )
        made.append(rendering)
        return rendering

    yield make
    shelf.gate.set()
    for each in made:
        each.close()


async def test_a_model_is_found_by_its_alias_and_its_tokenizer_loaded_once(
    rendering: Any, shelf: Shelf
) -> None:
    service = rendering()
    for name in (BASE, "small", BASE):
        answer = await service.encode(EncodeRequest(base_model=name, texts=["You may", ""]))
        assert [len(tokens_from_bytes(tokens)) > 0 for tokens in answer.tokens] == [True, False]
    assert shelf.asked == [TOKENIZER]
    decoded = await service.decode(DecodeRequest(base_model="small", tokens=answer.tokens))
    assert list(decoded.texts) == ["You may", ""]


async def test_special_tokens_can_be_left_out(rendering: Any) -> None:
    service = rendering()
    [tokens] = (await service.encode(EncodeRequest(base_model=BASE, texts=["a<|im_end|>"]))).tokens
    texts = [
        (await service.decode(request)).texts[0]
        for request in (
            DecodeRequest(base_model=BASE, tokens=[tokens]),
            DecodeRequest(base_model=BASE, tokens=[tokens], skip_special_tokens=True),
        )
    ]
    assert texts == ["a<|im_end|>", "a"]


async def test_the_models_context_cuts_unless_the_caller_does(rendering: Any) -> None:
    service = rendering()
    for max_tokens, kept in [(0, 32), (10, 10), (500, 60)]:
        request = RenderTrainingRequest(
            base_model=BASE, conversations=[chat("a" * 20, "b" * 20)], max_tokens=max_tokens
        )
        [datum] = (await service.render_training(request)).datums
        assert datum.truncated == (datum.total_tokens > kept)
        inputs = tokens_from_bytes(datum.datum.model_input[0].encoded_text.tokens)
        assert inputs.size == min(kept, datum.total_tokens) - 1


async def test_without_conversations_the_stop_tokens_are_told(rendering: Any) -> None:
    answer = await rendering().render_prompt(RenderPromptRequest(base_model=BASE))
    assert not answer.prompts
    assert list(answer.stop_tokens.values) == [2]


async def test_the_event_loop_goes_on_while_a_tokenizer_loads(rendering: Any, shelf: Shelf) -> None:
    service = rendering()
    shelf.gate.clear()
    call = asyncio.create_task(service.encode(EncodeRequest(base_model=BASE, texts=["a"])))
    while not shelf.asked:  # noqa: ASYNC110 - what is waited for happens on a thread
        await asyncio.sleep(0.001)
    assert not call.done()
    shelf.gate.set()
    assert (await call).tokens


async def test_a_tokenizer_that_is_not_there_is_told_and_looked_for_again(
    rendering: Any, micro_model_dir: Path, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path)
    service = rendering(Tokenizers(shelf.find))
    request = EncodeRequest(base_model=BASE, texts=["a"])
    with pytest.raises(GatewayError, match=f"the gateway has no tokenizer of '{TOKENIZER}'") as got:
        await service.encode(request)
    assert (got.value.kind, got.value.metadata["feature"]) == (Kind.UNSUPPORTED, "rendering")
    shelf.folder = micro_model_dir
    assert (await service.encode(request)).tokens


def test_the_least_recently_used_tokenizers_are_forgotten(shelf: Shelf) -> None:
    tokenizers = Tokenizers(shelf.find, kept=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert tokenizers.submit(name, lambda tokenizer: tokenizer.name).result() == name
    tokenizers.close()
    assert shelf.asked == ["a", "b", "c", "b"]


async def test_a_gateway_without_tokenizers_says_so(open_house: Any) -> None:
    house = await open_house()
    with pytest.raises(GatewayError, match="it was started without any"):
        await house.gateway.rendering.encode(EncodeRequest(base_model=BASE, texts=["a"]))


@pytest.mark.parametrize(
    ("method", "request_", "said"),
    [
        ("encode", EncodeRequest(texts=["a"]), "base_model: is empty"),
        ("encode", EncodeRequest(base_model="nope"), "there is no base model 'nope'"),
        ("encode", EncodeRequest(base_model=BASE, texts=["a"] * 4), "texts: has 4 entries; at"),
        ("decode", DecodeRequest(base_model=BASE, tokens=[b""] * 4), "tokens: has 4 entries; at"),
        ("decode", DecodeRequest(base_model=BASE, tokens=[b"123"]), "tokens[0]: tokens has 3"),
        (
            "parse_response",
            ParseResponseRequest(base_model=BASE, tokens=[b""] * 4),
            "tokens: has 4 entries; at most 3",
        ),
        (
            "render_prompt",
            RenderPromptRequest(base_model=BASE, conversations=[Conversation()] * 4),
            "conversations: has 4 entries; at most 3",
        ),
        (
            "render_training",
            RenderTrainingRequest(base_model=BASE, max_tokens=1),
            "max_tokens: is 1; must be 0, or 2 at the least",
        ),
        (
            "render_training",
            RenderTrainingRequest(base_model=BASE, train_on=9),  # type: ignore[arg-type]
            "train_on: is 9",
        ),
    ],
)
async def test_requests_that_break_a_rule_are_refused(
    rendering: Any, method: str, request_: Any, said: str
) -> None:
    service = rendering(max_render_items=3)
    with pytest.raises(GatewayError) as caught:
        await getattr(service, method)(request_)
    assert said in str(caught.value)


async def test_an_answer_that_no_message_can_hold_is_refused(rendering: Any) -> None:
    service = rendering(max_message_bytes=100)
    with pytest.raises(GatewayError, match="send fewer at once") as caught:
        await service.encode(EncodeRequest(base_model=BASE, texts=["a" * 200]))
    assert caught.value.reason == ErrorReason.ERROR_REASON_TOO_LARGE


async def test_more_than_there_is_room_for_is_told_to_come_back(
    rendering: Any, shelf: Shelf
) -> None:
    service = rendering(max_running_render_bytes=50)
    request = EncodeRequest(base_model=BASE, texts=["a" * 40])
    shelf.gate.clear()
    first = asyncio.create_task(service.encode(request))
    while not shelf.asked:  # noqa: ASYNC110 - what is waited for happens on a thread
        await asyncio.sleep(0.001)
    with pytest.raises(GatewayError, match="1 render calls of") as caught:
        await service.encode(request)
    assert caught.value.reason == ErrorReason.ERROR_REASON_QUEUE_FULL
    assert caught.value.retry_after
    # Nobody waits for it any more, and still it takes its room until it has ended.
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(GatewayError, match="1 render calls of"):
        await service.encode(request)
    shelf.gate.set()
    while service._running:  # noqa: ASYNC110 - what is waited for happens on a thread
        await asyncio.sleep(0.001)
    await service.encode(request)


async def test_calls_that_wait_when_the_gateway_stops_are_told(
    rendering: Any, shelf: Shelf
) -> None:
    service = rendering()
    request = EncodeRequest(base_model=BASE, texts=["a"])
    shelf.gate.clear()
    running, waiting = (asyncio.create_task(service.encode(request)) for _ in range(2))
    while not shelf.asked:  # noqa: ASYNC110 - what is waited for happens on a thread
        await asyncio.sleep(0.001)
    service.close()
    with pytest.raises(GatewayError) as caught:
        await waiting
    assert caught.value.reason == ErrorReason.ERROR_REASON_SHUTTING_DOWN
    shelf.gate.set()
    assert (await running).tokens
