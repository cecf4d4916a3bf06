"""Hand-off between two real engines: the same tokens as one engine alone, blocks free only when they were taken, the
bytes of the layout and no others; and nothing held when the way breaks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ridgeline.cluster.link import Link
from ridgeline.run.transfers import Mover
from ridgeline.state.request import Request, Sampling

from ..engine.tiny import GEMMA3, LLAMA, TinyEngine, write_config
from .pair import Pair

LENGTHS = (1, 2, 15, 16, 17, 31, 33, 64, 130, 200)
SAMPLED = Sampling(temperature=0.9, seed=4, repetition_penalty=1.1, logprobs=2)


def prompt_of(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple((7919 * (i + 1) * (salt + 3) + 31 * i * i) % 300 + 3 for i in range(length))


def requests(lengths: tuple[int, ...] = LENGTHS, output: int = 9, **fields: Any) -> list[Request]:
    return [Request(f"r{n}", prompt_of(n, n), output, ignore_stop=True, **fields) for n in lengths]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("model"), LLAMA | {"tie_word_embeddings": False})


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Heads of 32, as blocks of 32 tokens need them."""
    return write_config(tmp_path_factory.mktemp("wide"), LLAMA | {"head_dim": 32, "num_attention_heads": 4})


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every payload that any link has sent."""
    sent: list[int] = []
    send = Link.send

    def counted(link: Link, message: Any, payload: Any = None) -> None:
        sent.append(0 if payload is None else payload.nbytes)
        send(link, message, payload)

    monkeypatch.setattr(Link, "send", counted)
    return sent


def linked(pairs: list[Pair], model: str, **options: Any) -> Pair:
    pair = Pair(model, **options)
    pairs.append(pair)
    pair.link()
    return pair


def alone(model: str, asked: list[Request], **options: Any) -> dict[str, tuple[int, ...]]:
    engine = TinyEngine(model, **options)
    found = engine.run(asked)
    engine.engine.close()
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("shm", {}),
        ("tcp", {"kv": "int8", "chunk": 13}),
        ("shm", {"kv": "f32", "weights": "f32", "step_tokens": 64}),
        ("tcp", {"kv": "int4", "chunk": 40, "first": {"threads": 1}}),
        ("shm", {"kv": "hack:group=32", "chunk": 40}),
        ("tcp", {"kv": "hack:group=32,sinks=0", "second": {"spec": "ngram:k=3"}}),
        ("shm", {"second": {"spec": "ngram:k=3"}}),
        ("shm", {"second": {"spec": "draft:SMALLER,k=4,adapt=off"}}),
        ("tcp", {"kv": "int8", "chunk": 40, "second": {"spec": "draft:SMALLER,k=3"}}),
        ("shm", {"policy": "shortest", "second": {"kv_bytes": 1 << 18}}),  # the second one evicts, and computes again
    ],
)
def test_two_engines_make_the_tokens_of_one(
    pairs: list[Pair], model: str, wide: str, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = {name: value for name, value in options.items() if name not in ("first", "second")}
    if "draft" in options.get("second", {}).get("spec", ""):
        smaller = write_config(tmp_path, LLAMA | {"num_hidden_layers": 1})
        options = options | {"second": {"spec": options["second"]["spec"].replace("SMALLER", smaller)}}
    model = wide if "hack" in options.get("kv", "") else model
    asked = [*requests(), *[Request(f"s{n}", prompt_of(n), 7, SAMPLED, ignore_stop=True) for n in (20, 48)]]
    pair = linked(pairs, model, kind=kind, **options)
    assert pair.run(asked) == alone(model, asked, **plain)
    assert all(pair.said(request.id)[-1] == "length" for request in asked)
    assert all("handed on" in pair.said(request.id) for request in asked)
    pair.until(lambda: pair.kept_aside() == 0)
    assert pair.held() == [0, 0]


def test_a_draft_model_guesses_on_the_second_engine(pairs: list[Pair], model: str) -> None:
    """The model as its own draft: all it guesses holds, though it saw the prompt on that engine only."""
    pair = linked(pairs, model, second={"spec": f"draft:{model},k=3,adapt=off"})
    asked = requests((40,), output=25)
    assert pair.run(asked) == alone(model, asked)
    assert max(len(event.tokens) for event in pair.events) == 4
    assert pair.events[-1].tokens_guessed - pair.events[-1].tokens_accepted <= 1 < pair.events[-1].tokens_accepted


def test_windows_of_the_model_travel_too(pairs: list[Pair], tmp_path) -> None:
    """All layers keep everything when beginnings are shared, so Gemma's windows are no obstacle."""
    name = write_config(tmp_path, GEMMA3)
    asked = requests((60, 90))
    assert linked(pairs, name).run(asked) == alone(name, asked)


