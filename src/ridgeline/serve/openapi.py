"""OpenAPI: the document of all routes, made of the same types that bodies are decoded with, so it cannot lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ridgeline.kit.version import __version__

from .asks import PROMPTS
from .fields import LONGEST, MOST_ID
from .refusal import ErrorBody
from .routes import OFFERS, Offer

REFERENCE = "#/components/schemas/{name}"
JSON = "application/json"
EVENTS = "text/event-stream"
TOOL_FIELDS = (("ChatRequest", "tools"), ("ChatRequest", "functions"), ("ResponsesRequest", "tools"))
EFFORT_FIELDS = (("ChatRequest", "reasoning_effort"), ("Reasoning", "effort"))
SPOKEN = {"content": {"not": {"type": "null"}}}
NO_CALLS = {"tool_calls": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]}}
# What a message needs depends on its role, which no type can say.
ONLY: dict[str, dict[str, Any]] = {
    **{role: {**SPOKEN, **NO_CALLS} for role in ("system", "developer", "user")},
    "assistant": SPOKEN,
    "tool": {**SPOKEN, **NO_CALLS, "tool_call_id": {"type": "string"}},
}
HAS_TEXT = {"type": "string"}
ITEMS: list[dict[str, Any]] = [
    {"required": ["role", "content"],
     "properties": {"type": {"enum": ["message", None]}, "content": {"not": {"type": "null"}},
                    "role": {"enum": ["system", "developer", "user", "assistant"]}}},
    {"required": ["type", "call_id", "name", "arguments"],
     "properties": {"type": {"const": "function_call"}, "call_id": HAS_TEXT, "arguments": HAS_TEXT,
                    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}}},
    {"required": ["type", "call_id", "output"],
     "properties": {"type": {"const": "function_call_output"}, "call_id": HAS_TEXT,
                    "output": {"not": {"type": "null"}}}},
]  # fmt: skip
NULL = {"type": "null"}
FREE = {"enum": [None, "none", "auto"]}
SOME = {"type": "array", "minItems": 1}
# Choices that need tools; the older names stand for the newer ones and never beside them.
TOOLED: dict[str, list[dict[str, Any]]] = {
    "ChatRequest": [
        {"properties": {"tool_choice": FREE, "functions": NULL, "function_call": NULL}},
        {"required": ["tools"], "properties": {"tools": SOME, "functions": NULL, "function_call": NULL}},
        {"properties": {"function_call": FREE, "tools": NULL, "tool_choice": NULL}},
        {"required": ["functions"], "properties": {"functions": SOME, "tools": NULL, "tool_choice": NULL}},
    ],
    "ResponsesRequest": [
        {"properties": {"tool_choice": FREE}},
        {"required": ["tools"], "properties": {"tools": SOME}},
    ],
}
CALLING = {"role": {"enum": ["assistant"]}, "tool_calls": {"type": "array", "minItems": 1}}


def document(
    models: Sequence[str], vocabulary: int, context: int, *, has_keys: bool, has_tools: bool = True,
    has_efforts: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """OpenAPI 3.1. models: whom `model` fields may name. vocabulary, context: of the largest of them. has_keys: routes
    need one. has_tools, has_efforts: whether any model knows such fields."""
    types: list[Any] = [ErrorBody, *PROMPTS]
    types += [one for offer in OFFERS for one in (offer.takes, offer.gives, offer.streams) if one is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schema_of = dict(zip(map(str, types), schemas, strict=True))
    for name in ("ChatRequest", "CompletionRequest", "ResponsesRequest", "EmbeddingsRequest"):
        components[name]["properties"]["model"] = {"enum": [*models]}
    for name in ("TokenizeRequest", "DetokenizeRequest"):
        components[name]["properties"]["model"] = {"enum": [*models, None]}
    prompts = [schema_of[str(kind)] for kind in PROMPTS]
    components["CompletionRequest"]["properties"]["prompt"] = {"anyOf": prompts}
    components["EmbeddingsRequest"]["properties"]["input"] = {"anyOf": prompts}
    components["TokenizeRequest"]["oneOf"] = [_given("prompt", "string"), _given("messages", "array")]
    components["ChatMessage"]["anyOf"] = [
        {"required": ["content"], "properties": {"role": {"enum": [role]}, **ONLY[role]}} for role in ONLY
    ] + [{"required": ["tool_calls"], "properties": CALLING}]
    refused = [*(() if has_tools else TOOL_FIELDS), *(() if has_efforts else EFFORT_FIELDS)]
    for name, field in refused:
        components[name]["properties"][field] = NULL
    for name, either in TOOLED.items():
        components[name]["anyOf"] = either
    components["InputItem"]["anyOf"] = ITEMS
    _bound([components, prompts], {MOST_ID: vocabulary - 1, LONGEST: context - 1})
    paths: dict[str, Any] = {}
    for offer in OFFERS:
        paths[offer.path] = {offer.method.lower(): _operation(offer, schema_of, models, has_keys)}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Ridgeline", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if has_keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return made


def _given(name: str, kind: str) -> dict[str, Any]:
    """A schema that holds when the field is there and not null."""
    return {"required": [name], "properties": {name: {"type": kind}}}


def _bound(schema: Any, most: Mapping[int, int]) -> None:
    """Token ids end where the models' do, numbers of tokens at what a context leaves beside the shortest prompt."""
    if isinstance(schema, dict):
        if schema.get("maximum") in most:
            schema["maximum"] = most[schema["maximum"]]
        for value in schema.values():
            _bound(value, most)
    elif isinstance(schema, list):
        for value in schema:
            _bound(value, most)


def _operation(offer: Offer, schema_of: dict[str, Any], models: Sequence[str], has_keys: bool) -> dict[str, Any]:
    content = {offer.kind: {"schema": schema_of[str(offer.gives)]}}
    if offer.streams is not None:
        event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        content[EVENTS] = {"schema": event}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    codes = [*offer.errors, 500, *(() if offer.is_open or not has_keys else (401,))]
    for code in sorted(set(codes)):
        shape = schema_of[str(offer.gives if offer.is_open and code == 503 else ErrorBody)]
        responses[str(code)] = {"description": "Refused.", "content": {JSON: {"schema": shape}}}
    operation: dict[str, Any] = {"operationId": offer.path.strip("/").replace("/", "_"), "responses": responses}
    if offer.takes is not None:
        schema = schema_of[str(offer.takes)]
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if "{id}" in offer.path:
        parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": models[0]}
        operation["parameters"] = [parameter]
    if offer.is_of_one:
        operation["parameters"] = [{"name": "model", "in": "query", "required": False, "schema": {"enum": [*models]}}]
    if has_keys and not offer.is_open:
        operation["security"] = [{"key": []}]
    return operation
