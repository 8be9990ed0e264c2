from __future__ import annotations

from tinkergate.core.identity import request_hash
from tinkergate.v1 import CreateSessionRequest, SampleRequest, SaveStateRequest


def test_the_order_of_maps_does_not_matter() -> None:
    keys = [str(i) for i in range(50)]
    one = SaveStateRequest(user_metadata={key: key for key in keys})
    other = SaveStateRequest(user_metadata={key: key for key in reversed(keys)})
    assert request_hash(one) == request_hash(other)


def test_the_request_id_is_left_out_and_left_alone() -> None:
    request = CreateSessionRequest(display_name="x", request_id="r")
    assert request_hash(request) == request_hash(CreateSessionRequest(display_name="x"))
    assert request.request_id == "r"


def test_any_other_difference_counts() -> None:
    assert request_hash(SampleRequest(num_samples=1)) != request_hash(SampleRequest())