@pytest.mark.parametrize("kv", ["bf16", "int8", "f32"])
def test_a_parcel_has_the_bytes_of_the_layout(pairs: list[Pair], model: str, kv: str, sent: list[int]) -> None:
    pair = linked(pairs, model, kv=kv)
    pair.run(requests((100,)))
    assert sum(sent) == 7 * pair.block_bytes == 7 * 16 * pair.engines[0].facts.kv_bytes_per_token


@pytest.mark.parametrize("tokens", [20, 64, 100])
def test_a_parcel_of_closed_blocks_is_smaller(pairs: list[Pair], wide: str, tokens: int, sent: list[int]) -> None:
    """E7: codes of whole blocks, and in bf16 the sinks and what no block has closed; nothing else travels."""
    pair = linked(pairs, wide, kv="hack:group=32", chunk=24)
    asked = requests((tokens,))
    assert pair.run(asked) == alone(wide, asked, kv="hack:group=32")
    closed, near = pair.engines[0].kept.block_bytes  # type: ignore[union-attr]
    whole = tokens // 32 * 32
    assert sum(sent) == whole // 16 * closed + (-(-(tokens - whole) // 16) + (whole > 0)) * near
    numbers = 2 * 2 * 2 * 16 * 32  # of layers, K and V, kv heads, tokens, dimensions
    assert (closed, near) == (numbers * (2 + 32 / 32 + 8 / 32) / 8, numbers * 2)


def test_blocks_are_free_only_when_they_were_taken(pairs: list[Pair], model: str) -> None:
    pair = linked(pairs, model, chunk=32)
    pair.add(requests((100,))[0])
    pair.until(lambda: pair.ids("r100") != (), which=(0,))
    for _ in range(20):
        pair.turn((0,))
    assert pair.held()[0] == 7 and pair.said("r100") == []  # computed, sent, but nobody has said Taken
    pair.until(lambda: "handed on" in pair.said("r100"))
    assert pair.held()[0] == 0
    pair.until(lambda: "r100" in pair.ended())


def test_blocks_travel_while_the_rest_is_computed(pairs: list[Pair], model: str) -> None:
    pair = linked(pairs, model, chunk=16)
    pair.add(requests((200,))[0])
    giver = pair.exchanges[0]._giver
    pair.until(lambda: any(one.sent for one in giver._leaving.values()))
    assert pair.ids("r200") == () and not pair.engines[0].scheduler.has_parted("r200")
    pair.until(lambda: "r200" in pair.ended())


