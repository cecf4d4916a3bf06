"""Promise 1 where memory is shared, moved or dropped: the ids are those of the request alone in an empty engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native
from ridgeline.kit.errors import UserError
from ridgeline.state.request import Request, Sampling

from .tiny import GEMMA3, LLAMA, TinyEngine, write_config

OUTPUT = 6
TEXT = tuple((7919 * i + 31 * i * i) % 300 + 3 for i in range(300))


def prompt_of(begin: int, length: int, salt: int) -> tuple[int, ...]:
    """`begin` tokens that all share, then `length` of its own."""
    return TEXT[:begin] + tuple((104729 * (i + 1) * (salt + 3)) % 300 + 3 for i in range(length))


class Case:
    """A tiny model, and the answers of every prompt alone without any sharing."""

    def __init__(self, model: str, **options: Any) -> None:
        self.model, self.options = model, options
        self.known: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self.single = TinyEngine(model, **({"max_sequences": 1, "prefix": False} | options))

    def expected(self, request: Request) -> tuple[int, ...]:
        key = (request.prompt, request.choice, request.sampling.temperature, request.max_tokens)
        if key not in self.known:
            self.known[key] = self.single.run([request])[request.id]
        return self.known[key]

    def check(self, requests: list[Request], arrivals: list[int] | None = None, **options: Any) -> TinyEngine:
        engine = TinyEngine(self.model, **(self.options | options))
        got = engine.run(requests, arrivals or [])
        engine.engine.close()
        for request in requests:
            assert got[request.id] == self.expected(request), request.id
        return engine


@pytest.fixture(
    scope="module", params=[(isa, weights) for isa in native.instruction_sets() for weights in ("f32", "q4_1")]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    isa, weights = request.param
    before = native.isa()
    native.set_isa(isa)
    request.addfinalizer(lambda: native.set_isa(before))
    config = LLAMA | {"tie_word_embeddings": False}
    return Case(write_config(tmp_path_factory.mktemp("model"), config), weights=weights)


def report(engine: TinyEngine) -> dict[str, Any]:
    return engine.engine.scheduler.memory.report()


def request(name: str, prompt: tuple[int, ...], **fields: Any) -> Request:
    return Request(name, prompt, OUTPUT, ignore_stop=True, **fields)


schedules = st.fixed_dictionaries(
    {
        "picks": st.lists(
            st.tuples(
                st.sampled_from((0, 5, 16, 31, 64, 100, 130)), st.sampled_from((1, 2, 15, 17, 40)), st.integers(0, 1),
                st.sampled_from((0.0, 0.9)), st.integers(0, 12),
            ), min_size=1, max_size=10,
        ),
        "step_tokens": st.sampled_from((8, 17, 61, 512)),
        "chunk": st.sampled_from((None, 5, 16, 64)),
        "max_sequences": st.sampled_from((1, 3, 8)),
        "blocks": st.sampled_from((13, 20, 200)),  # 13 hold the longest: blocks are evicted, sequences preempted
    }
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=schedules)
def test_shared_beginnings_change_no_token(case: Case, schedule: dict[str, Any]) -> None:
    per_block = case.single.engine.facts.kv_bytes_per_token * 16
    requests = [
        request(f"r{i}", prompt_of(begin, own, salt), sampling=Sampling(temperature=heat, seed=7))
        for i, (begin, own, salt, heat, _) in enumerate(schedule["picks"])
    ]
    case.check(
        requests, [arrival for *_, arrival in schedule["picks"]], context=192,
        step_tokens=max(schedule["step_tokens"], schedule["max_sequences"]), chunk=schedule["chunk"],
        max_sequences=schedule["max_sequences"], kv_bytes=per_block * schedule["blocks"],
    )  # fmt: skip


def test_a_whole_prompt_again_computes_one_token(case: Case) -> None:
    requests = [request(f"r{i}", TEXT[:100]) for i in range(3)]
    engine = case.check(requests, [0, 20, 40])
    assert report(engine)["tokens shared"] == 2 * 99


def test_choices_share_their_prompt_and_part(case: Case) -> None:
    requests = [request(f"r{i}", TEXT[:75], choice=i, sampling=Sampling(temperature=1.2, seed=3)) for i in range(5)]
    engine = case.check(requests)
    assert report(engine)["tokens shared"] == 4 * 74 and report(engine)["copied"] == 4
    assert len({case.expected(one) for one in requests}) > 1


def test_a_wave_shares_while_it_is_computed(case: Case) -> None:
    requests = [request(f"r{i}", prompt_of(130, 9, i)) for i in range(6)]
    engine = case.check(requests, step_tokens=64, chunk=48)
    assert report(engine)["tokens shared"] >= 5 * 128 and report(engine)["deferred"] > 0


def test_tenants_share_nothing(case: Case) -> None:
    requests = [request(f"r{i}", TEXT[:64], tenant=str(i % 2)) for i in range(4)]
    engine = case.check(requests, [0, 10, 20, 30])
    assert report(engine)["misses"] == {"first seen": 1, "salt differs": 1}


def test_scores_of_the_prompt_are_not_skipped(case: Case) -> None:
    asked = Request("scored", TEXT[:60], 2, prompt_logprobs=0, ignore_stop=True)
    alone = case.single.events(asked)
    engine = TinyEngine(case.model, **case.options)
    engine.run([request("before", TEXT[:70])])
    events = engine.events(asked)
    engine.engine.close()
    assert [e.prompt_scored for e in events] == [e.prompt_scored for e in alone]
    assert len(events[0].prompt_scored) == 59


@pytest.mark.parametrize("prefix", [True, False])
def test_gemma_shares_or_drops_what_is_behind_its_windows(tmp_path: Any, prefix: bool) -> None:
    case = Case(write_config(tmp_path, GEMMA3), weights="q8_0")
    requests = [request(f"r{i}", prompt_of(100, 20 + i, i)) for i in range(4)]
    engine = case.check(requests, [0, 0, 9, 30], prefix=prefix, chunk=24)
    assert (report(engine)["tokens shared"] > 0) == prefix


def test_a_window_that_holds_everything_is_exact(case: Case) -> None:
    """C9: exact while the context is no longer than the budget, dropped tokens or not."""
    requests = [request(f"r{i}", prompt_of(0, length, i)) for i, length in enumerate((3, 40, 90))]
    for keep in ("window:96", "sinks:4+window:92", "sinks:4+h2o:50+window:42", "h2o:1+window:95"):
        case.check(requests, keep=keep, chunk=13)


KEEPS = ("window:40", "sinks:4+window:40", "sinks:20+window:33", "h2o:20+window:30", "sinks:4+h2o:40+window:20")


@pytest.mark.parametrize("keep", KEEPS)
def test_dropped_tokens_give_the_same_ids_in_any_schedule(case: Case, keep: str) -> None:
    """What a retention keeps depends on positions alone: any chunks, any batch, preempted or not."""
    alone = Case(case.model, **case.options, keep=keep)
    per_block = alone.single.engine.facts.kv_bytes_per_token * 16
    requests = [request(f"r{i}", prompt_of(0, length, i)) for i, length in enumerate((130, 64, 7, 90, 41, 257))]
    for options in (
        {"chunk": 7, "max_sequences": 4, "step_tokens": 16}, {"chunk": 16, "kv_bytes": 9 * per_block},
        {"chunk": 64, "threads": 1, "step_tokens": 61, "max_sequences": 3},
    ):  # fmt: skip
        alone.check(requests, [0, 0, 3, 0, 2, 1], **{"context": 272, "max_sequences": 8} | options)


def test_a_bounded_past_goes_beyond_the_context_of_the_model(tmp_path: Any) -> None:
    """C9: constant memory, past what the rope tables of the model hold; refused while something keeps everything."""
    model = write_config(tmp_path, LLAMA | {"max_position_embeddings": 128})
    engine = TinyEngine(model, keep="sinks:4+window:64", context=1000, step_tokens=64)
    (pool,) = engine.engine.scheduler.memory.pools
    engine.engine.add(Request("long", TEXT[:50], 700, ignore_stop=True))
    most = 0
    while engine.engine.has_work:
        engine.engine.step()
        most = max(most, pool.held_blocks)
    assert most <= 1 + 4 + 1 + 4
    with pytest.raises(UserError, match="--keep"):
        TinyEngine(model, context=1000)
    with pytest.raises(UserError, match="leave paging"):
        TinyEngine(model, keep="window:64", paging=False)


@pytest.mark.parametrize("tiers", [{"host": 60}, {"host": 4, "disk": 80}, {"disk": 80}], ids=["host", "both", "disk"])
def test_what_comes_back_from_a_tier_changes_no_token(
    case: Case, tiers: dict[str, int], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C7, B10: a pool of 18 blocks, three prompts in turns; each finds its beginning outside the pool again."""
    monkeypatch.setenv("RIDGELINE_HOME", str(tmp_path))
    block = case.single.engine.facts.kv_bytes_per_token * 16
    requests = [request(f"r{i}", (*prompt_of(0, 110, i % 3), 5 + i)) for i in range(9)]
    engine = TinyEngine(
        case.model, kv_bytes=18 * block, context=200, **{f"{name}_kv_bytes": n * block for name, n in tiers.items()},
        **case.options,
    )  # fmt: skip
    memory = engine.engine.scheduler.memory
    memory.sharing.tiers.break_even = Always()
    got = engine.run(requests, [20 * i for i in range(9)])
    seen = report(engine)
    assert seen["loaded"] >= 12 and seen["tokens shared"] >= 5 * 96
    assert any(tmp_path.rglob("*-0")) == ("disk" in tiers)
    engine.engine.close()
    assert not list(tmp_path.rglob("*-0"))
    for one in requests:
        assert got[one.id] == case.expected(one)


