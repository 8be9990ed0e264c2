"""What the engine is compared with: plain PyTorch, `transformers` and PEFT, as their guides use
them. Padded batches, `generate`, nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

Tokens = NDArray[np.int64]


def load(folder: Path) -> Any:
    """The base model in float32, with the attention that `transformers` chooses."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class PaddedLoop:
    """A LoRA training loop over batches padded to their longest sequence."""

    def __init__(self, folder: Path, rank: int, learning_rate: float) -> None:
        config = LoraConfig(
            r=rank,
            lora_alpha=32,
            target_modules=[
                *("q_proj", "k_proj", "v_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj", "lm_head"),
            ],
        )
        self._model = get_peft_model(load(folder), config)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=learning_rate, betas=(0.9, 0.95), eps=1e-12, weight_decay=0
        )

    def step(self, batch: Sequence[Tokens]) -> float:
        """One optimizer step on the sum of the next-token losses; answers that sum."""
        longest = max(len(tokens) for tokens in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.int64)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            mask[row, : len(tokens)] = 1
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        labels = ids.masked_fill(mask == 0, -100)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()


def generate(model: Any, prompts: Sequence[Tokens], new_tokens: int) -> int:
    """Sample from left-padded prompts in one batch; answers how many tokens were drawn."""
    longest = max(len(tokens) for tokens in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, tokens in enumerate(prompts):
        ids[row, longest - len(tokens) :] = torch.from_numpy(tokens)
        mask[row, longest - len(tokens) :] = 1
    with torch.inference_mode():
        drawn = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
    return int(len(prompts) * (drawn.shape[1] - longest))
