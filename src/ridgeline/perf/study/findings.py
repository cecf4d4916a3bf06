"""Findings: each proposition F1 to F16 held against what was measured, with the figure that decides (core.md A.2).

A mark is earned by a rule written here, not by eye. What this machine cannot show is not testable here, with what
stands in its place; an estimate never reproduces a claim about measured energy or about hardware counters.
"""

from __future__ import annotations

import itertools
import math

import msgspec

from .cells import MOE, RAG, SIZES, THREADS, VARIETY, WIDTH, Cell
from .fits import crossing, curve, curved_from, is_rising, line, plane, say, variation
from .measure import Record
from .points import ATTENTION, CORE, FFN, NORMS, ROUTING, Points, fixed_variation

YES, NO, UNTESTABLE = "reproduced", "not reproduced", "not testable here"
FITTED = 1024  # uncached tokens up to which prefill is fitted by a line (A11)
LINEAR = 0.98  # R2 that A11 asks for

FITTED_ON_TIMES = ("F5", "F7")
NOISY = (
    "Most measurements were disturbed by other work on this machine: this mark says more about it than of the model."
)

CLAIMS = {
    "F1": "Prefill uses arithmetic well, decode uses memory bandwidth well.",
    "F2": "For a given answer length prefill overtakes decode at some prompt length; longer answers move it right.",
    "F3": "Feed-forward and attention take over 90 % of the time in both phases.",
    "F4": "In prefill the feed-forward part leads at short prompts, the attention core at long ones.",
    "F5": "In decode the feed-forward part costs the same at every context, attention grows with it.",
    "F6": "Throughput rises with batch and saturates; the latency of a step only rises.",
    "F7": "Prefill time is a line in the uncached tokens; decode time is much less predictable.",
    "F8": "Nearly all energy is decode's; it follows output tokens and model size, hardly the input.",
    "F9": "Decode stalls on memory dependencies; the pipeline is busy 3 to 4 % of the time.",
    "F10": "LayerNorm's synchronisation stalls grow from 11 % to 28 % in decode.",
    "F11": "From prefill to decode attention's cache hit rate falls by over 70 %, use of memory bandwidth rises.",
    "F12": "The median kernel's use of memory bandwidth rises by 48 % from prefill to decode.",
    "F13": "Tensor parallelism speeds prefill up almost linearly, decode little or not at all.",
    "F14": "On edge devices bandwidth and power make the difference of the phases larger.",
    "F15": "A mixture's latency follows the parameters that are active; decode pays for routing.",
    "F16": "With a growing knowledge base the bottleneck of RAG moves to retrieval on the CPU.",
}


class Finding(msgspec.Struct, frozen=True):
    """A proposition and its mark. figure: what decides, in words with numbers; note: what to know beside it."""

    id: str
    claim: str
    mark: str
    figure: str
    note: str = ""


def findings(points: Points) -> list[Finding]:
    """All sixteen, in order, each once; what was not measured (no time, broken off) is not testable here."""
    rules = (
        phases, overtaking, two_parts, prefill_operators, decode_operators, batching, predictability, energy, stalls,
        synchronisation, caches, kernels, parallel, edge, mixture, retrieval,
    )  # fmt: skip
    found = []
    for name, rule in zip(CLAIMS, rules, strict=True):
        mark, figure, *note = rule(points) or (UNTESTABLE, "The cells it needs were not measured in the time there was")
        if name in FITTED_ON_TIMES and mark == NO and 2 * points.disturbed() > len(points.records):
            note = [f"{note[0] if note else ''} {NOISY}".strip()]
        found.append(Finding(name, CLAIMS[name], mark, figure, *note))
    return found


Verdict = tuple[str, str] | tuple[str, str, str] | None


def _mark(is_so: bool) -> str:
    return YES if is_so else NO


