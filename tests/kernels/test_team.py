"""The thread team and the tape's checks: many tiny steps, more threads than cores, idle costs nothing, bad tapes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError, UserError

from .steps import Arena, Batch, Heads, instruction, packed_random, pool_for, run, set_weight


def adds(count: int, rows: int) -> tuple[Arena, list[native.RlInstr], int]:
    """1 + 1 + ... through `count` steps that each need a barrier (other row counts in turn)."""
    arena = Arena()
    one, out = arena.place(np.ones((rows, 16), np.float32)), arena.place(np.zeros((rows, 16), np.float32))
    add = {"in2": one, "out": out, "source": out, "width_in": 16, "width_out": 16}
    return arena, [instruction(native.RL_ADD, per_logit_row=i % 2, **add) for i in range(count)], out


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_many_barriers_lose_nothing(threads) -> None:
    with native.Team(threads) as team:
        for _ in range(20):
            arena, tape, out = adds(200, rows=11)
            run(team, tape, arena, Batch(11, 11))
            np.testing.assert_array_equal(arena.read(out, 11, 16), np.full((11, 16), 200, np.float32))
        assert team.calls == 20


def test_beside_busy_processes_nothing_is_lost() -> None:
    """Members that are kept from running leave a job in its midst, and the caller ends it alone (KERNELS.md §1)."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        with native.Team(2) as team:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                arena, tape, out = adds(100, rows=11)
                run(team, tape, arena, Batch(11, 11))
                np.testing.assert_array_equal(arena.read(out, 11, 16), np.full((11, 16), 100, np.float32))
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_teams_come_and_go() -> None:
    before = threading.active_count()
    for i in range(60):
        with native.Team(1 + i % 7) as team:
            if i % 2:
                arena, tape, out = adds(3, rows=2)
                run(team, tape, arena, Batch(2, 2))
                assert arena.read(out, 2, 16)[0, 0] == 3
        team.close()  # again: nothing
    assert threading.active_count() == before
    with open("/proc/self/status") as status:
        threads = next(int(line.split()[1]) for line in status if line.startswith("Threads"))
    assert threads < 200


def test_two_teams_run_at_once() -> None:
    results = []

    def work() -> None:
        with native.Team(2) as team:
            for _ in range(20):
                arena, tape, out = adds(50, rows=5)
                run(team, tape, arena, Batch(5, 5))
                results.append(arena.read(out, 5, 16)[4, 15])

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [50.0] * 60


def test_an_idle_team_uses_no_processor_time() -> None:
    with native.Team(4) as team:
        arena, tape, _ = adds(4, rows=4)
        run(team, tape, arena, Batch(4, 4))
        time.sleep(0.05)  # spinning ends within this
        before = resource.getrusage(resource.RUSAGE_SELF)
        time.sleep(0.3)
        after = resource.getrusage(resource.RUSAGE_SELF)
    # the test's own thread sleeps too; 4 spinning threads would show as 0.6 s on two cores
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.03


def test_a_call_from_python_costs_little() -> None:
    with native.Team(1) as team:
        tape, batch = native.Tape([]), Batch(1)
        arena, scratch = native.aligned(64), native.aligned(64)
        times = []
        for _ in range(300):
            begin = time.perf_counter()
            native.execute(team, tape, arena, scratch, None, batch.struct)
            times.append(time.perf_counter() - begin)
    assert sorted(times)[30] < 10e-6  # an undisturbed call; 3 us where this was written


def test_line_times_are_written_for_every_line() -> None:
    with native.Team(2) as team:
        arena, tape, _ = adds(6, rows=64)
        for i, op in enumerate(tape):
            op.line = i // 2
        times = np.full(4, -5, np.int64)
        run(team, tape, arena, Batch(64, 64, line_ns=times))
        assert (times[:3] >= 0).all() and times[:3].sum() > 0 and times[3] == -5


def test_ceilings_are_positive() -> None:
    with native.Team(2) as team:
        data = np.ones(1 << 20, np.uint8)
        assert native.measure_read(team, data, 1) > 0 < native.measure_read(team, data, 2)
        for kind in (0, 1):
            seconds, operations = native.measure_flops(team, kind, 1000, 2)
            assert seconds > 0 and operations > 0
        assert native.measure_flops(team, 2, 10, 1)[1] == 0  # no bf16 dot here yet
        assert 0 < native.measure_barrier(team, 100) < 0.1


