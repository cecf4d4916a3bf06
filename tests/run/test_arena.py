"""The arena never lets two live values share bytes, except where one is meant to overwrite the other."""

import pytest

from ridgeline.ops.program import Program
from ridgeline.run.arena import StepLimits, fused_adds, plan_arena, quantised_row_bytes

from .test_count import Shape, record

LIMITS = StepLimits(tokens=33, logit_rows=5, sequences=8, context=64)


def live_bytes(program: Program, bodies: tuple[str, ...], quantised: frozenset[int]) -> None:
    arena = plan_arena(program, bodies, LIMITS, quantised)
    fused = fused_adds(program, bodies)
    last = {v.id: max((line.index for line in program if v in line.inputs), default=-1) for v in program.values}
    owner: dict[int, tuple[str, int]] = {}  # 64-byte cell -> the value written there
    for line in program:
        if line.index in fused.values():
            continue  # done by its linear
        for value in line.inputs:
            assert owner[arena.offsets[value.id] // 64] == ("f32", value.id), f"{line.name} reads overwritten bytes"
        out = line.output
        if line.index in fused:
            add = program.lines[fused[line.index]]
            residual = next(v for v in add.inputs if v is not out)
            assert owner[arena.offsets[residual.id] // 64] == ("f32", residual.id)
            out = add.output
        writes = [("f32", arena.offsets[out.id], LIMITS.rows(out) * out.width * 4)]
        if out.id in quantised:
            writes.append(("quant", arena.quantised[out.id], LIMITS.rows(out) * quantised_row_bytes(out.width)))
        for kind, begin, size in writes:
            assert begin % 64 == 0
            assert begin + size <= arena.nbytes
            for cell in range(begin // 64, (begin + size + 63) // 64):
                previous = owner.get(cell)
                if previous is not None and previous[1] != out.id:
                    readers_left = last[previous[1]] > line.index + (1 if line.index in fused else 0)
                    assert not readers_left, f"{line.name} overwrites value {previous} that is read later"
                owner[cell] = (kind, out.id)


@pytest.mark.parametrize("body", ["cpp", "torch"])
@pytest.mark.parametrize("quantise", [True, False])
def test_no_live_value_is_overwritten(body: str, quantise: bool) -> None:
    program = record(Shape(), "q8_0")
    reads = frozenset(line.inputs[0].id for line in program if line.op.kind in ("linear", "head"))
    live_bytes(program, (body,) * len(program.lines), reads if quantise else frozenset())


def test_residual_sums_fuse_only_between_native_lines() -> None:
    program = record(Shape(), "bf16")
    lines = len(program.lines)
    assert len(fused_adds(program, ("cpp",) * lines)) == 2 * 3
    assert fused_adds(program, ("torch",) * lines) == {}
    bodies = tuple("torch" if line.part == "mlp_add" else "cpp" for line in program)
    assert len(fused_adds(program, bodies)) == 3


def test_the_arena_is_much_smaller_than_the_sum_of_values() -> None:
    program = record(Shape(layers=30), "bf16")
    arena = plan_arena(program, ("cpp",) * len(program.lines), LIMITS, frozenset())
    apart = sum(LIMITS.rows(value) * value.width * 4 for value in program.values)
    assert arena.nbytes < apart / 20
