from __future__ import annotations

import numpy as np
import pytest

from tinkergate.tensors import batched_from_arrays
from tinkergate.v1 import ArrayRecord, ForwardBackwardOutput, Operation
from tinkergate_client._results import merge_metrics, read_forward_backward


def operation(logprobs: list[list[float]], metrics: dict[str, float]) -> Operation:
    arrays = [np.array(values, dtype=np.float32) for values in logprobs]
    record = ArrayRecord(fields={"logprobs": batched_from_arrays(arrays)}, num_datums=len(arrays))
    return Operation(
        forward_backward=ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord", loss_fn_outputs=[record], metrics=metrics
        )
    )


def test_chunks_are_put_together_in_order() -> None:
    result = read_forward_backward(
        [
            operation([[-1, -2], [-3]], {"loss:sum": 6}),
            operation([[-4]], {"loss:sum": 4}),
        ]
    )
    assert [values.tolist() for values in result.logprobs] == [[-1, -2], [-3], [-4]]
    assert result.loss == 10


def test_arrays_are_views_of_the_message() -> None:
    result = read_forward_backward([operation([[-1, -2]], {"loss:sum": 3})])
    assert not result.logprobs[0].flags.owndata
    assert not result.logprobs[0].flags.writeable


def test_records_without_fields_still_count_their_datums() -> None:
    output = ForwardBackwardOutput(loss_fn_outputs=[ArrayRecord(num_datums=2)])
    assert read_forward_backward([Operation(forward_backward=output)]).outputs == [{}, {}]


# Three chunks of 1, 2 and 1 datums.
@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", 11.0),
        ("mean", (2 + 2 * 5 + 4) / 4),
        ("min", 2.0),
        ("max", 5.0),
        ("slack", 5 - (2 + 2 * 5 + 4) / 4),
        ("hash2", 11.0),
    ],
)
def test_a_figure_is_merged_by_its_reduction(reduction: str, expected: float) -> None:
    name = f"figure:{reduction}"
    chunks = [{name: 2.0}, {name: 5.0}, {name: 4.0}]
    assert merge_metrics(chunks, [1, 2, 1]) == {name: expected}


def test_hashes_are_added_modulo_2_to_the_64() -> None:
    chunks = [{"h:hash2": 2.0**63}, {"h:hash2": 2.0**63 + 2.0**20}]
    assert merge_metrics(chunks, [1, 1]) == {"h:hash2": 2.0**20}


def test_unique_figures_are_all_kept() -> None:
    chunks = [{"id:unique": 7.0}, {"id:unique": 8.0}, {"id:unique": 9.0}]
    assert merge_metrics(chunks, [1, 1, 1]) == {
        "id:unique": 7.0,
        "id:unique_1": 8.0,
        "id:unique_2": 9.0,
    }


def test_figures_that_cannot_be_merged_are_left_out() -> None:
    chunks = [{"a:sum": 1.0, "b:median": 1.0, "c:sum": 1.0}, {"a:sum": 2.0, "b:median": 2.0}]
    assert merge_metrics(chunks, [1, 1]) == {"a:sum": 3.0}


def test_one_chunk_is_taken_as_it_is() -> None:
    assert merge_metrics([{"b:median": 1.0}], [3]) == {"b:median": 1.0}
