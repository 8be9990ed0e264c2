"""Which samplers were made, for lists of them. A sampler's id says all that drawing from it takes,
so those of an earlier gateway are as good."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_KNOWN = 10_000


@dataclass
class KnownSampler:
    """A sampler that was made."""

    sampler_id: str
    base_model: str
    created: int = field(default_factory=lambda: int(time.time()))
    """When, in seconds since 1970."""
    ended: bool = False
    """Whether it was deactivated."""


class KnownSamplers:
    """The samplers that were made last."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, KnownSampler] = OrderedDict()

    def note(self, sampler_id: str, base_model: str) -> KnownSampler:
        """A sampler is made, or asked for again, after which it is in use."""
        known = self._known.get(sampler_id)
        if known is None:
            known = self._known[sampler_id] = KnownSampler(sampler_id, base_model)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        known.ended = False
        return known

    def find(self, sampler_id: str) -> KnownSampler | None:
        """The sampler, if it was made since the gateway was started."""
        return self._known.get(sampler_id)

    def end(self, sampler_id: str) -> None:
        """A sampler is not to be used any more."""
        known = self._known.get(sampler_id)
        if known is not None:
            known.ended = True

    def newest_first(self) -> Iterator[KnownSampler]:
        """All of them."""
        return reversed(self._known.values())
