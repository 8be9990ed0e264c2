"""Checkpoints and their files, against a service that answers by script (wire section 9)."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from local_backend import MODEL, ignore, run
from loops_script import (
    SAVED,
    loops_script,
    told,
)
from scripted_service import Reply
from tinker_upstream import make

from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    SaveStateRequest,
)

pytestmark = pytest.mark.usefixtures("impatience")


async def test_a_path_that_only_the_trainer_can_read_is_told_as_loops_paths_are() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        submission = await backend.submit(SAVED, ignore)
        script.results[next(reversed(script.results))]["path"] = "s3://bucket/elsewhere/"
        saved = await submission.result
        assert saved.upstream_path == "bt://loops:run1/weights/ck"  # type: ignore[union-attr]


async def test_a_replacement_has_another_name_there() -> None:
    async with loops_script() as (_, service, backend):
        await make(backend)
        await run(backend, SAVED)
        again = SaveStateRequest(model_id=MODEL, name="ck", overwrite=True)
        saved = await run(backend, again)
        names = [asked.json["name"] for asked in service.of("/run1/save_state")]
        assert names[0] == "ck"
        assert names[1].startswith("ck-")
        assert saved.upstream_path.endswith(names[1])


async def test_files_are_listed_page_by_page() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        path = f"tinker://{MODEL}/weights/ck"
        script.instead("/files/adapter_config.json", Reply(b"0123456789"))
        files = await backend.checkpoint_files(path)
        assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
        pieces = backend.read_checkpoint_file(path, "adapter_config.json")
        assert b"".join([piece async for piece in pieces]) == b"0123456789"
        [download] = service.of("/files/adapter_config.json")
        assert "authorization" not in download.headers
        assert download.headers["accept-encoding"] == "identity"


async def test_a_url_that_is_too_old_is_asked_for_anew() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        path = f"tinker://{MODEL}/weights/ck"
        await backend.checkpoint_files(path)
        script.instead("/files/adapter_config.json", told(403), Reply(b"abc"))
        pieces = backend.read_checkpoint_file(path, "adapter_config.json")
        assert b"".join([piece async for piece in pieces]) == b"abc"
        assert len([a for a in service.asked if a.route.endswith("/source")]) == 2


async def test_a_download_outlives_its_urls_as_often_as_it_gets_further() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        path = f"tinker://{MODEL}/weights/ck"
        await backend.checkpoint_files(path)
        route = "/files/adapter_config.json"
        one = {"etag": '"one"'}

        def half(_: Any) -> Reply:
            service.cut_after.add(route)
            return Reply(b"abc", headers={**one, "content-length": "7"})

        script.instead(route, told(403), half, told(403), Reply(b"defg", 206, one))
        pieces = backend.read_checkpoint_file(path, "adapter_config.json")
        assert b"".join([piece async for piece in pieces]) == b"abcdefg"
        assert service.of(route)[-1].headers["range"] == "bytes=3-"
        # But not for ever in one place.
        script.always(route, told(403))
        with pytest.raises(GatewayError, match="answered 403"):
            assert [piece async for piece in backend.read_checkpoint_file(path, route[7:])]


async def test_a_download_is_not_taken_up_with_another_file() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        path = f"tinker://{MODEL}/weights/ck"
        route = "/files/adapter_config.json"
        half = {"content-length": "100", "etag": '"one"'}
        script.instead(route, lambda _: Reply(b"half", headers=half))
        script.instead(route, Reply(b"other", headers={"etag": '"two"'}))
        service.cut_after.add(route)
        pieces = backend.read_checkpoint_file(path, "adapter_config.json")
        with pytest.raises(GatewayError, match="the file is another one since"):
            b"".join([piece async for piece in pieces])
        assert service.of(route)[-1].headers["if-range"] == '"one"'


@pytest.mark.parametrize(
    ("route", "reply", "words"),
    [
        (
            "/source",
            Reply({"source": {"kind": "volume", "volume_ref": "bdn:ns/vol:tag", "path": "x"}}),
            "reading checkpoints that are kept as 'volume'",
        ),
        (
            "/files",
            Reply({"error": "no", "details": {"reason": "NOT_PRESIGNABLE"}}, 400),
            "reading checkpoints that have no signed URLs",
        ),
    ],
)
async def test_checkpoints_that_have_no_files_to_read_are_refused_by_name(
    route: str, reply: Reply, words: str
) -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        await run(backend, SAVED)
        script.instead(route, reply)
        with pytest.raises(GatewayError, match=words) as raised:
            await backend.checkpoint_files(f"tinker://{MODEL}/weights/ck")
        assert raised.value.kind is Kind.UNSUPPORTED


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ({"presigned_urls": [], "next_page_token": None}, "are none"),
        ({"presigned_urls": [], "next_page_token": 0}, "must be more than 0"),
        (
            {
                "presigned_urls": [
                    {"url": "http://h/1", "relative_file_name": "a", "size_bytes": 1},
                    {"url": "http://h/2", "relative_file_name": "a", "size_bytes": 1},
                ],
                "next_page_token": None,
            },
            "has 'a' twice",
        ),
    ],
)
async def test_lists_of_files_that_cannot_be_are_told(page: Any, words: str) -> None:
    async with loops_script(retry_time=0.05) as (script, _, backend):
        await make(backend)
        await run(backend, SAVED)
        script.always("/files", Reply(page))
        with pytest.raises(GatewayError, match=words):
            await backend.checkpoint_files(f"tinker://{MODEL}/weights/ck")


async def test_a_checkpoint_that_is_gone_there_is_told() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        await run(backend, SAVED)
        script.saved.clear()
        with pytest.raises(GatewayError, match="there is none") as raised:
            await make(backend, "s-1:train:1", f"tinker://{MODEL}/weights/ck")
        assert raised.value.kind is Kind.NOT_FOUND
        assert len(script.runs) == 1


async def test_what_is_deleted_stays_there_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with loops_script() as (_, service, backend):
        await make(backend)
        await run(backend, SAVED)
        before = len(service.asked)
        await backend.delete_checkpoint(f"tinker://{MODEL}/weights/ck")
        await backend.delete_checkpoint("tinker://x/weights/unknown")
        assert len(service.asked) == before
        assert "at Loops bt://loops:run1/weights/ck stays" in caplog.text
        assert "unknown" not in caplog.text
