"""The micro model's tokenizer, and others made of it by another chat template."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tinkergate.rendering import ChatTokenizer

MakeTokenizer = Callable[..., ChatTokenizer]


@pytest.fixture(scope="session")
def micro(micro_model_dir: Path) -> ChatTokenizer:
    return ChatTokenizer.load(micro_model_dir, "micro")


@pytest.fixture(scope="session")
def tokenizer_with(
    micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> MakeTokenizer:
    """The micro model's tokenizer with a chat template of the test's own; an empty one takes the
    template away."""

    def build(template: str, **generation_config: object) -> ChatTokenizer:
        folder = tmp_path_factory.mktemp("tokenizer") / "model"
        shutil.copytree(micro_model_dir, folder)
        (folder / "chat_template.jinja").unlink()
        if template:
            (folder / "chat_template.jinja").write_text(template)
        if generation_config:
            import json

            (folder / "generation_config.json").write_text(json.dumps(generation_config))
        return ChatTokenizer.load(folder, "micro")

    return build
