"""Sampling calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tinkergate.v1 import SampleRequest, SampleResponse, StreamSampleResponse


class Sampling:
    """The sampling RPCs."""

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Answer Sample. Cancelling the awaiting task leaves the call."""
        raise NotImplementedError

    def stream(self, request: SampleRequest) -> AsyncIterator[StreamSampleResponse]:
        """Answer StreamSample. Closing the iterator leaves the call."""
        raise NotImplementedError
