from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tinkergate.engine.model_files import ModelFiles
from tinkergate.errors import GatewayError


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path / "cache")


def test_a_tokenizer_is_found_by_a_models_name(files: ModelFiles, micro_model_dir: Path) -> None:
    files.add("micro", str(micro_model_dir), aliases=["tiny"])
    for name in ("micro", "tiny", str(micro_model_dir)):
        assert files.tokenizer_path(name) == micro_model_dir


def test_its_weights_need_not_be_there(
    files: ModelFiles, micro_model_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(
        micro_model_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    assert files.tokenizer_path(str(folder)) == folder
    with pytest.raises(GatewayError, match="has no weights"):
        files.path(str(folder))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nope", "there is no base model 'nope' here"),
        ("some-owner/some-model", "`hf download some-owner/some-model --include 'token"),
        ("/nowhere/at/all", "'/nowhere/at/all' has no tokenizer"),
    ],
)
def test_what_is_missing_is_told_with_what_to_do(files: ModelFiles, name: str, said: str) -> None:
    with pytest.raises(GatewayError) as caught:
        files.tokenizer_path(name)
    assert said in str(caught.value)
