"""HttpLoad: requests against any OpenAI-compatible server, each at its intended time, measured from that time.

Open loop: an answer that is late delays no request after it, so waiting is never left out (coordinated omission).
Over h11, which the server stands on too: it parses what any server sends, and nothing new is installed.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11
import msgspec

from ridgeline.kit.errors import UserError

from .arrivals import Ask
from .replay import Replay, RequestResult, summarise_replay

READ_BYTES = 1 << 16
MOST_EVENT_BYTES = 1 << 22  # of one server-sent event
JSON = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class Aim:
    """Whom to ask and how. url: of the server, with or without /v1. model: None: the first it offers."""

    url: str
    model: str | None = None
    key: str | None = None
    is_chat: bool = False
    ignore_eos: bool = True
    timeout_s: float = 600.0

    @property
    def parts(self) -> tuple[str, int, bool, str]:
        """(host, port, is it TLS, path before /v1). UserError for what is no address."""
        try:
            split = urlsplit(self.url)
            port = split.port
        except ValueError as error:
            raise UserError(f"{self.url!r} is no address: {error}.") from None
        if split.scheme not in ("http", "https") or not split.hostname:
            raise UserError(f"{self.url!r} is no address; write http://HOST:PORT.")
        is_tls = split.scheme == "https"
        return split.hostname, port or (443 if is_tls else 80), is_tls, split.path.rstrip("/").removesuffix("/v1")


@dataclass(slots=True)
class _Heard:
    """One answer as it came. Seconds on the monotonic clock."""

    times: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None
    has_retry: bool = False
    ended_s: float = 0.0


class HttpLoad:
    """progress: requests just finished. Use on one event loop."""

    def __init__(self, aim: Aim, progress: Callable[[int], None] = lambda done: None) -> None:
        self.aim, self._progress = aim, progress
        self._host, self._port, self._is_tls, self._path = aim.parts
        self._model = aim.model or ""
        self._late_s = 0.0

    def run(self, asks: Sequence[Ask], clients: int = 1) -> Replay:
        """Send all and wait for them. clients: who send in turn what has no arrival. UserError when nobody is there."""
        return asyncio.run(self.load(asks, clients))

    async def load(self, asks: Sequence[Ask], clients: int = 1) -> Replay:
        if not self._model:
            self._model = await self.first_model()
        start = time.perf_counter() + 0.05  # everything is made before the first is due
        timed = [(index, ask.arrival_s) for index, ask in enumerate(asks) if ask.arrival_s is not None]
        turns = iter([index for index, ask in enumerate(asks) if ask.arrival_s is None])
        results: list[RequestResult | None] = [None] * len(asks)
        gc.collect()
        gc.freeze()  # a collection in the middle would be told as latency of the server
        try:
            async with asyncio.TaskGroup() as group:
                for index, at_s in timed:
                    group.create_task(self._at(results, asks, index, start, at_s))
                for _ in range(clients if len(timed) < len(asks) else 0):
                    group.create_task(self._client(results, asks, turns, start))
        finally:
            gc.unfreeze()
        done = tuple(result for result in results if result is not None)
        return Replay(done, summarise_replay(done, self._late_s))

    async def first_model(self) -> str:
        """Of those the server offers."""
        status, body = 0, b""
        try:
            async with asyncio.timeout(30):
                async for now, part, _ in self._exchange("GET", "/v1/models", None):
                    status, body = now, body + part
            models = JSON.decode(body)["data"]
            return str(models[0]["id"])
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            raise UserError(f"nobody answers at {self.aim.url}: {error or 'no answer in 30 s'}.") from error
        except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self.aim.url}/v1/models gave {status} and no list of models; name one.") from error

    # -- inside

    async def _at(
        self, results: list[RequestResult | None], asks: Sequence[Ask], index: int, start: float, at_s: float
    ) -> None:
        await asyncio.sleep(max(0.0, start + at_s - time.perf_counter()))
        self._late_s = max(self._late_s, time.perf_counter() - start - at_s)
        results[index] = _result(await self._ask(asks[index]), start, at_s)
        self._progress(1)

    async def _client(
        self, results: list[RequestResult | None], asks: Sequence[Ask], turns: Any, start: float
    ) -> None:  # fmt: skip
        at_s = 0.0
        await asyncio.sleep(max(0.0, start - time.perf_counter()))
        for index in turns:
            heard = await self._ask(asks[index])
            results[index] = _result(heard, start, at_s)
            at_s = heard.ended_s - start
            self._progress(1)

    async def _ask(self, ask: Ask) -> _Heard:
        heard = _Heard()
        try:
            async with asyncio.timeout(self.aim.timeout_s):
                await self._hear(ask, heard)
        except TimeoutError:
            heard.error = f"no end in {self.aim.timeout_s:g} s"
        except (OSError, h11.ProtocolError, msgspec.DecodeError) as error:
            heard.error = f"connection: {type(error).__name__}"
        heard.ended_s = time.perf_counter()
        return heard

    async def _hear(self, ask: Ask, heard: _Heard) -> None:
        pending = b""
        async for status, part, at_s in self._exchange("POST", self._route, self._body(ask), heard):
            pending += part
            if status != 200:
                heard.error = f"HTTP {status}{_code(pending)}"
                continue
            *frames, pending = pending.replace(b"\r\n", b"\n").split(b"\n\n")
            for frame in frames:
                self._take(frame, at_s, heard)
            if len(pending) > MOST_EVENT_BYTES:
                raise h11.RemoteProtocolError("an event without an end")

    def _take(self, frame: bytes, at_s: float, heard: _Heard) -> None:
        """One server-sent event. A chunk with text is one token unless the usage says otherwise."""
        if not frame.startswith(b"data:") or frame[5:].strip() == b"[DONE]":
            return
        event = JSON.decode(frame[5:])
        if event.get("error"):
            heard.error = str(event["error"].get("code") or "error event")
        choice = (event.get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            heard.times.append(at_s)
        if usage := event.get("usage"):
            heard.tokens = int(usage.get("completion_tokens") or 0)
            heard.prompt_tokens = int(usage.get("prompt_tokens") or 0)

    @property
    def _route(self) -> str:
        return "/v1/chat/completions" if self.aim.is_chat else "/v1/completions"

    def _body(self, ask: Ask) -> bytes:
        said = {"messages": [{"role": "user", "content": ask.prompt}]} if self.aim.is_chat else {"prompt": ask.prompt}
        body: dict[str, Any] = {"model": self._model, "max_tokens": ask.output_tokens, "temperature": 0, **said}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(body | ({"ignore_eos": True} if self.aim.ignore_eos else {}))

    async def _exchange(
        self, method: str, route: str, body: bytes | None, heard: _Heard | None = None
    ) -> AsyncIterator[tuple[int, bytes, float]]:
        """(status, part of the body, when it came), on a connection of its own."""
        context = ssl.create_default_context() if self._is_tls else None
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        try:
            wire = h11.Connection(h11.CLIENT)
            headers = [("Host", f"{self._host}:{self._port}"), ("Connection", "close"), ("Accept", "*/*")]
            if self.aim.key:
                headers.append(("Authorization", f"Bearer {self.aim.key}"))
            if body is not None:
                headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            writer.write(wire.send(h11.Request(method=method, target=self._path + route, headers=headers)) or b"")
            if body is not None:
                writer.write(wire.send(h11.Data(data=body)) or b"")
            writer.write(wire.send(h11.EndOfMessage()) or b"")
            status = 0
            while True:
                event = wire.next_event()
                if event is h11.NEED_DATA:
                    data = await reader.read(READ_BYTES)
                    at_s = time.perf_counter()
                    wire.receive_data(data)
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    if heard is not None:
                        heard.has_retry = any(name == b"retry-after" for name, _ in event.headers)
                    yield status, b"", at_s
                elif isinstance(event, h11.Data):
                    yield status, bytes(event.data), at_s
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    return
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _code(body: bytes) -> str:
    """The stable code of an error, when it is there already."""
    with suppress(msgspec.DecodeError, AttributeError):
        return f" {JSON.decode(body)['error'].get('code')}" if b"error" in body else ""
    return ""


def _result(heard: _Heard, start: float, at_s: float) -> RequestResult:
    error = heard.error or ("no token came" if not heard.times else None)
    if error is not None:
        return RequestResult((), heard.prompt_tokens, at_s, error=error, refused_s=heard.ended_s - start - at_s,
                             has_retry=heard.has_retry)  # fmt: skip
    count = heard.tokens or len(heard.times)
    ttft_s, e2e_s = heard.times[0] - start - at_s, heard.times[-1] - start - at_s
    gaps = tuple(late - early for early, late in zip(heard.times, heard.times[1:], strict=False))
    tpot_s = (e2e_s - ttft_s) / (count - 1) if count > 1 else None
    return RequestResult((), heard.prompt_tokens, at_s, ttft_s, tpot_s, e2e_s, gaps, counted=count)
