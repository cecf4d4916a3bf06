"""What `ridgeline bench --ladder` does: predict every rung, measure them interleaved, tell and draw."""
# size: climb takes what a person asked for, and two seams for tests

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.engine.bill import kv_block_bytes
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.models.load import LoadedModel, describe
from ridgeline.models.pull import TABLE, pull
from ridgeline.perf.calibrate import calibrate
from ridgeline.perf.ladder import (
    RUNGS,
    WARM_OUTPUT,
    WARM_PROMPT,
    Measured,
    Rung,
    RungResult,
    configured,
    measure_rung,
    pool_bytes,
    predict_rung,
    rung_result,
)
from ridgeline.perf.transformers_rung import TransformersModel, is_possible
from ridgeline.perf.workload import Job, named_workload, read_workload
from ridgeline.report.plots import Panel, bars
from ridgeline.report.units import digits, nbytes, percent, ratio, scaled, seconds
from ridgeline.run.machine import Machine, measure, store, usable_cores
from ridgeline.run.noise import CpuWatch

from .benchmark import check_repeats, is_busy
from .screen import Screen


def climb(
    model: str, options: dict[str, Any], *, workload: str | None, repeats: int, plot: Path | None, json: bool,
    machine: Machine | None = None, rungs: Sequence[Rung] = RUNGS, has_rival: bool = True,
) -> None:  # fmt: skip
    """The whole ladder. UserError for a model, workload or file that cannot be used.

    machine None: measured now. has_rival: also transformers' generate, where it is installed.
    """
    screen = Screen(json)
    check_repeats(repeats)
    if plot is not None and not plot.parent.is_dir():
        raise UserError(f"cannot draw into {plot}: there is no folder {plot.parent}.")
    if model in TABLE:
        with screen.fetching(model) as progress:
            pull(model, progress)
    described = describe(model)
    runs_of = [_jobs(workload or "ladder", described, repetition) for repetition in range(repeats)]
    config = _config(model, options, described, runs_of[0])
    threads = config.threads or usable_cores()
    machine = machine or _measured(screen, threads)
    configs = [configured(config, rung) for rung in rungs]
    predicted = [predict_rung(each, machine, runs_of[0]) for each in configs]
    rival = _rival(screen, described, threads) if has_rival else None
    watch = CpuWatch()
    measured: list[list[Measured]] = [[] for _ in rungs]
    rival_runs: list[Measured] = []
    steps = sum(len(jobs) for jobs in runs_of) * (len(rungs) + (rival is not None))
    with screen.counting("climbing", steps) as progress_of:
        for jobs in runs_of:  # interleaved: whatever drifts, drifts for all
            for runs, each in zip(measured, configs, strict=True):
                runs.append(measure_rung(each, jobs, progress_of, machine))
            if rival is not None:
                rival_runs.append(rival.measure(jobs, progress_of))
    results = [rung_result(rung, runs, guess) for rung, runs, guess in zip(rungs, measured, predicted, strict=True)]
    if rival is not None:
        results = [rung_result(rival.rung, rival_runs, None), *results]
    foreign = watch.foreign_cpu_share()
    footer = _footer(machine, repeats, foreign)
    _print(screen, results, described, config, runs_of[0], footer)
    if plot is not None:
        plot.write_text(_draw(model, results, runs_of[0], threads, footer, described), "utf-8")
        screen.say(f"drawn into {plot}")
    screen.finish(
        "ladder", machine.fingerprint, model=model, workload=workload or "ladder", repeats=repeats,
        kv_bytes=config.kv_bytes, rungs=results, ceilings=machine, foreign_cpu_share=foreign,
        is_disturbed=is_busy(foreign), is_random=described.random, same_tokens=_same_tokens(results),
    )  # fmt: skip


def _measured(screen: Screen, threads: int) -> Machine:
    """Ceilings of this hour, and what our kernels reach of them."""
    screen.aside("measuring this machine's ceilings and our kernels' share of them ...", style="dim")
    return store(calibrate(measure(threads), lambda step: screen.aside(f"  {step}", style="dim")))


def _jobs(workload: str, described: LoadedModel, repetition: int) -> list[Job]:
    named = named_workload(workload, described.spec.vocabulary, repetition)
    if named is not None:
        return named
    tokenizer = described.tokenizer()

    def encode(text: str) -> list[int]:
        if tokenizer is None:
            raise UserError("this model has no tokenizer; give prompt_ids instead of prompt.")
        return tokenizer.encode(text)

    return read_workload(Path(workload), encode)


def _config(model: str, options: dict[str, Any], described: LoadedModel, jobs: list[Job]) -> EngineConfig:
    """What all rungs share: a context for the longest request, and little memory, so that paging matters."""
    kept = {name: options[name] for name in ("threads", "isa", "kv_bytes") if name in options}
    longest = max(WARM_PROMPT + WARM_OUTPUT, *(len(job.prompt) + job.output_tokens for job in jobs))
    config = EngineConfig(model, kv="bf16", context=longest, **kept)
    if config.kv_bytes is None:
        per_token = kv_block_bytes(config, described.spec) // BLOCK_TOKENS
        config = msgspec.structs.replace(config, kv_bytes=pool_bytes(jobs, per_token, BLOCK_TOKENS))
    config.check()
    return config


