"""Measuring one cell on a running engine: prompts in, the account's figures out; and keeping them, a JSON line a cell.

Refuses to continue a file of another model, machine or plan: figures of two machines are not one study.
"""

from __future__ import annotations

import datetime
import statistics
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.perf.summary import AccountSummary
from ridgeline.perf.workload import HIGHEST_ID, LOWEST_ID
from ridgeline.run.machine import Fingerprint, Machine
from ridgeline.run.noise import CpuWatch
from ridgeline.state.messages import EngineFacts
from ridgeline.state.request import Sampling

from .cells import OVERHEAD_S, Cell

VERSION = 1
STEADY = 0.05  # between the medians of two threes of warm-up runs
MOST_WARM = 15
BUSY = 0.1  # share of the machine others may use before a cell is marked

Ids = tuple[int, ...]


class Answer(Protocol):
    @property
    def tokens(self) -> Ids: ...
    @property
    def ttft_s(self) -> float: ...
    @property
    def e2e_s(self) -> float: ...


class Subject(Protocol):
    """What is studied: LLM, or a stand-in."""

    @property
    def facts(self) -> EngineFacts: ...

    def generate(
        self, prompts: Sequence[Ids], *, max_tokens: int, ignore_stop: bool, sampling: Sampling | None
    ) -> Sequence[Answer]: ...

    def account(self, *, reset: bool, machine: Machine | None) -> AccountSummary: ...


class Phase(msgspec.Struct, frozen=True):
    """One phase of a cell. joules: above idle, from Record.energy_source."""

    seconds: float
    steps: int
    tokens: int
    intensity: float
    flops_per_s: float
    bytes_per_s: float
    roof: str
    roof_share: float
    joules: float
    parts_s: dict[str, float]


class Record(msgspec.Struct, frozen=True):
    """One cell, measured once. first_s, answer_s: medians over requests, to the first token and after it.

    extra_s: other stages (retrieval). foreign: share of the machine others had meanwhile.
    """

    cell: Cell
    repeat: int
    at: str
    wall_s: float
    phases: dict[str, Phase]
    host_s: float
    first_s: float
    answer_s: float
    answers: tuple[int, ...]  # output tokens by request
    cached_tokens: int
    net_j: float
    gross_j: float
    band: tuple[float, float]
    energy_source: str
    foreign: float | None
    predicted_s: float
    extra_s: dict[str, float] = {}

    @property
    def is_disturbed(self) -> bool:
        return self.foreign is not None and self.foreign > BUSY

    def seconds(self, phase: str) -> float:
        return self.phases[phase].seconds if phase in self.phases else 0.0

    def step_s(self) -> float:
        """Mean seconds of a decode step."""
        decode = self.phases.get("decode")
        return decode.seconds / decode.steps if decode and decode.steps else 0.0


class Header(msgspec.Struct, frozen=True):
    """First line of a study's file. warm_s: the same small request over and over, until it was steady at `warm_cut`."""

    version: int
    model: str
    options: dict[str, str]
    facts: EngineFacts
    fingerprint: Fingerprint
    ceilings: Machine
    begun: str
    warm_s: tuple[float, ...] = ()
    warm_cut: int = 0
    intensities: dict[str, dict[str, float]] = {}  # counted, by phase and operator group


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def measure_cell(
    subject: Subject, cell: Cell, repeat: int, machine: Machine, *, predicted_s: float = 0.0, text: Ids = ()
) -> Record:
    """Run it once. text: the prompt of a natural answer; other prompts are drawn from the cell and the repeat."""
    prompts = [text] * cell.batch if text else _prompts(cell, repeat, subject.facts.vocabulary)
    if cell.cached:
        _ask(subject, [prompts[0][: cell.cached]], 1, None)
    subject.account(reset=True, machine=machine)
    watch = CpuWatch()
    answers = _ask(subject, prompts, cell.output, _sampling(cell, repeat))
    foreign = watch.foreign_cpu_share()
    return record_of(cell, repeat, answers, subject.account(reset=True, machine=machine), foreign, predicted_s)


