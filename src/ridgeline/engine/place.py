"""Places: where the tokens of a prompt and those after it are computed, and how a step mixes the two; data only.

`NAME:option=value,option=value`. config.py and cluster/build.py read what make_place says; nobody else knows a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from ridgeline.decode.options import refuse_unknown, split
from ridgeline.kit.errors import UserError

from .partition import PartitionOptions

LINKS = ("shm", "tcp")
LAUNCHERS = ("processes", "ray")
ROUTES = ("least", "round")
ORDERS = ("remaining", "fcfs")
LEAST_SECONDS, MOST_SECONDS = 1e-4, 1e3
BALANCES = ("none", "load", "predict", "oracle")
MOST_ENGINES, MOST_RESTARTS, MOST_EVERY = 64, 100, 1 << 20
LEAST_RATE = 1000.0  # bytes a second: a block would travel for minutes


class Place(msgspec.Struct, frozen=True):
    """engines, threads: (before the first token, after it); () engines: one engine does both."""

    name: str
    mixes: bool = True
    takes_turns: bool = False  # attention draws items of many rows and of few in turns (E1)
    engines: Annotated[tuple[int, ...], "engines that compute prompts + engines that go on, as 1+1"] = ()
    threads: Annotated[tuple[int, ...], "threads of each engine of the two kinds; default: shared out evenly"] = ()
    link: Annotated[str, "how kept state travels: shm (shared memory) or tcp"] = "shm"
    rate: Annotated[float, "bytes a second the link is slowed down to, for study; 0: not"] = 0.0
    buffer: Annotated[int, "bytes of kept state that may wait at an engine that goes on"] = 256 << 20
    route: Annotated[str, "who gets a request: least (the least loaded) or round (in turn)"] = "least"
    restarts: Annotated[int, "times an engine that dies is started again"] = 3
    tbt: Annotated[float, "seconds from token to token of an answer that steps are cut to, by the estimate; 0: not"] = (
        0.0
    )
    ttft: Annotated[float, "seconds to a first token that auto aims at; 0: 200 estimated steps of one answer"] = 0.0
    adapts: bool = False  # the engine switches between the places of one engine while it runs
    workload: Annotated[
        str, "auto: rehearse every place on this workload (a name of bench, or a file) and start the best one"
    ] = ""
    partition: PartitionOptions | None = None  # two streams of steps share the threads; None: one has them all
    policy: Annotated[str, "who is served first, where the engine's own policy was not chosen: remaining or fcfs"] = ""
    rebalance: Annotated[
        str, "who moves between engines that go on: none, or by load, predict (of `ridgeline learn`), oracle"
    ] = "none"
    every: Annotated[int, "steps between two looks at the balance"] = 16
    launcher: Annotated[str, "who starts engines: processes (here) or ray (on the nodes of a Ray cluster)"] = (
        "processes"
    )
    address: Annotated[str, "of the Ray cluster, HOST:PORT; auto: the one that runs here"] = ""

    @property
    def is_apart(self) -> bool:
        return bool(self.engines)

    @property
    def is_predicting(self) -> bool:
        """Whether engines say how long answers will get."""
        return self.rebalance == "predict"


PLACES: Mapping[str, tuple[Place, tuple[str, ...]]] = {  # the place, and which of its fields are options
    "serial": (Place("serial", mixes=False), ()),
    "chunked": (Place("chunked"), ("tbt",)),
    "auto": (Place("auto", adapts=True), ("tbt", "ttft", "workload")),
    "split": (
        Place("split", partition=PartitionOptions(), policy="remaining"),
        ("policy", *PartitionOptions.__struct_fields__),
    ),
    "corun": (Place("corun", takes_turns=True), ("tbt",)),
    "disaggregated": (
        Place("disaggregated", engines=(1, 1)),
        (
            "engines",
            "threads",
            "link",
            "rate",
            "buffer",
            "route",
            "rebalance",
            "every",
            "restarts",
            "launcher",
            "address",
        ),
    ),
}


def make_place(text: str) -> Place:
    """UserError for what there is not."""
    name, given = split(text)
    if name not in PLACES:
        raise UserError(f"place is {name!r}; known: {', '.join(PLACES)}.")
    place, options = PLACES[name]
    refuse_unknown(f"place {name}", given, options)
    shares = {key: given.pop(key) for key in tuple(given) if key in PartitionOptions.__struct_fields__}
    if shares:
        place = msgspec.structs.replace(place, partition=PartitionOptions.read(shares))
    place = msgspec.structs.replace(place, **{key: _read(key, value) for key, value in given.items()})
    if place.launcher == "ray":
        place = _between_machines(place, given)
    elif place.address:
        raise UserError("address is where a Ray cluster is: write launcher=ray,address=HOST:PORT.")
    if place.rebalance != "none" and place.engines[1] < 2:
        raise UserError(f"rebalance={place.rebalance} moves requests between engines: write engines=1+2 or more.")
    return place


def _read(key: str, text: str) -> object:
    match key:
        case "engines" | "threads":
            counts = text.split("+")
            if len(counts) != 2 or not all(n.isascii() and n.isdigit() and 0 < int(n) <= MOST_ENGINES for n in counts):
                raise UserError(f"{key} is {text!r}; write two counts from 1 to {MOST_ENGINES}, as {key}=1+1.")
            return tuple(int(count) for count in counts)
        case "link" | "route" | "policy" | "rebalance" | "launcher":
            known = {
                "link": LINKS, "route": ROUTES, "policy": ORDERS, "rebalance": BALANCES, "launcher": LAUNCHERS
            }[key]  # fmt: skip
            if text not in known:
                raise UserError(f"{key} is {text!r}; known: {', '.join(known)}.")
            return text
        case "workload":
            return text
        case "address":
            return _address(text)
        case "tbt" | "ttft":
            return _seconds(key, text)
        case "rate" | "buffer":
            size = _size(key, text)
            if key == "rate" and 0 < size < LEAST_RATE:
                raise UserError(f"rate is {text!r}; it must be 0 (no limit) or at least 1000 bytes a second.")
            return float(size) if key == "rate" else int(size)
    least, most = (1, MOST_EVERY) if key == "every" else (0, MOST_RESTARTS)
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise UserError(f"{key} is {text!r}; it must be a whole number from {least} to {most}.")
    return int(text)


def _between_machines(place: Place, given: Mapping[str, str]) -> Place:
    if given.get("link") == "shm":
        raise UserError("link=shm is memory of one machine, and launcher=ray may use several: write link=tcp.")
    return msgspec.structs.replace(place, link="tcp", address=place.address or "auto")


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text != "auto" and not (host and "/" not in host and port.isascii() and port.isdigit() and len(port) < 6):
        raise UserError(f"address is {text!r}; write HOST:PORT of a Ray cluster's head, or auto.")
    return text


def _seconds(key: str, text: str) -> float:
    """ "50ms" -> 0.05."""
    number, scale = (text[:-2], 1e-3) if text.endswith("ms") else (text[:-1], 1.0)
    try:
        seconds = float(number) * scale if text.endswith("s") else -1.0
    except ValueError:
        seconds = -1.0
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise UserError(f"{key} is {text!r}; write a time from 0.1ms to 1000s, as {key}=50ms.")
    return seconds


def _size(key: str, text: str) -> float:
    """ "100M" -> 104857600.0; K, M, G are powers of 1024."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    power = {"": 0, "K": 10, "M": 20, "G": 30}.get(unit)
    try:
        size = float(number) * (1 << power) if power is not None else -1.0
    except ValueError:
        size = -1.0
    if not 0 <= size < 2**50 or (key == "buffer" and size < 1):
        raise UserError(f"{key} is {text!r}; write a size like 64M or 1.5G.")
    return size
