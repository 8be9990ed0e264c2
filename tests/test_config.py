"""Configuration from flags, environment, file and defaults."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from tinkergate.config import Config, ConfigError, environment_name, load_config


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str) -> Path:
        path = tmp_path / "gateway.toml"
        path.write_text(text)
        return path

    return write_file


def settings_of(kind: type, prefix: str = "") -> list[str]:
    hints = get_type_hints(kind)
    names = []
    for entry in fields(kind):
        if is_dataclass(hints[entry.name]):
            names += settings_of(hints[entry.name], f"{prefix}{entry.name}.")
        else:
            names.append(prefix + entry.name)
    return names


def refusal(**places) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(places.pop("flags", {}), **{"environment": {}, **places})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_means_the_defaults():
    assert load_config({}, environment={}) == Config()


def test_flags_go_before_the_environment_and_that_before_the_file(write):
    file = write("[limits]\nmax_wait = 1\ngap_timeout = 1\nresult_retention = 1\n")
    environment = {"TINKERGATE_LIMITS_MAX_WAIT": "2", "TINKERGATE_LIMITS_GAP_TIMEOUT": "2"}
    config = load_config({"limits.max_wait": 3.0}, file=file, environment=environment)
    assert config.limits.max_wait == 3.0
    assert config.limits.gap_timeout == 2.0
    assert config.limits.result_retention == 1.0


def test_flags_that_are_not_given_do_not_count():
    environment = {"TINKERGATE_GRPC": "127.0.0.1:1"}
    assert load_config({"grpc.listen": None}, environment=environment).grpc.listen == "127.0.0.1:1"


def test_the_file_may_be_named_by_the_environment(write):
    file = write('data_dir = "/data"\n')
    environment = {"TINKERGATE_CONFIG": str(file)}
    assert load_config({}, environment=environment).data_dir == Path("/data")


def test_every_kind_of_value_can_come_from_a_file(write):
    file = write(
        """
        api_keys = ["one", "two"]
        grace = 0
        [grpc]
        reflection = false
        max_connection_age = 1800
        [tls]
        cert = "cert.pem"
        [engine]
        models = ["a", "b"]
        [log]
        level = "warning"
        """
    )
    config = load_config({}, file=file, environment={})
    assert config.api_keys == ("one", "two")
    assert config.grace == 0
    assert config.grpc.reflection is False
    assert config.grpc.max_connection_age == 1800.0
    assert config.tls.cert == Path("cert.pem")
    assert config.engine.models == ("a", "b")
    assert config.log.level == "warning"


def test_every_kind_of_value_can_come_from_the_environment():
    config = load_config(
        {},
        environment={
            "TINKERGATE_API_KEY": "one, two",
            "TINKERGATE_GRPC_REFLECTION": "false",
            "TINKERGATE_GRPC_MAX_CONNECTION_AGE": "1800",
            "TINKERGATE_TLS_CERT": "cert.pem",
            "TINKERGATE_MODELS": "a,b",
            "TINKERGATE_LIMITS_CHUNK_DATUMS": "7",
        },
    )
    assert config.api_keys == ("one", "two")
    assert config.grpc.reflection is False
    assert config.grpc.max_connection_age == 1800.0
    assert config.tls.cert == Path("cert.pem")
    assert config.engine.models == ("a", "b")
    assert config.limits.chunk_datums == 7


def test_every_setting_has_a_variable_of_its_own():
    names = [environment_name(setting) for setting in settings_of(Config)]
    assert len(set(names)) == len(names) > 30
    assert not {"TINKERGATE_CONFIG", "TINKERGATE_ADDRESS", "TINKERGATE_CACHE_DIR"} & set(names)


def test_variables_of_other_programs_are_let_be():
    environment = {"TINKERGATE_ADDRESS": "h:1", "TINKERGATE_CACHE_DIR": "/c", "PATH": "/bin"}
    assert load_config({}, environment=environment) == Config()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (
            {"TINKERGATE_LIMITS_MAX_WIAT": "1"},
            "there is no setting 'TINKERGATE_LIMITS_MAX_WIAT'; "
            "did you mean 'TINKERGATE_LIMITS_MAX_WAIT'?",
        ),
        ({"TINKERGATE_LIMITS_MAX_WAIT": "soon"}, "TINKERGATE_LIMITS_MAX_WAIT: Input should be"),
        ({"TINKERGATE_LIMITS_MAX_WAIT": "-1"}, "-1.0 is no positive finite number"),
        ({"TINKERGATE_LIMITS_MAX_WAIT": "nan"}, "nan is no positive finite number"),
        ({"TINKERGATE_LIMITS_MAX_WAIT": "inf"}, "inf is no positive finite number"),
        ({"TINKERGATE_GRACE": "-0.5"}, "TINKERGATE_GRACE: -0.5 is no positive finite number"),
        ({"TINKERGATE_LOG_LEVEL": "loud"}, "TINKERGATE_LOG_LEVEL: Input should be 'debug'"),
        ({"TINKERGATE_GRPC_MAX_CONNECTION_AGE": "old"}, "TINKERGATE_GRPC_MAX_CONNECTION_AGE: "),
        ({"TINKERGATE_API_KEY": ""}, "TINKERGATE_API_KEY is empty"),
        ({"TINKERGATE_API_KEY": "one,,two"}, "TINKERGATE_API_KEY: keys are printable ASCII"),
        ({"TINKERGATE_API_KEY": "schlüssel"}, "TINKERGATE_API_KEY: keys are printable ASCII"),
        ({"TINKERGATE_CONFIG": "/nowhere.toml"}, "--config /nowhere.toml: No such file"),
    ],
)
def test_bad_variables_are_named_with_the_rule(environment, told):
    assert told in refusal(environment=environment)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_wait = 1", "there is no setting 'max_wait'"),
        ("[limits]\nmax_wiat = 1", "there is no setting 'limits.max_wiat'; did you mean"),
        ("[grpc.listen]\nhost = 'h'", "grpc.listen: Input should be a valid string"),
        ("limits = 3", "there is no setting 'limits'"),
        ("[limits]\nmax_wait = 'soon'", "limits.max_wait: Input should be a valid number"),
        ("api_keys = 'one'", "api_keys: Input should be a valid tuple"),
        ("a = ", "no TOML"),
    ],
)
def test_bad_files_are_named_with_the_rule(write, text, told):
    file = write(text)
    message = refusal(file=file)
    assert str(file) in message
    assert told in message


def test_a_bad_flag_is_named_as_a_flag():
    assert refusal(flags={"grace": -1.0}).startswith("--grace: -1.0 is no positive")


def test_keys_are_not_shown():
    assert "secret" not in repr(load_config({}, environment={"TINKERGATE_API_KEY": "secret"}))


def test_the_page_of_settings_is_that_of_the_code():
    script = Path(__file__).parents[1] / "scripts" / "generate_settings.py"
    checked = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
