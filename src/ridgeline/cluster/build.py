"""connect: one engine, or several as one; the reader of a place's name in this room, and who gets which threads."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ridgeline.engine.bill import memory_left
from ridgeline.engine.build import bill
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import Place, make_place
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import load_or_measure, usable_cores

from .balance import Balance
from .children import Children
from .cluster import DECODE, KINDS, PREFILL, Cluster, names_of
from .guests import Guests
from .rayhosts import RayHosts
from .reschedule import MoveCost, Rescheduler, Rules, StepLine

LINK_BYTES_PER_S = 1.5e9  # assumed of a link that is not slowed down: two copies and two checksums of a shared core
PROBE_SEQUENCES, PROBE_TOKENS = 8, 256


def connect(config: EngineConfig, command: tuple[str, ...] | None = None) -> EngineClient | Cluster:
    """Whatever config.place says, running. Raises what kept it from it. command: of EngineClient."""
    config.check()
    place = make_place(config.place)
    if place.workload:
        raise UserError(f"place {config.place!r} becomes another one before an engine starts: that is LLM's to do.")
    if not place.is_apart:
        return EngineClient(config, command=command)

    if place.launcher == "ray":
        return _on_ray(config, place)
    configs = configs_of(config, place)
    return Cluster(place, configs, Children(place.link, command), balance_of(configs[DECODE], place))


def _on_ray(config: EngineConfig, place: Place) -> Cluster:
    """As many threads as a node has, unless others were asked for."""
    names = names_of(place)
    hosts = RayHosts(place.address, list(names))
    if not place.threads and config.threads is None:
        least = {kind: min(hosts.cpus(name) for name in names if names[name] == kind) for kind in KINDS}
        place = msgspec.structs.replace(place, threads=(least[PREFILL], least[DECODE]))
    configs = configs_of(msgspec.structs.replace(config, model=everywhere(config.model)), place)
    return Cluster(place, configs, Guests(hosts), balance_of(configs[DECODE], place))


def everywhere(model: str) -> str:
    """A name, or a path that does not depend on where one stands; before it, what is to be made of it (random:)."""
    kind, mark, path = model.rpartition(":")
    found = Path(path).expanduser()
    return f"{kind}{mark}{found.resolve()}" if found.exists() else model


def balance_of(config: EngineConfig, place: Place) -> Balance | None:
    """Who moves, by the estimated seconds of a step and the bytes a move takes; None: nobody. config: of an engine that
    goes on."""
    if place.rebalance == "none":
        return None
    described = describe(config.model, weights=config.weights)
    program = record(described, STORAGES.get(config.storage), config.retention)
    machine = load_or_measure(config.threads or usable_cores())
    step = step_line(Estimator(program, machine, config.activations), program)
    per_token = sum(group.bytes_per_token for group in program.kv_groups)
    cost = MoveCost(per_token, place.rate or LINK_BYTES_PER_S, fixed_s=step.fixed_s)  # its stream stands still a step
    return Balance(place.rebalance, Rescheduler(step, cost, Rules(every=place.every)))


def step_line(estimator: Estimator, program: Program) -> StepLine:
    """The estimate of steps that give every sequence one token, as a line through three of them."""
    few, many, deep = (
        float(estimator.step_seconds(BatchShape.of([(before, 1)] * count, count, program.reaches)))
        for count, before in ((1, PROBE_TOKENS), (PROBE_SEQUENCES, PROBE_TOKENS), (PROBE_SEQUENCES, 4 * PROBE_TOKENS))
    )
    token_s = max((deep - many) / (3 * PROBE_TOKENS * PROBE_SEQUENCES), 0.0)
    sequence_s = max((many - few) / (PROBE_SEQUENCES - 1) - token_s * PROBE_TOKENS, 0.0)
    return StepLine(max(few - sequence_s - token_s * PROBE_TOKENS, 0.0), sequence_s, token_s)


def configs_of(config: EngineConfig, place: Place) -> dict[str, EngineConfig]:
    """What each kind of engine is started with: its threads, an even share of the memory; guessing ahead is for those
    that go on."""
    engines = sum(place.engines)
    kv_bytes = config.kv_bytes
    if kv_bytes is None:
        kv_bytes = bill(msgspec.structs.replace(config, spec=None), memory_left() // engines).kv_bytes
    prefill, decode = threads_of(config, place)
    return {
        PREFILL: msgspec.structs.replace(config, kv_bytes=kv_bytes, threads=prefill, spec=None),
        DECODE: msgspec.structs.replace(config, kv_bytes=kv_bytes, threads=decode),
    }


def threads_of(config: EngineConfig, place: Place) -> tuple[int, int]:
    """(of each prefill engine, of each decode engine): as asked, else the threads there are shared out evenly."""
    if place.threads:
        if config.threads is not None:
            raise UserError("threads is given twice: for all engines, and in the place. Leave one of them out.")
        return place.threads[0], place.threads[1]
    each = max(1, (config.threads or usable_cores()) // sum(place.engines))
    return each, each


def shares(config: EngineConfig) -> str:
    """Who gets what, in words; "" for one engine."""
    place = make_place(config.place)
    if not place.is_apart:
        return ""
    if place.launcher == "ray" and not (place.threads or config.threads):
        prefill = decode = "their share of a node's"
    else:
        prefill, decode = map(str, threads_of(config, place))
    where = f"the Ray cluster at {place.address}" if place.launcher == "ray" else f"{usable_cores()} cores"
    slowed = f", slowed down to {place.rate / 1e6:.1f} MB/s" if place.rate else ""
    moving = "" if place.rebalance == "none" else f", and requests may move between the latter ({place.rebalance})"
    return (
        f"{place.engines[0]} prefill engine(s) with {prefill} thread(s) each, {place.engines[1]} decode engine(s) with "
        f"{decode} each, on {where}; keys and values travel over {place.link}{slowed}{moving}."
    )
