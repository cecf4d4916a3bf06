"""The real file: published numbers, bytes, tokenizer and template against transformers."""

from __future__ import annotations

import time

import pytest

from ridgeline.formats.gguf import read_gguf
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import LoadedModel, describe, load, record
from ridgeline.models.pull import pull
from ridgeline.text.template import render_chat
from tests.text.texts import TEXTS, random_texts

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    pull("smollm2-135m")
    return load("smollm2-135m")


def test_published_numbers(loaded):
    storage = STORAGES.get("bf16")
    spec = loaded.spec
    assert loaded.weights.parameters == 134_515_008
    assert spec.layers * storage.bytes_per_token(spec.kv_heads, spec.head_dim) == 23_040
    assert (spec.context, spec.vocabulary, spec.tied, spec.bos, spec.eos, spec.add_bos) == (
        8192,
        49152,
        True,
        1,
        (2,),
        False,
    )


def test_the_program_weighs_what_the_file_does(loaded):
    program = record(loaded, STORAGES.get("bf16"))
    assert len(program.lines) == 1 + 30 * 11 + 4
    stored = read_gguf(loaded.source).tensors
    assert sum(w.nbytes for w in program.weights) == sum(t.nbytes for t in stored.values()) == 96_576_768
    assert loaded.file_bytes == 98_362_432
    assert all(not weight.data.flags.owndata for weight in program.weights)


def test_the_header_is_read_at_once(loaded):
    begin = time.process_time()
    read_gguf(loaded.source)
    assert time.process_time() - begin < 0.15


def test_describing_a_conversion(loaded):
    described = describe("smollm2-135m", weights="f32")
    assert described.weights.nbytes == 4 * 134_515_008 and described.weights.embed.data is None


def test_every_text_survives(loaded):
    tokenizer = loaded.tokenizer()
    assert tokenizer.size == 49152
    for text in [*TEXTS, *random_texts(200, 11)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_conversation_has_a_system_turn_only_when_wanted(loaded):
    tokenizer = loaded.tokenizer()
    user = {"role": "user", "content": "Hi"}
    default = render_chat(loaded.chat_template, [user], tokenizer=tokenizer)
    assert default.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    silent = render_chat(loaded.chat_template, [{"role": "system", "content": ""}, user], tokenizer=tokenizer)
    assert silent == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    asked, begun = tokenizer.encode("user\nHi"), tokenizer.encode("assistant\n")
    assert tokenizer.encode(silent, special=True) == [1, *asked, 2, *tokenizer.encode("\n"), 1, *begun]


@pytest.fixture(scope="module")
def oracle(loaded):
    """transformers' tokenizer of the same file. It knows no split named "smollm", so the published one is put in:
    digits alone, then GPT-2's (llama.cpp's LLAMA_VOCAB_PRE_TYPE_SMOLLM is the same)."""
    pytest.importorskip("gguf", reason="transformers reads GGUF files through gguf-py")
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loaded.source.parent, gguf_file=loaded.source.name)
    whole = tokenizer.backend_tokenizer
    whole.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), whole.pre_tokenizer])
    return tokenizer


@pytest.mark.torch
def test_ids_equal_transformers(loaded, oracle):
    tokenizer = loaded.tokenizer()
    for text in [*TEXTS, *random_texts(500, 12)]:
        ids = tokenizer.encode(text, special=True)
        assert ids == oracle.encode(text, add_special_tokens=False), text
        assert tokenizer.decode(ids, skip_special=False) == oracle.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.torch
def test_conversations_equal_transformers(loaded, oracle):
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name 3 fruits."},
        {"role": "assistant", "content": "Kiwi."}, {"role": "user", "content": "More! 🍎"},
    ]  # fmt: skip
    for conversation in (messages, messages[1:], messages[1:2]):
        text = render_chat(loaded.chat_template, conversation, tokenizer=loaded.tokenizer())
        expected = oracle.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        assert text == expected
        assert loaded.tokenizer().encode(text, special=True) == oracle.encode(expected, add_special_tokens=False)
