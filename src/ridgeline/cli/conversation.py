"""What `ridgeline run` does: asks, streams, and tells what it cost, also after Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ridgeline.answer import Piece
from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.perf.ledger import RunLedger
from ridgeline.perf.observe import Seen
from ridgeline.perf.request_verdict import judge_request
from ridgeline.perf.shares import RULE
from ridgeline.perf.summary import AccountSummary
from ridgeline.perf.verdict import Verdict, judge
from ridgeline.report.account_lines import account_lines
from ridgeline.report.ledger_view import cost_rows, request_line, step_line, token_line, wall_rows
from ridgeline.report.roofline_page import check_file
from ridgeline.report.units import digits
from ridgeline.report.verdict_lines import verdict_line
from ridgeline.run.machine import load_or_measure, raise_ceilings
from ridgeline.state.event import Scored
from ridgeline.state.request import Sampling

from .calibrating import calibrate_first
from .keepsakes import Keepsakes
from .roofline import show_roofline
from .screen import Screen

INTERRUPTED = 130
ABOVE = 1.02  # share of a roof that only a wrong roof explains (A5)


@dataclass(frozen=True)
class Asked:
    """Everything `run` was told; options are fields of EngineConfig."""

    model: str
    prompt: str | None
    system: str | None
    raw: bool
    max_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    options: dict[str, Any]
    account: bool = False
    keepsakes: Keepsakes = field(default_factory=Keepsakes)
    roofline: Path | None = None


@dataclass
class Answer:
    """What came so far; `finish` stays "cancelled" when the reader interrupts."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    finish: str = "cancelled"


def converse(asked: Asked, *, json: bool, screen: Screen | None = None) -> int:
    """Run to the end; returns the exit code."""
    screen = screen or Screen(json)
    asked.keepsakes.check()
    if asked.roofline is not None:
        check_file(asked.roofline)
    prompt = asked.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise UserError("the prompt from stdin is empty. Give one as an argument, or pipe some text.")
    options = {"max_sequences": 1} | asked.options  # one person asks: the memory goes into context
    calibrate_first(screen, asked.model, options)
    with screen.fetching(asked.model) as progress:
        llm = LLM(asked.model, progress=progress, **options)
    with closing(llm):
        screen.notes(asked.model, llm.notes)
        if prompt is None:
            return chat(asked, llm, screen)
        return answer_once(asked, llm, screen, prompt)


def answer_once(asked: Asked, llm: LLM, screen: Screen, prompt: str) -> int:
    """One answer and its account, also when interrupted; returns the exit code."""
    answer = Answer()
    code = 0
    try:
        _listen(_ask(asked, llm, [_user(prompt)], prompt), answer, screen)
    except KeyboardInterrupt:
        code = INTERRUPTED
    screen.say()
    if asked.sampling.logprobs is not None:
        _show_scored(answer, llm, screen)
    _end(asked, llm, screen, text=answer.text, tokens=answer.tokens, finish=answer.finish, scored=answer.scored)
    return code


def chat(asked: Asked, llm: LLM, screen: Screen, ask: Callable[[str], str] = input) -> int:
    """Turns until /exit, Ctrl-D or Ctrl-C at the prompt; Ctrl-C during an answer only ends the answer."""
    import readline  # noqa: F401, PLC0415  line editing for input(); not on every platform, and only a chat needs it

    screen.aside(f"{asked.model}: /clear forgets, /account tells the cost so far, /exit or Ctrl-D ends.", style="dim")
    messages: list[dict[str, str]] = []
    code = 0
    while True:
        try:
            line = ask("> ").strip()
        except EOFError:
            screen.say()
            break
        except KeyboardInterrupt:
            screen.say()
            code = INTERRUPTED
            break
        if line == "/exit":
            break
        if line == "/clear":
            messages.clear()
        elif line == "/account":
            _show_account(llm, screen)
        elif line.startswith("/"):
            screen.aside(f"{line} is no command; there are /clear, /account and /exit.")
        elif line:
            _turn(asked, llm, screen, messages, line)
    _end(asked, llm, screen, messages=messages)
    return code