class Always:
    def least_tokens(self, tier: str) -> int:
        return 16

    def pays(self, tokens: int, tier: str) -> bool:
        return True


def test_a_preempted_sequence_goes_on_where_it_was(case: Case) -> None:
    """B10: its blocks stay cached, or saved, partly filled ones too, so hardly anything is computed twice."""
    block = case.single.engine.facts.kv_bytes_per_token * 16
    requests = [Request(f"r{i}", prompt_of(0, 60, i), 80, ignore_stop=True) for i in range(4)]
    engine = TinyEngine(
        case.model, kv_bytes=20 * block, context=160, host_kv_bytes=100 * block, **case.options
    )  # fmt: skip
    engine.engine.scheduler.memory.sharing.tiers.break_even = Always()
    got = engine.run(requests)
    assert engine.engine.scheduler.preemptions > 0 and engine.engine.scheduler.tokens_recomputed <= 4
    for one in requests:
        assert got[one.id] == case.expected(one)


def test_the_break_even_is_estimated(case: Case) -> None:
    block = case.single.engine.facts.kv_bytes_per_token * 16
    engine = TinyEngine(case.model, kv_bytes=20 * block, context=160, host_kv_bytes=block, **case.options)
    even = engine.engine.scheduler.memory.sharing.tiers.break_even
    least = even.least_tokens("host")
    if least:  # on this machine loading pays from some length on
        assert even.load_s(least, "host") < even.compute_s(least) and even.pays(least, "host")
        assert not even.pays(least - 16, "host")
    engine.engine.close()
    with pytest.raises(UserError, match="not shared"):
        TinyEngine(case.model, host_kv_bytes=1000, prefix=False)


def test_packed_tokens_and_guesses_are_refused_together(case: Case) -> None:
    with pytest.raises(UserError, match="leave spec"):
        TinyEngine(case.model, keep="h2o:20+window:30", spec="ngram:k=2")


@pytest.mark.parametrize("kv", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("keep", ["sinks:4+window:40", "sinks:4+h2o:20+window:40"])
@pytest.mark.parametrize("config", [LLAMA, GEMMA3], ids=["llama", "gemma3"])
def test_storages_and_retentions_multiply(tmp_path: Any, config: dict[str, Any], keep: str, kv: str) -> None:
    """F15 x C9, C10, over one group of layers, and over two where layers have windows of their own."""
    alone = Case(write_config(tmp_path, config), weights="q8_0", keep=keep, kv=kv)
    requests = [request(f"r{i}", prompt_of(0, length, i)) for i, length in enumerate((130, 64, 70))]
    alone.check(requests, [0, 2, 1], chunk=16, max_sequences=2, context=272)
    assert len(alone.single.engine.scheduler.memory.pools) == (2 if config is GEMMA3 else 1)
