"""Limits of request fields, each written once: as the constraint on the type that decoder and schema are made of.

Numbers: SERVING §7. A null is the same as no field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MOST_CHOICES = 512  # prompts x n of one request
MOST_SCHEMA = 64 << 10  # bytes of one schema or grammar
LONGEST = 2**31 - 1  # tokens; the schema says the context instead

Text = Annotated[str, Meta(max_length=1 << 24)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Label = Annotated[str, Meta(max_length=512)]
Salt = Annotated[str, Meta(min_length=1, max_length=512)]
MOST_ID = 2**31 - 2  # the schema says the vocabulary instead
TokenId = Annotated[int, Meta(ge=0, le=MOST_ID)]
Tokens = Annotated[int, Meta(ge=1, le=LONGEST)]
Kept = Annotated[int, Meta(ge=1, le=2**31 - 3)]  # tokens of a prompt, however long it is
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = StopString | Annotated[list[StopString], Meta(max_length=16)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(gt=0, le=10)]
Many = Annotated[int, Meta(ge=1, le=16)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 3)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
BiasedId = Annotated[str, Meta(pattern="^[0-9]{1,10}$")]
LogitBias = Annotated[dict[BiasedId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
StopIds = Annotated[list[TokenId], Meta(max_length=64)]
Labels = Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
OnlyFalse = Annotated[bool, Meta(extra_json_schema={"enum": [False]})]
OnlyTrue = Annotated[bool, Meta(extra_json_schema={"enum": [True]})]
FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
JsonObject = dict[str, Any]  # how long and how deep is checked where it is read
OnlyText = Annotated[list[Literal["text"]], Meta(min_length=1, max_length=1)]


class Strict(Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON object whose unknown fields are refused."""


class StreamOptions(Strict, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TextFormat(Strict, kw_only=True, tag_field="type", tag="text"):
    """No format."""


class ObjectFormat(Strict, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(Strict, kw_only=True):
    """strict is always so: a schema is enforced in full or refused."""

    name: FunctionName
    schema: JsonObject | None = None
    description: Annotated[str, Meta(max_length=4096)] | None = None
    strict: bool | None = None


class SchemaFormat(Strict, kw_only=True, tag_field="type", tag="json_schema"):
    json_schema: NamedSchema


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat


Choices = Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(min_length=1, max_length=256)]


class StructuredOutputs(Strict, kw_only=True):
    """Exactly one: a JSON schema, any JSON object, a regular expression of the whole answer, texts to choose from, or a
    grammar in llguidance's Lark."""

    json: JsonObject | None = None
    json_object: OnlyTrue | None = None
    regex: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    choice: Choices | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=MOST_SCHEMA)] | None = None


class Generation(Strict, kw_only=True):
    """What both generating routes take. A field of type null is known and cannot be honoured here."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    n: Many | None = None
    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    logit_bias: LogitBias | None = None
    priority: Priority | None = None
    return_token_ids: bool | None = None
    account: bool | None = None
    user: Label | None = None
    metadata: Labels | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: OnlyFalse | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=LONGEST)] | None = None
    cache_salt: Salt | None = None
    truncate_prompt_tokens: Kept | None = None
    prompt_logprobs: None = None

    @property
    def wants_usage(self) -> bool:
        """In the stream: asked for, or needed to carry the account."""
        options = self.stream_options
        return bool(self.account or (options is not None and options.include_usage))

    @property
    def wants_running_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
