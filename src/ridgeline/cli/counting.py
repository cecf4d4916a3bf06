"""What `ridgeline predict` does: the memory bill first, then counts and estimates of each phase."""

from __future__ import annotations

import msgspec

from ridgeline.engine.bill import MemoryBill
from ridgeline.engine.build import bill
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.ops.program import Program
from ridgeline.perf.calibrate import calibrated
from ridgeline.perf.operators import PhaseCount, count_phase, decode_shape, prefill_shape
from ridgeline.report.units import digits, nbytes, percent, scaled, seconds
from ridgeline.run.count import parameters, weight_bytes
from ridgeline.run.machine import Machine, ReadRate, fingerprint

from .options import size_bytes
from .screen import Screen


class Question(msgspec.Struct, frozen=True):
    """What `predict` was asked. memory, bandwidth, flops: of a machine one describes; None: this one's, measured."""

    model: str
    phase: str
    prompt: int
    output: int
    batch: int
    context: int | None
    memory: str | None
    bandwidth: str | None
    flops: str | None
    weights: str
    kv: str
    kv_bytes: str | None
    threads: int | None

    def check(self) -> None:
        for name, value in (("prompt", self.prompt), ("output", self.output), ("batch", self.batch)):
            if value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")
        if self.context is not None and self.context < 0:
            raise UserError(f"--context is {self.context}; it must be at least 0.")
        if (self.bandwidth is None) != (self.flops is None):
            raise UserError("a machine is described by both --bandwidth and --flops; one of them is missing.")

    @property
    def kept(self) -> int:
        """Tokens before the one that is decoded."""
        return self.prompt + self.output // 2 if self.context is None else self.context


def predict(question: Question, *, is_by_operator: bool, json: bool) -> None:
    """Print the answer. UserError for what cannot be asked; a model that does not fit is an answer, not an error."""
    question.check()
    screen = Screen(json)
    config = EngineConfig(
        question.model, weights=question.weights, kv=question.kv, max_sequences=question.batch,
        context=max(question.prompt + question.output, question.kept + 1),
        kv_bytes=None if question.kv_bytes is None else size_bytes(question.kv_bytes),
    )  # fmt: skip
    needs = bill(config, None if question.memory is None else size_bytes(question.memory))
    program = record(describe(question.model, weights=question.weights), make_storage(config.storage))
    machine = _machine(question, program, screen)
    phases = _phases(question, program, machine)
    _print_memory(screen, needs, program)
    if is_by_operator:
        for phase in phases:
            _print_operators(screen, phase)
    _print_times(screen, question, phases, program, machine)
    screen.finish(
        "predict", question=question, parameters=parameters(program), weight_bytes=weight_bytes(program),
        bill={"fits": needs.fits, "total_bytes": needs.total_bytes, "short_bytes": needs.short_bytes, **_plain(needs)},
        phases=phases, ceilings=machine, source=machine.source,
    )  # fmt: skip


def _phases(question: Question, program: Program, machine: Machine) -> tuple[PhaseCount, ...]:
    shapes = {
        "prefill": prefill_shape(program, question.batch, question.prompt),
        "decode": decode_shape(program, question.batch, question.kept),
    }
    return tuple(
        count_phase(name, program, machine, shape) for name, shape in shapes.items() if question.phase in ("both", name)
    )


def _machine(question: Question, program: Program, screen: Screen) -> Machine:
    """This one, measured; or the described one, which is labelled."""
    if question.bandwidth is None or question.flops is None:
        return calibrated(
            program, question.threads, progress=lambda step: screen.aside(f"measuring {step} ...", style="dim")
        )
    rate, peak = _rate(question.bandwidth), _rate(question.flops)
    reads = (ReadRate(1, 1 << 40, rate, rate),)
    return Machine(fingerprint(), 1, reads, {"f32": peak, "int8": peak}, 0.0, "", "described, not measured")


