"""tinker-cookbook's own reinforcement learning loop, unmodified, in a small world of ours: the
reward is the share of the answer's tokens that have even ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import chz
import tinker
from program import ARGUMENTS, BASE_MODEL, main, tell
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.rl import train
from tinker_cookbook.rl.types import (
    Action,
    ActionExtra,
    Env,
    EnvGroupBuilder,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer

RENDERER = "role_colon"
GROUPS = 4
GROUP_SIZE = 16
MAX_TOKENS = 8


class EvenTokens(Env):
    """One question, one answer."""

    def __init__(self, question: str) -> None:
        self.question = question

    async def initial_observation(self) -> tuple[tinker.ModelInput, list[str] | list[int]]:
        renderer = get_renderer(RENDERER, get_tokenizer(BASE_MODEL))
        prompt = renderer.build_generation_prompt([{"role": "user", "content": self.question}])
        return prompt, renderer.get_stop_sequences()

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        even = sum(token % 2 == 0 for token in action)
        return StepResult(
            reward=even / max(len(action), 1),
            episode_done=True,
            next_observation=tinker.ModelInput.from_ints([]),
            next_stop_condition=[],
        )


@dataclass(frozen=True)
class Group(EnvGroupBuilder):
    """Several tries at one question."""

    question: str

    async def make_envs(self) -> Sequence[Env]:
        return [EvenTokens(self.question) for _ in range(GROUP_SIZE)]


class Questions(RLDataset):
    """The same few questions in every batch."""

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        return [Group(f"Question {number}?") for number in range(GROUPS)]

    def __len__(self) -> int:
        steps: int = ARGUMENTS["steps"]
        return steps


@chz.chz
class QuestionsBuilder(RLDatasetBuilder):
    """Makes the questions."""

    async def __call__(self) -> tuple[RLDataset, None]:
        return Questions(), None


def program() -> None:
    folder = Path(ARGUMENTS["folder"])
    config = train.Config(
        log_path=str(folder),
        model_name=BASE_MODEL,
        recipe_name="interop_rl",
        renderer_name=RENDERER,
        dataset_builder=QuestionsBuilder(),
        learning_rate=2e-2,
        max_tokens=MAX_TOKENS,
        lora_rank=8,
        eval_every=0,
        save_every=0,
    )
    asyncio.run(train.main(config))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    key = "env/all/reward/total"
    tell("rewards", rewards=[line[key] for line in lines if key in line])
    keys = sorted({key for line in lines for key in line if key.startswith("optim/kl")})
    tell("kl", values={key: [line[key] for line in lines if key in line] for key in keys})


if __name__ == "__main__":
    main(program)