def _rival(screen: Screen, described: LoadedModel, threads: int) -> TransformersModel | None:
    """Rung 0, where it can be had; why not, where it cannot."""
    if described.source is None or not is_possible(described.source):
        screen.aside("no rung of transformers: it is not installed, or there is no model file", style="dim")
        return None
    screen.aside("transformers loads the model ...", style="dim")
    try:
        return TransformersModel(described.source, threads)
    except UserError as error:
        screen.aside(f"no rung of transformers: {error}", style="dim")
        return None


def _same_tokens(results: list[RungResult]) -> bool:
    """Whether all of our rungs on the same weights made the same tokens: the promise behind the whole ladder."""
    weights = {rung.name: rung.options["weights"] for rung in RUNGS}
    mine = [result.first_ids for result in results if weights.get(result.name) == RUNGS[0].options["weights"]]
    return all(ids == mine[0] for ids in mine)


def _print(
    screen: Screen, results: list[RungResult], described: LoadedModel, config: EngineConfig, jobs: list[Job],
    footer: str,
) -> None:  # fmt: skip
    rows = []
    for result in results:
        guess = result.predicted_tokens_per_s
        rows.append((
            result.name, result.adds, digits(result.tokens_per_s), "–" if guess is None else digits(guess),
            "–" if guess is None else ratio(result.tokens_per_s / guess),
            seconds(result.ttft_s), _optional(result.predicted_ttft_s),
            seconds(result.tpot_s), _optional(result.predicted_tpot_s),
            seconds(result.itl_p99_s), _optional(result.predicted_itl_p99_s),
            _optional(result.cold_ttft_s), _optional(result.warm_ttft_s), _verdict(result),
        ))  # fmt: skip
    columns = (
        "rung", "adds", "tokens/s", "predicted", "ratio", "TTFT", "predicted", "TPOT", "predicted", "ITL p99",
        "predicted", "cold", "warm", "verdict",
    )  # fmt: skip
    screen.table(columns, rows, _subject(config.model, jobs))
    screen.say(
        f"All rungs: {nbytes(config.kv_bytes or 0)} of KV memory. TTFT, TPOT: medians over requests; ITL p99: 99 % of "
        "gaps are shorter. cold, warm: first token of the fresh process's first request, and of the same again; "
        "neither is in the other columns."
    )
    failed = {result.name: result.runs[0].failed for result in results if result.runs[0].failed}
    if failed:
        screen.say("Requests that failed: " + ", ".join(f"{count} on {name}" for name, count in failed.items()))
    screen.say(f"Our rungs on the same weights made {'' if _same_tokens(results) else 'NOT '}the same tokens.")
    if described.random:
        screen.say("random weights: times are real, words are not")
    screen.say(footer)


def _verdict(result: RungResult) -> str:
    """What bounds the rung, how much of it that is, and the cause after it."""
    one = result.verdict
    if one is None:
        return "–"
    after = f", then {one.next[0].cause}" if one.next and one.next[0].holds else ""
    return (f"{one.cause} {percent(one.share)}" if one.share else one.cause) + after


def _optional(value: float | None) -> str:
    return "–" if value is None else seconds(value)


def _subject(model: str, jobs: list[Job]) -> str:
    prompts, outputs = [len(job.prompt) for job in jobs], [job.output_tokens for job in jobs]
    return (
        f"{Path(model).stem if '/' in model else model}: {len(jobs)} requests at once, "
        f"prompts {min(prompts)}–{max(prompts)}, outputs {min(outputs)}–{max(outputs)} tokens"
    )


def _footer(machine: Machine, repeats: int, foreign: float | None) -> str:
    busy = "" if foreign is None else f" · others used {percent(foreign)} of the machine"
    kinds = " ".join(f"{kind} {scaled(rate, 'FLOP/s')}" for kind, rate in machine.flops_per_s.items())
    runs = f"median of {repeats} interleaved runs" if repeats > 1 else "one run"
    return (
        f"{runs} · {machine.fingerprint.cpu}, {machine.threads} threads · read "
        f"{scaled(machine.read_bytes_per_s, 'B/s')}, {kinds}{busy}"
    )


def _draw(
    model: str, results: list[RungResult], jobs: list[Job], threads: int, footer: str, described: LoadedModel
) -> str:
    words = " · random weights" if described.random else ""
    throughput = Panel(
        "Throughput", "output tokens/s", [result.tokens_per_s for result in results],
        [result.predicted_tokens_per_s for result in results],
    )  # fmt: skip
    first = Panel(
        "First token, median", "s", [result.ttft_s for result in results],
        [result.predicted_ttft_s for result in results],
    )  # fmt: skip
    return bars(
        "The ladder: from a naive loop to this engine",
        f"{_subject(model, jobs)}, {threads} threads{words}; third line: verdict",
        [(result.name, result.adds, _verdict(result)) for result in results], [throughput, first], footer,
    )  # fmt: skip
