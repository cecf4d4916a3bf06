"""Vocabulary: what a GGUF file says of its tokenizer, and the `tokenizers` pipeline made of it.

Byte-level BPE ("gpt2" with a known split) and SentencePiece BPE ("llama"); anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ridgeline.kit.errors import UserError

from .alphabet import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


# Every cut of a SentencePiece token is looked at; the longest token of the largest vocabulary known has 31 characters.
MAX_PIECE_CHARACTERS = 512


class TokenType(IntEnum):
    """tokenizer.ggml.token_type (GGUF specification)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Split:
    """How text is cut before merging. normalise: NFC first. whole: a piece that is a token needs no merges."""

    regex: str
    digits: bool = False
    normalise: bool = False
    whole: bool = False


SPLITS: Mapping[str, Split] = {
    "default": Split(GPT2_SPLIT),
    "gpt-2": Split(GPT2_SPLIT),
    "smollm": Split(GPT2_SPLIT, digits=True),  # SmolLM2's tokenizer.json: Digits(individual), then ByteLevel
    "qwen2": Split(QWEN2_SPLIT, normalise=True),  # Qwen2Tokenizer: NFC, then this split
    "llama-bpe": Split(LLAMA3_SPLIT, whole=True),
    "llama3": Split(LLAMA3_SPLIT, whole=True),
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """model: "gpt2" or "llama". types: TokenType per token. space_prefix: SentencePiece's dummy prefix."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    unknown: int | None = None
    space_prefix: bool = True

    def build(self) -> Tokenizer:
        """The pipeline. UserError for a tokenizer kind we cannot rebuild faithfully, or a damaged vocabulary."""
        if not self.tokens:
            raise UserError("the tokenizer's vocabulary is empty. Convert the model again.")
        if len(self.types) not in (0, len(self.tokens)):
            raise UserError(f"{len(self.types)} token types for {len(self.tokens)} tokens. Convert the model again.")
        if self.model == "gpt2":
            tokenizer = self._byte_level()
        elif self.model == "llama":
            tokenizer = self._sentencepiece()
        else:
            raise UserError(
                f"tokenizer kind {self.model!r} is not supported; known: gpt2 (byte-level BPE), llama (SPM)."
            )
        tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in self._of_type(TokenType.CONTROL)])
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t in self._of_type(TokenType.USER_DEFINED)])
        if tokenizer.get_vocab_size() != len(set(self.tokens)):
            raise UserError("the tokenizer's added tokens do not match its vocabulary. Convert the model again.")
        return tokenizer

    def _of_type(self, kind: TokenType) -> list[str]:
        return [token for token, type_ in zip(self.tokens, self.types, strict=False) if type_ == kind]

    def _byte_level(self) -> Tokenizer:
        split = SPLITS.get(self.pre)
        if split is None:
            raise UserError(f"the tokenizer splits text as {self.pre!r}; known splits: {', '.join(sorted(SPLITS))}.")
        literal = {TokenType.CONTROL, TokenType.USER_DEFINED}
        types = self.types or [TokenType.NORMAL] * len(self.tokens)
        ids = {}
        for index, (token, kind) in enumerate(zip(self.tokens, types, strict=True)):
            ids[token if kind in literal or _is_spelled(token) else _spell(token)] = index
        tokenizer = Tokenizer(_bpe(ids, [_pair(merge) for merge in self.merges], ignore_merges=split.whole))
        if split.normalise:
            tokenizer.normalizer = normalizers.NFC()
        cuts = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *cuts,
                pre_tokenizers.Split(Regex(split.regex), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _sentencepiece(self) -> Tokenizer:
        """SentencePiece BPE: merge the adjacent pair whose union scores best. Control tokens are never merged into."""
        if len(self.scores) != len(self.tokens):
            raise UserError(f"{len(self.scores)} scores for {len(self.tokens)} tokens. Convert the model again.")
        if (longest := max(map(len, self.tokens))) > MAX_PIECE_CHARACTERS:
            raise UserError(
                f"a token has {longest} characters; the limit is {MAX_PIECE_CHARACTERS}. The file is damaged."
            )
        ids = {token: index for index, token in enumerate(self.tokens)}
        unknown = None if self.unknown is None else self.tokens[self.unknown]
        merges = self._merges(ids)
        tokenizer = Tokenizer(_bpe(ids, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown))
        # a prefix at the start and after every special token, however the text begins: as SentencePiece does
        blanks = [normalizers.Prepend("▁")] if self.space_prefix else []
        tokenizer.normalizer = normalizers.Sequence([*blanks, normalizers.Replace(" ", "▁")])
        steps: list[object] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.space_prefix:
            steps.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer

    def _merges(self, ids: Mapping[str, int]) -> list[tuple[str, str]]:
        """Every way to cut a token into two tokens, best score first (then in vocabulary order)."""
        types = self.types or [TokenType.NORMAL] * len(self.tokens)
        usable = {
            token for token, kind in zip(self.tokens, types, strict=True)
            if kind in (TokenType.NORMAL, TokenType.USER_DEFINED)
        }  # fmt: skip
        ranked = sorted(usable, key=lambda token: (-self.scores[ids[token]], ids[token]))
        pairs = []
        for token in ranked:
            cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
            cuts = [(left, right) for left, right in cuts if left in usable and right in usable]
            pairs += sorted(cuts, key=lambda cut: (ids[cut[0]], ids[cut[1]]))
        return pairs


def _bpe(ids: dict[str, int], merges: list[tuple[str, str]], **options: object) -> models.BPE:
    try:
        return models.BPE(vocab=ids, merges=merges, **options)
    except Exception as error:  # the Rust side raises bare Exception
        raise UserError(
            f"the tokenizer's merges do not fit its vocabulary: {error}. Convert the model again."
        ) from error


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right) or " " in right:
        raise UserError(f"tokenizer merge {merge!r} is not a pair. Convert the model again.")
    return left, right


def _is_spelled(token: str) -> bool:
    return all(character in BYTE_OF_CHARACTER for character in token)


def _spell(token: str) -> str:
    return "".join(CHARACTER_OF_BYTE[byte] for byte in token.encode("utf-8"))
