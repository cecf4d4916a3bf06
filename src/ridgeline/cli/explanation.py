"""What `ridgeline explain` does: observes a model for a moment, or reads what a finished run left, and judges."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.perf.evidence import Evidence
from ridgeline.perf.observe import Seen
from ridgeline.perf.replay import replay
from ridgeline.perf.verdict import judge
from ridgeline.report.units import percent
from ridgeline.report.verdict_lines import time_rows, verdict_lines, verdict_rows
from ridgeline.run.machine import Machine, load_or_measure, mean_pace, raise_ceilings, recheck
from ridgeline.run.noise import CpuWatch

from .benchmark import WARM, is_busy, jobs_of
from .screen import Screen

ABOVE = 1.02  # of a known ceiling: more, and the known one was measured at a busy moment
QUESTION = "Explain in a few sentences why the sky is blue during the day and red in the evening."
ANSWER_TOKENS = 64
VERBS = ("ridgeline.bench/", "ridgeline.explain/", "ridgeline.run/")


class Stored(msgspec.Struct):
    """What explain reads of a document; all other fields are left alone."""

    schema: str
    evidence: Evidence | None = None


def is_run(subject: str) -> bool:
    """Whether a name means a finished run."""
    return subject.endswith((".json", ".jsonl")) and not Path(subject).is_dir()


def explain_run(path: str, workload: str | None, *, json: bool) -> None:
    """Judge a stored run again. UserError for what is no such document."""
    screen = Screen(json)
    if workload is not None:
        raise UserError("--workload asks a model; a finished run has had its own. Leave it out.")
    _tell(screen, _read(Path(path)))


def explain_model(model: str, workload: str | None, options: dict[str, Any], *, json: bool) -> None:
    """Ask a fresh engine, and judge."""
    screen = Screen(json)
    with screen.fetching(model) as progress:
        llm = LLM(model, progress=progress, **options)
    with closing(llm):
        screen.notes(model, llm.notes)
        screen.aside("observing ...", style="dim")
        evidence = observe(llm, workload)
    _tell(screen, evidence)


def observe(llm: LLM, workload: str | None, machine: Machine | None = None) -> Evidence:
    """Warm up, ask, and gather; the ceilings are probed again afterwards. machine: None: as known here."""
    machine = machine or load_or_measure(llm.facts.threads)
    for job in WARM:
        replay(llm, [job])
    llm.account(reset=True, machine=machine)
    before, watch = recheck(machine), CpuWatch()
    began_s = time.perf_counter()
    text_s = _ask(llm) if workload is None else _replay(llm, workload)
    observed_s = time.perf_counter() - began_s
    foreign = watch.foreign_cpu_share()
    seen = Seen("a fresh probe", observed_s, text_s, mean_pace(before, recheck(machine)), foreign)
    evidence = llm.evidence(seen, machine=machine)
    if any(achieved > ABOVE * limit for achieved, limit, _ in evidence.achieved.values()):
        evidence = llm.evidence(seen, machine=raise_ceilings(machine))
    return evidence


def _ask(llm: LLM) -> float | None:
    """A short question as a person would ask it; token ids where the model has no tokenizer. What text took is in
    the ledger, so there is nothing to tell."""
    options: dict[str, Any] = {"max_tokens": ANSWER_TOKENS, "ignore_stop": True}
    if llm.has_chat:
        llm.chat([{"role": "user", "content": QUESTION}], **options)
    else:
        llm.generate(QUESTION if llm.has_text else tuple(range(100, 132)), **options)
    return None


def _replay(llm: LLM, workload: str) -> float:
    """Seconds spent on text before the first request went out."""
    began_s = time.perf_counter()
    jobs = jobs_of(workload, llm, 0)
    text_s = time.perf_counter() - began_s
    replay(llm, jobs)
    return text_s


def _read(path: Path) -> Evidence:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read the run {path}: {error.strerror}. Give what `ridgeline bench --json` wrote."
        ) from error
    try:
        stored = msgspec.json.decode(lines[-1] if lines else b"", type=Stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no run of ours: {error}. Give what `ridgeline bench --json` wrote.") from error
    if not stored.schema.startswith(VERBS) or stored.evidence is None:
        raise UserError(
            f"{path} is a document {stored.schema!r} without evidence of a run. Give what `ridgeline bench --json`, "
            f"`ridgeline run --json` or `ridgeline explain --json` wrote."
        )
    return stored.evidence


def _tell(screen: Screen, evidence: Evidence) -> None:
    verdict = judge(evidence)
    for line in verdict_lines(verdict):
        screen.say(line)
    screen.say()
    screen.table(("time", "", "share"), time_rows(evidence), f"{evidence.model}, {evidence.source}")
    screen.say()
    columns = ("operator", "body", "measured", "expected", "pace", "of steps")
    screen.table(columns, verdict_rows(evidence))
    screen.say("expected: estimated from the counted work and this machine's measured ceilings")
    if evidence.is_random:
        screen.say("random weights: times are real, words are not")
    if is_busy(evidence.foreign_share):
        share = percent(evidence.foreign_share or 0.0)
        screen.say(
            f"others used {share} of this machine's processor time meanwhile: disturbed, explain again when quiet"
        )
    screen.finish("explain", verdict=verdict, evidence=evidence, is_disturbed=is_busy(evidence.foreign_share))
