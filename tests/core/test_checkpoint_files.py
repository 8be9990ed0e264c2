from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    DeleteCheckpointRequest,
    ErrorReason,
    ListCheckpointFilesRequest,
    SaveStateRequest,
)


async def saved(house: Any, name: str = "a") -> str:
    submit = house.gateway.training.submit
    model = await house.model()
    operation = await submit(SaveStateRequest(model_id=model, name=name))
    path: str = (await house.wait(operation)).save_state.path
    return path


async def names(house: Any, path: str, **page: Any) -> tuple[list[str], str]:
    request = ListCheckpointFilesRequest(path=path, **page)
    response = await house.gateway.checkpoint_files.list(request)
    return [file.name for file in response.files], response.next_page_token


async def bytes_of(content: Any, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in content.read(offset)])


async def test_files_are_listed_by_name_page_by_page(house: Any) -> None:
    house.backend.files = {"z": b"", "b/c.json": b"1", "a": b"22", "B": b"3"}
    path = await saved(house)
    every = ["B", "a", "b/c.json", "value.txt", "z"]
    assert await names(house, path) == (every, "")
    first, token = await names(house, path, page_size=2)
    second, token = await names(house, path, page_size=2, page_token=token)
    third, end = await names(house, path, page_size=2, page_token=token)
    assert first + second + third == every
    assert end == ""


async def test_a_file_is_read_from_any_offset(house: Any) -> None:
    house.backend.files = {"numbers": bytes(range(100))}
    content = await house.gateway.checkpoint_files.file(await saved(house), "numbers")
    assert content.size == 100
    for offset in (0, 1, 50, 99, 100):
        assert await bytes_of(content, offset) == bytes(range(offset, 100))
    other = await house.gateway.checkpoint_files.file(await saved(house), "numbers")
    assert other.etag != content.etag


async def test_an_archive_holds_all_files_and_the_marker(house: Any) -> None:
    house.backend.files = {"a.bin": bytes(70_000), "in/b": b"x"}
    path = await saved(house)
    content = await house.gateway.checkpoint_files.archive(path, "done")
    made = await bytes_of(content)
    assert len(made) == content.size
    assert await bytes_of(content, 65_000) == made[65_000:]
    with tarfile.open(fileobj=io.BytesIO(made), mode="r:gz") as tar:
        assert tar.getnames() == ["a.bin", "in/b", "value.txt", "done"]
        assert {member.mtime for member in tar} == {int(house.clock.seconds)}


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/../b", "", ".hidden", "a//b", "a\\b", "a\nb", "x" * 201]
)
async def test_a_name_that_leads_elsewhere_is_refused(house: Any, name: str) -> None:
    house.backend.files = {name: b"x"}
    path = await saved(house)
    for call in (
        names(house, path),
        house.gateway.checkpoint_files.archive(path),
        house.gateway.checkpoint_files.file(path, name),
    ):
        with pytest.raises(GatewayError, match="a file has the name") as caught:
            await call
        assert caught.value.kind is Kind.INTERNAL
        assert caught.value.backend == "books"


async def test_what_is_not_there(house: Any) -> None:
    path = await saved(house)
    with pytest.raises(GatewayError, match="has no file 'b'") as caught:
        await house.gateway.checkpoint_files.file(path, "b")
    assert caught.value.kind is Kind.NOT_FOUND
    with pytest.raises(GatewayError) as caught:
        await names(house, path + "2")
    assert caught.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND
    with pytest.raises(GatewayError) as caught:
        await names(house, "a/b")
    assert caught.value.violations[0].field == "path"


async def test_a_backend_that_has_no_files_says_so(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await saved(house)
    able = house.backend.capabilities()
    able.checkpoint_files = False
    monkeypatch.setattr(house.backend, "capabilities", lambda: able)
    with pytest.raises(GatewayError, match="'books' does not support reading the files") as caught:
        await house.gateway.checkpoint_files.archive(path)
    assert caught.value.kind is Kind.UNSUPPORTED


async def test_a_checkpoint_that_is_replaced_while_it_is_read_breaks_off(house: Any) -> None:
    """The rest would be another checkpoint's."""
    house.backend.files = {"numbers": bytes(100)}
    path = await saved(house)
    content = await house.gateway.checkpoint_files.archive(path)
    reading = content.read(0)
    await anext(reading)
    model = path.split("/")[2]
    request = SaveStateRequest(model_id=model, name="a", overwrite=True)
    await house.wait(await house.gateway.training.submit(request))
    with pytest.raises(GatewayError, match="was replaced or removed while it was read") as caught:
        _ = [piece async for piece in reading]
    assert caught.value.kind is Kind.PRECONDITION

    content = await house.gateway.checkpoint_files.file(path, "numbers")
    reading = content.read(0)
    await anext(reading)
    await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=path))
    with pytest.raises(GatewayError, match="was replaced or removed"):
        _ = [piece async for piece in reading]


@pytest.mark.parametrize("change", [b"short", bytes(101)])
async def test_a_file_of_another_size_than_was_said_breaks_off(house: Any, change: bytes) -> None:
    house.backend.files = {"numbers": bytes(100)}
    path = await saved(house)
    contents = [
        await house.gateway.checkpoint_files.file(path, "numbers"),
        await house.gateway.checkpoint_files.archive(path),
    ]
    house.backend.files = {"numbers": change}
    for content in contents:
        with pytest.raises(GatewayError, match="has not the 100 bytes that were said"):
            await bytes_of(content)
