"""Configuration from flags, environment, file and defaults."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from tinkergate.backends.loops.settings import LoopsSettings
from tinkergate.config import (
    Config,
    ConfigError,
    EngineSettings,
    LocalBackendTable,
    RemoteBackendTable,
    environment_name,
    load_config,
)


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
    settings = settings_of(Config)
    names = [name for setting in settings if (name := environment_name(setting))]
    assert len(set(names)) == len(names) > 30
    assert {name for name in settings if not environment_name(name)} == {"backends", "models"}
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


NAMED = """
default_backend = "mint"
[backends.mint]
kind = "mint"
base_url = "https://mint.example/prefix/"
api_key_env = "KEY_OF_MINT"
poll_timeout = 20
[backends.small]
kind = "local"
models = ["/models/small"]
[models."Qwen/Qwen3-8B"]
name = "qwen3-8b"
aliases = ["qwen"]
tokenizer = "Qwen/Qwen3-8B"
[models."org/tiny.2"]
backend = "small"
name = "~/tiny"
"""


def test_backends_and_models_have_names_of_their_own(write):
    config = load_config({}, file=write(NAMED), environment={"KEY_OF_MINT": "sk-secret"})
    assert list(config.all_backends()) == ["mint", "small"]
    assert config.first_backend() == "mint"
    service = config.backends["mint"].service("mint")
    assert (service.name, service.dialect, service.api_key) == ("mint", "mint", "sk-secret")
    assert service.url == "https://mint.example/prefix"
    assert service.poll_timeout == 20.0
    assert config.backends["small"] == LocalBackendTable(kind="local", models=("/models/small",))
    assert config.models["Qwen/Qwen3-8B"].aliases == ("qwen",)
    assert config.models["org/tiny.2"].name == "~/tiny"
    assert "sk-secret" not in repr(config)
    assert "sk-secret" not in str(config.backends["mint"].model_dump())


def test_keys_come_from_files_too(write, tmp_path):
    (tmp_path / "key").write_text("tml-secret\n")
    file = write(f"[backends.far]\nkind = 'tinker'\napi_key_file = '{tmp_path / 'key'}'\n")
    config = load_config({}, file=file, environment={})
    assert config.backends["far"].service("far").api_key == "tml-secret"
    # The embedded engine stays, and is the default.
    assert list(config.all_backends()) == ["local", "far"]
    assert config.first_backend() == "local"


def test_the_environment_alone_makes_backends():
    environment = {
        "MINT_API_KEY": "sk-1",
        "MINT_BASE_URL": "http://127.0.0.1:9/",
        "TINKER_API_KEY": "tml-2",
    }
    config = load_config({}, environment=environment)
    assert list(config.all_backends()) == ["local", "mint", "tinker"]
    assert config.backends["mint"].service("mint").url == "http://127.0.0.1:9"
    assert config.backends["tinker"].service("tinker").api_key == "tml-2"
    off = environment | {"TINKERGATE_BACKENDS_FROM_ENVIRONMENT": "false"}
    assert list(load_config({}, environment=off).all_backends()) == ["local"]


def test_a_table_of_the_kind_takes_the_place_of_the_environments_backend(write):
    file = write("[backends.east]\nkind = 'mint'\nbase_url = 'http://127.0.0.1:1'\n")
    environment = {"MINT_API_KEY": "sk-1", "MINT_BASE_URL": "http://127.0.0.1:2"}
    config = load_config({}, file=file, environment=environment)
    assert list(config.backends) == ["east"]
    service = config.backends["east"].service("east")
    assert (service.url, service.api_key) == ("http://127.0.0.1:1", "sk-1")


def test_a_key_of_baseten_alone_makes_a_backend():
    environment = {
        "BASETEN_API_KEY": "secret",
        "LOOPS_BASE_URL": "http://127.0.0.1:9/",
        "LOOPS_TEAM": "ours",
    }
    config = load_config({}, environment=environment)
    assert list(config.all_backends()) == ["local", "loops"]
    service = config.backends["loops"].service("loops")
    assert (service.url, service.team) == ("http://127.0.0.1:9", "ours")
    assert service.api_key == "secret"
    assert "secret" not in repr(config)


def test_settings_of_loops_that_do_not_go_together_are_told_where_they_stand(write):
    file = write("[backends.far]\nkind = 'loops'\nreplicas = 2\nreuse_from_run_id = 'r'\n")
    environment = {"BASETEN_API_KEY": "k", "LOOPS_BASE_URL": "http://h"}
    with pytest.raises(ConfigError) as caught:
        load_config({}, file=file, environment=environment)
    assert f"{file}: backends.far: reuse_from_run_id goes with one replica" in str(caught.value)


def test_a_gateway_is_no_loops_to_itself():
    environment = {
        "BASETEN_API_KEY": "k",
        "LOOPS_BASE_URL": "http://127.0.0.1:8123",
        "TINKERGATE_HTTP": "127.0.0.1:8123",
    }
    with pytest.raises(ConfigError, match=r"LOOPS_BASE_URL: .* is this gateway's own address"):
        load_config({}, environment=environment)


def test_a_table_of_loops_has_settings_of_its_own(write):
    file = write(
        "[backends.far]\nkind = 'loops'\nteam = 'east'\navailability_model = 'spot'\n"
        "sampler_replicas = 2\nready_time = 60\n"
    )
    config = load_config({}, file=file, environment={"BASETEN_API_KEY": "k", "LOOPS_TEAM": "west"})
    service = config.backends["far"].service("far")
    assert isinstance(service, LoopsSettings)
    assert (service.team, service.availability_model) == ("east", "spot")
    assert (service.sampler_replicas, service.ready_time) == (2, 60.0)
    assert service.url == "https://api.baseten.co"


def test_flags_add_models_to_those_of_the_file(write):
    flags = {"models": {"qwen/other": {"name": "qwen3-x"}}}
    config = load_config(flags, file=write(NAMED), environment={"KEY_OF_MINT": "sk-1"})
    assert list(config.models) == ["Qwen/Qwen3-8B", "org/tiny.2", "qwen/other"]


def test_the_engine_goes_where_other_local_backends_are_unless_it_is_wanted():
    table = LocalBackendTable(kind="local")
    assert not Config(backends={"small": table}).has_engine
    both = Config(backends={"small": table}, engine=EngineSettings(enabled=True))
    assert list(both.all_backends()) == ["local", "small"]
    remote = RemoteBackendTable.model_validate({"kind": "mint"})
    assert Config(backends={"mint": remote}).has_engine


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[backends.x]\nkind = 'loops'", "backends.x: has no API key: set BASETEN_API_KEY"),
        (
            "[backends.x]\nkind = 'loops'\navailability_model = 'cheap'",
            "backends.x: availability_model: Input should be 'dedicated' or 'spot', not 'cheap'",
        ),
        (
            "[backends.x]\nkind = 'loops'\nreplicas = 0",
            "backends.x: replicas: must be a positive finite number, not 0",
        ),
        (
            "[backends.x]\nkind = 'loops'\nproject_id = 'p'",
            "backends.x: there is no setting 'project_id'",
        ),
        (
            "[backends.x]\nkind = 'other'",
            "backends.x: kind must be 'local', 'tinker', 'mint' or 'loops', not",
        ),
        ("[backends.x]\nbase_url = 'http://h'", "backends.x: has no kind"),
        ("[backends.x]\nkind = 'mint'", "backends.x: has no API key: set MINT_API_KEY"),
        ("[backends.x]\nkind = 'tinker'\napi_key_env = 'ABSENT'", "set ABSENT"),
        (
            "[backends.x]\nkind = 'tinker'\napi_key_file = '/nowhere/key'",
            "backends.x.api_key_file: '/nowhere/key': No such file",
        ),
        (
            "[backends.x]\nkind = 'mint'\napi_key = 'sk-1'",
            "api_key: keys do not stand in this file",
        ),
        (
            "[backends.x]\nkind = 'mint'\nbase_uri = 'http://h'",
            "there is no setting 'base_uri'; did you mean 'base_url'?",
        ),
        (
            "[backends.x]\nkind = 'mint'\nbase_url = 'h'\napi_key_env = 'KEY'",
            "backends.x: base_url is 'h'; must be an http or https URL",
        ),
        (
            "[backends.x]\nkind = 'mint'\npoll_timeout = 'soon'\nretry_time = -1",
            "poll_timeout: Input should be a valid number",
        ),
        (
            "[backends.x]\nkind = 'local'\ndtype = 'int8'",
            "backends.x.dtype: Input should be 'float32' or 'bfloat16', not 'int8'",
        ),
        (
            "[backends.x]\nkind = 'local'\nthreads = 0",
            "backends.x.threads: Input should be greater",
        ),
        ("[backends.x]\nkind = 'local'\ndevices = 'a'", "did you mean 'device'?"),
        (
            "[engine]\nenabled = true\n[backends.local]\nkind = 'local'",
            "backends.local: is the name of the embedded engine",
        ),
        ("default_backend = 'mint'", "default_backend: 'mint' is no backend; there are: local"),
        ("[models.a]\nbackend = 'x'", "models.a.backend: 'x' is no backend; there are: local"),
        ("[models.a]\n[models.b]\naliases = ['a']", "models.b: 'a' is a name of 'a' already"),
        (
            "[models.a]\ntokeniser = 'x'",
            "models.a.tokeniser: there is no setting 'tokeniser'; did you mean",
        ),
        ("profile = 'mint'", "profile: 'mint' restricts the HTTP door, and there is none"),
        (
            "default_backend = 'x'\n[backends.x]\nkind = 'mint'\napi_key_env = 'KEY'\n"
            "[models.a]\nname = '/models/a'",
            "models.a.name: '/models/a' is a folder; backend 'x' takes names only",
        ),
        ("models = 3", "models: Input should be a valid dictionary, not 3"),
    ],
)
def test_bad_tables_are_named_with_the_rule(write, text, told):
    file = write(text)
    message = refusal(file=file, environment={"KEY": "sk-1"})
    assert message.startswith(f"{file}: ")
    assert told in message


def test_all_that_is_wrong_is_told_a_line_each(write):
    file = write("graze = 1\n[limits]\nmax_wait = 'soon'\n[backends.x]\nkind = 'y'\n")
    with pytest.raises(ConfigError, match=r"and 2 more, see `tinkergate config check`") as caught:
        load_config({}, file=file, environment={})
    assert len(caught.value.problems) == 3
    assert caught.value.problems[1] == (
        f"{file}: limits.max_wait: Input should be a valid number, unable to parse string as a "
        "number, not 'soon'"
    )


def test_secrets_are_not_told_when_they_are_refused():
    for environment in ({"TINKERGATE_API_KEY": "geh eim"}, {"MINT_API_KEY": "geh eim"}):
        assert "geh eim" not in refusal(environment=environment)


def test_the_page_of_settings_is_that_of_the_code():
    script = Path(__file__).parents[1] / "scripts" / "generate_settings.py"
    checked = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
