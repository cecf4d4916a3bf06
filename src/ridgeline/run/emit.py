"""Lines bound to "cpp" become instructions of the native tape (kernels/cpp/ridgeline.h). Pure translation.

Keeps alive what the instructions point to: packed weights, bias and gain vectors, rope tables.
"""

# size: one method an operator kind

from __future__ import annotations

from typing import Any

import numpy as np

from ridgeline.kernels import native
from ridgeline.kernels.packing import pack, pack_stack, reads_integers
from ridgeline.ops.op import LOGITS, Line, Value
from ridgeline.ops.program import Program
from ridgeline.ops.protocols import Weight

from .activations import outlier_of
from .arena import Arena, fused_adds
from .bind import Bound

OPCODES = {
    "embed": native.RL_EMBED,
    "norm": native.RL_NORM,
    "head_norm": native.RL_HEAD_NORM,
    "linear": native.RL_LINEAR,
    "head": native.RL_LINEAR,
    "rope": native.RL_ROPE,
    "attend": native.RL_ATTEND,
    "activation": native.RL_ACTIVATION,
    "route": native.RL_ROUTE,
    "dispatch": native.RL_DISPATCH,
    "experts": native.RL_EXPERTS,
    "combine": native.RL_COMBINE,
    "add": native.RL_ADD,
    "gather": native.RL_GATHER,
    "sample": native.RL_SAMPLE,
    "conv": native.RL_CONV,
    "scan": native.RL_SCAN,
    "gated_norm": native.RL_GATED_NORM,
}
ACTIVATIONS = {"silu": native.RL_SILU, "gelu_tanh": native.RL_GELU_TANH}


def quantised_values(program: Program, bodies: tuple[str, ...]) -> frozenset[int]:
    """Values that integer linears read as int8."""
    return frozenset(
        line.inputs[0].id
        for line, body in zip(program, bodies, strict=True)
        if body == "cpp"
        and line.op.kind in ("linear", "head", "experts")
        and any(reads_integers(w.format) for w in line.weights[: line.attributes["parts"]])
    )


class PackedWeights:
    """Native weights by identity, packed once; a tied head shares the embedding's bytes."""

    def __init__(self) -> None:
        self._packed: dict[int, Any] = {}
        self._sources: list[Weight] = []  # keeps id() unique

    def matrix(self, weight: Weight) -> Any:
        if id(weight) not in self._packed:
            self._sources.append(weight)
            self._packed[id(weight)] = pack(weight.data, weight.format, weight.rows, weight.columns)
        return self._packed[id(weight)]

    def stack(self, weight: Weight, count: int) -> Any:
        """`count` matrices below one another, packed one by one."""
        if id(weight) not in self._packed:
            self._sources.append(weight)
            shape = (weight.rows, weight.columns)
            self._packed[id(weight)] = pack_stack(weight.data, weight.format, *shape, count)
        return self._packed[id(weight)]

    def vector(self, weight: Weight) -> Any:
        if id(weight) not in self._packed:
            self._sources.append(weight)
            self._packed[id(weight)] = np.ascontiguousarray(weight.unpack()[0], dtype=np.float32)
        return self._packed[id(weight)]

    def taps(self, weight: Weight) -> Any:
        """[taps, channels] f32 of a convolution's [channels, taps]."""
        if id(weight) not in self._packed:
            self._sources.append(weight)
            self._packed[id(weight)] = np.ascontiguousarray(weight.unpack().T, dtype=np.float32)
        return self._packed[id(weight)]

    @property
    def nbytes(self) -> int:
        """Resident bytes of everything packed."""
        return sum(int(getattr(item, "data", item).nbytes) for item in self._packed.values())


