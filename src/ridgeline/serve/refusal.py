"""Refusal: a request that gets no answer, as the one error object of every route (SERVING §3.1).

Names the status, the stable code, the field, the limit and the cure. Never carries a stack trace, a key or a prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import msgspec

from ridgeline.kit.errors import printable


class ErrorDetail(msgspec.Struct, frozen=True):
    """param: the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class Refusal(Exception):
    """headers: further response headers, as Retry-After."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.message = printable(message)
        self.headers = dict(headers or {})

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(ErrorDetail(self.message, kind_of(self.status), self.param, self.code))


def kind_of(status: int) -> str:
    """`type` of the error object."""
    kinds = {401: "authentication_error", 403: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    return Refusal(400, code, message, param=param)


def too_long(context: int, prompt: int, completion: int, param: str) -> Refusal:
    """In the words that clients look for (litellm)."""
    cure = "Shorten the prompt or ask for fewer tokens." if completion else "Shorten the prompt."
    return invalid(
        f"This model's maximum context length is {context} tokens. However, you requested {prompt + completion} tokens "
        f"({prompt} in the prompt, {completion} in the completion). {cure}",
        param, "context_length_exceeded",
    )  # fmt: skip


def nearest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean `max_tokens`?", or nothing."""
    found = difflib.get_close_matches(name[:64], sorted(known), 1, 0.6)
    return f" Did you mean `{found[0]}`?" if found else ""


def internal(request_id: str) -> Refusal:
    return Refusal(
        500, "internal_error", f"The server failed on request {request_id}. The fault is ours; please report it.",
        headers={"x-should-retry": "false"},
    )  # fmt: skip


def engine_down(message: str = "The engine is not running.") -> Refusal:
    return Refusal(503, "engine_down", message, headers={"Retry-After": "5"})
