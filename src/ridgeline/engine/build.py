"""build: the one place that turns a config's names into an engine, and the one reader of names in this room.

Loads, records, binds, sizes the KV pool to the memory that is there, and joins the parts. Refuses with the bill.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ridgeline.decode.decoder import Autoregressive, Decoder
from ridgeline.decode.speculative import Speculative, parse
from ridgeline.kernels import native
from ridgeline.kit.clock import Clock, VirtualClock, WallClock
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.recurrent import STORAGE as RECURRENT
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.models.spec import ModelSpec
from ridgeline.ops.program import Program
from ridgeline.run.bind import Bound
from ridgeline.run.cost_lanes import CostLanes
from ridgeline.run.cost_runner import CostRunner, assumed_rate
from ridgeline.run.costs import StepCosts
from ridgeline.run.lanes import Lanes
from ridgeline.run.machine import Machine, load_or_measure, usable_cores
from ridgeline.run.programs import ProgramsRunner
from ridgeline.run.split_costs import SplitCosts
from ridgeline.schedule.pace import Beside
from ridgeline.schedule.policy import make_policy
from ridgeline.schedule.predict.mlp import load_predictor
from ridgeline.schedule.predict.refiner import Refiner
from ridgeline.schedule.scheduler import Scheduler
from ridgeline.schedule.streams import ALL, MANY, ONE
from ridgeline.state.messages import EngineFacts
from ridgeline.state.ports import SequenceMemory, StepObserver, StepRunner
from ridgeline.text.grammar import Lexicon, Rules

from .assemble import (
    Described,
    assemble,
    check_companion,
    describe_companion,
    describe_program,
    make_break_even,
    make_memory,
)
from .bill import MemoryBill, memory_left
from .config import EngineConfig
from .engine import Engine, Unobserved
from .needs import streams
from .pacing import pace
from .partition import Partition, PartitionOptions
from .place import make_place
from .streams import StreamsEngine


@dataclass(frozen=True, slots=True)
class Parts:
    """What an observer may want to know before the first step."""

    config: EngineConfig
    spec: ModelSpec
    program: Program
    bound: Bound
    bill: MemoryBill
    facts: EngineFacts


ObserverFactory = Callable[[Parts], StepObserver]


def bill(config: EngineConfig, available: int | None = None) -> MemoryBill:
    """The memory bill of this config, from descriptors: nothing is loaded or allocated. May be one that does not fit.

    available: bytes to plan for; None: what this machine has left.
    """
    config.check()
    return _describe(config, memory_left() if available is None else available, is_only_counted=True)["model"].bill


def build(config: EngineConfig, observer_factory: ObserverFactory | None = None, clock: Clock | None = None) -> Engine:
    """A running engine. UserError for what was asked wrongly, CapacityError with the bill when memory is short."""
    config.check()
    clock = clock or WallClock()
    started_s = time.perf_counter()
    described = _describe(config, memory_left())
    for one in described.values():
        one.bill.check()  # before anything is read
    if config.isa is not None:
        native.set_isa(config.isa)
    threads = config.threads or usable_cores()
    team = native.Team(threads) if config.body == "cpp" else None
    made = {name: assemble(one, clock, name, team) for name, one in described.items()}
    main = made["model"]
    decoder = _decoder(config, {name: one.program for name, one in made.items()}, lambda: load_or_measure(threads))
    facts = _facts(config, described["model"], resident=main.runner.resident_weight_bytes, threads=threads)
    facts = msgspec.structs.replace(facts, load_s=time.perf_counter() - started_s)
    parts = Parts(config, main.model.spec, main.program, main.bound, main.bill, facts)
    observer = observer_factory(parts) if observer_factory is not None else Unobserved()
    rules = _rules(described["model"])
    scheduler = _scheduler(config, {name: one.memory for name, one in made.items()}, decoder, facts, observer, rules)
    if make_place(config.place).is_predicting:
        scheduler.sight.refiner = load_predictor(facts.name, parts.spec.width)
    runner: StepRunner = main.runner if len(made) == 1 else ProgramsRunner({n: one.runner for n, one in made.items()})

    lanes = None
    if main.beside is not None:
        lanes = Lanes({ALL.name: main.runner, MANY.name: main.runner, ONE.name: main.beside}, threads, clock)

    def close() -> None:
        if lanes is not None:
            lanes.close()
        for one in made.values():
            one.runner.close()
        if team is not None:
            team.close()

    steps = StepCosts({"model": main.program}, lambda: load_or_measure(threads), config.activations)
    if lanes is not None:
        costs, partition = SplitCosts(main.program, steps.machine, config.activations), _partition(config, threads)
        return StreamsEngine(
            scheduler, runner, lanes, partition, costs.seconds, facts=facts, clock=clock,
            observer=observer, close=close, kept=main.runner.kept, rules=rules,
            chooser=pace(config, scheduler, steps, Beside(costs, lambda: partition.share)),
        )  # fmt: skip
    return Engine(
        scheduler, runner, facts=facts, clock=clock, observer=observer, close=close, kept=main.runner.kept, rules=rules,
        chooser=pace(config, scheduler, steps),
    )  # fmt: skip


def rehearse(
    config: EngineConfig, machine: Machine, clock: VirtualClock, *, acceptance: float = 0.7,
    observer: StepObserver | None = None, refiner: Refiner | None = None,
) -> Engine:  # fmt: skip
    """The same scheduler and memory on a runner that only takes the estimated time: nothing is loaded or computed.

    acceptance: probability that a guessed token holds (I2); nothing else about tokens matters here. refiner: says
    lengths without seeing any state.
    """
    config = msgspec.structs.replace(config, threads=config.threads or machine.threads)
    config.check()
    described = _describe(config, memory_left())
    facts = _facts(config, described["model"])
    programs = {name: one.program for name, one in described.items()}
    memories = {
        name: make_memory(
            one.config, one.bill, name,
            make_break_even(one.config, one.program, lambda: machine, lambda tier: assumed_rate(machine, tier)),
        )
        for name, one in described.items()
    }  # fmt: skip
    decoder = _decoder(config, programs, lambda: machine)
    observer = observer or Unobserved()
    runners: dict[str, StepRunner] = {
        name: CostRunner(program, machine, clock, acceptance=acceptance, activations=config.activations)
        for name, program in programs.items()
    }
    runner = runners["model"] if len(runners) == 1 else ProgramsRunner(runners)
    scheduler = _scheduler(config, memories, decoder, facts, observer)
    scheduler.sight.refiner = refiner
    own, steps = runners["model"], StepCosts(programs, lambda: machine, config.activations)
    if streams(config, programs["model"]) > 1 and isinstance(own, CostRunner):
        costs, partition = (
            SplitCosts(programs["model"], steps.machine, config.activations),
            _partition(config, machine.threads),
        )
        return StreamsEngine(
            scheduler, runner, CostLanes(own, costs, clock), partition, costs.seconds, facts=facts, clock=clock,
            observer=observer, close=lambda: None,
            chooser=pace(config, scheduler, steps, Beside(costs, lambda: partition.share)),
        )  # fmt: skip
    return Engine(
        scheduler, runner, facts=facts, clock=clock, observer=observer, close=lambda: None,
        chooser=pace(config, scheduler, steps),
    )  # fmt: skip


def _partition(config: EngineConfig, threads: int) -> Partition:
    """Of the two streams' shares: threads come one by one."""
    options = make_place(config.place).partition
    if threads < 2:
        raise UserError(
            f"place {config.place!r} shares out threads, and there is {threads}: choose --place chunked, or give it "
            f"more cores."
        )
    return Partition(tuple(count / threads for count in range(threads + 1)), options or PartitionOptions())


