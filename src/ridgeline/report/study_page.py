"""The study's page: one HTML file that needs no network and no script; plain words first, then plots, then the cells.

Reads Points and Findings; measures nothing. Every joule on it that no meter saw is called estimated, with its band.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from ridgeline.perf.study.cells import LENGTHS, MOE, RAG, VARIETY, Cell
from ridgeline.perf.study.findings import NO, UNTESTABLE, YES, Finding, sizes
from ridgeline.perf.study.fits import line, variation
from ridgeline.perf.study.measure import Record
from ridgeline.perf.study.points import ATTENTION, CORE, FFN, HEAD, NORMS, OTHER, Points, fixed_variation

from .charts import STYLE, Axis, Line, line_chart, share_bars
from .units import digits, joules, percent, scaled, seconds

CLASSES = (FFN, ATTENTION, CORE, NORMS, HEAD, OTHER)
NAMES = {ATTENTION: "attention, projections", CORE: "attention, core"}
MARKS = {YES: "yes", NO: "no", UNTESTABLE: "none"}
PAGE = """
  :root { --ink:#1f2328; --faint:#59636e; --rule:#dfe3e8; --page:#ffffff; --card:#f6f8fa; --yes:#1a7f37; --no:#b35900;
    --none:#59636e; --s0:#2a78d6; --s1:#d9730d; --s2:#16967a; --s3:#8a5cd1; --s4:#c2407a; --s5:#8b949e; }
  @media (prefers-color-scheme: dark) { :root { --ink:#f0f6fc; --faint:#9198a1; --rule:#30363d; --page:#0d1117;
    --card:#161b22; --yes:#3fb950; --no:#e3964a; --none:#9198a1; --s0:#4f9bf0; --s1:#ee9245; --s2:#2fbf9c;
    --s3:#a884e6; --s4:#e06a9f; --s5:#7d8590; } }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 68rem; background: var(--page); color: var(--ink);
    font: 1rem/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }
  h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
  h3 { font-size: 1rem; margin: 0 0 .35rem; } p { margin: .3rem 0 .7rem; } .faint, small { color: var(--faint); }
  .grid { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
  .tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); margin: 1rem 0; }
  .card, .tile { background: var(--card); border-radius: .6rem; padding: .8rem .9rem; }
  .tile b { display: block; font-size: 1.25rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
  .tile span { color: var(--faint); font-size: .84rem; }
  .finding { border-left: .28rem solid var(--none); margin: .6rem 0; }
  .finding.yes { border-color: var(--yes); } .finding.no { border-color: var(--no); }
  .badge { font-size: .8rem; font-weight: 600; color: var(--none); white-space: nowrap; }
  .yes .badge { color: var(--yes); } .no .badge { color: var(--no); }
  .finding p { margin: .2rem 0; } .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
  th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap; }
  tr { border-bottom: 1px solid var(--rule); }
  th:first-child, td:first-child { text-align: left; } summary { cursor: pointer; font-weight: 600; }
"""


def study_page(points: Points, found: Sequence[Finding]) -> str:
    """The whole page, as text."""
    header = points.header
    title = f"How {header.model} runs on this machine"
    return "\n".join([
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{PAGE}{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _about(points),
        _tiles(points, found),
        "<h2>What was found</h2>",
        "<p>Sixteen propositions of a published characterisation of inference on GPUs (arXiv 2512.01644), held against "
        "this run. The figure that decides stands in each.</p>",
        *(_finding(each) for each in found),
        *_plots(points),
        _method(points),
        _table(points),
        "</body></html>",
    ]) + "\n"  # fmt: skip


def _about(points: Points) -> str:
    header = points.header
    words = [
        f"{header.fingerprint.cpu}, {header.facts.threads} threads",
        f"weights {header.facts.weights}, KV {header.facts.kv}",
        f"begun {header.begun}",
    ]
    note = ""
    if header.facts.is_random:
        note = "<p><strong>Random weights:</strong> times are real, words are not.</p>"
    if any(record.energy_source == "estimate" for record in points.records):
        low, high = points.records[0].band
        note += (
            f"<p><strong>No meter here:</strong> every joule on this page is estimated from counted work and measured "
            f"time, and may be {low:g} to {high:g} times as much.</p>"
        )
    return f'<p class="faint">{escape("; ".join(words))}</p>{note}'


def _tiles(points: Points, found: Sequence[Finding]) -> str:
    counts = {mark: sum(each.mark == mark for each in found) for mark in MARKS}
    tiles = [(f"{counts[YES]} of {len(found)}", "reproduced"), (str(counts[NO]), "not reproduced"),
             (str(counts[UNTESTABLE]), "not testable here")]  # fmt: skip
    prefill = line(points.prefill(1024))
    if prefill is not None and prefill.b > 0:
        tiles.append((f"{digits(1 / prefill.b)}", "prompt tokens/s"))
    throughput = points.throughput()
    if throughput:
        tiles.append((digits(throughput[0][1]), "answer tokens/s, alone"))
        best = max(throughput, key=lambda point: point[1])
        tiles.append((digits(best[1]), f"answer tokens/s, {best[0]:.0f} at a time"))
    balanced = _balanced(points)
    if balanced is not None:
        per_token = points.median(balanced, lambda r: r.net_j / sum(r.answers))
        is_estimated = points.of(balanced)[0].energy_source == "estimate"
        low, high = points.of(balanced)[0].band
        word = f"an answer token, estimated [{joules(per_token * low)}–{joules(per_token * high)}]"
        tiles.append((joules(per_token), word if is_estimated else "an answer token"))
    cells = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(span)}</span></div>' for b, span in tiles)
    return f'<div class="tiles">{cells}</div>'


def _finding(each: Finding) -> str:
    note = f'<p class="faint">{escape(each.note)}</p>' if each.note else ""
    return (
        f'<div class="card finding {MARKS[each.mark]}" id="{each.id}"><h3>{each.id} '
        f'<span class="badge">{escape(each.mark)}</span></h3><p>{escape(each.claim)}</p>'
        f"<p>{escape(each.figure)}</p>{note}</div>"
    )


def _plots(points: Points) -> list[str]:
    groups = [
        ("Two phases", [_overtaking(points), _prefill(points)]),
        ("Where the time goes inside a step", [_shares(points, "prefill"), _shares(points, "decode"),
                                               _operators(points)]),
        ("Many at a time", [*_batch(points)]),
        ("How sure one can be", [_noise(points)]),
        ("Energy", [_energy(points)]),
        ("Other models (random weights)", [_sizes(points), _mixture(points)]),
        ("Retrieval", [_retrieval(points)]),
    ]  # fmt: skip
    out = []
    for title, cards in groups:
        shown = [card for card in cards if card]
        if shown:
            out.append(f'<h2>{escape(title)}</h2><div class="grid">{"".join(shown)}</div>')
    return out


def _card(title: str, words: str, chart: str) -> str:
    return (
        f'<div class="card"><h3>{escape(title)}</h3><p class="faint">{escape(words)}</p>{chart}</div>' if chart else ""
    )


def _overtaking(points: Points) -> str:
    lines = [Line(f"{output} answer tokens", points.prefill_share(output)) for output in points.outputs()]
    chart = line_chart(
        "Prefill's share", Axis("prompt tokens", is_log=True), Axis("", is_percent=True), lines, level=0.5
    )
    return _card(
        "Prefill's share of the time", "Where a line passes one half, the prompt costs more than the answer.", chart
    )


def _prefill(points: Points) -> str:
    fresh, cached = points.prefill(cached=False), points.prefill(cached=True)
    fit = line(points.prefill(1024))
    lines = [Line("no prefix hit", [(x, 1e3 * y) for x, y in fresh])]
    lines.append(Line("with a prefix hit", [(x, 1e3 * y) for x, y in cached]))
    if fit is not None and fresh:
        ends = (fresh[0][0], fresh[-1][0])
        lines.append(Line("line fitted up to 1,024", [(x, 1e3 * fit.at(x)) for x in ends], fitted=True))
    chart = line_chart("Prefill by uncached tokens", Axis("uncached prompt tokens"), Axis("ms"), lines)
    return _card(
        "Prefill by uncached tokens",
        "Tokens somebody computed before cost almost nothing; the line is fitted to the others.",
        chart,
    )


def _shares(points: Points, phase: str) -> str:
    rows = [
        (f"{cell.input:,}", {NAMES.get(name, name): share for name, share in points.shares(cell, phase).items()})
        for cell in points.cells(LENGTHS, cached=0)
        if points.shares(cell, phase)
    ]
    names = [NAMES.get(name, name) for name in CLASSES]
    what = "prompt tokens" if phase == "prefill" else "tokens of context"
    return _card(
        f"Operators in {phase}",
        f"Shares of the operators' time by {what}.",
        share_bars(f"{phase} operators", rows, names),
    )


def _operators(points: Points) -> str:
    lines = [
        Line(
            NAMES.get(group, group),
            [(x, 1e3 * y) for x, y in points.by_length("decode", group) if y > 0],
            colour=CLASSES.index(group),
        )
        for group in (FFN, CORE, HEAD)
    ]
    chart = line_chart("Decode step", Axis("tokens of context"), Axis("ms a step"), lines)
    return _card(
        "One answer token, by context", "Feed-forward and head stay; the attention core reads what is kept.", chart
    )


def _batch(points: Points) -> tuple[str, str]:
    batch = Axis("sequences at a time", is_log=True)
    throughput = line_chart("Throughput", batch, Axis("tokens/s"), [Line("all together", points.throughput())])
    latency = line_chart(
        "Latency", batch, Axis("ms a step"), [Line("a step", [(x, 1e3 * y) for x, y in points.latency()])]
    )
    return (
        _card("Throughput by batch", "Weights are read once for all: more at a time costs less each.", throughput),
        _card("Latency by batch", "The price: every answer waits for all the others' work in each step.", latency),
    )


def _noise(points: Points) -> str:
    fixed, runs = fixed_variation(points)
    natural = sorted(sum(r.seconds("decode") for r in points.of(cell)[:1]) for cell in points.cells(VARIETY))
    if not natural:
        return ""
    ranked = [(index + 1.0, 1e3 * value) for index, value in enumerate(natural)]
    repeat = f" Repeats of one length vary by {percent(fixed)} (n = {runs})." if runs else ""
    chart = line_chart("Decode time of natural answers", Axis("answers, shortest first"), Axis("ms of decode"),
                       [Line("an answer", ranked)])  # fmt: skip
    return _card(
        "Answers that end by themselves",
        f"Decode time of {len(natural)} sampled answers varies by {percent(variation(natural))}.{repeat}",
        chart,
    )


def _energy(points: Points) -> str:
    cell = _balanced(points)
    if cell is None:
        return ""
    estimated = points.of(cell)[0].energy_source == "estimate"
    low, high = points.of(cell)[0].band
    rows = []
    for each in points.cells("grid", batch=1, output=cell.output):
        records = points.of(each)
        whole = sum(r.net_j for r in records)
        by = {
            name: sum(r.phases[name].joules for r in records if name in r.phases) / whole
            for name in ("prefill", "decode")
        }
        rows.append((f"{each.input:,} in", by | {"host": max(0.0, 1 - sum(by.values()))}))
    word = f"Estimated, band {low:g} to {high:g} times. " if estimated else ""
    chart = share_bars("Energy by phase", rows, ("prefill", "decode", "host"))
    return _card(f"Energy above idle by phase, {cell.output} answer tokens", f"{word}Long prompts are not free.", chart)


def _sizes(points: Points) -> str:
    steps = [(parameters, 1e3 * points.seconds(cell, Record.step_s)) for parameters, cell in sizes(points)]
    chart = line_chart(
        "Step by model size", Axis("parameters", is_log=True), Axis("ms a step", is_log=True), [Line("q4_1", steps)]
    )
    names = ", ".join(cell.variant.partition(":")[0] for _, cell in sizes(points))
    return _card("One answer token, by model size", f"Random weights in q4_1: {names}.", chart)


def _mixture(points: Points) -> str:
    steps = [
        (cell.batch, 1e3 * points.seconds(cell, Record.step_s))
        for cell in points.cells(MOE)
        if cell.variant == "mixture"
    ]
    dense = {
        cell.variant: 1e3 * points.seconds(cell, Record.step_s)
        for cell in points.cells(MOE)
        if cell.variant != "mixture"
    }
    lines = [Line("mixture of 64, 2 active", steps)]
    lines += [
        Line(f"dense, {name} size, alone", [(steps[0][0], ms), (steps[-1][0], ms)], fitted=True)
        for name, ms in dense.items()
        if steps
    ]
    chart = line_chart("Mixture", Axis("sequences at a time", is_log=True), Axis("ms a step"), lines)
    return _card(
        "A mixture of experts", "Alone it costs its active part; together, more and more experts are read.", chart
    )


def _retrieval(points: Points) -> str:
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for cell in points.cells(RAG):
        searched = points.seconds(cell, lambda r: r.extra_s["search"])
        share = searched / (searched + points.seconds(cell, lambda r: r.extra_s.get("embed", 0.0) + r.wall_s))
        by_kind.setdefault(cell.variant, []).append((cell.vectors, share))
    names = {"flat": "exact search", "lists": "inverted lists (faiss)"}
    lines = [Line(names.get(kind, kind), series) for kind, series in by_kind.items()]
    chart = line_chart("Retrieval's share", Axis("vectors of 384", is_log=True), Axis("", is_percent=True), lines)
    return _card("Retrieval's share of a request", "Question embedded, three chunks found, 32 tokens answered.", chart)


def _method(points: Points) -> str:
    header, records = points.header, points.records
    cut = header.warm_cut
    spreads = [variation([r.wall_s for r in points.all_of(r.cell)]) for r in records if len(points.all_of(r.cell)) > 2]
    ratios = [r.predicted_s / (r.seconds("prefill") + r.seconds("decode")) for r in records if r.predicted_s]
    off = statistics.median(abs(ratio - 1) for ratio in ratios) if ratios else None
    warm = (
        f"{seconds(header.warm_s[0])} the first time, {seconds(header.warm_s[-1])} the last" if header.warm_s else "–"
    )
    lines = [
        f"Warm-up: the same small request {len(header.warm_s)} times ({warm}); "
        + (f"the first {cut} were cut." if cut < len(header.warm_s) else "never steady within 5 %: a busy machine."),
        f"{len(records)} measurements of {len({r.cell for r in records})} cells, in turn forwards and backwards; "
        f"medians are shown. {points.disturbed()} were disturbed by other work on this machine; where fewer than two "
        "of a cell were not, its fastest stands for it.",
        f"Noise: repeats of one cell vary by {percent(statistics.median(spreads))} (median)." if spreads else "",
        f"Our own estimate of a cell, made beforehand, is off by {percent(off)} (median)." if off is not None else "",
        f"Ceilings measured here: {scaled(header.ceilings.read_bytes_per_s, 'B/s')} read, "
        + ", ".join(f"{kind} {scaled(rate, 'FLOP/s')}" for kind, rate in header.ceilings.flops_per_s.items()) + ".",
        f"Prompts are random token ids, so nothing is shared by chance. Engine: {header.fingerprint.library}, "
        f"{', '.join(header.fingerprint.instruction_sets)}; options: "
        + (", ".join(f"{name} {value}" for name, value in header.options.items()) or "defaults") + ".",
    ]  # fmt: skip
    items = "".join(f"<li>{escape(each)}</li>" for each in lines if each)
    return f"<h2>How it was measured</h2><ul>{items}</ul>"


def _table(points: Points) -> str:
    head = ("cell", "n", "prefill ms", "step ms", "wall ms", "J above idle", "source", "disturbed")
    rows = []
    for cell in dict.fromkeys(record.cell for record in points.records):
        records = points.of(cell)
        low, high = records[0].band
        spent = points.median(cell, lambda r: r.net_j)
        band = f"{digits(spent)} [{digits(spent * low)}–{digits(spent * high)}]" if low != high else digits(spent)
        rows.append((
            cell.key, str(len(records)), digits(1e3 * points.median(cell, lambda r: r.seconds("prefill"))),
            digits(1e3 * points.seconds(cell, Record.step_s)), digits(1e3 * points.median(cell, lambda r: r.wall_s)),
            band, "estimated" if records[0].energy_source == "estimate" else records[0].energy_source,
            str(sum(r.is_disturbed for r in records)),
        ))  # fmt: skip
    body = "".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows)
    heads = "".join(f"<th>{escape(value)}</th>" for value in head)
    return (
        f'<h2>Every cell</h2><details><summary>{len(rows)} cells</summary><div class="wide"><table><tr>{heads}</tr>'
        f"{body}</table></div></details>"
    )


def _balanced(points: Points) -> Cell | None:
    """The cell that stands for a common request: the longest answers, a middling prompt."""
    cells = points.cells("grid", batch=1)
    return max(cells, key=lambda cell: (cell.output, cell.input == 256), default=None)
