from __future__ import annotations

import pytest

from tinkergate.v1 import Limits
from tinkergate_client import Datum, InvalidRequest, datum
from tinkergate_client._chunking import split

MESSAGE_BYTES = 200_000


def limits(datums: int = 1024, size: int = 5_000_000) -> Limits:
    return Limits(chunk_datums=datums, chunk_bytes=size, max_message_bytes=MESSAGE_BYTES)


def data(*lengths: int) -> list[Datum]:
    return [datum([1] * length, [1] * length) for length in lengths]


def lengths(chunks: list) -> list[list[int]]:
    return [
        [len(example.model_input[0].encoded_text.tokens) // 4 for example in chunk]
        for chunk in chunks
    ]


def test_what_fits_stays_together() -> None:
    assert lengths(split(data(1, 2, 3), limits())) == [[1, 2, 3]]


def test_an_empty_batch_is_one_request_for_the_gateway_to_refuse() -> None:
    assert lengths(split([], limits())) == [[]]


def test_a_chunk_is_closed_when_it_has_its_datums() -> None:
    assert lengths(split(data(1, 2, 3, 4, 5), limits(datums=2))) == [[1, 2], [3, 4], [5]]


def test_a_chunk_is_closed_before_it_has_too_many_bytes() -> None:
    examples = data(100, 100, 100, 50)
    size = examples[0].ByteSize() * 2
    assert lengths(split(examples, limits(size=size))) == [[100, 100], [100, 50]]


def test_a_datum_over_the_bound_goes_alone() -> None:
    examples = data(1, 900, 1)
    size = examples[1].ByteSize() - 1
    assert lengths(split(examples, limits(size=size))) == [[1], [900], [1]]


def test_a_datum_that_no_message_carries_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        split(data(1, MESSAGE_BYTES), limits())
    assert caught.value.violations[0].field == "data[1]"
    assert caught.value.reason == "TOO_LARGE"


def test_pairs_stay_in_one_chunk() -> None:
    examples = data(1, 2, 3, 4, 5, 6)
    assert lengths(split(examples, limits(datums=3), together=2)) == [[1, 2], [3, 4], [5, 6]]
    assert lengths(split(examples, limits(datums=5), together=2)) == [[1, 2, 3, 4], [5, 6]]
    assert lengths(split(examples, limits(datums=1), together=2)) == [[1, 2], [3, 4], [5, 6]]
    size = sum(example.ByteSize() for example in examples[:3])
    assert lengths(split(examples, limits(size=size), together=2)) == [[1, 2], [3, 4], [5, 6]]
    assert lengths(split(examples[:3], limits(), together=2)) == [[1, 2, 3]]
    assert lengths(split([], limits(), together=2)) == [[]]


def test_a_pair_that_no_message_carries_is_named() -> None:
    half = data(1, 1, MESSAGE_BYTES // 20, MESSAGE_BYTES // 20)
    assert len(split(half, limits())) == 1
    with pytest.raises(InvalidRequest, match=r"with data\[3\], which it must go with") as caught:
        split(half, limits(), together=2)
    assert caught.value.violations[0].field == "data[2]"
