"""2,500 datums go in three chunks, whatever the order in which they arrive."""

from __future__ import annotations

from typing import Any

import interop_reference
import pytest
from interop_sdk import NEWEST, Sdk, one
from wire_tap import WireTap

from tinkergate.dialects.tinker.wire_pb2 import TinkerForwardBackwardRequest

COUNT = 2500


def check(seen: Any, expected: interop_reference.Seen) -> None:
    for what in ("backward", "forward"):
        told, reference = one(seen, what), one(expected, what)
        assert told["count"] == COUNT
        assert told["lengths"]
        assert told["digest"] == reference["digest"]
        assert told["metrics"]["loss:sum"] == pytest.approx(reference["loss"], rel=1e-12)
    assert one(seen, "step")["optimizer"] == one(expected, "step")["optimizer"]


def test_as_the_sdk_posts_them(sdk: Sdk, chunks_reference: interop_reference.Seen) -> None:
    check(sdk.run("chunks"), chunks_reference)


@pytest.mark.parametrize(
    ("flags", "greatest_first", "order"),
    [
        # The SDK posts the first when the others are accepted; here these come the other way.
        ({}, 2, [3, 2, 1]),
        ({"parallel_fwdbwd_chunks": False}, 0, [1, 2, 3]),
    ],
    ids=["backwards", "forwards"],
)
def test_in_other_orders(
    direct_sdk: Sdk,
    flags: dict[str, Any],
    greatest_first: int,
    order: list[int],
    chunks_reference: interop_reference.Seen,
) -> None:
    upstream = direct_sdk.url.removeprefix("http://")
    tap = WireTap(upstream, flags=flags, greatest_first=greatest_first, number=seq_id_of)
    with tap:
        check(direct_sdk.at(tap.url).run("chunks"), chunks_reference)
    arrived = [seq_id_of(post.body) for post in tap.of("forward_backward")[:3]]
    assert arrived == order


@pytest.mark.parametrize("tinker", ["tinker-0.25.0", NEWEST], indirect=True)
def test_compressed(direct_sdk: Sdk, chunks_reference: interop_reference.Seen) -> None:
    upstream = direct_sdk.url.removeprefix("http://")
    with WireTap(upstream, flags={"proto_compress_fwdbwd": True}) as tap:
        check(direct_sdk.at(tap.url).run("chunks"), chunks_reference)
    posts = tap.of("forward_backward")
    assert [post.headers.get("content-encoding") for post in posts] == ["zstd"] * len(posts)
    assert len(posts) == 6


def test_json_of_the_oldest(
    direct: Any, make_sdk: Any, chunks_reference: interop_reference.Seen
) -> None:
    sdk = make_sdk("tinker-0.22.0", direct)
    with WireTap(direct.http, flags={"proto_write_fwdbwd": False}) as tap:
        check(sdk.at(tap.url).run("chunks"), chunks_reference)
    posts = [*tap.of("forward_backward"), *tap.of("forward")]
    assert len(posts) == 6
    assert {post.headers["content-type"] for post in posts} == {"application/json"}


def seq_id_of(body: bytes) -> int:
    """The seq_id of a forward_backward in protobuf."""
    return TinkerForwardBackwardRequest.FromString(body).seq_id
