"""Judge: whether a stranger's grammar can be enforced, found out in a process of its own: bounded in time and memory.

`python -P -m ridgeline.text.judge` is that process: a vocabulary on standard input, then grammars, a verdict each. It
is started with the first grammar, and again after it had to be killed. Used by servers; blocks its caller.
"""

from __future__ import annotations

import contextlib
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

import msgspec
import numpy as np

from ridgeline.kit.errors import UserError
from ridgeline.state.request import Grammar

from .grammar import STEP_S, Lexicon
from .tokenizer import Tokenizer

COMPILE_S, MEMORY_BYTES = 2.0, 256 << 20  # SERVING §7
START_S = 60.0  # with a large vocabulary on a loaded machine
STEPS = 6  # masks that are made on trial
REMEMBERED = 1024
LENGTH = struct.Struct("<I")


class Words(msgspec.Struct, frozen=True):
    pieces: list[bytes]
    special: list[int]
    ends: tuple[int, ...]


class Judge:
    """Thread-safe; one grammar at a time."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: tuple[int, ...]) -> None:
        self._words: Callable[[], Words] = lambda: Words(
            [tokenizer.piece(token) for token in range(vocabulary)],
            sorted(one for one in tokenizer.special_ids if one < vocabulary), ends,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[Grammar, str] = {}
        self._is_closed = False

    def check(self, grammar: Grammar) -> None:
        """UserError when it cannot be enforced, or when finding out takes too long or too much memory."""
        with self._lock:
            found = self._known.get(grammar)
            if found is None:
                found = self._known[grammar] = self._ask(grammar)
                if len(self._known) > REMEMBERED:
                    self._known.pop(next(iter(self._known)))
        if found:
            raise UserError(found)

    def close(self) -> None:
        """Ends the process; idempotent."""
        self._is_closed = True
        self._kill()

    def _ask(self, grammar: Grammar) -> str:
        if self._is_closed:
            raise UserError("the server ends.")
        process = self._process or self._start()
        said = None
        with contextlib.suppress(OSError):
            _write(_pipe(process.stdin), msgspec.msgpack.encode(grammar))
            said = _read(_pipe(process.stdout), time.monotonic() + COMPILE_S)
        if said is not None:
            return said.decode()
        is_dead = process.poll() is not None
        self._kill()
        limit = f"{MEMORY_BYTES >> 20} MiB of memory" if is_dead else f"{COMPILE_S:g} s"
        return f"the {grammar.kind.replace('_', ' ')} cannot be enforced: compiling it takes more than {limit}."

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", "ridgeline.text.judge"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            _write(_pipe(process.stdin), msgspec.msgpack.encode(self._words()))
            said = _read(_pipe(process.stdout), time.monotonic() + START_S)
        except OSError:
            said = None
        if said != b"":
            self._kill()
            raise UserError(said.decode() if said else "no process to compile grammars could be started.")
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    _pipe(pipe).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise OSError("no pipe")
    return pipe


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes], until_s: float) -> bytes | None:
    """One answer; None when it is not there in time, or ends before."""
    data = b""
    while len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack_from(data)[0]:
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
            return None
        part = pipe.read1(1 << 16)  # type: ignore[attr-defined]
        if not part:
            return None
        data += part
    return data[LENGTH.size :]


# -- the process


def verdict(lexicon: Lexicon, grammar: Grammar) -> str:
    """ "" when it can be enforced; else why not. Makes some masks on the way of the first token that fits."""
    try:
        matcher = lexicon.compile(grammar)
    except UserError as error:
        return str(error)
    for _ in range(STEPS):
        began_s = time.process_time()
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little"))
        if (took_s := time.process_time() - began_s) > STEP_S:
            return f"the {grammar.kind.replace('_', ' ')} takes {took_s:.2g} s for one token; make it simpler."
        if matcher.is_error():
            return f"the {grammar.kind.replace('_', ' ')} cannot be enforced: {matcher.get_error()[:200]}."
        if not len(allowed) or int(allowed[-1]) in lexicon.ends or not matcher.consume_token(int(allowed[-1])):
            break
    return ""


def main() -> int:
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    words = msgspec.msgpack.decode(_frame(stdin), type=Words)
    try:
        lexicon = Lexicon(words.pieces, words.special, words.ends, list)
    except UserError as error:
        _write(stdout, str(error).encode())
        return 2
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115  ends with us
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
    _write(stdout, b"")
    while data := _frame(stdin):
        _write(stdout, verdict(lexicon, msgspec.msgpack.decode(data, type=Grammar)).encode())
    return 0


def _frame(pipe: IO[bytes]) -> bytes:
    """b"" when the other end has gone."""
    head = pipe.read(LENGTH.size)
    return pipe.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


if __name__ == "__main__":
    sys.exit(main())
