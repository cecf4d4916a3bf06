"""Co-run (E1): prompts and single tokens in one attention launch, beside one launch after the other.

python bench/corun.py operator [--kv bf16,int8] [--contexts 1024,4096] [--chunks 256] [--rows 1,4,16,64] [--out FILE]
python bench/corun.py steps MODEL [--context 1024] [--sequences 8] [--repeats 10]

operator: SmolLM2's attention alone, 2 threads; orders in turns: prompts, then single tokens, in two launches (serial);
one launch as the batch comes; co-run. Gains are medians over rounds of serial / it, the bound (Tp + Td) / max(Tp, Td).
Predicted: two resources that overlap, max(arithmetic, bytes / bandwidth), each kind's arithmetic as measured on near
pages. Points in FILE are not measured again. steps: whole steps through the engine, for the same tokens, by place.
The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.kernels import native
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.ops.batch import count_pairs
from ridgeline.run.machine import load_or_measure
from ridgeline.run.noise import CpuWatch
from ridgeline.state.request import Request

HEADS, KV_HEADS, DIM = 9, 3, 64
Entry = tuple[int, int, np.ndarray[Any, np.dtype[np.int32]]]  # tokens kept before, tokens now, blocks


class Launch:
    """One attention instruction a layer over a batch of entries."""

    def __init__(self, pool: KvPool, layers: int, entries: list[Entry], *, takes_turns: bool = False) -> None:
        tokens, width = sum(count for _, count, _ in entries), (HEADS + 2 * KV_HEADS) * DIM
        self.pools, self.scratch = native.Pools((pool,)), native.aligned(1 << 24)
        out = -(-tokens * width * 4 // 64) * 64
        self.arena = native.aligned(out + tokens * HEADS * DIM * 4 + 64)
        self.arena[: tokens * width * 4].view(np.float32)[:] = np.random.default_rng(0).standard_normal(tokens * width)
        fields: dict[str, Any] = {"in": 0, "in2": -1, "out": out, "in_quant": -1, "out_quant": -1}
        tape = [
            native.RlInstr(
                op=native.RL_ATTEND, width_in=width, width_out=HEADS * DIM, heads=HEADS, kv_heads=KV_HEADS,
                head_dim=DIM, scale=DIM**-0.5, layer=layer, parts=1, **fields,
            )
            for layer in range(layers)
        ]  # fmt: skip
        self.tape = native.Tape(tape)
        stride = max(len(blocks) for *_, blocks in entries)
        table = np.full((len(entries), stride), -1, np.int32)
        for index, (*_, blocks) in enumerate(entries):
            table[index, : len(blocks)] = blocks
        counts = [count for _, count, _ in entries]
        self.arrays = {
            "positions": np.concatenate([np.arange(a, a + n) for a, n, _ in entries]).astype(np.int32),
            "sequence_of": np.repeat(np.arange(len(entries)), counts).astype(np.int32),
            "first_token": np.cumsum([0, *counts]).astype(np.int32), "block_table": table,
        }  # fmt: skip
        self.batch = native.RlBatch(tokens=tokens, sequences=len(entries), table_stride=stride, corun=int(takes_turns))
        for name, array in self.arrays.items():
            setattr(self.batch, name, array.ctypes.data)

    def run(self, team: native.Team) -> float:
        """Seconds."""
        began = time.perf_counter()
        native.execute(team, self.tape, self.arena, self.scratch, self.pools, self.batch)
        return time.perf_counter() - began


def make(kv: str, context: int, chunk: int, rows: int, layers: int) -> tuple[KvPool, list[Entry], list[Entry]]:
    """Blocks as a used pool gives them out: anywhere."""
    storage = STORAGES.get(kv)
    each, prompt = -(-(context + 1) // BLOCK_TOKENS), -(-(context + chunk) // BLOCK_TOKENS)
    blocks = each * rows + prompt
    pool = KvPool(storage, layers=layers, kv_heads=KV_HEADS, head_dim=DIM, blocks=blocks)
    token = np.random.default_rng(0).standard_normal((BLOCK_TOKENS, DIM)).astype(np.float32)
    page = np.concatenate([storage.pack_keys(token), storage.pack_values(token)])
    pool.data.reshape(-1, len(page))[:] = page
    order = np.random.default_rng(1).permutation(blocks).astype(np.int32)
    ones = [(context, 1, order[i * each : (i + 1) * each]) for i in range(rows)]
    return pool, [(context, chunk, order[each * rows :])], ones


def work_of(kv: str, entries: list[tuple[int, int]]) -> tuple[float, float]:
    """(FLOPs, bytes of kept state) as ops/attend.py counts them."""
    counted = [count_pairs(before, count) for before, count in entries]
    flops = 4 * sum(pairs for pairs, _ in counted) * HEADS * DIM
    return float(flops), float(STORAGES.get(kv).bytes_per_token(KV_HEADS, DIM) * sum(kept for _, kept in counted))


class Model:
    """Two resources: arithmetic of each kind at the rate it reaches on near pages, bytes at the read bandwidth."""

    def __init__(self, kv: str, threads: int) -> None:
        """Near: one sequence that the second cache holds, on one thread; threads do not disturb each other there."""
        self.kv, self.machine, self.flops_per_s = kv, load_or_measure(threads), dict[str, float]()
        pool, prompt, ones = make(kv, 768, 256, 1, 1)
        with native.Team(1) as team:
            for kind, entries in (("prompt", prompt), ("single", ones)):
                launch = Launch(pool, 1, entries)
                best = min(launch.run(team) for _ in range(100))
                self.flops_per_s[kind] = threads * work_of(kv, [entry[:2] for entry in entries])[0] / best

    def seconds(self, context: int, chunk: int, rows: int, layers: int) -> dict[str, float]:
        flops, read = {}, {}
        flops["prompt"], read["prompt"] = work_of(self.kv, [(context, chunk)])
        flops["single"], read["single"] = work_of(self.kv, [(context, 1)] * rows)
        bandwidth = self.machine.bandwidth(layers * sum(read.values()))
        arithmetic = {kind: flops[kind] / self.flops_per_s[kind] for kind in flops}
        alone = {kind: max(arithmetic[kind], read[kind] / bandwidth) for kind in flops}
        together = max(sum(arithmetic.values()), sum(read.values()) / bandwidth)
        return {**alone, "serial": sum(alone.values()), "corun": together}


def point(team: native.Team, kv: str, context: int, chunk: int, rows: int, seconds: float) -> dict[str, Any]:
    """One ratio, rounds of all orders until `seconds` are over."""
    per_layer = work_of(kv, [(context, 1)] * rows)[1]
    layers = max(1, min(4, int(96e6 / per_layer)))
    pool, prompt, ones = make(kv, context, chunk, rows, layers)
    launches = {
        "prompt": Launch(pool, layers, prompt), "single": Launch(pool, layers, ones),
        "batch": Launch(pool, layers, ones + prompt), "corun": Launch(pool, layers, ones + prompt, takes_turns=True),
    }  # fmt: skip
    watch, taken = CpuWatch(), {name: list[float]() for name in launches}
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < 3:
        names = list(launches)[turn % 4 :] + list(launches)[: turn % 4]
        for name in names:
            taken[name].append(launches[name].run(team) / layers)
        turn += 1
    rounds = [dict(zip(taken, values, strict=True)) for values in zip(*taken.values(), strict=True)]
    middle = {name: statistics.median(values) for name, values in taken.items()}
    serial = [one["prompt"] + one["single"] for one in rounds]
    return {
        "kv": kv, "context": context, "chunk": chunk, "rows": rows, "rounds": turn, "layers": layers,
        "foreign_cpu_share": watch.foreign_cpu_share(), "ms": {name: 1e3 * value for name, value in middle.items()},
        "fastest_ms": {name: 1e3 * min(values) for name, values in taken.items()},
        "share_of_prompt": middle["prompt"] / (middle["prompt"] + middle["single"]),
        "bound": sum((middle["prompt"], middle["single"])) / max(middle["prompt"], middle["single"]),
        "gain_batch": statistics.median(s / one["batch"] for s, one in zip(serial, rounds, strict=True)),
        "gain_corun": statistics.median(s / one["corun"] for s, one in zip(serial, rounds, strict=True)),
    }  # fmt: skip


def operator(asked: argparse.Namespace) -> list[dict[str, Any]]:
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    if asked.out and asked.out.exists():
        for line in asked.out.read_text().splitlines():
            one = json.loads(line)
            done[one["kv"], one["context"], one["chunk"], one["rows"]] = one
    ends, rows = time.perf_counter() + asked.limit, []
    with native.Team(asked.threads) as team:
        for kv in asked.kv.split(","):
            for key in itertools.product(*(map(int, x.split(",")) for x in (asked.contexts, asked.chunks, asked.rows))):
                found = done.get((kv, *key))
                if found is None:
                    if time.perf_counter() > ends:
                        continue
                    found = point(team, kv, *key, asked.seconds)
                    if asked.out:
                        with asked.out.open("a") as file:
                            file.write(json.dumps(found) + "\n")
                rows.append(found)
    models = {kv: Model(kv, asked.threads) for kv in asked.kv.split(",")}
    for one in rows:
        guess = models[one["kv"]].seconds(one["context"], one["chunk"], one["rows"], one.get("layers", 4))
        one["predicted_gain"] = guess["serial"] / guess["corun"]
        one["predicted_ms"] = {name: 1e3 * value for name, value in guess.items()}
    print(
        "KV    context chunk rows |  prompt  single  serial   batch   corun ms | gains: batch, corun; predicted; bound"
    )
    for one in rows:
        ms = one["ms"]
        times = (ms["prompt"], ms["single"], ms["prompt"] + ms["single"], ms["batch"], ms["corun"])
        gains = (one["gain_batch"], one["gain_corun"], one["predicted_gain"], one["bound"])
        print(
            f"{one['kv']:5} {one['context']:7} {one['chunk']:5} {one['rows']:4} | "
            + " ".join(f"{time:7.2f}" for time in times) + "    | " + " ".join(f"{gain:9.3f}" for gain in gains)
        )  # fmt: skip
    return rows


# -- whole steps


class Running:
    """An engine in which some sequences answer at a context; a prompt can be put beside them."""

    def __init__(self, asked: argparse.Namespace, place: str) -> None:
        config = EngineConfig(
            asked.model, place=place, kv=asked.kv.split(",")[0], threads=asked.threads, prefix=False,
            context=asked.context + 1024, max_sequences=asked.sequences + 1,
        )  # fmt: skip
        self.place, self.engine, self.count = place, build(config), 0
        self.prompt = asked.prompt
        rng = np.random.default_rng(3)
        for index in range(asked.sequences):
            ids = tuple(rng.integers(1000, 30_000, asked.context).tolist())
            self.engine.add(Request(f"s{index}", ids, 1000, ignore_stop=True))
        self.answers: dict[str, list[int]] = {}
        while len(self.answers) < asked.sequences:
            self._step()

    def _step(self) -> set[str]:
        """One step; who ended."""
        ended = set()
        for event in self.engine.step():
            self.answers.setdefault(event.request, []).extend(event.tokens)
            if event.finish is not None:
                ended.add(event.request)
        return ended

    def once(self, tokens: int) -> float:
        """Seconds until a prompt is done and every running sequence has `tokens` more."""
        name = f"p{self.count}"
        self.count += 1
        rng = np.random.default_rng([5, self.count])
        before = {one: len(ids) for one, ids in self.answers.items() if one.startswith("s")}
        self.engine.add(Request(name, tuple(rng.integers(1000, 30_000, self.prompt).tolist()), 1, ignore_stop=True))
        began, is_done = time.perf_counter(), False
        while not is_done or min(len(self.answers[one]) - count for one, count in before.items()) < tokens:
            is_done |= name in self._step()
        return time.perf_counter() - began


def steps(asked: argparse.Namespace) -> dict[str, Any]:
    engines = [Running(asked, place) for place in asked.places.split(";")]
    print("contexts are there", flush=True)  # minutes for long ones
    watch, tokens = CpuWatch(), -(-asked.prompt // (512 - asked.sequences))
    taken: dict[str, list[float]] = {one.place: [] for one in engines}
    for turn in range(asked.repeats + 1):
        for one in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
            taken[one.place].append(one.once(tokens))
        if not turn:  # the first round warms up
            watch, taken = CpuWatch(), {one.place: [] for one in engines}
    shortest = min(len(one.answers["s0"]) for one in engines)
    same = all(one.answers["s0"][:shortest] == engines[0].answers["s0"][:shortest] for one in engines)
    for one in engines:
        one.engine.close()
    first = taken[engines[0].place]
    found = {
        "context": asked.context, "sequences": asked.sequences, "prompt": asked.prompt, "kv": asked.kv,
        "same_tokens": same, "foreign_cpu_share": watch.foreign_cpu_share(),
        "places": {
            place: {
                "ms": 1e3 * statistics.median(values), "fastest_ms": 1e3 * min(values),
                "rounds_ms": [1e3 * value for value in values],
                "gain": statistics.median(a / b for a, b in zip(first, values, strict=True)),
            }
            for place, values in taken.items()
        },
    }  # fmt: skip
    for place, one in found["places"].items():
        print(f"{place:10} {one['ms']:8.1f} ms, fastest {one['fastest_ms']:8.1f} ms; {one['gain']:.3f} of the first")
    print(f"same tokens: {same}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("operator", "steps"))
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--kv", default="bf16,int8")
    parser.add_argument("--contexts", default="1024,4096,8192,16384")
    parser.add_argument("--chunks", default="256,512")
    parser.add_argument("--rows", default="1,4,16,64", help="single tokens beside the prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a point")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no point is begun")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=992)
    parser.add_argument("--places", default="serial;chunked;corun", help="separated by semicolons")
    parser.add_argument("--repeats", type=int, default=10)
    asked = parser.parse_args()
    found: Any = operator(asked) if asked.question == "operator" else steps(asked)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
