"""The Program: a straight-line list of operators, recorded once at load, symbolic in the batch.

It is executed, counted, timed, simulated and drawn; nothing about a model is written twice (DESIGN §2).
"""

# size: one recorder method an operator kind

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.kit.capability import PAGES, TRUNCATION
from ridgeline.kit.cost import Cost
from ridgeline.kit.errors import InvariantError, UserError

from .activation import ACTIVATION
from .add import ADD
from .attend import ATTEND
from .batch import BatchShape
from .combine import COMBINE
from .conv import CONV
from .dispatch import DISPATCH
from .embed import EMBED
from .experts import EXPERTS
from .gated_norm import GATED_NORM
from .gather import GATHER
from .head_norm import HEAD_NORM
from .kv import EVERYTHING, KvGroup, Reach
from .linear import HEAD, LINEAR
from .norm import NORM
from .op import LOGITS, TOKENS, Line, Op, Value
from .protocols import BlockStorage, KvRetention, KvStorage, StateStorage, Weight
from .recurrent import StateShape
from .rope import ROPE
from .route import ROUTE, Routing
from .sample import SAMPLE
from .scan import SCAN


@dataclass(frozen=True, slots=True)
class KeptState:
    """The recurrent state of a sequence: `layers` layers of one shape."""

    shape: StateShape
    layers: tuple[int, ...]  # layers of the model that keep it
    storage: StateStorage


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    name: str
    lines: tuple[Line, ...]
    values: tuple[Value, ...]
    cuts: tuple[int, ...]  # line index after which layer i ends
    reaches: tuple[Reach, ...]  # what layers read that do not read everything
    groups: tuple[tuple[int, int], ...]  # lines [a, b) that run as one (peephole fusion, D8)
    kv_groups: tuple[KvGroup, ...] = ()  # layers by what they keep
    state: KeptState | None = None  # what recurrent layers keep of a sequence

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)

    @property
    def gives(self) -> frozenset[str]:
        """What techniques may ask of the state it keeps (kit.capability): of layers of two kinds, what both can do."""
        kept = frozenset({PAGES}) if self.kv_groups else frozenset()
        if self.state is not None:
            return kept | self.state.storage.gives
        return kept | {TRUNCATION}

    @property
    def hidden(self) -> Value | None:
        """What the head reads: the last hidden state of the rows whose logits are wanted; None without a head."""
        return next((line.inputs[0] for line in self.lines if line.op.kind == "head"), None)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Each distinct weight once (a tied head is the embedding)."""
        return tuple({id(w): w for line in self.lines for w in line.weights}.values())

    def group_cost(self, group: tuple[int, int], batch: BatchShape) -> Cost:
        """Cost of a fused group: intermediates that never leave the cache are not written or read again."""
        total = Cost()
        for line in self.lines[group[0] : group[1]]:
            total = total + line.cost(batch)
        saved: Any = 0
        for line in self.lines[group[0] : group[1] - 1]:
            readers = [other for other in self.lines if line.output in other.inputs]
            if all(group[0] <= reader.index < group[1] for reader in readers):
                saved = saved + (1 + len(readers)) * 4 * line.output.width * line.output.count(batch)
        return Cost(total.flops, total.weight_bytes, total.kv_bytes, total.activation_bytes - saved)


class Recorder:
    """Handed to a family function (models/<family>.py); every method appends one Line and returns its Value."""

    def __init__(
        self, name: str, storage: KvStorage, retention: KvRetention | None = None, states: StateStorage | None = None
    ) -> None:
        """retention None: layers read what their model says, and all keep everything, in one group. states: how
        recurrent layers keep their state; a model without such layers needs none."""
        self._name = name
        self._storage, self._retention, self._states = storage, retention, states
        self._kept: dict[tuple[Reach, int, int], list[int]] = {}  # (reach, kv_heads, head_dim) -> layers
        self._kept_state: KeptState | None = None
        self._lines: list[Line] = []
        self._values: list[Value] = []
        self._cuts: list[int] = []
        self._prefix = ""
        self._layer: int | None = None

    # -- structure

    def layer(self, index: int) -> None:
        """Lines from here on belong to layer `index`."""
        self._layer, self._prefix = index, f"layers.{index}."

    def cut(self) -> None:
        """Layer boundary: decoders may stop or take hidden states here."""
        self._cuts.append(len(self._lines) - 1)
        self._layer, self._prefix = None, ""

    # -- operators

    def embed(self, weight: Weight, scale: float = 1.0) -> Value:
        """token ids -> [tokens, columns]; row of the table times `scale`."""
        return self._add(EMBED, "embed", (), TOKENS, weight.columns, (weight,), {"scale": scale})

    def norm(self, x: Value, gain: Weight, eps: float, name: str) -> Value:
        """RMS norm: x / sqrt(mean(x²) + eps) * gain."""
        return self._add(NORM, name, (x,), x.rows, x.width, (gain,), {"eps": eps})

    def linear(
        self, x: Value, weights: tuple[Weight, ...], name: str, biases: tuple[Weight | None, ...] | None = None
    ) -> Value:
        """Outputs of all `weights` side by side: [rows, Σ weight.rows]."""
        kept = tuple(b for b in biases or () if b is not None)
        attributes = {"parts": len(weights), "biased": tuple(b is not None for b in biases or (None,) * len(weights))}
        return self._add(LINEAR, name, (x,), x.rows, sum(w.rows for w in weights), (*weights, *kept), attributes)

    def head_norm(
        self, qkv: Value, gains: tuple[Weight, Weight], heads: int, kv_heads: int, head_dim: int, eps: float
    ) -> Value:
        """RMS norm of each q head (gains[0]) and k head (gains[1]) of [tokens, (heads + 2 kv_heads) head_dim]."""
        shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "eps": eps}
        return self._add(HEAD_NORM, "head_norm", (qkv,), qkv.rows, qkv.width, gains, shape)

    def rope(self, qkv: Value, heads: int, kv_heads: int, head_dim: int, rope: Any) -> Value:
        """Rotate the q and k heads of [tokens, (heads + 2 kv_heads) head_dim]; rope: models.spec.Rope."""
        shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "rope": rope}
        return self._add(ROPE, "rope", (qkv,), qkv.rows, qkv.width, (), shape)

    def attend(self, qkv: Value, heads: int, kv_heads: int, head_dim: int, scale: float, window: int = 0) -> Value:
        """Keep this step's k and v, then causal attention of q over all kept tokens: [tokens, heads * head_dim]."""
        reach = Reach(window) if self._retention is None else self._retention.reach(window)
        kept = (Reach() if self._retention is None else reach, kv_heads, head_dim)
        recent = self._recent(reach, head_dim)
        kept = kept if recent is None else (Reach(block=recent.block), kv_heads, head_dim)
        layers = self._kept.setdefault(kept, [])
        layers.append(self._layer or 0)
        if recent is not None:
            self._kept.setdefault((recent, kv_heads, head_dim), []).append(self._layer or 0)
        shape = {
            "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": scale, "storage": self._storage,
            "reach": reach, "window": 0 if reach.heavy else reach.window, "sinks": 0 if reach.heavy else reach.sinks,
            "group": list(self._kept).index(kept), "pool_layer": len(layers) - 1, "recent": recent,
            "recent_group": -1 if recent is None else list(self._kept).index((recent, kv_heads, head_dim)),
            "rope": next((x.attributes["rope"] for x in self._lines if x.output is qkv and x.op is ROPE), None),
        }  # fmt: skip
        return self._add(ATTEND, "attend", (qkv,), qkv.rows, heads * head_dim, (), shape)

    def _recent(self, reach: Reach, head_dim: int) -> Reach | None:
        """What a storage of whole blocks keeps elsewhere until they are whole; None: it keeps tokens by themselves."""
        if not isinstance(self._storage, BlockStorage):
            return None
        if not reach.is_everything:
            raise UserError(
                f"--kv {self._storage.name} keeps whole blocks of everything; layers that read {reach} give tokens "
                "back. Try --kv int4, or leave keep at all."
            )
        self._storage.check_dim(head_dim)
        return Reach(sinks=self._storage.sinks, block=self._storage.group, is_recent=True)

    def conv(self, wide: Value, weight: Weight, bias: Weight | None, shape: StateShape) -> Value:
        """silu of each channel of [tokens, shape.wide] with its last taps: [tokens, shape.channels]."""
        weights = (weight,) if bias is None else (weight, bias)
        return self._add(CONV, "conv", (wide,), wide.rows, shape.channels, weights, self._state_of(shape))

    def scan(self, mixed: Value, wide: Value, weights: tuple[Weight, Weight, Weight], shape: StateShape) -> Value:
        """The selective scan of x, B, C in `mixed` with the time steps in `wide`: [tokens, shape.inner].

        weights: decay, bias of the time step, skip; one number a head each.
        """
        return self._add(SCAN, "scan", (mixed, wide), mixed.rows, shape.inner, weights, self._state_of(shape))

    def gated_norm(self, y: Value, wide: Value, gain: Weight, shape: StateShape, eps: float) -> Value:
        """RMS norm, group by group, of y * silu(gate in `wide`): [tokens, shape.inner]."""
        attributes = {"shape": shape, "eps": eps}
        return self._add(GATED_NORM, "gated_norm", (y, wide), y.rows, y.width, (gain,), attributes)

    def activation(self, gate_up: Value, function: str) -> Value:
        """function(gate) * up for [rows, 2 width]; function: "silu" or "gelu_tanh"."""
        return self._add(
            ACTIVATION, "activation", (gate_up,), gate_up.rows, gate_up.width // 2, (), {"function": function}
        )

    def route(self, logits: Value, routing: Routing, bias: Weight | None = None) -> Value:
        """Router logits [tokens, experts] -> ids, weights and places of the chosen: [tokens, 3 chosen]."""
        weights = () if bias is None else (bias,)
        return self._add(ROUTE, "route", (logits,), logits.rows, 3 * routing.chosen, weights, {"routing": routing})

    def experts(
        self, x: Value, routed: Value, stacks: tuple[Weight, Weight, Weight], routing: Routing, function: str,
        shared: tuple[Value, ...] = (),
    ) -> Value:  # fmt: skip
        """dispatch, experts, combine: Σ weight * down(function(gate x) * up x) over the chosen experts of each token.

        stacks: gate, up [experts * hidden, width], down [experts * width, hidden]. shared: the shared expert's output,
        and its gate's logit.
        """
        attributes = {"routing": routing, "parts": 3, "function": function}
        width = routing.chosen * x.width
        sent = self._add(DISPATCH, "dispatch", (x, routed), x.rows, width, (), {"routing": routing})
        done = self._add(EXPERTS, "experts", (sent, routed), x.rows, width, stacks, attributes)
        return self._add(COMBINE, "combine", (done, routed, *shared), x.rows, x.width, (), {"routing": routing})

    def add(self, x: Value, y: Value, name: str) -> Value:
        """Residual sum."""
        return self._add(ADD, name, (x, y), x.rows, x.width, (), {})

    def gather(self, x: Value) -> Value:
        """Only the rows whose logits are wanted: [logit_rows, width]."""
        return self._add(GATHER, "gather", (x,), LOGITS, x.width, (), {})

    def head(self, x: Value, weight: Weight) -> Value:
        """[logit_rows, vocabulary]."""
        return self._add(HEAD, "head", (x,), x.rows, weight.rows, (weight,), {"parts": 1, "biased": (False,)})

    def sample(self, logits: Value) -> Value:
        """Choose or score one token per logit row (state.plan.LogitRow)."""
        return self._add(SAMPLE, "sample", (logits,), logits.rows, 1, (), {})

    # -- end

    def finish(self) -> Program:
        lines = tuple(self._lines)
        attends = [line.attributes for line in lines if line.op.kind == "attend"]
        reaches = {reach for kept in attends for reach in (kept["reach"], kept["recent"])} - {EVERYTHING, None}
        kept = tuple(
            KvGroup(index, reach, kv_heads, head_dim, tuple(layers), self._storage_of(reach))
            for index, ((reach, kv_heads, head_dim), layers) in enumerate(self._kept.items())
        )
        return Program(
            self._name,
            lines,
            tuple(self._values),
            tuple(self._cuts),
            tuple(sorted(reaches)),
            fuse(lines),
            kept,
            self._kept_state,
        )

    def _storage_of(self, reach: Reach) -> KvStorage:
        storage = self._storage
        return storage.recent if reach.is_recent and isinstance(storage, BlockStorage) else storage

    def _state_of(self, shape: StateShape) -> dict[str, Any]:
        """What a line that keeps recurrent state must know; every such layer has one shape and one place."""
        if self._states is None:
            raise InvariantError(f"{self._name} keeps recurrent state and was given no storage for it")
        layer = self._layer or 0
        kept = self._kept_state or KeptState(shape, (layer,), self._states)
        if kept.shape != shape:
            raise InvariantError(f"{self._name} has recurrent layers of two shapes")
        if layer not in kept.layers:
            kept = KeptState(shape, (*kept.layers, layer), self._states)
        self._kept_state = kept
        return {"shape": shape, "state_layer": kept.layers.index(layer), "storage": self._states}

    def _add(
        self, op: Op, name: str, inputs: tuple[Value, ...], rows: str, width: int, weights: tuple[Weight, ...],
        attributes: Mapping[str, Any],
    ) -> Value:  # fmt: skip
        for value in inputs:
            if value.id >= len(self._values) or self._values[value.id] is not value:
                raise InvariantError(f"{self._prefix}{name} reads a value of another Program")
        output = Value(len(self._values), rows, width)
        self._values.append(output)
        line = Line(len(self._lines), op, self._prefix + name, self._layer, inputs, output, weights, attributes)
        self._lines.append(line)
        return output


# Peephole patterns, longest first: consecutive lines of these kinds, each read only by the next, run as one group (D8).
FUSED = (
    ("norm", "linear", "activation"),
    ("norm", "linear"),
    ("head_norm", "rope", "attend"),
    ("rope", "attend"),
    ("linear", "add"),
)


def fuse(lines: tuple[Line, ...]) -> tuple[tuple[int, int], ...]:
    """Cut the list into groups [a, b) that cover it; a group is one line or a match of FUSED."""
    readers: dict[int, list[int]] = {}
    for line in lines:
        for value in line.inputs:
            readers.setdefault(value.id, []).append(line.index)
    groups = []
    start = 0
    while start < len(lines):
        stop = next(
            (
                start + len(pattern)
                for pattern in FUSED
                if tuple(line.op.kind for line in lines[start : start + len(pattern)]) == pattern
                and all(readers.get(lines[i].output.id) == [i + 1] for i in range(start, start + len(pattern) - 1))
            ),
            start + 1,
        )
        groups.append((start, stop))
        start = stop
    return tuple(groups)
