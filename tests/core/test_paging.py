from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkergate.core.paging import MAX_PAGE, page, page_by_name, window
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


@dataclass
class File:
    name: str


@given(st.sets(st.text(max_size=9), max_size=30), st.integers(1, 7))
def test_the_pages_by_name_together_are_the_list(names: set[str], size: int) -> None:
    files = [File(name) for name in sorted(names - {""}, key=str.encode)]
    seen: list[File] = []
    token = ""
    while True:
        chosen, token = page_by_name(files, size, token)
        seen += chosen
        if not token:
            break
        assert len(chosen) == size
    assert seen == files


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 50))
def test_windows(offset: int, limit: int, count: int) -> None:
    found = window(range(count), offset, limit)
    assert list(found.items) == list(range(count))[offset : offset + limit]
    assert (found.offset, found.limit, found.total) == (offset, limit, count)
    assert list(found.map(str).items) == [str(item) for item in found.items]


def test_a_window_is_bounded() -> None:
    found = window(range(3000), 5, 2000)
    assert (len(found.items), found.limit, found.total) == (MAX_PAGE, MAX_PAGE, 3000)
    for offset, limit, field in ((-1, 1, "offset"), (0, -1, "limit")):
        with pytest.raises(GatewayError) as caught:
            window([], offset, limit)
        assert caught.value.violations[0].field == field
