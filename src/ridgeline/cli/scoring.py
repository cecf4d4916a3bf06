"""What `ridgeline eval` does."""

from __future__ import annotations

from contextlib import ExitStack, closing

import msgspec

from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.models.load import WEIGHTS, describe
from ridgeline.models.pull import TABLE, pull
from ridgeline.perf.quality import Scorer, measure_quality, named_text, windows_of
from ridgeline.report.units import digits, percent
from ridgeline.run.noise import CpuWatch

from .screen import Screen


class Comparison(msgspec.Struct, frozen=True):
    """What `eval` was asked. against: a weight format, or another model."""

    model: str
    text: str
    tokens: int
    against: str | None
    weights: str
    kv: str
    isa: str | None
    body: str
    threads: int | None
    activations: str

    def config(self) -> EngineConfig:
        return EngineConfig(
            self.model, weights=self.weights, kv=self.kv, isa=self.isa, body=self.body, threads=self.threads,
            activations=self.activations,
        )  # fmt: skip

    def parent(self) -> EngineConfig | None:
        if self.against is None:
            return None
        if self.against.partition(":")[0] in WEIGHTS:
            return EngineConfig(self.model, weights=self.against, isa=self.isa, threads=self.threads)
        return EngineConfig(self.against, isa=self.isa, threads=self.threads)


def evaluate(asked: Comparison, *, json: bool) -> None:
    """Score and print. UserError for a text that is too short, a model without tokenizer, or another vocabulary."""
    screen = Screen(json)
    if asked.tokens < 1:
        raise UserError(f"--tokens is {asked.tokens}; it must be at least 1.")
    config, parent = asked.config(), asked.parent()
    for each in (config, parent):
        if each is not None and each.model in TABLE:
            with screen.fetching(each.model) as progress:
                pull(each.model, progress)
    described = describe(asked.model, weights=asked.weights)
    screen.notes(asked.model, described.notes)
    tokenizer = described.tokenizer()
    if tokenizer is None:
        raise UserError(f"{asked.model} has no tokenizer, so a text cannot be turned into its tokens.")
    bos = described.spec.bos if described.spec.add_bos else None
    windows = windows_of(tokenizer.encode(named_text(asked.text), add_bos=False), asked.tokens, bos)
    watch = CpuWatch()
    with ExitStack() as stack:
        scorer = stack.enter_context(closing(Scorer(config)))
        other = None if parent is None else stack.enter_context(closing(Scorer(parent)))
        total = sum(len(window) - 1 for window in windows)
        with screen.counting("scoring tokens", total) as progress_of:
            result = measure_quality(
                scorer, other, windows, lambda token: len(tokenizer.piece(token)), asked.text, progress_of
            )
    rows = [
        ("text", f"{asked.text}: {result.tokens:,} tokens scored in {result.windows} windows"),
        ("perplexity", f"{digits(result.perplexity, 4)} a token, {digits(result.bits_per_byte)} bits a byte"),
    ]
    if result.kl is not None and result.parent_perplexity is not None and result.agreement is not None:
        change = result.perplexity / result.parent_perplexity - 1
        rows += [
            ("parent", f"{asked.against}: perplexity {digits(result.parent_perplexity, 4)} ({change:+.2%} here)"),
            ("KL divergence", f"{result.kl:.5f} nats a token in the mean, 99 % below {result.kl_p99:.4f}"),
            ("agreement", f"{percent(result.agreement)} of tokens have the same most likely one"),
        ]
    screen.table(("", ""), rows)
    if described.random:
        screen.say("random weights: these numbers say nothing about quality.")
    screen.finish("eval", asked=asked, quality=result, foreign_cpu_share=watch.foreign_cpu_share())
