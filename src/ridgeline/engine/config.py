"""EngineConfig: everything one can ask of an engine, about one field a seam. Frozen; unknown fields are refused.

Names only: engine/build.py is the one place that turns them into objects.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ridgeline.decode.speculative import parse
from ridgeline.kit.errors import UserError
from ridgeline.memory.retention.retention import Retention, make_retention
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import check_weights
from ridgeline.ops.protocols import BlockStorage
from ridgeline.run.activations import DEFAULT, outlier_of
from ridgeline.run.bind import BODIES
from ridgeline.run.machine import usable_cores
from ridgeline.schedule.options import ScheduleOptions
from ridgeline.schedule.policy import make_policy

from .place import make_place

ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
LARGEST = 1 << 40  # no count or size in a step is near this; a slip of the keyboard is


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, "a known name, a path, or random:<shape>"]
    weights: Annotated[str, "native (the file's own bits), or a format to convert to, as int4:group=128"] = "native"
    kv: Annotated[str, "how K and V are stored; auto: f32 with f32 weights, else bf16"] = "auto"
    body: Annotated[str, "cpp, or torch (the reference)"] = "cpp"
    activations: Annotated[str, "what integer linears read: int16, auto (8 bits, 15 where outliers are), int8"] = (
        DEFAULT
    )
    isa: Annotated[str | None, "instruction set; None: the best this machine has"] = None
    threads: Annotated[int | None, "None: the cores this process may use"] = None
    context: Annotated[int | None, "tokens of prompt and output together; None: the model's, as far as KV fits"] = None
    kv_bytes: Annotated[int | None, "size of the KV pool; None: what sequences can use, as far as memory goes"] = None
    max_sequences: Annotated[int, "sequences that run at a time"] = 64
    step_tokens: Annotated[int, "tokens computed in one step"] = 512
    step_logit_rows: Annotated[int | None, "tokens chosen or scored in one step; None: 64, or max_sequences"] = None
    chunk: Annotated[int | None, "tokens of one sequence in one step; None: no limit"] = None
    batching: Annotated[Literal["continuous", "static"], "static: the baseline that waits for a whole batch"] = (
        "continuous"
    )
    cache: Annotated[bool, "False: the baseline that computes everything anew for every token"] = True
    paging: Annotated[bool, "False: the baseline that reserves the longest output at once"] = True
    policy: Annotated[
        str, "who is served first: fcfs, priority, deadline, shortest, remaining or fair; NAME:option=value"
    ] = "fcfs"

    place: Annotated[
        str, "who computes what where: chunked, serial, split, corun, disaggregated, auto; NAME:option=value"
    ] = "chunked"
    prefix: Annotated[bool, "keep computed beginnings for later requests that begin alike"] = True
    host_kv_bytes: Annotated[int, "memory for kept beginnings that had to leave the KV pool"] = 0
    disk_kv_bytes: Annotated[int, "the same on disk, in RIDGELINE_HOME/kv, gone when the engine ends"] = 0
    keep: Annotated[str, "which tokens are kept: all, window:N, sinks:N+window:N, h2o:N+window:N"] = "all"
    reference: Annotated[tuple[str, ...], "operators that run their reference body, to compare with; as attend"] = ()
    spec: Annotated[str | None, "guess tokens ahead: PROPOSER:option=value, as ngram:k=4; None: do not"] = None

    def check(self) -> None:
        """Raise UserError for a value that no engine could be built with."""
        for name in ("threads", "context", "kv_bytes", "max_sequences", "step_tokens", "step_logit_rows", "chunk"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                raise UserError(f"{name} is {value}; it must be at least 1 (and below 2^40).")
        for name, value, known in (
            ("body", self.body, BODIES),
            ("isa", self.isa or "plain", ISAS),
        ):
            if value not in known:
                raise UserError(f"{name} is {value!r}; known: {', '.join(known)}.")
        outlier_of(self.activations, "")  # refuses what there is not
        make_policy(self.policy)  # likewise
        make_storage(self.storage)  # likewise
        self._check_keep()
        self._check_place()
        for name in ("host_kv_bytes", "disk_kv_bytes"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0 (and below 2^40).")
            if getattr(self, name) and self.alone:
                raise UserError(f"{name} keeps beginnings for later, but they are not shared here ({self.alone}).")
        if self.spec is not None:
            proposer, _ = parse(self.spec)  # likewise
            if proposer.width > 1 and isinstance(make_storage(self.storage), BlockStorage):
                raise UserError(
                    f"kv {self.kv!r} closes blocks of tokens in order, which branches of a tree are not: give spec "
                    "width=1, or --kv int4."
                )
            if not self.cache:
                raise UserError("guessing ahead (spec) needs what was computed to be kept: leave cache on.")
        check_weights(self.weights)
        if not self.model:
            raise UserError("no model was named; give a known name, a path, or random:<shape>.")
        self.schedule().check()

    def _check_keep(self) -> None:
        retention = make_retention(self.keep)
        if self.keep != "all" and not (self.paging and self.cache):
            raise UserError(f"keep {self.keep!r} gives blocks back as it goes: leave paging and cache on.")
        if "tokens that stay where they are" in retention.needs and self.spec is not None:
            raise UserError(
                f"keep {self.keep!r} packs what it keeps and cannot take guessed tokens back: leave spec {self.spec!r} "
                f"out, or keep sinks:4+window:512."
            )

    def _check_place(self) -> None:
        place = make_place(self.place)
        is_plain = self.paging and self.cache and self.batching == "continuous"
        if place.takes_turns and not self.has_native_attention:
            raise UserError(
                f"place {place.name!r} is an order of the native body of attend: leave body and reference out."
            )
        if place.is_apart and not is_plain:
            raise UserError(f"place {place.name!r} hands blocks on: leave paging, cache and batching as they are.")
        if place.is_apart and self.retention is not None:
            raise UserError(f"place {place.name!r} hands on everything that was kept: leave keep at all and prefix on.")
        if place.partition is not None and self.one_stream:
            raise UserError(f"place {place.name!r} {self.one_stream}.")

    @property
    def has_native_attention(self) -> bool:
        return self.body == "cpp" and "attend" not in self.reference

    @property
    def one_stream(self) -> str:
        """Why two steps cannot run at a time, whatever the model; "": they can."""
        if not (self.paging and self.cache and self.batching == "continuous"):
            return "shares one pool: leave paging, cache and batching as they are"
        if self.body != "cpp" or self.reference:
            return "needs native bodies, which can overlap: leave body at cpp, reference out"
        if (self.threads or usable_cores()) == 1:
            return "shares out threads, and there is 1: give --threads 2, or --place chunked"
        if self.spec is not None and parse(self.spec)[0].program:
            return f"runs one program beside itself: leave spec {self.spec!r} out, or use --spec ngram"
        return ""

    @property
    def order(self) -> str:
        """The policy that is meant: the place's own, unless another one was asked for."""
        return make_place(self.place).policy or self.policy if self.policy == "fcfs" else self.policy

    @property
    def retention(self) -> Retention | None:
        """What `keep` means; None: layers read what their model says and all of them keep everything, in one pool."""
        is_shared = self.prefix or not (self.paging and self.cache)
        return None if self.keep == "all" and is_shared else make_retention(self.keep)

    @property
    def alone(self) -> str:
        """Why sequences share no beginnings; "": they do."""
        if not (self.prefix and self.paging and self.cache):
            return "off"
        return "" if make_retention(self.keep).prefix_stable else "not prefix-stable"

    @property
    def most_step_tokens(self) -> int:
        """The most one step computes of a sequence."""
        return self.step_tokens if self.chunk is None else min(self.step_tokens, self.chunk)

    @property
    def storage(self) -> str:
        """The KV storage that `kv` means."""
        return ("f32" if self.weights == "f32" else "bf16") if self.kv == "auto" else self.kv

    @property
    def logit_rows(self) -> int:
        """Every running sequence is owed one row."""
        return max(64, self.max_sequences) if self.step_logit_rows is None else self.step_logit_rows

    def schedule(self) -> ScheduleOptions:
        place = make_place(self.place)
        return ScheduleOptions(
            step_tokens=self.step_tokens,
            step_logit_rows=self.logit_rows,
            sequences=self.max_sequences,
            chunk=self.chunk,
            batching=self.batching,
            cache=self.cache,
            mixes=place.mixes,
            takes_turns=place.takes_turns,
        )