def test_first_layers_leave_while_the_step_computes(pairs: list[Pair], model: str, monkeypatch) -> None:
    """A prompt of one step: the step is held until parts of blocks have left, so they have left before it ended."""
    pair = linked(pairs, model)
    pair.until(lambda: bool(pair.exchanges[1]._taker._ends) and bool(pair.exchanges[0]._giver.ends))
    kept, send = pair.engines[0].kept, Link.send
    left: list[tuple[Any, int, bool]] = []
    assert isinstance(kept, Mover)

    def noted(link: Link, message: Any, payload: Any = None) -> None:
        send(link, message, payload)
        if payload is not None:
            left.append((message, payload.nbytes, kept._is_under_way))

    def end_when_some_have_left() -> None:
        limit = time.monotonic() + 60
        while not left and time.monotonic() < limit:
            time.sleep(0.001)
        Mover.end(kept)

    monkeypatch.setattr(Link, "send", noted)
    monkeypatch.setattr(kept, "end", end_when_some_have_left)
    asked = requests((200,))
    assert pair.run(asked) == alone(model, asked)
    message, nbytes, was_under_way = left[0]
    assert was_under_way and (message.index, message.offset) == (0, 0) and nbytes < pair.block_bytes
    assert sum(count for _, count, _ in left) == 13 * pair.block_bytes  # nothing twice


def test_progress_is_seen_layer_by_layer(tmp_path) -> None:
    """Another thread sees some layers of a step done and others not; it looks at as many steps as that takes."""
    name = write_config(tmp_path, LLAMA | {"num_hidden_layers": 12, "hidden_size": 192})
    engine = TinyEngine(name, threads=2, kv_bytes=1 << 24).engine
    kept, seen, is_over = engine.kept, set(), threading.Event()
    assert isinstance(kept, Mover)
    kept.watch(lambda plan: None)

    def look() -> None:
        while not is_over.is_set():
            seen.add(kept.layers_done(0))

    looking = threading.Thread(target=look)
    looking.start()
    limit = time.monotonic() + 60
    try:
        for salt in range(10_000):
            engine.add(Request(f"q{salt}", prompt_of(400, salt), 1))
            while engine.has_work:
                engine.step()
            if seen & set(range(1, 12)) or time.monotonic() > limit:
                break
    finally:
        is_over.set()
        looking.join()
        engine.close()
    assert seen & set(range(1, 12)) and seen <= set(range(13))


def test_eviction_on_the_way_sends_everything_again(pairs: list[Pair], model: str) -> None:
    """A sequence that loses its blocks in the middle: what was read of them may be somebody else's by then."""
    options = {"chunk": 16, "policy": "priority", "kv_bytes": 1 << 18}
    pair = linked(pairs, model, **options)
    blocks = pair.engines[0].facts.kv_blocks
    long = Request("low", prompt_of(16 * (blocks - 2), 1), 4, ignore_stop=True, priority=5)
    urgent = Request("high", prompt_of(100, 2), 4, ignore_stop=True, priority=0)
    pair.add(long)
    pair.until(lambda: any(one.sent >= 4 for one in pair.exchanges[0]._giver._leaving.values()))
    pair.add(urgent)
    pair.until(lambda: pair.ended() == {"low", "high"})
    assert pair.engines[0].scheduler.preemptions
    expected = alone(model, [long, urgent])
    assert {name: pair.ids(name) for name in expected} == expected


def test_a_request_that_ends_with_its_first_token_does_not_travel(pairs: list[Pair], model: str) -> None:
    pair = linked(pairs, model)
    pair.run([Request("one", prompt_of(40), 1), Request("scored", prompt_of(20), 0, prompt_logprobs=1)])
    pair.turn()
    assert pair.said("one") == ["length"] == pair.said("scored")
    assert pair.held() == [0, 0] and not pair.exchanges[0]._giver._leaving


def test_scores_of_the_prompt_come_from_the_first_engine(pairs: list[Pair], model: str) -> None:
    pair = linked(pairs, model)
    pair.run([Request("a", prompt_of(20), 5, prompt_logprobs=0, ignore_stop=True)])
    assert [len(event.prompt_scored) for event in pair.events if event.request == "a" and event.tokens] == [
        19,
        0,
        0,
        0,
        0,
    ]