def phases(points: Points) -> Verdict:
    cell = _near(points, 512)
    if cell is None or points.median(cell, Record.step_s) <= 0:
        return None
    record = points.of(cell)[0]
    prefill, decode = record.phases["prefill"], record.phases["decode"]
    bandwidth, ridge = points.header.ceilings.read_bytes_per_s, points.header.ceilings.ridge()
    more_flops, more_bytes = prefill.flops_per_s / decode.flops_per_s, decode.bytes_per_s / prefill.bytes_per_s
    is_so = prefill.intensity > ridge and more_flops > 2 and more_bytes > 2 and decode.roof.endswith("bandwidth")
    return (
        _mark(is_so),
        f"At {cell.input} prompt tokens: intensity {say(prefill.intensity)} FLOP a byte in prefill, "
        f"{say(decode.intensity)} in decode. Prefill does {say(more_flops)} times decode's FLOP/s; decode reads "
        f"{say(more_bytes)} times prefill's bytes a second, {decode.bytes_per_s / bandwidth:.0%} of the bandwidth.",
        f"This machine's ridge is {say(ridge)} FLOP a byte (f32 peak over read bandwidth). Counted bytes, no counters.",
    )  # fmt: skip


def overtaking(points: Points) -> Verdict:
    crossings = {
        output: crossing(series, 0.5) for output in points.outputs() if len(series := points.prefill_share(output)) >= 3
    }
    known = {output: at for output, at in crossings.items() if at is not None}
    if not crossings:
        return None
    words = ", ".join(
        f"{output} output tokens: {'beyond the grid' if at is None else f'{at:.0f} input tokens'}"
        for output, at in crossings.items()
    )
    # Answers too long to cross inside the grid are no objection; a gap among those that crossed is.
    is_so = bool(known) and is_rising(list(known.values()), 0.0) and None not in _early(crossings)
    return _mark(is_so), f"Prefill's share passes one half at: {words}."


def two_parts(points: Points) -> Verdict:
    cell = _near(points, 512)
    if cell is None:
        return None
    shares = {phase: points.shares(cell, phase) for phase in ("prefill", "decode")}
    if not all(shares.values()):
        return None
    both = {phase: each[FFN] + each[ATTENTION] + each[CORE] for phase, each in shares.items()}
    head = shares["decode"].get("head", 0.0)
    return (
        _mark(min(both.values()) > 0.9),
        f"At {cell.input} tokens feed-forward and attention take {both['prefill']:.0%} of the operators' time in "
        f"prefill and {both['decode']:.0%} in decode.",
        f"The output head takes {head:.0%} of decode: a small model with a large vocabulary pays for it every step.",
    )


def prefill_operators(points: Points) -> Verdict:
    feed, core = points.by_length("prefill", FFN), points.by_length("prefill", CORE)
    if len(feed) < 4:
        return None
    at = crossing([(x, c / max(1e-12, f)) for (x, f), (_, c) in zip(feed, core, strict=True)], 1.0)
    longest = feed[-1][0]
    first, last = core[0][1] / feed[0][1], core[-1][1] / feed[-1][1]
    where = f"overtakes it at {at:.0f} tokens" if at else f"has not overtaken it at {longest:.0f} tokens"
    fitted_core, fitted_feed = curve(core), line(feed)
    beyond = ""
    if at is None and fitted_core is not None and fitted_feed is not None and fitted_core.c > 0:
        p, q = fitted_core.b - fitted_feed.b, fitted_core.a - fitted_feed.a
        root = (-p + math.sqrt(max(0.0, p * p - 4 * fitted_core.c * q))) / (2 * fitted_core.c)
        beyond = f" By the fitted curves it would at about {root:.0f} tokens." if root > longest else ""
    mark = _mark(first < 1 and last > first and at is not None and at > feed[0][0])
    return (
        UNTESTABLE if beyond and last > first else mark,  # it grows, and would cross beyond what fitted into the time
        f"The attention core takes {say(first)} of the feed-forward time at {feed[0][0]:.0f} tokens and {say(last)} at "
        f"{longest:.0f}; it {where}.",
        "The paper's lengths (1K to 8K, 16K) are for models of 7B and more: the crossing moves with the model's width."
        + beyond,
    )


