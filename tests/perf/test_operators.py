"""Counts by operator against closed forms (core §A.3), on descriptors."""

from __future__ import annotations

import pytest

from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.operators import count_phase, decode_shape, prefill_shape
from ridgeline.perf.roofline import COMPUTE, KV_BANDWIDTH, WEIGHT_BANDWIDTH

from .conftest import round_machine


@pytest.fixture(scope="module")
def llama():
    """Llama-2-7B in 16 bits: 32 layers, width 4096, 32 heads of 128, ffn 11008, vocabulary 32000."""
    return record(describe("random:llama-2-7b"), STORAGES.get("bf16"))


def rows(phase):
    return {row.name: row for row in phase.rows}


def test_decode_at_batch_one_reads_every_weight_once(llama):
    machine = round_machine(bytes_per_s=2e12, flops_per_s=312e12)
    decode = count_phase("decode", llama, machine, decode_shape(llama, 1, 999))
    by_name = rows(decode)
    assert by_name["gate_up"].weight_bytes == 32 * 2 * 2 * 4096 * 11008
    assert by_name["gate_up"].intensity == pytest.approx(1.0)  # B tokens, 2 bytes: B (A4)
    assert by_name["attend"].kv_bytes == 32 * (1000 + 1) * 2 * 2 * 32 * 128  # read 1000, write 1
    assert by_name["attend"].intensity == pytest.approx(1.0, rel=2e-3)  # N/K = 1 without GQA
    assert by_name["attend"].roof == KV_BANDWIDTH and by_name["down"].roof == WEIGHT_BANDWIDTH
    assert decode.floor_s == pytest.approx((decode.weight_bytes + decode.kv_bytes) / 2e12)
    assert decode.predicted_s >= decode.floor_s * 0.999


def test_intensity_of_shared_weights_grows_with_the_batch_and_of_private_keys_does_not(llama):
    machine = round_machine(bytes_per_s=2e12, flops_per_s=312e12)
    wide = rows(count_phase("decode", llama, machine, decode_shape(llama, 64, 999)))
    assert wide["down"].intensity == pytest.approx(64)
    assert wide["attend"].intensity == pytest.approx(1.0, rel=2e-3)


def test_a_short_prompt_is_bound_by_memory_and_a_long_one_by_arithmetic(llama):
    """Ridge 156: six tokens stay below it, 512 do not (A5, A6)."""
    machine = round_machine(bytes_per_s=2e12, flops_per_s=312e12)
    short = rows(count_phase("prefill", llama, machine, prefill_shape(llama, 1, 6)))
    long = rows(count_phase("prefill", llama, machine, prefill_shape(llama, 1, 512)))
    assert short["gate_up"].roof == WEIGHT_BANDWIDTH and long["gate_up"].roof == COMPUTE
    assert long["gate_up"].flops == 2 * 2 * 4096 * 11008 * 512 * 32
    assert long["attend"].flops == 4 * 32 * 128 * (512 * 513 // 2) * 32


def test_grouped_heads_raise_the_intensity_of_attention_to_n_over_k():
    """Llama-3-8B: 32 heads on 8 kept ones."""
    llama3 = record(describe("random:llama-3-8b"), STORAGES.get("bf16"))
    decode = rows(count_phase("decode", llama3, round_machine(), decode_shape(llama3, 1, 8000)))
    assert decode["attend"].intensity == pytest.approx(4.0, rel=1e-3)


def test_operators_and_overhead_are_the_whole_step(llama):
    phase = count_phase("prefill", llama, round_machine(1e9, 1e11), prefill_shape(llama, 2, 100))
    assert sum(row.lines for row in phase.rows) == len(llama.lines)
    assert sum(row.predicted_s for row in phase.rows) + phase.overhead_s == pytest.approx(phase.predicted_s)
    assert sum(row.flops for row in phase.rows) == phase.flops
