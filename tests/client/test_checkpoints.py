from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkergate_client import Client, FailedPrecondition, NotFound, supervised_datum

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
