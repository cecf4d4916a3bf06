"""connect: one engine, or several as one; the reader of a place's name in this room, and who gets which threads."""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from ridgeline.engine.bill import memory_left
from ridgeline.engine.build import bill
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import Place, make_place
from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.run.machine import usable_cores

from .cluster import DECODE, PREFILL, Cluster


def connect(config: EngineConfig, command: tuple[str, ...] | None = None) -> EngineClient | Cluster:
    """Whatever config.place says, running. Raises what kept it from it. command: of EngineClient."""
    config.check()
    place = make_place(config.place)
    if not place.is_apart:
        return EngineClient(config, command=command)

    def start(own: EngineConfig, door: socket.socket, on_stop: Callable[[RidgelineError], None]) -> EngineClient:
        return EngineClient(own, command=command, door=door, on_stop=on_stop)

    return Cluster(place, configs_of(config, place), start)


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
    prefill, decode = threads_of(config, place)
    slowed = f", slowed down to {place.rate / 1e6:.1f} MB/s" if place.rate else ""
    return (
        f"{place.engines[0]} prefill engine(s) with {prefill} thread(s) each, {place.engines[1]} decode engine(s) with "
        f"{decode} each, on {usable_cores()} cores; keys and values travel over {place.link}{slowed}."
    )
