"""How activations are rounded is data: a name, a threshold by who writes a row, a field of instructions."""

from __future__ import annotations

import math

import pytest

from ridgeline.engine.config import EngineConfig
from ridgeline.kernels import native
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import load, record
from ridgeline.run.activations import outlier_of
from ridgeline.run.arena import StepLimits, plan_arena
from ridgeline.run.bind import bind
from ridgeline.run.emit import Emitter, quantised_values

from ..engine.tiny import LLAMA, write_config

LIMITS = StepLimits(tokens=16, logit_rows=4, sequences=2, context=64)


def test_names_and_thresholds() -> None:
    assert outlier_of("int16", "norm") == 0.0
    assert outlier_of("int8", "head") == math.inf
    assert outlier_of("auto:outlier=5.5", "activation") == 5.5
    assert outlier_of("auto", "head") < outlier_of("auto", "norm") < outlier_of("auto", "activation")


@pytest.mark.parametrize("name", ["int4", "auto:outlier=0", "auto:outlier=x", "auto:peak=3", "int8:outlier=3", ""])
def test_what_there_is_not_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UserError, match="auto:outlier="):
        EngineConfig("random:smollm2-135m", activations=name).check()


@pytest.mark.parametrize("activations", ["auto", "int8", "int16"])
def test_every_instruction_that_rounds_has_its_threshold(tmp_path, activations: str) -> None:
    program = record(load(write_config(tmp_path, LLAMA), weights="q8_0"), STORAGES.get("bf16"))
    bound = bind(program, activations=activations)
    plan = plan_arena(program, bound.bodies, LIMITS, quantised_values(program, bound.bodies))
    tape = Emitter(bound, plan).tape(0, len(program.lines))
    found = {one.op: one.outlier for one in tape.instructions[: tape.count] if one.out_quant >= 0}
    kinds = {native.RL_ATTEND: "attend", native.RL_ACTIVATION: "activation"}
    assert kinds.keys() <= found.keys()
    for op, kind in kinds.items():
        assert found[op] == outlier_of(activations, kind)
    last = [one for one in tape.instructions[: tape.count] if one.out_quant >= 0][-1]  # what the head reads
    assert last.outlier == outlier_of(activations, "head")
