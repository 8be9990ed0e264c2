"""Model folders that tests of every room share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB_SIZE = 512
CONTEXT_LENGTH = 512


@pytest.fixture(scope="session")
def micro_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random float32 weights in a Hugging Face folder: 2 layers, width 64, 4 query and
    2 key-value heads, tied embeddings, 512 tokens, 512 positions, and a byte-level BPE tokenizer
    that round-trips any text and has a chat template. The same in every run."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "micro"
    tokenizer = _train_tokenizer()
    tokenizer.save_pretrained(folder)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        # Ten times the usual, so that the predictions are far from uniform and an error in any
        # part of the network is seen in them.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20_240_607)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def _train_tokenizer():  # type: ignore[no-untyped-def]  # transformers is not typed
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(REPOSITORY / "LICENSE")], trainer)
    assert bpe.get_vocab_size() == VOCAB_SIZE
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def default_model_dir() -> Path:
    """The default model's folder: real weights, converted into the cache once per machine. Skips
    where its package is not installed, unless TINKERGATE_REQUIRE_MODEL is set."""
    pytest.importorskip("torch")
    from tinkergate.engine.model_files import DEFAULT_MODEL, ModelFiles
    from tinkergate.errors import GatewayError

    try:
        return ModelFiles().path(DEFAULT_MODEL)
    except GatewayError as error:
        if os.environ.get("TINKERGATE_REQUIRE_MODEL"):
            raise
        pytest.skip(str(error))
