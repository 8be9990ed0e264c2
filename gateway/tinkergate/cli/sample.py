"""`tinkergate sample`: let a model answer."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tinkergate.cli.connection import GatewayAddress, find_model, talks_to_gateway
from tinkergate.cli.exits import USAGE, CommandFailed


@talks_to_gateway
def sample(
    gateway: GatewayAddress,
    prompt: Annotated[str, typer.Argument(help="What the model is asked.")],
    model_path: Annotated[
        str, typer.Option(metavar="tinker://...", help="Sample from this checkpoint.")
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Sample from this base model; the gateway's default if neither is given.",
        ),
    ] = "",
    raw: Annotated[
        bool,
        typer.Option("--raw/--chat", help="Take the prompt as plain text, or as a chat message."),
    ] = False,
    num_samples: Annotated[int, typer.Option(min=1, help="How many answers.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of each.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token each time.")
    ] = 1.0,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that make up this much.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.")
    ] = None,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Tell the logprob of each answer, too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON lines, one an answer.")
    ] = False,
) -> None:
    """Draw answers to a prompt, each written as soon as it is finished."""
    from tinkergate.cli.rendering import question, text_of
    from tinkergate_client import SampleOptions

    if model and model_path:
        raise CommandFailed("give --model or --model-path, not both", USAGE)
    options: SampleOptions = {
        "num_samples": num_samples,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    if top_p is not None:
        options["top_p"] = top_p
    if top_k is not None:
        options["top_k"] = top_k
    if seed is not None:
        options["seed"] = seed
    if stop:
        options["stop"] = stop
    with gateway.client() as client:
        name = client.checkpoints.get(model_path).base_model if model_path else model
        base = find_model(client, name)
        renderer = client.renderer(base.name)
        sampler = client.sampler("" if model_path else base.name, model_path=model_path)
        tokens = question(renderer, prompt, raw=raw)
        for index, drawn in sampler.stream(tokens, **options):
            text = text_of(renderer, drawn.tokens)
            answer: dict[str, Any] = {
                "index": index,
                "text": text,
                "stop_reason": drawn.stop_reason,
                "tokens": drawn.tokens.tolist(),
            }
            if logprobs and drawn.logprobs is not None:
                answer["logprobs"] = drawn.logprobs.tolist()
            if as_json:
                typer.echo(json.dumps(answer))
            else:
                _write(answer, numbered=num_samples > 1)


def _write(answer: dict[str, Any], *, numbered: bool) -> None:
    head = f"[{answer['index']}] " if numbered else ""
    typer.echo(f"{head}{answer['text']}")
    if "logprobs" in answer:
        total = sum(answer["logprobs"])
        typer.echo(
            f"    {len(answer['tokens'])} tokens, logprob {total:.4f}, "
            f"{total / max(len(answer['tokens']), 1):.4f} a token"
        )
