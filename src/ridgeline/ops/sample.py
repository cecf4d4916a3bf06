"""sample: choose or score one token per logit row. The one statement of our sampling semantics.

Order: logit_bias, repetition (divide positive logits, multiply negative ones), presence, frequency, mask; then greedy
when temperature == 0 (lowest id wins a tie), else temperature, top_k, top_p, min_p, and inverse-CDF over the kept
tokens from most to least likely with u = uniform(seed, choice, position). Log-probabilities are of the raw logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ridgeline.kit.cost import Cost
from ridgeline.state.plan import LogitRow, RowResult
from ridgeline.state.request import Sampling

from .batch import BatchShape
from .op import Line, Op
from .step import StepView

MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64 finaliser (Steele, Lea, Flood 2014): 64-bit integer hash."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else, so no schedule can change a draw (DESIGN promise 1)."""
    return (mix(mix(mix(seed) ^ choice) ^ position) >> 40) * 2.0**-24


def meaning(step: StepView, line: Line, logits: Any) -> Any:  # [logit_rows, vocabulary] -> [logit_rows, 1] ids
    import torch  # noqa: PLC0415  heavy and optional

    for index, row in enumerate(step.rows):
        step.results[index] = choose(logits[index].float(), row)
    return torch.tensor([[result.token] for result in step.results], device=logits.device).reshape(-1, 1)


def choose(logits: Any, row: LogitRow) -> RowResult:  # [vocabulary]
    sampling = row.sampling
    token, law = row.target, None
    if token < 0:
        adjusted = adjust(logits, row)
        if sampling.is_greedy:
            token = int(adjusted.argmax())
            law = adjusted.new_zeros(len(adjusted))
            law[token] = 1.0
        else:
            token, law = draw(adjusted, row)
    drawn_from = law.cpu().numpy() if row.law and law is not None else None
    if row.logprobs < 0:
        return RowResult(token, law=drawn_from)
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.sort(descending=True, stable=True)
    top = tuple((int(ids[i]), float(values[i])) for i in range(row.logprobs))
    return RowResult(token, float(logprobs[token]), int((logprobs > logprobs[token]).sum()), top, drawn_from)


def adjust(logits: Any, row: LogitRow) -> Any:
    """Bias and penalties, then the mask."""
    logits = logits.clone()
    for token, bias in row.sampling.logit_bias.items():
        logits[token] += bias
    if row.history is not None:
        penalise(logits, row.sampling, *row.history)
    if row.mask is not None:
        import torch  # noqa: PLC0415  heavy and optional

        is_allowed = np.unpackbits(row.mask.view(np.uint8), bitorder="little")[: len(logits)].astype(bool)
        logits[~torch.from_numpy(is_allowed).to(logits.device)] = -torch.inf
    return logits


def penalise(logits: Any, sampling: Sampling, known: tuple[int, ...], prompt: int) -> None:
    """known: all tokens, the first `prompt` of them the prompt's."""
    for token in dict.fromkeys(known):
        value = logits[token]
        logits[token] = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
    counts: dict[int, int] = {}
    for token in known[prompt:]:
        counts[token] = counts.get(token, 0) + 1
    for token, count in counts.items():
        logits[token] -= sampling.presence_penalty + sampling.frequency_penalty * count


def draw(logits: Any, row: LogitRow) -> tuple[int, Any]:
    """The token, and the law [vocabulary] it was drawn from."""
    sampling = row.sampling
    values, ids = (logits / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k:
        values, ids = values[: sampling.top_k], ids[: sampling.top_k]
    mass = (values - values[0]).exp()  # relative to the most likely token
    total = mass.sum()
    before = mass.cumsum(-1) - mass
    kept = before < sampling.top_p * total  # at least the first; the token that crosses top_p stays
    kept &= mass >= sampling.min_p
    mass = mass[kept]
    u = uniform(sampling.seed, row.choice, row.position)
    place = int((mass.cumsum(-1) <= u * mass.sum()).sum())
    law = logits.new_zeros(len(logits))
    law[ids[kept]] = mass / mass.sum()
    return int(ids[kept][min(place, len(mass) - 1)]), law


def cost(batch: BatchShape, line: Line) -> Cost:
    """One pass over the logits."""
    elements = line.inputs[0].width * batch.logit_rows
    return Cost(flops=elements, activation_bytes=4 * elements)


SAMPLE = Op("sample", meaning, cost, error={"": 0.0})
