"""Tokenizers: ids equal to the oracles', specials only when asked for, streaming equal to decoding the whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kit.errors import UserError
from ridgeline.text.tokenizer import Tokenizer, starts_with_bos
from ridgeline.text.vocabulary import QWEN2_SPLIT, TokenType, Vocabulary

from .small import CONTROL, small_tokenizer
from .texts import TEXTS, random_texts

SMALL = small_tokenizer()


def test_merges_specials_and_bos():
    tokenizer = small_tokenizer(add_bos=True)
    hello = tokenizer.id_of("hello")
    assert tokenizer.encode("hello") == [0, hello]
    assert tokenizer.encode("hello", add_bos=False) == [hello]
    assert tokenizer.encode("<|end|>hello", add_bos=False, special=True) == [2, hello]
    assert 2 not in tokenizer.encode("<|end|>hello")
    assert tokenizer.decode([0, hello, 2]) == "hello"
    assert tokenizer.decode([0, hello, 2], skip_special=False) == "<|begin|>hello<|end|>"
    assert tokenizer.size == 264 and tokenizer.special_ids == {0, 1, 2}


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_survives(text):
    for special in (False, True):
        assert SMALL.decode(SMALL.encode(text, special=special), skip_special=False) == text


@given(st.text())
def test_shielded_text_is_plain_text(text):
    assert SMALL.encode(SMALL.shield(text), special=True) == SMALL.encode(text, special=False)


@given(st.lists(st.sampled_from([*CONTROL, "<", "|", "begin", "|>", "hello", " ", "\ufdd0", "\ufdd1"])).map("".join))
def test_no_spelling_escapes_the_shield(text):
    around = f"<|turn|>{SMALL.shield(text)}<|end|>"
    assert SMALL.encode(around, special=True) == [1, *SMALL.encode(text, special=False), 2]


def test_overlapping_spellings_are_shielded():
    tokens = ["<a>", ">b<", *SMALL_ALPHABET]
    types = [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * len(SMALL_ALPHABET)
    tokenizer = Tokenizer.from_vocabulary(Vocabulary("gpt2", "default", tokens, types))
    for text in ("<a>b<", "<a>b<a>", ">b<a>b<"):
        assert not {0, 1} & set(tokenizer.encode(tokenizer.shield(text), special=True))


SMALL_ALPHABET = [SMALL._pipeline.id_to_token(i) for i in range(3, 259)]


@given(st.lists(st.integers(0, 270)), st.integers(1, 5))
@settings(max_examples=200)
def test_streaming_equals_decoding(ids, step):
    detokenizer = SMALL.detokenizer(skip_special=False)
    pieces = [detokenizer.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    whole = "".join(pieces) + detokenizer.flush()
    assert whole == SMALL.decode(ids, skip_special=False)
    assert whole == b"".join(SMALL.piece(i) for i in ids).decode("utf-8", "replace")


@given(st.text())
def test_streaming_never_shows_half_a_character(text):
    detokenizer = SMALL.detokenizer()
    shown = ""
    for token in SMALL.encode(text):
        shown += detokenizer.push([token])
        assert text.startswith(shown)
    assert shown == text and detokenizer.flush() == ""


def test_ids_outside_the_vocabulary():
    assert SMALL.decode([100_000]) == "" and SMALL.decode([1 << 40]) == ""
    with pytest.raises(UserError, match="not a token id"):
        SMALL.decode([-1])


def test_lone_surrogates_are_refused():
    with pytest.raises(UserError, match="surrogate at character 1"):
        SMALL.encode("a\ud800")


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        (Vocabulary("gpt2", "default", [], []), "empty"),
        (Vocabulary("gpt2", "martian", ["a"], [1]), "'martian'"),
        (Vocabulary("bert", "default", ["a"], [1]), "'bert'"),
        (Vocabulary("gpt2", "default", ["a", "b"], [1]), "1 token types"),
        (Vocabulary("gpt2", "default", ["a", "b"], [1, 1], ["a c"]), "do not fit"),
        (Vocabulary("gpt2", "default", ["a", "b"], [1, 1], ["ab"]), "not a pair"),
        (Vocabulary("llama", "default", ["a", "b"], [1, 1], scores=[0.0]), "1 scores"),
    ],
)
def test_damaged_vocabularies_are_refused(vocabulary, words):
    with pytest.raises(UserError, match=words):
        vocabulary.build()


def sentencepiece_model(directory: Path) -> object:
    """A SentencePiece BPE model trained on the texts, the way Llama's was."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece, the oracle, is not installed")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS[6:30], *random_texts(300, 7)] * 2), model_writer=written, vocab_size=700,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.995, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def from_sentencepiece(oracle) -> Tokenizer:
    """As convert_hf_to_gguf.py writes such a model: pieces, scores, types."""
    kinds = {"is_unknown": TokenType.UNKNOWN, "is_control": TokenType.CONTROL, "is_byte": TokenType.BYTE}
    ids = range(oracle.get_piece_size())
    types = [next((kind for ask, kind in kinds.items() if getattr(oracle, ask)(i)), TokenType.NORMAL) for i in ids]
    vocabulary = Vocabulary(
        "llama",
        "default",
        [oracle.id_to_piece(i) for i in ids],
        types,
        scores=[oracle.get_score(i) for i in ids],
        unknown=0,
    )
    return Tokenizer.from_vocabulary(vocabulary, bos=1, eos=(2,), add_bos=True)