def record_of(
    cell: Cell, repeat: int, answers: Sequence[Answer], account: AccountSummary, foreign: float | None,
    predicted_s: float = 0.0,
) -> Record:  # fmt: skip
    energy = account.energy
    phases = {
        phase.name: Phase(
            phase.seconds, phase.steps, phase.tokens, phase.intensity, phase.achieved_flops_per_s,
            phase.achieved_bytes_per_s, phase.roof, phase.roof_share,
            energy.by_phase_j.get(phase.name, 0.0) if energy else 0.0,
            {part.name: part.by_phase_s[phase.name] for part in account.parts if phase.name in part.by_phase_s},
        )
        for phase in account.phases
    }  # fmt: skip
    return Record(
        cell, repeat, now(), account.wall_s, phases, account.host_s,
        statistics.median(answer.ttft_s for answer in answers),
        statistics.median(answer.e2e_s - answer.ttft_s for answer in answers),
        tuple(len(answer.tokens) for answer in answers), account.tokens_cached,
        energy.net_j if energy else 0.0, energy.gross_j if energy else 0.0, energy.band if energy else (1.0, 1.0),
        energy.source if energy else "", foreign, predicted_s,
    )  # fmt: skip


def warm_up(subject: Subject) -> tuple[tuple[float, ...], int]:
    """Ask the same small thing until it is steady: (seconds of every run, how many of them were warm-up)."""
    seconds: list[float] = []
    for repeat in range(MOST_WARM):
        cell = Cell("warm", 64, 8)
        answers = _ask(subject, _prompts(cell, repeat, subject.facts.vocabulary), cell.output, None)
        seconds.append(answers[0].e2e_s)
        if len(seconds) >= 6:
            early, late = statistics.median(seconds[-6:-3]), statistics.median(seconds[-3:])
            if abs(late / early - 1) <= STEADY:
                return tuple(seconds), len(seconds) - 6
    return tuple(seconds), len(seconds)


def _ask(subject: Subject, prompts: Sequence[Ids], output: int, sampling: Sampling | None) -> Sequence[Answer]:
    return subject.generate(prompts, max_tokens=output, ignore_stop=sampling is None, sampling=sampling)


def _sampling(cell: Cell, repeat: int) -> Sampling | None:
    return Sampling(temperature=1.0, seed=1000 * repeat + int(cell.variant or 0)) if cell.natural else None


def _prompts(cell: Cell, repeat: int, vocabulary: int) -> list[Ids]:
    """Random ids, other ones for every cell and repeat: only what is meant to be shared is."""
    random = np.random.default_rng([repeat, zlib.crc32(cell.key.encode())])
    top = min(HIGHEST_ID, vocabulary)
    low = min(LOWEST_ID, top // 2)
    shared = random.integers(low, top, cell.cached // BLOCK_TOKENS * BLOCK_TOKENS).tolist()
    rest = cell.input - len(shared)
    return [(*shared, *random.integers(low, top, rest).tolist()) for _ in range(cell.batch)]


class Book:
    """A study's file: a header, then one record a line. Whole lines only; a torn last line is dropped.

    A file that is there is gone on with; UserError where it is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header | None = None
        self.records: list[Record] = []
        if path.exists():
            self._read()

    def begin(self, header: Header) -> None:
        """Write the header of a new study, or check that an old one is of the same model, machine and options."""
        if self.header is None:
            self.header = header
            self._write(header)
            return
        old = self.header
        for name in ("version", "model", "options", "fingerprint"):
            if getattr(old, name) != getattr(header, name):
                raise UserError(f"{self.path} is a study of another {name} ({getattr(old, name)}). Give another --out.")

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._write(record)

    def spent_s(self) -> float:
        """What the records took, those of earlier runs too."""
        return sum(record.wall_s + OVERHEAD_S for record in self.records)

    def has(self, cell: Cell, repeat: int) -> bool:
        return any(record.cell == cell and record.repeat == repeat for record in self.records)

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        whole = lines[:-1]  # what follows the last newline was torn
        try:
            self.header = msgspec.json.decode(whole[0], type=Header) if whole else None
            self.records = [msgspec.json.decode(line, type=Record) for line in whole[1:]]
        except msgspec.DecodeError as error:
            raise UserError(f"{self.path} is no study's file: {error}. Give another --out.") from error
        if lines[-1]:
            self.path.write_bytes(b"".join(line + b"\n" for line in whole))

    def _write(self, line: Header | Record) -> None:
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
