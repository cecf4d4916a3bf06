"""safetensors: mapped views of one file or of shards, bf16 included; damaged files and strange indexes refused."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from ridgeline.formats.safetensors_file import read_file, read_raw, read_safetensors
from ridgeline.kit.errors import UserError


def test_views_of_every_element_format(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    entries = {
        "f32": {"dtype": "F32", "shape": [2, 3], "data": values.tobytes()},
        "f16": {"dtype": "F16", "shape": [2, 3], "data": values.astype(np.float16).tobytes()},
        "bf16": {"dtype": "BF16", "shape": [2, 3], "data": bits.tobytes()},
        "vector": {"dtype": "F32", "shape": [6], "data": values.tobytes()},
    }
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "vector": "float32"}
    header, payload = {}, b""
    for name, entry in entries.items():
        end = len(payload) + len(entry["data"])
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [len(payload), end]}
        payload += entry["data"]
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data + payload)
    tensors = read_safetensors(tmp_path)
    assert set(tensors) == set(names)
    for name in ("f32", "f16", "bf16"):
        assert tensors[name].format.name == name and np.array_equal(tensors[name].unpack(), values)
        assert not tensors[name].data.flags.owndata
    assert (tensors["vector"].rows, tensors["vector"].columns) == (1, 6)


def test_shards_by_index(tmp_path):
    for shard, name in (("a.safetensors", "x"), ("b.safetensors", "y")):
        save_file({name: np.ones((2, 2), np.float32)}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert set(read_safetensors(tmp_path)) == {"x", "y"}
    for wrong, words in (
        ({"weight_map": {"x": "../a.safetensors"}}, "beside the index"),
        ({"weight_map": {"z": "a.safetensors"}}, "not there"),
        ({"weight_map": {"x": "c.safetensors"}}, "No such file"),
        ({"weight_map": []}, "not a table"),
        ({}, "cannot read"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=words):
            read_safetensors(tmp_path)


def test_elements_that_are_no_weights(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        read_safetensors(tmp_path)
    save_file({"w": np.ones(3, np.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="'w' is I64"):
        read_safetensors(tmp_path)
    raw = read_raw(tmp_path)["w"]  # what a layout may know how to read
    assert (raw.kind, raw.shape, raw.data.tobytes()) == ("I64", (3,), np.ones(3, np.int64).tobytes())


def test_any_damage_is_one_sentence(tmp_path):
    good = save({"w": np.zeros((4, 4), np.float32)})
    chance = random.Random(6)
    path = tmp_path / "w.safetensors"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data) - 64)] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            read_file(path)
        except UserError as error:
            assert str(path) in str(error)
