"""The embedded engine as a backend, serving the micro model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from local_backend import make_backend

from tinkergate.backends.local.backend import LocalBackend


@pytest.fixture
async def backend(micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    backend = make_backend(micro_model_dir, tmp_path)
    await backend.start()
    yield backend
    await backend.close()
