"""Pages of lists: by a token that things which come and go do not shift, and by an offset for the
callers who count that way."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

from tinkergate.errors import GatewayError, invalid_field

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class Numbered(Protocol):
    """Something with a place in the order of creation."""

    @property
    def number(self) -> int:
        """The place."""


T = TypeVar("T", bound=Numbered)


class Named(Protocol):
    """Something with a name of its own."""

    @property
    def name(self) -> str:
        """The name."""


N = TypeVar("N", bound=Named)
Item = TypeVar("Item")
Other = TypeVar("Other")


@dataclass(frozen=True)
class Window(Generic[Item]):
    """A stretch of a list."""

    items: Sequence[Item]
    offset: int
    limit: int
    total: int
    """How many there are in all."""

    def map(self, change: Callable[[Item], Other]) -> Window[Other]:
        """The same stretch of what `change` makes of the items."""
        items = [change(item) for item in self.items]
        return Window(items, self.offset, self.limit, self.total)


def window(items: Iterable[Item], offset: int, limit: int) -> Window[Item]:
    """At most `limit` of `items` from place `offset` (from 0) on. A limit over 1000 is taken as
    1000. Raises INVALID for negative numbers."""
    for field, value in (("offset", offset), ("limit", limit)):
        if value < 0:
            raise invalid_field(field, f"is {value}; must not be negative")
    limit = min(limit, MAX_PAGE)
    every = list(items)
    return Window(list(islice(every, offset, offset + limit)), offset, limit, len(every))


def page(newest_first: Iterable[T], page_size: int, page_token: str) -> tuple[list[T], str]:
    """One page of `newest_first`, and the token of the next (empty if there is none). A token
    says after which number to go on, so things that come and go meanwhile shift nothing."""
    size = _size_of(page_size)
    below = _number_of(page_token) if page_token else None
    chosen: list[T] = []
    for item in newest_first:
        if below is not None and item.number >= below:
            continue
        if len(chosen) == size:
            return chosen, _token_of(chosen[-1].number)
        chosen.append(item)
    return chosen, ""


def page_by_name(by_name: Iterable[N], page_size: int, page_token: str) -> tuple[list[N], str]:
    """As `page`, of things that are sorted by their names."""
    size = _size_of(page_size)
    above = _unpack(page_token) if page_token else b""
    chosen: list[N] = []
    for item in by_name:
        if item.name.encode() <= above:
            continue
        if len(chosen) == size:
            return chosen, _pack(chosen[-1].name.encode())
        chosen.append(item)
    return chosen, ""


def _size_of(page_size: int) -> int:
    if page_size < 0:
        raise invalid_field("page_size", f"is {page_size}; must not be negative")
    return min(page_size or DEFAULT_PAGE, MAX_PAGE)


def _token_of(number: int) -> str:
    return _pack(number.to_bytes(8, "big"))


def _number_of(token: str) -> int:
    packed = _unpack(token)
    if len(packed) != 8:
        raise _no_token()
    return int.from_bytes(packed, "big")


def _pack(place: bytes) -> str:
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def _unpack(token: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise _no_token() from None


def _no_token() -> GatewayError:
    return invalid_field("page_token", "is not a token that a list call has answered")
