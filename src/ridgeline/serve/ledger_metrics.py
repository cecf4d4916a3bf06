"""LedgerMetrics: the engine's own account as Prometheus families: seconds by phase and operator, causes, joules.

Sums of pages (windows.py), read when somebody scrapes. Joules that no meter saw say `estimate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ridgeline.perf.totals import Totals

PREFIX = "ridgeline_"
# vLLM gives these the same meaning and name after its own prefix
VLLM = "vllm:"
ALIASES = frozenset(
    {
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries",
        "prefix_cache_hits", "prompt_tokens", "generation_tokens", "request_success", "num_preemptions",
        "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens",
        "request_generation_tokens", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
        "estimated_flops_per_gpu", "estimated_read_bytes_per_gpu",
    }
)  # fmt: skip


class LedgerMetrics(Collector):
    """totals: as they are when scraped."""

    def __init__(self, totals: Callable[[], Totals]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        totals = self._totals()
        tables: tuple[tuple[str, str, tuple[str, ...], Mapping[Any, float]], ...] = (
            ("step_time_seconds", "Engine time; rows sum to all that was busy.", ("phase", "op"), totals.step_s),
            ("bound_seconds", "Engine time by the verdict of its page.", ("cause",), totals.bound_s),
            ("energy_joules", "Above idle by phase; source says meter or estimate.", ("phase", "source"),
             totals.energy_j),
            ("phase_seconds", "Step time by phase.", ("phase",), totals.phase_s),
        )  # fmt: skip
        for name, about, labels, rows in tables:
            family = CounterMetricFamily(PREFIX + name, about, labels=labels)
            for key, value in rows.items():
                family.add_metric([key] if isinstance(key, str) else list(key), value)
            yield family
        for name, about, value in (
            ("engine_steps", "Steps computed.", totals.steps),
            ("engine_idle_seconds", "Nobody had asked for anything.", totals.idle_s),
            ("estimated_flops_per_gpu", "Counted from the Program.", totals.flops),
            ("estimated_read_bytes_per_gpu", "Weights and KV, counted from the Program.", totals.read_bytes),
        ):
            yield CounterMetricFamily(PREFIX + name, about, value)
        if (last := totals.last) is not None and last.verdict is not None and last.summary is not None:
            verdict = GaugeMetricFamily(PREFIX + "verdict", "Share of the newest page's cause.", labels=["cause"])
            verdict.add_metric([last.verdict.cause], last.verdict.share)
            yield verdict
            ratio = last.summary.measured_per_predicted
            yield GaugeMetricFamily(PREFIX + "prediction_ratio_last", "Steps of the newest page, measured.", ratio)
            yield from _choices(last.summary.choices)


def _choices(told: Mapping[str, Any]) -> Iterator[Metric]:
    """Of an engine that chooses how it makes its steps (place auto), as of the newest page."""
    if "now" not in told:
        return
    yield CounterMetricFamily(PREFIX + "place_switches", "Changes of the way steps are made.", told["switches"])
    way = GaugeMetricFamily(PREFIX + "place_way", "1: steps are made so.", labels=["way"])
    for name in told["ways"]:
        way.add_metric([name], float(name == told["now"]))
    yield way
    if told["log"]:
        last = told["log"][-1]
        gap = GaugeMetricFamily(
            PREFIX + "place_gap_seconds", "Token to token, since the last switch.", labels=["source"]
        )
        gap.add_metric(["seen"], last["seen"]["mean_gap_s"])
        if last["forecast"] is not None:
            gap.add_metric(["forecast"], last["forecast"]["gap_s"])
        yield gap


class Joined(Collector):
    """The families of several models' registries as one each, their samples with `model_name`."""

    def __init__(self, registries: Mapping[str, Collector], of_none: Collector | None = None) -> None:
        """By model; of_none: what belongs to none of them."""
        self._registries, self._of_none = registries, of_none

    def collect(self) -> Iterator[Metric]:
        joined: dict[str, Metric] = {}
        parts: list[tuple[dict[str, str], Collector]] = [] if self._of_none is None else [({}, self._of_none)]
        parts += [({"model_name": name}, registry) for name, registry in self._registries.items()]
        for labels, registry in parts:
            for family in registry.collect():
                one = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    one.add_sample(sample.name, {**labels, **sample.labels}, sample.value, sample.timestamp)
        yield from joined.values()


class Aliased(Collector):
    """The families of another collector whose meaning vLLM shares, under its names."""

    def __init__(self, families: Collector) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families.collect():
            name = family.name.removeprefix(PREFIX)
            if name in ALIASES:
                alias = Metric(VLLM + name, family.documentation, family.type)
                for sample in family.samples:
                    alias.add_sample(VLLM + sample.name.removeprefix(PREFIX), sample.labels, sample.value)
                yield alias
