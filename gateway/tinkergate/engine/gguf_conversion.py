"""From a GGUF file to a Hugging Face folder, through `transformers`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path

import gguf as gguf_package
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tinkergate.engine.model_folder import check_model_folder
from tinkergate.errors import ErrorReason, GatewayError, Kind

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder`: float32 safetensors, configuration, tokenizer
    with its chat template. Needs about 1.5 GB of memory."""
    with _quiet(), _read_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # The weights are plain floats now, but the model still says that they are quantized, and
        # `save_pretrained` refuses such models.
        del model.config.quantization_config
        model.hf_quantizer = None
        for mark in ("is_quantized", "quantization_method"):
            model.__dict__.pop(mark, None)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def verify(folder: Path) -> None:
    """Load the folder as the engine will, and check that the model knows the capital of France:
    each token of the answer must be its most likely one. Raises GatewayError."""
    check_model_folder(folder)
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
    )
    prompt, answer = tokenizer(chat)["input_ids"], tokenizer(ANSWER)["input_ids"]
    answer.append(tokenizer.eos_token_id)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    said = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
    if said != answer:
        raise GatewayError(
            Kind.INTERNAL,
            ErrorReason.ERROR_REASON_INTERNAL,
            f"the converted model answers {QUESTION!r} with {tokenizer.decode(said)!r}; "
            f"must be {ANSWER!r}",
        )


@contextmanager
def _read_once() -> Iterator[None]:
    """Let `transformers` parse the GGUF file once. It does so three times otherwise, for the
    tokenizer, the configuration and the weights, which is a third of all the work."""
    original = gguf_package.GGUFReader
    gguf_package.GGUFReader = cache(original)
    try:
        yield
    finally:
        gguf_package.GGUFReader = original


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `transformers` in our output."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        # Its GGUF reader shows one all the same.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
