"""The measured workloads: what every engine is asked, as token ids and output lengths. All requests come at time 0.

W1: one request, 128 in, 128 out.   W2-n: one, n in, 1 out (time to first token).   D32: 32 equal ones, 128 in, 128 out.
W3: 64 requests, lognormal lengths (input: mean 200, sigma 0.8, 16 to 1024; output: mean 100, sigma 0.7, 8 to 256).
W4: 64 requests, 512 shared and 32 own tokens in, 32 out.   Token ids are uniform in 1000..30000 and salted by
repetition, so that no prefix cache helps from one to the next.   python bench/workloads.py W3 --repetition 0 > w3.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import random
from typing import NamedTuple

NAMES = ("W1", "W2-<n>", "D32", "W3", "W4")
FIRST_ID, LAST_ID = 1000, 30000
SEED = 0
SHARED_TOKENS, OWN_TOKENS = 512, 32  # of W4


class Lengths(NamedTuple):
    """A lognormal law by its mean, clipped."""

    mean: float
    sigma: float
    least: int
    most: int

    def draw(self, random_numbers: random.Random) -> int:
        mu = math.log(self.mean) - self.sigma**2 / 2
        return max(self.least, min(self.most, round(random_numbers.lognormvariate(mu, self.sigma))))


INPUT, OUTPUT = Lengths(200, 0.8, 16, 1024), Lengths(100, 0.7, 8, 256)


def lengths(name: str, requests: int | None = None) -> list[tuple[int, int]]:
    """(tokens in, tokens out) of each request; the same for every repetition. `requests`: fewer than W3, W4 have."""
    if name == "W1":
        return [(128, 128)]
    if name.startswith("W2-") and name[3:].isdigit() and int(name[3:]):
        return [(int(name[3:]), 1)]
    if name == "D32":
        return [(128, 128)] * 32
    if name == "W3":
        random_numbers = random.Random(SEED)
        return [(INPUT.draw(random_numbers), OUTPUT.draw(random_numbers)) for _ in range(requests or 64)]
    if name == "W4":
        return [(SHARED_TOKENS + OWN_TOKENS, 32)] * (requests or 64)
    raise SystemExit(f"unknown workload {name!r}. Known: {', '.join(NAMES)}.")


def workload(name: str, repetition: int, requests: int | None = None) -> list[dict[str, object]]:
    salted = random.Random(f"{name} {SEED} {repetition}")
    shared = [salted.randint(FIRST_ID, LAST_ID) for _ in range(SHARED_TOKENS if name == "W4" else 0)]
    return [
        {
            "prompt_ids": shared + [salted.randint(FIRST_ID, LAST_ID) for _ in range(tokens_in - len(shared))],
            "output_tokens": tokens_out,
        }
        for tokens_in, tokens_out in lengths(name, requests)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(NAMES))
    parser.add_argument("--repetition", type=int, default=0)
    arguments = parser.parse_args()
    for line in workload(arguments.name, arguments.repetition):
        print(json.dumps(line))
