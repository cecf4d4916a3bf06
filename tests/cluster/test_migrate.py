"""A running sequence goes on in another engine: the same tokens, no block lost, whatever breaks on the way."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ridgeline.cluster.cluster import Cluster
from ridgeline.state.event import HANDED_ON, STAYED
from ridgeline.state.request import Request, Sampling

from ..engine.tiny import LLAMA, TinyEngine, write_config
from .pair import LINK, Pair
from .test_cluster import Answers, is_idle, started

PROMPT = tuple(range(7, 60))
SAMPLED = Sampling(temperature=0.9, top_p=0.9, seed=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("model"), LLAMA)


def request(name: str, tokens: int = 90, **fields: Any) -> Request:
    return Request(name, PROMPT, tokens, ignore_stop=True, **fields)


def alone(model: str, asked: Request, **options: Any) -> tuple[int, ...]:
    tiny = TinyEngine(model, **options)
    ids = tiny.run([asked])[asked.id]
    tiny.engine.close()
    return ids


class Moving(Pair):
    """Requests begin at the first engine as its own, and move when told."""

    def begin(self, asked: Request, tokens: int) -> None:
        """Runs on the first until it has so many output tokens."""
        self.engines[0].add(asked)
        self.until(lambda: len(self.ids(asked.id)) >= tokens)

    def migrate(self, name: str) -> None:
        told = self.exchanges[0].migrate(name, LINK)
        self.events += [told] if told is not None else []

    def finished(self, name: str) -> bool:
        return bool({"stop", "length"} & set(self.said(name)))


@pytest.fixture
def moving(model: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    pairs: list[Moving] = []

    def make(**options: Any) -> Moving:
        pair = Moving(model, **options)
        pairs.append(pair)
        pair.link()
        pair.until(lambda: bool(pair.exchanges[0]._giver.ends))
        return pair

    yield make
    for pair in pairs:
        pair.close()


@pytest.mark.parametrize(
    "options",
    [
        {"kv": "bf16"}, {"kv": "int8", "kind": "tcp"}, {"kv": "int4"}, {"kv": "f32", "weights": "f32"},
        {"spec": "ngram:k=3"}, {"step_tokens": 64, "chunk": 20},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_its_tokens_stay_the_same(model: str, moving: Any, options: dict[str, Any], sampling: Sampling) -> None:
    asked = request("one", sampling=sampling)
    own = {name: value for name, value in options.items() if name != "kind"}
    expected = alone(model, asked, **own)
    pair = moving(**options)
    pair.begin(asked, 20)
    pair.migrate("one")
    pair.until(lambda: pair.finished("one"))
    assert pair.ids("one") == expected
    assert pair.said("one") == [HANDED_ON, "length"]
    pair.until(lambda: pair.held() == [0, 0] and pair.kept_aside() == 0)


def test_it_runs_while_its_blocks_travel_and_blocks_stay_until_taken(model: str, moving: Any) -> None:
    """On a slow link tokens are made at the first engine after the first block was sent; and what is told there ends
    with HANDED_ON only when the second has said Taken."""
    asked = request("one", 120)
    pair = moving(rate=4e5)
    pair.begin(asked, 40)
    pair.migrate("one")
    end = pair.exchanges[0]._giver.ends[LINK]
    pair.until(lambda: end.link.bytes_sent > 0, which=(0, 1))
    sent_at = len(pair.ids("one"))
    scheduler = pair.engines[0].scheduler
    pair.until(lambda: scheduler.has_parted("one"))
    assert len(pair.ids("one")) > sent_at
    held = pair.held()[0]
    assert held >= len(PROMPT) // 16
    pair.until(lambda: HANDED_ON in pair.said("one"))
    assert pair.held()[0] < held
    pair.until(lambda: pair.finished("one"))
    assert pair.ids("one") == alone(model, asked)


def test_many_move_there_at_once(model: str, moving: Any) -> None:
    asked = [request(f"r{n}", 40 + 10 * n, sampling=Sampling(temperature=0.8, seed=n)) for n in range(5)]
    expected = {one.id: alone(model, one) for one in asked}
    pair = moving()
    for one in asked:
        pair.engines[0].add(one)
    pair.until(lambda: all(len(pair.ids(one.id)) >= 5 for one in asked))
    for one in asked:
        pair.migrate(one.id)
    pair.until(lambda: all(pair.finished(one.id) for one in asked))
    assert {one.id: pair.ids(one.id) for one in asked} == expected
    pair.until(lambda: pair.held() == [0, 0] and pair.kept_aside() == 0)


def test_one_that_is_not_let_in_stays(model: str, moving: Any) -> None:
    """Full buffer: the second engine has room aside for one; the other runs on where it is until it may."""
    pair = moving(buffer=1)
    first, second = request("first", 200), request("second", 200)
    expected = alone(model, second)
    pair.begin(first, 4)
    pair.begin(second, 4)
    pair.migrate("first")
    pair.until(lambda: pair.exchanges[0]._giver._leaving["first"].is_granted)
    pair.migrate("second")
    pair.until(lambda: STAYED in pair.said("second") or HANDED_ON in pair.said("second"), which=(0,))
    pair.until(lambda: pair.finished("second") and pair.finished("first"))
    assert pair.ids("second") == expected
    pair.until(lambda: pair.held() == [0, 0] and pair.kept_aside() == 0)


def test_a_slow_receiver_only_delays_it(model: str, moving: Any) -> None:
    """The second engine's loop stands still: the first goes on until the blocks are gone, then the stream waits."""
    asked = request("one", 150)
    pair = moving()
    pair.begin(asked, 10)
    pair.migrate("one")
    pair.until(lambda: pair.engines[0].scheduler.has_parted("one"), which=(0,))
    for _ in range(20):
        pair.turn(which=(0,))
        time.sleep(0.002)
    assert pair.engines[0].scheduler.has_parted("one") and pair.held()[0] > 0
    pair.until(lambda: pair.finished("one"))
    assert pair.ids("one") == alone(model, asked)


