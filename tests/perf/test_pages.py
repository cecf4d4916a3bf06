"""Pages: an account that is turned says what one that is not would say, in memory that does not grow."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ridgeline.perf.account import Account, StepTable
from ridgeline.perf.ledger import make_ledger
from ridgeline.perf.pages import Pages, bound, weight
from ridgeline.perf.shadow import DISABLED, EVICTED, SALT, Known, Shadow
from ridgeline.perf.summary import summarise
from ridgeline.perf.totals import Totals, Window
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence

from .conftest import record, round_machine
from .test_account import entry

LINES = 12


def live(accounts: list[Account], steps: int, seed: int, turn=lambda step: None) -> None:
    """The same life for every account: sequences come, are computed and end; sometimes nobody is there."""
    draw = random.Random(seed)
    now_s, running, number = 1.0, {}, 0
    for step in range(steps):
        turn(step)
        if (draw.random() < 0.3 and len(running) < 5) or not running:
            now_s += draw.choice((0.0, 0.5)) if not running else 0.0
            number += 1
            running[number] = [0, draw.randint(3, 40), draw.randint(2, 30), now_s]  # computed, prompt, output, arrival
        entries = []
        for name, (done, prompt, _, _) in running.items():
            tokens = min(16, prompt - done) if done < prompt else 1
            entries.append(entry(name, done, tokens, chooses=done + tokens >= prompt))
        began_s, now_s = now_s + 0.001 * draw.random(), now_s + 0.001 + 0.01 * draw.random()
        line_ns = np.array([draw.randint(1, 500) for _ in range(LINES)], np.int64)
        result = StepResult((), began_s, now_s, line_ns, 1, native_ns=int(line_ns.sum()) + 50)
        for account in accounts:
            account.on_step(StepPlan(tuple(entries)), result)
        for one in entries:
            running[one.sequence][0] += len(one.tokens)
        for name, (done, prompt, output, arrival_s) in list(running.items()):
            if done >= prompt + output - 1:
                del running[name]
                asked = Request(str(name), (1,) * prompt, output)
                ended = Sequence(name, asked, arrival_s, [1] * (prompt + output))
                for account in accounts:
                    account.on_finish(ended, "length", now_s)


@pytest.mark.parametrize("seed", range(4))
def test_pages_one_after_the_other_are_the_account(seed: int) -> None:
    parts = tuple(f"part {line % 3}" for line in range(LINES))
    whole, turned = Account(parts=parts), Account(parts=parts)
    pages: list[StepTable] = []
    cuts = set(random.Random(seed).sample(range(300), 6))

    def turn(step: int) -> None:
        if step in cuts:
            pages.append(turned.table())
            turned.turn()

    live([whole, turned], 300, seed, turn)
    one, many = whole.table(), bound([*pages, turned.table()])
    assert one.shapes == many.shapes and one.times == many.times and one.line_ns == many.line_ns
    assert one.finished == many.finished and one.native_ns == many.native_ns and one.experts == many.experts
    assert one.host_s + one.idle_s == pytest.approx(many.host_s + many.idle_s)
    for name in ("entries", "steps", "held", "preempted", "restored", "ended", "first_step", "since_s"):
        assert getattr(one.timeline, name) == getattr(many.timeline, name)
    first, second = make_ledger(one), make_ledger(many)
    assert first.requests == second.requests and first.partial == second.partial == 0 and len(first.requests) > 10


def test_an_endless_account_stays_small_and_its_sums_stay_whole() -> None:
    program, machine = record(), round_machine()
    lines = len(list(program))
    account, whole, kept, totals = Account(), Account(), Pages(kept_bytes=40_000), Totals()
    heaviest: list[int] = []
    forgotten: list[str] = []

    def turn(step: int) -> None:
        if step % 100:
            return
        page = account.table()
        account.turn()
        forgotten.extend(kept.add(page))
        heaviest.append(weight(account.table()))
        totals.add(Window(0.0, 0.0, summarise(_without_lines(page, lines), program, machine)))

    live([account, whole], 2001, 7, turn)
    assert max(heaviest) < 1000  # what is left after a turn: nothing that counts steps
    assert weight(kept.with_last(account.table())) < 60_000 < weight(whole.table())
    assert len(set(forgotten)) == len(forgotten) > 50
    assert kept.begun_s is not None and kept.with_last(account.table()).begun_s == kept.begun_s
    last = summarise(_without_lines(account.table(), lines), program, machine)
    totals.add(Window(0.0, 0.0, last))
    expected = summarise(_without_lines(whole.table(), lines), program, machine)
    assert totals.steps == expected.steps == 2001
    assert totals.engine_s + totals.idle_s == pytest.approx(expected.wall_s)
    assert totals.engine_s == pytest.approx(expected.step_s + expected.host_s, rel=1e-3)
    for phase in expected.phases:
        assert totals.phase_s[phase.name] == pytest.approx(phase.seconds, rel=1e-6)
    assert totals.flops == pytest.approx(sum(phase.flops for phase in expected.phases))


def _without_lines(table: StepTable, lines: int) -> StepTable:
    import msgspec

    return msgspec.structs.replace(table, line_ns=np.zeros((8, lines), np.int64).tobytes())


def test_what_a_cache_lost_is_told_with_its_reason() -> None:
    shadow = Shadow(4)
    prompt = tuple(range(10))
    assert shadow.look(prompt, "a") == Known(0, 0)
    again = shadow.look(prompt, "a")
    assert again == Known(8, 8) and shadow.lost(again, 8) == {} and shadow.lost(again, 4) == {EVICTED: 4}
    other = shadow.look(prompt, "b")
    assert other == Known(8, 0) and shadow.lost(other, 0) == {SALT: 8}
    assert shadow.look((*prompt[:4], 99, 98, 97, 96, 95), "a").anybody == 4
    assert Shadow(4, is_sharing=False).lost(Known(8, 8), 0) == {DISABLED: 8}
    small = Shadow(4, places=4)
    for begin in range(50):
        small.look(tuple(range(begin, begin + 10)))
    assert small.look(tuple(range(10))).anybody < 8  # forgotten, and so it counts as new
