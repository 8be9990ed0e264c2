"""Lists of any length, asked for page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import grpc

from tinkergate_client._connection import Connection

PAGE_SIZE = 1000


class _ListRequest(Protocol):
    page_size: int
    page_token: str


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Page = TypeVar("Page", bound=_Page)


def pages(
    connection: Connection, rpc: grpc.UnaryUnaryMultiCallable[Any, Page], request: _ListRequest
) -> Iterator[Page]:
    """The pages of a list. Raises TinkergateError."""
    request.page_size = PAGE_SIZE
    while True:
        page = connection.call(rpc, request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
