"""What the routes of this dialect work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.keys import ApiKeys
from tinkergate.ingress.tinker_rest.tokens import Tokens

Profile = Literal["full", "mint"]

API = "/api/v1"
"""Every route begins with it."""

SIGNED = "/api/v1/signed/"
"""Routes under it are let in without a key: the route checks the signature in the URL's query,
which is not logged."""


class SignedUrls(Protocol):
    """Makes links that expire, and checks them."""


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
    """What links begin with: scheme, host and maybe a path, without a slash at the end."""
    long_poll: float = 30.0
    """The most seconds that a poll is held open."""
