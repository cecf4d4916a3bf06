"""Attempts without processes: engines that are only written down, so that what happens at once happens on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ridgeline.cluster.cluster import Cluster
from ridgeline.cluster.door import Greeting
from ridgeline.engine.client import EngineStopped
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import make_place
from ridgeline.kit.errors import RidgelineError
from ridgeline.state.event import RETURNED, STAYED, TokenEvent
from ridgeline.state.messages import EngineFacts
from ridgeline.state.request import Request

FACTS = EngineFacts(
    model="none", name="none", family="llama", is_random=True, vocabulary=100, context=100, context_model=100
)


class Written:
    """Stands where an EngineClient would: writes down who waits for what, and says what it is told to."""

    def __init__(self, stop: Callable[[RidgelineError], None]) -> None:
        self.stop, self.facts = stop, FACTS
        self.waits: dict[str, Callable[[Any], None]] = {}
        self.asked: list[str] = []
        self.is_running = True
        self.on_cancel: Callable[[], None] = lambda: None

    def expect(self, name: str, deliver: Callable[[Any], None]) -> None:
        assert name not in self.waits, "the same attempt twice"
        self.waits[name] = deliver

    def submit_to(self, request: Request, deliver: Callable[[Any], None], **_: Any) -> None:
        self.expect(request.id, deliver)
        self.asked.append(request.id)

    def cancel(self, name: str) -> None:
        self.on_cancel()

    def forget(self, name: str) -> None:
        self.waits.pop(name, None)

    def migrate(self, name: str, to: str) -> None:
        pass

    def close(self, timeout_s: float = 0.0) -> None:
        self.is_running = False


class Desk:
    """Launches nothing."""

    def start(self, name: str, config: EngineConfig, on_stop: Callable[[RidgelineError], None]) -> Any:
        return Written(on_stop)

    def link(self, giver: str, taker: str, greeting: Greeting) -> None:
        pass

    def forget(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


def written(place: str) -> tuple[Cluster, dict[str, Written]]:
    config = EngineConfig(model="none")
    cluster = Cluster(make_place(place), {"prefill": config, "decode": config}, Desk())
    return cluster, {name: node.client for name, node in cluster._nodes.items()}  # type: ignore[misc]


def test_an_attempt_is_sent_once_whoever_hears_of_the_end_first() -> None:
    """Its way breaks; and before it is sent again another engine ends for good, which sends everybody who waits."""
    cluster, engines = written("disaggregated:engines=1+3,route=round,restarts=0")
    got: list[Any] = []
    cluster.submit_to(Request("one", (1, 2), 9), got.append)
    prefill = engines["prefill-0"]
    idle = next(engine for name, engine in engines.items() if name != "prefill-0" and not engine.waits)
    ends = iter([lambda: idle.stop(EngineStopped("killed"))])
    prefill.on_cancel = lambda: next(ends, lambda: None)()
    prefill.waits["one"](TokenEvent("one", (), 0.0, finish=RETURNED))
    assert prefill.asked == ["one", "one~1"] and not got
    assert sum("one~1" in engine.waits for name, engine in engines.items() if name != "prefill-0") == 1
    cluster.close()


def test_an_engine_may_end_while_it_is_told_to_forget() -> None:
    """A move is refused, and its target ends between the two words it gets."""
    cluster, engines = written("disaggregated:engines=1+2,route=round,restarts=0,rebalance=load,every=1000000")
    got: list[Any] = []
    cluster.submit_to(Request("one", (1, 2), 9), got.append)
    journey = cluster._journeys["one"]
    source, other = journey.decode, "decode-1" if journey.decode == "decode-0" else "decode-0"
    journey.has_left = True
    assert cluster.move("one", source, other)
    engines[other].on_cancel = lambda: engines[other].stop(EngineStopped("killed"))
    engines[source].waits["one"](TokenEvent("one", (), 0.0, finish=STAYED))
    assert "one" not in engines[other].waits and not got
    cluster.close()
