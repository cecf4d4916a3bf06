"""Batch: a file of requests in, a file of answers out (OpenAI's batch format), through the same routes as over HTTP.

Resumable: an answer is one appended line, flushed to the disk; started again, what is answered is left alone and a torn
last line is taken off. So nothing is lost or doubled, whatever killed it. Refuses a file it cannot read in full first.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ridgeline.kit.errors import UserError

from .door import Door

MOST_LINE_BYTES = 16 << 20
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
AGAIN = (429, 503)  # the queue is full: come back
PAUSE_S = 0.2


class BatchLine(msgspec.Struct, frozen=True):
    """One request. Other fields of the format are accepted and not needed."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


def read_batch(path: Path) -> dict[str, BatchLine]:
    """By custom_id, in order. UserError names the line that is wrong."""
    found: dict[str, BatchLine] = {}
    for number, line in _lines(path):
        try:
            one = msgspec.json.decode(line, type=BatchLine)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {number}: {error}.") from None
        if one.custom_id in found:
            raise UserError(f"{path}, line {number}: the custom_id {one.custom_id[:80]!r} was used before.")
        if one.method != "POST" or one.url not in ROUTES:
            raise UserError(f"{path}, line {number}: {one.method} {one.url[:80]} is none of POST {', '.join(ROUTES)}.")
        found[one.custom_id] = msgspec.structs.replace(one, body=one.body.copy())
    if not found:
        raise UserError(f"{path} holds no request; one line is one.")
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if len(line) > MOST_LINE_BYTES:
                    raise UserError(f"{path}, line {number} has more than {MOST_LINE_BYTES} bytes.")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}.") from error


def answered(path: Path) -> set[str]:
    """custom_ids with an answer in the file; a line without an end (the writer was killed) is taken off it."""
    if not path.exists():
        return set()
    done, whole = set(), 0
    for number, line in _lines(path):
        if not line.endswith(b"\n"):
            break
        try:
            done.add(str(msgspec.json.decode(line)["custom_id"]))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise UserError(f"{path}, line {number} is no answer of a batch; give another OUT.") from None
        whole += len(line)
    with path.open("r+b") as file:
        file.truncate(whole)
    return done


class Batch:
    """Sends what is left through a Door, so many at a time, and writes answers as they come."""

    def __init__(self, door: Door, out: Path, at_a_time: int, progress: Callable[[int], None]) -> None:
        self._door, self._out, self._most, self._progress = door, out, at_a_time, progress
        self.failed = 0

    async def run(self, lines: list[BatchLine]) -> None:
        """UserError when the disk is full: what was written stays, and counts when it is run again."""
        left = iter(lines)
        turning = [asyncio.create_task(one) for one in self._door.lineup.turning()]
        try:
            with self._out.open("ab") as file:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._most, len(lines))):
                        group.create_task(self._work(left, file))
        except* OSError as group_error:
            raise UserError(f"cannot write {self._out}: {group_error.exceptions[0]}. Run it again to go on.") from None
        finally:
            for task in turning:
                task.cancel()

    async def _work(self, left: Iterator[BatchLine], file: BinaryIO) -> None:
        for one in left:
            status, body, request_id = await self._ask(one)
            while status in AGAIN and self._door.lineup.first.backend.failure is None:
                await asyncio.sleep(PAUSE_S)
                status, body, request_id = await self._ask(one)
            if status in AGAIN:
                raise UserError("the engine has stopped; run it again to go on with what is left.")
            self.failed += status != 200
            answer = {
                "id": f"batch_req_{request_id}", "custom_id": one.custom_id, "error": None,
                "response": {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)},
            }  # fmt: skip
            file.write(msgspec.json.encode(answer) + b"\n")  # one write a line, so at most the last one is torn
            file.flush()
            os.fsync(file.fileno())
            self._progress(1)

    async def _ask(self, one: BatchLine) -> tuple[int, bytes, str]:
        """(status, body, id) of one request, as if it had come over HTTP."""
        body, never, is_sent = bytes(one.body), asyncio.Event(), False
        parts: list[bytes] = []
        told: dict[str, Any] = {}

        async def receive() -> dict[str, Any]:
            nonlocal is_sent
            if not is_sent:
                is_sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await never.wait()  # nobody leaves
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                told.update(status=message["status"], headers=dict(message["headers"]))
            else:
                parts.append(message.get("body", b""))

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": one.url, "raw_path": one.url.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "server": ("batch", 0), "client": ("batch", 0),
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }  # fmt: skip
        await self._door(scope, receive, send)
        return told["status"], b"".join(parts), told["headers"].get(b"x-request-id", b"").decode()
