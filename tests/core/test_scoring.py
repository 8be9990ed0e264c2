from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import arrays_from_batched, batched_from_arrays
from tinkergate.v1 import BatchedTensor, DType, ErrorReason, ScoreRequest

BASE = "accounts/small"


def batch(*sequences: list[int]) -> BatchedTensor:
    return batched_from_arrays([np.array(s, np.int32) for s in sequences], dtype=np.int32)


async def test_a_row_a_token(house: Any) -> None:
    response = await house.gateway.scoring.score(
        ScoreRequest(base_model="small", tokens=batch([1, 2, 3], [4]))
    )
    assert [len(row) for row in arrays_from_batched(response.logprobs)] == [3, 1]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tokens": batch()}, "tokens.offsets"),
        ({"tokens": batch([1], [])}, "tokens[1]"),
        ({"tokens": batch(list(range(33)))}, "tokens[0]"),
        ({"tokens": batch([1], [100])}, "tokens"),
        ({"tokens": batched_from_arrays([np.zeros(3, np.float32)])}, "tokens.dtype"),
        ({"tokens": batched_from_arrays([np.zeros((2, 1), np.int64)])}, "tokens.trailing_shape"),
        (
            {
                "tokens": BatchedTensor(
                    data=b"\0" * 8,
                    offsets=np.array([0, 3, 8]).tobytes(),
                    dtype=DType.DTYPE_INT32,
                )
            },
            "tokens[0]",
        ),
        (
            {
                "tokens": BatchedTensor(
                    data=b"\0" * 8, offsets=np.array([0, 4]).tobytes(), dtype=DType.DTYPE_INT32
                )
            },
            "tokens.offsets",
        ),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"topk": 101}, "topk"),
        ({"topk": -1}, "topk"),
    ],
)
async def test_bad_requests_name_the_field(house: Any, fields: dict[str, Any], field: str) -> None:
    fields = {"base_model": BASE, "tokens": batch([1, 2])} | fields
    with pytest.raises(GatewayError) as caught:
        await house.gateway.scoring.score(ScoreRequest(**fields))
    assert caught.value.kind is Kind.INVALID
    assert caught.value.violations[0].field == field


async def test_offsets_that_fall_back_are_refused(house: Any) -> None:
    tokens = BatchedTensor(
        data=b"\0" * 8, offsets=np.array([0, 8, 4, 8]).tobytes(), dtype=DType.DTYPE_INT32
    )
    with pytest.raises(GatewayError) as caught:
        await house.gateway.scoring.score(ScoreRequest(base_model=BASE, tokens=tokens))
    assert caught.value.violations[0].field == "tokens[1]"


async def test_an_answer_that_fits_no_message_is_refused(open_house: Any) -> None:
    house = await open_house(max_message_bytes=1000)
    request = ScoreRequest(base_model=BASE, tokens=batch([1, 2, 3]), topk=100)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.scoring.score(request)
    assert caught.value.violations[0].field == "tokens"


async def test_too_many_at_once_are_refused(open_house: Any) -> None:
    house = await open_house(max_running_scores=1)
    house.backend.sample_gate.clear()
    running = asyncio.create_task(
        house.gateway.scoring.score(ScoreRequest(base_model=BASE, tokens=batch([1])))
    )
    await asyncio.sleep(0)
    with pytest.raises(GatewayError) as caught:
        await house.gateway.scoring.score(ScoreRequest(base_model=BASE, tokens=batch([1])))
    assert caught.value.reason == ErrorReason.ERROR_REASON_QUEUE_FULL
    house.backend.sample_gate.set()
    await running
