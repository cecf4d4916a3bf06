"""OpenAPI: the document of all routes, made of the same types that bodies are decoded with, so it cannot lie."""

from __future__ import annotations

from typing import Any

import msgspec

from ridgeline.kit.version import __version__

from .refusal import ErrorBody
from .routes import OFFERS, Offer

REFERENCE = "#/components/schemas/{name}"
JSON = "application/json"
EVENTS = "text/event-stream"


def document(model: str, *, has_keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1. model: the one that `model` fields may name. has_keys: routes need one."""
    types = [ErrorBody]
    types += [one for offer in OFFERS for one in (offer.takes, offer.gives, offer.streams) if one is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schema_of = dict(zip(map(str, types), schemas, strict=True))
    for name in ("ChatRequest", "CompletionRequest"):
        components[name]["properties"]["model"] = {"enum": [model]}
    for name in ("TokenizeRequest", "DetokenizeRequest"):
        components[name]["properties"]["model"] = {"enum": [model, None]}
    paths: dict[str, Any] = {}
    for offer in OFFERS:
        paths[offer.path] = {offer.method.lower(): _operation(offer, schema_of, model, has_keys)}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Ridgeline", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if has_keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return made


def _operation(offer: Offer, schema_of: dict[str, Any], model: str, has_keys: bool) -> dict[str, Any]:
    content = {offer.kind: {"schema": schema_of[str(offer.gives)]}}
    if offer.streams is not None:
        content[EVENTS] = {"schema": {"type": "string"}}
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
        parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
        operation["parameters"] = [parameter]
    if has_keys and not offer.is_open:
        operation["security"] = [{"key": []}]
    return operation
