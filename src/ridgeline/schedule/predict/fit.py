"""fit: learns the length predictor from answers: L1 loss, Adam, stops when the validation part gets no better. To say
more than an answer that was cut short has is no error: nobody knows where it would have ended.

NumPy only, so the base install can learn. And the judge: mean absolute errors on answers nobody trained on, beside
predictors that look at nothing, at the position only, or at the prompt only.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import UserError

from .answers import Answers, Floats, Ints
from .mlp import Mlp

Flags = npt.NDArray[np.bool_]

HIDDEN = (320, 80, 16)  # for a width of 576; the paper's 2048, 512, 64 for 3584, as shares of the width
WIDTH = 576
BIN = 20  # output tokens that share one number of the position-only predictor
EDGES = (0, 1, 20, 50, 100, 200, 400)  # generated tokens that errors are told apart by
LONG = 200  # tokens of an answer that is watched from its beginning to its end


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How to learn. patience: epochs without a better validation error before it ends."""

    epochs: int = 100
    patience: int = 10
    batch: int = 256
    rate: float = 1e-3
    decay: float = 1e-2
    seed: int = 0


class Errors(msgspec.Struct, frozen=True):
    """Mean absolute errors, in tokens, over n looks whose answers had from..to (excluded) tokens then."""

    first: int
    last: int | None
    n: int
    mlp: float
    median: float
    position: float
    prompt: float


class Judged(msgspec.Struct, frozen=True):
    """On the test part. by_tokens: of all answers; long: those of answers of LONG tokens and more, so of the same
    answers on each line. cut: answers that were cut short."""

    answers: int
    cut: int
    all: Errors
    by_tokens: tuple[Errors, ...]
    long: tuple[Errors, ...]


