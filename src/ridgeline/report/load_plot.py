"""What a load run looked like, as one SVG: how latencies spread, and each request's by when it was meant to come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ridgeline.perf.replay import Replay

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, PANEL = 960, 400, 64, 84, 64, 380
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
SERIES = ("TTFT", "E2E")
STYLE = """
  svg { --ink:#1f2328; --faint:#59636e; --rule:#d1d9e0; --page:#ffffff; --bad:#cf222e;
    --TTFT:#0969da; --E2E:#d9730d; }
  @media (prefers-color-scheme: dark) {
    svg { --ink:#f0f6fc; --faint:#9198a1; --rule:#3d444d; --page:#0d1117; --bad:#f85149;
    --TTFT:#4493f8; --E2E:#ee9245; }
  }
  text { font: 12px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: var(--ink); }
  .title { font-size: 19px; font-weight: 600; } .faint { fill: var(--faint); } .rule { stroke: var(--rule); }
  polyline { fill: none; stroke-width: 2; } .TTFT { stroke: var(--TTFT); } .E2E { stroke: var(--E2E); }
  circle { fill-opacity: .55; stroke: none !important; } circle.TTFT { fill: var(--TTFT); }
  circle.E2E { fill: var(--E2E); } .bad { stroke: var(--bad); stroke-width: 1.5; } .page { fill: var(--page); }
"""


def load_plot(title: str, subtitle: str, run: Replay) -> str:
    """The SVG's text. Latency axes are logarithmic; requests without an answer are marks on the lower edge."""
    good = [one for one in run.requests if one.ttft_s is not None and one.e2e_s is not None]
    values = {
        "TTFT": [(one.arrival_s, one.ttft_s or 0.0) for one in good],
        "E2E": [(one.arrival_s, one.e2e_s or 0.0) for one in good],
    }
    failed = [one.arrival_s for one in run.requests if one.error is not None]
    height = _Log([value for points in values.values() for _, value in points])
    span_s = max((one.arrival_s for one in run.requests), default=0.0) or 1.0
    right = LEFT + PANEL + 96
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(24, 32, title, "title"), _text(24, 52, subtitle, "faint"),
        _text(LEFT, TOP - 10, "latency by share of requests (s, from intended arrival)"),
        _text(right, TOP - 10, "each request by its intended arrival (s)"),
    ]  # fmt: skip
    for left in (LEFT, right):
        out += [line for tick in height.ticks for line in _rule(left, height(tick), f"{tick:g}")]
    for share in SHARES:
        out.append(_text(LEFT + share * PANEL, HEIGHT - BOTTOM + 18, f"{share * 100:.0f} %", anchor="middle"))
    for share in (0.0, 0.5, 1.0):
        label = f"{share * span_s:.3g} s"
        out.append(_text(right + share * PANEL, HEIGHT - BOTTOM + 18, label, anchor="middle"))
    for place, name in enumerate(SERIES):
        known = sorted(value for _, value in values[name])
        last = max(1, len(known) - 1)
        line = " ".join(f"{LEFT + at / last * PANEL:.1f},{height(value):.1f}" for at, value in enumerate(known))
        out.append(f'<polyline class="{name}" points="{line}"/>')
        out += [
            f'<circle class="{name}" cx="{right + at_s / span_s * PANEL:.1f}" cy="{height(value):.1f}" r="2.4"/>'
            for at_s, value in values[name]
        ]
        x = LEFT + 130 * place
        out.append(f'<line class="{name}" x1="{x}" x2="{x + 22}" y1="{HEIGHT - 18}" y2="{HEIGHT - 18}"/>')
        out.append(_text(x + 28, HEIGHT - 14, name))
    for at_s in failed:
        mark = right + at_s / span_s * PANEL
        out.append(
            f'<line class="bad" x1="{mark:.1f}" x2="{mark:.1f}" y1="{HEIGHT - BOTTOM - 8}" y2="{HEIGHT - BOTTOM}"/>'
        )  # fmt: skip
    if failed:
        out.append(_text(LEFT + 260, HEIGHT - 14, f"red: {len(failed)} without an answer"))
    return "\n".join([*out, "</svg>"]) + "\n"


class _Log:
    """Seconds to a height, logarithmic."""

    def __init__(self, values: Sequence[float]) -> None:
        known = [value for value in values if value > 0] or [0.1, 1.0]
        low, high = math.log10(min(known)), math.log10(max(known))
        self._low: float = math.floor(low * 2) / 2
        self._high: float = math.ceil(high * 2 + 1e-9) / 2
        if self._high <= self._low:
            self._high = self._low + 0.5
        exponents = range(math.floor(self._low), math.ceil(self._high) + 1)
        marks = [mark * 10.0**power for power in exponents for mark in (1, 3)]
        self.ticks = [mark for mark in marks if self._low <= math.log10(mark) <= self._high]

    def __call__(self, value: float) -> float:
        share = (math.log10(max(value, 1e-6)) - self._low) / (self._high - self._low)
        return HEIGHT - BOTTOM - max(0.0, share) * (HEIGHT - TOP - BOTTOM)


def _rule(left: float, y: float, label: str) -> list[str]:
    return [
        f'<line class="rule" x1="{left}" x2="{left + PANEL}" y1="{y:.1f}" y2="{y:.1f}"/>',
        _text(left - 6, y + 4, label, "faint", "end"),
    ]


def _text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'
