"""`tinkergate config check` and `show`, as operators meet them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GOOD = """
default_backend = "mint"
store_url = "postgresql://me:geheim@db/gateway"
[grpc]
listen = "127.0.0.1:7701"
[backends.mint]
kind = "mint"
base_url = "https://mint.example"
api_key_env = "KEY_OF_MINT"
proxy = "http://me:geheim@proxy:3128"
[models."Qwen/Qwen3-8B"]
aliases = ["qwen"]
"""


@pytest.fixture
def gateway_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("MINT_API_KEY", "TINKER_API_KEY", "BASETEN_API_KEY", "TINKERGATE_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KEY_OF_MINT", "sk-geheim")
    file = tmp_path / "gateway.toml"
    file.write_text(GOOD)
    return file


def test_what_is_right_is_told_in_a_line(tinkergate: Any, gateway_file: Path) -> None:
    checked = tinkergate("config", "check", "--config", gateway_file, address="")
    assert (checked.code, checked.err) == (0, "")
    assert checked.out == "ok: backends: local, mint; models named: 1\n"


def test_the_file_may_be_named_by_the_environment(
    tinkergate: Any, gateway_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKERGATE_CONFIG", str(gateway_file))
    assert "mint" in tinkergate("config", "check", address="").out


def test_all_that_is_wrong_is_told_a_line_each(tinkergate: Any, gateway_file: Path) -> None:
    text = GOOD.replace("KEY_OF_MINT", "ABSENT").replace(":7701", "")
    gateway_file.write_text(text.replace('["qwen"]', '["qwen"]\nbackend = "other"'))
    checked = tinkergate("config", "check", "--config", gateway_file, address="")
    assert checked.code == 2
    assert checked.out == ""
    lines = checked.err.splitlines()
    assert [line.removeprefix(f"tinkergate: {gateway_file}: ") for line in lines] == [
        "backends.mint: has no API key: set ABSENT, or name another variable by api_key_env, or a "
        "file by api_key_file",
        "grpc.listen: '127.0.0.1' is no HOST:PORT, such as 127.0.0.1:7700",
        "models.\"Qwen/Qwen3-8B\".backend: 'other' is no backend; there are: local, mint",
    ]


def test_what_this_machine_does_not_have_is_told(tinkergate: Any, gateway_file: Path) -> None:
    gateway_file.write_text(
        """
        [http]
        listen = "0.0.0.0:8000"
        [models.public]
        name = "/nowhere/model"
        [models.fine]
        name = "labs/model"
        """
    )
    checked = tinkergate("config", "check", "--config", gateway_file, address="")
    assert checked.code == 2
    exposed, folder = checked.err.splitlines()
    assert "0.0.0.0:8000 can be reached from other machines" in exposed
    assert folder == (
        f"tinkergate: {gateway_file}: models.public: '/nowhere/model' is no folder of a model: it "
        "has no config.json"
    )


def test_a_service_that_is_this_gateway_is_told(
    tinkergate: Any, gateway_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKERGATE_HTTP", "127.0.0.1:8000")
    monkeypatch.setenv("TINKER_API_KEY", "tml-1")
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:8000")
    checked = tinkergate("config", "check", address="")
    assert checked.code == 2
    assert "TINKER_BASE_URL: 'http://127.0.0.1:8000' is this gateway's own address" in checked.err


def test_settings_are_shown_with_their_sources_and_without_secrets(
    tinkergate: Any, gateway_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKERGATE_API_KEY", "geheim")
    monkeypatch.setenv("TINKERGATE_LIMITS_MAX_WAIT", "7")
    monkeypatch.setenv("TINKER_API_KEY", "tml-geheim")
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    shown = tinkergate("config", "show", "--config", gateway_file, address="")
    assert shown.code == 0, shown.err
    assert "geheim" not in shown.out
    lines = set(shown.out.splitlines())
    file = str(gateway_file)
    assert lines >= {
        f'default_backend = "mint"  # {file}: default_backend',
        f'store_url = "postgresql://me:***@db/gateway"  # {file}: store_url',
        'api_keys = ["***"]  # TINKERGATE_API_KEY',
        "limits.max_wait = 7.0  # TINKERGATE_LIMITS_MAX_WAIT",
        "grace = 30.0  # default",
        f'backends.mint.base_url = "https://mint.example"  # {file}: backends',
        'backends.mint.api_key = "***"  # KEY_OF_MINT',
        f'backends.mint.proxy = "http://me:***@proxy:3128"  # {file}: backends',
        'backends.tinker.base_url = "http://127.0.0.1:9"  # TINKER_BASE_URL',
        'backends.tinker.api_key = "***"  # TINKER_API_KEY',
        f'models."Qwen/Qwen3-8B".aliases = ["qwen"]  # {file}: models',
        'models."Qwen/Qwen3-8B".name = ""  # default',
    }
    assert all(re.fullmatch(r"[^ ]+ = .*  # .+", line) for line in lines)


def test_serve_refuses_the_same(tinkergate: Any, gateway_file: Path) -> None:
    gateway_file.write_text("[limits]\nmax_wiat = 1\n[backends.x]\nkind = 'loops'\n")
    served = tinkergate("serve", "--config", gateway_file, address="")
    assert served.code == 2
    assert "max_wiat" in served.err
    assert "(and 1 more, see `tinkergate config check`)" in served.err
    wrong = tinkergate("serve", "--alias", "name", address="")
    assert (wrong.code, wrong.err) == (2, "tinkergate: --alias 'name' is no NAME=MODEL\n")
