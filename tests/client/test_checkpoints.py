from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkergate_client import Client, Conflict, FailedPrecondition, NotFound, supervised_datum

TEXT = [5, 6, 7, 8]


def test_checkpoints_are_listed_shown_and_deleted(client: Client) -> None:
    with client.create_session() as session:
        model = session.create_model(rank=2)
        path = model.save_state("one", user_metadata={"k": "v"}, ttl=timedelta(days=2)).result()
        model.save_weights_for_sampler("two").result()
    newest, oldest = client.checkpoints.list(model.model_id)
    assert (newest.type, oldest.type) == ("sampler", "training")
    shown = client.checkpoints.get(path)
    assert shown == oldest
    assert (shown.path, shown.model_id, shown.lora_rank) == (path, model.model_id, 2)
    assert shown.user_metadata == {"k": "v"}
    assert shown.size_bytes > 0
    assert shown.expires is not None
    assert shown.expires - shown.created == timedelta(days=2)
    assert abs(datetime.now(UTC) - shown.created) < timedelta(hours=1)
    assert newest.expires is None
    for checkpoint in (newest, oldest):
        client.checkpoints.delete(checkpoint.path)
    assert list(client.checkpoints.list(model.model_id)) == []
    with pytest.raises(NotFound) as caught:
        client.checkpoints.get(path)
    assert caught.value.reason == "CHECKPOINT_NOT_FOUND"


def test_a_saved_adapter_can_be_imported_again(
    client: Client, gateway_process: Any, tmp_path: Path
) -> None:
    with client.create_session() as session:
        model = session.create_model(rank=2, seed=1)
        model.forward_backward([supervised_datum(TEXT, np.ones(4))])
        model.optim_step(learning_rate=1e-2)
        path = model.save_state("trained").result()
        (config,) = gateway_process.data_dir.rglob("trained/adapter_config.json")
        imported = client.checkpoints.import_adapter(
            config.parent, base_model=client.capabilities().default_model, user_metadata={"a": "b"}
        )
        assert imported.type == "training"
        assert imported.path.endswith("/weights/trained")
        assert imported.path != path
        assert imported.user_metadata == {"a": "b"}
        ours, theirs = (
            client.score([TEXT], model_path=each)[0].logprobs for each in (path, imported.path)
        )
        np.testing.assert_array_equal(ours, theirs)
    for each in (path, imported.path):
        client.checkpoints.delete(each)


def test_a_folder_that_lacks_a_file_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        client.checkpoints.import_adapter(tmp_path)


def test_an_adapter_that_is_none_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FailedPrecondition) as caught:
        client.checkpoints.import_adapter(tmp_path, base_model=client.capabilities().default_model)
    assert caught.value.reason == "CHECKPOINT_MISMATCH"


def test_published_given_another_end_and_named_file_by_file(client: Client) -> None:
    with client.create_session() as session:
        path = session.create_model(rank=2).save_state("marked").result()
    assert not client.checkpoints.get(path).public
    assert client.checkpoints.publish(path).public
    with pytest.raises(Conflict) as caught:
        client.checkpoints.publish(path)
    assert caught.value.reason == "NO_CHANGE"
    assert not client.checkpoints.unpublish(path).public
    ends = client.checkpoints.set_ttl(path, timedelta(hours=3)).expires
    assert ends is not None
    assert timedelta(hours=2.9) < ends - datetime.now(UTC) <= timedelta(hours=3)
    assert client.checkpoints.set_ttl(path, None).expires is None
    files = list(client.checkpoints.files(path))
    assert [file.name for file in files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "tinkergate.json",
    ]
    assert sum(file.size_bytes for file in files) == client.checkpoints.get(path).size_bytes
    assert {len(file.sha256) for file in files} == {64}
    client.checkpoints.delete(path)


def test_copies_outlive_their_original(client: Client) -> None:
    with client.create_session() as session:
        model = session.create_model(rank=2, seed=1)
        model.forward_backward([supervised_datum(TEXT, np.ones(4))])
        model.optim_step(learning_rate=1e-2)
        path = model.save_state("original").result()
        before = client.score([TEXT], model_path=path)[0].logprobs
        owned = session.copy_checkpoint(path, ttl=timedelta(days=1))
        assert owned.path == f"tinker://{session.session_id}:train:1/weights/original"
        assert owned.expires is not None
        # The numbers of models go on after that of the copy.
        assert session.create_model(rank=2).model_id == f"{session.session_id}:train:2"
        alone = client.checkpoints.copy(path)
        client.checkpoints.delete(path)
        for copied in (owned, alone):
            assert copied.copied_from == path
            after = client.score([TEXT], model_path=copied.path)[0].logprobs
            np.testing.assert_array_equal(before, after)
            client.checkpoints.delete(copied.path)


def test_external_weights(client: Client) -> None:
    with client.create_session() as session:
        model = session.create_model(rank=2)
        saved = model.save_weights_external("out", ttl=timedelta(hours=2))
        path = saved.result()
        assert path == f"tinker://{model.model_id}/external_weights/out"
        (operation,) = (each for each in client.operations(model.model_id) if each.seq_id == 1)
        assert client.operation(operation.name).result() == path
    shown = client.checkpoints.get(path)
    assert shown.type == "external"
    assert shown.expires is not None
    client.checkpoints.delete(path)


def test_a_session_is_moved_into_a_project(client: Client) -> None:
    with client.create_session() as session:
        moved = client.set_session_project(session.session_id, "p")
        assert moved.project_id == "p"
        (found,) = (each for each in client.sessions() if each.session_id == session.session_id)
        assert found.project_id == "p"
