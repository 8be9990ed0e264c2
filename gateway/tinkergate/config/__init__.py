"""Configuration: the settings of every room, from four places; see `tinkergate.config.loading`."""

from tinkergate.config.loading import Loaded, load_config, read_config
from tinkergate.config.places import SHORT_NAMES, ConfigError, environment_name
from tinkergate.config.rules import broken_here
from tinkergate.config.settings import Config, EngineSettings, LogSettings, Profile
from tinkergate.config.tables import (
    BackendTable,
    LocalBackendTable,
    LoopsBackendTable,
    ModelTable,
    RemoteBackendTable,
    ServiceTable,
)

__all__ = [
    "SHORT_NAMES",
    "BackendTable",
    "Config",
    "ConfigError",
    "EngineSettings",
    "Loaded",
    "LocalBackendTable",
    "LogSettings",
    "LoopsBackendTable",
    "ModelTable",
    "Profile",
    "RemoteBackendTable",
    "ServiceTable",
    "broken_here",
    "environment_name",
    "load_config",
    "read_config",
]
