"""A byte-level tokenizer small enough to build in a test: 256 bytes, a few merges, three control tokens."""

from ridgeline.text.alphabet import CHARACTER_OF_BYTE
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.text.vocabulary import TokenType, Vocabulary

CONTROL = ("<|begin|>", "<|turn|>", "<|end|>")


def small_tokenizer(add_bos: bool = False) -> Tokenizer:
    tokens = [*CONTROL, *CHARACTER_OF_BYTE.values(), "he", "ll", "hell", "hello", "Ġhello"]
    types = [TokenType.CONTROL] * len(CONTROL) + [TokenType.NORMAL] * (len(tokens) - len(CONTROL))
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello"]
    return Tokenizer.from_vocabulary(
        Vocabulary("gpt2", "default", tokens, types, merges), bos=0, eos=(2,), add_bos=add_bos
    )
