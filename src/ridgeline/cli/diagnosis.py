"""What `ridgeline doctor` does."""
# size: examine takes what a person asked for, by name

from __future__ import annotations

import importlib.metadata
import shutil

from ridgeline.engine.config import EngineConfig
from ridgeline.kernels import native
from ridgeline.kit.home import home
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.models.pull import TABLE, find
from ridgeline.ops.kinds import KINDS
from ridgeline.perf.calibrate import calibrate
from ridgeline.report.units import digits, nbytes, percent, ratio, scaled, seconds
from ridgeline.run.bind import NATIVE_KINDS, bind
from ridgeline.run.machine import BUSY, Machine, available_bytes, load_or_measure, store
from ridgeline.run.noise import foreign_cpu_share
from ridgeline.run.rates import ROWS

from .screen import Screen

# What may be missing, and what that costs.
OPTIONAL = (
    ("torch", "reference bodies (--body torch) and operators without a native body cannot run: ridgeline[torch]"),
    ("transformers", "the ladder has no rung of transformers' generate to compare with"),
)


def examine(
    model: str | None, *, is_measuring: bool, weights: str, kv: str, body: str, threads: int | None, json: bool
) -> None:
    """Print everything; measures only what was not measured on this machine before, or what --measure asks."""
    screen = Screen(json)
    before = foreign_cpu_share()
    machine = load_or_measure(threads, again=is_measuring)
    if is_measuring:
        machine = store(calibrate(machine, lambda step: screen.aside(f"measuring {step} ...", style="dim"), model))
    _print_machine(screen, machine, before)
    table = _print_bodies(screen, model, weights, kv, body)
    missing = _missing()
    screen.say()
    for name, cost in missing:
        screen.say(f"missing: {name}: {cost}")
    if not missing:
        screen.say("nothing is missing.")
    screen.finish(
        "doctor", machine.fingerprint, ceilings=machine, foreign_cpu_share=before,
        bodies=[dict(zip(("part", "body", "lines", "why"), row, strict=True)) for row in table],
        missing=[{"name": name, "cost": cost} for name, cost in missing],
        isa=native.isa() if native.is_available() else None, home=str(home()),
        models={name: str(path) for name in TABLE if (path := find(name)) is not None},
    )  # fmt: skip


def _print_machine(screen: Screen, machine: Machine, foreign: float | None) -> None:
    mark = machine.fingerprint
    facts = [
        ("processor", f"{mark.cpu}, {mark.cores} cores usable"),
        ("memory", f"{nbytes(mark.memory_bytes)}, {nbytes(available_bytes())} available now"),
        ("system", f"Linux {mark.kernel}"),
        ("library", mark.library),
        ("kernels for", ", ".join(mark.instruction_sets) or "no instruction set: the native library is missing"),
        ("files in", str(home())),
    ]
    screen.table(("", ""), facts)
    screen.say()
    _print_reads(screen, machine)
    screen.say()
    rows = []
    for kind, rate in machine.flops_per_s.items():
        one = machine.flops_per_s_one_thread.get(kind)
        single = "" if one is None else f"one thread {scaled(one, 'FLOP/s')}; "
        note = f"{single}ridge {digits(machine.ridge(kind))} operations per byte"
        rows.append((f"{kind} arithmetic", str(machine.threads), scaled(rate, "FLOP/s"), note))
    for copy in machine.copies:
        note = "each byte is read and written" if copy.source == copy.target else "from pinned memory"
        rows.append((
            f"copy {copy.source} to {copy.target}", str(copy.threads), scaled(copy.bytes_per_s, "B/s"), note,
        ))  # fmt: skip
    rows.append(("barrier", str(machine.threads), seconds(machine.barrier_s), "between two operators"))
    if machine.dispatch_s:
        rows.append(("dispatch", str(machine.threads), seconds(machine.dispatch_s), "one job from Python and back"))
    if machine.page_fault_s:
        rows.append(("page fault", "1", seconds(machine.page_fault_s), "first touch of 4 KiB"))
    if machine.host_s:
        rows.append(("host per step", "1", seconds(machine.host_s), "one sequence"))
    for name, share in machine.efficiency.items():
        rows.append((f"kernel: {name}", str(machine.threads), percent(share), "of its ceiling"))
    screen.table(("measured", "threads", "ceiling", ""), rows)
    _print_rates(screen, machine)
    calibrated = "" if machine.rates else "; kernels not calibrated (doctor --measure)"
    screen.say(f"measured {machine.measured_at}, best of several bursts, {machine.source} probes{calibrated}")
    if machine.is_disturbed and machine.foreign_share is not None:
        screen.say(
            f"others had {percent(machine.foreign_share)} of the processors meanwhile: these ceilings may be low, and "
            "are measured again the next time one is asked for"
        )
    if foreign is not None and foreign > BUSY:
        screen.say(f"others use {percent(foreign)} of this machine's processor time now: what is measured now is low")


