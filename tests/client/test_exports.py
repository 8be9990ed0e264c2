from __future__ import annotations

import types

import tinkergate_client


def test_all_names_what_the_package_exports() -> None:
    exported = {
        name
        for name, value in vars(tinkergate_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert exported == set(tinkergate_client.__all__)


def test_every_exported_name_is_there() -> None:
    for name in tinkergate_client.__all__:
        assert getattr(tinkergate_client, name) is not None
