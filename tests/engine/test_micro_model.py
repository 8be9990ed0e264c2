"""The shared micro model is what its fixture promises."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_micro_model_loads_and_predicts_unevenly(micro_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(micro_model_dir)
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    with torch.no_grad():
        logits = model(torch.arange(40)[None]).logits
    assert logits.shape == (1, 40, 512)
    assert logits.std() > 0.5


def test_micro_tokenizer_round_trips_any_text(micro_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(micro_model_dir)
    text = "Grüße, 世界! 🦊\tx = y * 2\n\n  license"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert max(ids) < len(tokenizer) == 512
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]
