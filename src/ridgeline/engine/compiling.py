"""Compiling: requests whose grammars are being compiled, in a thread of its own, so that no step waits for one.

The engine's loop looks in when `number` is readable. Whoever is cancelled meanwhile never enters the engine.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading

from ridgeline.kit.errors import RidgelineError
from ridgeline.state.messages import Add
from ridgeline.text.grammar import Rules

Done = tuple[Add, RidgelineError | None]


class Compiling:
    """number: a file descriptor that is readable when turn has something to give."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asked: queue.SimpleQueue[Add | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._inside: set[str] = set()
        self._thread: threading.Thread | None = None

    def wants(self, message: Add) -> bool:
        """Whether its grammar is not there yet."""
        grammar = message.request.sampling.grammar
        return grammar is not None and not self._rules.is_prepared(grammar)

    def begin(self, message: Add) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ridgeline-grammars", daemon=True)
            self._thread.start()
        self._inside.add(message.request.id)
        self._asked.put(message)

    def cancel(self, request_id: str) -> bool:
        """Whether it was here; it will not come out any more."""
        is_here = request_id in self._inside
        self._inside.discard(request_id)
        return is_here

    def turn(self) -> list[Done]:
        """Those whose grammars are there, or why one cannot be."""
        with contextlib.suppress(BlockingIOError):  # what is done is put there a moment before this is told
            os.eventfd_read(self.number)
        found: list[Done] = []
        while not self._done.empty():
            one = self._done.get()
            if one[0].request.id in self._inside:
                self._inside.discard(one[0].request.id)
                found.append(one)
        return found

    def close(self) -> None:
        """What is being compiled is not waited for: the process ends."""
        self._asked.put(None)

    def _run(self) -> None:
        while (message := self._asked.get()) is not None:
            error: RidgelineError | None = None
            grammar = message.request.sampling.grammar
            try:
                if grammar is not None and message.request.id in self._inside:
                    self._rules.prepare(grammar)
            except RidgelineError as reason:
                error = reason
            self._done.put((message, error))
            os.eventfd_write(self.number, 1)
