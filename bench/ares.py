"""ARES/STAR (E5, E6): how well the remaining length of an answer is predicted, and what moving running requests by it
is worth, for real and simulated. The answers and the predictor are those of `ridgeline learn MODEL`.

python bench/ares.py predictor MODEL [--seeds 3]                    errors, traps, and unseen kinds of prompts
python bench/ares.py simulate MODEL [--engines 4] [--requests 400] [--seeds 3]
python bench/ares.py real MODEL [--rounds 3] [--out FILE] [--seconds S]     one prefill and two decode engines, here
Last line of stdout: one JSON document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ares_real import real
from ares_simulated import simulate

from ridgeline.models.load import describe
from ridgeline.schedule.predict.answers import PARTS, Answers, read_answers
from ridgeline.schedule.predict.fit import Course, fit, judge, predictions
from ridgeline.schedule.predict.mlp import Mlp, lengths_file

Json = dict[str, Any]
UNSEEN_KINDS = 6  # of five: every fifth or so is kept from training


# -- predictor


def of_part(answers: Answers, part: np.ndarray) -> Answers:
    """The same answers, split otherwise."""
    return Answers(
        answers.states, answers.at, answers.request, answers.lengths, answers.prompt_tokens, answers.kinds, part,
        answers.is_cut, answers.most,
    )  # fmt: skip


def without(answers: Answers, dropped: np.ndarray) -> Answers:
    """Without the looks at some requests."""
    kept = ~dropped[answers.request]
    return Answers(
        answers.states[kept], answers.at[kept], answers.request[kept], answers.lengths, answers.prompt_tokens,
        answers.kinds, answers.part, answers.is_cut,
    )  # fmt: skip


def mean_error(answers: Answers, network: Mlp) -> float:
    """Over all looks at the test part."""
    test = answers.looks("test")
    return float(np.abs(predictions(answers, network)["mlp"] - answers.remaining)[test].mean())


def predictor(model: str, seeds: int) -> Json:
    answers = read_answers(lengths_file(describe(model).spec.name, "answers"))
    found = []
    for seed in range(seeds):
        network = fit(answers, Course(seed=seed))
        judged = judge(answers, network)
        # The trap: answers that were cut short are dropped from training; all of the test part is judged.
        dropped = answers.is_cut.astype(bool) & (answers.part != PARTS.index("test"))
        trapped = mean_error(answers, fit(without(answers, dropped), Course(seed=seed)))
        # The other trap: looks, not requests, are split, so that a tested answer was seen in training.
        leaked = _leaked(answers, seed)
        kinds = np.where(answers.kinds % UNSEEN_KINDS == seed % UNSEEN_KINDS, PARTS.index("test"), answers.part)
        kinds = np.where(
            (kinds == PARTS.index("test")) & (answers.kinds % UNSEEN_KINDS != seed % UNSEEN_KINDS), 0, kinds
        )
        unseen = of_part(answers, kinds)
        other = judge(unseen, fit(unseen, Course(seed=seed)))
        found.append({
            "seed": seed, "judged": msgspec.to_builtins(judged), "dropped_cut_mlp": trapped, "leaked_mlp": leaked,
            "unseen_kinds": msgspec.to_builtins(other.all),
        })  # fmt: skip
        print(f"seed {seed}: {judged.answers} answers of the test part ({judged.cut} cut short)")
        for name, rows in (("all", [judged.all]), ("by tokens", judged.by_tokens), ("long", judged.long)):
            for row in rows:
                print(
                    f"  {name:10} {row.first:4} to {row.last or 'end':>4} n {row.n:5}  mlp {row.mlp:6.1f}  median "
                    f"{row.median:6.1f}  position {row.position:6.1f}  prompt only {row.prompt:6.1f}"
                )
        print(f"  cut answers dropped from training: {trapped:.1f}; split by look, not by request: {leaked:.1f}")
        means = (other.all.mlp, other.all.median, other.all.position)
        print("  kinds of prompts never trained on: mlp {:.1f}, median {:.1f}, position {:.1f}".format(*means))
    return {"answers": answers.total, "looks": len(answers.at), "cut": int(answers.is_cut.sum()), "seeds": found}


def _leaked(answers: Answers, seed: int) -> float:
    """Every look is a request of its own."""
    count = len(answers.at)
    part = np.random.default_rng(seed).choice(3, count, p=(0.7, 0.15, 0.15))
    rows = np.arange(count)
    apart = Answers(
        answers.states, answers.at, rows, answers.lengths[answers.request], rows, rows, part,
        answers.is_cut[answers.request], answers.most[answers.request],
    )  # fmt: skip
    return mean_error(apart, fit(apart, Course(seed=seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predictor", "simulate", "real"))
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--kv-tokens", type=int, default=48 * 700, help="that a simulated engine can keep")
    parser.add_argument("--link", default="", help="of the simulated link, as rate=100M; default: shared memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=Path("ares_real.jsonl"), help="rows that are there are not made again"
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which no row is begun")
    parser.add_argument("--wave", type=int, default=12, help="requests at a time")
    asked = parser.parse_args()
    if asked.what == "predictor":
        found = predictor(asked.model, asked.seeds)
    elif asked.what == "simulate":
        link = f",{asked.link}" if asked.link else ""
        found = simulate(asked.model, asked, link)
    else:
        found = real(asked.model, asked.rounds, asked.wave, asked.out, asked.seconds)
    print(json.dumps({"bench": f"ares {asked.what}", "model": asked.model, **found}))


if __name__ == "__main__":
    main()