def _print_rates(screen: Screen, machine: Machine) -> None:
    """Our products by number of rows: what a step of so many costs beside one of a single row."""
    products = {key: rate for key, rate in machine.rates.items() if rate.bits}
    if not products:
        return
    rows = [
        (
            key.partition(" ")[0], key.partition(" ")[2] or "f32", scaled(1 / rate.seconds[0], "B/s"),
            *(ratio(float(rate.at(count)) / rate.seconds[0]) for count in ROWS[1:]),
        )
        for key, rate in sorted(products.items())
    ]  # fmt: skip
    screen.say()
    screen.table(("products with", "activations", "1 row reads", *(f"{count} rows" for count in ROWS[1:])), rows)
    screen.say("time beside that of one row, calibrated with our own kernels; predictions use it")


def _print_reads(screen: Screen, machine: Machine) -> None:
    """A row for every working set, a column for every number of threads."""
    counts = sorted({read.threads for read in machine.reads})
    rates = {(read.set_bytes, read.threads): read for read in machine.reads}
    rows = []
    for set_bytes in sorted({read.set_bytes for read in machine.reads}):
        found = [rates.get((set_bytes, count)) for count in counts]
        levels = list(dict.fromkeys(read.level for read in found if read is not None and read.level))
        cells = ["" if read is None else scaled(read.bytes_per_s, "B/s") for read in found]
        last = next(read for read in reversed(found) if read is not None)
        rows.append((f"{nbytes(set_bytes)}", " or ".join(levels), *cells, scaled(last.median_bytes_per_s, "B/s")))
    threads = [f"{count} thread{'s' if count > 1 else ''}" for count in counts]
    screen.table(("read over and over", "fits", *threads, "median burst"), rows)
    caches = ", ".join(f"{cache.name} {nbytes(cache.nbytes)} for {cache.cores}" for cache in machine.caches)
    if caches:
        screen.say(f"caches, as the system names them: {caches} (a virtual machine may have less of the last)")


def _print_bodies(screen: Screen, model: str | None, weights: str, kv: str, body: str) -> list[tuple[str, ...]]:
    """The binding table of a model, or what bodies there are for each operator kind."""
    screen.say()
    if model is None:
        table: list[tuple[str, ...]] = [
            (kind, "cpp, torch" if kind in NATIVE_KINDS and native.is_available() else "torch", "", "")
            for kind in KINDS
        ]
        screen.table(("operator", "bodies"), [row[:2] for row in table])
        return table
    config = EngineConfig(model, weights=weights, kv=kv, body=body)
    config.check()
    described = describe(model, weights=weights)
    screen.notes(model, described.notes)
    program = record(described, make_storage(config.storage), config.retention)
    bound = bind(program, body=body)
    table = [(part, used, str(lines), why) for part, used, lines, why in bound.table()]
    screen.table(("operator", "body", "lines", "why not native"), table)
    for group in program.kv_groups:
        screen.say(f"{len(group.layers)} layers keep {group.reach} of each sequence in {group.storage.name}")
    if program.reaches and all(group.reach.is_everything for group in program.kv_groups):
        narrow = ", ".join(str(reach) for reach in program.reaches)
        screen.say(
            f"some layers read only {narrow}, but keep all, so that beginnings can be shared (not so with --no-prefix)"
        )
    screen.say("a step is one native call" if bound.is_native else "a step leaves native code for its reference lines")
    return table


def _missing() -> list[tuple[str, str]]:
    missing = []
    if not native.is_available():
        missing.append(("native library", "nothing runs on --body cpp; reinstall where a C++17 compiler is present"))
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        missing.append(("C++ compiler", "the native library cannot be rebuilt here; an installed one still runs"))
    for package, cost in OPTIONAL:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append((package, cost))
    return missing
