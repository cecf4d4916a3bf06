"""The runner's bindings agree: native, reference, and any mixture of the two on one arena (DESIGN §2)."""

import numpy as np
import pytest

from ridgeline.formats.format import FORMATS as TABLE
from ridgeline.kernels import native
from ridgeline.kernels.packing import reads_integers
from ridgeline.kit.clock import WallClock
from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import LoadedModel, load, record
from ridgeline.models.pull import find
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import Bound, bind
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

from ..engine.tiny import GEMMA3, LLAMA, QWEN2, QWEN2_MOE, QWEN3, write_config

LIMITS = StepLimits(tokens=96, logit_rows=8, sequences=4, context=128)
FORMATS = ("f32", "bf16", "q8_0", "q4_1", "q4_0", "q5_0", "int8", "int4", "fp8")


@pytest.fixture(scope="module", params=[LLAMA, QWEN2], ids=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("model"), request.param)


def runner_of(loaded: LoadedModel, storage: str, bound: Bound) -> Runner:
    pools = tuple(
        KvPool(group.storage, layers=len(group.layers), kv_heads=group.kv_heads, head_dim=group.head_dim, blocks=24)
        for group in bound.program.kv_groups
    )
    return Runner(bound, pools, limits=LIMITS, threads=2, clock=WallClock())


def steps() -> list[StepPlan]:
    """Two prompts in one batch, then a mixed step: one more token beside a chunk of another."""
    rows = (LogitRow(0, 1, Sampling(), logprobs=3),)
    first, second = np.array([3, 9, 1, 4], np.int32), np.array([7, 2, 0, 5], np.int32)
    prompt, other = tuple(range(5, 45)), tuple(range(60, 77))
    return [
        StepPlan(
            (
                Entry(1, 0, prompt, (first,), (LogitRow(39, 40, Sampling(), logprobs=3),)),
                Entry(
                    2,
                    0,
                    other,
                    (second,),
                    (LogitRow(3, 4, Sampling(), target=64, logprobs=2), *()),
                ),
            )
        ),
        StepPlan((Entry(1, 40, (100,), (first,), rows), Entry(2, 17, tuple(range(200, 223)), (second,), ()))),
        StepPlan((Entry(2, 40, (9,), (second,), rows), Entry(1, 41, (8,), (first,), rows))),
    ]


def logits_of(runner: Runner) -> list[np.ndarray]:
    found = []
    for plan in steps():
        runner.collect(runner.submit(plan))
        found.append(runner.last_logits(sum(len(entry.rows) for entry in plan.entries)))
    runner.close()
    return found


