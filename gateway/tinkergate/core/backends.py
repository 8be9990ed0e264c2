"""The backends of a gateway: started together, asked for their models, tried again while they
cannot be used.

A backend that cannot be started is no reason not to serve: it is listed as unavailable, requests
for it are refused with UNAVAILABLE, and it is tried again in the background.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tinkergate.backends.base import Backend
from tinkergate.core.validation.facts import Abilities
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import BackendCapabilities, BackendKind, Checkpoint, ErrorReason, SupportedModel

START_SECONDS: Final = 10.0
"""How long the start of the gateway waits for the backends that are services elsewhere. Those that
have not answered by then are unavailable until they do."""
RETRY_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""The delays between attempts to start a backend; the last is repeated."""
MODELS_LIFETIME: Final = 10.0
"""For how many seconds a list of base models is good."""
MODELS_SECONDS: Final = 5.0
"""How long a backend may take to tell its base models."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendOpening:
    """A backend that is still to be opened, which may fail."""

    name: str
    kind: BackendKind.ValueType
    open: Callable[[], Awaitable[Backend]]
    """Answers the backend of that name, ready for its `start`. Raises GatewayError."""


class AttachedBackend:
    """A backend, usable or not."""

    def __init__(self, given: Backend | BackendOpening) -> None:
        self.name = given.name
        self.opening = given if isinstance(given, BackendOpening) else None
        self.backend = given if not isinstance(given, BackendOpening) else None
        self.started = False
        self.abilities: Abilities | None = None
        """There once it can be used."""
        self.models: Sequence[SupportedModel] = ()
        """Its base models, by its own names, as it told them last."""
        self.trouble: str = "it has not been started yet"
        """Why it cannot be used, or did not tell its models when it was asked last; else empty."""

    def capabilities(self) -> BackendCapabilities:
        """What it can do, with the reason if it cannot now."""
        told = BackendCapabilities()
        if self.abilities is not None:
            told.CopyFrom(self.abilities.capabilities)
        elif self.backend is not None:
            told.CopyFrom(self.backend.capabilities())
        elif self.opening is not None:
            told.name, told.kind = self.opening.name, self.opening.kind
        told.unavailable = self.trouble
        return told

    @property
    def is_local(self) -> bool:
        """Whether it works in this process."""
        return self.capabilities().kind == BackendKind.BACKEND_KIND_LOCAL

    def unavailable(self) -> GatewayError:
        """The refusal of requests while it has not been started."""
        return GatewayError(
            Kind.UNAVAILABLE,
            ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"backend {self.name!r} is unavailable: {self.trouble}; it is tried again",
            backend=self.name,
            retry_after=RETRY_SECONDS[2],
        )


OnHeld = Callable[[AttachedBackend, Sequence[Checkpoint]], None]


class Backends:
    """All backends, in the order of preference."""

    def __init__(
        self, given: Sequence[Backend | BackendOpening], on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called when the base models of a backend may be others."""
        self._all: Mapping[str, AttachedBackend] = {
            each.name: AttachedBackend(each) for each in given
        }
        if len(self._all) != len(given):
            raise ValueError("two backends have the same name")
        self._on_change = on_change
        self._known: Callable[[str], Sequence[Checkpoint]] = lambda _name: ()
        self._on_held: OnHeld = lambda _backend, _held: None
        self._tasks: set[asyncio.Task[None]] = set()
        """Attempts to start backends."""
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed = float("-inf")

    @property
    def all(self) -> Sequence[AttachedBackend]:
        """All backends, in the order of preference."""
        return list(self._all.values())

    @property
    def names(self) -> Sequence[str]:
        """The names of all backends, in the order of preference."""
        return list(self._all)

    def find(self, name: str) -> AttachedBackend:
        """The backend of that name, usable or not. Raises NOT_FOUND."""
        found = self._all.get(name)
        if found is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_BACKEND_NOT_FOUND,
                f"there is no backend {name!r}; there are: {', '.join(self._all) or 'none'}",
            )
        return found

    async def start(
        self,
        known: Callable[[str], Sequence[Checkpoint]],
        on_held: OnHeld,
    ) -> None:
        """Start all at once. Those that cannot be started are tried again in the background, for
        which GatewayErrors are the reason; what else is raised is raised, and then all are closed.

        `known` tells the checkpoints that the gateway remembers of a backend, and `on_held` is
        told those that a backend holds, once it is started.
        """
        self._known, self._on_held = known, on_held
        starts = {
            asyncio.create_task(self._attach(each), name=f"starting {each.name}"): each
            for each in self._all.values()
        }
        self._tasks.update(starts)
        try:
            # The engine of this machine is waited for: it gets ready, or says why not.
            for task, each in starts.items():
                if each.is_local:
                    await asyncio.wait([task])
            if starts:
                await asyncio.wait(starts, timeout=START_SECONDS)
            for task, each in starts.items():
                if not task.done():
                    each.trouble = f"no answer within {START_SECONDS:g} s"
                elif (error := task.exception()) is not None:
                    if not isinstance(error, GatewayError):
                        raise error
                    each.trouble = str(error)
        except BaseException:
            await self.close()
            raise
        for task, each in starts.items():
            self._tasks.discard(task)
            if each.trouble:
                _log.warning("backend %s is unavailable: %s", each.name, each.trouble)
                self._tasks.add(asyncio.create_task(self._keep_trying(each, task)))
        self._refreshed = time.monotonic()

    async def _attach(self, each: AttachedBackend) -> None:
        """Try to make a backend usable."""
        if each.backend is None:
            assert each.opening is not None
            each.backend = await each.opening.open()
        if not each.started:
            await each.backend.start(self._known(each.name))
            each.started = True
        each.models = await each.backend.models()
        held = await each.backend.checkpoints()
        each.abilities = Abilities(each.backend.capabilities())
        each.trouble = ""
        self._on_change()
        self._on_held(each, held)

    async def _keep_trying(self, each: AttachedBackend, first: asyncio.Task[None]) -> None:
        """Make a backend usable, however long that takes."""
        attempt, number = first, 0
        try:
            while True:
                try:
                    await attempt
                    break
                except GatewayError as error:
                    each.trouble = str(error)
                except Exception:
                    each.trouble = "it failed in an unforeseen way, see the gateway's log"
                    _log.exception("starting backend %s failed", each.name)
                await asyncio.sleep(RETRY_SECONDS[min(number, len(RETRY_SECONDS) - 1)])
                number += 1
                attempt = asyncio.create_task(self._attach(each))
        except asyncio.CancelledError:
            attempt.cancel()
            await asyncio.wait([attempt])
            raise
        _log.info("backend %s is available", each.name)

    async def close(self) -> None:
        """End the attempts and close what was opened, the last first."""
        tasks = self._tasks | ({self._refreshing} if self._refreshing else set())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in reversed(self.all):
            if each.backend is not None:
                try:
                    await each.backend.close()
                except Exception:
                    _log.exception("backend %s did not close well", each.name)

    async def refresh(self, max_age: float = MODELS_LIFETIME) -> None:
        """Have lists of base models that are at most `max_age` seconds old. All backends are asked
        at once, by one caller for all; one that does not answer in time keeps those it had."""
        if self._refreshing is None:
            if time.monotonic() - self._refreshed < max_age:
                return
            self._refreshing = asyncio.create_task(self._refresh(), name="asking for base models")
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        try:
            usable = [each for each in self._all.values() if each.abilities is not None]
            await asyncio.gather(*(self._ask(each) for each in usable))
            self._refreshed = time.monotonic()
            self._on_change()
        finally:
            self._refreshing = None

    async def _ask(self, each: AttachedBackend) -> None:
        assert each.backend is not None
        try:
            async with asyncio.timeout(MODELS_SECONDS):
                each.models = await each.backend.models()
        except TimeoutError:
            each.trouble = f"it did not tell its base models within {MODELS_SECONDS:g} s"
        except GatewayError as error:
            each.trouble = str(error)
        else:
            each.trouble = ""
            return
        _log.warning("backend %s does not tell its models: %s", each.name, each.trouble)
