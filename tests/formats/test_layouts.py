"""Layouts of quantised checkpoints (F8, F9, F2-F4): every element against the published layout, and what is refused."""
# size: one argument a thing that hypothesis draws

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from ridgeline.formats.layout.layout import LAYOUTS, read_layout
from ridgeline.formats.safetensors_file import read_raw
from ridgeline.kit.errors import UserError

from .layouts import File, meaning, write_parts, writer

tool = writer()
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GPTQ = tool.quantization_config("gptq", 32)
AWQ = tool.quantization_config("awq", 32)
PACKED = tool.quantization_config("ct-int4", 32)
ELEMENTS = tool.quantization_config("ct-int8", 0)
FLOATS = tool.quantization_config("ct-fp8", 0)


def read(directory: Path) -> Any:
    config = json.loads((directory / "config.json").read_text())
    return read_layout(config, read_raw(directory), str(directory / "config.json"))


def values(seed: int, rows: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((rows, columns)) * generator.uniform(0.01, 3, (rows, 1))).astype(np.float32)


def codes(seed: int, rows: int, columns: int, bits: int, span: int, symmetric: bool) -> Any:
    """Any codes and zeros there may be, 0 and the largest among them."""
    generator = np.random.default_rng(seed)
    groups = -(-columns // span) if span else 1
    most = 1 << bits
    zeros = generator.integers(1, most, (rows, groups)) if not symmetric else np.full((rows, groups), most // 2)
    return tool.Codes(
        generator.integers(0, most, (rows, columns)).astype(np.uint8),
        generator.uniform(-2, 2, (rows, groups)).astype(np.float16), zeros.astype(np.uint8), bits, span, symmetric,
    )  # fmt: skip


def check(directory: Path, rows: int, columns: int, stored: int) -> Any:
    """The one module m, every element exactly the layout's own, its bytes those of codes, scales and zeros stored."""
    weight = read(directory).tensors["m.weight"]
    assert (weight.rows, weight.columns) == (rows, columns)
    assert np.array_equal(weight.unpack(), meaning(directory, "m", rows, columns).astype(np.float32))
    assert len(weight.data) == weight.nbytes == stored
    return weight


@QUICK
@given(
    seed=some.integers(0, 2**32), rows=some.integers(1, 5), words=some.integers(1, 12), bits=some.sampled_from((4, 8)),
    span=some.sampled_from((0, 8, 32, 40, 64, 128)), version=some.sampled_from((1, 2)), symmetric=some.booleans(),
)  # fmt: skip
def test_gptq(tmp_path, seed, rows, words, bits, span, version, symmetric):
    per = 32 // bits
    rows, columns = rows * per, words * per
    what = codes(seed, rows, columns, bits, span, symmetric)
    config = GPTQ | {
        "bits": bits, "group_size": span or -1, "sym": symmetric,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }  # fmt: skip
    directory = write_parts(tmp_path / "m", tool.gptq(what, 2 - version), config)
    file = File(directory / "model.safetensors")
    stored = file.nbytes("qweight", "scales") + (0 if symmetric else file.nbytes("qzeros"))
    groups = what.scales.shape[1]
    stored += rows // 2 * (groups % 2) if bits == 4 and not symmetric else 0  # half a byte a row is padding
    weight = check(directory, rows, columns, stored)
    assert weight.format.zero == (not symmetric) and weight.format.span == span


@QUICK
@given(
    seed=some.integers(0, 2**32), words=some.integers(1, 5), columns=some.integers(1, 100),
    span=some.sampled_from((0, 32, 128)),
)  # fmt: skip
def test_awq(tmp_path, seed, words, columns, span):
    what = codes(seed, 8 * words, columns, 4, span, False)
    directory = write_parts(tmp_path / "m", tool.awq(what), AWQ | {"group_size": span or -1})
    odd = columns % 2 * words * 4 + (what.scales.shape[1] % 2) * words * 4  # rows of an odd number of nibbles
    check(
        directory, 8 * words, columns, File(directory / "model.safetensors").nbytes("qweight", "qzeros", "scales") + odd
    )


@QUICK
@given(
    seed=some.integers(0, 2**32), rows=some.integers(1, 40), columns=some.integers(1, 100),
    bits=some.sampled_from((4, 8)), span=some.sampled_from((0, 32, 48)), symmetric=some.booleans(),
)  # fmt: skip
def test_compressed_packed(tmp_path, seed, rows, columns, bits, span, symmetric):
    what = codes(seed, rows, columns, bits, span, symmetric)
    config = json.loads(json.dumps(PACKED))
    config["config_groups"]["group_0"]["weights"] |= {
        "num_bits": bits, "symmetric": symmetric, "group_size": span or None,
        "strategy": "group" if span else "channel",
    }  # fmt: skip
    directory = write_parts(tmp_path / "m", tool.compressed(what), config)
    weight = read(directory).tensors["m.weight"]
    check(directory, rows, columns, weight.nbytes)
    assert weight.format.zero == (not symmetric)


@pytest.mark.parametrize("kind", ["int", "int with zeros", "float", "float as a whole"])
def test_compressed_elements(tmp_path, kind):
    generator = np.random.default_rng(4)
    rows, columns = 16, 96
    data = generator.integers(0, 256, (rows, columns)).astype(np.uint8)
    config = json.loads(json.dumps(ELEMENTS if kind.startswith("int") else FLOATS))
    scales = generator.uniform(0.01, 2, (rows, 1)).astype(np.float32)
    if kind.startswith("int"):
        parts = {"weight": data.view(np.int8), "weight_scale": scales}
        if kind == "int with zeros":
            config["config_groups"]["group_0"]["weights"]["symmetric"] = False
            parts["weight_zero_point"] = generator.integers(-128, 128, (rows, 1)).astype(np.int8)
    else:
        data = np.where(data & 127 == 127, 0, data).astype(np.uint8)
        if kind == "float as a whole":
            config["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
            scales = scales[0]
        parts = {"weight": ("F8_E4M3", data.shape, data.tobytes()), "weight_scale": scales}
    directory = write_parts(tmp_path / "m", parts | {"input_scale": np.ones(1, np.float32)}, config)
    stored = File(directory / "model.safetensors").nbytes("weight", "weight_scale", "zero_point")
    check(directory, rows, columns, stored)
    contents = read(directory)
    assert contents.dropped == {"m.input_scale"} and "activations" in contents.notes[0]


@pytest.mark.torch
def test_the_oracle_knows_torchs_floats():
    import torch

    from .layouts import eight_bit_float

    codes = [code for code in range(256) if code & 127 != 127]
    told = torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float64)
    assert [eight_bit_float(code) for code in codes] == told.tolist()


# -- versions of gptq


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stored_less", [1, 0])
@pytest.mark.parametrize("said", ["gptq", "gptq_v2"])
def test_values_tell_the_version_and_a_wrong_word_is_mentioned(tmp_path, bits, stored_less, said):
    what = codes(5, 32, 64, bits, 32, True)
    config = GPTQ | {"bits": bits, "sym": True, "checkpoint_format": said}
    contents = read(write_parts(tmp_path / "m", tool.gptq(what, stored_less), config))
    wide = np.repeat(what.scales.astype(np.float64), 32, 1)
    exact = wide * (what.codes.astype(np.float64) - (1 << (bits - 1)))
    assert np.array_equal(contents.tensors["m.weight"].unpack(), exact.astype(np.float32))
    is_true = said == ("gptq" if stored_less else "gptq_v2")
    assert bool(contents.notes) != is_true
    assert is_true or f"says checkpoint_format {said}: read as gptq" in contents.notes[0]


def test_asymmetric_files_are_believed(tmp_path):
    what = codes(6, 32, 64, 4, 32, False)
    for said, stored_less in (("gptq", 1), ("gptq_v2", 0)):
        directory = write_parts(tmp_path / said, tool.gptq(what, stored_less), GPTQ | {"checkpoint_format": said})
        assert np.array_equal(
            read(directory).tensors["m.weight"].unpack(), meaning(directory, "m", 32, 64).astype(np.float32)
        )


def test_a_zero_that_version_1_cannot_hold_is_refused(tmp_path):
    parts = tool.gptq(codes(6, 32, 64, 4, 32, False), 1)
    parts["qzeros"] = np.full_like(parts["qzeros"], -1)
    weight = read(write_parts(tmp_path / "m", parts, GPTQ)).tensors["m.weight"]
    with pytest.raises(UserError, match="Save it as gptq_v2"):
        weight.unpack()


def test_columns_in_another_order_are_refused_and_trivial_indexes_are_not(tmp_path):
    parts = tool.gptq(codes(7, 32, 64, 4, 32, False), 1)
    assert read(write_parts(tmp_path / "a", parts, GPTQ | {"desc_act": True})).tensors
    assert read(write_parts(tmp_path / "b", {k: v for k, v in parts.items() if k != "g_idx"}, GPTQ)).tensors
    parts["g_idx"] = parts["g_idx"][::-1].copy()
    with pytest.raises(UserError, match="activation order"):
        read(write_parts(tmp_path / "c", parts, GPTQ | {"desc_act": True}))
    packed = tool.compressed(codes(7, 32, 64, 4, 32, False))
    for index, fine in ((np.arange(64) // 32, True), (np.full(64, -1), True), (np.arange(64) % 2, False)):
        directory = write_parts(tmp_path / "d", packed | {"weight_g_idx": index.astype(np.int32)}, PACKED)
        if fine:
            assert read(directory).tensors
        else:
            with pytest.raises(UserError, match="activation order"):
                read(directory)


# -- beside the quantised ones


def test_plain_tensors_stay_and_empty_biases_may_be_left(tmp_path):
    parts = tool.gptq(codes(8, 32, 64, 4, 32, False), 1)
    directory = write_parts(tmp_path / "m", parts | {"bias": np.zeros(32, np.float16)}, GPTQ)
    contents = read(directory)
    assert contents.dropped == {"m.bias"} and contents.tensors["m.bias"].rows == 1
    contents = read(write_parts(tmp_path / "m", parts | {"bias": np.ones(32, np.float16)}, GPTQ))
    assert not contents.dropped
    with pytest.raises(UserError, match="both quantised and plain"):
        read(write_parts(tmp_path / "m", parts | {"weight": np.ones((32, 64), np.float32)}, GPTQ))


def test_no_layout_and_unknown_ones(tmp_path):
    directory = write_parts(tmp_path / "m", {"weight": np.ones((2, 4), np.float32)}, GPTQ)
    assert read_layout({}, read_raw(directory), "c").tensors["m.weight"].format.name == "f32"
    for config, words in (
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "read here: gptq, awq, compressed-tensors"),
        ({"quantization_config": {}}, "quant_method"),
        ({"quantization_config": [1]}, "an object"),
    ):
        with pytest.raises(UserError, match=words):
            read_layout(config, read_raw(directory), "c")
    assert list(LAYOUTS) == ["gptq", "awq", "compressed-tensors"]


# -- what is refused


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Changes to the whole, or (weights__x) to the weights of the group."""
    config = json.loads(json.dumps(config))
    for key, value in changes.items():
        if key.startswith("weights__"):
            config["config_groups"]["group_0"]["weights"][key.removeprefix("weights__")] = value
        else:
            config[key] = value
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed(GPTQ, bits=3), "gptq of 3 bits"),
        (changed(GPTQ, bits=None), "bits"),
        (changed(GPTQ, checkpoint_format="marlin"), "'marlin'; read here: gptq, gptq_v2"),
        (changed(GPTQ, checkpoint_format="gptq_p"), "gptq_p"),
        (changed(GPTQ, is_marlin_format=True), "marlin"),
        (changed(GPTQ, pack_dtype="int16"), "int16"),
        (changed(GPTQ, group_size=0), "group_size is 0"),
        (changed(GPTQ, group_size=10**9), "group_size"),
        (changed(GPTQ, group_size=64), "asks for I32"),
        (changed(GPTQ, sym="yes"), "true or false"),
        (changed(GPTQ, dynamic={"+:.*down.*": {"bits": 8}}), "dynamic"),
        (changed(AWQ, bits=8), "awq of 8 bits"),
        (changed(AWQ, version="gemv"), "saved as gemm"),
        (changed(AWQ, backend="llm-awq"), "llm-awq"),
        (changed(AWQ, group_size=128), "asks for I32"),
        (changed(PACKED, format="marlin-24"), "marlin-24"),
        (changed(PACKED, format="nvfp4-pack-quantized"), "nvfp4"),
        (changed(PACKED, format="mxfp4-pack-quantized"), "mxfp4"),
        (changed(PACKED, format="sparse-24-bitmask"), "sparse-24"),
        (changed(PACKED, sparsity_config={"format": "sparse-24-bitmask"}), "dense copy"),
        (changed(PACKED, kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (changed(PACKED, quantization_status="frozen"), "saved compressed"),
        (changed(PACKED, config_groups={}), "1 to 256 groups"),
        (changed(PACKED, config_groups={str(i): {} for i in range(999)}), "1 to 256 groups"),
        (changed(PACKED, config_groups={"W4A16": ["Linear"]}), "an object"),
        (changed(PACKED, weights__strategy="block"), "'block'; scales read here"),
        (changed(PACKED, weights__strategy="tensor_group"), "tensor_group"),
        (changed(PACKED, weights__num_bits=2), "2 bits by group"),
        (changed(PACKED, weights__num_bits=8), "fits no group"),
        (changed(PACKED, weights__group_size=64), "fits no group"),
        (changed(PACKED, weights__symmetric=True), "fits no group"),
        (changed(PACKED, weights__type="float"), "floats of 4 bits"),
        (changed(FLOATS, weights__group_size=32, weights__strategy="group"), "floats of 8 bits by group"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_read(tmp_path, config, words):
    what = codes(9, 32, 64, 4, 32, False)
    parts = {"gptq": tool.gptq(what, 1), "awq": tool.awq(what)}.get(config["quant_method"]) or tool.compressed(what)
    with pytest.raises(UserError, match=words) as error:
        read(write_parts(tmp_path / "m", parts, config))
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("layout", "part", "change"),
    [
        ("gptq", "qweight", lambda a: a[:, :24]), ("gptq", "qweight", lambda a: a[:4]),
        ("gptq", "qweight", lambda a: a[0]), ("gptq", "qweight", lambda a: a.astype(np.float32)),
        ("gptq", "qzeros", lambda a: a[:, :1]), ("gptq", "scales", lambda a: a.T), ("gptq", "g_idx", lambda a: a[:-1]),
        ("gptq", "qweight", None), ("gptq", "qzeros", None), ("gptq", "scales", None),
        ("gptq", "scales", lambda a: a.astype(np.int32)),
        ("awq", "qweight", lambda a: a.T), ("awq", "qzeros", lambda a: a[:1]), ("awq", "scales", None),
        ("awq", "scales", lambda a: a[:, 1:]), ("awq", "qzeros", lambda a: a.view(np.float32)),
        ("ct", "weight_packed", lambda a: a[:, 1:]), ("ct", "weight_packed", lambda a: a[1:]),
        ("ct", "weight_scale", None),
        ("ct", "weight_packed", None), ("ct", "weight_shape", None), ("ct", "weight_zero_point", None),
        ("ct", "weight_shape", lambda a: a * 0), ("ct", "weight_shape", lambda a: a + 2**62),
        ("ct", "weight_shape", lambda a: -a), ("ct", "weight_shape", lambda a: a[:1]),
        ("ct", "weight_zero_point", lambda a: a.T), ("ct", "weight_scale", lambda a: a.astype(np.int32)),
    ],
)  # fmt: skip
def test_tensors_of_another_shape_or_kind_are_refused(tmp_path, layout, part, change):
    what = codes(9, 32, 64, 4, 32, False)
    parts, config = {
        "gptq": (tool.gptq(what, 1), GPTQ), "awq": (tool.awq(what), AWQ), "ct": (tool.compressed(what), PACKED),
    }[layout]  # fmt: skip
    if change is None:
        del parts[part]
    else:
        parts[part] = np.ascontiguousarray(change(parts[part]))
    with pytest.raises(UserError, match=r"m (lacks|has|\()|m\.\w+ is"):
        read(write_parts(tmp_path / "m", parts, config))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scales_that_are_no_numbers_are_refused(tmp_path, wrong):
    what = codes(9, 32, 64, 4, 32, False)
    what.scales[3, 1] = wrong
    for name, parts, config in (
        ("a", tool.gptq(what, 1), GPTQ), ("b", tool.awq(what), AWQ), ("c", tool.compressed(what), PACKED),
    ):  # fmt: skip
        weight = read(write_parts(tmp_path / name, parts, config)).tensors["m.weight"]
        with pytest.raises(UserError, match="scale that is NaN or infinite"):
            weight.unpack()


def test_codes_that_are_no_numbers_are_refused(tmp_path):
    data = np.zeros((16, 32), np.uint8)
    data[3, 4] = 0xFF
    parts = {"weight": ("F8_E4M3", data.shape, data.tobytes()), "weight_scale": np.ones((16, 1), np.float32)}
    with pytest.raises(UserError, match="NaN among its fp8 codes"):
        read(write_parts(tmp_path / "m", parts, FLOATS)).tensors["m.weight"].unpack()


def test_several_groups_are_told_apart_by_their_tensors_or_refused(tmp_path):
    what = codes(9, 32, 96, 4, 32, False)
    config = json.loads(json.dumps(PACKED))
    groups = config["config_groups"]
    groups["group_1"] = changed(PACKED, weights__num_bits=8)["config_groups"]["group_0"]
    groups["group_1"]["targets"] = ["re:(a+)+$"]  # never run
    assert read(write_parts(tmp_path / "m", tool.compressed(what), config)).tensors["m.weight"].format.bits == 4
    groups["group_2"] = changed(PACKED, weights__group_size=40)["config_groups"]["group_0"]  # three groups as well
    with pytest.raises(UserError, match="several groups"):
        read(write_parts(tmp_path / "m", tool.compressed(what), config))
