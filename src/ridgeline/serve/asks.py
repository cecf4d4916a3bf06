"""Asks: the request bodies of every route. The decoder and /openapi.json are both made of these types."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from .fields import Generation, Label, Name, OnlyText, Strict, Text, TokenId, Tokens, TopLogprobs

Role = Literal["system", "developer", "user", "assistant"]
Scalar = bool | int | float | str
Ids = Annotated[list[TokenId], Meta(min_length=1, max_length=1 << 22)]

SomeText = Annotated[str, Meta(min_length=1, max_length=1 << 24)]
# What `prompt` may be. One type cannot say that a list never mixes them: reading checks it, the document lists them.
PROMPTS = (SomeText, Annotated[list[SomeText], Meta(min_length=1, max_length=256)], Ids,
           Annotated[list[Ids], Meta(min_length=1, max_length=256)])  # fmt: skip


class TextPart(Strict, kw_only=True):
    type: Literal["text"]
    text: Text


class ChatMessage(Strict, kw_only=True):
    """content: text, or parts of text. Fields of type null are what clients send back of our own answers."""

    role: Role
    content: Text | Annotated[list[TextPart], Meta(max_length=4096)]
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    refusal: None = None
    tool_calls: None = None
    tool_call_id: None = None
    function_call: None = None
    reasoning_content: None = None
    annotations: Annotated[list[None], Meta(max_length=0)] | None = None
    audio: None = None


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
TemplateValues = Annotated[dict[Annotated[str, Meta(min_length=1, max_length=64)], Scalar], Meta(max_length=64)]


class ChatRequest(Generation, kw_only=True):
    messages: Messages
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateValues | None = None
    modalities: OnlyText | None = None
    safety_identifier: Label | None = None
    tools: None = None
    tool_choice: None = None
    parallel_tool_calls: None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    reasoning_effort: None = None
    verbosity: None = None
    prompt_cache_key: None = None
    continue_final_message: None = None
    chat_template: None = None
    documents: None = None


class CompletionRequest(Generation, kw_only=True):
    """prompt: text, texts, ids, or lists of ids."""

    prompt: SomeText | Annotated[list[SomeText | TokenId | Ids], Meta(min_length=1, max_length=1 << 22)]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    parse_special: bool | None = None
    add_special_tokens: bool | None = None
    best_of: None = None
    suffix: None = None


class TokenizeRequest(Strict, kw_only=True):
    """Of a text (`prompt`), or of a conversation (`messages`): one of the two."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateValues | None = None
    tools: None = None


class DetokenizeRequest(Strict, kw_only=True):
    model: Name | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 22)]
