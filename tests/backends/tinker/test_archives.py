"""Archives of checkpoints, honest and not."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from tinkergate.backends.tinker import archives
from tinkergate.backends.tinker.archives import unpack


def write(path: Path, members: dict[str, bytes], *links: tuple[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type = tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder


def test_files_are_told_by_name_and_kept_under_numbers(tmp_path: Path, folder: Path) -> None:
    members = {"./a.json": b"{}", "b/c.bin": bytes(range(256)) * 9000}
    files = unpack(write(tmp_path / "x", members), folder, 1 << 30)
    assert set(files) == {"a.json", "b/c.bin"}
    for name, data in (("a.json", b"{}"), ("b/c.bin", members["b/c.bin"])):
        assert files[name].path.read_bytes() == data
        assert files[name].size == len(data)
        assert files[name].sha256 == hashlib.sha256(data).digest()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]


def test_a_folder_around_everything_is_no_part_of_the_names(tmp_path: Path, folder: Path) -> None:
    files = unpack(write(tmp_path / "x", {"top/a": b"1", "top/b/c": b"2"}), folder, 100)
    assert set(files) == {"a", "b/c"}


def test_links_are_left_out(tmp_path: Path, folder: Path) -> None:
    archive = write(tmp_path / "x", {"a": b"1"}, ("b", "/etc/passwd"), ("../c", "a"))
    assert set(unpack(archive, folder, 100)) == {"a"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a\\..\\up", "."])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="leads out of it"):
        unpack(write(tmp_path / "x", {name: b"1"}), folder, 100)
    assert not list(folder.iterdir())


def test_a_name_that_comes_twice_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="has 'a' twice"):
        unpack(write(tmp_path / "x", {"a": b"1", "./a": b"2"}), folder, 100)


def test_more_bytes_or_files_than_are_allowed_are_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write(tmp_path / "x", {"a": bytes(10_000_000)})
    assert small.stat().st_size < 20_000
    with pytest.raises(ValueError, match="more than 1000000 bytes"):
        unpack(small, folder, 1_000_000)
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    with pytest.raises(ValueError, match="2 files"):
        unpack(write(tmp_path / "y", {"a": b"", "b": b"", "c": b""}), folder, 100)


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_what_is_no_archive_or_no_whole_one_is_refused(
    cut: int, tmp_path: Path, folder: Path
) -> None:
    whole = write(tmp_path / "x", {"a": bytes(range(200))}).read_bytes()
    (tmp_path / "y").write_bytes(whole[:cut] or b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / "y", folder, 1000)