def far(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Largest difference relative to the largest |logit|."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, wanted, strict=True))


@pytest.mark.torch
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("storage", ["f32", "bf16"])
@pytest.mark.parametrize("isa", native.ISAS)
def test_native_agrees_with_the_reference(model: str, weights: str, storage: str, isa: str) -> None:
    if isa not in native.instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    loaded = load(model, weights=weights)
    program = record(loaded, STORAGES.get(storage))
    wanted = logits_of(runner_of(loaded, storage, bind(program, body="torch")))
    before = native.isa()
    native.set_isa(isa)
    try:
        got = logits_of(runner_of(loaded, storage, bind(program)))
    finally:
        native.set_isa(before)
    # Integer formats round activations to 15 bits; bf16 KV rounds at another last bit now and then.
    limit = 2e-2 if reads_integers(TABLE.get(weights)) else 1e-5 if storage == "f32" else 2e-3
    assert far(got, wanted) < limit


@pytest.mark.torch
@pytest.mark.parametrize("config", [QWEN3, GEMMA3], ids=["qwen3", "gemma3"])
@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_norms_of_heads_and_two_ropes_agree_with_the_reference(tmp_path, config: dict, weights: str) -> None:
    loaded = load(write_config(tmp_path, config), weights=weights)
    program = record(loaded, STORAGES.get("f32"))
    wanted = logits_of(runner_of(loaded, "f32", bind(program, body="torch")))
    assert far(logits_of(runner_of(loaded, "f32", bind(program))), wanted) < 1e-5
    mixed = bind(program, reference=frozenset(("head_norm",)))
    assert not mixed.is_native
    assert far(logits_of(runner_of(loaded, "f32", mixed)), wanted) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize(
    "part", ["embed", "qkv", "rope", "attend", "o", "attend_add", "activation", "down", "head", "sample"]
)
def test_one_line_on_its_reference_slows_only_itself(model: str, part: str) -> None:
    """A technique without a kernel is a call-out on the same arena: same numbers, one more segment a layer."""
    loaded = load(model, weights="f32")
    program = record(loaded, STORAGES.get("f32"))
    wanted = logits_of(runner_of(loaded, "f32", bind(program)))
    bound = bind(program, reference=frozenset((part,)))
    assert {body for name, body, _, _ in bound.table() if name == part} == {"torch"}
    assert sum(body == "torch" for body in bound.bodies) == sum(line.part == part for line in program)
    assert far(logits_of(runner_of(loaded, "f32", bound)), wanted) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("part", ["attend_norm", "attend", "activation", "final_norm", "route", "dispatch", "combine"])
def test_integer_linears_read_what_a_call_out_wrote(tmp_path, part: str) -> None:
    """A call-out writes f32; the quantised copy that integer linears read is made before they run. With 15 bits, where
    the last bit of a call-out cannot move an activation by a whole 1/127 of its peak."""
    loaded = load(write_config(tmp_path, QWEN2_MOE), weights="q8_0")
    program = record(loaded, STORAGES.get("f32"))
    wanted = logits_of(runner_of(loaded, "f32", bind(program, activations="int16")))
    bound = bind(program, reference=frozenset((part,)), activations="int16")
    assert far(logits_of(runner_of(loaded, "f32", bound)), wanted) < 1e-3


@pytest.mark.parametrize("weights", FORMATS)
def test_a_step_is_exactly_one_native_call(model: str, weights: str) -> None:
    """D9, counted in the team and in the result; a mixed step too."""
    loaded = load(model, weights=weights)
    bound = bind(record(loaded, STORAGES.get("bf16")))
    assert bound.is_native
    runner = runner_of(loaded, "bf16", bound)
    for number, plan in enumerate(steps(), 1):
        result = runner.collect(runner.submit(plan))
        assert result.native_calls == 1
        assert runner._team.calls == number
        assert result.line_ns is not None
        assert result.line_ns.sum() <= (result.ended_s - result.started_s) * 1e9
    runner.close()


@pytest.mark.parametrize("weights", FORMATS)
def test_resident_bytes_are_the_formats_own(model: str, weights: str) -> None:
    """Native for real: what stays in memory is the stored bits, plus padding to 16 rows and f32 vectors."""
    loaded = load(model, weights=weights)
    program = record(loaded, STORAGES.get("bf16"))
    runner = runner_of(loaded, "bf16", bind(program))
    stored = sum(weight.nbytes for weight in program.weights)
    padding = sum(w.format.nbytes(-w.rows % 16, w.columns) for w in program.weights if w.rows > 1)
    assert stored <= runner.resident_weight_bytes <= stored + padding
    runner.close()


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "qwen2.5-coder-0.5b"])
def test_resident_bytes_of_the_real_file(name: str) -> None:
    if name != "smollm2-135m" and find(name) is None:
        pytest.skip(f"{name} was not pulled here: too large for a test to fetch")
    loaded = load(name)
    program = record(loaded, STORAGES.get("bf16"))
    bound = bind(program)
    assert bound.is_native
    runner = runner_of(loaded, "bf16", bound)
    runner.close()
    # Exactly the tensors of the file, which also holds the vocabulary and names.
    assert runner.resident_weight_bytes == loaded.weights.nbytes
    assert 0.97 * loaded.file_bytes < runner.resident_weight_bytes < loaded.file_bytes


def test_what_the_runner_was_not_built_for_is_refused(model: str) -> None:
    loaded = load(model, weights="bf16")
    runner = runner_of(loaded, "bf16", bind(record(loaded, STORAGES.get("bf16"))))
    blocks = np.arange(1, dtype=np.int32)
    with pytest.raises(InvariantError, match="97 tokens"):
        runner.submit(StepPlan((Entry(1, 0, (5,) * 97, (np.arange(8, dtype=np.int32),)),)))
    with pytest.raises(InvariantError, match="past its blocks"):
        runner.submit(StepPlan((Entry(1, 10, (5,) * 7, (blocks,)),)))
    with pytest.raises(InvariantError):
        runner.collect("no ticket")
    runner.close()


def test_unknown_bodies_and_parts_are_refused(model: str) -> None:
    program = record(load(model, weights="bf16"), STORAGES.get("bf16"))
    with pytest.raises(UserError, match="unknown body"):
        bind(program, body="cuda")
    with pytest.raises(UserError, match="no operator"):
        bind(program, reference=frozenset(("attention",)))
