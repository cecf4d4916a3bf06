"""ResponsesRequest: the body of /v1/responses. Stateless: what came before is sent again, nothing is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from .asks import Role, Scalar
from .fields import (
    FunctionName,
    JsonObject,
    Label,
    Labels,
    Name,
    ObjectFormat,
    OnlyFalse,
    Salt,
    Share,
    Strict,
    Temperature,
    Text,
    TextFormat,
    Tokens,
    TopLogprobs,
)

Nothing = Annotated[list[Any], Meta(max_length=0)]


class TextItem(Strict, kw_only=True):
    """Of a content. annotations and logprobs are what clients send back of our own answers; they mean nothing here."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Content = Text | Annotated[list[TextItem], Meta(max_length=4096)]


class InputItem(Strict, kw_only=True):
    """A message (role, content), a call that was made (call_id, name, arguments), its output (call_id, output), or
    thoughts (content). id and status are what clients send back."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] | None = None
    role: Role | None = None
    content: Content | None = None
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    arguments: Text | None = None
    call_id: Label | None = None
    output: Content | None = None
    id: Label | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    summary: Annotated[list[TextItem], Meta(max_length=4096)] | None = None
    encrypted_content: None = None
    phase: None = None
    caller: None = None
    namespace: None = None
    async_: None = None


class ResponseTool(Strict, kw_only=True):
    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Meta(max_length=1 << 16)] | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ResponseNamedTool(Strict, kw_only=True):
    type: Literal["function"]
    name: FunctionName


class ResponseSchemaFormat(Strict, kw_only=True, tag_field="type", tag="json_schema"):
    """strict is always so."""

    name: FunctionName
    schema: JsonObject
    description: Annotated[str, Meta(max_length=4096)] | None = None
    strict: bool | None = None


class TextSettings(Strict, kw_only=True):
    format: TextFormat | ObjectFormat | ResponseSchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponsesRequest(Strict, kw_only=True):
    """input: text, or items in order."""

    model: Name
    input: (
        Annotated[str, Meta(min_length=1, max_length=1 << 24)]
        | Annotated[list[InputItem], Meta(min_length=1, max_length=4096)]
    )
    instructions: Text | None = None
    stream: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    metadata: Labels | None = None
    store: OnlyFalse | None = None
    background: OnlyFalse | None = None
    truncation: Literal["disabled"] | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Meta(max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: Salt | None = None
    safety_identifier: Label | None = None
    user: Label | None = None
    account: bool | None = None
    chat_template_kwargs: (
        Annotated[dict[Annotated[str, Meta(min_length=1, max_length=64)], Scalar], Meta(max_length=64)] | None
    ) = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    max_tool_calls: None = None
    stream_options: None = None
