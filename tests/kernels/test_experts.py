"""route, dispatch, experts, combine: equal to a dense loop over all experts, and the same bits in every batch (K8)."""

# size: steps of four operators, and one hypothesis test over all their sizes

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.formats.format import FORMATS as TABLE
from ridgeline.kernels import native
from ridgeline.kernels.packing import pack_stack
from ridgeline.ops.route import CASES, Routing
from ridgeline.run.arena import experts_work_bytes

from .steps import (
    NATIVE_FORMATS,
    Arena,
    Batch,
    fitting,
    instruction,
    quantised,
    random_weight,
    reads_integers,
    run,
    unpacked,
)

FORMATS = tuple(name for name in NATIVE_FORMATS if TABLE.get(name).by_rows)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def route(team, logits: np.ndarray, routing: Routing, bias: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """([tokens, 3 chosen], distinct experts)."""
    arena = Arena()
    at, width = arena.place(logits), 3 * routing.chosen
    out = arena.room(len(logits) * width * 4)
    op = route_instruction(routing, at, out, bias)
    distinct = np.full(1, -1, np.int32)
    run(team, [op], arena, Batch(len(logits), line_experts=distinct), kept=bias)
    return arena.read(out, len(logits), width), distinct


def route_instruction(routing: Routing, source: int, out: int, bias: np.ndarray | None = None) -> native.RlInstr:
    flags = native.RL_ROUTE_SIGMOID * (routing.score == "sigmoid") | native.RL_ROUTE_RENORMALISE * routing.renormalise
    op = instruction(
        native.RL_ROUTE, source=source, out=out, width_in=routing.experts, width_out=3 * routing.chosen, flags=flags,
        scale=routing.scale, experts=routing.experts, chosen=routing.chosen, groups=routing.groups,
        groups_kept=routing.groups_kept,
    )  # fmt: skip
    if bias is not None:
        op.weight[0].data, op.weight[0].columns = bias.ctypes.data, len(bias)
    return op


class Stacks:
    """gate, up, down of `experts` experts in one format."""

    def __init__(self, name: str, experts: int, width: int, hidden: int) -> None:
        self.name, self.experts = name, experts
        self.width, self.hidden = width, hidden = fitting(name, width), fitting(name, hidden)
        shapes = ((experts * hidden, width), (experts * hidden, width), (experts * width, hidden))
        data = [random_weight(name, *shape, seed) for seed, shape in enumerate(shapes)]
        self.packed = [pack_stack(d, TABLE.get(name), *shape, experts) for d, shape in zip(data, shapes, strict=True)]
        self.values = [
            unpacked(name, d, *shape).reshape(experts, -1, shape[1]) for d, shape in zip(data, shapes, strict=True)
        ]


def mixture(team, x: np.ndarray, logits: np.ndarray, routing: Routing, stacks: Stacks, function: int = 0) -> np.ndarray:
    """All four operators on x: [tokens, width] -> same, as one native call."""
    tokens, chosen, width = len(x), routing.chosen, stacks.width
    arena = Arena()
    at, scores = arena.place(x), arena.place(logits)
    routed, sent = arena.room(tokens * 3 * chosen * 4), arena.room(tokens * chosen * width * 4)
    done, out = arena.room(tokens * chosen * width * 4), arena.room(tokens * width * 4)
    work = arena.room(experts_work_bytes(tokens * chosen, stacks.hidden))
    quant = arena.quantised_room(tokens, chosen * width) if reads_integers(stacks.name) else -1
    shape = {"experts": routing.experts, "chosen": chosen, "in2": routed}
    wide = {"width_in": chosen * width, "width_out": chosen * width}
    ops = [
        route_instruction(routing, scores, routed),
        instruction(
            native.RL_DISPATCH, source=at, out=sent, out_quant=quant, width_in=width, width_out=chosen * width, **shape
        ),
        instruction(
            native.RL_EXPERTS, source=sent, in_quant=quant, out=done, work=work, activation=function, **shape, **wide
        ),
        instruction(
            native.RL_COMBINE, source=done, out=out, in3=-1, in4=-1, width_in=chosen * width, width_out=width, **shape
        ),
    ]
    for slot, packed, values in zip(ops[2].weight, stacks.packed, stacks.values, strict=True):
        slot.data, slot.bytes, slot.format = packed.data.ctypes.data, packed.nbytes, TABLE.get(stacks.name).native
        slot.rows, slot.columns = values.shape[1:]
    run(team, ops, arena, Batch(tokens), kept=stacks)
    return arena.read(out, tokens, width)


def dense(x: np.ndarray, routed: np.ndarray, chosen: int, stacks: Stacks) -> np.ndarray:
    """Every expert on every token, masked by the routing weights; float64."""
    seen = quantised(x)[0] if reads_integers(stacks.name) else x.astype(np.float64)
    out = np.zeros(x.shape)
    for expert in range(stacks.experts):
        gate, up, down = (values[expert].astype(np.float64) for values in stacks.values)
        g = seen @ gate.T
        h = g / (1 + np.exp(-g)) * (seen @ up.T)
        if reads_integers(stacks.name):
            h = quantised(h.astype(np.float32))[0]
        weight = np.where(routed[:, :chosen] == expert, routed[:, chosen : 2 * chosen], 0).sum(1)
        out += weight[:, None] * (h @ down.T)
    return out


def by_hand(logits: np.ndarray, routing: Routing, bias: np.ndarray | None) -> list[dict[int, float]]:
    """{expert: weight} of each row, by sorting in plain Python."""
    rows = []
    for row in logits.astype(np.float64):
        if routing.score == "softmax":
            score = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        else:
            score = 1 / (1 + np.exp(-row))
        wanted = score + (0 if bias is None else bias)
        allowed = set(range(routing.experts))
        if routing.groups > 1:
            size = routing.experts // routing.groups
            best = [sum(sorted(wanted[g * size : (g + 1) * size])[-2:]) for g in range(routing.groups)]
            kept = sorted(range(routing.groups), key=lambda g: -best[g])[: routing.groups_kept]
            allowed = {e for e in allowed if e // size in kept}
        picked = sorted(allowed, key=lambda e: (-wanted[e], e))[: routing.chosen]
        total = sum(score[e] for e in picked) if routing.renormalise else 1.0
        rows.append({e: score[e] / total * routing.scale for e in picked})
    return rows


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("tokens", [1, 23])
def test_each_kind_of_routing_equals_a_choice_by_hand(isa, teams, case, tokens) -> None:
    routing = case["routing"]
    logits = normal(tokens, routing.experts) * 2
    bias = normal(1, routing.experts, seed=5)[0] * 0.3 if case.get("bias") else None
    rows, distinct = route(teams(2), logits, routing, bias)
    k = routing.chosen
    expected = by_hand(logits, routing, bias)
    for row, wanted in zip(rows, expected, strict=True):
        assert row[:k].tolist() == list(wanted)
        np.testing.assert_allclose(row[k : 2 * k], list(wanted.values()), rtol=2e-6)
    ids = rows[:, :k].reshape(-1)
    places = rows[:, 2 * k :].reshape(-1).astype(int)
    assert places.tolist() == np.argsort(np.argsort(ids, kind="stable"), kind="stable").tolist()
    assert distinct == len(set(ids))


def test_ties_go_to_the_smaller_id_and_uniform_scores_weigh_exactly_alike(isa, teams) -> None:
    rows, _ = route(teams(1), np.zeros((3, 8), np.float32), Routing(8, 8, scale=8.0))
    assert rows[:, :8].tolist() == [list(range(8))] * 3
    assert (rows[:, 8:16] == 1.0).all()


def test_numbers_that_are_none_still_choose_distinct_experts(isa, teams) -> None:
    logits = np.full((2, 7), np.nan, np.float32)
    logits[1, ::2] = np.inf
    rows, _ = route(teams(2), logits, Routing(7, 5))
    for row in rows[:, :5]:
        assert sorted(set(row.tolist())) == sorted(row.tolist())
        assert all(0 <= e < 7 for e in row)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(4, 2, 64, 96), (8, 8, 64, 32), (5, 1, 32, 160)], ids=str)
