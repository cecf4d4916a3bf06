"""The harness tests itself: a target of known times, a virtual clock, and what the summary must show."""

from __future__ import annotations

import threading
import time

import pytest

from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.clock import VirtualClock
from ridgeline.kit.errors import UserError
from ridgeline.perf.ladder import RUNGS, Measured, configured, pool_bytes, predict_rung, rung_result
from ridgeline.perf.replay import Replay, RequestResult, rehearse_replay, replay, spread, summarise_replay
from ridgeline.perf.workload import Job
from ridgeline.state.event import TokenEvent

from .conftest import round_machine

FIRST_S, GAP_S = 0.05, 0.01


class KnownTarget:
    """Says that its first token came FIRST_S after the intended arrival and the next ones GAP_S apart."""

    def submit_to(self, request, deliver):
        if request.prompt[0] == 0:
            raise UserError("no zeros")

        def answer() -> None:
            for index in range(request.max_tokens):
                finish = "length" if index + 1 == request.max_tokens else None
                deliver(TokenEvent(request.id, (index,), request.arrival_s + FIRST_S + index * GAP_S, finish=finish))

        threading.Thread(target=answer).start()


def test_known_times_come_out_exactly():
    result = replay(KnownTarget(), [Job((1, 2), 5), Job((3,), 1)])
    first, second = result.requests
    assert first.ids == (0, 1, 2, 3, 4) and first.prompt_tokens == 2
    assert (first.ttft_s, first.tpot_s) == (pytest.approx(FIRST_S), pytest.approx(GAP_S))
    assert first.e2e_s == pytest.approx(FIRST_S + 4 * GAP_S)
    assert first.gaps_s == pytest.approx([GAP_S] * 4)
    assert second.tpot_s is None
    assert result.summary.output_tokens == 6
    assert result.summary.output_tokens_per_s == pytest.approx(6 / (FIRST_S + 4 * GAP_S))


def test_arrivals_are_kept_and_counted_from_their_intended_time():
    sent = []

    class Timed(KnownTarget):
        def submit_to(self, request, deliver):
            sent.append((request.prompt[0], request.arrival_s, time.perf_counter()))
            super().submit_to(request, deliver)

    result = replay(Timed(), [Job((1,), 1, 0.08), Job((2,), 1, 0.0), Job((3,), 1, 0.04)])
    assert [prompt for prompt, _, _ in sent] == [2, 3, 1]
    assert all(at >= arrival for _, arrival, at in sent)
    assert sent[-1][1] - sent[0][1] == pytest.approx(0.08)
    assert result.summary.wall_s == pytest.approx(0.08 + FIRST_S)
    assert 0 <= result.summary.late_s < 1


def test_a_refused_request_is_counted_and_in_no_percentile():
    result = replay(KnownTarget(), [Job((0,), 4), Job((1,), 2)])
    assert result.requests[0].error == "no zeros"
    assert (result.summary.failed, result.summary.requests) == (1, 2)
    assert result.summary.ttft_s.n == 1 and result.summary.output_tokens == 2


def test_a_generator_that_falls_behind_voids_the_run():
    rows = [RequestResult((1,), 1, at, 0.1, None, 0.1) for at in (0.0, 0.9)]
    assert not summarise_replay(rows, 0.009).is_void
    assert summarise_replay(rows, 0.011).is_void
    burst = [RequestResult((1,), 1, 0.0, 0.1, None, 0.1)]
    assert not summarise_replay(burst, 0.05).is_void  # all at once cannot be late


def test_percentiles_are_nearest_rank():
    hundred = spread([float(value) for value in range(100, 0, -1)])
    assert (hundred.p50, hundred.p90, hundred.p99, hundred.mean) == (50, 90, 99, 50.5)
    assert hundred.p99_is_thin and not spread([0.0] * 300).p99_is_thin
    one = spread([7.0, None])
    assert (one.n, one.p50, one.p99) == (1, 7, 7)
    assert spread([]) is None and spread([None]) is None


MODEL = "random:smollm2-135m"  # descriptors only: nothing is loaded
JOBS = [Job(tuple(range(10, 10 + prompt)), output) for prompt, output in ((40, 6), (90, 3), (17, 9), (60, 4))]


def config() -> EngineConfig:
    return EngineConfig(MODEL, threads=1, context=128, kv_bytes=pool_bytes(JOBS, 23040, 16))


def test_a_rehearsal_makes_every_token_and_takes_the_estimated_time():
    clock = VirtualClock()
    result = rehearse_replay(rehearse(config(), round_machine(1e9, 1e11), clock), clock, JOBS)
    assert [len(row.ids) for row in result.requests] == [6, 3, 9, 4]
    assert result.summary.failed == 0
    assert result.summary.wall_s == pytest.approx(clock.now())
    again = VirtualClock()
    assert rehearse_replay(rehearse(config(), round_machine(1e9, 1e11), again), again, JOBS) == result


def test_a_rehearsal_waits_for_arrivals():
    clock = VirtualClock()
    jobs = [Job((5, 6), 2, 0.0), Job((7, 8), 2, 1000.0)]  # nothing in common
    result = rehearse_replay(rehearse(config(), round_machine(1e9, 1e11), clock), clock, jobs)
    first, second = result.requests
    assert second.ttft_s == pytest.approx(first.ttft_s)  # alone, both
    assert result.summary.wall_s == pytest.approx(1000 + second.e2e_s)


def test_each_rung_is_a_configuration_and_the_ladder_climbs():
    """Predicted on a machine of round numbers: a cache beats none, a batch beats one, fewer bits beat more."""
    machine = round_machine(1e9, 1e11)
    rates = {rung.name: predict_rung(configured(config(), rung), machine, JOBS).output_tokens_per_s for rung in RUNGS}
    names = [rung.name for rung in RUNGS]
    assert names[0] == "naive" and names[-1] == "low-bit weights"
    assert rates["naive"] < rates["KV cache"] < rates["static batch"] <= rates["continuous"] * 1.001
    assert rates["continuous"] <= rates["paged"] * 1.05
    shared = {(c.model, c.threads, c.kv_bytes, c.context) for c in (configured(config(), rung) for rung in RUNGS)}
    assert len(shared) == 1  # the same model, memory and threads on every rung


def test_a_rungs_result_is_the_median_beside_the_prediction():
    def run(e2e_s: float) -> Measured:
        row = RequestResult((1, 2, 3), 1, 0.0, e2e_s / 2, e2e_s / 4, e2e_s, (e2e_s / 4, e2e_s / 4))
        return Measured(0.9, 0.1, 0.5, Replay((row,), summarise_replay([row], 0.0)))

    runs = [run(e2e_s) for e2e_s in (4.0, 1.0, 2.0)]
    result = rung_result(RUNGS[1], runs, runs[1].replay.summary)
    assert (result.tokens_per_s, result.ttft_s, result.tpot_s, result.itl_p99_s) == (1.5, 1.0, 0.5, 0.5)
    assert (result.predicted_tokens_per_s, result.predicted_ttft_s) == (3.0, 0.5)
    assert (result.cold_ttft_s, result.warm_ttft_s, result.load_s) == (0.9, 0.1, 0.5)
    assert result.first_ids == ((1, 2, 3),)
