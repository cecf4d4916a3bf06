"""Conversation: messages and tools as templates know them, made of what callers sent."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from .asks import CalledTool, ChatMessage, Tool
from .refusal import invalid

ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


def plain(message: ChatMessage, place: int) -> dict[str, Any]:
    """A message as templates know it. place: in the conversation."""
    content, param = message.content, f"messages[{place}]"
    calls = message.tool_calls or []
    if content is None and not calls:
        raise invalid(f"`{param}.content` is missing; only an assistant's tool_calls go without.", f"{param}.content")
    if calls and message.role != "assistant":
        raise invalid(f"`{param}.tool_calls`: only an assistant calls tools.", f"{param}.tool_calls")
    if message.role == "tool" and message.tool_call_id is None:
        raise invalid(
            f"`{param}.tool_call_id` is missing; it names the call that this answers.", f"{param}.tool_call_id"
        )
    text = "\n".join(part.text for part in content) if isinstance(content, list) else content
    role = "system" if message.role == "developer" else message.role
    made: dict[str, Any] = {"role": role, "content": text or ""}
    if calls:
        made["tool_calls"] = [_called(call) for call in calls]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            made[name] = value
    return made


def _called(call: CalledTool) -> dict[str, Any]:
    """Templates want arguments as an object; those that a model got wrong stay as they are."""
    arguments: Any = call.function.arguments
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        arguments = ARGUMENTS.decode(arguments or "{}")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def described(tool: Tool) -> dict[str, Any]:
    """A tool as templates know it."""
    function = tool.function
    made: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        made["description"] = function.description
    made["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": made}