def test_known_tokens_go_on_where_they_were(pairs: list[Pair], model: str) -> None:
    """What is sent again after a fault: the request and the tokens that were delivered."""
    asked = requests((50,), output=12)
    expected = alone(model, asked)["r50"]
    pair = linked(pairs, model)
    pair.add(asked[0], known=expected[:5])
    pair.until(lambda: "r50" in pair.ended())
    assert pair.ids("r50") == expected[5:]


def test_cancelled_on_the_way_everything_is_free(pairs: list[Pair], model: str) -> None:
    pair = linked(pairs, model, buffer=1)
    for request in requests((60, 70, 80), output=100):
        pair.add(request)
    pair.until(lambda: all(pair.ids(name) for name in ("r60", "r70", "r80")), which=(0,))
    for name in ("r60", "r70", "r80"):
        event = pair.engines[0].cancel(name) or pair.exchanges[0].cancel(name)
        assert event is not None and event.finish == "cancelled"
    for _ in range(50):
        pair.turn()
    assert pair.held() == [0, 0] and not pair.engines[1].has_work


@pytest.mark.parametrize("is_added", [False, True])
def test_cancelled_just_as_it_is_taken_nobody_computes_on(pairs: list[Pair], model: str, is_added: bool) -> None:
    """The Handover is on its way, or the second engine has said Taken and the first has not heard it."""
    pair = linked(pairs, model)
    taker, second = pair.exchanges[1]._taker, pair.engines[1]
    pair.until(lambda: bool(taker._ends))
    pair.add(Request("late", prompt_of(60), 600, ignore_stop=True))
    pair.until(lambda: any(end.arrived for end in taker._ends), which=(0,))
    if is_added:
        pair.until(lambda: second.has_work, which=(1,))
    assert pair.engines[0].cancel("late") is None
    event = pair.exchanges[0].cancel("late")
    assert event is not None and event.finish == "cancelled"
    pair.turn((1,))
    pair.until(lambda: not second.has_work and not any(end.arrived for end in taker._ends))
    assert len(pair.ids("late")) < 600 and pair.held() == [0, 0] and pair.kept_aside() == 0


def test_a_small_buffer_only_makes_them_wait(pairs: list[Pair], model: str) -> None:
    """Room for one sequence at a time: none gets a part that another waits for."""
    asked = requests((90, 33, 130, 64))
    pair = linked(pairs, model, buffer=1, chunk=16)
    assert pair.run(asked) == alone(model, asked)


@pytest.mark.parametrize("fault", ["closed", "corrupt"])
@pytest.mark.parametrize("kind", ["shm", "tcp"])
def test_a_broken_way_gives_the_request_back(pairs: list[Pair], model: str, kind: str, fault: str, monkeypatch) -> None:
    pair = linked(pairs, model, kind=kind, chunk=16)
    pair.add(requests((150,))[0])
    giver = pair.exchanges[0]._giver
    pair.until(lambda: any(one.sent > 2 for one in giver._leaving.values()))
    link = next(iter(giver.ends.values())).link
    if fault == "corrupt":
        link._connection.sendall(b"\0" * 40)
    else:
        link._connection.shutdown(socket.SHUT_RDWR)
    pair.until(lambda: "returned" in pair.said("r150"))
    for _ in range(20):
        pair.turn()
    assert pair.held() == [0, 0] and pair.kept_aside() == 0
    pair.link()  # and a new way works
    pair.events.clear()
    asked = requests((150,))
    assert pair.run(asked) == alone(model, asked)


def test_a_wrong_layout_is_refused_with_a_reason(pairs: list[Pair], model: str) -> None:
    pair = linked(pairs, model, first={"kv": "int8"}, second={"kv": "bf16"})
    pair.add(requests((40,))[0])
    pair.until(lambda: "error" in pair.said("r40"))
    error = next(event.error for event in pair.events if event.finish == "error")
    assert error is not None and "int8" in error and "bf16" in error
    assert pair.held() == [0, 0]
