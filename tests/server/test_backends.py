"""Several backends in one gateway process, real ones: engines with base models of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tinkergate.v1 import BackendKind, CreateModelRequest, ModelServiceStub
from tinkergate_client import NotFound, connect, supervised_datum

TOKENS = [5, 60, 7, 80, 9, 100]


@pytest.fixture(scope="module")
def other_model_dir(micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model with other weights."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(micro_model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    changed = {name: np.ascontiguousarray(array * 1.25) for name, array in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_config(tmp_path: Path, text: str) -> tuple[str, str]:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    return ("--config", str(file))


def train(model: Any, steps: int = 3) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(model.forward_backward([supervised_datum(TOKENS, [0, 1, 1, 1, 1, 1])]))
        model.optim_step(learning_rate=1e-2)
    return [loss.result().loss for loss in losses]


def test_two_engines_serve_one_client_interleaved(
    start_gateway: Any, tmp_path: Path, other_model_dir: Path
) -> None:
    text = f"""
        [engine]
        enabled = true
        [backends.second]
        kind = "local"
        [models."Qwen/Qwen3-8B"]
        backend = "second"
        name = "{other_model_dir}"
        aliases = ["qwen"]
        """
    gateway = start_gateway(*write_config(tmp_path, text))
    with connect(gateway.address) as client, client.create_session() as session:
        capabilities = client.capabilities()
        assert [backend.name for backend in capabilities.backends] == ["local", "second"]
        here, there = capabilities.models
        assert (here.backend, there.backend) == ("local", "second")
        assert (there.name, there.upstream_name) == ("Qwen/Qwen3-8B", str(other_model_dir))
        assert list(there.aliases) == ["qwen", other_model_dir.name]
        # What scripts load the tokenizer by is there.
        assert Path(there.tokenizer_id) == other_model_dir
        assert capabilities.default_model == here.name

        with pytest.raises(NotFound, match="on backend 'local'"):
            session.create_model("qwen", backend="local", rank=4)
        first = session.create_model(rank=4, seed=1)
        second = session.create_model("qwen", rank=4, seed=1)
        assert first.info().backend == "local"
        assert (second.info().backend, second.info().base_model) == ("second", "Qwen/Qwen3-8B")
        data = [supervised_datum(TOKENS, [0, 1, 1, 1, 1, 1])]
        pending = []
        for _ in range(3):  # nothing is waited for: both backends work at once
            for model in (first, second):
                pending.append(model.forward_backward(data))
                model.optim_step(learning_rate=1e-2)
        losses = [each.result().loss for each in pending]
        # Each as if it were alone.
        for name, together in (("", losses[0::2]), ("Qwen/Qwen3-8B", losses[1::2])):
            alone = session.create_model(name, rank=4, seed=1)
            assert train(alone) == together
        assert losses[0] != losses[1]

        scores = {
            source: client.score([TOKENS], base_model=source)[0].logprobs.tolist()
            for source in ("micro", "qwen", "Qwen/Qwen3-8B")
        }
        assert scores["qwen"][1:] == scores["Qwen/Qwen3-8B"][1:]
        assert scores["qwen"][1:] != scores["micro"][1:]

        path = second.save_state("kept").result()
        first.save_state("kept").result()
        saved = client.checkpoints.get(path)
        assert (saved.backend, saved.base_model) == ("second", "Qwen/Qwen3-8B")
    assert gateway.stop() == 0

    # What the second engine saved is found, sampled and gone on with, under the public name.
    again = start_gateway(*write_config(tmp_path, text), folder=gateway.data_dir.parent)
    with connect(again.address) as client, client.create_session() as session:
        assert client.checkpoints.get(path).base_model == "Qwen/Qwen3-8B"
        assert client.score([TOKENS], model_path=path)[0].logprobs.size == len(TOKENS)
        resumed = session.create_model_from_checkpoint(path, with_optimizer=True)
        assert resumed.info().base_model == "Qwen/Qwen3-8B"
        assert resumed.info().optimizer_steps == 3
    assert again.stop() == 0


def test_a_backend_that_is_down_is_refused_and_taken_up_when_it_is_there(
    start_gateway: Any, tmp_path: Path, other_model_dir: Path
) -> None:
    folder = tmp_path / "later"
    text = f"""
        [engine]
        enabled = true
        [backends.late]
        kind = "local"
        [models.late]
        backend = "late"
        name = "{folder}"
        """
    gateway = start_gateway(*write_config(tmp_path, text))
    with connect(gateway.address) as client, client.create_session() as session:
        listed = client.capabilities().backends[1]
        assert (listed.name, listed.kind) == ("late", BackendKind.BACKEND_KIND_LOCAL)
        assert str(folder) in listed.unavailable
        with grpc.insecure_channel(gateway.address) as channel:
            request = CreateModelRequest(session_id=session.session_id, base_model="late")
            with pytest.raises(grpc.RpcError, match="backend 'late' is unavailable") as caught:
                ModelServiceStub(channel).CreateModel(request)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert train(session.create_model(rank=4, seed=1))  # the other one works

        shown = served(gateway.address)
        assert shown.stderr.startswith("backend late is unavailable: ")
        shutil.copytree(other_model_dir, folder)
        deadline = time.monotonic() + 60
        while client.capabilities().backends[1].unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert train(session.create_model("late", rank=4, seed=1))
        lines = [json.loads(line) for line in served(gateway.address, "--json").stdout.splitlines()]
        assert [line["backend"] for line in lines] == ["local", "late"]
        assert lines[1]["upstream_name"] == str(folder)


def served(address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinkergate", "models", "served", "--address", address, *flags],
        capture_output=True,
        text=True,
        check=True,
    )


def test_an_alias_lets_scripts_run_on_a_folder(start_gateway: Any, other_model_dir: Path) -> None:
    gateway = start_gateway("--alias", f"Qwen/Qwen3-8B={other_model_dir}")
    with connect(gateway.address) as client, client.create_session() as session:
        # The engine's own models stay, and so does the default one.
        here, there = client.capabilities().models
        assert there.name == "Qwen/Qwen3-8B"
        assert client.capabilities().default_model == here.name
        assert train(session.create_model("Qwen/Qwen3-8B", rank=4))
