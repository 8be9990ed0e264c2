"""tinker-cookbook's own supervised loop, unmodified, on a small data set of ours."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import chz
from datasets import Dataset
from program import ARGUMENTS, BASE_MODEL, main, tell
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import SupervisedDatasetFromHFDataset, conversation_to_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig

BATCH = 8
RENDERER = "role_colon"

QUESTIONS = ["sky", "grass", "snow", "coal", "blood", "gold", "sea", "night"]
COLOURS = ["blue", "green", "white", "black", "red", "yellow", "blue", "black"]


@chz.chz
class Colours(ChatDatasetBuilder):
    """Which colour things have, in place of a data set from a hub."""

    def __call__(self) -> tuple[SupervisedDatasetFromHFDataset, None]:
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is the colour of {question}?"},
                    {"role": "assistant", "content": colour},
                ]
            }
            for question, colour in zip(QUESTIONS, COLOURS, strict=True)
        ]
        renderer, length = self.renderer, self.common_config.max_length
        return SupervisedDatasetFromHFDataset(
            Dataset.from_list(rows),
            batch_size=self.common_config.batch_size,
            map_fn=lambda row: conversation_to_datum(row["messages"], renderer, length),
        ), None


def program() -> None:
    folder = Path(ARGUMENTS["folder"])
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=BASE_MODEL,
        renderer_name=RENDERER,
        max_length=200,
        batch_size=BATCH,
    )
    config = train.Config(
        log_path=str(folder),
        model_name=BASE_MODEL,
        recipe_name="interop_supervised",
        session_name="interop supervised",
        renderer_name=RENDERER,
        dataset_builder=Colours(common_config=common),
        learning_rate=5e-3,
        lr_schedule="constant",
        num_epochs=ARGUMENTS["steps"],
        lora_rank=8,
        save_every=ARGUMENTS["save_every"],
        eval_every=0,
        infrequent_eval_every=0,
    )
    asyncio.run(train.main(config))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tell("losses", losses=[line["train_mean_nll"] for line in lines if "train_mean_nll" in line])
    saved = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    tell("checkpoints", entries=[{k: str(v) for k, v in entry.items()} for entry in saved])


if __name__ == "__main__":
    main(program)
