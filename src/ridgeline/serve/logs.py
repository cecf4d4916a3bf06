"""Logs: one line a request, as words or as JSON, to stderr or a file; written by a thread of its own.

Never a prompt, an answer or a key. A full disk, a slow one or a file that went away loses lines and counts them; it
never holds up or fails a request.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import msgspec

from ridgeline.kit.errors import UserError

FORMATS = ("text", "json")
WAITING = 10_000  # lines
NAME = "ridgeline.serve"
FIELDS = "fields"  # attribute of a record: what is known besides its message


class JsonLines(logging.Formatter):
    """One object a line: at (UTC), level, event, and what is known."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        known: dict[str, Any] = getattr(record, FIELDS, {})
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage(), **known}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class Words(logging.Formatter):
    """For people: the same fields as name=value; nothing a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        known: dict[str, Any] = getattr(record, FIELDS, {})
        pairs = "".join(f" {name}={value}" for name, value in known.items() if value is not None)
        text = f"{at} {record.levelname.lower()} {record.getMessage()}{pairs}"
        error = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + error


class Writer(logging.Handler):
    """Takes records at once, writes them when it can. lost: lines that could not be kept."""

    def __init__(self, kind: str, path: Path | None) -> None:
        """UserError when the file cannot be opened."""
        super().__init__()
        if kind not in FORMATS:
            raise UserError(f"--log-format is {kind!r}; it is one of {', '.join(FORMATS)}.")
        self.setFormatter(JsonLines() if kind == "json" else Words())
        self.lost = 0
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self._out: TextIO = sys.stderr
        self._path = path
        if path is not None:
            try:
                self._out = path.open("a", encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise UserError(f"cannot write the log {path}: {error}.") from error
        self._thread = threading.Thread(target=self._write, name="ridgeline-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """What waits is written first, for at most a second."""
        try:
            self._lines.put(None, timeout=1.0)
            self._thread.join(1.0)
        except queue.Full:
            pass
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._out.write(line + "\n")
                self._out.flush()
            except (OSError, ValueError):
                self.lost += 1
                self._reopen()
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                self._out.close()

    def _reopen(self) -> None:
        """What the stream could not write would be written again with the next line; a new one begins clean."""
        if self._path is None:
            return
        broken = self._out
        try:
            self._out = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError:
            return
        with contextlib.suppress(OSError, ValueError):
            broken.close()


def begin(kind: str, path: Path | None) -> Writer:
    """The server's loggers write there from now on; close it."""
    writer = Writer(kind, path)
    logger = logging.getLogger(NAME)
    logger.addHandler(writer)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return writer


def end(writer: Writer) -> None:
    logging.getLogger(NAME).removeHandler(writer)
    writer.close()