def test_sentencepiece_vocabularies_equal_sentencepiece(tmp_path):
    oracle = sentencepiece_model(tmp_path)
    tokenizer = from_sentencepiece(oracle)
    for text in [*TEXTS, *random_texts(300, 8)]:
        if "\0" in text or "▁" in text:  # sentencepiece ends at NUL, and cannot tell ▁ from a space
            continue
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == oracle.encode(text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("x")[0] == 1


def test_a_text_cannot_spell_sentencepiece_controls(tmp_path):
    tokenizer = from_sentencepiece(sentencepiece_model(tmp_path))
    assert not {0, 1, 2} & set(tokenizer.encode("a</s><s>b<unk>", add_bos=False))
    assert {1, 2} <= set(tokenizer.encode("a</s><s>b", add_bos=False, special=True))


def write_directory(directory: Path, tokenizer: Tokenizer, processor: object, config: dict[str, object]) -> None:
    description = json.loads(tokenizer._pipeline.to_str())
    (directory / "tokenizer.json").write_text(json.dumps(description | {"post_processor": processor}))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


ADDS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
}


@pytest.mark.parametrize(
    ("processor", "config", "adds"),
    [
        (None, {"bos_token": "<|begin|>", "eos_token": "<|end|>"}, False),
        (ADDS, {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}, True),
        (ADDS, {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": False}, False),
        (None, {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>", "add_bos_token": True}, True),
    ],
)
def test_from_a_directory(tmp_path, processor, config, adds):
    write_directory(tmp_path, SMALL, processor, config)
    tokenizer = Tokenizer.from_directory(tmp_path, eos=(1,))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (0, (1, 2), adds)
    for text in TEXTS:
        assert tokenizer.encode(text, add_bos=False) == SMALL.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("hello") == [0] * adds + SMALL.encode("hello")


def test_damaged_directories(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="tokenizer_config"):
        Tokenizer.from_directory(tmp_path)


ADDED = {"id": 3, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "Precompiled"),  # aborts
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "FixedLength"),  # panics at the first text
        ({"normalizer": {"type": "Prepend", "prepend": ""}}, "prepend"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}}, "pattern"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}}, "sequence"),
        ({"normalizer": {"type": "Sequence"}}, "without steps"),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 65}}, "limit is 64"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"added_tokens": [ADDED | {"content": "\ufdd0"}]}, "no text can tell"),  # would be shielded for ever
        ({"added_tokens": [ADDED | {"content": "a\ufdd1b"}]}, "no text can tell"),
    ],
)
def test_steps_the_library_cannot_be_trusted_with_are_refused(tmp_path, changes, words):
    write_directory(tmp_path, SMALL, None, {})
    tree = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree | changes), "utf-8")
    with pytest.raises(UserError, match=words):
        Tokenizer.from_directory(tmp_path)


def test_a_panic_of_the_library_is_a_sentence(tmp_path, capfd):
    """A regular expression that gives up; the library calls that a panic, which is no Exception."""
    write_directory(tmp_path, SMALL, None, {})
    tree = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    tree["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), "utf-8")
    tokenizer = Tokenizer.from_directory(tmp_path)
    with pytest.raises(UserError, match="cannot encode"):
        tokenizer.encode("a" * 60 + "!")
    assert tokenizer.encode("hell")  # and it is usable afterwards


@pytest.mark.parametrize("single", [{}, [], ["x"], [{"SpecialToken": "x"}], [{"SpecialToken": {"id": []}}], 5])
def test_post_processors_that_are_none_add_nothing(tmp_path, single):
    write_directory(tmp_path, SMALL, None, {})
    tree = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    for step in ({"type": "TemplateProcessing", "single": single}, {"type": "Sequence", "processors": [1, None, "x"]}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(tree | {"post_processor": step}), "utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin|>"}))
        assert starts_with_bos(tmp_path) is False


def test_a_token_that_is_not_unicode_is_refused(tmp_path):
    write_directory(tmp_path, SMALL, None, {"bos_token": "\ud800"})
    with pytest.raises(UserError, match="not Unicode"):
        Tokenizer.from_directory(tmp_path)


def test_a_token_whose_cuts_would_fill_the_memory_is_refused():
    vocabulary = Vocabulary("llama", "default", ["<unk>", "a", "a" * 70_000], [2, 1, 1], scores=[0.0, 0.0, 0.0])
    with pytest.raises(UserError, match="70000 characters"):
        vocabulary.build()


@pytest.mark.torch
def test_the_qwen2_split_is_that_of_transformers():
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert QWEN2_SPLIT == PRETOKENIZE_REGEX


@pytest.mark.torch
@pytest.mark.parametrize("family", ["qwen2"])
def test_byte_level_equals_transformers(family):
    """The published class, over a vocabulary trained here."""
    import tokenizers
    from transformers import Qwen2Tokenizer

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([*TEXTS, *random_texts(400, 9)] * 2, 900, show_progress=False)
    description = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in description["merges"]]
    oracle = Qwen2Tokenizer(vocab=description["vocab"], merges=merges)
    tokens = sorted(description["vocab"], key=description["vocab"].get)
    merged = [" ".join(merge) for merge in merges]
    tokenizer = Tokenizer.from_vocabulary(Vocabulary("gpt2", family, tokens, [1] * len(tokens), merged))
    for text in [*TEXTS, *random_texts(300, 10)]:
        if "<|endoftext|>" not in text:  # a token of its own in the oracle, which adds it to any vocabulary
            assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False), text
