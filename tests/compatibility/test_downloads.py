"""Both views of a checkpoint, from every backend: its files, and one archive."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from tinkergate_client import Client, DownloadProgress, supervised_datum

TEXT = [5, 80, 33, 14, 9, 200, 41]
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


class Stop(Exception):
    """Ends a download in the middle."""


def contents_of(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def save(client: Client, base_model: str, backend: str) -> str:
    """The path of a checkpoint that was trained a little, always in the same way."""
    with client.create_session() as session:
        model = session.create_model(
            base_model, backend=backend, rank=4, seed=11, train_unembed=False
        )
        model.forward_backward([supervised_datum(TEXT, [0, *[1] * (len(TEXT) - 1)])])
        model.optim_step(learning_rate=1e-2)
        path: str = model.save_state("to-go").result(60)
        return path


@pytest.fixture(scope="module")
def local_weights(client: Client, front: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the embedded engine saves, by the adapter's keys."""
    folder = tmp_path_factory.mktemp("local")
    client.checkpoints.download(save(client, front.base_model, "local"), folder)
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("backend", ["local", "tinker", "mint", "loops"])
def test_files_and_archive_of_every_backend(
    client: Client, front: Any, backend: str, local_weights: Any, tmp_path: Path
) -> None:
    path = save(client, front.base_model, backend)
    listed = {file.name: file for file in client.checkpoints.files(path)}
    assert set(listed) >= ADAPTER

    def stop(progress: DownloadProgress) -> None:
        if progress.name == "adapter_model.safetensors" and progress.done_bytes > 5_000:
            raise Stop

    with pytest.raises(Stop):
        client.checkpoints.download(path, tmp_path / "files", progress=stop)
    got = client.checkpoints.download(path, tmp_path / "files")
    files = contents_of(tmp_path / "files")
    assert {name: len(data) for name, data in files.items()} == {
        name: file.size_bytes for name, file in listed.items()
    }
    for file in got:
        assert file.sha256 == hashlib.sha256(files[file.name]).hexdigest()
        # Loops tells no checksums.
        assert file.verified == (backend != "loops") == bool(listed[file.name].sha256)
    assert json.loads(files["adapter_config.json"])["r"] == 4
    weights = load_file(tmp_path / "files" / "adapter_model.safetensors")
    assert weights.keys() == local_weights.keys()
    for key, weight in weights.items():
        np.testing.assert_allclose(weight, local_weights[key], rtol=1e-5, atol=1e-9)

    archive = client.checkpoints.download_archive(path, tmp_path / "a.tar.gz")
    assert archive.verified
    with tarfile.open(archive.path, "r:gz") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = contents_of(tmp_path / "unpacked")
    assert unpacked == {**files, "checkpoint_complete": b""}

    link = client.checkpoints.archive_url(path)
    with httpx.Client(trust_env=False) as stranger:
        assert stranger.get(link.url).content == archive.path.read_bytes()
        half = link.size_bytes // 2
        rest = stranger.get(link.url, headers={"Range": f"bytes={half}-"})
        assert rest.content == archive.path.read_bytes()[half:]
        for name, listed_file in listed.items():
            assert stranger.get(listed_file.url).content == files[name]
    client.checkpoints.delete(path)
