"""Answers of /v1/responses: items, the response, and the events of its stream. UNSET fields are not written."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from .answers import Account, CompletionDetails, PromptDetails, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class OutputPart(Struct, frozen=True):
    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[Any] | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET


class OutputItem(Struct, frozen=True):
    """A message, a call of a function, or thoughts."""

    type: Literal["message", "function_call", "reasoning"]
    id: str
    status: Status
    role: Literal["assistant"] | UnsetType = UNSET
    content: list[OutputPart] | UnsetType = UNSET
    summary: list[OutputPart] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class InputDetails(PromptDetails, frozen=True):
    cache_write_tokens: int = 0


class ResponseUsage(Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int


class Incomplete(Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ResponseText(Struct, frozen=True):
    format: dict[str, Any]


class ResponseAnswer(Struct, frozen=True, kw_only=True):
    """What was asked comes back with it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: bool = False
    error: None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: bool = False
    temperature: float | None = None
    text: ResponseText
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]]
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str]
    account: Account | UnsetType = UNSET


class ResponseEvent(Struct, frozen=True, kw_only=True):
    """One event of a stream; which fields it has is its type's."""

    type: str
    sequence_number: int
    response: ResponseAnswer | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputPart | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