@pytest.mark.parametrize("kind", ["shm", "tcp"])
def test_a_full_way_only_delays_it(model: str, moving: Any, kind: str) -> None:
    """Nobody reads at the other end, and the way holds little: whoever sends stands still, and not the engine."""
    asked = request("one", 200)
    pair = moving(kind=kind)
    pair.begin(asked, 30)
    end, (coming,) = pair.exchanges[0]._giver.ends[LINK], pair.exchanges[1]._taker._ends
    if kind == "shm":
        del end.link._carriage._free[1:]
    for link in (end.link, coming._link):
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            link._connection.setsockopt(socket.SOL_SOCKET, buffer, 1)  # the system's least
    is_read, take = threading.Event(), coming._link._take_payload

    def held(header: Any, into: Any) -> None:
        assert is_read.wait(60)
        take(header, into)

    coming._link._take_payload = held
    pair.migrate("one")
    pair.until(lambda: pair.exchanges[0]._giver._leaving["one"].is_granted)
    made = len(pair.ids("one"))
    pair.until(lambda: len(pair.ids("one")) >= made + 40, which=(0,))
    assert coming._link.bytes_received == 0 and end.link.bytes_sent < 4 * pair.block_bytes
    assert pair.held()[0] > 4 and HANDED_ON not in pair.said("one") and pair.held()[1] == 0
    is_read.set()
    pair.until(lambda: pair.finished("one"))
    assert pair.ids("one") == alone(model, asked) and HANDED_ON in pair.said("one")
    pair.until(lambda: pair.held() == [0, 0] and pair.kept_aside() == 0)