def decode_operators(points: Points) -> Verdict:
    feed, core = points.by_length("decode", FFN), points.by_length("decode", CORE)
    fit = line(core) if len(core) >= 4 else None
    if fit is None:
        return None
    spread = max(s for _, s in feed) / min(s for _, s in feed)
    first, last = core[0][1] / feed[0][1], core[-1][1] / feed[-1][1]
    grown, longer = core[-1][1] / core[0][1], core[-1][0] / core[0][0]
    return (
        _mark(spread < 1.25 and fit.b > 0 and fit.r2 > 0.9),
        f"From {core[0][0]:.0f} to {core[-1][0]:.0f} tokens of context feed-forward time a step stays within "
        f"{spread - 1:.0%}; the attention core grows {say(grown)}-fold ({say(longer)}-fold context), "
        f"{say(1e9 * fit.b)} ns a token, R² {fit.r2:.3f}.",
        f"The core is {first:.0%} of the feed-forward time at the shortest context and {last:.0%} at the longest.",
    )


def batching(points: Points) -> Verdict:
    throughput, latency = points.throughput(), points.latency()
    if len(throughput) < 4:
        return None
    rates, steps = [y for _, y in throughput], [y for _, y in latency]
    gains = [later / earlier for earlier, later in itertools.pairwise(rates)]
    peak = max(range(len(rates)), key=rates.__getitem__)
    is_so = is_rising(rates[: peak + 1], 0.05) and gains[-1] < gains[0] and gains[-1] < 1.5 and is_rising(steps, 0.05)
    return (
        _mark(is_so),
        f"From batch {throughput[0][0]:.0f} to {throughput[-1][0]:.0f}: {say(rates[0])} to {say(rates[-1])} tokens/s "
        f"(most at {throughput[peak][0]:.0f}); a step goes from {say(1e3 * steps[0])} to {say(1e3 * steps[-1])} ms: "
        f"{say(rates[-1] / rates[0])} times the throughput for {say(steps[-1] / steps[0])} times the latency.",
        f"The first doubling gains {say(gains[0])} times, the last {say(gains[-1])} times.",
    )  # fmt: skip


def predictability(points: Points) -> Verdict:
    series = points.prefill(FITTED)
    fit = line(series) if len(series) >= 4 else None
    if fit is None:
        return None
    bent = curve(points.prefill())
    start = curved_from(bent) if bent else None
    missed = variation([seconds / fit.at(tokens) for tokens, seconds in series])
    natural = [sum(r.seconds("decode") for r in points.of(cell)[:1]) for cell in points.cells(VARIETY)]
    hits = len(points.prefill(FITTED, cached=True))
    spreads, runs = fixed_variation(points)
    bend = f"The quadratic term passes 10 % from {start:.0f} tokens on." if start else "No curvature was found."
    figure = (
        f"Prefill = {say(1e3 * fit.a)} ms + {say(1e6 * fit.b)} µs a token up to {FITTED}, R² {fit.r2:.4f} over {fit.n} "
        f"points, {hits} of them with prefix hits. {bend}"
    )
    note = _hit_words(points)
    if len(natural) < 5:
        return (
            _mark(fit.r2 >= LINEAR), figure,
            f"The second half (decode varies) needs answers of natural length; this model has no text to stop. {note}",
        )  # fmt: skip
    varied = variation(natural)
    return (
        _mark(fit.r2 >= LINEAR and varied > 2 * missed and varied > spreads),
        f"{figure} Decode of answers of natural length varies by {varied:.0%} (n = {len(natural)}), of fixed length by "
        f"{spreads:.1%} (n = {runs}), prefill about its line by {missed:.1%}.",
        note,
    )


def energy(points: Points) -> Verdict:
    records = [record for record in points.records if record.cell.group == "grid" and record.cell.batch == 1]
    rows = [(float(record.cell.output), float(record.cell.input)) for record in records]
    fit = plane(rows, [record.net_j for record in records])
    if fit is None:
        return None
    (fixed, an_output, an_input), r2 = fit
    low, high = records[0].band
    is_estimated = records[0].energy_source == "estimate"
    source = f"estimated, band {low:g} to {high:g} times" if is_estimated else records[0].energy_source
    balanced = [r for r in records if r.cell.input == 256 and r.cell.output == max(points.outputs())]
    decode = sum(r.phases["decode"].joules for r in balanced) / sum(r.net_j for r in balanced) if balanced else None
    figure = (
        f"{say(1e3 * an_output)} mJ an output token, {say(1e3 * an_input)} mJ an input token, {say(1e3 * fixed)} mJ a "
        f"request, R² {r2:.3f} ({source})."
    )
    if decode is not None:
        figure += f" Decode's share at 256 in, {max(points.outputs())} out: {decode:.0%} ({source})."
    if is_estimated:
        return UNTESTABLE, figure, "No meter here. The estimate follows measured times, so it cannot confirm the claim."
    is_so = an_output > 5 * an_input and (decode or 0.0) > 0.5
    return _mark(is_so), figure, "Long inputs are not free: both coefficients are given."


