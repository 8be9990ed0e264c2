"""The HTTP door: one listening HTTP server, with each dialect under its own paths."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.address import (
    Address,
    ListenError,
    check_exposure,
    check_free,
    parse_address,
)
from tinkergate.ingress.http.calls import Calls
from tinkergate.ingress.http.downloads import Downloads
from tinkergate.ingress.http.listener import FLAG, Listener
from tinkergate.ingress.http.secret import derive, load_secret
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.ingress.http.signed_urls import SignedUrls
from tinkergate.ingress.keys import ApiKeys
from tinkergate.ingress.loops_rest.app import surfaces as loops_surfaces
from tinkergate.ingress.loops_rest.context import SIGNED as LOOPS_SIGNED
from tinkergate.ingress.loops_rest.context import Context as LoopsContext
from tinkergate.ingress.loops_rest.runs import Runs
from tinkergate.ingress.tinker_rest.app import QUIET, TinkerRest
from tinkergate.ingress.tinker_rest.context import DOWNLOADS, Context, Profile
from tinkergate.ingress.tinker_rest.errors import error_response
from tinkergate.ingress.tinker_rest.tokens import Tokens
from tinkergate.ingress.tls import TlsFiles, server_context


class HttpDoor:
    """One listening HTTP server in front of a gateway.

    Everything that can be wrong with its settings is found out before `start`: the constructor
    raises ListenError for an address that cannot be used, TLS files that do not work, and an
    address beyond loopback that is open to everybody.
    """

    def __init__(
        self,
        settings: HttpSettings,
        *,
        data_dir: Path,
        tls: TlsFiles | None = None,
        api_keys: Sequence[str] = (),
        profile: Profile = "full",
    ) -> None:
        """`data_dir` keeps the secret that signs tokens and links; it need not be there before
        `start`."""
        self._settings = settings
        self._data_dir = data_dir
        self._keys = ApiKeys(api_keys)
        self._profile: Profile = profile
        tls = tls or TlsFiles()
        self._address = parse_address(settings.listen)
        self._tls = server_context(tls)
        guarded = self._tls is not None and (bool(api_keys) or tls.client_ca is not None)
        check_exposure(
            self._address, guarded=guarded, insecure_allowed=settings.allow_insecure_bind
        )
        check_free(self._address, FLAG)
        self._prefix = _prefix(settings.public_url)
        self._listener: Listener | None = None
        self._serving = True

    async def start(self, gateway: Gateway) -> Address:
        """Listen. Answers the address, with the port that was chosen where 0 was asked for. Raises
        ListenError."""
        try:
            secret = load_secret(self._data_dir)
        except (OSError, ValueError) as error:
            raise ListenError(f"the secret of the HTTP door cannot be used: {error}") from None
        settings = self._settings
        context = Context(
            gateway=gateway,
            keys=self._keys,
            tokens=Tokens(derive(secret, "tokens"), settings.token_lifetime),
            urls=SignedUrls(derive(secret, "urls")),
            profile=self._profile,
            public_url=settings.public_url.rstrip("/"),
            long_poll=settings.long_poll,
            serving=lambda: self._serving,
        )
        tinker = Calls(
            TinkerRest(context),
            error_response,
            settings,
            quiet=QUIET,
        )
        loops = loops_surfaces(
            LoopsContext(
                gateway=gateway,
                keys=self._keys,
                downloads=Downloads(gateway, context.urls, LOOPS_SIGNED),
                runs=Runs(gateway),
                capacity=settings.loops_capacity,
                public_url=context.public_url,
                long_poll=settings.long_poll,
            ),
            settings,
        )
        # A dialect with paths of its own goes before it; whatever belongs to none ends here.
        dialects: list[tuple[str, ASGIApp]] = [("", tinker)]
        if self._profile == "full":
            dialects = [*loops, *dialects]
        app = _Front(self._prefix, dialects)
        self._listener = Listener(app, self._address, self._tls, settings)
        listening = await self._listener.start()
        if base_url := context.public_url or _own_url(listening, tls=self._tls is not None):
            downloads = Downloads(gateway, context.urls, DOWNLOADS)
            gateway.checkpoint_files.links = downloads.links(base_url)
        return listening

    async def drain(self) -> None:
        """Tell health checks that no new work is welcome. Calls are answered as before."""
        self._serving = False

    async def stop(self, grace: float) -> None:
        """Stop listening; calls that are running get `grace` seconds to end."""
        if self._listener is not None:
            await self._listener.stop(grace)
            self._listener = None


class _Front:
    """Hands each call to the dialect whose paths it is under."""

    def __init__(self, prefix: str, dialects: Sequence[tuple[str, ASGIApp]]) -> None:
        """`prefix` is the path of the public URL: whether a proxy in front takes it away or leaves
        it, the call is understood. Dialects are tried in order."""
        self._prefix = prefix
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one call on."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if self._prefix and path.startswith(f"{self._prefix}/"):
            scope["path"] = path = path[len(self._prefix) :]
        for paths, app in self._dialects:
            if path.startswith(paths):
                await app(scope, receive, send)
                return


def _own_url(address: Address, *, tls: bool) -> str:
    """The URL of the address that is listened on; empty for one that stands for all of a machine,
    by which nobody is reached."""
    try:
        if ipaddress.ip_address(address.host).is_unspecified:
            return ""
    except ValueError:
        pass  # a name
    return f"{'https' if tls else 'http'}://{address}"


def _prefix(public_url: str) -> str:
    """The path of the URL. Raises ListenError for what is no URL."""
    if not public_url:
        return ""
    parts = urlsplit(public_url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ListenError(f"{public_url!r} is no URL such as https://gateway.example")
    return parts.path.rstrip("/")