@pytest.mark.parametrize("is_parted", [False, True])
@pytest.mark.parametrize("part", ["head", "payload"])
@pytest.mark.parametrize("kind", ["shm", "tcp"])
def test_a_corrupt_frame_leaves_it_where_it_was(
    model: str, moving: Any, kind: str, part: str, is_parted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of a block, or of what is said about it, comes turned, before the sequence parts or after."""
    asked = request("one", 150, sampling=SAMPLED)
    pair = moving(kind=kind)
    pair.begin(asked, 10)
    scheduler, (end,) = pair.engines[0].scheduler, pair.exchanges[1]._taker._ends
    is_slot = kind == "shm" and part == "payload"
    owner, name = (end._link._carriage, "unload") if is_slot else (end._link, "_read_into")
    honest, turned = getattr(owner, name), []

    def turn(*given: Any) -> None:
        honest(*given)
        into = given[-1]
        is_part = (len(into) > 1000) is (part == "payload")
        if not turned and is_part and scheduler.has_parted("one") is is_parted:
            into[0] ^= 4
            turned.append(len(into))

    monkeypatch.setattr(owner, name, turn)
    pair.migrate("one")
    if is_parted:
        pair.until(lambda: scheduler.has_parted("one"), which=(0,))
    pair.until(lambda: STAYED in pair.said("one"))
    assert turned and next(event.error for event in pair.events if event.finish == STAYED)
    pair.until(lambda: pair.finished("one"))
    assert pair.ids("one") == alone(model, asked)
    pair.until(lambda: pair.held() == [0, 0] and pair.kept_aside() == 0)


@pytest.mark.parametrize("is_parted", [False, True])
def test_a_link_that_breaks_leaves_it_where_it_was(model: str, moving: Any, is_parted: bool) -> None:
    asked = request("one", 150, sampling=SAMPLED)
    pair = moving(rate=3e5)
    pair.begin(asked, 10)
    pair.migrate("one")
    scheduler = pair.engines[0].scheduler
    pair.until(lambda: scheduler.has_parted("one") if is_parted else pair.exchanges[0]._giver._leaving["one"].sent)
    pair.exchanges[1]._taker.close()
    pair.until(lambda: STAYED in pair.said("one"), which=(0,))
    assert next(event.error for event in pair.events if event.finish == STAYED)
    pair.until(lambda: pair.finished("one"), which=(0,))
    assert pair.ids("one") == alone(model, asked) and pair.held()[0] == 0


def test_one_that_ends_or_is_cancelled_on_the_way_is_dropped(model: str, moving: Any) -> None:
    pair = moving(rate=3e5)
    short, long = request("short", 14), request("long", 150)
    pair.begin(short, 8)
    pair.migrate("short")
    pair.until(lambda: pair.finished("short"), which=(0,))
    pair.begin(long, 8)
    pair.migrate("long")
    pair.turn()
    event = pair.engines[0].cancel("long") or pair.exchanges[0].cancel("long")
    assert event is not None and event.finish == "cancelled"
    pair.until(lambda: pair.held() == [0, 0] and not any(end._coming for end in pair.exchanges[1]._taker._ends))
    assert pair.kept_aside() == 0


def test_without_a_way_it_stays_and_without_it_nothing_happens(model: str, moving: Any) -> None:
    pair = moving()
    pair.begin(request("one", 30), 3)
    told = pair.exchanges[0].migrate("one", "nobody/1")
    assert told is not None and told.finish == STAYED
    assert pair.exchanges[0].migrate("unknown", LINK) is None
    pair.until(lambda: pair.finished("one"))


# -- real processes


BALANCED = "disaggregated:engines=1+2,route=round,rebalance=load,every=1000000"  # nobody moves unless it is told to


@pytest.fixture(scope="module")
def cluster(model: str) -> Iterator[Cluster]:
    cluster = started(model, f"{BALANCED},restarts=2")
    yield cluster
    cluster.close()


OTHER = {"decode-0": "decode-1", "decode-1": "decode-0"}


def moved(cluster: Cluster, answers: Answers, name: str, tokens: int = 10) -> str:
    """Told to move once it has so many tokens; from where. "": on a loaded machine it was over before it was told."""
    answers.until(lambda: len(answers.tokens[name]) >= tokens)
    while (journey := cluster._journeys.get(name)) is not None:
        home = journey.decode
        if home in OTHER and cluster.move(name, home, OTHER[home]):
            return home
        time.sleep(0.001)
    return ""


def test_there_and_back_in_real_processes(cluster: Cluster, model: str) -> None:
    requests, answers = [], Answers(cluster)
    for attempt in range(30):
        name = f"a{attempt}"
        requests += [request(name, 600, sampling=SAMPLED), request(f"b{attempt}", 600)]
        for one in requests[-2:]:
            answers.ask(one)
        if home := moved(cluster, answers, name):
            back = ""
            while not back and (journey := cluster._journeys.get(name)) is not None:
                back = moved(cluster, answers, name) if journey.decode == OTHER[home] else ""
            if back == OTHER[home]:
                break
    else:
        raise AssertionError("nobody moved there and back")
    assert answers.all() == {one.id: alone(model, one) for one in requests}
    assert set(answers.ends.values()) == {"length"} and is_idle(cluster)
    assert not cluster.move(name, "decode-0", "decode-1")  # it is gone


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_killed_engine_loses_nobody_who_moves(cluster: Cluster, model: str, which: str) -> None:
    requests, answers, home = [], Answers(cluster), ""
    while not home:
        more = [Sampling(temperature=0.7, seed=len(requests) + n) for n in range(4)]
        requests += [request(f"{which}-{one.seed}", 500, sampling=one) for one in more]
        for one in requests[-4:]:
            answers.ask(one)
        home = moved(cluster, answers, requests[-4].id)
    os.kill(cluster.pids[home if which == "source" else OTHER[home]], signal.SIGKILL)
    answers.all()
    assert set(answers.ends.values()) == {"length"}, answers.ends
    assert answers.tokens == {one.id: alone(model, one) for one in requests}
    end = time.monotonic() + 60
    while len(cluster.pids) < 3 or not is_idle(cluster):
        assert time.monotonic() < end, cluster.pids
        time.sleep(0.05)


def test_requests_move_by_themselves_to_an_engine_that_has_nothing(model: str) -> None:
    """Long ones all go to one engine and short ones to the other: some of the long ones end there."""
    cluster = started(model, "disaggregated:engines=1+2,route=round,rebalance=oracle,every=4")
    try:
        requests = [request(f"r{n}", 8 if n % 2 else 700) for n in range(8)]
        answers = Answers(cluster)
        for one in requests:
            answers.ask(one)
        assert answers.all() == {one.id: alone(model, one) for one in requests}
        assert cluster.moved > 0 and is_idle(cluster)
    finally:
        cluster.close()