def stalls(points: Points) -> Verdict:
    return UNTESTABLE, "Pipeline stalls are hardware counters; a virtual machine shows none."


def synchronisation(points: Points) -> Verdict:
    cell = _near(points, 512)
    shares = {} if cell is None else {phase: points.shares(cell, phase) for phase in ("prefill", "decode")}
    if not all(shares.values()) or not shares:
        return UNTESTABLE, "Stall reasons are hardware counters."
    return (
        UNTESTABLE,
        f"Stall reasons are hardware counters. In their place: norms and residual adds take "
        f"{shares['prefill'][NORMS]:.1%} of the operators' time in prefill, {shares['decode'][NORMS]:.1%} in decode.",
    )


def caches(points: Points) -> Verdict:
    counted = points.header.intensities
    if not counted:
        return UNTESTABLE, "Cache hit rates are hardware counters."
    feed = {phase: groups.get(FFN, 0.0) for phase, groups in counted.items()}
    core = {phase: groups.get(CORE, 0.0) for phase, groups in counted.items()}
    return (
        UNTESTABLE,
        f"Cache hit rates are hardware counters. Counted in their place: feed-forward intensity {say(feed['prefill'])} "
        f"to {say(feed['decode'])} FLOP a byte from prefill to decode (the paper: about 95 to 8), attention core "
        f"{say(core['prefill'])} to {say(core['decode'])}.",
    )


def kernels(points: Points) -> Verdict:
    cell = _near(points, 512)
    bandwidth = points.header.ceilings.read_bytes_per_s
    if cell is None:
        return UNTESTABLE, "Counters by kernel are not readable here."
    phases = points.of(cell)[0].phases
    if "decode" not in phases:
        return UNTESTABLE, "Counters by kernel are not readable here."
    return (
        UNTESTABLE,
        f"Counters by kernel are not readable here. Bytes that had to move, over the measured bandwidth: "
        f"{phases['prefill'].bytes_per_s / bandwidth:.0%} in prefill, "
        f"{phases['decode'].bytes_per_s / bandwidth:.0%} in decode.",
    )


def parallel(points: Points) -> Verdict:
    words = "One socket, and the engine runs one model in one process: there is no tensor parallelism to measure."
    cells = points.cells(THREADS)
    if len(cells) < 2:
        return UNTESTABLE, words
    one, all_of = cells[0], cells[-1]

    def gain(phase: str) -> float:
        return points.seconds(one, lambda r: r.seconds(phase)) / points.seconds(all_of, lambda r: r.seconds(phase))

    return (
        UNTESTABLE,
        f"{words} Cores in place of devices: from {one.variant} to {all_of.variant} threads prefill is "
        f"{gain('prefill'):.2f} times as fast, decode {gain('decode'):.2f} times.",
    )


def edge(points: Points) -> Verdict:
    return (
        UNTESTABLE,
        "No edge device here; `ridgeline predict --bandwidth --flops` counts one, which measures nothing.",
    )


def mixture(points: Points) -> Verdict:
    cells = {(cell.variant, cell.batch): cell for cell in points.cells(MOE)}
    names = ("mixture", "active", "whole")
    if not all((name, 1) in cells for name in names):
        return None
    one = {name: points.seconds(cells[name, 1], Record.step_s) for name in names}
    at = (one["mixture"] - one["active"]) / (one["whole"] - one["active"])
    record = points.of(cells["mixture", 1])[0].phases["decode"]
    routing = sum(record.parts_s.get(part, 0.0) for part in ROUTING) / sum(record.parts_s.values())
    batch = max(batch for name, batch in cells if name == "mixture")
    grown = points.seconds(cells["mixture", batch], Record.step_s) / one["mixture"]
    return (
        _mark(at < 0.25 and routing > 0),
        f"At batch 1 a step takes {say(1e3 * one['mixture'])} ms; {say(1e3 * one['active'])} in a dense model of the "
        f"active size, {say(1e3 * one['whole'])} in one of the whole size: {at:.0%} of the way. Routing takes "
        f"{routing:.0%} of its operators' time.",
        f"Random weights. It holds at batch 1 only: at batch {batch} more experts are read and a step takes "
        f"{say(grown)} times as long.",
    )  # fmt: skip