class Emitter:
    """Translates runs of lines; one per runner. weights: packed already, by another one; None: packed here."""

    def __init__(self, bound: Bound, arena: Arena, weights: PackedWeights | None = None) -> None:
        self.weights = weights or PackedWeights()
        self.kept: list[Any] = []
        program, bodies, self._activations = bound.program, bound.bodies, bound.activations
        self._program, self._arena = program, arena
        self._fused = fused_adds(program, bodies)
        self._absorbed = set(self._fused.values())
        self._kinds = {line.output.id: line.op.kind for line in program}
        self._kinds |= {line.inputs[0].id: "head" for line in program if line.op.kind == "head"}
        self._called_out = {line.output.id for line, body in zip(program, bodies, strict=True) if body == "torch"}

    def tape(self, start: int, stop: int) -> Any:
        """A native Tape of lines [start, stop)."""
        instructions = []
        for line in self._program.lines[start:stop]:
            if line.index not in self._absorbed:
                instructions += [*self._quantisings(line), self._instruction(line)]
        return native.Tape(instructions, self.kept)

    def _quantisings(self, line: Line) -> list[Any]:
        """What an integer linear reads, when a call-out wrote it: call-outs write f32 only."""
        value = line.inputs[0] if line.op.kind in ("linear", "head") else None
        if value is None or value.id not in self._arena.quantised or value.id not in self._called_out:
            return []
        at = self._offset(value)
        copy = native.RlInstr(
            op=native.RL_ADD, line=line.index, per_logit_row=int(value.rows == LOGITS), parts=1, width_in=value.width,
            width_out=value.width, **{"in": at}, in2=-1, out=at, in_quant=-1,
            out_quant=self._arena.quantised[value.id], scale=1.0, outlier=self._outlier(value),
        )  # fmt: skip
        return [copy]

    def _instruction(self, line: Line) -> Any:
        out = line.output
        instruction = native.RlInstr(
            op=OPCODES[line.op.kind], line=line.index, per_logit_row=int(out.rows == LOGITS), parts=1,
            width_in=line.inputs[0].width if line.inputs else 0, width_out=out.width,
            **{"in": self._offset(line.inputs[0]) if line.inputs else -1},
            in2=-1, out=-1, in_quant=-1, out_quant=-1, in3=-1, in4=-1, work=-1,
            layer=line.attributes.get("pool_layer", 0), scale=1.0,
        )  # fmt: skip
        if line.index in self._fused:
            add = self._program.lines[self._fused[line.index]]
            residual = next(v for v in add.inputs if v.id != out.id)
            instruction.in2, out = self._offset(residual), add.output
        if line.op.kind != "sample":
            instruction.out = self._offset(out)
        instruction.out_quant, instruction.outlier = self._arena.quantised.get(out.id, -1), self._outlier(line.output)
        fill = getattr(self, f"_{line.op.kind}", None)
        if fill is not None:
            fill(instruction, line)
        return instruction

    def _outlier(self, value: Value) -> float:
        return outlier_of(self._activations, self._kinds[value.id])

    def _offset(self, value: Value) -> int:
        return self._arena.offsets[value.id]

    def _embed(self, instruction: Any, line: Line) -> None:
        instruction.scale = line.attributes["scale"]
        self._matrix(instruction, 0, line.weights[0])

    def _norm(self, instruction: Any, line: Line) -> None:
        instruction.eps = line.attributes["eps"]
        self._vectors(instruction, line)

    def _vectors(self, instruction: Any, line: Line) -> None:
        for slot, weight in zip(instruction.weight, line.weights, strict=False):
            gain = self.weights.vector(weight)
            slot.data, slot.bytes, slot.format = gain.ctypes.data, gain.nbytes, native.RL_F32
            slot.rows, slot.columns = 1, len(gain)

    def _head_norm(self, instruction: Any, line: Line) -> None:
        self._heads(instruction, line)
        self._norm(instruction, line)

    def _linear(self, instruction: Any, line: Line) -> None:
        parts = line.attributes["parts"]
        instruction.parts = parts
        biases = iter(line.weights[parts:])
        for part, (weight, biased) in enumerate(zip(line.weights[:parts], line.attributes["biased"], strict=True)):
            self._matrix(instruction, part, weight)
            if biased:
                instruction.weight[part].bias = self.weights.vector(next(biases)).ctypes.data
        instruction.in_quant = self._arena.quantised.get(line.inputs[0].id, -1)

    _head = _linear

    def _rope(self, instruction: Any, line: Line) -> None:
        self._heads(instruction, line)
        self._turn(instruction, line.attributes["rope"])

    def _turn(self, instruction: Any, rope: Any) -> None:
        cos, sin = rope.tables()
        self.kept += [cos, sin]
        instruction.rotary_dim = rope.dim
        instruction.flags = native.RL_ROPE_INTERLEAVED if rope.interleaved else 0
        instruction.rope_cos, instruction.rope_sin = cos.ctypes.data, sin.ctypes.data

    def _attend(self, instruction: Any, line: Line) -> None:
        self._heads(instruction, line)
        attributes = line.attributes
        instruction.scale, instruction.group = attributes["scale"], attributes["group"]
        instruction.recent = attributes["recent_group"]
        instruction.window, instruction.sinks = attributes["window"], attributes["sinks"]
        if attributes["sinks"] and attributes["rope"] is not None:
            self._turn(instruction, attributes["rope"])

    def _conv(self, instruction: Any, line: Line) -> None:
        self._state(instruction, line)
        taps = self.weights.taps(line.weights[0])
        slot = instruction.weight[0]
        slot.data, slot.bytes, slot.format = taps.ctypes.data, taps.nbytes, native.RL_F32
        slot.rows, slot.columns = taps.shape
        if len(line.weights) > 1:
            slot.bias = self.weights.vector(line.weights[1]).ctypes.data

    def _scan(self, instruction: Any, line: Line) -> None:
        self._state(instruction, line)
        self._vectors(instruction, line)
        instruction.in2 = self._offset(line.inputs[1])

    def _gated_norm(self, instruction: Any, line: Line) -> None:
        self._state(instruction, line)
        self._norm(instruction, line)
        instruction.in2 = self._offset(line.inputs[1])

    def _state(self, instruction: Any, line: Line) -> None:
        shape = line.attributes["shape"]
        instruction.layer = line.attributes.get("state_layer", 0)
        instruction.heads, instruction.kv_heads, instruction.head_dim = shape.heads, shape.groups, shape.head_dim
        instruction.states, instruction.taps = shape.states, shape.taps

    def _activation(self, instruction: Any, line: Line) -> None:
        instruction.activation = ACTIVATIONS[line.attributes["function"]]

    def _route(self, instruction: Any, line: Line) -> None:
        routing = self._routing(instruction, line)
        instruction.scale, instruction.groups, instruction.groups_kept = (
            routing.scale, routing.groups, routing.groups_kept,
        )  # fmt: skip
        sigmoid = native.RL_ROUTE_SIGMOID if routing.score == "sigmoid" else 0
        instruction.flags = sigmoid | (native.RL_ROUTE_RENORMALISE if routing.renormalise else 0)
        self._vectors(instruction, line)

    def _dispatch(self, instruction: Any, line: Line) -> None:
        self._routing(instruction, line)
        instruction.in2 = self._offset(line.inputs[1])

    def _experts(self, instruction: Any, line: Line) -> None:
        experts = self._routing(instruction, line).experts
        instruction.in2, instruction.parts = self._offset(line.inputs[1]), 3
        instruction.activation = ACTIVATIONS[line.attributes["function"]]
        instruction.in_quant = self._arena.quantised.get(line.inputs[0].id, -1)
        instruction.work = self._arena.work[line.output.id]
        for slot, stack in zip(instruction.weight, line.weights, strict=True):
            packed = self.weights.stack(stack, experts)
            slot.data, slot.bytes = packed.data.ctypes.data, packed.nbytes
            slot.format, slot.rows, slot.columns = stack.format.native, stack.rows // experts, stack.columns

    def _combine(self, instruction: Any, line: Line) -> None:
        self._routing(instruction, line)
        instruction.in2 = self._offset(line.inputs[1])
        instruction.in3, instruction.in4 = [*(self._offset(value) for value in line.inputs[2:]), -1, -1][:2]

    def _routing(self, instruction: Any, line: Line) -> Any:
        routing = line.attributes["routing"]
        instruction.experts, instruction.chosen = routing.experts, routing.chosen
        return routing

    def _add(self, instruction: Any, line: Line) -> None:
        instruction.in2 = self._offset(line.inputs[1])

    def _heads(self, instruction: Any, line: Line) -> None:
        instruction.heads, instruction.kv_heads = line.attributes["heads"], line.attributes["kv_heads"]
        instruction.head_dim = line.attributes["head_dim"]

    def _matrix(self, instruction: Any, part: int, weight: Weight) -> None:
        packed = self.weights.matrix(weight)
        data = getattr(packed, "data", packed)
        slot = instruction.weight[part]
        slot.data, slot.bytes = data.ctypes.data, data.nbytes
        slot.format, slot.rows, slot.columns = weight.format.native, weight.rows, weight.columns
