"""`tinkergate train`: fine-tune a model on a file of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinkergate.cli.connection import GatewayAddress, find_model, talks_to_gateway
from tinkergate.cli.exits import USAGE, CommandFailed
from tinkergate.cli.training_plan import Schedule, steps_of_epochs
from tinkergate.cli.training_report import report


@talks_to_gateway
def train(
    gateway: GatewayAddress,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help='One example a line: {"messages": [...]} or {"prompt": ..., "completion": ...}.',
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The base model; the gateway's default if absent.")
    ] = "",
    resume: Annotated[
        str,
        typer.Option(metavar="PATH", help="Go on from this checkpoint, its optimizer included."),
    ] = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="How many optimizer steps; instead of --epochs.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the data.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0, help="The step size.")] = 1e-3,
    schedule: Annotated[
        Schedule, typer.Option(help="How the learning rate goes.")
    ] = Schedule.LINEAR,
    rank: Annotated[int, typer.Option(min=1, help="The rank of the LoRA adapter.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the adapter and of the order of the data.")] = 0,
    save: Annotated[str, typer.Option(metavar="NAME", help="The checkpoint's name.")] = "final",
    sample: Annotated[
        list[str] | None,
        typer.Option(metavar="PROMPT", help="Ask this before and after; may be repeated."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take pairs and prompts as plain text, not as messages.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON lines.")] = False,
) -> None:
    """Fine-tune a model on a file of conversations, with loss on the assistant's part."""
    # Imported late: they load the client.
    from tinkergate.cli.conversations import DataError, read_examples
    from tinkergate.cli.rendering import encode
    from tinkergate.cli.training_run import RunSettings, run

    if model and resume:
        raise CommandFailed("--resume has its base model already: leave --model out", USAGE)
    try:
        examples = read_examples(data)
        with gateway.client() as client:
            base = find_model(
                client, client.checkpoints.get(resume).base_model if resume else model
            )
            renderer = client.renderer(base.name)
            encoded = encode(examples, renderer, raw=raw, max_tokens=base.max_context_length)
            settings = RunSettings(
                steps=steps or steps_of_epochs(len(encoded), batch_size, epochs),
                batch_size=batch_size,
                learning_rate=learning_rate,
                schedule=schedule,
                seed=seed,
                save=save,
                prompts=sample or (),
                raw=raw,
            )
            with client.create_session(display_name=f"train {data.name}") as session:
                if resume:
                    trained = session.create_model_from_checkpoint(resume, with_optimizer=True)
                else:
                    trained = session.create_model(base.name, rank=rank, seed=seed)
                with report(as_json=as_json) as told:
                    run(trained, base.name, encoded, renderer, settings, told)
    except DataError as error:
        raise CommandFailed(str(error), USAGE) from error
