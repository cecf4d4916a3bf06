"""Promise 1 with guessing ahead (I1, I7): ids are those of plain decoding, greedy or drawn, whoever guesses and however
well, in any batch, chunking and preemption, on every instruction set."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native
from ridgeline.state.request import Request, Sampling

from .test_same_tokens import SAMPLINGS, prompt_of
from .tiny import LLAMA, TinyEngine, write_config

OUTPUT = 24
PROMPTS = (1, 2, 16, 17, 40, 130)
SMALLER = LLAMA | {"num_hidden_layers": 1}


def request(index: int, length: int, kind: int) -> Request:
    prompt = (prompt_of(length, index) * 2)[: length + length // 2]  # something to look up
    return Request(f"r{index}", prompt, OUTPUT, SAMPLINGS[kind], ignore_stop=True)


class Case:
    """Plain answers, computed once."""

    def __init__(self, model: str, other: str, weights: str) -> None:
        self.model, self.other, self.weights = model, other, weights
        self.plain = TinyEngine(model, weights=weights, max_sequences=1)
        self.known: dict[tuple[int, int, int], tuple[int, ...]] = {}

    def expected(self, index: int, length: int, kind: int) -> tuple[int, ...]:
        if (index, length, kind) not in self.known:
            asked = request(index, length, kind)
            self.known[index, length, kind] = self.plain.run([asked])[asked.id]
        return self.known[index, length, kind]

    def specs(self) -> list[str]:
        return [
            "ngram:k=4,adapt=off", "ngram:k=7,n=2,adapt=off", f"draft:{self.model},k=3,adapt=off",
            f"draft:{self.other},k=5,adapt=off",
        ]  # fmt: skip


@pytest.fixture(
    scope="module", params=[(isa, weights) for isa in native.instruction_sets() for weights in ("bf16", "q4_1")]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    isa, weights = request.param
    before = native.isa()
    native.set_isa(isa)
    request.addfinalizer(lambda: native.set_isa(before))
    model = write_config(tmp_path_factory.mktemp("model"), LLAMA)
    return Case(model, write_config(tmp_path_factory.mktemp("other"), SMALLER), weights)


schedules = st.fixed_dictionaries(
    {
        "picks": st.lists(
            st.tuples(st.sampled_from(PROMPTS), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=6
        ),
        "spec": st.integers(0, 3),
        "step_tokens": st.sampled_from((8, 17, 512)),
        "chunk": st.sampled_from((None, 5, 16)),
        "max_sequences": st.sampled_from((1, 3, 8)),
        "blocks": st.sampled_from((16, 25, 200)),
    }
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=schedules)
def test_guessing_ahead_changes_no_id(case: Case, schedule: dict) -> None:
    picks = schedule["picks"]
    requests = [request(i, length, kind) for i, (length, kind, _) in enumerate(picks)]
    per_block = case.plain.engine.facts.kv_bytes_per_token * 16
    engine = TinyEngine(
        case.model, weights=case.weights, spec=case.specs()[schedule["spec"]], context=256, chunk=schedule["chunk"],
        step_tokens=schedule["step_tokens"], max_sequences=schedule["max_sequences"],
        kv_bytes=per_block * schedule["blocks"],
    )  # fmt: skip
    got = engine.run(requests, [arrival for _, _, arrival in picks])
    engine.engine.close()
    assert got == {
        r.id: case.expected(i, length, kind)
        for i, (r, (length, kind, _)) in enumerate(zip(requests, picks, strict=True))
    }


def test_a_perfect_guesser_is_always_believed(case: Case) -> None:
    """The model as its own draft: every guess holds, so a step of the model gives k + 1 tokens."""
    engine = TinyEngine(case.model, weights=case.weights, spec=f"draft:{case.model},k=3,adapt=off")
    events = engine.events(Request("r", prompt_of(40, 0), 24, Sampling(), ignore_stop=True))
    engine.engine.close()
    assert (events[-1].tokens_guessed, events[-1].tokens_accepted) in ((18, 17), (18, 18), (17, 17))
    assert max(len(event.tokens) for event in events) == 4


def test_ends_and_limits_are_those_of_plain_decoding(case: Case) -> None:
    plain = case.expected(0, 40, 0)
    for limit in (1, 2, 3, 5, 9):
        engine = TinyEngine(case.model, weights=case.weights, spec=f"draft:{case.model},k=4,adapt=off")
        asked = request(0, 40, 0)
        got = engine.run([Request("a", asked.prompt, limit), Request("b", asked.prompt, 24, stop_ids=(plain[4],))])
        engine.engine.close()
        assert got["a"] == plain[:limit]
        assert got["b"] == plain[: plain.index(plain[4]) + 1]


@pytest.mark.parametrize("spec", ["draft:{other},k=2,rule=exact,adapt=off", "ngram:k=2,rule=exact,adapt=off"])
def test_the_exact_rule_keeps_the_law_of_drawn_answers(tmp_path, spec: str) -> None:
    """chi-squared of two samples of 600 answers of 3 tokens, plain and guessed, by the model's likelier tokens."""
    model = write_config(_folder(tmp_path / "a"), LLAMA | {"vocab_size": 320})
    other = write_config(_folder(tmp_path / "b"), SMALLER | {"vocab_size": 320})
    counts = []
    for option, first in ((None, 0), (spec.format(other=other), 10_000)):
        engine = TinyEngine(model, weights="bf16", spec=option, max_sequences=50, kv_bytes=1 << 24)
        prompt = (7, 8, 9, 7, 8)
        requests = [
            Request(f"r{i}", prompt, 3, Sampling(temperature=0.7, top_k=4, seed=first + i), ignore_stop=True)
            for i in range(600)
        ]
        got = engine.run(requests)
        engine.engine.close()
        counts.append([Counter(tokens[place] for tokens in got.values()) for place in range(3)])
    for plain, guessed in zip(*counts, strict=True):
        common = [token for token in plain | guessed if plain[token] + guessed[token] >= 10]
        statistic = sum((plain[t] - guessed[t]) ** 2 / (plain[t] + guessed[t]) for t in common)
        freedom = max(len(common) - 1, 1)
        assert statistic < freedom + 4.5 * (2 * freedom) ** 0.5, (plain, guessed)


def _folder(path):
    path.mkdir()
    return path