def _describe(config: EngineConfig, left: int, *, is_only_counted: bool = False) -> dict[str, Described]:
    """Every program of the engine by name, "model" last: what follows it takes its memory first."""
    found: dict[str, Described] = {}
    proposer = parse(config.spec)[0] if config.spec else None
    if proposer is not None and proposer.program:
        companion = describe_companion(config, proposer.model, left)
        found[proposer.program] = companion
        left = max(0, left - companion.bill.total_bytes + companion.bill.reserve_bytes)
    found["model"] = describe_program(config, left, is_only_counted=is_only_counted)
    if proposer is not None and proposer.program:
        check_companion(found["model"], found[proposer.program])
    return found


def _decoder(config: EngineConfig, programs: dict[str, Program], machine: Callable[[], Machine]) -> Decoder:
    if not config.spec:
        return Autoregressive()
    proposer, options = parse(config.spec)
    return Speculative(proposer, options, StepCosts(programs, machine, config.activations))


def _rules(described: Described) -> Rules:
    """The vocabulary is read when the first grammar comes."""
    model = described.model

    def make_lexicon() -> Lexicon:
        tokenizer = model.tokenizer()
        if tokenizer is None:
            raise UserError(f"{model.spec.name} has no tokenizer, so no grammar can be enforced.")
        return Lexicon.of(tokenizer, model.spec.vocabulary, model.spec.eos)

    return Rules(make_lexicon, model.spec.vocabulary)


def _scheduler(
    config: EngineConfig, memories: dict[str, SequenceMemory], decoder: Decoder, facts: EngineFacts,
    observer: StepObserver, rules: Rules | None = None,
) -> Scheduler:  # fmt: skip
    others = {name: memory for name, memory in memories.items() if name != "model"}
    return Scheduler(
        memories["model"], make_policy(config.order), config.schedule(), context=facts.context,
        on_finish=observer.on_finish, decoder=decoder, other_memory=others, rules=rules,
    )  # fmt: skip


def _facts(config: EngineConfig, described: Described, *, resident: int = 0, threads: int = 1) -> EngineFacts:
    spec, promised = described.model.spec, described.bill
    return EngineFacts(
        model=config.model, name=spec.name, family=spec.family, is_random=described.model.random,
        vocabulary=spec.vocabulary, context=promised.context, context_model=spec.context, bos=spec.bos, eos=spec.eos,
        add_bos=spec.add_bos, weights=config.weights, body=config.body,
        isa=native.isa() if config.body == "cpp" else None, threads=threads, file_bytes=described.model.file_bytes,
        resident_weight_bytes=resident, arena_bytes=promised.activation_bytes,
        kv=RECURRENT.name if promised.state_slots else config.storage,
        state_slots=promised.state_slots, state_bytes=promised.state_bytes,
        kv_bytes=promised.kv_bytes, kv_bytes_per_token=promised.kv_bytes_per_token, kv_blocks=promised.kv_blocks,
        block_bytes=max((group.block_bytes for group in promised.groups), default=0),
        block_tokens=BLOCK_TOKENS, step_tokens=config.step_tokens, max_sequences=config.max_sequences,
        spec=config.spec or "", prefix=config.prefix,
    )  # fmt: skip
