"""A real server on a real engine, in a thread of this process: what tests talk to over a socket."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from types import MappingProxyType
from typing import Any

from ridgeline.serve.backend import Backend
from ridgeline.serve.door import Door
from ridgeline.serve.keys import Keys
from ridgeline.serve.served import Limits, Served
from ridgeline.serve.server import Server, listen

KEY = "sk-test"
JSON = {"Content-Type": "application/json"}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]  # lower-case names
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]

    @property
    def events(self) -> list[Any]:
        """Of a stream: every data frame, the last as it is."""
        frames = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in frames]


@dataclass
class Live:
    host: str
    port: int
    served: Served
    server: Server
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __call__(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request on its own connection; body: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {**(JSON if data is not None else {}), **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        with contextlib.closing(HTTPConnection(self.host, self.port, timeout=60)) as connection:
            connection.request(method, path, data, {**given, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def chat(self, text: str = "hi", **fields: Any) -> Reply:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        body |= {"temperature": 0, "ignore_eos": True}  # always the same eight tokens
        return self("POST", "/v1/chat/completions", body | fields)

    def complete(self, prompt: Any = "hi", **fields: Any) -> Reply:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return self("POST", "/v1/completions", body | fields)

    def raw(self, data: bytes, timeout_s: float = 30.0) -> bytes:
        """Bytes sent as they are; what came back until the server closed."""
        with contextlib.closing(socket.create_connection((self.host, self.port), timeout_s)) as connection:
            parts = []
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1 << 16):
                    parts.append(part)
            return b"".join(parts)


@contextlib.contextmanager
def live(
    llm: Backend, *, keys: tuple[str, ...] = (), limits: Limits | None = None,
    others: Mapping[str, Backend] = MappingProxyType({}), **door: Any,
) -> Iterator[Live]:  # fmt: skip
    """Listens on any free port; ends with a drain. others: more models behind it, by name."""
    served = Served("tiny", llm, limits)
    models = [served, *(Served(name, backend, limits) for name, backend in others.items())]
    listening = listen("127.0.0.1", 0)
    ready: queue.SimpleQueue[str] = queue.SimpleQueue()
    server = Server(Door(models, Keys(keys), **door), listening, ready.put)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        port = int(ready.get(timeout=60).rpartition(":")[2])
        yield Live("127.0.0.1", port, served, server, keys[0].split()[0] if keys else "")
    finally:
        server.drain()
        thread.join(60)
        for one in models:
            one.close()
        listening.close()
