"""Rendering failures as google.rpc.Status."""

from __future__ import annotations

from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from hypothesis import given
from hypothesis import strategies as st

from tinkergate.errors import ErrorReason, GatewayError, Kind, Violation, invalid
from tinkergate.ingress.grpc.errors import MAX_MESSAGE_BYTES, MAX_STATUS_BYTES, to_status


def detail(status, kind):
    (message,) = [packed for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    found = kind()
    message.Unpack(found)
    return found


@given(
    kind=st.sampled_from(Kind),
    message=st.text(alphabet=st.characters(exclude_categories=()), max_size=3000),
    metadata=st.dictionaries(st.text(max_size=30), st.text(max_size=3000), max_size=8),
    violations=st.lists(st.builds(Violation, st.text(max_size=500), st.text(max_size=3000))),
    retry_after=st.none() | st.floats(0, 1e6),
)
def test_every_status_fits_into_the_trailers(kind, message, metadata, violations, retry_after):
    error = GatewayError(
        kind,
        ErrorReason.ERROR_REASON_INTERNAL,
        message,
        retry_after=retry_after,
        violations=tuple(violations),
        metadata=metadata,
    )
    status = to_status(error, {"request_id": "r"})
    assert status.ByteSize() <= MAX_STATUS_BYTES
    assert len(status.message.encode()) <= MAX_MESSAGE_BYTES
    assert status.code == kind.value.code
    assert detail(status, ErrorInfo).reason == "INTERNAL"
    if violations:
        assert len(detail(status, BadRequest).field_violations) >= 1


def test_what_fits_is_told_whole():
    violations = [Violation(f"data[{i}]", f"{i} is wrong") for i in range(10)]
    error = invalid(violations)
    status = to_status(error)
    told = detail(status, BadRequest).field_violations
    assert [(v.field, v.description) for v in told] == violations
    assert status.message == error.message


def test_the_last_violations_go_first():
    violations = [Violation(f"data[{i}]", "x" * 900) for i in range(10)]
    told = detail(to_status(invalid(violations)), BadRequest).field_violations
    assert 0 < len(told) < 10
    assert [(v.field, v.description) for v in told] == violations[: len(told)]
