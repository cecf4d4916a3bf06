"""The account: phases are named right, nothing is counted twice, and everything sums."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe
from ridgeline.models.load import record as record_model
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.kv import Reach
from ridgeline.perf.account import NOTED, Account, StepTable
from ridgeline.perf.attribution import Attribution
from ridgeline.perf.phases import DECODE, PHASES, PREFILL, RECOMPUTE
from ridgeline.perf.roofline import COMPUTE, HOST, KV_BANDWIDTH, WEIGHT_BANDWIDTH
from ridgeline.perf.summary import summarise
from ridgeline.run.count import total
from ridgeline.state.plan import Entry, LogitRow, StepPlan, StepResult
from ridgeline.state.request import Request, Sampling
from ridgeline.state.sequence import Sequence

from .conftest import record, round_machine

BLOCKS = np.zeros(64, np.int32)


def entry(sequence: int, start: int, tokens: int, chooses: bool) -> Entry:
    rows = (LogitRow(tokens - 1, start + tokens, Sampling()),) if chooses else ()
    return Entry(sequence, start, (7,) * tokens, (BLOCKS,), rows)


def scoring(sequence: int, start: int, tokens: int) -> Entry:
    rows = tuple(LogitRow(i, start + i + 1, Sampling(), target=3, logprobs=0) for i in range(tokens))
    return Entry(sequence, start, (7,) * tokens, (BLOCKS,), rows)


class Story:
    """Feeds steps to an Account; every line of a step takes `line_ns`."""

    def __init__(self, lines: int, reaches: tuple[Reach, ...] = ()) -> None:
        self.account = Account(reaches)
        self.lines = lines
        self.now_s = 0.0

    def step(self, *entries: Entry, seconds: float = 0.1, line_ns: int = 1000, wait_s: float = 0.0) -> None:
        started = self.now_s + wait_s
        self.now_s = started + seconds
        timed = np.full(self.lines, line_ns, np.int64)
        self.account.on_step(StepPlan(entries), StepResult((), started, self.now_s, timed, 1))

    def finish(self, sequence: int, arrival_s: float = 0.0, preemptions: int = 0) -> None:
        request = Request(str(sequence), (1, 2), 4)
        done = Sequence(sequence, request, arrival_s, [1, 2], preemptions=preemptions)
        self.account.on_finish(done, "length", self.now_s)


def seen(story: Story) -> StepTable:
    """Its table, but for what the system did meanwhile and what noting took."""
    return msgspec.structs.replace(story.account.table(), process=None, account_ns=0)


def phases_of(story: Story) -> list[tuple[int, int, int]]:
    """(step, phase, tokens)"""
    return [(int(r[0]), int(r[1]), int(r[2])) for r in story.account.table().shape_rows()]


def test_a_chunked_prompt_is_prefill_until_its_last_chunk_even_when_that_is_one_token():
    story = Story(1)
    story.step(entry(1, 0, 8, False))
    story.step(entry(1, 8, 1, True))  # the last chunk of a prompt of 9
    story.step(entry(1, 9, 1, True))
    assert phases_of(story) == [(0, PREFILL, 8), (1, PREFILL, 1), (2, DECODE, 1)]


def test_scored_rows_do_not_end_the_prompt():
    story = Story(1)
    story.step(scoring(1, 0, 4))
    story.step(scoring(1, 4, 4))
    assert [phase for _, phase, _ in phases_of(story)] == [PREFILL, PREFILL]


def test_what_was_computed_before_is_recompute_and_later_tokens_are_decode_again():
    story = Story(1)
    story.step(entry(1, 0, 4, True))
    story.step(entry(1, 4, 1, True))
    story.step(entry(1, 0, 5, False))  # preempted: all 5 again
    story.step(entry(1, 5, 1, True))
    assert [phase for _, phase, _ in phases_of(story)] == [PREFILL, DECODE, RECOMPUTE, DECODE]


def test_one_that_others_have_begun_is_decode_from_its_first_step():
    story = Story(1)
    story.step(msgspec.structs.replace(entry(1, 20, 1, True), given=20))
    story.step(msgspec.structs.replace(entry(2, 16, 4, True), given=20), entry(1, 21, 1, True))
    assert phases_of(story) == [(0, DECODE, 1), (1, PREFILL, 4), (1, DECODE, 1)]
    story.account.reset()  # whoever runs on is met again
    story.step(msgspec.structs.replace(entry(1, 22, 1, True), given=20))
    assert phases_of(story) == [(0, DECODE, 1)]


def test_a_prefix_hit_starts_late_and_is_prefill():
    story = Story(1)
    story.step(entry(1, 16, 4, True))
    assert phases_of(story) == [(0, PREFILL, 4)]


def test_shapes_by_phase_add_up_to_the_shape_of_the_plan():
    story = Story(1, reaches=(Reach(3),))
    story.step(entry(1, 0, 6, True))
    story.step(entry(1, 6, 1, True), entry(2, 0, 9, True), entry(3, 0, 2, False))
    rows = story.account.table().shape_rows()
    mixed = rows[rows[:, 0] == 1].sum(0)
    expected = BatchShape.of([(6, 1), (0, 9), (0, 2)], 2, (Reach(3),))
    assert list(mixed[2:]) == [
        expected.tokens, expected.logit_rows, expected.sequences, expected.pairs, expected.kv_tokens,
        *expected.reached[Reach(3)],
    ]  # fmt: skip


def test_gaps_are_host_time_while_somebody_runs_and_idle_otherwise():
    story = Story(1)
    story.step(entry(1, 0, 4, True))
    story.step(entry(1, 4, 1, True), wait_s=0.02)  # somebody was running
    story.finish(1)
    story.step(entry(2, 0, 4, True), wait_s=1.0)  # nobody was, until 0.25 s before
    story.finish(2, arrival_s=story.now_s - 0.1 - 0.25)
    table = story.account.table()
    assert table.host_s == pytest.approx(0.02 + 0.25)
    assert table.idle_s == pytest.approx(0.75)


def test_the_wall_is_steps_and_host_and_idle():
    program = record()
    story = Story(len(program.lines))
    story.step(entry(1, 0, 4, True), seconds=0.3)
    story.step(entry(1, 4, 1, True), wait_s=0.05)
    story.finish(1)
    story.step(entry(2, 0, 4, True), wait_s=0.5)
    result = summarise(story.account.table(), program, round_machine())
    assert result.wall_s == pytest.approx(result.step_s + result.host_s + result.idle_s)
    assert abs(result.residual_s) < 1e-9
    assert result.step_s == pytest.approx(0.5)
    assert result.operators_s == pytest.approx(3 * len(program.lines) * 1e-6)
    assert result.operators_s + result.between_operators_s == pytest.approx(result.step_s)
    assert result.native_calls == 3 and result.steps == 3 and result.mixed_steps == 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 20), st.booleans()), min_size=1, max_size=3),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_phases_sum_to_the_run_whatever_the_schedule(steps):
    """Identity 2 and 5 of EXPLAIN §3: seconds, FLOPs and bytes of phases, and of parts, are those of the steps."""
    program = record(layers=3, window=5)
    story, done, shapes = Story(len(program.lines), program.reaches), {}, []
    for step in steps:
        entries = []
        for sequence, tokens, chooses in {s[0]: s for s in step}.values():
            start = done.get(sequence, 0)
            start = 0 if start > 30 else start  # preempted
            done[sequence] = start + tokens
            entries.append(entry(sequence, start, tokens, chooses))
        story.step(*entries)
        rows = sum(len(e.rows) for e in entries)
        shapes.append(BatchShape.of([(e.start, len(e.tokens)) for e in entries], rows, program.reaches))
    result = summarise(story.account.table(), program, round_machine())
    whole = [total(program, shape) for shape in shapes]
    for name in ("flops", "weight_bytes", "kv_bytes", "activation_bytes"):
        expected = sum(getattr(cost, name) for cost in whole)
        assert sum(getattr(phase, name) for phase in result.phases) == pytest.approx(expected)
    for name in ("flops", "weight_bytes", "kv_bytes"):
        assert sum(getattr(part, name) for part in result.parts) == pytest.approx(
            sum(getattr(cost, name) for cost in whole)
        )
    assert sum(phase.seconds for phase in result.phases) == pytest.approx(result.step_s)
    assert sum(phase.predicted_s for phase in result.phases) == pytest.approx(result.predicted_s)
    assert sum(part.seconds for part in result.parts) == pytest.approx(result.operators_s)
    assert sum(sum(part.by_phase_s.values()) for part in result.parts) == pytest.approx(result.operators_s)
    assert sum(phase.tokens for phase in result.phases) == sum(shape.tokens for shape in shapes)
    assert sum(point.seconds for point in result.points) == pytest.approx(result.operators_s)
    assert sum(point.flops for point in result.points) == pytest.approx(sum(part.flops for part in result.parts))
    for point in result.points:
        if point.share is not None:
            assert point.achieved_flops_per_s == pytest.approx(point.share * (point.ceiling_flops_per_s or 0.0))
            assert (point.gap_s or 0.0) == pytest.approx(point.seconds * (1 - point.share))


def test_every_operator_stands_under_its_own_roof():
    program = record()
    story = Story(len(program.lines))
    for position in range(4):
        story.step(entry(1, position, 1, True), line_ns=10**6)
    result = summarise(story.account.table(), program, round_machine(bytes_per_s=1e6, flops_per_s=1e8))
    points = {point.name: point for point in result.points if point.phase == "decode"}
    out = points["out"]  # 8 x 8 in f32, two layers, three steps of one token
    assert (out.flops, out.stored_bytes, out.seconds) == (2 * 64 * 6, 4 * 64 * 6, pytest.approx(6e-3))
    assert (out.intensity, out.ceiling_flops_per_s) == (0.5, pytest.approx(0.5e6))
    assert out.share == pytest.approx(0.256) and out.gap_s == pytest.approx(6e-3 * 0.744)
    assert out.roof == WEIGHT_BANDWIDTH and out.kind == "f32"
    assert points["attend"].roof == KV_BANDWIDTH
    assert points["attend_norm"].intensity is None and points["embed"].share is None  # they live in the caches
    assert result.points[0].seconds == max(point.seconds for point in result.points)


def test_weights_of_a_mixed_step_are_read_once_and_shared():
    program = record()
    story = Story(len(program.lines))
    story.step(entry(1, 0, 3, True))
    story.step(entry(1, 3, 1, True), entry(2, 0, 7, True))
    split = Attribution(story.account.table(), program, round_machine())
    mixed_weights = total(program, BatchShape.of([(3, 1), (0, 7)], 2)).weight_bytes
    first = total(program, BatchShape.of([(0, 3)], 1)).weight_bytes
    decode = split.phases[DECODE].cost.weight_bytes
    assert split.phases[PREFILL].cost.weight_bytes + decode == pytest.approx(first + mixed_weights)
    head = 32 * 8 * 4  # one row of two; of everything else, one token of eight
    assert decode == pytest.approx(head / 2 + (mixed_weights - head) / 8)
    assert split.split.sum(0) == pytest.approx([1.0, 1.0])


def test_the_roof_named_is_the_one_that_binds():
    program = record()
    story = Story(len(program.lines))
    for position in range(4):
        story.step(entry(1, position, 1, position >= 0))
    memory = summarise(story.account.table(), program, round_machine(bytes_per_s=1e6, flops_per_s=1e12))
    arithmetic = summarise(story.account.table(), program, round_machine(bytes_per_s=1e12, flops_per_s=1e6))
    assert {phase.roof for phase in memory.phases} == {WEIGHT_BANDWIDTH}
    assert {phase.roof for phase in arithmetic.phases} == {COMPUTE}
    decode = memory.phase("decode")
    assert decode is not None
    # three decode steps; only stored bytes count: roof seconds = bytes / bandwidth, share = that / wall
    assert decode.roof_s == pytest.approx((decode.weight_bytes + decode.kv_bytes) / 1e6, rel=0.02)
    assert decode.roof_share == pytest.approx(decode.roof_s / decode.seconds)
    assert decode.achieved_bytes_per_s == pytest.approx(decode.roof_share * 1e6, rel=0.02)


def test_when_steps_are_the_smaller_part_the_host_binds():
    program = record()
    story = Story(len(program.lines))
    story.step(entry(1, 0, 4, True), seconds=0.01)
    story.step(entry(1, 4, 1, True), seconds=0.01, wait_s=0.1)
    assert summarise(story.account.table(), program, round_machine()).bound == HOST


def test_an_empty_run_is_all_zeros_and_a_reset_forgets():
    program = record()
    story = Story(len(program.lines))
    story.step(entry(1, 0, 4, True))
    story.finish(1, preemptions=2)
    assert story.account.table().preemptions == 2
    story.account.reset()
    result = summarise(story.account.table(), program, round_machine())
    assert (result.steps, result.wall_s, result.phases, result.preemptions) == (0, 0.0, (), 0)
    assert result.to_dict()["bound"] == "nothing ran"


def test_untimed_lines_leave_parts_without_seconds():
    program = record()
    account = Account()
    account.on_step(StepPlan((entry(1, 0, 4, True),)), StepResult((), 0.0, 0.5))
    result = summarise(account.table(), program, round_machine())
    assert result.operators_s == 0 and result.between_operators_s == 0
    assert all(part.seconds == 0 and part.by_phase_s == {} for part in result.parts)
    assert [phase.name for phase in result.phases] == [PHASES[PREFILL]]


def test_weights_of_experts_are_those_that_ran():
    """A16: the step says how many distinct experts ran; without a count, what even routing leads one to expect."""
    program = record_model(describe("random:mixture-64x2"), STORAGES.get("bf16"))
    stacks = sum(weight.nbytes for line in program if line.op.kind == "experts" for weight in line.weights)
    for counted, expected in ((5.5, 5.5), (None, 64 * (1 - (62 / 64) ** 4))):
        account = Account()
        plan = StepPlan(tuple(entry(i, 3, 1, True) for i in range(4)))
        timed = np.full(len(program.lines), 1000, np.int64)
        account.on_step(plan, StepResult((), 0.0, 0.1, timed, 1, experts=counted))
        work = Attribution(account.table(), program, round_machine()).parts["experts"]
        assert work.cost.weight_bytes == pytest.approx(stacks * expected / 64)


HOW = ("choose", "score", "none")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(1, 4), st.integers(0, 30), st.integers(1, 9), st.sampled_from(HOW)),
            min_size=1, max_size=4, unique_by=lambda one: one[0],
        ),
        min_size=1, max_size=10,
    ),
    st.sets(st.integers(0, 9)),
)  # fmt: skip
def test_counted_late_is_counted_the_same(steps: list[list[tuple[int, int, int, str]]], ends: set[int]) -> None:
    """Phases are named and shapes summed when somebody reads; reading after every step gives the same account."""
    late, eager = (Story(2, reaches=(Reach(5), Reach(4, 1))) for _ in range(2))
    finished: set[int] = set()
    for number, entries in enumerate(steps):
        running = [one for one in entries if one[0] not in finished]  # an id never comes back
        made = [scoring(s, a, n) if how == "score" else entry(s, a, n, how == "choose") for s, a, n, how in running]
        for story in (late, eager):
            story.step(*made, line_ns=number + 1)
        eager.account.table()
        if number in ends:
            finished.add(entries[0][0])
            for story in (late, eager):
                story.finish(entries[0][0])
    assert seen(late) == seen(eager)


def test_notes_are_summed_before_they_grow():
    account = Account()
    for step in range(400):
        account.on_step(
            StepPlan(tuple(entry(s, step, 1, True) for s in range(8))), StepResult((), step, step + 0.5, None, 1)
        )
        assert sum(1 + len(note[0]) for note in account._notes) < NOTED
    rows = account.table().shape_rows()
    assert len(rows) == 400 and rows[:, 2].sum() == 3200
    assert [PHASES[phase] for phase in rows[:3, 1]] == ["prefill", "decode", "decode"]
