"""Routes: every path, its method, who may use it, what it takes and gives. Router and /openapi.json are made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.routing import Router

from ridgeline.kit.version import __version__
from ridgeline.perf.verdict import Verdict

from .answering import chosen, served_by
from .answers import (
    Cancelled,
    ChatChunk,
    ChatCompletion,
    Detokenized,
    Embedded,
    ModelCard,
    ModelList,
    Props,
    TextCompletion,
    Tokenized,
    TokenizerInfo,
    Version,
    Word,
)
from .asks import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .chat import chat
from .completions import completions
from .embeddings import EmbeddingsRequest, embeddings
from .events import json_response
from .health import health, live, ready
from .live_page import FILES, LiveEngine, live_engine, page
from .metrics import metrics
from .refusal import Refusal
from .response_answers import ResponseAnswer, ResponseEvent
from .response_asks import ResponsesRequest
from .responses import responses
from .served import DEFAULTS, Served
from .tokens import detokenize, tokenize, tokenizer_info

Endpoint = Callable[[HttpRequest], Awaitable[Response]]


@dataclass(frozen=True)
class Offer:
    """One path. takes: the body; gives: of a 200; streams: of each event when `stream` is true."""

    path: str
    endpoint: Endpoint
    gives: Any
    takes: Any = None
    streams: Any = None
    is_open: bool = False
    kind: str = "application/json"
    errors: tuple[int, ...] = ()
    verb: str = ""
    is_of_one: bool = False  # `?model=` chooses

    @property
    def method(self) -> str:
        return self.verb or ("GET" if self.takes is None else "POST")


async def models(request: HttpRequest) -> Response:
    return json_response(ModelList([_card(one) for one in request.app.lineup]))


async def model(request: HttpRequest) -> Response:
    return json_response(_card(chosen(request, request.path_params["id"])))


def _card(served: Served) -> ModelCard:
    return ModelCard(served.name, served.created, served.context)


async def cancel(request: HttpRequest) -> Response:
    """End a request of the same key, wherever it is. Its caller gets 409 or an error event."""
    name = request.path_params["id"]
    found = [job for job in request.app.lineup.jobs if job.answers_to(name, request.state.tenant)]
    if not found:
        raise Refusal(404, "request_not_found", "No such request of this key is under way.", param="id")
    for job in found:
        job.stop()
    return json_response(Cancelled(name))


async def version(request: HttpRequest) -> Response:
    return json_response(Version(__version__))


async def props(request: HttpRequest) -> Response:
    served = served_by(request)
    return json_response(Props(served.name, msgspec.to_builtins(served.facts), dict(DEFAULTS)))


async def why(request: HttpRequest) -> Response:
    """The live verdict. Off the event loop: it takes some tenths of a second."""
    served = served_by(request)
    return json_response(await served.off_loop(served.backend.why))


async def openapi(request: HttpRequest) -> Response:
    return json_response(request.app.document)


BODY_ERRORS = (400, 404, 408, 413, 415)
BUSY = (409, 429, 503)
OFFERS = (
    Offer("/v1/chat/completions", chat, ChatCompletion, ChatRequest, ChatChunk, errors=(*BODY_ERRORS, *BUSY)),
    Offer(
        "/v1/completions", completions, TextCompletion, CompletionRequest, TextCompletion, errors=(*BODY_ERRORS, *BUSY)
    ),
    Offer("/v1/responses", responses, ResponseAnswer, ResponsesRequest, ResponseEvent, errors=(*BODY_ERRORS, *BUSY)),
    Offer("/v1/embeddings", embeddings, Embedded, EmbeddingsRequest, errors=(*BODY_ERRORS, *BUSY)),
    Offer("/v1/models", models, ModelList),
    Offer("/v1/models/{id}", model, ModelCard, errors=(404,)),
    Offer("/v1/requests/{id}", cancel, Cancelled, errors=(404,), verb="DELETE"),
    Offer("/tokenize", tokenize, Tokenized, TokenizeRequest, errors=BODY_ERRORS),
    Offer("/detokenize", detokenize, Detokenized, DetokenizeRequest, errors=BODY_ERRORS),
    Offer("/tokenizer_info", tokenizer_info, TokenizerInfo, is_of_one=True, errors=(400, 404)),
    Offer("/props", props, Props, is_of_one=True, errors=(400, 404)),
    Offer("/metrics", metrics, str, kind="text/plain"),
    Offer("/why", why, Verdict, is_of_one=True, errors=(400, 404)),
    Offer("/live", live_engine, LiveEngine, is_of_one=True, errors=(400, 404)),
    Offer("/version", version, Version),
    Offer("/openapi.json", openapi, dict[str, Any]),
    Offer("/health", health, Word, is_open=True, errors=(503,)),
    Offer("/health/live", live, Word, is_open=True, errors=(503,)),
    Offer("/health/ready", ready, Word, is_open=True, errors=(503,)),
    Offer("/ping", live, Word, is_open=True, errors=(503,)),
)
LACKING = {
    path: f"{path} needs a model that scores pairs of texts; the models here write text. Use /v1/embeddings."
    for path in ("/v1/rerank", "/v1/score")
}
OPEN = frozenset(offer.path for offer in OFFERS if offer.is_open) | frozenset(FILES)


async def not_found(scope: Any, receive: Any, send: Any) -> None:
    """Names the right path where there is one."""
    path = scope["path"]
    known = {offer.path for offer in OFFERS}
    if path in LACKING:
        raise Refusal(404, "not_found", LACKING[path])
    right = path[3:] if path.startswith("/v1/v1/") else f"/v1{path}"
    hint = f" Use {right}." if right in known else " /openapi.json lists the paths."
    raise Refusal(404, "not_found", f"There is no path {path[:200]!r} here.{hint}")


def router() -> Router:
    routes = [
        HttpRoute(offer.path.replace("{id}", "{id:path}"), offer.endpoint, methods=[offer.method]) for offer in OFFERS
    ]
    routes += [HttpRoute(path, page, methods=["GET"]) for path in FILES]
    return Router(routes, redirect_slashes=False, default=not_found)
