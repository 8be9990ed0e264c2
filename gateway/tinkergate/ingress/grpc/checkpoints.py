"""CheckpointService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from tinkergate.core.gateway import Gateway
from tinkergate.errors import invalid_field
from tinkergate.ingress.grpc.call import Context
from tinkergate.v1 import (
    CheckpointServiceServicer,
    CopyCheckpointRequest,
    CopyCheckpointResponse,
    DeleteCheckpointRequest,
    DeleteCheckpointResponse,
    FilePiece,
    GetCheckpointArchiveUrlRequest,
    GetCheckpointArchiveUrlResponse,
    GetCheckpointRequest,
    GetCheckpointResponse,
    ImportCheckpointRequest,
    ImportCheckpointResponse,
    ImportHeader,
    ListCheckpointFilesRequest,
    ListCheckpointFilesResponse,
    ListCheckpointsRequest,
    ListCheckpointsResponse,
    PublishCheckpointRequest,
    PublishCheckpointResponse,
    ReadCheckpointArchiveRequest,
    ReadCheckpointArchiveResponse,
    ReadCheckpointFileRequest,
    ReadCheckpointFileResponse,
    SetCheckpointTtlRequest,
    SetCheckpointTtlResponse,
    UnpublishCheckpointRequest,
    UnpublishCheckpointResponse,
)


class CheckpointServicer(CheckpointServiceServicer):
    """Hands the calls to the core."""

    def __init__(self, gateway: Gateway) -> None:
        self._checkpoints = gateway.checkpoints
        self._copies = gateway.checkpoint_copies
        self._files = gateway.checkpoint_files

    async def ListCheckpoints(
        self, request: ListCheckpointsRequest, context: Context
    ) -> ListCheckpointsResponse:
        """Answer ListCheckpoints."""
        return await self._checkpoints.list(request)

    async def GetCheckpoint(
        self, request: GetCheckpointRequest, context: Context
    ) -> GetCheckpointResponse:
        """Answer GetCheckpoint."""
        return await self._checkpoints.get(request)

    async def DeleteCheckpoint(
        self, request: DeleteCheckpointRequest, context: Context
    ) -> DeleteCheckpointResponse:
        """Answer DeleteCheckpoint."""
        return await self._checkpoints.delete(request)

    async def ImportCheckpoint(
        self, request: AsyncIterator[ImportCheckpointRequest], context: Context
    ) -> ImportCheckpointResponse:
        """Answer ImportCheckpoint."""
        header = await _header(request)
        return await self._checkpoints.import_(header, _pieces(request))

    async def PublishCheckpoint(
        self, request: PublishCheckpointRequest, context: Context
    ) -> PublishCheckpointResponse:
        """Answer PublishCheckpoint."""
        return await self._checkpoints.publish(request)

    async def UnpublishCheckpoint(
        self, request: UnpublishCheckpointRequest, context: Context
    ) -> UnpublishCheckpointResponse:
        """Answer UnpublishCheckpoint."""
        return await self._checkpoints.unpublish(request)

    async def SetCheckpointTtl(
        self, request: SetCheckpointTtlRequest, context: Context
    ) -> SetCheckpointTtlResponse:
        """Answer SetCheckpointTtl."""
        return await self._checkpoints.set_ttl(request)

    async def CopyCheckpoint(
        self, request: CopyCheckpointRequest, context: Context
    ) -> CopyCheckpointResponse:
        """Answer CopyCheckpoint."""
        return await self._copies.copy(request)

    async def ListCheckpointFiles(
        self, request: ListCheckpointFilesRequest, context: Context
    ) -> ListCheckpointFilesResponse:
        """Answer ListCheckpointFiles."""
        return await self._files.list(request)

    async def ReadCheckpointFile(
        self, request: ReadCheckpointFileRequest, context: Context
    ) -> AsyncIterator[ReadCheckpointFileResponse]:
        """Answer ReadCheckpointFile. The next piece is read when gRPC has taken the last."""
        content = await self._files.file(request.path, request.name)
        content.check(request.offset, request.expected_etag)
        yield ReadCheckpointFileResponse(header=content.header())
        async with aclosing(content.read(request.offset)) as pieces:
            async for piece in pieces:
                yield ReadCheckpointFileResponse(data=piece)

    async def ReadCheckpointArchive(
        self, request: ReadCheckpointArchiveRequest, context: Context
    ) -> AsyncIterator[ReadCheckpointArchiveResponse]:
        """Answer ReadCheckpointArchive. The next piece is read when gRPC has taken the last."""
        content = await self._files.archive(request.path)
        content.check(request.offset, request.expected_etag)
        yield ReadCheckpointArchiveResponse(header=content.header())
        known = request.contents_crc32 if request.HasField("contents_crc32") else None
        reading = content.stretches(request.offset, checksum=known)
        async with aclosing(reading) as stretches:
            async for data, checksum in stretches:
                yield ReadCheckpointArchiveResponse(data=data, contents_crc32=checksum)

    async def GetCheckpointArchiveUrl(
        self, request: GetCheckpointArchiveUrlRequest, context: Context
    ) -> GetCheckpointArchiveUrlResponse:
        """Answer GetCheckpointArchiveUrl."""
        return await self._files.archive_url(request)


async def _header(messages: AsyncIterator[ImportCheckpointRequest]) -> ImportHeader:
    async for message in messages:
        if message.WhichOneof("piece") != "header":
            raise invalid_field("header", "missing: the first message must be the header")
        return message.header
    raise invalid_field("header", "missing: the stream is empty")


async def _pieces(messages: AsyncIterator[ImportCheckpointRequest]) -> AsyncIterator[FilePiece]:
    async for message in messages:
        if message.WhichOneof("piece") != "file":
            raise invalid_field("file", "missing: every message after the header must be a piece")
        yield message.file
