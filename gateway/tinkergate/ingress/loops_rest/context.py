"""What the routes of this dialect work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

from starlette.requests import Request

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.downloads import Downloads
from tinkergate.ingress.http.settings import Capacity
from tinkergate.ingress.keys import ApiKeys
from tinkergate.ingress.loops_rest.known_samplers import KnownSamplers
from tinkergate.ingress.loops_rest.notes import Notes
from tinkergate.ingress.loops_rest.runs import Run, Runs

CONTROL = "/v1/"
TRAINERS = "/loops/trainers/"
SAMPLERS = "/loops/samplers/"
SIGNED = "/loops/signed/"
"""Links to files; their signature is all that is asked for."""

MAX_POLL = 30.0
"""Clients give a poll up after 35 s."""


@dataclass(frozen=True)
class Context:
    """One door's gateway, and what it takes to know callers and to hand out links."""

    gateway: Gateway
    keys: ApiKeys
    """The API keys; none means that everybody is let in."""
    downloads: Downloads
    """Links to files, under `SIGNED`."""
    runs: Runs
    capacity: Capacity
    """Whether trainers and samplers are told to be shared or to be the caller's own."""
    public_url: str = ""
    """What links begin with: scheme, host and maybe a path, without a slash at the end. Empty means
    whatever the caller reached the gateway by."""
    long_poll: float = MAX_POLL
    """The most seconds that a poll is held open."""
    notes: Notes = field(default_factory=Notes)
    samplers: KnownSamplers = field(default_factory=KnownSamplers)

    @property
    def serverless(self) -> bool:
        """Whether capacity is shared."""
        return self.capacity == "serverless"

    @property
    def poll_limit(self) -> float:
        """The most seconds that a poll is held open."""
        return min(self.long_poll, MAX_POLL)

    def link_base(self, request: Request) -> str:
        """What a link in the answer to `request` begins with."""
        return self.public_url or str(request.base_url).rstrip("/")

    def trainer_url(self, request: Request, run: Run | str) -> str:
        """Where a run's trainer is."""
        run_id = run if isinstance(run, str) else run.run_id
        return f"{self.link_base(request)}{TRAINERS}{quote(run_id, safe=':')}"

    def sampler_url(self, request: Request, sampler_id: str) -> str:
        """Where a sampler is."""
        url = f"{self.link_base(request)}{SAMPLERS}{quote(sampler_id, safe=':.')}"
        return url if self.serverless else f"{url}/sync"
