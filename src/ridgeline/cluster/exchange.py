"""Exchange: an engine's side of a cluster. Links come in through its door (door.py, calling.py).

Implements engine.process.Exchange: between two steps it gives and takes sequences. Whoever starts the engines decides
who is linked with whom (cluster.py); this room is only told.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

from ridgeline.engine.engine import Engine
from ridgeline.kit.errors import InvariantError
from ridgeline.state.event import TokenEvent

from .bell import Bell
from .door import Door, Greeting
from .giver import Giver
from .link import Link
from .taker import Taker


class Exchange:
    def __init__(self, engine: Engine, door: Door) -> None:
        if engine.kept is None:
            raise InvariantError("an engine that computes nothing has nothing to exchange")
        self._bell, self._door = Bell(), door
        self.number = self._bell.number
        self._giver, self._taker = Giver(engine, engine.kept, self._bell), Taker(engine, engine.kept, self._bell)
        self._greeted: queue.SimpleQueue[tuple[Greeting, Link]] = queue.SimpleQueue()
        self._links: list[Link] = []  # those in use
        self._before = [0, 0]  # bytes that others have sent and received
        threading.Thread(target=door.open, args=(self._met,), name="ridgeline-door", daemon=True).start()

    def send_on(self, request_id: str, to: str) -> None:
        self._giver.send_on(request_id, to)

    def migrate(self, request_id: str, to: str) -> TokenEvent | None:
        return self._giver.migrate(request_id, to)

    def cancel(self, request_id: str) -> TokenEvent | None:
        return self._giver.cancel(request_id)

    def turn(self) -> list[TokenEvent]:
        self._bell.hear()
        while not self._greeted.empty():
            greeting, link = self._greeted.get()
            self._count(link)
            if greeting.gives:
                self._giver.meet(greeting.name, link)
            else:
                self._taker.meet(greeting.name, link, greeting.buffer)
        self._taker.turn()
        return self._giver.turn()

    def report(self) -> dict[str, int]:
        """Bytes of kept state over all links since the start."""
        sent, received = self._sums(self._links)
        return {"bytes sent": self._before[0] + sent, "bytes received": self._before[1] + received}

    def close(self) -> None:
        self._giver.close()
        self._taker.close()
        self._door.close()
        self._bell.close()

    # -- inside

    def _met(self, greeting: Greeting, link: Link) -> None:
        self._greeted.put((greeting, link))
        self._bell.ring()

    def _count(self, link: Link) -> None:
        """A new link; of those that are closed only the sums are kept."""
        closed = [one for one in self._links if one.is_closed]
        sums = self._sums(closed)
        self._before = [before + more for before, more in zip(self._before, sums, strict=True)]
        self._links = [one for one in self._links if not one.is_closed] + [link]

    def _sums(self, links: Iterable[Link]) -> tuple[int, int]:
        pairs = [(one.bytes_sent, one.bytes_received) for one in links]
        return sum(sent for sent, _ in pairs), sum(received for _, received in pairs)
