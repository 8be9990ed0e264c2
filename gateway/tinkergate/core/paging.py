"""Pages of lists, newest first."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Protocol, TypeVar

from tinkergate.errors import invalid_field

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class Numbered(Protocol):
    """Something with a place in the order of creation."""

    @property
    def number(self) -> int:
        """The place."""


T = TypeVar("T", bound=Numbered)


def page(newest_first: Iterable[T], page_size: int, page_token: str) -> tuple[list[T], str]:
    """One page of `newest_first`, and the token of the next (empty if there is none). A token
    says after which number to go on, so things that come and go meanwhile shift nothing."""
    if page_size < 0:
        raise invalid_field("page_size", f"is {page_size}; must not be negative")
    size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
    below = _number_of(page_token) if page_token else None
    chosen: list[T] = []
    for item in newest_first:
        if below is not None and item.number >= below:
            continue
        if len(chosen) == size:
            return chosen, _token_of(chosen[-1].number)
        chosen.append(item)
    return chosen, ""


def _token_of(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(8, "big")).decode().rstrip("=")


def _number_of(token: str) -> int:
    try:
        packed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        packed = b""
    if len(packed) != 8:
        raise invalid_field("page_token", "is not a token that a list call has answered")
    return int.from_bytes(packed, "big")
