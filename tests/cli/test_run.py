"""run: an answer, its account, and clean ends."""

from __future__ import annotations

import json
import threading

import pytest

from ridgeline.answer import Piece
from ridgeline.cli.conversation import Asked, answer_once, chat
from ridgeline.cli.screen import Screen
from ridgeline.kit.errors import CapacityError
from ridgeline.llm import LLM
from ridgeline.state.request import Sampling

SMALL = ("--max-tokens", "6", "--kv-bytes", "4M")


def test_an_answer_to_stdin_ends_with_the_account_and_a_verdict(ridgeline, tiny):
    _, stderr = ridgeline("run", tiny, "--raw", *SMALL, stdin="hello")
    lines = stderr.splitlines()[-5:]
    assert [line.split()[0] for line in lines] == ["Time", "Intensity", "Roof", "Energy", "Verdict"]
    assert "prefill (prompt)" in lines[0] and "tokens/s" in lines[0]
    assert "ridge" in lines[1] and "measured roof" in lines[2]
    assert "estimated (no meter here)" in lines[3] or "meter(" in lines[3]


def test_json_is_the_last_line_and_holds_the_account(ridgeline, tiny):
    document = ridgeline.document("run", tiny, "hello", "--logprobs", "2", *SMALL)
    assert document["schema"] == "ridgeline.run/1"
    assert document["finish"] in ("length", "stop")
    assert 0 < len(document["tokens"]) <= 6
    assert document["machine"]["cores"] >= 1
    account = document["account"]
    assert account["phases"][0]["name"] == "prefill"
    assert account["steps"] == account["native_calls"] == len(document["tokens"])
    assert [scored["token"] for scored in document["scored"]] == document["tokens"]
    assert all(len(scored["top"]) == 2 for scored in document["scored"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nonsense", "hi"], "unknown model 'nonsense'"),
        (["run", "{tiny}", "hi", "--top-p", "3"], "top_p is 3.0"),
        (["run", "{tiny}", "hi", "--weights", "q9"], "q9"),
        (["run", "{tiny}", "hi", "--context", "100000"], "1024"),
        (["run", "{tiny}", "hi", "--kv-bytes", "lots"], "not a size"),
        (["run", "{tiny}", "hi", "--max-tokens", "0"], "max_tokens"),
        (["run", "{tiny}", "hi", "--trace-out", "/nowhere/t.json"], "no folder"),
        (["run", "{tiny}", "hi", "--ledger-out", "ledger.csv"], "ends with none"),
        (["run", "{tiny}"], "empty"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_two(ridgeline, tiny, arguments, words):
    stdout, stderr = ridgeline(*(part.format(tiny=tiny) for part in arguments), code=2)
    assert stderr.startswith("error: ") and words in stderr
    assert "Traceback" not in stderr and not stdout


class InterruptedLLM:
    """A real engine's account, and answers that are interrupted, fail, or come."""

    def __init__(self, llm: LLM, answers: list) -> None:
        self.facts, self.account, self.evidence, self.answers = llm.facts, llm.account, llm.evidence, answers
        self.asked: list = []

    def stream_chat(self, messages, **options):
        self.asked.append([message["content"] for message in messages])
        answer = self.answers.pop(0)
        yield Piece("once ", (1,))
        if isinstance(answer, BaseException):
            raise answer
        yield Piece(answer, (2,), finish="length")


@pytest.fixture(scope="module")
def llm(tiny, home):
    before = set(threading.enumerate())  # other tests' servers may keep idle threads
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIDGELINE_HOME", str(home))
        with LLM(tiny, kv_bytes=1 << 22, max_sequences=1) as llm:
            llm.generate([[5, 6, 7]], max_tokens=3)
            yield llm
    assert set(threading.enumerate()) <= before


def asked(prompt: str | None = None) -> Asked:
    return Asked("tiny", prompt, None, False, 8, (), Sampling(), {})


def test_an_interrupted_answer_still_prints_its_account(llm, capsys):
    fake = InterruptedLLM(llm, [KeyboardInterrupt()])
    assert answer_once(asked("hi"), fake, Screen(json=True), "hi") == 130
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert document["text"] == "once " and document["finish"] == "cancelled"
    assert "measured roof" in captured.err.splitlines()[-3] and captured.err.splitlines()[-1].startswith("Verdict")


def test_a_chat_remembers_forgets_and_survives_errors(llm, capsys):
    lines = iter(["one", "/nonsense", "two", "/account", "too long", "/clear", "three", "", "/exit"])
    fake = InterruptedLLM(llm, ["upon", KeyboardInterrupt(), CapacityError("the context is full"), "a time"])
    assert chat(asked(), fake, Screen(json=False), lambda _: next(lines)) == 0
    assert fake.asked == [
        ["one"],
        ["one", "once upon", "two"],
        ["one", "once upon", "two", "once ", "too long"],
        ["three"],
    ]
    err = capsys.readouterr().err
    assert "/nonsense is no command" in err and "error: the context is full" in err and "[stopped]" in err
    assert err.count("Roof  ") == 2  # /account, and the end


@pytest.mark.parametrize(("end", "code"), [(EOFError, 0), (KeyboardInterrupt, 130)])
def test_a_chat_ends_cleanly_at_the_prompt(llm, capsys, end, code):
    def stop(_: str) -> str:
        raise end

    assert chat(asked(), InterruptedLLM(llm, []), Screen(json=False), stop) == code
    assert "measured roof" in capsys.readouterr().err


def test_one_request_can_be_told_interval_by_interval_and_kept(ridgeline, tiny, tmp_path):
    trace, rows = tmp_path / "trace.json", tmp_path / "ledger.jsonl"
    options = ("--account", "--trace-out", str(trace), "--ledger-out", str(rows), *SMALL)
    document = ridgeline.document("run", tiny, "hello", *options)
    (one,) = document["ledger"]["requests"]
    assert sum(one["wall_ns"].values()) == one["e2e_ns"] and {"render", "tokenize", "prefill"} <= set(one["wall_ns"])
    assert one["prompt_tokens"] == one["cached_tokens"] + one["computed_tokens"]
    assert sum(one["cost_ns"].values()) == document["ledger"]["step_ns"]  # it was alone
    assert json.loads(trace.read_text())["otherData"]["model"] == tiny
    head = json.loads(rows.read_text().splitlines()[0])
    assert head["run"]["requests"][0]["wall_ns"] == one["wall_ns"]
    (judged,) = document["request_verdicts"]
    assert judged["request_id"] == one["request_id"] and 0 < judged["share"] <= 1
    stdout, _ = ridgeline("run", tiny, "hello", "--account", *SMALL)
    assert "Where its time went" in stdout and "residual" in stdout and "share: v1" in stdout


def test_an_account_comes_with_the_answer_when_it_is_asked_for(tiny):
    with LLM(tiny, kv_bytes=1 << 22) as llm:
        plain, told = (llm.generate(["hello", "you"], max_tokens=4, account=asked) for asked in (False, True))
        assert all(one.account is None for one in plain)
        for one in told:
            assert one.account is not None and one.account.output_tokens == len(one.tokens)
            assert sum(one.account.wall_ns.values()) == one.account.e2e_ns  # how much is residual: bench/ledger_walls
        assert told[0].account.request_id != told[1].account.request_id
        ended = llm.generate("hello", max_tokens=200, stop=plain[0].text[:1] or "x", account=True)[0].account
        assert ended is not None and sum(ended.wall_ns.values()) == ended.e2e_ns
        for piece in llm.stream("hello", max_tokens=3):
            assert piece.text is not None
        ledger = llm.ledger(reset=True)
        assert len(ledger.requests) == 6 and ledger.partial == 0
        assert llm.ledger().requests == ()
