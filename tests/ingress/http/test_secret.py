from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tinkergate.ingress.http.secret import FILE_NAME, SECRET_BYTES, derive, load_secret


def test_a_secret_is_drawn_once_for_its_owner_alone(tmp_path: Path) -> None:
    secret = load_secret(tmp_path)

    assert len(secret) == SECRET_BYTES
    assert load_secret(tmp_path) == secret
    [file] = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_folders_have_two_secrets(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    assert load_secret(tmp_path / "a") != load_secret(tmp_path / "b")


@pytest.mark.parametrize("text", ["", "no hex", "abcd"])
def test_what_is_no_secret_is_not_used(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)

    with pytest.raises(ValueError, match="holds no secret"):
        load_secret(tmp_path)


def test_what_is_derived_for_one_purpose_is_not_that_of_another() -> None:
    assert derive(b"s" * 32, "tokens") != derive(b"s" * 32, "urls")
    assert derive(b"s" * 32, "tokens") == derive(b"s" * 32, "tokens")
