from __future__ import annotations

from pathlib import Path

import pytest

from tinkergate_client import TinkergateError
from tinkergate_client._checkpoint_names import places


def test_plain_names_go_under_the_folder(tmp_path: Path) -> None:
    names = ["adapter_config.json", "sub/deep/x.bin", "sub/y", "ünï.txt", "config", "a b", "~x"]
    found = places(tmp_path, names)
    assert found == {name: tmp_path / name for name in names}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a/.",
        ".",
        "..",
        ".bashrc",
        "a/.git/config",
        ".tinkergate.part/0.part",
        "C:\\x",
        "C:x",
        "\\\\host\\share",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        "a\x7f",
        "nul",
        "NUL.txt",
        "sub/Com1",
        "lpt9.bin",
        "aux .txt",
        "trailing.",
        "trailing ",
        "a?b",
        "a*b",
        'a"b',
        "a|b",
        "a<b",
        "x" * 256,
        "ü" * 128,
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TinkergateError) as caught:
        places(tmp_path, ["fine", name])
    assert caught.value.reason == "UNSAFE_FILE_NAME"
    assert "nothing was written there" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        ["a.bin", "A.bin"],
        ["\u00e9", "e\u0301"],
        ["sub/x", "Sub"],
        ["sub", "sub/x"],
        ["a", "a"],
        ["stra\u00dfe", "STRASSE"],
    ],
)
def test_names_that_get_into_each_others_way_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(TinkergateError) as caught:
        places(tmp_path, names)
    assert caught.value.reason == "UNSAFE_FILE_NAME"


def test_folders_with_one_name_in_two_spellings_are_refused(tmp_path: Path) -> None:
    """Where case does not count they are one, and the files of both would be in it: no harm. Where
    it does they are two."""
    assert len(places(tmp_path, ["sub/x", "Sub/y"])) == 2


def test_no_way_leads_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "sub").symlink_to(outside)
    for name in ("sub/x", "sub/deep/x"):
        with pytest.raises(TinkergateError, match=r"goes through .*sub, which is no folder"):
            places(inside, [name])
    # The folder itself is the caller's choice.
    (tmp_path / "link").symlink_to(inside)
    assert places(tmp_path / "link", ["x"]) == {"x": tmp_path / "link" / "x"}
    (inside / "file").touch()
    with pytest.raises(TinkergateError, match="no folder"):
        places(inside, ["file/x"])
