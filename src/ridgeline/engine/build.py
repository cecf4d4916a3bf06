"""build: the one place that turns a config's names into an engine, and the one reader of names in this room.

Loads, records, binds, sizes the KV pool to the memory that is there, and joins the parts. Refuses with the bill.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ridgeline.kernels import native
from ridgeline.kit.clock import Clock, VirtualClock, WallClock
from ridgeline.kit.errors import UserError
from ridgeline.memory.block_memory import BlockMemory
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.pool import BlockPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.models.load import describe, load, record
from ridgeline.models.spec import ModelSpec
from ridgeline.ops.program import Program
from ridgeline.run.bind import Bound, bind
from ridgeline.run.cost_runner import CostRunner
from ridgeline.run.machine import Machine, usable_cores
from ridgeline.run.runner import Runner
from ridgeline.schedule.policy import make_policy
from ridgeline.schedule.scheduler import Scheduler
from ridgeline.state.messages import EngineFacts
from ridgeline.state.ports import StepObserver

from .bill import MemoryBill, make_bill, memory_left, reference_bound, step_limits
from .config import EngineConfig
from .engine import Engine, Unobserved


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
    described = describe(config.model, weights=config.weights)
    program = record(described, STORAGES.get(config.storage))
    try:
        bound = bind(program, body=config.body)
    except UserError:  # lines that cannot run here can still be counted
        bound = reference_bound(program)
    left = memory_left() if available is None else available
    return make_bill(config, described.spec, bound, left)


def build(config: EngineConfig, observer_factory: ObserverFactory | None = None, clock: Clock | None = None) -> Engine:
    """A running engine. UserError for what was asked wrongly, CapacityError with the bill when memory is short."""
    config.check()
    clock = clock or WallClock()
    started_s = time.perf_counter()
    storage = STORAGES.get(config.storage)
    described = describe(config.model, weights=config.weights)
    bound = bind(record(described, storage), body=config.body)
    promised = make_bill(config, described.spec, bound, memory_left())
    promised.check()  # before anything is read
    if config.isa is not None:
        native.set_isa(config.isa)
    loaded = load(config.model, weights=config.weights)
    spec = loaded.spec
    program = record(loaded, storage)
    bound = bind(program, body=config.body)
    blocks = promised.kv_blocks
    pools = tuple(
        KvPool(storage, layers=len(g.layers), kv_heads=g.kv_heads, head_dim=g.head_dim, blocks=blocks)
        for g in program.kv_groups
    )
    threads = config.threads or usable_cores()
    limits = step_limits(config, promised.context)
    runner = Runner(bound, pools, limits=limits, threads=threads, clock=clock)
    facts = EngineFacts(
        model=config.model, name=spec.name, family=spec.family, is_random=loaded.random, vocabulary=spec.vocabulary,
        context=promised.context, context_model=spec.context, bos=spec.bos, eos=spec.eos, add_bos=spec.add_bos,
        weights=config.weights, body=config.body, isa=native.isa() if config.body == "cpp" else None, threads=threads,
        file_bytes=loaded.file_bytes, resident_weight_bytes=runner.resident_weight_bytes,
        arena_bytes=promised.activation_bytes, kv=storage.name, kv_bytes=sum(pool.nbytes for pool in pools),
        kv_bytes_per_token=promised.kv_bytes_per_token, kv_blocks=blocks, block_tokens=BLOCK_TOKENS,
        step_tokens=config.step_tokens, max_sequences=config.max_sequences, load_s=time.perf_counter() - started_s,
    )  # fmt: skip
    parts = Parts(config, spec, program, bound, promised, facts)
    observer = observer_factory(parts) if observer_factory is not None else Unobserved()
    memory = BlockMemory(BlockPool(blocks), context=promised.context, contiguous=not config.paging)
    scheduler = Scheduler(
        memory, make_policy(config.policy), config.schedule(), context=promised.context,
        on_finish=observer.on_finish,
    )  # fmt: skip
    return Engine(scheduler, runner, facts=facts, clock=clock, observer=observer, close=runner.close)


def rehearse(config: EngineConfig, machine: Machine, clock: VirtualClock) -> Engine:
    """The same scheduler and memory on a runner that only takes the estimated time: nothing is loaded or computed."""
    config.check()
    storage = STORAGES.get(config.storage)
    described = describe(config.model, weights=config.weights)
    spec, program = described.spec, record(described, storage)
    promised = make_bill(config, spec, bind(program, body=config.body), memory_left())
    facts = EngineFacts(
        model=config.model, name=spec.name, family=spec.family, is_random=described.random, vocabulary=spec.vocabulary,
        context=promised.context, context_model=spec.context, kv=storage.name, kv_blocks=promised.kv_blocks,
        kv_bytes_per_token=promised.kv_bytes_per_token,
    )  # fmt: skip
    memory = BlockMemory(BlockPool(promised.kv_blocks), context=promised.context, contiguous=not config.paging)
    observer = Unobserved()
    scheduler = Scheduler(
        memory, make_policy(config.policy), config.schedule(), context=promised.context,
        on_finish=observer.on_finish,
    )  # fmt: skip
    runner = CostRunner(program, machine, clock)
    return Engine(scheduler, runner, facts=facts, clock=clock, observer=observer, close=lambda: None)
