"""Traces: an OpenTelemetry span a choice, with its queue, prefill and decode inside, by the GenAI conventions.

The names are pinned here, since they still move. Needs ridgeline[otel]; imported only when traces are asked for.
Never a prompt or an answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ridgeline.kit.errors import UserError
from ridgeline.kit.version import __version__
from ridgeline.state.event import TokenEvent

from .metrics import Track

SYSTEM = "gen_ai.provider.name"
OPERATION = "gen_ai.operation.name"
MODEL = "gen_ai.request.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH = "gen_ai.response.finish_reasons"
INPUT = "gen_ai.usage.input_tokens"
OUTPUT = "gen_ai.usage.output_tokens"
CACHED = "gen_ai.usage.cache_read.input_tokens"
FIRST = "gen_ai.server.time_to_first_token"
REQUEST = "ridgeline.request_id"
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/responses": "chat"}


class Traces:
    """provider: a TracerProvider; `otlp` makes one that sends to a collector. Called on the event loop: spans are only
    handed over, a thread of the library sends them."""

    def __init__(self, provider: Any, model: str) -> None:
        self._provider, self._model = provider, model
        self._tracer = provider.get_tracer("ridgeline", __version__)
        self._offset_s = time.time() - time.perf_counter()  # from the engine's clock to the wall's

    @classmethod
    def otlp(cls, endpoint: str, model: str) -> Traces:
        """Sends to an OTLP/HTTP endpoint. UserError without the extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise UserError(f"traces need OpenTelemetry ({error.name}): pip install 'ridgeline[otel]'.") from error
        provider = TracerProvider(resource=Resource.create({"service.name": "ridgeline"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider, model)

    def of(self, model: str) -> Traces:
        """Of another model, sent the same way."""
        return Traces(self._provider, model)

    def ended(self, track: Track, reason: str, last: TokenEvent | None, about: Mapping[str, str]) -> None:
        """about: route, id of the request, and the caller's traceparent, as far as known."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        operation = OPERATIONS.get(about.get("route", ""), "text_completion")
        parent = TraceContextTextMapPropagator().extract({"traceparent": about.get("traceparent", "")})
        attributes = {
            SYSTEM: "ridgeline", OPERATION: operation, MODEL: self._model, REQUEST: about.get("request_id", ""),
            INPUT: track.prompt_tokens, OUTPUT: track.tokens, FINISH: (reason,),
        }  # fmt: skip
        if last is not None:
            attributes |= {RESPONSE_ID: last.request, CACHED: last.tokens_cached}
        if track.first_s is not None:
            attributes[FIRST] = track.first_s - track.begun_s
        span = self._tracer.start_span(
            f"{operation} {self._model}", parent, SpanKind.SERVER, attributes, start_time=self._ns(track.begun_s)
        )
        if reason in ("error", "deadline"):
            span.set_status(Status(StatusCode.ERROR, reason))
        inside = set_span_in_context(span)
        if track.planned_s and last is not None:
            marks = (("queue", track.admitted_s, track.planned_s), ("prefill", track.planned_s, track.made_s),
                     ("decode", track.made_s, last.at_s))  # fmt: skip
            for name, begin_s, end_s in marks:
                child = self._tracer.start_span(name, inside, start_time=self._ns(begin_s))
                child.end(self._ns(max(begin_s, end_s)))
        span.end(self._ns(track.last_s or time.perf_counter()))

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()

    def _ns(self, at_s: float) -> int:
        return round((at_s + self._offset_s) * 1e9)