def test_unknown_instruction_sets_and_thread_counts_are_refused() -> None:
    with pytest.raises(UserError, match=r"cannot run here. Available: plain"):
        native.set_isa("sse9")
    with pytest.raises(UserError, match="at least 1"):
        native.Team(0)


# -- bad tapes

Change = Callable[[native.RlInstr, Batch], object]


def embed_tape() -> tuple[native.RlInstr, Arena, Batch, object]:
    arena = Arena()
    weight = packed_random("q4_1", 20, 64)
    op = instruction(native.RL_EMBED, out=arena.room(2 * 64 * 4), width_out=64)
    set_weight(op.weight[0], weight)
    return op, arena, Batch(2, token_ids=np.array([0, 19], np.int32)), weight


def set_field(name: str, value: int) -> Change:
    return lambda op, batch: setattr(op, name, value)


def set_weight_field(name: str, value: int | None) -> Change:
    return lambda op, batch: setattr(op.weight[0], name, value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_field("op", 99), "an unknown operation"),
        (set_field("op", 0), "an unknown operation"),
        (set_weight_field("format", 99), "an unknown weight format"),
        (set_weight_field("data", None), "a weight that is null"),
        (set_weight_field("data", 64 + 8), "a weight that is null, misaligned"),
        (set_weight_field("bytes", 5), "another size than its shape"),
        (set_weight_field("rows", 40), "another size than its shape"),
        (set_field("width_out", 32), "another size than its shape"),
        (set_field("out", -1), "a missing or misaligned buffer"),
        (set_field("out", 4), "a missing or misaligned buffer"),
        (lambda op, batch: batch.__setitem__("token_ids", np.array([0, 20], np.int32)), "a batch with a token"),
        (lambda op, batch: batch.__setitem__("token_ids", np.array([-1, 0], np.int32)), "a batch with a token"),
        (set_field("op", native.RL_NORM), "a missing or misaligned buffer"),
        (set_field("op", native.RL_ATTEND), "a missing or misaligned buffer"),
    ],
)
def test_a_bad_tape_is_named_and_nothing_runs(change: Change, fault: str) -> None:
    op, arena, batch, weight = embed_tape()
    with native.Team(2) as team:
        run(team, [op], arena, batch, kept=weight)
        change(op, batch)
        with pytest.raises(InvariantError, match=f"instruction 0 .*has {fault}|{fault}"):
            run(team, [op], arena, batch, kept=weight)
        assert (arena.data == 0xA5).all()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"layer": 2}, "no KV pool"),
        ({"window": -1}, "widths"),
        ({"head_dim": 12}, "impossible number or size of heads"),
        ({"kv_heads": 0}, "impossible number or size of heads"),
        ({"heads": 8}, "widths"),
    ],
    ids=str,
)
def test_attention_outside_its_pool_is_refused(teams, change: dict[str, int], fault: str) -> None:
    heads = Heads(4, 2, 16)
    kv, pool = pool_for(heads, 2, layers=2)
    fields = {"heads": 4, "kv_heads": 2, "head_dim": 16, "window": 0, "layer": 1} | change
    arena = Arena()
    source, out = arena.room(heads.width * 4), arena.room(256)
    op = instruction(native.RL_ATTEND, source=source, out=out, width_in=heads.width, width_out=64, **fields)
    zero = np.zeros(2, np.int32)
    for block, stride in ((0, 1), (2, 1), (-1, 1)):
        batch = Batch(1, positions=zero, sequence_of=zero, block_table=zero + block)
        batch["first_token"] = np.array([0, 1], np.int32)
        batch.struct.table_stride = stride
        with pytest.raises(InvariantError, match=fault):
            run(teams(2), [op], arena, batch, pool)
        good = instruction(native.RL_ATTEND, source=source, out=out, width_in=heads.width, width_out=64,
                           heads=4, kv_heads=2, head_dim=16, layer=1)  # fmt: skip
        if block == 0:
            run(teams(2), [good], arena, batch, pool)
        else:
            with pytest.raises(InvariantError, match="a batch with a token"):
                run(teams(2), [good], arena, batch, pool)
    assert (kv.keys(1, 0, 0) == 0xFF).all()


def test_a_closed_team_runs_nothing() -> None:
    op, arena, batch, weight = embed_tape()
    team = native.Team(2)
    team.close()
    with pytest.raises(InvariantError, match="closed team"):
        run(team, [op], arena, batch, kept=weight)
