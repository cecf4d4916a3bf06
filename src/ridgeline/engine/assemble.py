"""One program of an engine: described, billed, loaded, bound, with its pools and its memory. build.py joins several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from ridgeline.kernels import native
from ridgeline.kit.clock import Clock
from ridgeline.kit.errors import UserError
from ridgeline.memory.block_memory import BlockMemory
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.pool import BlockPool
from ridgeline.memory.recurrent_memory import RecurrentMemory
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.storage.recurrent import STORAGE as RECURRENT
from ridgeline.memory.storage.storage import make_storage
from ridgeline.memory.tiers import Tiers
from ridgeline.models.load import LoadedModel, describe, load, record
from ridgeline.ops.program import Program
from ridgeline.run.bind import Bound, bind
from ridgeline.run.break_even import LoadOrCompute
from ridgeline.run.costs import StepCosts
from ridgeline.run.machine import Machine, load_or_measure, usable_cores
from ridgeline.run.runner import Runner
from ridgeline.state.ports import BreakEven, SequenceMemory

from .bill import MemoryBill, make_bill, reference_bound, step_limits
from .config import EngineConfig
from .needs import check_follows, check_needs, streams
from .sizing import block_bytes, bytes_for

COMPANION_SHARE = 0.2  # of what is free, at most, for the KV of a program that follows the model


@dataclass(frozen=True, slots=True)
class Described:
    """What is known before anything is read."""

    config: EngineConfig
    model: LoadedModel
    program: Program
    bill: MemoryBill


@dataclass(frozen=True, slots=True)
class Assembled:
    """Ready to run."""

    config: EngineConfig
    model: LoadedModel
    program: Program
    bound: Bound
    bill: MemoryBill
    runner: Runner
    memory: SequenceMemory
    beside: Runner | None = None  # a second one on the same weights and pools, for a second stream

    @property
    def kv_bytes(self) -> int:
        return self.bill.kv_bytes


def describe_program(config: EngineConfig, left: int, *, is_only_counted: bool = False) -> Described:
    """From descriptors. left: bytes to plan for. is_only_counted: lines that cannot run here are no error."""
    model = describe(config.model, weights=config.weights)
    program = record(model, make_storage(config.storage), config.retention)
    check_needs(config, program)
    try:
        bound = bind_as(config, program)
    except UserError:
        if not is_only_counted:
            raise
        bound = reference_bound(program)
    return Described(config, model, program, make_bill(config, model.spec, bound, left))


def bind_as(config: EngineConfig, program: Program) -> Bound:
    """The bodies that a config means."""
    reference = frozenset(config.reference)
    return bind(program, body=config.body, reference=reference, activations=config.activations)


def describe_companion(config: EngineConfig, model: str, left: int) -> Described:
    """A second program that follows the model's sequences: its own weights and KV, the same limits of a step."""
    described = describe(model, weights=config.weights)
    own = msgspec.structs.replace(config, model=model, spec=None, keep="all", reference=(), place="chunked")
    program = record(described, make_storage(config.storage))
    check_follows(program)
    context = min(config.context or described.spec.context, described.spec.context)
    wanted = config.max_sequences * bytes_for(program.kv_groups, context, config.most_step_tokens)
    kv_bytes = min(wanted, int(COMPANION_SHARE * left))
    least = sum(map(block_bytes, program.kv_groups))
    own = msgspec.structs.replace(own, kv_bytes=max(kv_bytes, least), context=context)
    return describe_program(own, left)


def assemble(described: Described, clock: Clock, name: str, team: native.Team | None = None) -> Assembled:
    """Read the weights, make the pools. name: of the program. team: threads to share with another one's runner."""
    config, promised = described.config, described.bill
    loaded = load(config.model, weights=config.weights)
    loaded = replace(loaded, spec=loaded.spec.reaching(promised.context))
    storage = make_storage(config.storage)
    program = record(loaded, storage, config.retention)
    bound = bind_as(config, program)
    pools = tuple(
        KvPool(
            make_storage(g.storage.name),
            layers=len(g.layers),
            kv_heads=g.kv_heads,
            head_dim=g.head_dim,
            blocks=bill.blocks,
            has_mass=bool(g.reach.heavy),
        )
        for g, bill in zip(program.kv_groups, promised.groups, strict=True)
    )
    kept, states = program.state, None
    if kept is not None:
        states = RecurrentPool(RECURRENT, kept.shape, layers=len(kept.layers), slots=promised.state_slots)
    threads = config.threads or usable_cores()
    limits = step_limits(config, promised.context)
    runner = Runner(bound, pools, limits=limits, threads=threads, clock=clock, team=team, states=states)
    beside = None
    if streams(config, program) > 1:
        beside = Runner(
            bound, pools, limits=limits, threads=threads, clock=clock, team=team, states=states, beside=runner
        )
    break_even = make_break_even(config, program, lambda: load_or_measure(threads), runner.measure_tier)
    memory = make_memory(config, promised, name, break_even)
    return Assembled(config, loaded, program, bound, promised, runner, memory, beside)


def make_break_even(
    config: EngineConfig, program: Program, machine: Callable[[], Machine], bytes_per_s: Callable[[str], float]
) -> LoadOrCompute | None:
    """For an engine with tiers; None without."""
    if not (config.host_kv_bytes or config.disk_kv_bytes):
        return None
    bytes_per_token = sum(group.bytes_per_token for group in program.kv_groups if not group.reach.is_recent)
    return LoadOrCompute(StepCosts({"model": program}, machine, config.activations), bytes_per_token, bytes_per_s)


def make_memory(
    config: EngineConfig, promised: MemoryBill, program: str = "model", break_even: BreakEven | None = None
) -> SequenceMemory:
    """Who holds which block or slot; the same for a real and a rehearsed engine."""
    if promised.state_slots:
        return RecurrentMemory(promised.state_slots)
    tiers = None
    if break_even is not None and program == "model":
        budgets = {"host": config.host_kv_bytes, "disk": config.disk_kv_bytes}
        tiers = Tiers(budgets, sum(group.block_bytes for group in promised.groups), break_even, program)
    return BlockMemory(
        tuple(BlockPool(group.blocks) for group in promised.groups), context=promised.context,
        reaches=tuple(group.reach for group in promised.groups), contiguous=not config.paging,
        step_tokens=config.most_step_tokens, alone=config.alone,
        waits=config.batching == "continuous" and program == "model", program=program, tiers=tiers,
    )  # fmt: skip


def check_companion(model: Described, companion: Described) -> None:
    """Raise UserError unless the companion can follow every sequence of the model."""
    target, own = model.model.spec, companion.model.spec
    if target.vocabulary != own.vocabulary or not _same_words(model.model, companion.model):
        raise UserError(
            f"{own.name} cannot guess for {target.name}: their vocabularies differ ({own.vocabulary} and "
            f"{target.vocabulary} tokens). Choose a smaller model of the same family, or --spec ngram."
        )
    if own.context < model.bill.context:
        raise UserError(
            f"{own.name} was made for a context of {own.context}; {target.name} runs here with {model.bill.context}. "
            f"Give --context {own.context}, or choose another one."
        )


def _same_words(a: LoadedModel, b: LoadedModel) -> bool:
    """Whether two models mean the same by a token; models without a tokenizer are taken at their word."""
    one, other = a.tokenizer(), b.tokenizer()
    if one is None or other is None:
        return one is other
    probe = "def f(x):\n    return x ** 2  # Ünïcödé, 12345, the quick brown fox\n"
    return one.encode(probe, add_bos=False, special=False) == other.encode(probe, add_bos=False, special=False)
