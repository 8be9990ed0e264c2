"""What commands that talk to a gateway have in common: the options that lead to it, and the exit
codes for what can go wrong on the way."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkergate.cli.exits import INTERRUPTED, UNREACHABLE, USAGE, CommandFailed
from tinkergate.cli.interrupts import careful_interrupts

if TYPE_CHECKING:
    from tinkergate.v1 import SupportedModel
    from tinkergate_client import Client

_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0

AddressOption = Annotated[
    str,
    typer.Option(envvar="TINKERGATE_ADDRESS", metavar="HOST:PORT", help="Where the gateway is."),
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Speak TLS.")]
TlsCaOption = Annotated[
    Path | None, typer.Option(help="PEM file of the authority to trust; implies --tls.")
]
TlsCertOption = Annotated[
    Path | None, typer.Option(help="PEM file of our certificate, where the gateway asks for one.")
]
TlsKeyOption = Annotated[Path | None, typer.Option(help="PEM file of that certificate's key.")]


@dataclass(frozen=True)
class GatewayAddress:
    """Where the gateway is and how to speak to it."""

    address: str = "127.0.0.1:7700"
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A connected client. What goes wrong inside, too, ends the command: raises
        CommandFailed."""
        from tinkergate_client import GatewayUnreachable, TinkergateError, Tls, connect

        tls = Tls(ca=self.tls_ca, certificate=self.tls_cert, key=self.tls_key)
        try:
            client = connect(
                self.address,
                tls=tls if self.tls or tls != Tls() else False,
                timeout=_CONNECT_SECONDS,
                patience=_PATIENCE_SECONDS,
            )
        except GatewayUnreachable as error:
            raise CommandFailed(error.message, UNREACHABLE) from error
        except TinkergateError as error:
            raise CommandFailed(error.message) from error
        except (OSError, ValueError) as error:  # of the TLS files
            raise CommandFailed(str(error), USAGE) from error
        with client:
            try:
                yield client
            except GatewayUnreachable as error:
                raise CommandFailed(error.message, UNREACHABLE) from error
            except TinkergateError as error:
                raise CommandFailed(error.message) from error
            except KeyboardInterrupt:
                raise CommandFailed("interrupted", INTERRUPTED) from None


def find_model(client: Client, name: str = "") -> SupportedModel:
    """The gateway's base model of that name or alias; its default model without a name. Raises
    CommandFailed."""
    capabilities = client.capabilities()
    wanted = name or capabilities.default_model
    for model in capabilities.models:
        if wanted and (wanted == model.name or wanted in model.aliases):
            return model
    known = ", ".join(model.name for model in capabilities.models) or "none"
    problem = f"has no model {wanted!r}" if wanted else "has no default model; name one"
    raise CommandFailed(f"the gateway {problem}; its models: {known}")


def talks_to_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that lead to a gateway: its first parameter, a GatewayAddress, is
    replaced by them on the command line."""
    signature = inspect.signature(command, eval_str=True)
    _, *own = signature.parameters.values()
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in (
            ("address", AddressOption, GatewayAddress.address),
            ("tls", TlsOption, False),
            ("tls_ca", TlsCaOption, None),
            ("tls_cert", TlsCertOption, None),
            ("tls_key", TlsKeyOption, None),
        )
    ]

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        gateway = GatewayAddress(**{option.name: options.pop(option.name) for option in common})
        with careful_interrupts():
            command(gateway, *args, **options)

    # typer reads the signature and the annotations.
    run.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common]}
    return run
