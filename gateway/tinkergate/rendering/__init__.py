"""Chat messages to tokens and back, by a model's own chat template and tokenizer."""

from tinkergate.rendering.prompts import render_prompts
from tinkergate.rendering.responses import parse_responses
from tinkergate.rendering.texts import decode_texts, encode_texts
from tinkergate.rendering.tokenizer import ChatTokenizer
from tinkergate.rendering.tokenizers import Tokenizers
from tinkergate.rendering.training import render_training

__all__ = [
    "ChatTokenizer",
    "Tokenizers",
    "decode_texts",
    "encode_texts",
    "parse_responses",
    "render_prompts",
    "render_training",
]
