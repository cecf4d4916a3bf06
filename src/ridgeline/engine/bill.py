"""The memory bill: weights, KV, activations, reserve, what there is, what is short, and what would cure it.

Made from descriptors alone: nothing is loaded, nothing allocated. Used by build (to size the KV pool, or refuse) and
by predict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.recurrent import STORAGE as RECURRENT
from ridgeline.memory.storage.storage import BLOCK_TOKENS, make_storage
from ridgeline.models.spec import ModelSpec
from ridgeline.ops.kv import KvGroup
from ridgeline.ops.program import Program
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import Bound
from ridgeline.run.count import parameters
from ridgeline.run.machine import available_bytes
from ridgeline.run.runner import arena_bytes

from .config import EngineConfig
from .needs import streams
from .sizing import GroupBill, block_bytes, bytes_for, context_of, size_groups

MIB, GIB = 1 << 20, 1 << 30
LEAST_CONTEXT = 2048  # an engine that cannot hold one such sequence is refused unless a shorter context is asked for
RESERVE_BYTES = 256 * MIB  # Python with numpy and a tokenizer is about 150 MiB; the rest is scratch and tables
RESERVE_SHARE = 0.05  # of what is available: the page cache and other programs breathe too
FOUR_BIT = 5 / 8  # bytes a weight in Q4_1: 4 bits, and a scale and an offset of 16 bits for each 32


@dataclass(frozen=True, slots=True)
class Cure:
    """One change, what it saves, whether that alone is enough, and what it costs the user."""

    change: str
    saves_bytes: int
    is_enough: bool
    price: str

    def __str__(self) -> str:
        verdict = "enough" if self.is_enough else "not enough alone"
        return f"{self.change} (saves {_gib(self.saves_bytes)}, {verdict}; price: {self.price})"


@dataclass(frozen=True, slots=True)
class MemoryBill:
    """Bytes by purpose. kv_bytes: the pool as sized, or the least useful one when it does not fit.

    context: tokens of one sequence at most, cut to what the pool holds when none was asked for.
    """

    model: str
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    reserve_bytes: int
    available_bytes: int
    kv_blocks: int
    kv_bytes_per_token: int  # while no layer has dropped any
    context: int
    groups: tuple[GroupBill, ...] = ()
    cures: tuple[Cure, ...] = ()
    state_slots: int = 0
    state_bytes: int = 0  # of one slot: the recurrent state of a sequence of any length

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.reserve_bytes

    @property
    def short_bytes(self) -> int:
        return max(0, self.total_bytes - self.available_bytes)

    @property
    def fits(self) -> bool:
        return self.short_bytes == 0

    def __str__(self) -> str:
        tokens = self.kv_blocks * BLOCK_TOKENS
        bounded = any(not group.reach.is_everything for group in self.groups)
        kept = f"  KV           {_gib(self.kv_bytes):>12}   {tokens} tokens of {self.kv_bytes_per_token / 1024:.1f} KiB"
        if self.state_slots:
            kept = (
                f"  state        {_gib(self.kv_bytes):>12}   {self.state_slots} sequences of {_gib(self.state_bytes)}"
            )
        lines = [
            f"  weights      {_gib(self.weight_bytes):>12}",
            kept,
            *(f"    {group}" for group in self.groups if bounded or len(self.groups) > 1),
            f"  activations  {_gib(self.activation_bytes):>12}   for the largest step",
            f"  reserve      {_gib(self.reserve_bytes):>12}",
            f"  together     {_gib(self.total_bytes):>12}",
            f"  available    {_gib(self.available_bytes):>12}",
        ]
        if self.short_bytes:
            lines.append(f"  short by     {_gib(self.short_bytes):>12}")
        return "\n".join(lines)

    def check(self) -> None:
        """Raise CapacityError with the bill and its cures unless everything fits."""
        if self.fits:
            return
        cures = "\n".join(f"  {number}. {cure}" for number, cure in enumerate(self.cures, 1))
        raise CapacityError(
            f"{self.model} does not fit into memory: {_gib(self.short_bytes)} short.\n{self}\nWhat would help:\n{cures}"
        )


def make_bill(config: EngineConfig, spec: ModelSpec, bound: Bound, available: int) -> MemoryBill:
    """The bill of this engine, its KV pool sized to what memory allows. UserError for a context no one can have."""
    kept = bound.program.kv_groups
    is_bounded = bool(kept) and not any(group.reach.is_everything for group in kept)
    if config.context is not None and config.context > spec.context and not is_bounded:
        raise UserError(
            f"a context of {config.context} was asked for; {spec.name} was made for {spec.context}. "
            f"Ask for at most {spec.context}, or bound what is kept, as --keep sinks:4+window:512 does."
        )
    wanted = config.context or spec.context
    if bound.program.state is not None:
        return _state_bill(config, spec, bound, available)
    least = config.context or min(spec.context, LEAST_CONTEXT)
    step_tokens = config.most_step_tokens
    least_bytes = bytes_for(kept, least, step_tokens)
    weights = resident_weight_bytes(bound)
    activations = streams(config, bound.program) * arena_bytes(bound, step_limits(config, wanted))
    reserve = int(RESERVE_BYTES + RESERVE_SHARE * available) + config.host_kv_bytes
    if config.kv_bytes is not None:
        least_bytes = bytes_for(kept, config.context or 1, step_tokens)
        _check_asked(config, kept, least_bytes)
    left = available - weights - activations - reserve if config.kv_bytes is None else config.kv_bytes
    groups = size_groups(
        kept, max(left, least_bytes), context=wanted, sequences=config.max_sequences, step_tokens=step_tokens
    )
    blocks = max((group.blocks for group in groups if not group.reach.is_recent), default=0)
    bill = MemoryBill(
        model=spec.name,
        weight_bytes=weights,
        kv_bytes=sum(group.nbytes for group in groups),
        activation_bytes=activations,
        reserve_bytes=reserve,
        available_bytes=available,
        kv_blocks=blocks,
        kv_bytes_per_token=sum(group.block_bytes for group in groups if not group.reach.is_recent) // BLOCK_TOKENS,
        context=context_of(groups, wanted),
        groups=groups,
    )
    return bill if bill.fits else replace(bill, cures=_cures(config, bound, bill))


def _state_bill(config: EngineConfig, spec: ModelSpec, bound: Bound, available: int) -> MemoryBill:
    """Of a program that keeps recurrent state alone: slots for as many sequences as run, whatever their length."""
    kept = bound.program.state
    if kept is None or bound.program.kv_groups:
        raise UserError(f"{spec.name} keeps both keys and values and recurrent state, which is not run here yet.")
    slot = len(kept.layers) * RECURRENT.layer_bytes(kept.shape)
    context = config.context or spec.context
    weights, reserve = resident_weight_bytes(bound), int(RESERVE_BYTES + RESERVE_SHARE * available)
    activations = streams(config, bound.program) * arena_bytes(bound, step_limits(config, context))
    slots = config.max_sequences
    if config.kv_bytes is not None:
        slots = config.kv_bytes // slot
        if not slots:
            raise CapacityError(
                f"kv_bytes is {config.kv_bytes}; the recurrent state of one sequence of {spec.name} needs {slot}. "
                "Raise kv_bytes."
            )
    else:
        slots = max(1, min(slots, (available - weights - activations - reserve) // slot))
    bill = MemoryBill(
        model=spec.name, weight_bytes=weights, kv_bytes=slots * slot, activation_bytes=activations,
        reserve_bytes=reserve, available_bytes=available, kv_blocks=0, kv_bytes_per_token=0, context=context,
        state_slots=slots, state_bytes=slot,
    )  # fmt: skip
    return bill if bill.fits else replace(bill, cures=_cures(config, bound, bill))


def step_limits(config: EngineConfig, context: int) -> StepLimits:
    return StepLimits(config.step_tokens, config.logit_rows, config.max_sequences, context)


def kv_block_bytes(config: EngineConfig, spec: ModelSpec) -> int:
    storage = make_storage(config.storage)
    return KvPool.bytes_for(storage, layers=spec.layers, kv_heads=spec.kv_heads, head_dim=spec.head_dim, blocks=1)


def resident_weight_bytes(bound: Bound) -> int:
    """As the runner will keep them: their own bits for native bodies, unpacked f32 for reference bodies."""
    native: dict[int, int] = {}
    reference: dict[int, int] = {}
    for line, body in zip(bound.program, bound.bodies, strict=True):
        for weight in line.weights:
            if body == "cpp":
                native[id(weight)] = weight.nbytes
            else:
                reference[id(weight)] = 4 * weight.rows * weight.columns
    return sum(native.values()) + sum(reference.values())


def memory_left() -> int:
    """Bytes this process may still take: the machine's, cut by what the cgroup leaves (v2, then v1)."""
    left = available_bytes()
    for limit, usage, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        folder = Path("/sys/fs/cgroup")
        try:
            used = int((folder / usage).read_text()) - _reclaimable(folder / stat)
            left = min(left, max(0, int((folder / limit).read_text()) - used))
        except (OSError, ValueError):  # no such file, or "max": no limit here
            continue
    return left


