"""Downloads from a real gateway over connections that break."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cutting_proxy import CuttingProxy
from stored_checkpoint import sha256_of, stored_folder, write_checkpoint
from tests.conftest import GatewayProcess

from tinkergate.ingress.loops_rest.ids import checkpoint_id
from tinkergate_client import (
    Client,
    Downloaded,
    DownloadProgress,
    TinkergateError,
    connect,
)
from tinkergate_client._checkpoint_downloads import STAGING

MIB = 1 << 20
SIZES = {"adapter_model.safetensors": 40 * MIB + 5, "empty": 0, "sub/deep/notes.txt": 3}
NAMES = ["adapter_config.json", *SIZES, "tinkergate.json"]


class House:
    """A gateway with checkpoints, and a line to it that can be cut."""

    def __init__(self, gateway: Any, paths: dict[str, str]) -> None:
        self.gateway = gateway
        self.paths = paths
        self.path = paths["one"]

    def contents(self, name: str = "one") -> dict[str, bytes]:
        folder = stored_folder(self.gateway.data_dir, self.paths[name])
        return contents_of(folder)


def contents_of(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture(scope="module")
def house(micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("downloads")
    paths = {name: write_checkpoint(root / "data", name, SIZES) for name in ("one", "two", "gone")}
    flags = ["--model", str(micro_model_dir), "--http", "127.0.0.1:0"]
    gateway = GatewayProcess(root, flags, {})
    try:
        gateway.wait_until_listening()
        yield House(gateway, paths)
    finally:
        gateway.stop()


@pytest.fixture
def line(house: House) -> Iterator[CuttingProxy]:
    with CuttingProxy(house.gateway.address) as proxy:
        yield proxy


@pytest.fixture
def client(line: CuttingProxy) -> Iterator[Client]:
    with connect(line.address, patience=60) as connected:
        yield connected


class Stop(Exception):
    """Ends a download, as Ctrl-C would."""


def stop_after(size: int) -> Callable[[DownloadProgress], None]:
    def tell(progress: DownloadProgress) -> None:
        if progress.done_bytes >= size:
            raise Stop

    return tell


def test_the_files_are_those_of_the_checkpoint(
    client: Client, house: House, tmp_path: Path
) -> None:
    told: list[DownloadProgress] = []
    got = client.checkpoints.download(house.path, tmp_path / "new" / "a", progress=told.append)
    folder = tmp_path / "new" / "a"
    assert contents_of(folder) == house.contents()
    assert not (folder / STAGING).exists()
    listed = {file.name: file for file in client.checkpoints.files(house.path)}
    assert [file.name for file in got] == sorted(NAMES)
    for file in got:
        assert file == Downloaded(
            file.name,
            folder / file.name,
            listed[file.name].size_bytes,
            listed[file.name].sha256,
            verified=True,
        )
    total = sum(file.size_bytes for file in listed.values())
    assert {each.total_bytes for each in told} == {total}
    done = [each.done_bytes for each in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)


def test_every_door_gives_the_same_bytes(client: Client, house: House, tmp_path: Path) -> None:
    got = client.checkpoints.download_archive(house.path, tmp_path / "new" / "a.tar.gz")
    assert (got.name, got.path) == ("", tmp_path / "new" / "a.tar.gz")
    assert got.verified
    data = got.path.read_bytes()
    assert got.size_bytes == len(data)
    assert got.sha256 == sha256_of(got.path)
    assert names_in(got.path.parent) == ["a.tar.gz"]
    link = client.checkpoints.archive_url(house.path)
    assert link.size_bytes == len(data)
    with httpx.Client(trust_env=False) as stranger:
        answer = stranger.get(link.url)
        assert answer.content == data
        assert answer.headers["etag"] == f'"{link.etag}"'
        for file in client.checkpoints.files(house.path):
            assert file.url_expires is not None
            answer = stranger.get(file.url)
            assert answer.content == house.contents()[file.name]
            assert answer.headers["etag"] == f'"{file.etag}"'
        route = house.path.removeprefix("tinker://").replace("/", "/checkpoints/", 1)
        answer = stranger.get(
            f"http://{house.gateway.http_address}/api/v1/training_runs/{route}/archive",
            follow_redirects=True,
        )
        assert answer.content == data
        loops = f"http://{house.gateway.http_address}/v1/loops/checkpoints"
        known = f"{loops}/{checkpoint_id(house.path)}"
        assert (
            stranger.get(stranger.get(f"{known}/archive").json()["archive"]["url"]).content == data
        )
        told, page = {}, 0
        while page is not None:
            answer = stranger.get(f"{known}/files", params={"page_size": 2, "page_token": page})
            page = answer.json()["next_page_token"]
            for file in answer.json()["presigned_urls"]:
                told[file["relative_file_name"]] = stranger.get(file["url"]).content
        assert told == house.contents()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        assert tar.getnames() == [*sorted(NAMES), "checkpoint_complete"]


@pytest.mark.parametrize("as_archive", [False, True])
def test_it_goes_on_after_cuts(
    client: Client, line: CuttingProxy, house: House, tmp_path: Path, as_archive: bool
) -> None:
    client.close()  # Its connection would not be the first to be cut.
    line.cut_after = [6 * MIB, 12 * MIB, 9 * MIB]
    before = len(line.received)
    with connect(line.address, patience=60) as fresh:
        if as_archive:
            got = fresh.checkpoints.download_archive(house.path, tmp_path / "a.tar.gz")
            with tarfile.open(got.path, "r:gz") as tar:
                tar.extractall(tmp_path / "a", filter="data")
            (tmp_path / "a" / "checkpoint_complete").unlink()
        else:
            fresh.checkpoints.download(house.path, tmp_path / "a")
    assert contents_of(tmp_path / "a") == house.contents()
    received = line.received[before:]
    assert len(received) == 4
    # What was on its way at a cut is sent twice, and no more.
    assert sum(received) < 1.5 * sum(SIZES.values())
    assert received[-1] < 0.75 * sum(SIZES.values())


@pytest.mark.parametrize("as_archive", [False, True])
def test_another_run_goes_on(
    client: Client, line: CuttingProxy, house: House, tmp_path: Path, as_archive: bool
) -> None:
    target = tmp_path / ("a.tar.gz" if as_archive else "a")
    fetch = client.checkpoints.download_archive if as_archive else client.checkpoints.download
    with pytest.raises(Stop):
        fetch(house.path, target, progress=stop_after(20 * MIB))
    if as_archive:
        assert names_in(tmp_path) == ["a.tar.gz.part", "a.tar.gz.part.json"]
    else:
        assert names_in(target) == [STAGING]
    told: list[DownloadProgress] = []
    with connect(line.address) as fresh:
        fetch = fresh.checkpoints.download_archive if as_archive else fresh.checkpoints.download
        fetch(house.path, target, progress=told.append)
    assert 20 * MIB <= max(each.done_bytes for each in told[:2]) < 22 * MIB
    assert line.received[-1] < 24 * MIB
    if as_archive:
        assert names_in(tmp_path) == ["a.tar.gz"]
        with tarfile.open(target, "r:gz") as tar:
            assert tar.getnames()[-1] == "checkpoint_complete"
        whole = client.checkpoints.download_archive(house.path, tmp_path / "b.tar.gz")
        assert whole.sha256 == sha256_of(target)
    else:
        assert contents_of(target) == house.contents()


def test_what_is_there_is_not_overwritten_unasked(
    client: Client, line: CuttingProxy, house: House, tmp_path: Path
) -> None:
    folder, archive = tmp_path / "a", tmp_path / "a.tar.gz"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("mine")
    (folder / "other").write_text("mine too")
    archive.symlink_to(tmp_path / "nowhere")
    before = line.received[-1]
    with pytest.raises(FileExistsError, match=r"adapter_config\.json is there already"):
        client.checkpoints.download(house.path, folder)
    with pytest.raises(FileExistsError, match=r"a\.tar\.gz is there already"):
        client.checkpoints.download_archive(house.path, archive)
    assert line.received[-1] - before < MIB
    assert contents_of(folder) == {"adapter_config.json": b"mine", "other": b"mine too"}
    client.checkpoints.download(house.path, folder, overwrite=True)
    assert contents_of(folder) == {**house.contents(), "other": b"mine too"}
    client.checkpoints.download_archive(house.path, archive, overwrite=True)
    assert not archive.is_symlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("spoil", ["byte", "cut", "note", "no note"])
def test_what_was_left_and_is_not_what_was_written_is_thrown_away(
    client: Client, house: House, tmp_path: Path, spoil: str
) -> None:
    target = tmp_path / "a.tar.gz"
    with pytest.raises(Stop):
        client.checkpoints.download_archive(house.path, target, progress=stop_after(5 * MIB))
    part, note = tmp_path / "a.tar.gz.part", tmp_path / "a.tar.gz.part.json"
    match spoil:
        case "byte":
            with part.open("r+b") as file:
                file.seek(MIB)
                file.write(b"\x01")
        case "cut":
            os.truncate(part, MIB)
        case "note":
            note.write_text("[")
        case "no note":
            note.unlink()
    told: list[DownloadProgress] = []
    got = client.checkpoints.download_archive(house.path, target, progress=told.append)
    assert told[0].done_bytes == 0
    assert got.verified


def test_a_killed_program_loses_no_more_than_since_its_last_note(
    client: Client, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkergate_client._checkpoint_parts.NOTE_BYTES", 4 * MIB)
    target = tmp_path / "a.tar.gz"
    note = tmp_path / "a.tar.gz.part.json"
    noted: list[str] = []

    def tell(progress: DownloadProgress) -> None:
        if progress.done_bytes > 10 * MIB:
            noted.append(note.read_text())
            raise Stop

    with pytest.raises(Stop):
        client.checkpoints.download_archive(house.path, target, progress=tell)
    # A kill leaves the note as it was while the bytes went on.
    assert json.loads(noted[0])["offset"] < json.loads(note.read_text())["offset"]
    note.write_text(noted[0])
    told: list[DownloadProgress] = []
    got = client.checkpoints.download_archive(house.path, target, progress=told.append)
    assert told[0].done_bytes == json.loads(noted[0])["offset"] > 6 * MIB
    assert got.verified


def test_two_at_once_into_one_place_are_told(client: Client, house: House, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def tell(_: DownloadProgress) -> None:
        reached.set()
        go_on.wait()

    def first() -> None:
        client.checkpoints.download_archive(house.path, tmp_path / "a.tar.gz", progress=tell)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        reached.wait()
        with pytest.raises(BlockingIOError, match="is being written by another download"):
            client.checkpoints.download_archive(house.path, tmp_path / "a.tar.gz")
    finally:
        go_on.set()
        thread.join()
    assert names_in(tmp_path) == ["a.tar.gz"]


def test_a_checkpoint_that_is_deleted_meanwhile(
    client: Client, house: House, tmp_path: Path
) -> None:
    path = house.paths["gone"]

    def tell(progress: DownloadProgress) -> None:
        if progress.done_bytes > MIB and (tmp_path / "once").is_dir():
            (tmp_path / "once").rmdir()
            client.checkpoints.delete(path)

    (tmp_path / "once").mkdir()
    with pytest.raises(TinkergateError) as caught:
        client.checkpoints.download(path, tmp_path / "a", progress=tell)
    assert caught.value.reason == "CHECKPOINT_MISMATCH"
    assert "was replaced or removed while it was read" in caught.value.message
    assert names_in(tmp_path / "a") == [STAGING]
    with pytest.raises(TinkergateError) as caught:
        client.checkpoints.download(path, tmp_path / "a")
    assert caught.value.reason == "CHECKPOINT_NOT_FOUND"


@pytest.mark.parametrize("as_archive", [False, True])
def test_a_checkpoint_that_is_replaced_between_runs_is_read_anew(
    client: Client, house: House, tmp_path: Path, as_archive: bool
) -> None:
    with client.create_session() as session:
        model = session.create_model(rank=2)
        path = model.save_state("mine", user_metadata={"a": "1"}).result()
        fetch = client.checkpoints.download_archive if as_archive else client.checkpoints.download
        with pytest.raises(Stop):
            fetch(path, tmp_path / "a", progress=stop_after(20_000))
        model.save_state("mine", overwrite=True, user_metadata={"a": "2"}).result()
    got = fetch(path, tmp_path / "a")
    other = fetch(path, tmp_path / "b")
    if as_archive:
        assert got.sha256 == other.sha256  # type: ignore[union-attr]
        with tarfile.open(tmp_path / "a", "r:gz") as tar:
            record = tar.extractfile("tinkergate.json")
            assert record is not None
            assert b'"a": "2"' in record.read()
    else:
        assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")
        assert '"a": "2"' in (tmp_path / "a" / "tinkergate.json").read_text()
    client.checkpoints.delete(path)


def test_a_run_that_ends_while_files_are_put_in_their_place(
    client: Client, line: CuttingProxy, house: House, tmp_path: Path
) -> None:
    (tmp_path / "tinkergate.json").mkdir()
    with pytest.raises(IsADirectoryError):
        client.checkpoints.download(house.path, tmp_path, overwrite=True)
    assert (tmp_path / "adapter_config.json").is_file()
    (tmp_path / "tinkergate.json").rmdir()
    before = line.received[-1]
    got = client.checkpoints.download(house.path, tmp_path)
    assert contents_of(tmp_path) == house.contents()
    assert line.received[-1] - before < MIB
    assert all(file.verified and file.sha256 == sha256_of(file.path) for file in got)


def test_links_are_not_written_through(client: Client, house: House, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / "a.tar.gz.part").symlink_to(victim)
    with pytest.raises(OSError, match=r"a\.tar\.gz\.part"):
        client.checkpoints.download_archive(house.path, tmp_path / "a.tar.gz")
    assert victim.read_text() == "whole"
    (tmp_path / "outside").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / STAGING).symlink_to(tmp_path / "outside")
    with pytest.raises(TinkergateError, match="is no folder"):
        client.checkpoints.download(house.path, tmp_path / "a")
    assert names_in(tmp_path / "outside") == []


def test_a_closed_client_gives_up(client: Client, house: House, tmp_path: Path) -> None:
    def tell(progress: DownloadProgress) -> None:
        if progress.done_bytes > MIB:
            client.close()

    with pytest.raises(TinkergateError, match="this client is closed"):
        client.checkpoints.download(house.path, tmp_path / "a", progress=tell)
