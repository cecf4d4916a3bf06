"""Promise 1: greedy ids are bit-identical alone, in any batch, any chunking, after preemption; every format and
instruction set this machine has. Sampled ids too, because draws are keyed by (seed, choice, position)."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native
from ridgeline.state.request import Request, Sampling

from .tiny import GEMMA3, LLAMA, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, TinyEngine, write_config

FORMATS = ("f32", "bf16", "q8_0", "q4_1", "q4_0", "q5_0", "int8", "int4:group=32,zero=1", "fp8:scale=block")
# Crosses the edges of tiles (16), row blocks (6, 12), groups (32), attention steps (64) and splits (256).
PROMPTS = (1, 2, 5, 6, 7, 12, 13, 15, 16, 17, 31, 33, 63, 64, 65, 130, 255, 257)
OUTPUT = 5


def prompt_of(length: int, salt: int) -> tuple[int, ...]:
    return tuple((7919 * (i + 1) * (salt + 3) + 31 * i * i) % 300 + 3 for i in range(length))


def request(index: int, length: int, sampling: Sampling, name: str = "") -> Request:
    return Request(name or f"r{index}-{length}", prompt_of(length, index), OUTPUT, sampling, ignore_stop=True)


SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.9, seed=11),
    Sampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, seed=5, repetition_penalty=1.2, frequency_penalty=0.3),
)


class Case:
    """The answers of every request alone, computed once per format and instruction set."""

    def __init__(self, model: str, weights: str) -> None:
        self.model, self.weights = model, weights
        self.alone: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self.single = TinyEngine(model, weights=weights, max_sequences=1, step_tokens=512)

    def expected(self, index: int, length: int, sampling: int) -> tuple[int, ...]:
        key = (index, length, sampling)
        if key not in self.alone:
            asked = request(index, length, SAMPLINGS[sampling])
            self.alone[key] = self.single.run([asked])[asked.id]
        return self.alone[key]


@pytest.fixture(scope="module", params=[(isa, weights) for isa in native.instruction_sets() for weights in FORMATS])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    isa, weights = request.param
    before = native.isa()
    native.set_isa(isa)
    request.addfinalizer(lambda: native.set_isa(before))
    config = QWEN2 if weights in ("q8_0", "f32") else LLAMA | {"tie_word_embeddings": False}  # tied answers repeat
    return Case(write_config(tmp_path_factory.mktemp("model"), config), weights)


@pytest.mark.parametrize("weights", ["f32", "q4_1"])
@pytest.mark.parametrize("config", [QWEN3, GEMMA3, MIXTRAL, QWEN2_MOE], ids=["qwen3", "gemma3", "mixtral", "qwen2_moe"])
def test_families_give_the_same_ids_in_any_batch(tmp_path, config: dict, weights: str) -> None:
    """Norms of heads, windows, two ropes, experts: alone, and with others in chunks under preemption."""
    case = Case(write_config(tmp_path, config), weights)
    picks = [(130, 0), (5, 1), (257, 2), (64, 0), (17, 2)]
    requests = [request(i, length, SAMPLINGS[kind]) for i, (length, kind) in enumerate(picks)]
    per_block = case.single.engine.facts.kv_bytes_per_token * 16
    for options in (
        {"threads": 3, "chunk": 13, "kv_bytes": 18 * per_block},
        {"threads": 2, "max_sequences": 3, "place": "corun"},
    ):
        engine = TinyEngine(
            case.model, weights=weights, **{"step_tokens": 61, "context": 272, "max_sequences": 8} | options
        )
        got = engine.run(requests, [0, 2, 0, 5, 1])
        engine.engine.close()
        assert got == {r.id: case.expected(i, *pick) for i, (r, pick) in enumerate(zip(requests, picks, strict=True))}


@pytest.mark.parametrize("kv", ["int8", "int4"])
@pytest.mark.parametrize("isa", native.instruction_sets())
def test_quantised_kv_gives_the_same_ids_in_any_batch(tmp_path, isa: str, kv: str) -> None:
    """A kept token's bytes are its own: no page, chunk or neighbour is in its scale (F15)."""
    before = native.isa()
    native.set_isa(isa)
    try:
        model = write_config(tmp_path, LLAMA | {"tie_word_embeddings": False})
        picks = [(130, 0), (5, 1), (257, 2), (64, 0), (17, 2)]
        requests = [request(i, length, SAMPLINGS[kind]) for i, (length, kind) in enumerate(picks)]
        single = TinyEngine(model, weights="q4_1", kv=kv, max_sequences=1, step_tokens=512)
        alone = {one.id: single.run([one])[one.id] for one in requests}
        room = 18 * 16 * single.engine.facts.kv_bytes_per_token
        single.engine.close()
        for options in (
            {"threads": 3, "chunk": 13, "kv_bytes": room},
            {"threads": 2, "max_sequences": 3, "place": "corun"},
        ):
            engine = TinyEngine(
                model, weights="q4_1", kv=kv, **{"step_tokens": 61, "context": 272, "max_sequences": 8} | options
            )
            assert engine.run(requests, [0, 2, 0, 5, 1]) == alone
            engine.engine.close()
    finally:
        native.set_isa(before)