def _turn(asked: Asked, llm: LLM, screen: Screen, messages: list[dict[str, str]], line: str) -> None:
    answer = Answer()
    messages.append(_user(line))
    try:
        _listen(_ask(asked, llm, messages, line), answer, screen)
    except KeyboardInterrupt:
        screen.aside(" [stopped]", style="dim")
    except UserError as error:  # e.g. the context is full: say so, and let the person go on
        screen.aside(f"error: {error}")
        messages.pop()
        return
    screen.say()
    messages.append({"role": "assistant", "content": answer.text})


def _ask(asked: Asked, llm: LLM, messages: list[dict[str, str]], text: str) -> Iterator[Piece]:
    """Through the chat template, or the text as it is."""
    if asked.raw:
        return llm.stream(text, max_tokens=asked.max_tokens, stop=asked.stop, sampling=asked.sampling)
    system = [] if asked.system is None else [{"role": "system", "content": asked.system}]
    return llm.stream_chat([*system, *messages], max_tokens=asked.max_tokens, stop=asked.stop, sampling=asked.sampling)


def _listen(pieces: Iterator[Piece], answer: Answer, screen: Screen) -> None:
    for piece in pieces:
        screen.stream(piece.text)
        answer.text += piece.text
        answer.tokens += piece.tokens
        answer.scored += piece.scored
        answer.finish = piece.finish or answer.finish


def account_of(llm: LLM) -> AccountSummary:
    """The account so far. A phase above its roof means that the ceilings were measured on a busy moment: once more."""
    account = llm.account()
    if any(phase.roof_share > ABOVE for phase in account.phases):
        raise_ceilings(load_or_measure(llm.facts.threads))
        account = llm.account()
    return account


def _show_account(llm: LLM, screen: Screen) -> None:
    for line in account_lines(account_of(llm), is_random=llm.facts.is_random):
        screen.aside(line, style="dim")


def _end(asked: Asked, llm: LLM, screen: Screen, **fields: Any) -> None:
    account = account_of(llm)
    if not screen.json:
        sys.stdout.flush()
    for line in account_lines(account, is_random=llm.facts.is_random):
        screen.aside(line)
    evidence = llm.evidence(Seen("run"))
    verdict = judge(evidence)
    screen.aside(verdict_line(verdict))
    if asked.account:
        fields["ledger"] = ledger = _show_ledger(llm, screen, verdict)
        fields["request_verdicts"] = [judge_request(one, verdict) for one in ledger.requests]
    asked.keepsakes.write(llm, screen)
    if asked.roofline is not None:
        show_roofline(screen, llm, account, f"{asked.model}, one conversation", asked.roofline)
    screen.finish(
        "run", model=asked.model, **fields, account=account, facts=llm.facts, verdict=verdict, evidence=evidence
    )


def _show_ledger(llm: LLM, screen: Screen, verdict: Verdict) -> RunLedger:
    """The last request, interval by interval; returns the ledger of all."""
    ledger = llm.ledger()
    for one in ledger.requests[-1:]:
        screen.table(("interval", "time", "share", ""), wall_rows(one), "Where its time went")
        screen.table(("phase", "caused", "share", "most of it"), cost_rows(one), f"What it caused ({RULE})")
        screen.say(token_line(one))
        screen.say(step_line(ledger))
        screen.say(request_line(judge_request(one, verdict)))
    return ledger


def _show_scored(answer: Answer, llm: LLM, screen: Screen) -> None:
    def word(token: int) -> str:
        return repr(llm.tokenizer.decode([token]))

    rows = [
        (
            word(scored.token), digits(scored.logprob), str(scored.rank),
            "  ".join(f"{word(token)} {digits(logprob)}" for token, logprob in scored.top),
        )
        for scored in answer.scored
    ]  # fmt: skip
    screen.table(("token", "logprob", "rank", "likeliest"), rows)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
