"""Ray starts the engines, one on each of two nodes; requests and state do not pass through it. Whoever is killed, the
same tokens. Runs where Ray is installed (`pip install 'ridgeline[ray,dev]'`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ridgeline.cluster.build import connect
from ridgeline.cluster.cluster import Cluster
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM

from ..engine.tiny import LLAMA, write_config
from .ray_nodes import STORE_BYTES, two_nodes
from .test_cluster import OPTIONS, Answers, asked, comes_true, is_idle
from .test_exchange import alone

pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install 'ridgeline[ray]'")
import ray

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with two_nodes() as address:
        yield f"disaggregated:launcher=ray,address={address}"
        ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("model"), LLAMA | {"tie_word_embeddings": False})


@pytest.fixture(scope="module")
def cluster(model: str, place: str) -> Iterator[Cluster]:
    cluster = connect(EngineConfig(model=model, place=place, **(OPTIONS | {"threads": None})))
    assert isinstance(cluster, Cluster)
    yield cluster
    cluster.close()
    assert comes_true(lambda: ray.available_resources().get("CPU") == 2)  # nothing of ours is left


def test_an_engine_on_each_node_and_nothing_in_the_store(cluster: Cluster, model: str) -> None:
    nodes = {client._process.where for _, client in cluster._running()}  # type: ignore[attr-defined]
    assert len(nodes) == 2 and {client.facts.threads for _, client in cluster._running()} == {1}
    requests = asked()
    answers = Answers(cluster)
    for request in requests:
        answers.ask(request)
    assert answers.all() == alone(model, requests) and is_idle(cluster)
    due = cluster.facts.block_bytes * sum(-(-len(request.prompt) // 16) for request in requests)
    links = {name: table["memory"]["links"] for name, table in cluster.account().items()}
    assert links["prefill-0"]["bytes sent"] == links["decode-0"]["bytes received"] == due > 1 << 16
    assert ray.available_resources()["object_store_memory"] == 2 * STORE_BYTES
    ref = ray.put(bytes(8 << 20))  # the store's meter is one
    assert comes_true(lambda: ray.available_resources()["object_store_memory"] <= 2 * STORE_BYTES - (8 << 20))
    del ref


@pytest.mark.parametrize("what", ["prefill-0", "decode-0", "the actor of decode-0"])
def test_nobody_is_lost(cluster: Cluster, model: str, what: str) -> None:
    requests = asked(6, output=200)
    answers = Answers(cluster)
    for request in requests:
        answers.ask(request)
    answers.until(lambda: sum(map(len, answers.tokens.values())) > (1 if what == "prefill-0" else 20))
    worker = cluster.pids[what.split()[-1]]
    os.kill(parent_of(worker) if "actor" in what else worker, signal.SIGKILL)
    assert answers.all() == alone(model, requests) and set(answers.ends.values()) == {"length"}
    assert comes_true(lambda: len(cluster.pids) == 2) and is_idle(cluster)
    assert comes_true(lambda: not Path(f"/proc/{worker}").exists())


def parent_of(pid: int) -> int:
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert "ray::Keeper" in Path(f"/proc/{parent}/cmdline").read_text()
    return parent


def test_what_keeps_an_engine_from_starting_is_said(cluster: Cluster, place: str) -> None:
    """cluster: it is closed here, because it has all CPUs."""
    cluster.close()
    missing = EngineConfig(model="/no/such/model.gguf", place=place, kv_bytes=1 << 22)
    with pytest.raises(UserError, match=r"-0, on Ray's node .*/no/such/model\.gguf"):
        connect(missing)
    with pytest.raises(UserError, match="wants 64 threads, and on Ray's node"):
        connect(EngineConfig(model="random:smollm2-135m", place=place + ",threads=64+1", kv_bytes=1 << 22))


@pytest.mark.model
def test_the_real_checkpoint(place: str) -> None:
    prompts = ["The capital of France is", " ".join(f"Line {n}: the river runs past mile {n * 7}." for n in range(24))]
    answers = []
    for where in ("chunked", place, "disaggregated"):
        with LLM("smollm2-135m", place=where, context=1024, kv_bytes=64 << 20) as llm:
            answers.append([one.tokens for one in llm.generate(prompts, max_tokens=16, ignore_stop=True)])
    assert answers[0] == answers[1] == answers[2]
