"""`tinkergate score`: the logprobs of given texts."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinkergate.cli.connection import GatewayAddress, find_model, talks_to_gateway
from tinkergate.cli.conversations import (
    DataError,
    Example,
    read_messages,
    read_object,
    read_tokens,
    read_tools,
)
from tinkergate.cli.exits import USAGE, CommandFailed

if TYPE_CHECKING:
    from tinkergate_client import Renderer, Score, Tokens

_LINES_AT_ONCE = 64


@dataclass(frozen=True)
class _Line:
    """One line of the input: its tokens, its text, or its conversation."""

    place: str
    told: dict[str, Any]
    """What its answer is to repeat."""
    tokens: Sequence[int] = ()
    text: str = ""
    example: Example | None = None


@talks_to_gateway
def score(
    gateway: GatewayAddress,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help='One sequence a line: {"text": ...}, {"tokens": [...]} or {"messages": [...]}; '
            "- reads stdin.",
            allow_dash=True,
        ),
    ],
    model_path: Annotated[
        str, typer.Option(metavar="tinker://...", help="Score with this checkpoint.")
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Score with this base model; the gateway's default if neither is given.",
        ),
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; stdout if absent.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it.")] = 1.0,
    topk: Annotated[
        int, typer.Option(min=0, help="Tell the k likeliest tokens of each position, too.")
    ] = 0,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens a request.")] = 8192,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    as_json: Annotated[
        bool, typer.Option("--json", help="Has no effect: the output is JSON lines anyway.")
    ] = False,
) -> None:
    """Score sequences: JSON lines in, JSON lines out, in the same order, a few at a time."""
    del as_json
    if model and model_path:
        raise CommandFailed("give --model or --model-path, not both", USAGE)
    try:
        with gateway.client() as client, _open(data, "rb") as lines, _open(output, "w") as sink:
            name = client.checkpoints.get(model_path).base_model if model_path else model
            base = find_model(client, name)
            renderer = client.renderer(base.name)
            waiting: deque[dict[str, Any]] = deque()
            scores = client.score_stream(
                _read(lines, str(data), renderer, base.max_context_length, waiting),
                "" if model_path else base.name,
                model_path=model_path,
                temperature=temperature,
                topk=topk,
                batch_tokens=batch_tokens,
                in_flight=in_flight,
            )
            for scored in scores:
                sink.write(json.dumps(_answer(waiting.popleft(), scored)) + "\n")
    except DataError as error:
        raise CommandFailed(str(error), USAGE) from error


@contextmanager
def _open(path: Path | None, mode: Literal["rb", "w"]) -> Iterator[IO[Any]]:
    """The file, or stdin or stdout for None and "-", which stay open."""
    if path is None or str(path) == "-":
        yield sys.stdin.buffer if mode == "rb" else sys.stdout
        return
    try:
        stream = path.open(mode)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", USAGE) from error
    with stream:
        yield stream


def _read(
    lines: Iterable[bytes],
    name: str,
    renderer: Renderer,
    longest: int,
    waiting: deque[dict[str, Any]],
) -> Iterator[Tokens]:
    """The tokens of each line; what its answer is to repeat goes into `waiting`. Texts are made
    into tokens some at a time, by the gateway. Raises DataError."""
    group: list[_Line] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            group.append(_line(f"{name}:{number}", number, line))
        except ValueError as error:
            raise DataError(f"{name}:{number}: {error}") from None
        if len(group) == _LINES_AT_ONCE:
            yield from _rendered(group, renderer, longest, waiting)
            group = []
    yield from _rendered(group, renderer, longest, waiting)


def _line(place: str, number: int, line: bytes) -> _Line:
    value = read_object(line)
    told = {"line": number, **({"id": value["id"]} if "id" in value else {})}
    if "tokens" in value:
        return _Line(place, told, tokens=read_tokens(value["tokens"]))
    if "messages" in value:
        tools = read_tools(value.get("tools", []))
        example = Example(place, read_messages(value["messages"]), is_pair=False, tools=tools)
        return _Line(place, told, example=example)
    if isinstance(value.get("text"), str) and value["text"]:
        return _Line(place, told, text=value["text"])
    raise ValueError('must have "text" (not empty), "tokens" or "messages"')


def _rendered(
    group: Sequence[_Line], renderer: Renderer, longest: int, waiting: deque[dict[str, Any]]
) -> Iterator[Tokens]:
    from tinkergate.cli.rendering import conversation_of, places, whole

    texts = [line.text for line in group if line.text]
    examples = [line.example for line in group if line.example is not None]
    encoded = iter(renderer.encode(texts, add_special_tokens=True))
    with places([example.place for example in examples]):
        chats = [conversation_of(example) for example in examples]
        rendered = iter(renderer.training(chats, train_on="all_tokens"))
    for line in group:
        tokens: Tokens = line.tokens
        if line.text:
            tokens = next(encoded)
        elif line.example is not None:
            each = next(rendered)
            if each.truncated:
                has = f"{line.place}: has {each.total_tokens} tokens"
                raise DataError(f"{has}; the model takes at most {longest}")
            tokens = whole(each)
        waiting.append(line.told)
        yield tokens


def _answer(told: dict[str, Any], scored: Score) -> dict[str, Any]:
    logprobs = [None if math.isnan(value) else value for value in scored.logprobs.tolist()]
    answer = {**told, "logprob": math.fsum(value or 0 for value in logprobs), "logprobs": logprobs}
    if scored.topk_tokens is not None and scored.topk_logprobs is not None:
        answer["topk_tokens"] = scored.topk_tokens.tolist()
        answer["topk_logprobs"] = scored.topk_logprobs.tolist()
    return answer
