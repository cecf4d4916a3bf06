"""Metrics: what the server counts, as Prometheus text (SERVING §11). Own registry; labels are bounded, never a caller.

Times are the server's: from the last byte of a request read to an event being handed to the socket.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.perf.shadow import Known, Shadow
from ridgeline.perf.totals import Window
from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import Pulse

from .backend import Backend
from .ledger_metrics import PREFIX, Aliased, Joined, LedgerMetrics
from .spread import Spread
from .windows import Windows

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
    640,
)  # fmt: skip
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 3, 5, 10)
RECENT = 512  # answers whose latencies the page shows
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


@dataclass(slots=True)
class Track:
    """One choice, as the caller sees it. Seconds on the monotonic clock."""

    begun_s: float
    prompt_tokens: int
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0
    admitted_s: float = 0.0
    planned_s: float = 0.0
    made_s: float = 0.0  # the step of the first token ended
    known: Known = field(default_factory=Known)


class Engine(Collector):
    """What the engine last told of itself, and what it has delivered; read when somebody scrapes."""

    def __init__(
        self, pulse: Callable[[], Pulse | None], age_s: Callable[[], float], delivered: Callable[[], int]
    ) -> None:
        self._pulse, self._age_s, self._delivered = pulse, age_s, delivered

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(PREFIX + "generation_tokens", "Tokens delivered.", self._delivered())
        pulse = self._pulse() or Pulse(0.0)
        numbers = (
            ("num_requests_running", "Sequences in the engine's plan.", pulse.running),
            ("num_requests_waiting", "Sequences admitted and not in it.", pulse.waiting),
            ("kv_cache_usage_perc", "Held of all blocks, 0 to 1.", pulse.blocks_held / max(pulse.blocks, 1)),
            ("heartbeat_age_seconds", "Since the engine's loop last turned.", self._age_s()),
        )
        for name, about, value in numbers:
            yield GaugeMetricFamily(PREFIX + name, about, value)
        blocks = GaugeMetricFamily(PREFIX + "blocks", "Blocks of the KV pool; they sum to all.", labels=["state"])
        for state, count in (("free", pulse.blocks_free), ("held", pulse.blocks_held), ("cached", pulse.blocks_cached)):
            blocks.add_metric([state], count)
        yield blocks


class Metrics:
    """Used on the event loop only."""

    def __init__(self, backend: Backend, age_s: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.delivered = 0
        self.registry.register(Engine(lambda: backend.pulse, age_s, lambda: self.delivered))
        self.windows = Windows(backend, self._paged)
        self.registry.register(LedgerMetrics(lambda: self.windows.totals))
        self.shadow = Shadow(backend.facts.block_tokens, backend.facts.prefix)
        count, spread = self._count, self._spread
        self._prompt = count("prompt_tokens", "Prompt tokens, computed or cached.")
        self._looked_up = count("prefix_cache_queries", "Prompt tokens looked up.")
        self._found = count("prefix_cache_hits", "Prompt tokens found.")
        self._ended = count("request_success", "Choices that ended, by how.", "finished_reason")
        self._preempted = count("num_preemptions", "Evictions of a running sequence.")
        self._again = count("recompute_tokens", "Tokens computed a second time.", "reason")
        self._drafted = count("spec_decode_num_draft_tokens", "Tokens guessed ahead and judged.")
        self._accepted = count("spec_decode_num_accepted_tokens", "Guessed tokens that stayed.")
        self._lost = count(
            "prefix_lost_tokens", "Prompt tokens a hit could have saved, by why not; at least.", "reason"
        )
        self._new = count("prefix_new_tokens", "Prompt tokens of whole blocks never seen before.")
        self._rejected = count("rejected", "Requests refused, by code.", "code")
        self._stalled = count("client_stall_seconds", "Time streams waited for readers.")
        self._ttft = spread("time_to_first_token_seconds", "Request read to first token handed over.", SECONDS)
        self._gap = Spread(PREFIX + "inter_token_latency_seconds", "Gaps between token events.", SECONDS)
        self.registry.register(self._gap)
        self._tpot = spread("request_time_per_output_token_seconds", "(E2E - TTFT) / (n - 1).", SECONDS)
        self._e2e = spread("e2e_request_latency_seconds", "Request read to last token handed over.", SECONDS)
        self._queue = spread("request_queue_time_seconds", "Admitted to first planned.", SECONDS)
        self._prefill = spread("request_prefill_time_seconds", "First planned to first token made.", SECONDS)
        self._decode = spread("request_decode_time_seconds", "First token made to last.", SECONDS)
        self._inference = spread("request_inference_time_seconds", "First planned to last token made.", SECONDS)
        self._ratio = Histogram(
            PREFIX + "prediction_ratio", "Measured over predicted, a page each.", ["what"], registry=self.registry,
            buckets=RATIOS,
        )  # fmt: skip
        self._prompts = spread("request_prompt_tokens", "Prompt tokens of a choice.", SIZES)
        self._answers = spread("request_generation_tokens", "Tokens of a choice.", SIZES)
        self.recent_ttft_s: deque[float] = deque(maxlen=RECENT)
        self.recent_tpot_s: deque[float] = deque(maxlen=RECENT)

    def _paged(self, window: Window) -> None:
        if window.summary is not None and window.summary.measured_per_predicted > 0:
            self._ratio.labels("steps").observe(window.summary.measured_per_predicted)

    def came(self, track: Track, tokens: int, event: TokenEvent) -> None:
        """An event is about to be handed to the socket."""
        if not tokens:
            return
        now_s = time.perf_counter()
        if track.first_s is None:
            track.first_s, track.made_s, track.planned_s = now_s, event.at_s, event.planned_s
            self._ttft.observe(now_s - track.begun_s)
            self.recent_ttft_s.append(now_s - track.begun_s)
        elif track.last_s is not None:
            self._gap.observe(now_s - track.last_s)
        track.last_s = now_s
        track.tokens += tokens
        self.delivered += tokens

    def ended(self, track: Track, reason: str, last: TokenEvent | None) -> None:
        """reason: stop, length, abort, deadline or error. last: its last event, if any came."""
        self.windows.ended()
        self._ended.labels(reason).inc()
        self._prompts.observe(track.prompt_tokens)
        self._answers.observe(track.tokens)
        if last is not None:
            self._prompt.inc(track.prompt_tokens)
            self._looked_up.inc(track.prompt_tokens)
            self._found.inc(min(last.tokens_cached, track.prompt_tokens))
            self._preempted.inc(last.preemptions)
            self._again.labels("preempted").inc(last.tokens_recomputed)
            self._drafted.inc(last.tokens_guessed)
            self._accepted.inc(last.tokens_accepted)
            cached = min(last.tokens_cached, track.prompt_tokens)
            for why, lost in self.shadow.lost(track.known, cached).items():
                self._lost.labels(why).inc(lost)
            self._new.inc(max(0, track.prompt_tokens - max(track.known.anybody, cached)))
            if track.planned_s:
                self._queue.observe(max(0.0, track.planned_s - track.admitted_s))
                self._prefill.observe(track.made_s - track.planned_s)
                self._decode.observe(last.at_s - track.made_s)
                self._inference.observe(last.at_s - track.planned_s)
        if track.first_s is not None and track.last_s is not None:
            self._e2e.observe(track.last_s - track.begun_s)
            if track.tokens > 1:
                tpot_s = (track.last_s - track.first_s) / (track.tokens - 1)
                self._tpot.observe(tpot_s)
                self.recent_tpot_s.append(tpot_s)

    def rejected(self, code: str) -> None:
        """By a stable code of ours: the set is small."""
        self._rejected.labels(code).inc()

    def stalled(self, seconds: float) -> None:
        self._stalled.inc(seconds)

    def _count(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, about, labels, registry=self.registry)

    def _spread(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, about, registry=self.registry, buckets=buckets)


async def metrics(request: HttpRequest) -> Response:
    """With several models every sample says whose it is."""
    lineup = request.app.lineup
    await lineup.fresh()
    joined = Joined({one.name: one.metrics.registry for one in lineup}, lineup.registry)
    text = generate_latest(joined if len(lineup) > 1 else lineup.first.metrics.registry)
    if request.app.is_aliasing:
        text += generate_latest(Aliased(joined))
    return Response(text, headers={"content-type": CONTENT_TYPE})
