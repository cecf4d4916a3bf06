"""What `ridgeline bench` does with one workload."""
# size: measure_workload takes what a person asked for, by name

from __future__ import annotations

import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.perf.observe import Seen
from ridgeline.perf.replay import Replay, ReplaySummary, Spread, replay
from ridgeline.perf.request_verdict import judge_request
from ridgeline.perf.verdict import judge
from ridgeline.perf.workload import NAMES, Job, named_workload, read_workload
from ridgeline.report.account_lines import account_lines
from ridgeline.report.roofline_page import check_file
from ridgeline.report.units import digits, percent, seconds
from ridgeline.report.verdict_lines import verdict_line
from ridgeline.run.machine import load_or_measure, raise_ceilings
from ridgeline.run.noise import CpuWatch

from .calibrating import calibrate_first
from .conversation import account_of
from .keepsakes import Keepsakes
from .roofline import show_roofline
from .screen import Screen

WARM = tuple(Job(tuple(range(first, first + 32)), 4) for first in (100, 140))  # take the cold start out; nothing shared
BUSY = 0.1  # share of the machine others may use before the result is marked


def measure_workload(
    model: str, workload: str | None, options: dict[str, Any], *, repeats: int, json: bool, keepsakes: Keepsakes,
    roofline: Path | None = None,
) -> None:  # fmt: skip
    """Run it `repeats` times (other token ids each time for named ones) and print the median run."""
    if roofline is not None:
        check_file(roofline)
    screen = Screen(json)
    if workload is None:
        raise UserError(f"no workload was named: give --workload FILE, or one of {', '.join(NAMES[:-1])}; or --ladder.")
    check_repeats(repeats)
    keepsakes.check()
    calibrate_first(screen, model, options)
    with screen.fetching(model) as progress:
        llm = LLM(model, progress=progress, **options)
    with closing(llm):
        screen.notes(model, llm.notes)
        runs_of = [jobs_of(workload, llm, repetition) for repetition in range(repeats)]
        raise_ceilings(load_or_measure(llm.facts.threads))  # bandwidth moves from hour to hour: measure it in this run
        cold, warm = (replay(llm, [job]).requests[0].ttft_s or 0.0 for job in WARM)
        llm.account(reset=True)
        watch, began_s = CpuWatch(), time.perf_counter()
        with screen.counting(workload, sum(len(jobs) for jobs in runs_of)) as progress_of:
            runs = [replay(llm, jobs, progress_of) for jobs in runs_of]
        seen = Seen("bench", time.perf_counter() - began_s, foreign_share=watch.foreign_cpu_share())
        foreign = seen.foreign_share
        account = account_of(llm)
        evidence = llm.evidence(seen)
        verdict = judge(evidence)
        middle = _middle(runs)
        _print_run(screen, middle, repeats, foreign)
        screen.say(f"first request of the fresh process: {seconds(cold)}; one more like it: {seconds(warm)} (left out)")
        for line in account_lines(account, is_random=llm.facts.is_random):
            screen.say(line)
        screen.say(verdict_line(verdict))
        keepsakes.write(llm, screen)
        if roofline is not None:
            show_roofline(screen, llm, account, f"{Path(model).name}, {Path(workload).name}", roofline, foreign)
        screen.finish(
            "bench", model=model, workload=workload, options=options, facts=llm.facts, requests=middle.requests,
            summary=middle.summary, repeats=[run.summary for run in runs], account=account,
            cold_ttft_s=cold, warm_ttft_s=warm, foreign_cpu_share=foreign, is_disturbed=is_busy(foreign),
            verdict=verdict, evidence=evidence,
            request_verdicts=[judge_request(one, verdict) for one in llm.ledger().requests],
        )  # fmt: skip


def jobs_of(workload: str, llm: LLM, repetition: int) -> list[Job]:
    """A named workload, or a file."""
    named = named_workload(workload, llm.facts.vocabulary, repetition)
    return named if named is not None else read_workload(Path(workload), llm.encode)


def check_repeats(repeats: int) -> None:
    if not 1 <= repeats <= 100:
        raise UserError(f"--repeats is {repeats}; it must be between 1 and 100.")


def is_busy(foreign: float | None) -> bool:
    return foreign is not None and foreign > BUSY


def _middle(runs: list[Replay]) -> Replay:
    """The run of median throughput (the lower one of two)."""
    median = statistics.median_low(run.summary.output_tokens_per_s for run in runs)
    return next(run for run in runs if run.summary.output_tokens_per_s == median)


def _print_run(screen: Screen, run: Replay, repeats: int, foreign: float | None) -> None:
    summary = run.summary
    which = f" (median of {repeats} runs)" if repeats > 1 else ""
    screen.say(
        f"{summary.requests} requests, {summary.prompt_tokens:,} prompt and {summary.output_tokens:,} output tokens "
        f"in {seconds(summary.wall_s)}{which}: {digits(summary.output_tokens_per_s)} output tokens/s, "
        f"{digits(summary.total_tokens_per_s)} with prompts"
    )
    print_spreads(screen, summary)
    if summary.failed:
        errors = sorted({request.error or "" for request in run.requests if request.error is not None})
        screen.say(f"{summary.failed} requests failed: {'; '.join(errors)}")
    if summary.preemptions:
        screen.say(f"{summary.preemptions} times a request had to give its memory back and start over")
    if summary.is_void:
        screen.say(f"void: requests were sent up to {seconds(summary.late_s)} late, so this is not the workload asked")
    if foreign is not None:
        mark = ": disturbed, measure again on a quiet machine" if is_busy(foreign) else ""
        screen.say(f"others used {percent(foreign)} of this machine's processor time meanwhile{mark}")


def print_spreads(screen: Screen, summary: ReplaySummary) -> None:
    """Latencies from intended arrival, as a table."""
    names = (("TTFT", summary.ttft_s), ("TPOT", summary.tpot_s), ("ITL", summary.itl_s), ("E2E", summary.e2e_s))
    rows = [_row(name, spread) for name, spread in names if spread is not None]
    if rows:
        screen.table(("", "p50", "p90", "p99", "mean", "n"), rows)


def _row(name: str, spread: Spread) -> tuple[str, ...]:
    thin = " *" if spread.p99_is_thin else ""  # fewer than 300 values: little to be said about the hundredth part
    return (
        name, seconds(spread.p50), seconds(spread.p90), seconds(spread.p99) + thin, seconds(spread.mean),
        f"{spread.n}{' (* few for a p99)' if thin else ''}",
    )  # fmt: skip
