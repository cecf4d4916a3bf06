"""Answers: the response bodies of every route. UNSET fields are not written; None is written as null."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from ridgeline.perf.ledger import RequestLedger


class PromptDetails(Struct, frozen=True):
    cached_tokens: int = 0


class CompletionDetails(Struct, frozen=True):
    reasoning_tokens: int = 0


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()


class Account(Struct, frozen=True):
    """The ledger of every choice (EXPLAIN §5), and over all: wall time by interval, cost by phase, in nanoseconds."""

    choices: list[RequestLedger]
    wall_ns: dict[str, int]
    cost_ns: dict[str, int]
    share_rule: str


class TopToken(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopToken]


class ChatLogprobs(Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(Struct, frozen=True):
    """Four lists of one length; text_offset counts characters from the start of the prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class WrittenFunction(Struct, frozen=True):
    """arguments: JSON, as text. In pieces of a stream what is not new is left out."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class WrittenCall(Struct, frozen=True):
    """index: in pieces of a stream only."""

    function: WrittenFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Message(Struct, frozen=True):
    """content: null when there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[WrittenCall] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    account: Account | UnsetType = UNSET
    truncated_prompt_tokens: int | UnsetType = UNSET


class Delta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[WrittenCall] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType = UNSET


class Chunk(Struct, frozen=True, kw_only=True):
    """What pieces of every stream have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    account: Account | UnsetType = UNSET
    truncated_prompt_tokens: int | UnsetType = UNSET


class ChatChunk(Chunk, frozen=True, kw_only=True):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class TextChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType = UNSET


class TextCompletion(Chunk, frozen=True, kw_only=True):
    """Also one chunk of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class Embedding(Struct, frozen=True):
    """embedding: of length 1; as base64 of little-endian float32 when so asked."""

    embedding: list[float] | str
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class Embedded(Struct, frozen=True):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Cancelled(Struct, frozen=True):
    id: str
    object: Literal["request.cancelled"] = "request.cancelled"
    cancelled: bool = True


class ModelCard(Struct, frozen=True):
    id: str
    created: int
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "ridgeline"


class ModelList(Struct, frozen=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Tokenized(Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct, frozen=True):
    prompt: str


class TokenizerInfo(Struct, frozen=True):
    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


class Version(Struct, frozen=True):
    version: str


class Word(Struct, frozen=True):
    """status: of all; models: of each, where there are several and the caller may know."""

    status: str
    models: dict[str, str] | UnsetType = UNSET


class Props(Struct, frozen=True):
    """What was loaded, and how: the engine's facts and the defaults of sampling."""

    model: str
    engine: dict[str, Any]
    defaults: dict[str, float | int]
