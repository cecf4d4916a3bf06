"""A model of recurrent state in the engine: the same ids whatever the schedule, after starting over and after rollback;
slots instead of pages in the bill; what cannot combine is refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import LLM
from ridgeline.engine.build import bill
from ridgeline.engine.config import EngineConfig
from ridgeline.kernels import native
from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.memory.recurrent_memory import RecurrentMemory
from ridgeline.memory.storage.recurrent import STORAGE
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.sequence import Sequence

from .test_same_tokens import PROMPTS, SAMPLINGS, Case, request
from .tiny import MAMBA2, TinyEngine, write_config


@pytest.fixture(
    scope="module", params=[(isa, weights) for isa in native.instruction_sets() for weights in ("f32", "q8_0")]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    isa, weights = request.param
    before = native.isa()
    native.set_isa(isa)
    request.addfinalizer(lambda: native.set_isa(before))
    return Case(write_config(tmp_path_factory.mktemp("model"), MAMBA2), weights)


class Stingy(RecurrentMemory):
    """Now and then has no room for a sequence that runs, so that somebody starts over."""

    def __init__(self, slots: int, refuse_every: int) -> None:
        super().__init__(slots)
        self.every, self.asked = refuse_every, 0

    def reserve(self, sequence: Sequence, computed: int, tokens: int) -> bool:
        if computed:
            self.asked += 1
            if self.asked % self.every == 0 and len(self._slots) > 1 and sequence.id != min(self._slots):
                return False
        return super().reserve(sequence, computed, tokens)


def use(engine: TinyEngine, memory: RecurrentMemory) -> None:
    scheduler = engine.engine.scheduler
    scheduler.memory = memory
    scheduler._memories["model"] = memory


schedules = st.fixed_dictionaries(
    {
        "picks": st.lists(
            st.tuples(st.sampled_from(PROMPTS), st.integers(0, len(SAMPLINGS) - 1), st.integers(0, 6)),
            min_size=1,
            max_size=10,
        ),
        "step_tokens": st.sampled_from((8, 17, 61, 512)),
        "chunk": st.sampled_from((None, 1, 3, 16, 64)),
        "max_sequences": st.sampled_from((2, 3, 8)),
        "threads": st.sampled_from((1, 2, 3)),
        "slots": st.sampled_from((1, 2, 12)),
        "refuse_every": st.sampled_from((2, 5, 1000)),
        "batching": st.sampled_from(("continuous", "static")),
    }
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=schedules)
def test_ids_do_not_depend_on_the_schedule(case: Case, schedule: dict) -> None:
    picks = schedule["picks"]
    requests = [request(i, length, SAMPLINGS[kind]) for i, (length, kind, _) in enumerate(picks)]
    slot = case.single.engine.facts.state_bytes
    engine = TinyEngine(
        case.model, weights=case.weights, step_tokens=schedule["step_tokens"], chunk=schedule["chunk"],
        max_sequences=schedule["max_sequences"], threads=schedule["threads"], kv_bytes=slot * schedule["slots"],
        batching=schedule["batching"], context=272,
    )  # fmt: skip
    use(engine, Stingy(schedule["slots"], schedule["refuse_every"]))
    got = engine.run(requests, [arrival for _, _, arrival in picks])
    engine.engine.close()
    for i, (length, kind, _) in enumerate(picks):
        assert got[requests[i].id] == case.expected(i, length, kind)


def test_starting_over_gives_the_same_ids(case: Case) -> None:
    engine = TinyEngine(case.model, weights=case.weights, step_tokens=40, chunk=9, max_sequences=4)
    use(engine, Stingy(4, 4))
    picks = [(130, 0), (17, 1), (64, 2), (255, 0)]
    requests = [request(i, *pick) for i, pick in enumerate((length, SAMPLINGS[kind]) for length, kind in picks)]
    got = engine.run(requests)
    assert engine.engine.scheduler.preemptions > 0
    engine.engine.close()
    assert [got[r.id] for r in requests] == [case.expected(i, *pick) for i, pick in enumerate(picks)]


def test_rolled_back_by_snapshot(case: Case) -> None:
    """What a speculation that failed leaves behind is undone: the next tokens are those of a straight run."""
    engine = TinyEngine(case.model, weights=case.weights)
    asked = request(0, 33, SAMPLINGS[0])
    engine.engine.add(asked)
    for _ in range(2):
        engine.engine.step()
    scheduler = engine.engine.scheduler
    memory, (sequence,) = scheduler.memory, scheduler._running
    assert isinstance(memory, RecurrentMemory)
    known, computed = list(sequence.tokens), sequence.tokens_computed
    snapshot = memory.save(sequence)
    assert snapshot is not None
    engine.engine.step()
    sequence.tokens[-1] = (sequence.tokens[-1] + 1) % 300  # a wrong guess is computed
    engine.engine.step()
    memory.restore(sequence, snapshot)
    sequence.tokens[:], sequence.tokens_computed = known, computed
    memory.drop(snapshot)
    while engine.engine.has_work:
        engine.engine.step()
        engine.engine.check()
    engine.engine.close()
    assert tuple(sequence.tokens[33:]) == case.expected(0, 33, 0)


def test_a_step_is_one_native_call(case: Case) -> None:
    seen: list[int] = []

    class Counting:
        def on_step(self, plan: StepPlan, result: StepResult) -> None:
            seen.append(result.native_calls)

        def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
            pass

    case.single.engine.observer = Counting()
    case.single.run([request(5, 31, SAMPLINGS[0])])
    assert set(seen) == {1}


def test_the_bill_counts_slots_not_tokens(tmp_path) -> None:
    model = write_config(tmp_path, MAMBA2)
    made = bill(EngineConfig(model, weights="f32", max_sequences=7), available=1 << 32)
    facts = TinyEngine(model, weights="f32", max_sequences=7, kv_bytes=None).engine.facts
    assert made.state_bytes == 2 * STORAGE.layer_bytes(TinyEngine(model).engine.runner.bound.program.state.shape)
    assert (made.state_slots, made.kv_bytes, made.kv_bytes_per_token) == (7, 7 * made.state_bytes, 0)
    assert (facts.state_slots, facts.kv_bytes, facts.kv) == (7, made.kv_bytes, "recurrent")
    assert facts.context == 1 << 20  # no position enters the model
    longer = bill(EngineConfig(model, weights="f32", max_sequences=7, context=1000), available=1 << 32)
    assert longer.kv_bytes == made.kv_bytes
    assert "7 sequences" in str(made)
    short = bill(EngineConfig(model, weights="f32"), available=1 << 20)
    assert not short.fits
    assert short.state_slots == 1
    with pytest.raises(CapacityError, match="one sequence"):
        bill(EngineConfig(model, kv_bytes=made.state_bytes - 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv": "bf16"}, r"kv=bf16 needs keys and values in pages; .* Leave kv at auto\."),
        ({"spec": "ngram:k=4"}, r"spec=ngram:k=4 needs rollback by forgetting the last tokens; .* Leave spec out\."),
        ({"paging": False}, r"paging=False needs keys and values in pages; .* Leave paging on\."),
    ],
)
def test_what_a_recurrent_state_cannot_do_is_refused(tmp_path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TinyEngine(write_config(tmp_path, MAMBA2), **options)


def test_without_cache_equals_with_cache(case: Case) -> None:
    engine = TinyEngine(case.model, weights=case.weights, cache=False)
    asked = request(0, 33, SAMPLINGS[0])
    assert engine.run([asked])[asked.id] == case.expected(0, 33, 0)
    engine.engine.close()


def test_through_llm(tmp_path) -> None:
    """In the engine's own process: four prompts at once on three slots are each alone."""
    prompts = [[5, 9, 77, 3], [4] * 40, [8, 1, 2] * 30, [300, 2, 1]]
    with LLM(write_config(tmp_path, MAMBA2), weights="q8_0", context=256, max_sequences=3) as llm:
        assert (llm.facts.kv, llm.facts.state_slots) == ("recurrent", 3)
        together = [one.tokens for one in llm.generate(prompts, max_tokens=6, ignore_stop=True)]
        alone = [llm.generate([prompt], max_tokens=6, ignore_stop=True)[0].tokens for prompt in prompts]
    assert together == alone
    assert len(set(together)) == 4
