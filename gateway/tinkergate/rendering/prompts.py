"""Conversations as prompts for the model to go on with."""

from __future__ import annotations

from collections.abc import Callable

from tinkergate.errors import invalid_field
from tinkergate.rendering.messages import Chat, each_chat, read_variables
from tinkergate.rendering.tokenizer import ChatTokenizer, TemplateRefusal
from tinkergate.tensors import token_bytes
from tinkergate.v1 import (
    Chunk,
    EncodedTextChunk,
    ModelInput,
    RenderPromptRequest,
    RenderPromptResponse,
    StopTokens,
)


def render_prompts(request: RenderPromptRequest) -> Callable[[ChatTokenizer], RenderPromptResponse]:
    """Work for a tokenizer: one prompt a conversation, and what ends the model's message. Raises
    GatewayError: INVALID for what the template refuses, UNSUPPORTED without a template."""

    def work(tokenizer: ChatTokenizer) -> RenderPromptResponse:
        variables = read_variables(request.template_variables_json)

        def prompt(chat: Chat) -> ModelInput:
            try:
                text = tokenizer.render(chat.messages, chat.tools, variables, asking=True).text
            except TemplateRefusal as error:
                raise invalid_field(chat.field, f"the chat template refuses it: {error}") from None
            tokens = token_bytes(tokenizer.encode(text))
            return ModelInput(chunks=[Chunk(encoded_text=EncodedTextChunk(tokens=tokens))])

        return RenderPromptResponse(
            prompts=each_chat(request.conversations, tokenizer, prompt),
            stop_tokens=StopTokens(values=tokenizer.stop_tokens),
        )

    return work
