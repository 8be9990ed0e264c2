"""`tinkergate render`: conversations as the model sees them, and sampled tokens as messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from tinkergate.v1 import Conversation, RenderedDatum
    from tinkergate_client import Renderer

_LINES_AT_ONCE = 256


class TrainOnChoice(StrEnum):
    """Which tokens are learned."""

    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    ALL_TOKENS = "all_tokens"


@talks_to_gateway
def render(
    gateway: GatewayAddress,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help='One conversation a line, {"messages": [...], "tools": [...]}, or with --parse '
            '{"tokens": [...]}; - reads stdin.',
            allow_dash=True,
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The base model; the gateway's default if absent.")
    ] = "",
    train_on: Annotated[
        TrainOnChoice,
        typer.Option(help="What is learned; messages with a weight of their own go before it."),
    ] = TrainOnChoice.ALL_ASSISTANT_MESSAGES,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Cut to this many tokens; 0 means the model's context.")
    ] = 0,
    variable: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=JSON", help="A variable of the template; may be repeated."),
    ] = None,
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Ask for the next message instead of learning.")
    ] = False,
    parse: Annotated[
        bool, typer.Option("--parse", help="Read sampled tokens back into messages, as JSON lines.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON lines.")] = False,
) -> None:
    """Show conversations as the model sees them: what is learned is coloured, and stands behind its
    weight."""
    if prompt and parse:
        raise CommandFailed("give --prompt or --parse, not both", USAGE)
    try:
        variables = dict(map(_variable, variable or ()))
        with gateway.client() as client:
            renderer = client.renderer(find_model(client, model).name)
            for lines in _groups(data):
                if parse:
                    _parse(renderer, str(data), lines)
                elif prompt:
                    _prompts(renderer, _examples(str(data), lines), variables, as_json=as_json)
                else:
                    examples = _examples(str(data), lines)
                    _learned(renderer, examples, train_on, max_tokens, variables, as_json=as_json)
    except DataError as error:
        raise CommandFailed(str(error), USAGE) from error


def _variable(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, json.loads(value)
    except ValueError:
        raise CommandFailed(f"--variable {text}: must be NAME=JSON", USAGE) from None


def _groups(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that are not empty, with their numbers, some at a time. Raises DataError."""
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as stream:
            group: list[tuple[int, bytes]] = []
            for number, line in enumerate(stream, 1):
                if line.strip():
                    group.append((number, line))
                if len(group) == _LINES_AT_ONCE:
                    yield group
                    group = []
            if group:
                yield group
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _examples(name: str, lines: Sequence[tuple[int, bytes]]) -> list[tuple[int, Example]]:
    examples = []
    for number, line in lines:
        place = f"{name}:{number}"
        try:
            value = read_object(line)
            messages = read_messages(value.get("messages"))
            tools = read_tools(value.get("tools", []))
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        examples.append((number, Example(place, messages, is_pair=False, tools=tools)))
    return examples


def _conversations(examples: Sequence[tuple[int, Example]]) -> list[Conversation]:
    from tinkergate.cli.rendering import conversation_of

    return [conversation_of(example) for _, example in examples]


def _learned(
    renderer: Renderer,
    examples: Sequence[tuple[int, Example]],
    train_on: TrainOnChoice,
    max_tokens: int,
    variables: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from tinkergate.cli.rendering import places

    with places([example.place for _, example in examples]):
        rendered = renderer.training(
            _conversations(examples),
            train_on=train_on.value,
            max_tokens=max_tokens,
            template_variables=variables,
        )
    for (number, example), each in zip(examples, rendered, strict=True):
        if as_json:
            typer.echo(json.dumps(_facts(number, each)))
        else:
            _show(renderer, example.place, each)


def _facts(number: int, rendered: RenderedDatum) -> dict[str, Any]:
    from tinkergate.tensors import array_from_tensor, tokens_from_bytes

    inputs = rendered.datum.loss_fn_inputs
    tokens = tokens_from_bytes(rendered.datum.model_input[0].encoded_text.tokens)
    return {
        "line": number,
        "tokens": tokens.tolist(),
        "target_tokens": array_from_tensor(inputs["target_tokens"]).tolist(),
        "weights": array_from_tensor(inputs["weights"]).tolist(),
        "total_tokens": rendered.total_tokens,
        "truncated": rendered.truncated,
    }


def _show(renderer: Renderer, place: str, rendered: RenderedDatum) -> None:
    """The text in runs of one weight."""
    import numpy as np

    from tinkergate.cli.rendering import whole
    from tinkergate.tensors import array_from_tensor

    tokens = whole(rendered)
    # Nothing predicts the first token, so it has no weight.
    weights = np.append(0, array_from_tensor(rendered.datum.loss_fn_inputs["weights"]))
    borders = np.flatnonzero(np.diff(weights)) + 1
    cut = f" of {rendered.total_tokens}, cut" if rendered.truncated else ""
    learned = int(np.count_nonzero(weights))
    typer.echo(f"{place}: {tokens.size} tokens{cut}, {learned} with weight")
    texts = renderer.decode(np.split(tokens, borders))
    for start, text in zip([0, *borders.tolist()], texts, strict=True):
        weight = float(weights[start])
        colour = typer.colors.GREEN if weight > 0 else typer.colors.RED if weight < 0 else None
        gutter = f"{weight:g}"
        for line in text.splitlines(keepends=True):
            shown = line.replace("\n", "\\n").replace("\r", "\\r")
            typer.echo(f"{gutter:>6} | " + typer.style(shown, fg=colour))
            gutter = ""


def _prompts(
    renderer: Renderer,
    examples: Sequence[tuple[int, Example]],
    variables: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from tinkergate.cli.rendering import places

    with places([example.place for _, example in examples]):
        prompts = renderer.prompts(_conversations(examples), template_variables=variables)
    if as_json:
        stop = renderer.stop_tokens()
        for (number, _), tokens in zip(examples, prompts, strict=True):
            told = {"line": number, "tokens": tokens.tolist(), "stop_tokens": stop}
            typer.echo(json.dumps(told))
        return
    for (_, example), text in zip(examples, renderer.decode(prompts), strict=True):
        typer.echo(f"{example.place}:\n{text}")


def _parse(renderer: Renderer, name: str, lines: Sequence[tuple[int, bytes]]) -> None:
    from tinkergate_client import message_dict

    sequences = []
    for number, line in lines:
        try:
            sequences.append(read_tokens(read_object(line).get("tokens")))
        except ValueError as error:
            raise DataError(f"{name}:{number}: {error}") from None
    for (number, _), parsed in zip(lines, renderer.parse(sequences), strict=True):
        told = {
            "line": number,
            "message": message_dict(parsed.message),
            "complete": parsed.complete,
        }
        typer.echo(json.dumps(told, ensure_ascii=False))
