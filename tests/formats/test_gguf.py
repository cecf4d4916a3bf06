"""The GGUF reader: well-formed files of both versions, and every way a file can be wrong."""

from __future__ import annotations

import random
import struct
import time

import numpy as np
import pytest

from ridgeline.formats.gguf import read_gguf
from ridgeline.kit.errors import UserError

from .gguf_file import gguf, text, tiny, value

ONE = [("w", (32,), 0, np.arange(32, dtype=np.float32).tobytes())]


def read(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_gguf(path)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_was_written(tmp_path, version):
    metadata = {
        "a": 7, "b": 0.5, "c": True, "d": "ünï", "e": ["x", "", "日本"], "f": np.array([1, -2], np.int32),
    }  # fmt: skip
    tensors = [*ONE, ("m", (4, 3), 0, np.arange(12, dtype=np.float32).tobytes())]
    file = read(tmp_path, gguf(metadata, tensors, version))
    assert [file.metadata[key] for key in "abcd"] == [7, 0.5, True, "ünï"]
    assert list(file.metadata["e"]) == ["x", "", "日本"] and len(file.metadata["e"]) == 3
    assert file.metadata["f"].tolist() == [1, -2]
    assert (file.tensors["w"].rows, file.tensors["w"].columns) == (1, 32)
    assert np.array_equal(file.tensors["m"].unpack(), np.arange(12, dtype=np.float32).reshape(3, 4))
    assert not file.tensors["m"].data.flags.writeable and not file.tensors["m"].data.flags.owndata


def header(version=3, tensors=0, keys=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


HUGE = 2**63
BAD = {
    "magic": (b"GGML" + bytes(60), "not a GGUF file"),
    "text": (b"hello", "not a GGUF file"),
    "magic only": (b"GGUF", "damaged"),
    "version 1": (header(1), "version 1"),
    "version 99": (header(99), "version 99"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (header(3, HUGE, 0) + bytes(19), "claims"),  # 43 bytes that hang other readers
    "key count": (header(3, 0, HUGE) + bytes(19), "claims"),
    "key length": (header(3, 0, 1) + struct.pack("<Q", HUGE) + bytes(16), "claims"),
    "string length": (header(3, 0, 1) + text("k") + struct.pack("<IQ", 8, HUGE) + bytes(8), "claims"),
    "array length": (header(3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, HUGE) + bytes(8), "claims"),
    "string array length": (header(3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, HUGE) + bytes(8), "claims"),
    "string in an array": (
        header(3, 0, 1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, HUGE) + bytes(8),
        "past the end",
    ),
    "nested array": (header(3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(16), "nested"),
    "value type": (header(3, 0, 1) + text("k") + struct.pack("<I", 77) + bytes(16), "unknown value type"),
    "key twice": (header(3, 0, 2) + 2 * (text("k") + value(1)), "twice"),
    "key not UTF-8": (header(3, 0, 1) + struct.pack("<Q", 1) + b"\xff" + value(1) + bytes(8), "UTF-8"),
    "alignment 0": (gguf({"general.alignment": 0}, ONE), "power of two"),
    "alignment 24": (gguf({"general.alignment": 24}, ONE), "power of two"),
    "alignment text": (gguf({"general.alignment": "32"}, ONE), "power of two"),
    "tensor twice": (gguf({}, ONE * 2), "twice"),
    "tensor name length": (gguf({}, [("n" * 300, (32,), 0, bytes(128))]), "claims"),
    "no dimensions": (gguf({}, [("w", (), 0, bytes(128))]), "dimensions"),
    "five dimensions": (gguf({}, [("w", (2, 2, 2, 2, 2), 0, bytes(128))]), "dimensions"),
    "zero dimension": (gguf({}, [("w", (0, 4), 0, bytes(128))]), "shape"),
    "huge dimensions": (gguf({}, [("w", (HUGE, HUGE, HUGE, HUGE), 0, bytes(128))]), "truncated"),
    "ragged": (gguf({}, [("w", (33,), 3, bytes(128))]), "whole q4_1 groups"),
    "type unknown": (gguf({}, [("w", (32,), 1234, bytes(128))]), "unknown type 1234"),
    "type not read here": (gguf({}, [("w", (256,), 10, bytes(128))]), "Q2_K"),
    "tensor data": (gguf({}, ONE)[:-1], "truncated"),
}


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_wrong_files_say_what_is_wrong(tmp_path, data, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, data)


def test_offsets_must_be_aligned_and_apart(tmp_path):
    good = gguf({}, [*ONE, ("v", (32,), 0, bytes(128))])
    place = good.index(text("v")) + len(text("v")) + 4 + 8 + 4
    for offset, words in ((64, "overlap"), (4, "multiple of 32"), (1 << 40, "truncated")):
        with pytest.raises(UserError, match=words):
            read(tmp_path, good[:place] + struct.pack("<Q", offset) + good[place + 8 :])


def test_missing_empty_and_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="empty"):
        read(tmp_path, b"")
    with pytest.raises(UserError, match="cannot read"):
        read_gguf(tmp_path)


def test_strings_that_are_not_utf8_are_found_when_read(tmp_path):
    data = gguf({"k": ["good", "bad!"]}, ONE).replace(b"bad!", b"\xff\xfe\xfd\xfc")
    with pytest.raises(UserError, match="string 1"):
        read(tmp_path, data).metadata["k"].read()


def test_any_damage_is_one_sentence_and_quick(tmp_path):
    """Some hundred mutations and truncations: a file or a UserError, nothing else, at once."""
    metadata, tensors = tiny(**{"tokenizer.ggml.tokens": ["a", "b", "c", "d"]})
    good = gguf(metadata, tensors)
    head = good.index(b"blk.1.ffn_down.weight") + 64
    chance = random.Random(5)
    begin = time.perf_counter()
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(head)
            data[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        try:
            for item in read(tmp_path, bytes(data)).metadata.values():
                list(item) if hasattr(item, "read") else None
        except UserError as error:
            assert str(error).startswith(str(tmp_path)), error
    assert time.perf_counter() - begin < 5