def _reclaimable(stat: Path) -> int:
    """Page cache the kernel would give up before refusing memory."""
    numbers = dict(line.split() for line in stat.read_text().splitlines())
    for prefix in ("total_", ""):  # v1 with children, then v2
        if f"{prefix}inactive_file" in numbers:
            return int(numbers[f"{prefix}inactive_file"]) + int(numbers.get(f"{prefix}active_file", 0))
    return 0


def _check_asked(config: EngineConfig, kept: tuple[KvGroup, ...], least_bytes: int) -> None:
    asked = config.kv_bytes or 0
    if asked < least_bytes:
        blocks = asked // max(1, sum(map(block_bytes, kept)))
        raise CapacityError(
            f"kv_bytes is {asked}, room for {blocks * BLOCK_TOKENS} tokens; one sequence of "
            f"{config.context or BLOCK_TOKENS} needs {least_bytes}. Raise kv_bytes or lower the context."
        )


def _cures(config: EngineConfig, bound: Bound, bill: MemoryBill) -> tuple[Cure, ...]:
    """Three changes, the most useful first, each with its price."""
    found: list[Cure] = []

    def offer(change: str, saves_bytes: float, price: str) -> None:
        if saves_bytes > 0:
            found.append(Cure(change, int(saves_bytes), saves_bytes >= bill.short_bytes, price))

    elements, weights = parameters(bound.program), bill.weight_bytes
    price = "answers change a little: weights are rounded"
    if config.weights == "f32":
        offer("--weights bf16", weights // 2, price)
    offer("a 4-bit file of this model", weights - FOUR_BIT * elements, price + " more")
    half = bill.kv_bytes // 2
    if config.storage == "f32" and bill.kv_blocks:
        offer("--kv bf16", half, "kept keys and values are rounded")
    if config.kv_bytes is not None:
        offer(f"--kv-bytes {config.kv_bytes // 2}", half, "fewer or shorter sequences at a time")
    elif bill.context > BLOCK_TOKENS and not bill.state_slots:
        offer(f"--context {bill.context // 2}", half, f"prompt and output together at most {bill.context // 2} tokens")
    smaller = StepLimits(64, 8, 8, bill.context)
    if config.step_tokens > smaller.tokens and config.max_sequences > smaller.sequences:
        saves = bill.activation_bytes - streams(config, bound.program) * arena_bytes(bound, smaller)
        offer("--step-tokens 64 --max-sequences 8", saves, "prompts are read in smaller pieces, fewer at a time")
    found.sort(key=lambda cure: -cure.saves_bytes)
    machine = Cure(f"a machine with {_gib(bill.total_bytes)} free", bill.short_bytes, True, "another machine")
    return tuple(found[:3]) if len(found) > 2 and found[0].is_enough else (*found[:2], machine)


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB // 10 else f"{nbytes / MIB:.1f} MiB"


def reference_bound(program: Program) -> Bound:
    """Every line on its reference body, whatever is installed: enough to make a bill."""
    return Bound(program, ("torch",) * len(program.lines))
