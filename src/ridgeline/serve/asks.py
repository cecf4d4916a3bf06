"""Asks: the request bodies of every route. The decoder and /openapi.json are both made of these types."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from .fields import (
    LONGEST,
    FunctionName,
    Generation,
    JsonObject,
    Label,
    Name,
    OnlyText,
    Salt,
    Strict,
    Text,
    TokenId,
    Tokens,
    TopLogprobs,
)

Role = Literal["system", "developer", "user", "assistant", "tool"]
Scalar = bool | int | float | str
Ids = Annotated[list[TokenId], Meta(min_length=1, max_length=1 << 22)]

SomeText = Annotated[str, Meta(min_length=1, max_length=1 << 24)]
# What `prompt` may be. One type cannot say that a list never mixes them: reading checks it, the document lists them.
PROMPTS = (SomeText, Annotated[list[SomeText], Meta(min_length=1, max_length=256)], Ids,
           Annotated[list[Ids], Meta(min_length=1, max_length=256)])  # fmt: skip


class TextPart(Strict, kw_only=True):
    type: Literal["text"]
    text: Text


class CalledFunction(Strict, kw_only=True):
    """arguments: a JSON object, as text."""

    name: FunctionName
    arguments: Text


class CalledTool(Strict, kw_only=True):
    id: Label
    function: CalledFunction
    type: Literal["function"] = "function"
    index: Annotated[int, Meta(ge=0, le=4096)] | None = None


class ChatMessage(Strict, kw_only=True):
    """content: text, or parts of text; null beside tool_calls. Fields of type null are what clients send back of our
    own answers."""

    role: Role
    content: Text | Annotated[list[TextPart], Meta(max_length=4096)] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    refusal: None = None
    tool_calls: Annotated[list[CalledTool], Meta(max_length=128)] | None = None
    tool_call_id: Label | None = None
    function_call: None = None
    reasoning_content: Text | None = None
    annotations: Annotated[list[None], Meta(max_length=0)] | None = None
    audio: None = None


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
TemplateValues = Annotated[dict[Annotated[str, Meta(min_length=1, max_length=64)], Scalar], Meta(max_length=64)]


class Function(Strict, kw_only=True):
    """parameters: a JSON schema. strict: calls obey it also when the model may choose."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=1 << 16)] | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Strict, kw_only=True):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict, kw_only=True):
    name: FunctionName


class NamedTool(Strict, kw_only=True):
    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[list[Tool], Meta(max_length=128)]


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
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Meta(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    prompt_cache_key: Salt | None = None
    verbosity: Literal["medium"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    continue_final_message: None = None
    chat_template: None = None
    documents: None = None


class CompletionRequest(Generation, kw_only=True):
    """prompt: text, texts, ids, or lists of ids."""

    prompt: SomeText | Annotated[list[SomeText | TokenId | Ids], Meta(min_length=1, max_length=1 << 22)]
    max_tokens: Annotated[int, Meta(ge=0, le=LONGEST)] | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    parse_special: bool | None = None
    add_special_tokens: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None
    suffix: None = None


class TokenizeRequest(Strict, kw_only=True):
    """Of a text (`prompt`), or of a conversation (`messages`): one of the two."""

    model: Name | None = None
    prompt: Annotated[str, Meta(max_length=1 << 20)] | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateValues | None = None
    tools: Tools | None = None


class DetokenizeRequest(Strict, kw_only=True):
    model: Name | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 22)]