def sizes_for(width: int) -> tuple[int, ...]:
    """Outputs of the layers but the last."""
    return tuple(max(8, size * width // WIDTH) for size in HIDDEN)


def fit(answers: Answers, course: Course = Course(), progress: Callable[[int], None] = lambda epoch: None) -> Mlp:
    """The network of the epoch with the least validation error. progress: called once an epoch."""
    train, validation = answers.looks("train"), answers.looks("validation")
    if not train.any() or not validation.any():
        raise UserError(f"{answers.total} answers are too few to learn from; make a hundred or more.")
    states, remaining = answers.states, answers.remaining
    mean, spread = states[train].mean(axis=0), states[train].std(axis=0) + np.float32(1e-3)
    scale = float(np.median(remaining[train])) or 1.0
    x, y = (states[train] - mean) / spread, remaining[train] / np.float32(scale)
    x_validation = (states[validation] - mean) / spread
    is_cut = answers.is_cut[answers.request].astype(bool)[train]
    random = np.random.default_rng(course.seed)
    learner = Learner((states.shape[1], *sizes_for(states.shape[1]), 1), random, course)
    best, best_error, since = learner.layers(), np.inf, 0
    for _ in range(course.epochs):
        order = random.permutation(len(x))
        for begin in range(0, len(x), course.batch):
            chosen = order[begin : begin + course.batch]
            learner.step(x[chosen], y[chosen], is_cut[chosen])
        guess = np.minimum(Mlp(learner.layers(), scale).remaining(x_validation), answers.room[validation])
        error, since = float(np.abs(guess - remaining[validation]).mean()), since + 1
        if error < best_error:
            best, best_error, since = learner.layers(), error, 0
        progress(1)
        if since >= course.patience:
            break
    (weight, bias), *others = best
    weight = weight / spread[:, None]  # the mean and spread of the inputs become part of the first layer
    return Mlp(((weight, (bias - mean @ weight).astype(np.float32)), *others), scale)


class Learner:
    """Weights, their gradients and Adam's moments."""

    def __init__(self, widths: Many[int], random: np.random.Generator, course: Course) -> None:
        self._course = course
        self._weights: list[Floats] = []
        for inputs, outputs in pairwise(widths):
            spread = np.sqrt(2 / inputs)
            self._weights += [
                (random.standard_normal((inputs, outputs)) * spread).astype(np.float32),
                np.zeros(outputs, np.float32),
            ]
        self._weights[-1][:] = 1  # the median of what is to be learned, before anything is
        self._first = [np.zeros_like(w) for w in self._weights]
        self._second = [np.zeros_like(w) for w in self._weights]
        self._steps = 0

    def layers(self) -> tuple[tuple[Floats, Floats], ...]:
        """A copy."""
        copies = [weight.copy() for weight in self._weights]
        return tuple(zip(copies[::2], copies[1::2], strict=True))

    def step(self, x: Floats, y: Floats, is_cut: Flags) -> None:
        """One step of Adam against the mean of |guess - y|, 0 for more than y where it is cut; weights decay, biases do
        not."""
        gradients = self.gradients(x, y, is_cut)
        self._steps += 1
        course, n = self._course, self._steps
        for weight, first, second, gradient in zip(
            self._weights, self._first, self._second, gradients, strict=True
        ):  # fmt: skip
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            moved = (first / (1 - 0.9**n)) / (np.sqrt(second / (1 - 0.999**n)) + 1e-8)
            if weight.ndim == 2:
                moved = moved + course.decay * weight
            weight -= (course.rate * moved).astype(np.float32)

    def gradients(self, x: Floats, y: Floats, is_cut: Flags) -> list[Floats]:
        """Of the loss by every weight and bias, in their order."""
        seen = [x]
        for weight, bias in zip(self._weights[:-2:2], self._weights[1:-2:2], strict=True):
            seen.append(np.maximum(seen[-1] @ weight + bias, 0))
        guess = (seen[-1] @ self._weights[-2] + self._weights[-1])[:, 0]
        slope = np.where(is_cut & (guess > y), 0, np.sign(guess - y))
        back = (slope / np.float32(len(y)))[:, None].astype(np.float32)
        gradients: list[Floats] = []
        for place in range(len(self._weights) - 2, -1, -2):
            inputs = seen[place // 2]
            gradients = [inputs.T @ back, back.sum(axis=0), *gradients]
            if place:
                back = (back @ self._weights[place].T) * (inputs > 0)
        return gradients


def judge(answers: Answers, network: Mlp) -> Judged:
    """Errors on the test part."""
    test = answers.looks("test")
    if not test.any():
        raise UserError(f"{answers.total} answers leave none to test with; make a hundred or more.")
    errors = _errors(answers, network)
    at, lengths = answers.at, answers.lengths[answers.request]
    owners = np.unique(answers.request[test])
    spans = list(zip(EDGES, (*EDGES[1:], None), strict=True))
    is_long = test & (lengths >= LONG)
    return Judged(
        len(owners), int(answers.is_cut[owners].sum()), _mean(errors, test, 0, None),
        tuple(_within(errors, test, at, spans)),
        tuple(_within(errors, is_long, at, [span for span in spans if span[0] < LONG])),
    )  # fmt: skip


def predictions(answers: Answers, network: Mlp) -> dict[str, Floats]:
    """[n] tokens still to come, by the name of who says so, none more than is allowed; what the others know comes from
    the train part."""
    train, remaining, at, room = answers.looks("train"), answers.remaining, answers.at, answers.room
    mlp = np.minimum(network.remaining(answers.states), room)
    bins = at // BIN
    by_bin = _medians(bins[train], remaining[train])
    begun = np.zeros(answers.total, np.float32)
    at_prompt = at == 0
    begun[answers.request[at_prompt]] = mlp[at_prompt]
    return {
        "mlp": mlp,
        "median": np.minimum(np.float32(np.median(remaining[train])), room),
        "position": np.minimum(by_bin[np.minimum(bins, len(by_bin) - 1)], room),
        "prompt": np.clip(begun[answers.request] - at, 1, room).astype(np.float32),
    }


def _medians(bins: Ints, values: Floats) -> Floats:
    """[largest bin + 1] median of each bin; an empty one has that of the bin before."""
    found = np.zeros(int(bins.max()) + 1, np.float32)
    for index in range(len(found)):
        inside = values[bins == index]
        found[index] = np.median(inside) if len(inside) else found[index - 1]
    return found


def _errors(answers: Answers, network: Mlp) -> dict[str, Floats]:
    return {name: np.abs(guess - answers.remaining) for name, guess in predictions(answers, network).items()}


def _within(errors: dict[str, Floats], chosen: Flags, at: Ints, spans: Many[tuple[int, int | None]]) -> list[Errors]:
    """Empty spans are left out."""
    rows = []
    for first, last in spans:
        inside = chosen & (at >= first) & (at < (last if last is not None else np.inf))
        if inside.any():
            rows.append(_mean(errors, inside, first, last))
    return rows


def _mean(errors: dict[str, Floats], chosen: Flags, first: int, last: int | None) -> Errors:
    return Errors(first, last, int(chosen.sum()), **{name: float(e[chosen].mean()) for name, e in errors.items()})