schedules = st.fixed_dictionaries(
    {
        "picks": st.lists(
            st.tuples(st.sampled_from(PROMPTS), st.integers(0, len(SAMPLINGS) - 1), st.integers(0, 6)),
            min_size=1,
            max_size=12,
        ),
        "step_tokens": st.sampled_from((3, 16, 17, 61, 512)),
        "chunk": st.sampled_from((None, 1, 5, 16, 64, 100)),
        "max_sequences": st.sampled_from((2, 3, 8, 12)),
        "threads": st.sampled_from((1, 2, 3)),
        "blocks": st.sampled_from((18, 25, 200)),  # 18 blocks hold one longest request: the others are preempted
        "batching": st.sampled_from(("continuous", "static")),
        "place": st.sampled_from(("chunked", "corun", "serial")),
    }
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=schedules)
def test_ids_do_not_depend_on_the_schedule(case: Case, schedule: dict) -> None:
    picks = schedule["picks"]
    requests = [request(i, length, SAMPLINGS[kind]) for i, (length, kind, _) in enumerate(picks)]
    per_block = case.single.engine.facts.kv_bytes_per_token * 16
    engine = TinyEngine(
        case.model, weights=case.weights, step_tokens=max(schedule["step_tokens"], schedule["max_sequences"]),
        chunk=schedule["chunk"], max_sequences=schedule["max_sequences"], threads=schedule["threads"],
        kv_bytes=per_block * schedule["blocks"], batching=schedule["batching"], context=272,
        place=schedule["place"],
    )  # fmt: skip
    got = engine.run(requests, [arrival for _, _, arrival in picks])
    engine.engine.close()
    for i, (length, kind, _) in enumerate(picks):
        assert got[requests[i].id] == case.expected(i, length, kind)


@pytest.mark.parametrize("sequences", [1, 5, 6, 7, 11, 12, 13, 16, 17, 33])
def test_batch_sizes_across_tile_edges(case: Case, sequences: int) -> None:
    """`sequences` requests of one length at once: the linears see exactly that many rows."""
    requests = [request(i, 9, SAMPLINGS[0]) for i in range(sequences)]
    engine = TinyEngine(case.model, weights=case.weights, max_sequences=sequences)
    got = engine.run(requests)
    engine.engine.close()
    assert [got[r.id] for r in requests] == [case.expected(i, 9, 0) for i in range(sequences)]


def test_without_cache_equals_with_cache(case: Case) -> None:
    """B1: computing everything anew for every token gives the same ids."""
    requests = [request(0, 33, SAMPLINGS[0]), request(1, 7, SAMPLINGS[1])]
    engine = TinyEngine(case.model, weights=case.weights, cache=False)
    got = engine.run(requests)
    engine.engine.close()
    assert got[requests[0].id] == case.expected(0, 33, 0)
    assert got[requests[1].id] == case.expected(1, 7, 1)