@pytest.mark.parametrize("tokens", [1, 9, 30])
def test_a_mixture_equals_the_dense_masked_loop(isa, teams, name, shape, tokens) -> None:
    experts, chosen, width, hidden = shape
    stacks, routing = Stacks(name, experts, width, hidden), Routing(experts, chosen)
    x, logits = normal(tokens, stacks.width), normal(tokens, experts)
    out = mixture(teams(2), x, logits, routing, stacks)
    exact = dense(x, route(teams(1), logits, routing)[0], chosen, stacks)
    # the integer oracle rounds h from its own sums: where they differ in the last bit, so may one 15-bit level
    assert np.abs(out - exact).max() <= (2e-3 if reads_integers(name) else 1e-5) * np.abs(exact).max()


@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_formats_without_groups_take_ragged_experts(isa, teams, name) -> None:
    stacks, routing = Stacks(name, 3, 20, 27), Routing(3, 2)
    x, logits = normal(7, 20), normal(7, 3)
    exact = dense(x, route(teams(1), logits, routing)[0], 2, stacks)
    np.testing.assert_allclose(mixture(teams(3), x, logits, routing, stacks), exact, rtol=1e-4, atol=1e-4)


def test_empty_experts_and_one_expert_for_everybody(isa, teams) -> None:
    stacks, x = Stacks("bf16", 8, 32, 48), normal(14, 32)
    logits = np.zeros((14, 8), np.float32)
    logits[:, 5] = 9.0
    routed, distinct = route(teams(1), logits, Routing(8, 1))
    assert distinct == 1
    out = mixture(teams(3), x, logits, Routing(8, 1), stacks)
    exact = dense(x, routed, 1, stacks)
    assert np.abs(out - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("chosen", [1, 3, 6])
def test_a_token_has_the_same_bits_in_every_batch_and_on_every_team(isa, teams, name, chosen) -> None:
    most, stacks, routing = 25, Stacks(name, 6, 64, 32), Routing(6, chosen)
    x, logits = normal(most, stacks.width), normal(most, 6)
    logits[:, 2] += 1.5  # a busy expert: more rows than a panel, and than one block
    alone = np.concatenate([mixture(teams(1), x[i : i + 1], logits[i : i + 1], routing, stacks) for i in range(most)])
    for count in (2, 3, 6, 7, 12, 13, 24, 25):
        threads = 1 + count % 3
        out = mixture(teams(threads), x[:count], logits[:count], routing, stacks)
        np.testing.assert_array_equal(out.view(np.uint32), alone[:count].view(np.uint32), str((count, threads)))


@settings(max_examples=15, deadline=None)
@given(
    experts=st.integers(1, 9), data=st.data(), groups=st.integers(1, 3), hidden=st.integers(1, 4),
    start=st.integers(0, 200), count=st.integers(1, 250), name=st.sampled_from(FORMATS),
)  # fmt: skip
def test_any_slice_of_a_batch_has_the_bits_of_the_batch(teams, experts, data, groups, hidden, start, count, name):
    chosen = data.draw(st.integers(1, experts))
    stacks, routing = Stacks(name, experts, 32 * groups, 32 * hidden), Routing(experts, chosen)
    x, logits = normal(450, stacks.width), normal(450, experts)  # some experts get more than a chunk of 192 rows
    whole = mixture(teams(2), x, logits, routing, stacks)
    part = slice(start, start + count)
    np.testing.assert_array_equal(mixture(teams(3), x[part], logits[part], routing, stacks), whole[part])


@pytest.mark.parametrize("width", [32, 37])
def test_the_shared_expert_is_added_behind_its_gate(isa, teams, width) -> None:
    x, shared, gate = normal(5, width), normal(5, width, seed=2), normal(5, 1)
    routed = np.tile(np.array([[0, 1.0, 0]], np.float32), (5, 1))
    routed[:, 2] = np.arange(5)[::-1]
    arena = Arena()
    at, routing_at, shared_at, gate_at = (arena.place(a) for a in (x, routed, shared, gate))
    outs = [arena.room(x.nbytes) for _ in range(2)]
    ops = [
        instruction(
            native.RL_COMBINE, source=at, in2=routing_at, in3=shared_at, in4=in4, out=out, width_in=width,
            width_out=width, experts=1, chosen=1,
        )
        for in4, out in zip((gate_at, -1), outs, strict=True)
    ]  # fmt: skip
    run(teams(2), ops, arena, Batch(5))
    np.testing.assert_allclose(arena.read(outs[0], 5, width), x[::-1] + shared / (1 + np.exp(-gate)), atol=1e-6)
    np.testing.assert_allclose(arena.read(outs[1], 5, width), x[::-1] + shared, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"experts": 0}, {"chosen": 9}, {"groups": 3}, {"groups_kept": 2}, {"experts": 2000}, {"width_out": 8}]
)
def test_a_bad_routing_is_found_before_it_runs(teams, wrong) -> None:
    from ridgeline.kit.errors import InvariantError

    arena = Arena()
    op = route_instruction(Routing(8, 2), arena.place(normal(3, 8)), arena.room(72))
    for key, value in wrong.items():
        setattr(op, key, value)
    with pytest.raises(InvariantError):
        run(teams(1), [op], arena, Batch(3))
