"""Bar charts as SVG, written by hand: no dependency, sharp everywhere, readable on light and dark pages.

Rows share their labels; every panel has its own unit and scale (from zero, so that lengths may be compared). A row has
a measured bar and a predicted one under it; each bar carries its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from .units import digits

WIDTH, LABELS, MARGIN, GAP = 960, 250, 24, 36
ROW, NOTE, BAR, TOP, BOTTOM = 46, 15, 13, 92, 40  # NOTE: more of a row, where labels have a third line
NUMBERS = 92  # room right of the longest bar
STYLE = """
  svg { --ink:#1f2328; --faint:#59636e; --rule:#d1d9e0; --page:#ffffff; --measured:#0969da; --predicted:#f0a35c; }
  @media (prefers-color-scheme: dark) {
    svg { --ink:#f0f6fc; --faint:#9198a1; --rule:#3d444d; --page:#0d1117; --measured:#4493f8; --predicted:#d2843a; }
  }
  text { font-family: -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: var(--ink); }
  .title { font-size: 19px; font-weight: 600; } .faint { font-size: 12px; fill: var(--faint); }
  .label { font-size: 14px; font-weight: 600; } .number { font-size: 12px; font-variant-numeric: tabular-nums; }
  .note { font-size: 12px; fill: var(--measured); }
  .unit { font-size: 13px; font-weight: 600; }
  .page { fill: var(--page); } .rule { stroke: var(--rule); } .measured { fill: var(--measured); }
  .predicted { fill: var(--predicted); }
"""


@dataclass(frozen=True)
class Panel:
    """One measure: values by row, None where there is none."""

    name: str
    unit: str
    measured: Sequence[float | None]
    predicted: Sequence[float | None] = field(default_factory=tuple)


def bars(title: str, subtitle: str, labels: Sequence[tuple[str, ...]], panels: Sequence[Panel], footer: str) -> str:
    """A chart: `labels` are (name, what it is[, a note]) by row. Returns the SVG's text."""
    high = ROW + NOTE * any(len(label) > 2 for label in labels)
    height = TOP + high * len(labels) + BOTTOM
    width = (WIDTH - LABELS - 2 * MARGIN - GAP * (len(panels) - 1)) / len(panels)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
        _text(MARGIN, 34, "title", title),
        _text(MARGIN, 54, "faint", subtitle),
        *_legend(any(panel.predicted for panel in panels)),
    ]
    for row, (name, what, *notes) in enumerate(labels):
        y = TOP + high * row
        out += [
            f'<line class="rule" x1="{MARGIN}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}"/>',
            _text(MARGIN, y + 20, "label", name),
            _text(MARGIN, y + 36, "faint", what),
            *(_text(MARGIN, y + 36 + NOTE, "note", note) for note in notes),
        ]
    for index, panel in enumerate(panels):
        out += _panel(panel, MARGIN + LABELS + index * (width + GAP), width, high)
    out += [_text(MARGIN, height - 14, "faint", footer), "</svg>"]
    return "\n".join(out) + "\n"


def _panel(panel: Panel, left: float, width: float, high: int) -> list[str]:
    known = [value for value in (*panel.measured, *panel.predicted) if value is not None]
    per_unit = (width - NUMBERS) / max(known) if known and max(known) > 0 else 0.0
    out = [_text(left, TOP - 10, "unit", f"{panel.name} ({panel.unit})")]
    for kind, values, offset in (("measured", panel.measured, 8), ("predicted", panel.predicted, 8 + BAR + 3)):
        for row, value in enumerate(values):
            if value is None:
                continue
            y, length = TOP + high * row + offset, max(1.5, value * per_unit)
            out.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
                + _text(left + length + 6, y + 11, "number", digits(value))
            )
    return out


def _legend(has_predicted: bool) -> list[str]:
    out = []
    for place, (kind, word) in enumerate((("measured", "measured"), ("predicted", "predicted before the run"))):
        if kind == "predicted" and not has_predicted:
            continue
        x = WIDTH - MARGIN - 262 + place * 96
        out += [
            f'<rect class="{kind}" x="{x}" y="24" width="12" height="12" rx="2"/>',
            _text(x + 18, 34, "faint", word),
        ]
    return out


def _text(x: float, y: float, kind: str, content: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(content)}</text>'
