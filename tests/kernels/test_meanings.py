"""Each native body against the one statement of its meaning in ops/, within the error the operator declares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from ridgeline.kernels import native
from ridgeline.memory.storage.bf16 import narrow, widen
from ridgeline.ops import kinds
from ridgeline.ops.op import LOGITS, TOKENS, Line, Value
from ridgeline.ops.route import CASES as ROUTINGS
from ridgeline.ops.route import Routing
from ridgeline.state.plan import LogitRow
from ridgeline.state.request import Sampling

from .steps import (
    NATIVE_FORMATS,
    Arena,
    Batch,
    Heads,
    Sequence,
    attend,
    fitting,
    instruction,
    linear,
    pack,
    pool_for,
    random_weight,
    run,
    set_weight,
    unpacked,
)
from .test_experts import FORMATS as EXPERT_FORMATS
from .test_experts import Stacks, mixture, route
from .test_sample import Row, mask_of, sample

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@dataclass
class FakeWeight:
    values: np.ndarray  # [rows, columns] f32, as the stored bits mean it

    @property
    def columns(self) -> int:
        return self.values.shape[1]


@dataclass
class FakeRope:
    dim: int
    interleaved: bool

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        angles = np.arange(64)[:, None] * 10000.0 ** (-np.arange(self.dim // 2) / (self.dim // 2))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass
class FakeKv:
    """One sequence from its first token, rounded as the storage rounds."""

    storage: str
    kept: Any = None

    def append(self, k: Any, v: Any) -> None:
        if self.storage == "bf16":
            k, v = (torch.from_numpy(widen(narrow(part.numpy()))) for part in (k, v))
        self.kept = (k, v)

    def read(self, sequence: int) -> Any:
        return self.kept

    def base(self, sequence: int) -> int:
        return 0

    def add_mass(self, sequence: int, mass: Any) -> None:
        pass


@dataclass
class FakeStep:
    token_ids: Any = None
    positions: Any = None
    bounds: tuple[tuple[int, int], ...] = ()
    trees: tuple[Any, ...] = (None,)
    logit_tokens: Any = None
    rows: tuple[Any, ...] = ()
    results: list[Any] = field(default_factory=list)
    cache: Any = None

    def tensor(self, weight: FakeWeight) -> Any:
        return torch.from_numpy(weight.values)

    def kv(self, group: int, layer: int) -> Any:
        return self.cache


def meaning(kind: str, step: FakeStep, inputs: tuple[np.ndarray, ...], weights: Any = (), **attributes: Any) -> Any:
    op = kinds.KINDS[kind]
    line = Line(0, op, kind, 0, (), Value(0, TOKENS, 1), tuple(weights), attributes)
    return op.meaning(step, line, *(torch.from_numpy(array) for array in inputs))


def check(kind: str, out: np.ndarray, expected: Any, format_name: str = "") -> None:
    expected = expected.numpy()
    assert out.shape == expected.shape
    allowed = kinds.KINDS[kind].error_for(format_name) * np.abs(expected).max()
    assert np.abs(out - expected).max() <= allowed, f"{np.abs(out - expected).max()} > {allowed}"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", NATIVE_FORMATS)
@pytest.mark.parametrize("shape", [(48, 64), (131, 576), (50, 1536)])
@pytest.mark.parametrize("count", [1, 6, 65])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_and_head(isa, teams, name, shape, count, biased) -> None:
    shape = (shape[0], fitting(name, shape[1]))
    data, x, bias = random_weight(name, *shape), normal(count, shape[1]), normal(1, shape[0], seed=3)
    weights = [FakeWeight(unpacked(name, data, *shape)), *([FakeWeight(bias)] if biased else [])]
    out = linear(teams(2), x, [pack(data, name, *shape)], biases=[bias[0] if biased else None])
    for kind in ("linear", "head"):
        check(kind, out, meaning(kind, FakeStep(), (x,), weights, parts=1, biased=(biased,)), name)


@pytest.mark.parametrize("name", NATIVE_FORMATS)
def test_embed(isa, teams, name) -> None:
    columns = fitting(name, 64)
    data, ids = random_weight(name, 40, columns), np.array([0, 39, 16, 15, 7], np.int32)
    arena = Arena()
    out = arena.room(5 * columns * 4)
    op = instruction(native.RL_EMBED, out=out, width_out=columns, scale=0.7)
    packed = pack(data, name, 40, columns)
    set_weight(op.weight[0], packed)
    run(teams(2), [op], arena, Batch(5, token_ids=ids), kept=packed)
    weights = [FakeWeight(unpacked(name, data, 40, columns))]
    expected = meaning("embed", FakeStep(torch.from_numpy(ids)), (), weights, scale=0.7)
    check("embed", arena.read(out, 5, columns), expected)


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("width", [64, 576])
def test_norm_activation_add_gather(isa, teams, count, width) -> None:
    x, y, gain = normal(count, width), normal(count, width, seed=1), normal(1, width, seed=2)
    wide = normal(count, 2 * width)
    wanted = np.array([count - 1, 0], np.int32)
    arena = Arena()
    a, b, c = arena.place(x), arena.place(y), arena.place(wide)
    outs = [arena.room(x.nbytes) for _ in range(4)]
    kept = arena.room(2 * width * 4)
    sizes = {"width_in": width, "width_out": width}
    gated = {"source": c, "width_in": 2 * width, "width_out": width}
    ops = [
        instruction(native.RL_NORM, source=a, out=outs[0], eps=1e-5, **sizes),
        instruction(native.RL_ADD, source=a, in2=b, out=outs[1], **sizes),
        instruction(native.RL_ACTIVATION, out=outs[2], activation=native.RL_SILU, **gated),
        instruction(native.RL_ACTIVATION, out=outs[3], activation=native.RL_GELU_TANH, **gated),
        instruction(native.RL_GATHER, source=a, out=kept, per_logit_row=1, **sizes),
    ]
    ops[0].weight[0].data, ops[0].weight[0].columns = gain.ctypes.data, width
    run(teams(3), ops, arena, Batch(count, 2, logit_token=wanted))
    read = [arena.read(out, count, width) for out in outs]
    check("norm", read[0], meaning("norm", FakeStep(), (x,), [FakeWeight(gain)], eps=1e-5))
    check("add", read[1], meaning("add", FakeStep(), (x, y)))
    check("activation", read[2], meaning("activation", FakeStep(), (wide,), function="silu"))
    check("activation", read[3], meaning("activation", FakeStep(), (wide,), function="gelu_tanh"))
    step = FakeStep(logit_tokens=torch.from_numpy(wanted))
    check("gather", arena.read(kept, 2, width), meaning("gather", step, (x,)))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [64, 48])
def test_rope(isa, teams, interleaved, rotary) -> None:
    heads, kv_heads, dim = 4, 2, 64
    qkv, positions = normal(10, 8 * dim), np.arange(7, 17, dtype=np.int32)
    rope = FakeRope(rotary, interleaved)
    cos, sin = rope.tables()
    arena = Arena()
    at = arena.place(qkv)
    op = instruction(
        native.RL_ROPE, source=at, out=at, width_in=8 * dim, width_out=8 * dim, heads=heads, kv_heads=kv_heads,
        head_dim=dim, rotary_dim=rotary, flags=int(interleaved), rope_cos=cos.ctypes.data, rope_sin=sin.ctypes.data,
    )  # fmt: skip
    run(teams(2), [op], arena, Batch(10, positions=positions))
    step = FakeStep(positions=torch.from_numpy(positions))
    expected = meaning("rope", step, (qkv,), heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope)
    check("rope", arena.read(at, 10, 8 * dim), expected)


def test_head_norm(isa, teams) -> None:
    heads, kv_heads, dim = 4, 2, 64
    qkv, gains = normal(10, 8 * dim) * 9, [normal(1, dim, seed=seed) for seed in (1, 2)]
    arena = Arena()
    at = arena.place(qkv)
    op = instruction(
        native.RL_HEAD_NORM, source=at, out=at, width_in=8 * dim, width_out=8 * dim, heads=heads, kv_heads=kv_heads,
        head_dim=dim, eps=1e-6,
    )  # fmt: skip
    for slot, gain in enumerate(gains):
        op.weight[slot].data, op.weight[slot].columns = gain.ctypes.data, dim
    run(teams(2), [op], arena, Batch(10), kept=gains)
    attributes = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "eps": 1e-6}
    weights = [FakeWeight(gain) for gain in gains]
    expected = meaning("head_norm", FakeStep(), (qkv,), weights, **attributes)
    check("head_norm", arena.read(at, 10, 8 * dim), expected)


@pytest.mark.parametrize("case", ROUTINGS, ids=str)
def test_route(isa, teams, case) -> None:
    routing = case["routing"]
    logits = normal(30, routing.experts) * 2
    bias = normal(1, routing.experts, seed=4) * 0.3 if case.get("bias") else None
    out, _ = route(teams(2), logits, routing, None if bias is None else bias[0])
    weights = [] if bias is None else [FakeWeight(bias)]
    expected = meaning("route", FakeStep(), (logits,), weights, routing=routing)
    check("route", out, expected)
    ids = np.arange(3 * routing.chosen) // routing.chosen != 1
    assert (out[:, ids] == expected.numpy()[:, ids]).all()


@pytest.mark.parametrize("name", EXPERT_FORMATS)
@pytest.mark.parametrize("tokens", [1, 30])
def test_dispatch_experts_combine(isa, teams, name, tokens) -> None:
    stacks, routing = Stacks(name, 6, 64, 96), Routing(6, 3)
    x, logits = normal(tokens, stacks.width), normal(tokens, 6)
    out = mixture(teams(2), x, logits, routing, stacks)
    routed, _ = route(teams(1), logits, routing)
    sent = meaning("dispatch", FakeStep(), (x, routed), routing=routing).numpy()
    weights = [FakeWeight(values.reshape(-1, values.shape[2])) for values in stacks.values]
    done = meaning("experts", FakeStep(), (sent, routed), weights, routing=routing, function="silu").numpy()
    check("experts", out, meaning("combine", FakeStep(), (done, routed), routing=routing), name)


@pytest.mark.parametrize("storage", ["f32", "bf16"])
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("heads", [(9, 3, 64), (14, 2, 64), (4, 4, 80)], ids=str)
@pytest.mark.parametrize("tokens", [1, 70, 300])
def test_attend(isa, teams, storage, window, heads, tokens) -> None:
    shape = Heads(*heads, window=window, storage=storage)
    qkv = normal(tokens, shape.width)
    _, pool = pool_for(shape, 20)
    out = attend(teams(2), shape, pool, [(Sequence(qkv, 0, np.arange(20, dtype=np.int32)), tokens)])[0]
    step = FakeStep(positions=torch.arange(tokens), bounds=((0, tokens),), cache=FakeKv(storage))
    attributes = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.dim}
    attributes |= {"group": 0, "pool_layer": 0, "sinks": 0, "rope": None, "recent": None}
    check("attend", out, meaning("attend", step, (qkv,), scale=shape.dim**-0.5, window=window, **attributes), storage)


KNOWN = (5, 9, 5, 200, 9, 9)
ALLOWED = (5, 31, 32, 500, *range(1000, 1100), 2999)
SAMPLINGS = (
    Sampling(),
    Sampling(logit_bias={3: 4.0, 7: -5.0}),
    Sampling(repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=1.0, top_k=5, seed=4),
    Sampling(temperature=1.2, top_p=0.8, seed=5),
    Sampling(temperature=1.5, min_p=0.1, seed=6),
    Sampling(
        temperature=0.9, top_k=50, top_p=0.9, min_p=0.01, seed=7, repetition_penalty=1.1, presence_penalty=-0.2,
        frequency_penalty=0.4, logit_bias={1: 2.0},
    ),
)  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_sample(isa, teams, sampling) -> None:
    logits = normal(24, 3000) * 3
    wanted = [
        LogitRow(0, position, sampling, choice=position % 3, logprobs=3, history=(KNOWN, 3)) for position in range(20)
    ]
    wanted += [LogitRow(0, position, sampling, target=7 * position, logprobs=20) for position in range(4)]
    wanted[5:10] = [msgspec.structs.replace(row, mask=mask_of(ALLOWED, 3000)) for row in wanted[5:10]]
    rows = []
    for row in wanted:
        counts = {token: KNOWN[3:].count(token) for token in dict.fromkeys(KNOWN)} if row.history else {}
        allowed = () if row.mask is None else ALLOWED
        wish = Row(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed, row.choice,
            row.position, row.target, row.logprobs, sampling.repetition_penalty, sampling.presence_penalty,
            sampling.frequency_penalty, tuple(counts.items()), tuple(sampling.logit_bias.items()),
            allowed,
        )  # fmt: skip
        rows.append(wish)
    answers = sample(teams(2), logits, rows)
    step = FakeStep(rows=tuple(wanted), results=[None] * len(wanted))
    op = kinds.SAMPLE
    op.meaning(step, Line(0, op, "sample", None, (), Value(0, LOGITS, 1)), torch.from_numpy(logits))
    for i, result in enumerate(step.results):
        assert answers.tokens[i] == result.token
        assert answers.logprob[i] == pytest.approx(result.logprob, rel=1e-5, abs=1e-5)
        assert answers.rank[i] == result.rank
        for place, (token, logprob) in enumerate(result.top):
            assert answers.top_ids[i, place] == token
            assert answers.top_logprobs[i, place] == pytest.approx(logprob, rel=1e-5, abs=1e-5)