def retrieval(points: Points) -> Verdict:
    cells = [cell for cell in points.cells(RAG) if cell.variant == "flat"]
    if len(cells) < 3:
        return None
    series = []
    for cell in cells:
        searched = points.seconds(cell, lambda r: r.extra_s["search"])
        whole = searched + points.seconds(cell, lambda r: r.extra_s.get("embed", 0.0) + r.wall_s)
        series.append((cell.vectors, searched, whole))
    shares = [searched / whole for _, searched, whole in series]
    fit = line([(n, searched) for n, searched, _ in series])
    rest = series[-1][2] - series[-1][1]
    closed = rest * points.header.ceilings.read_bytes_per_s / (4 * WIDTH)
    crossed = crossing([(n, share) for (n, *_), share in zip(series, shares, strict=True)], 0.5)
    beyond = rest / fit.b if fit is not None and fit.b > 0 else math.inf
    where = f"passes one half at {say(crossed)} vectors" if crossed else f"would pass one half at {say(beyond)} vectors"
    others = ", ".join(
        f"{cell.variant}: {say(1e3 * points.seconds(cell, lambda r: r.extra_s['search']))} ms at {cell.vectors:,}"
        for cell in points.cells(RAG)
        if cell.variant != "flat" and cell.vectors == cells[-1].vectors
    )
    embed = points.seconds(cells[0], lambda r: r.extra_s.get("embed", 0.0))
    return (
        _mark(is_rising(shares, 0.05) and crossed is not None),
        f"Exact search takes {shares[0]:.1%} of a request at {series[0][0]:,} vectors and {shares[-1]:.1%} at "
        f"{series[-1][0]:,}; its share {where}. By bytes alone (generation time x bandwidth / {4 * WIDTH} bytes a "
        f"vector): {say(closed)}.",
        f"Generation takes {say(1e3 * (rest - embed))} ms, embedding the question "
        + (f"{say(1e3 * embed)} ms (MiniLM, outside the engine). " if embed else "was not measured (no extra). ")
        + (f"An index moves it out ({others})." if others else "No index library is installed."),
    )  # fmt: skip


def sizes(points: Points) -> list[tuple[float, Cell]]:
    """Cells of the size sweep by parameters (in `variant`: name:parameters)."""
    return sorted((float(cell.variant.rpartition(":")[2]), cell) for cell in points.cells(SIZES))


def _hit_words(points: Points) -> str:
    """What the largest prefix hit saves of the first token's time, beside the same prompt computed whole."""
    pairs = [
        (cell, whole)
        for cell in points.cells("lengths")
        for whole in points.cells("lengths", input=cell.input, cached=0)
        if cell.cached
    ]
    if not pairs:
        return ""
    hit, whole = max(pairs, key=lambda pair: (pair[0].cached, -pair[0].input))
    times = points.seconds(whole, lambda r: r.first_s) / points.seconds(hit, lambda r: r.first_s)
    return (
        f"A prefix hit of {hit.cached} in {hit.input} tokens brings the first token {say(times)} times sooner "
        f"({say(1e3 * points.seconds(hit, lambda r: r.first_s))} instead of "
        f"{say(1e3 * points.seconds(whole, lambda r: r.first_s))} ms)."
    )


def _near(points: Points, tokens: int) -> Cell | None:
    cells = points.cells("lengths", cached=0)
    return min(cells, key=lambda cell: abs(cell.input - tokens)) if cells else None


def _early(crossings: dict[int, float | None]) -> list[float | None]:
    """Up to the longest answer that crossed inside the grid."""
    last = max((output for output, at in crossings.items() if at is not None), default=0)
    return [at for output, at in crossings.items() if output <= last]
