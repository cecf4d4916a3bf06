"""Traces: a span a choice by the GenAI conventions, its parts inside, under the caller's own span."""

from __future__ import annotations

import pytest

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.serve.traces import Traces

from .live import live

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_spans_by_the_conventions(llm: LLM) -> None:
    reason = "the extra ridgeline[otel] is not installed"
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason=reason)
    export = pytest.importorskip("opentelemetry.sdk.trace.export", reason=reason)
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason=reason)
    kept, provider = memory.InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    with live(llm) as server:
        server.served.traces = Traces(provider, "tiny")
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hush"}], "max_tokens": 6, "ignore_eos": True}
        server("POST", "/v1/chat/completions", body, {"traceparent": PARENT, "x-request-id": "mine"})
        server("POST", "/v1/completions", {"model": "tiny", "prompt": "hi", "ignore_eos": True, "max_tokens": 900,
               "n": 16}, {"x-deadline-ms": "30"})  # fmt: skip
    spans = kept.get_finished_spans()
    whole = next(span for span in spans if span.name == "chat tiny")
    assert whole.attributes["gen_ai.operation.name"] == "chat" and whole.attributes["gen_ai.request.model"] == "tiny"
    assert whole.attributes["gen_ai.usage.output_tokens"] == 6 and whole.attributes["ridgeline.request_id"] == "mine"
    assert f"{whole.context.trace_id:032x}" in PARENT and f"{whole.parent.span_id:016x}" in PARENT
    parts = {span.name: span for span in spans if span.parent and span.parent.span_id == whole.context.span_id}
    assert set(parts) == {"queue", "prefill", "decode"}
    assert parts["queue"].end_time == parts["prefill"].start_time and parts["decode"].end_time <= whole.end_time
    assert parts["prefill"].end_time == parts["decode"].start_time and whole.start_time <= parts["queue"].start_time
    late = [span for span in spans if span.name == "text_completion tiny"]
    assert late and all(not span.status.is_ok for span in late)
    assert not any("hush" in str(span.attributes) for span in spans)


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match="otel"):
        Traces.otlp("http://127.0.0.1:4318/v1/traces", "tiny")
