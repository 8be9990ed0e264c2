"""`tinkergate score`: the logprobs of given texts."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinkergate.cli.connection import GatewayAddress, find_model, talks_to_gateway
from tinkergate.cli.conversations import DataError, read_messages, read_object
from tinkergate.cli.exits import USAGE, CommandFailed

if TYPE_CHECKING:
    from tinkergate.cli.rendering import Renderer
    from tinkergate_client import Score, Tokens


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
    from tinkergate.cli.rendering import Renderer, RenderingError

    if model and model_path:
        raise CommandFailed("give --model or --model-path, not both", USAGE)
    try:
        with gateway.client() as client, _open(data, "rb") as lines, _open(output, "w") as sink:
            name = client.checkpoints.get(model_path).base_model if model_path else model
            base = find_model(client, name)
            waiting: deque[dict[str, Any]] = deque()
            scores = client.score_stream(
                _read(lines, str(data), lambda: Renderer.of_model(base), waiting),
                "" if model_path else base.name,
                model_path=model_path,
                temperature=temperature,
                topk=topk,
                batch_tokens=batch_tokens,
                in_flight=in_flight,
            )
            for scored in scores:
                sink.write(json.dumps(_answer(waiting.popleft(), scored)) + "\n")
    except (DataError, RenderingError) as error:
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
    load_renderer: Callable[[], Renderer],
    waiting: deque[dict[str, Any]],
) -> Iterator[Tokens]:
    """The tokens of each line; what its answer is to repeat goes into `waiting`. The tokenizer is
    loaded when a line needs it. Raises DataError."""
    renderer: Renderer | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = read_object(line)
            if "tokens" in value:
                tokens: Tokens = _tokens(value["tokens"])
            else:
                renderer = renderer or load_renderer()
                tokens = _rendered(value, renderer)
        except ValueError as error:
            raise DataError(f"{name}:{number}: {error}") from None
        waiting.append({"line": number, **({"id": value["id"]} if "id" in value else {})})
        yield tokens


def _rendered(value: dict[str, Any], renderer: Renderer) -> Tokens:
    if "messages" in value:
        return renderer.conversation(read_messages(value["messages"])).tokens
    if isinstance(value.get("text"), str) and value["text"]:
        return renderer.plain(value["text"])
    raise ValueError('must have "text" (not empty), "tokens" or "messages"')


def _tokens(value: Any) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError("tokens: must be a list that is not empty")
    for index, token in enumerate(value):
        if type(token) is not int or not 0 <= token < 2**31:
            raise ValueError(f"tokens[{index}]: is {token!r}; must be a token id")
    return value


def _answer(told: dict[str, Any], scored: Score) -> dict[str, Any]:
    logprobs = [None if math.isnan(value) else value for value in scored.logprobs.tolist()]
    answer = {**told, "logprob": math.fsum(value or 0 for value in logprobs), "logprobs": logprobs}
    if scored.topk_tokens is not None and scored.topk_logprobs is not None:
        answer["topk_tokens"] = scored.topk_tokens.tolist()
        answer["topk_logprobs"] = scored.topk_logprobs.tolist()
    return answer
