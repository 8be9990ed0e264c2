"""`make setup` installs with uv what pip was told how to reach."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Translate = Callable[[str, dict[str, str]], dict[str, str]]


@pytest.fixture(scope="module")
def uv_environment(root: Path) -> Translate:
    """The function of scripts/setup.py, which is no package."""
    spec = importlib.util.spec_from_file_location("setup_script", root / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    translate: Translate = module.uv_environment
    return translate


def test_pips_settings_reach_uv(uv_environment: Translate) -> None:
    config = "\n".join(
        [
            "global.index-url='https://mirror.example/simple'",
            "global.cert='/etc/ssl/own.pem'",
            ":env:.disable-pip-version-check='1'",
            ":env:.find-links='/wheels /more'",
            ":env:.default-timeout='180'",
        ]
    )
    assert uv_environment(config, {"HOME": "/home"}) == {
        "HOME": "/home",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_the_stronger_setting_wins_whatever_the_order(uv_environment: Translate) -> None:
    lines = [":env:.proxy='http://c:1'", "global.proxy='http://a:1'", "install.proxy='http://b:1'"]
    for config in (lines, lines[::-1]):
        assert uv_environment("\n".join(config), {}) == {"ALL_PROXY": "http://c:1"}
    assert uv_environment("\n".join(lines[1:]), {}) == {"ALL_PROXY": "http://b:1"}


def test_several_indexes_are_all_searched(uv_environment: Translate) -> None:
    config = "global.extra-index-url='https://a.example\\nhttps://b.example'"
    assert uv_environment(config, {}) == {
        "UV_INDEX": "https://a.example https://b.example",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_what_is_set_for_uv_stays(uv_environment: Translate) -> None:
    own = {"UV_DEFAULT_INDEX": "https://own.example", "ALL_PROXY": "http://own:1"}
    config = "global.index-url='https://pip.example'\nglobal.proxy='http://pip:1'"
    assert uv_environment(config, own) == own


def test_settings_of_other_commands_do_not_count(uv_environment: Translate) -> None:
    assert uv_environment("download.no-index='1'\nnonsense", {}) == {}


def test_an_old_python_is_told_what_is_needed(root: Path, tmp_path: Path) -> None:
    """Run with a version made old: the check comes before anything is written."""
    script = (
        "import runpy, sys\n"
        "sys.version_info = (3, 10, 1)\n"
        f"runpy.run_path({str(root / 'scripts' / 'setup.py')!r}, run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "PYTHON=" in result.stderr