def _rate(text: str) -> float:
    """ "2T" -> 2e12: decimal, as data sheets count. UserError for anything else."""
    power = {"K": 3, "M": 6, "G": 9, "T": 12, "P": 15}.get(text[-1:].upper())
    try:
        value = float(text[:-1]) * 10**power if power is not None else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e24:
        raise UserError(f"{text!r} is not a rate; write one like 800G or 2T.")
    return value


def _print_memory(screen: Screen, needs: MemoryBill, program: Program) -> None:
    if not needs.fits:
        screen.say(f"{needs.model} does not fit: {nbytes(needs.short_bytes)} short.")
    elements = parameters(program)
    screen.say(
        f"{needs.model}: {scaled(elements, '')} parameters, {nbytes(weight_bytes(program))} of weights "
        f"({digits(8 * weight_bytes(program) / elements)} bits each)"
    )
    screen.say(str(needs))
    for number, cure in enumerate(needs.cures, 1):
        screen.say(f"  {'would help' if number == 1 else '':<12} {number}. {cure}")


def _print_operators(screen: Screen, phase: PhaseCount) -> None:
    rows = [
        (
            row.name, str(row.lines), scaled(row.flops, ""), nbytes(row.weight_bytes), nbytes(row.kv_bytes),
            nbytes(row.activation_bytes), "–" if row.intensity is None else digits(row.intensity),
            row.roof if row.intensity is not None else "in cache", seconds(row.predicted_s),
            percent(row.predicted_s / phase.predicted_s),
        )
        for row in phase.rows
    ]  # fmt: skip
    rows.append(("barriers, host", "", "", "", "", "", "", "", seconds(phase.overhead_s), percent(
        phase.overhead_s / phase.predicted_s)))  # fmt: skip
    rows.append((
        "together", str(sum(row.lines for row in phase.rows)), scaled(phase.flops, ""), nbytes(phase.weight_bytes),
        nbytes(phase.kv_bytes), nbytes(phase.activation_bytes), digits(phase.intensity), "",
        seconds(phase.predicted_s), percent(1.0),
    ))  # fmt: skip
    columns = (
        "operator", "lines", "FLOPs", "weights", "KV", "activations", "FLOP/byte", "bound by", "estimated", "share"
    )  # fmt: skip
    screen.say()
    screen.table(columns, rows, f"{phase.name}: one step of {phase.tokens} tokens (FLOP/byte of weights and KV)")


def _print_times(
    screen: Screen, question: Question, phases: tuple[PhaseCount, ...], program: Program, machine: Machine
) -> None:
    by_name = {phase.name: phase for phase in phases}
    screen.say()
    source = (
        f"estimated from ceilings measured here with {machine.threads} threads"
        if machine.source in ("native", "numpy")
        else f"estimated for a machine that was {machine.source}"
    )
    kernels = "" if machine.rates or machine.source not in ("native", "numpy") else "; kernels not calibrated"
    busy = "; measured while others used the machine" if machine.is_disturbed else ""
    screen.say(f"Times are {source}{kernels}{busy} ({scaled(machine.bandwidth(weight_bytes(program)), 'B/s')} read):")
    if prefill := by_name.get("prefill"):
        screen.say(
            f"  first token after {seconds(prefill.predicted_s)} ({question.batch} × {question.prompt} prompt tokens)"
        )
    if decode := by_name.get("decode"):
        screen.say(
            f"  then {seconds(decode.predicted_s)} a step, {digits(question.batch / decode.predicted_s)} tokens/s "
            f"for {question.batch} at {question.kept} kept tokens"
        )
        screen.say(
            f"  reading weights and KV alone takes {seconds(decode.floor_s)}: "
            f"at most {digits(question.batch / decode.floor_s)} tokens/s"
        )


def _plain(needs: MemoryBill) -> dict[str, object]:
    return dict(msgspec.to_builtins(needs))
