from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkergate.core.paging import MAX_PAGE, page
from tinkergate.errors import GatewayError


@dataclass
class Item:
    number: int


@given(st.sets(st.integers(1, 1 << 62), max_size=30), st.integers(1, 7))
def test_the_pages_together_are_the_list(numbers: set[int], size: int) -> None:
    items = [Item(number) for number in sorted(numbers, reverse=True)]
    seen: list[Item] = []
    token = ""
    while True:
        chosen, token = page(items, size, token)
        assert len(chosen) <= size
        seen += chosen
        if not token:
            break
        assert len(chosen) == size
    assert seen == items


def test_what_is_removed_meanwhile_shifts_nothing() -> None:
    items = [Item(number) for number in range(9, 0, -1)]
    first, token = page(items, 3, "")
    rest, _ = page([item for item in items if item.number not in (7, 8)], 100, token)
    assert [item.number for item in first + rest] == list(range(9, 0, -1))


def test_sizes() -> None:
    items = [Item(number) for number in range(3000, 0, -1)]
    assert len(page(items, 0, "")[0]) == 100
    assert len(page(items, 5000, "")[0]) == MAX_PAGE
    with pytest.raises(GatewayError) as caught:
        page(items, -1, "")
    assert caught.value.violations[0].field == "page_size"


@pytest.mark.parametrize("token", ["x", "äöü", "AAAA", "AAAAAAAAAAAAAAAA", "=" * 9])
def test_bad_tokens(token: str) -> None:
    with pytest.raises(GatewayError) as caught:
        page([Item(1)], 1, token)
    assert caught.value.violations[0].field == "page_token"
