"""--kv hack (E7) through the engine: promise 1 in every schedule, bytes by the closed form, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from ridgeline.kernels import native
from ridgeline.kit.errors import UserError
from ridgeline.memory.spans import kept_blocks
from ridgeline.memory.storage.storage import make_storage
from ridgeline.state.request import Request, Sampling

from .test_same_tokens_memory import TEXT, Always, Case, prompt_of, report, request
from .tiny import GEMMA3, LLAMA, TinyEngine, write_config

CONFIG = LLAMA | {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1}
STORAGE = make_storage("hack")


@pytest.fixture(scope="module", params=native.instruction_sets())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    before = native.isa()
    native.set_isa(request.param)
    request.addfinalizer(lambda: native.set_isa(before))
    return Case(write_config(tmp_path_factory.mktemp("model"), CONFIG), weights="q8_0", kv="hack", context=400)


LENGTHS = (130, 64, 7, 63, 65, 257, 128)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 7, "max_sequences": 4, "step_tokens": 16}, {"chunk": 64, "step_tokens": 300, "threads": 1},
        {"prefix": False, "step_tokens": 100}, {"spec": "ngram:k=5,n=1,adapt=off", "chunk": 50},
        {"place": "serial"}, {"paging": False, "prefix": False},
    ],
    ids=lambda options: ", ".join(options),
)  # fmt: skip
def test_the_same_ids_in_any_schedule(case: Case, options: dict[str, Any]) -> None:
    """Which tokens a row reads as codes and which as they came is decided by its own place alone."""
    requests = [request(f"r{i}", prompt_of(0, length, i)) for i, length in enumerate(LENGTHS)]
    case.check(requests, [0, 0, 3, 0, 2, 1], **{"max_sequences": 8} | options)


def test_the_same_ids_when_drawn_and_when_others_begin_alike(case: Case) -> None:
    drawn = Sampling(temperature=0.9, seed=7)
    requests = [request(f"r{i}", prompt_of(150, 9 + i, i), sampling=drawn) for i in range(5)]
    engine = case.check(requests, [0, 9, 9, 30, 31], chunk=48)
    assert report(engine)["tokens shared"] == 4 * 128  # whole blocks of 64


def test_beginnings_that_part_inside_a_block_do_not_share_its_pages(case: Case) -> None:
    """Tokens of a block share scales: its first pages are other pages when its last tokens are others."""
    requests = [request(f"r{i}", prompt_of(50, 90 + i, i)) for i in range(4)]
    case.check(requests, [0, 9, 9, 30], chunk=48)
    engine = TinyEngine(**{"model": case.model} | case.options)
    for one in requests:
        engine.engine.add(one)
    codes, _ = engine.engine.scheduler.memory.pools
    most = 0
    while engine.engine.has_work:
        engine.engine.step()
        most = max(most, codes.held_blocks)
    assert most == 4 * 2 * 64 // 16
    engine.engine.close()


def test_preempted_sequences_go_on_with_the_same_ids(case: Case) -> None:
    """A pool in which four cannot grow to their ends; what they had in whole blocks stays cached."""
    requests = [Request(f"r{i}", prompt_of(0, 60, i), 90, ignore_stop=True) for i in range(4)]
    block = case.single.engine.facts.kv_bytes_per_token * 16
    near = 2 * 2 * 64 * 2 * 16  # bf16, two layers of one head
    engine = case.check(requests, context=160, kv_bytes=16 * (block + near), max_sequences=4, step_tokens=64)
    assert engine.engine.scheduler.preemptions > 0


def test_guessed_tokens_that_cross_a_block_are_taken_back(case: Case) -> None:
    """Guesses close a block before it is known that they are right; it is closed again with what came instead."""
    text = (TEXT[:9] * 8)[:61]
    requests = [Request(f"r{i}", text[i:], 30, ignore_stop=True) for i in range(4)]
    engine = case.check(requests, spec="ngram:k=8,n=1,adapt=off", max_sequences=2)
    scheduler = engine.engine.scheduler
    assert all(pool.held_blocks == 0 for pool in scheduler.memory.pools)


def test_a_beginning_comes_back_from_a_tier(case: Case) -> None:
    """Codes, and the sinks of the first block, are saved and loaded; nothing else of the bf16 pages is."""
    requests = [request(f"r{i}", (*prompt_of(0, 150, i % 3), 5 + i)) for i in range(6)]
    block = case.single.engine.facts.kv_bytes_per_token * 16
    engine = TinyEngine(
        **{"model": case.model} | case.options, kv_bytes=14 * (block + 2 * 2 * 64 * 2 * 16), step_tokens=64,
        host_kv_bytes=1 << 20, max_sequences=1,
    )  # fmt: skip
    engine.engine.scheduler.memory.sharing.tiers.break_even = Always()
    got = engine.run(requests, [20 * i for i in range(6)])
    assert report(engine)["loaded"] >= 8
    engine.engine.close()
    for one in requests:
        assert got[one.id] == case.expected(one)


def test_bytes_held_are_those_of_the_closed_form_and_nothing_is_widened(case: Case) -> None:
    """E7: the tables hold what the formula says, the arena and scratch are those of int4: no K or V as floats."""
    engine = TinyEngine(**{"model": case.model} | case.options, prefix=False)
    memory, runner = engine.engine.scheduler.memory, engine.engine.runner
    engine.engine.add(Request("long", TEXT[:250], 60, ignore_stop=True))
    seen = set()
    while engine.engine.has_work:
        engine.engine.step()
        for sequence in engine.engine.scheduler._running:
            tokens = sequence.tokens_computed
            whole = tokens // 64 * 64
            held = [pool.held_blocks for pool in memory.pools]
            assert held == [whole // 16, -(-(tokens - whole) // 16) + (whole > 0)]
            assert held == [kept_blocks(reach, tokens) for reach in memory.reaches]
            nbytes = sum(count * pool.block_stride for count, pool in zip(held, runner.pools, strict=True))
            packed, near = 2 * whole * STORAGE.bytes_per_token(1, 64), (held[1] * 16) * 2 * 2 * 64 * 2
            assert nbytes == packed + near
            seen.add(tokens)
    assert len(seen) > 50
    other = TinyEngine(**{"model": case.model} | case.options | {"kv": "int4"})
    assert runner._arena.nbytes == other.engine.runner._arena.nbytes
    assert runner._scratch.nbytes == other.engine.runner._scratch.nbytes
    for one in (engine, other):
        one.engine.close()


def test_what_it_cannot_keep_is_refused(tmp_path: Any, case: Case) -> None:
    for options, said in (
        ({"keep": "sinks:4+window:100"}, "leave keep"), ({"spec": "ngram:k=3,width=2"}, "width"),
        ({"kv": "hack:bits=2"}, "no option 'bits'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            TinyEngine(**{"model": case.model} | case.options | options)
    with pytest.raises(UserError, match="int4"):
        TinyEngine(write_config(tmp_path, GEMMA3), kv="hack:group=32")
    with pytest.raises(UserError, match="int4"):
        TinyEngine(write_config(tmp_path, LLAMA), kv="hack")
