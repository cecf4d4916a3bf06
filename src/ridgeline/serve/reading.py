"""Reading: a request's body, once, by one parser; what is wrong with it becomes a Refusal that names the field.

Bounds size and time before parsing. Duplicate keys: the last one counts.
"""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from .asks import (
    CalledTool,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Function,
    TextPart,
    TokenizeRequest,
    Tool,
)
from .fields import NamedSchema, SchemaFormat, StreamOptions, Strict, StructuredOutputs
from .refusal import Refusal, invalid, nearest
from .response_asks import InputItem, ResponsesRequest, TextItem

T = TypeVar("T", bound=Strict)

CLOSE = {"Connection": "close"}
PLACE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
NULL_ONLY = "Expected `null`, got "
BODIES = (ChatRequest, CompletionRequest, ResponsesRequest, TokenizeRequest, DetokenizeRequest)
SHAPES = (
    *BODIES, ChatMessage, CalledTool, Function, Tool, TextPart, StreamOptions, NamedSchema, SchemaFormat,
    StructuredOutputs, InputItem, TextItem,
)  # fmt: skip
SHOWN = 80  # characters of a name that is quoted back


async def read_body(request: Request, limit_bytes: int, limit_s: float) -> bytes:
    """All of it. 413, 415, 408 when it is too large, not JSON, or too slow."""
    headers = request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "invalid_value", "Compressed bodies are not read; send plain JSON.", headers=CLOSE)
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(
            415, "invalid_value", f"The body is {kind[:SHOWN]!r}; send Content-Type: application/json.", headers=CLOSE
        )
    announced = headers.get("content-length", "0")
    if not announced.isdigit() or len(announced) > 18 or int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(limit_s):
            return await _gather(request, limit_bytes)
    except TimeoutError:
        raise Refusal(
            408, "invalid_value", f"The body took longer than {limit_s:g} s; send it faster.", headers=CLOSE
        ) from None


async def _gather(request: Request, limit_bytes: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(
        413, "invalid_value", f"The body is larger than {limit_bytes} bytes (--max-body-bytes); send less.",
        headers=CLOSE,
    )  # fmt: skip


def parse(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """400 `invalid_json`, `unknown_parameter`, `unsupported_parameter` or `invalid_value`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8 ({error.reason} at byte {error.start}).", code="invalid_json") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def _explain(text: str) -> Refusal:
    found = PLACE.search(text)
    place = found[1] if found else ""
    said = text[: found.start()] if found else text
    if unknown := UNKNOWN.match(said):
        name = unknown[1][:SHOWN]
        known = {field.encode_name for shape in SHAPES for field in msgspec.structs.fields(shape)}
        return invalid(f"Unknown field `{name}`.{nearest(name, known)}", _joined(place, name), "unknown_parameter")
    if missing := MISSING.match(said):
        return invalid(f"The field `{missing[1]}` is missing.", _joined(place, missing[1]))
    if said.startswith(NULL_ONLY):
        return invalid(f"`{place}` is not supported here; leave it out.", place, "unsupported_parameter")
    if not place:
        return invalid(f"{said}.", code="invalid_json")
    return invalid(f"`{place}` is wrong: {said[0].lower()}{said[1:]}.", place)


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
