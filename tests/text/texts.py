"""Strings that tokenizers get wrong."""

# ruff: noqa: E501
import random

TEXTS = (
    "", " ", "  ", "\n", "\n\n \n", "\t\t x", "a", "Hello, world!", " leading", "trailing ", "  two  spaces   three    ",
    "it's, they'll, I'M, don'T", "naïve café — “quotes” … ‘single’", "2024 12345 3.14159 1,000,000 x2y3", "price: $ 5  10",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n", "{\"k\": [1, 2, {\"a\": null}]}", "https://a.b/c?d=e&f#g",
    "日本語のテキスト、漢字とかな。", "한국어 문장입니다.", "العربية من اليمين", "हिन्दी में", "ไทย", "Ελληνικά Кириллица",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 🇫🇷 ✈️", "e\u0301 vs é", "zero\u200bwidth\u00a0nbsp\u3000wide", "\x00\x01\x7f", "\ufeffbom", "𝕳𝖊𝖑𝖑𝖔 𐍈",
    "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", "</s><s><unk>", "<0x0A>▁▁", "SHOUTING camelCase snake_case kebab-case",
    "¼ ² Ⅷ ٣ ３", "a\r\nb\rc", "....----====____****", "x" * 300, "word " * 200,
)  # fmt: skip


def random_texts(count: int, seed: int) -> list[str]:
    """Mixtures of letters, digits, blanks, punctuation and far planes."""
    chance = random.Random(seed)
    pools = (
        "abcdefghij ABC",
        "0123456789 .,",
        " \n\t\r",
        "'\"!?#$%&()*+-/:;<=>@[]^_{|}~",
        "éßñøж中文字かな한글",
        "😀🏽\u200d\u0301",
    )
    return ["".join(chance.choice(chance.choice(pools)) for _ in range(chance.randint(1, 60))) for _ in range(count)]
