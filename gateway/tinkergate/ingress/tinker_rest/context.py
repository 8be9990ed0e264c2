"""What the routes of this dialect work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.signed_urls import SignedUrls
from tinkergate.ingress.keys import ApiKeys
from tinkergate.ingress.tinker_rest.tokens import Tokens

Profile = Literal["full", "mint"]

API = "/api/v1"
"""Every route begins with it."""

SIGNED = "/api/v1/signed/"
"""Routes under it are let in without a key: the route checks the signature in the URL's query,
which is not logged."""

DOWNLOADS = f"{SIGNED}checkpoints/"
"""Routes under it lead to the bytes of checkpoints, whichever door made the link."""


@dataclass(frozen=True)
class Context:
    """One door's gateway, and what it takes to know callers and to hand out links."""

    gateway: Gateway
    keys: ApiKeys
    """The API keys; none means that everybody is let in."""
    tokens: Tokens
    """What keys are exchanged for."""
    urls: SignedUrls
    """Links to files that expire."""
    profile: Profile = "full"
    """"mint" leaves out what MinT does not serve (wire section 13.4)."""
    public_url: str = ""
    """What links begin with: scheme, host and maybe a path, without a slash at the end. Empty means
    whatever the caller reached the gateway by."""
    long_poll: float = 30.0
    """The most seconds that a poll is held open."""
    serving: Callable[[], bool] = lambda: True
    """Whether new work is welcome; not while the gateway drains."""

    def link_base(self, request: Request) -> str:
        """What a link in the answer to `request` begins with."""
        return self.public_url or str(request.base_url).rstrip("/")
