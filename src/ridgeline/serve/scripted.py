"""ScriptedEngine: a Backend that answers after known times and computes nothing; on it, load generators are measured.

One thread plays the script: a request that has a slot gets its first token first_s later and one every next_s; the
others wait. Times of events are those of the script, not of the thread that tells them. Refuses what an engine would.
"""

# size: everything that Backend asks for, and the script

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass

from ridgeline.engine.client import Deliver, EngineStopped
from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.models.load import describe
from ridgeline.perf.intervals import ClientNote
from ridgeline.perf.ledger import RunLedger
from ridgeline.perf.totals import Window
from ridgeline.perf.verdict import Verdict
from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import MAP_CELLS, EngineFacts, Pulse
from ridgeline.state.request import Request
from ridgeline.text.tokenizer import Tokenizer

BLOCK_TOKENS, BLOCKS = 16, 4096


@dataclass(frozen=True)
class Script:
    """Seconds to the first token and between tokens; slots: answers at a time."""

    first_s: float = 0.150
    next_s: float = 0.010
    slots: int = 64

    @classmethod
    def parse(cls, text: str, slots: int) -> Script:
        """ "150,10": milliseconds. UserError for anything else."""
        try:
            first_ms, next_ms = (float(part) for part in text.split(","))
        except ValueError:
            first_ms = next_ms = -1.0
        if not (0 <= first_ms < 1e6 and 0 < next_ms < 1e6):
            raise UserError(f"{text!r} is no script; write milliseconds to the first token and between tokens: 150,10.")
        return cls(first_ms / 1000, next_ms / 1000, slots)


@dataclass(slots=True, eq=False)
class _Told:
    """One answer under way."""

    request: Request
    deliver: Deliver
    made: int = 0
    blocks: int = 0
    is_ended: bool = False


class ScriptedEngine:
    """Implements serve.backend.Backend. Thread-safe. Close it."""

    def __init__(
        self, tokenizer: Tokenizer, chat_template: str | None, facts: EngineFacts, script: Script | None = None
    ) -> None:
        self.tokenizer, self.chat_template, self.facts = tokenizer, chat_template, facts
        self.failure: RidgelineError | None = None
        self.pulse: Pulse | None = None
        self.script = script or Script()
        self._says = _letters(tokenizer, facts)
        self._turn = threading.Condition()
        self._running: dict[str, _Told] = {}
        self._waiting: deque[_Told] = deque()
        self._due: list[tuple[float, int, _Told]] = []
        self._number = itertools.count()
        self._is_asked = self._is_closed = False
        self._held = 0
        self._thread = threading.Thread(target=self._play, name="ridgeline-script", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, model: str, script: Script) -> ScriptedEngine:
        """With a model's own tokenizer, template and context; its weights are not read. UserError without a
        tokenizer."""
        described = describe(model)
        spec, tokenizer = described.spec, described.tokenizer()
        if tokenizer is None:
            raise UserError(f"{model} has no tokenizer; a script needs one to count tokens.")
        facts = EngineFacts(
            model=model, name=spec.name, family=spec.family, is_random=False, vocabulary=spec.vocabulary,
            context=spec.context, context_model=spec.context, bos=spec.bos, eos=spec.eos, add_bos=spec.add_bos,
            body="script", prefix=False, kv_blocks=BLOCKS, block_tokens=BLOCK_TOKENS, max_sequences=script.slots,
        )  # fmt: skip
        return cls(tokenizer, described.chat_template, facts, script)

    # -- Backend

    def ask_pulse(self) -> None:
        with self._turn:
            self._is_asked = True
            self._turn.notify()

    def submit_to(self, request: Request, deliver: Deliver, note: ClientNote | None = None) -> None:
        request.check(self.facts.vocabulary, self.facts.context)
        with self._turn:
            if self._is_closed:
                raise EngineStopped("the script was closed.")
            self._waiting.append(_Told(request, deliver))
            self._turn.notify()

    def cancel(self, request_id: str) -> None:
        with self._turn:
            told = self._running.get(request_id)
            told = told or next((one for one in self._waiting if one.request.id == request_id), None)
            if told is None or told.is_ended:
                return
            self._end(told)
            self._turn.notify()
        told.deliver(TokenEvent(request_id, (), time.perf_counter(), finish="cancelled"))

    def revive(self) -> None:
        """A script does not die."""

    def why(self) -> Verdict:
        raise UserError("a script computes nothing, so nothing bounds it; serve without --scripted.")

    def turn_page(self) -> Window | None:
        return None

    def ledger(self, *, reset: bool = False) -> RunLedger:
        return RunLedger((), {}, 0, 0, 0, 0)

    def close(self) -> None:
        with self._turn:
            self._is_closed = True
            self._turn.notify()
        self._thread.join(5.0)

    # -- inside

    def _play(self) -> None:
        while True:
            with self._turn:
                if self._is_closed:
                    return
                now_s = time.perf_counter()
                self._admit(now_s)
                events = self._come(now_s)
                if self._is_asked:
                    self._is_asked, self.pulse = False, self._beat(now_s)
                if not events:
                    self._turn.wait(max(0.0, self._due[0][0] - now_s) if self._due else None)
            for told, event in events:
                told.deliver(event)

    def _admit(self, now_s: float) -> None:
        while self._waiting and len(self._running) < self.script.slots:
            told = self._waiting.popleft()
            self._running[told.request.id] = told
            self._hold(told)
            heapq.heappush(self._due, (now_s + self.script.first_s, next(self._number), told))

    def _come(self, now_s: float) -> list[tuple[_Told, TokenEvent]]:
        """What the script says until now."""
        events = []
        while self._due and self._due[0][0] <= now_s:
            due_s, _, told = heapq.heappop(self._due)
            if told.is_ended:
                continue
            told.made += 1
            is_last = told.made >= max(told.request.max_tokens, 1)
            token = self._says[(told.made - 1) % len(self._says)]
            planned_s = due_s - self.script.first_s if told.made == 1 else 0.0
            finish = "length" if is_last else None
            events.append((told, TokenEvent(told.request.id, (token,), due_s, finish=finish, planned_s=planned_s)))
            if is_last:
                self._end(told)
                self._admit(now_s)
            else:
                self._hold(told)
                heapq.heappush(self._due, (due_s + self.script.next_s, next(self._number), told))
        return events

    def _hold(self, told: _Told) -> None:
        blocks = -(-(len(told.request.prompt) + told.made) // BLOCK_TOKENS)
        self._held += blocks - told.blocks
        told.blocks = blocks

    def _end(self, told: _Told) -> None:
        told.is_ended = True
        self._held -= told.blocks
        told.blocks = 0
        self._running.pop(told.request.id, None)
        if told in self._waiting:
            self._waiting.remove(told)

    def _beat(self, now_s: float) -> Pulse:
        held = min(self._held, self.facts.kv_blocks)
        blocks = self.facts.kv_blocks
        full = held * MAP_CELLS // blocks
        picture = bytes([0xF0] * full + [0] * (MAP_CELLS - full))
        return Pulse(now_s, len(self._waiting), len(self._running), blocks, blocks - held, held, map=picture)


def _letters(tokenizer: Tokenizer, facts: EngineFacts) -> tuple[int, ...]:
    """Ids that are whole text by themselves: what a script says."""
    known = range(min(tokenizer.size, facts.vocabulary))
    said = [token for token in known if tokenizer.piece(token).isalpha() and token not in facts.eos]
    return tuple(said[:64]) or (0,)
