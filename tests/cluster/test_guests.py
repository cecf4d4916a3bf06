"""Engines that call: the whole way between machines, over 127.0.0.1. The same tokens, whoever is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from ridgeline.cluster.cluster import Cluster
from ridgeline.cluster.guests import NO_ANSWER, NOT_OURS, Guests
from ridgeline.cluster.handshake import shown
from ridgeline.cluster.reception import Reception
from ridgeline.engine.client import EngineStopped
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.worker import ORPHANED, be_guest

from ..engine.tiny import LLAMA, write_config
from .detached import NextDoor, apart
from .test_cluster import OPTIONS, Answers, asked, comes_true, is_idle
from .test_exchange import alone

PLACE = "disaggregated:restarts=3"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("model"), LLAMA | {"tie_word_embeddings": False})


@pytest.fixture(scope="module")
def hosts() -> NextDoor:
    return NextDoor()


@pytest.fixture(scope="module")
def cluster(model: str, hosts: NextDoor) -> Iterator[Cluster]:
    cluster = apart(model, PLACE, hosts, **OPTIONS)
    yield cluster
    cluster.close()


def test_the_tokens_of_one_engine_and_the_bytes_of_the_layout(cluster: Cluster, model: str) -> None:
    requests = asked()
    answers = Answers(cluster)
    for request in requests:
        answers.ask(request)
    assert answers.all() == alone(model, requests) and is_idle(cluster)
    blocks = sum(-(-len(request.prompt) // 16) for request in requests)
    assert len({client.facts.block_bytes for _, client in cluster._running()}) == 1
    due = blocks * cluster.facts.block_bytes
    links = {name: table["memory"]["links"] for name, table in cluster.account().items()}
    assert links == {
        "prefill-0": {"bytes sent": due, "bytes received": 0}, "decode-0": {"bytes sent": 0, "bytes received": due},
    }  # fmt: skip


@pytest.mark.parametrize("how", ["killed", "left alone"])
def test_nobody_is_lost(cluster: Cluster, hosts: NextDoor, model: str, how: str) -> None:
    """Both engines are killed, or one is left by whoever started it; others are started, call, and are linked."""
    requests = asked(6, output=200)
    answers = Answers(cluster)
    for request in requests:
        answers.ask(request)
    answers.until(lambda: sum(map(len, answers.tokens.values())) > 20)
    if how == "killed":
        for pid in cluster.pids.values():
            os.kill(pid, signal.SIGKILL)
    else:
        victim = next(guest for guest in hosts.guests if guest.pid == cluster.pids["decode-0"])
        assert victim.stdin is not None
        victim.stdin.close()
        assert victim.wait(30) == ORPHANED
    assert answers.all() == alone(model, requests) and set(answers.ends.values()) == {"length"}
    assert comes_true(lambda: len(cluster.pids) == 2) and is_idle(cluster)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("import time; time.sleep(60)", "next door and has not called 127.0.0.1:"),
        ("import sys; sys.exit(3)", "ended with exit code 3 before it had called"),
        (f"import sys; sys.exit({NO_ANSWER})", "let that machine connect"),
        (f"import sys; sys.exit({NOT_OURS})", "does not know the secret"),
    ],
)
def test_who_does_not_come(command: str, says: str) -> None:
    hosts = NextDoor(command=(sys.executable, "-S", "-c", command))
    guests = Guests(hosts, join_s=0.5 if "sleep" in command else 600.0)
    with pytest.raises(EngineStopped, match=says):
        guests.start("decode-0", EngineConfig(model="x"), lambda error: None)
    assert comes_true(lambda: hosts.guests[0].poll() is not None)
    guests.close()


def test_a_model_that_is_not_there_is_missed_there(model: str) -> None:
    guests = Guests(NextDoor(), join_s=600.0)
    with pytest.raises(UserError, match=r"decode-0, on the machine next door: .*none\.gguf.*at the same path"):
        guests.start("decode-0", EngineConfig(model=model + "/none.gguf"), lambda error: None)
    guests.close()


@pytest.mark.parametrize("secret", [bytes(32), bytes(range(32))])
def test_a_worker_says_why_it_could_not_call(secret: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    reception = Reception("127.0.0.1", bytes(range(1, 33)))
    if secret == bytes(32):
        reception.close()
    told, tells = os.pipe()
    os.write(tells, secret.hex().encode() + b"\n")
    assert be_guest(shown(reception.address), "a", told) == (NOT_OURS if any(secret) else NO_ANSWER)
    assert ("secret" if any(secret) else "nobody answers") in capfd.readouterr().err
    for number in (told, tells):
        os.close(number)
    reception.close()
