"""Rooflines as SVG, written by hand like plots.py: log axes, roofs, a mark for every operator and phase.

Owns where things stand; labels never cover one another. Draws what it is given; a run without timed operators is an
empty picture that says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from ridgeline.perf.roofline import Ceiling, OperatorPoint

from .plots import STYLE
from .roofline_view import Roofline
from .units import PREFIXES, digits, percent, scaled, seconds

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 84, 936, 84, 530  # of the axes
LETTER, LINE = 6.6, 14  # about, of a label
FOOTER_LETTERS = 140
COLOURS = {"prefill": "--prefill", "decode": "--decode", "recompute": "--recompute"}
ROOFLINE_STYLE = (
    STYLE
    + """
  svg { --prefill:#0969da; --decode:#bc4c00; --recompute:#8250df; --roof:#1f2328; }
  @media (prefers-color-scheme: dark) {
    svg { --prefill:#4493f8; --decode:#f0883e; --recompute:#a371f7; --roof:#f0f6fc; }
  }
  .grid { stroke: var(--rule); stroke-width: 0.6; } .roof { stroke: var(--roof); stroke-width: 2; fill: none; }
  .other { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 5 4; fill: none; }
  .gap { stroke-width: 1; stroke-dasharray: 2 3; opacity: 0.7; } .leader { stroke: var(--faint); stroke-width: 0.8; }
  .mark { stroke: var(--page); stroke-width: 1.2; fill-opacity: 0.85; } .small { font-size: 12px; }
"""
)
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Axes:
    """Log scales: x FLOPs per byte, y FLOP/s."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, points: tuple[OperatorPoint, ...], ceilings: tuple[Ceiling, ...]) -> Axes:
        over = [ceiling for ceiling in ceilings if ceiling.is_over]
        peaks = [ceiling.per_s for ceiling in over if not ceiling.is_slope] or [1e9]
        ridges = [peak / ceiling.per_s for ceiling in over if ceiling.is_slope for peak in peaks] or [1.0]
        xs = [point.intensity or 1.0 for point in points] + ridges
        ys = [point.achieved_flops_per_s for point in points if point.achieved_flops_per_s > 0] + peaks
        return cls((min(xs) / 2.2, max(xs) * 2.5), (min(ys) / 1.8, max(peaks) * 2))

    def px(self, intensity: float) -> float:
        low, high = map(math.log10, self.x)
        return LEFT + (math.log10(intensity) - low) / (high - low) * (RIGHT - LEFT)

    def py(self, rate: float) -> float:
        low, high = map(math.log10, self.y)
        return BOTTOM - (math.log10(rate) - low) / (high - low) * (BOTTOM - TOP)


def svg(roofline: Roofline, *, is_page: bool = False) -> str:
    """The picture. is_page: marks carry what a page shows when the pointer is over them."""
    axes = Axes.around(roofline.drawn, roofline.ceilings)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(roofline.title, quote=True)}">',
        f"<title>{escape(roofline.title)}</title><style>{ROOFLINE_STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(24, 34, "title", roofline.title), _text(24, 54, "faint", roofline.subtitle),
        *_legend(roofline), *_grid(axes),
    ]  # fmt: skip
    taken: list[Box] = []
    out += _roofs(axes, roofline.ceilings, taken)
    out += _marks(axes, roofline, taken, is_page)
    if not roofline.drawn:
        out.append(_text(LEFT + 20, TOP + 40, "label", "no operator was timed: nothing to draw"))
    lines = textwrap.wrap(roofline.footer, FOOTER_LETTERS)[:2]
    out += [_text(24, HEIGHT - 10 - 15 * (len(lines) - 1 - at), "faint", line) for at, line in enumerate(lines)]
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _grid(axes: Axes) -> Iterator[str]:
    for value in _ticks(*axes.x):
        at = axes.px(value)
        yield f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{BOTTOM}"/>'
        yield _text(at, BOTTOM + 18, "faint", digits(value, 1), "middle")
    for value in _ticks(*axes.y):
        at = axes.py(value)
        yield f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{RIGHT}" y2="{at:.1f}"/>'
        yield _text(LEFT - 8, at + 4, "faint", _short(value), "end")
    yield _text((LEFT + RIGHT) / 2, BOTTOM + 38, "faint", "FLOPs per byte of weights and KV", "middle")
    turned = f"translate(20 {(TOP + BOTTOM) / 2}) rotate(-90)"
    yield f'<text class="faint" text-anchor="middle" transform="{turned}">FLOP/s</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Decades, and halves of them where few decades are shown."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(decades) > 5 else (1, 3)
    return [step * 10.0**power for power in decades for step in steps if low <= step * 10.0**power <= high]


def _roofs(axes: Axes, ceilings: tuple[Ceiling, ...], taken: list[Box]) -> Iterator[str]:
    """Slopes up to the highest peak, flat roofs from the ridge on; each with its name, clear of other names."""
    over = [ceiling for ceiling in ceilings if ceiling.is_over]
    top = max((c.per_s for c in over if not c.is_slope), default=axes.y[1])
    slope = next((c.per_s for c in over if c.is_slope), None)
    # a roof's own name first: names of others make room
    for ceiling in sorted(ceilings, key=lambda c: not c.is_over):
        kind = "roof" if ceiling.is_over else "other"
        name = f"{ceiling.name} {scaled(ceiling.per_s, 'B/s' if ceiling.is_slope else 'FLOP/s')}"
        if ceiling.is_slope:
            begin = max(axes.x[0], axes.y[0] / ceiling.per_s)
            end = min(axes.x[1], top / ceiling.per_s)
            if begin >= end:
                continue
            yield _line(
                kind, axes.px(begin), axes.py(begin * ceiling.per_s), axes.px(end), axes.py(end * ceiling.per_s)
            )
            yield from _slope_name(axes, ceiling, name, (begin, end), taken)
        elif ceiling.per_s < axes.y[1]:
            begin = max(axes.x[0], ceiling.per_s / slope if slope else axes.x[0])
            y = axes.py(ceiling.per_s)
            yield _line(kind, axes.px(begin), y, RIGHT, y)
            box = (RIGHT - LETTER * len(name), y - 6 - LINE, RIGHT, y - 4)
            if not _hits(box, taken):
                taken.append(box)
                yield _text(RIGHT - 4, y - 7, "small" if ceiling.is_over else "faint", name, "end")


def _slope_name(axes: Axes, ceiling: Ceiling, name: str, ends: tuple[float, float], taken: list[Box]) -> Iterator[str]:
    """Along the slope, where nothing else stands; left out when there is no room."""
    (x1, y1), (x2, y2) = ((axes.px(at), axes.py(at * ceiling.per_s)) for at in ends)
    length = math.hypot(x2 - x1, y2 - y1)
    angle = math.degrees(math.atan2(y2 - y1, x2 - x1))
    width = LETTER * len(name)
    for share in (0.12, 0.3, 0.5):
        at_x, at_y = x1 + share * (x2 - x1), y1 + share * (y2 - y1)
        reach = width / max(length, 1e-9)
        if share + reach > 1:
            return
        end_x, end_y = at_x + reach * (x2 - x1), at_y + reach * (y2 - y1)
        # a slanted name as a row of small boxes
        boxes = [
            (at_x + part * (end_x - at_x) - 9, at_y + part * (end_y - at_y) - 16,
             at_x + part * (end_x - at_x) + 9, at_y + part * (end_y - at_y) + 2)
            for part in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
        ]  # fmt: skip
        if not any(_hits(box, taken) for box in boxes):
            taken += boxes
            kind = "small" if ceiling.is_over else "faint"
            yield (
                f'<text class="{kind}" transform="translate({at_x:.1f} {at_y:.1f}) rotate({angle:.2f}) '
                f'translate(0 -6)">{escape(name)}</text>'
            )
            return


def _marks(axes: Axes, roofline: Roofline, taken: list[Box], is_page: bool) -> Iterator[str]:
    """Gaps first, then marks, then names: what is read lies on top."""
    placed = []
    for point in roofline.drawn:
        x, y = axes.px(point.intensity or 1.0), axes.py(point.achieved_flops_per_s)
        radius = 4 + 14 * math.sqrt(point.seconds / roofline.seconds)
        placed.append((point, x, y, radius))
        if point.ceiling_flops_per_s is not None:
            up = axes.py(point.ceiling_flops_per_s)
            ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{up:.1f}"'
            yield f'<line class="gap" data-phase="{point.phase}" stroke="{_colour(point)}" {ends}/>'
    for point, x, y, radius in placed:
        data = f' data-tell="{escape(told(point, roofline), quote=True)}" tabindex="0"' if is_page else ""
        yield f'<g class="point" data-phase="{point.phase}"{data}>{_mark(point, x, y, radius)}</g>'
    solid: list[Box] = [(x - r, y - r, x + r, y + r) for _, x, y, r in placed]
    for point, x, y, radius in placed:
        yield from _name(point, (x, y, radius), taken, solid)


def _mark(point: OperatorPoint, x: float, y: float, radius: float) -> str:
    if point.phase == "decode":  # a diamond, so that phases differ without colours
        shape = f"M{x:.1f} {y - radius:.1f}L{x + radius:.1f} {y:.1f}L{x:.1f} {y + radius:.1f}L{x - radius:.1f} {y:.1f}Z"
        return f'<path class="mark" fill="{_colour(point)}" d="{shape}"/>'
    return f'<circle class="mark" fill="{_colour(point)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'


def _name(point: OperatorPoint, mark: tuple[float, float, float], taken: list[Box], solid: list[Box]) -> Iterator[str]:
    """Beside the mark where there is room, further off with a line to it where there is none nearer."""
    x, y, radius = mark
    label = f"{point.name} {percent(point.share or 0.0)}"
    width = LETTER * len(label)
    for far in (0, 16, 34, 56, 84, 120, 160):
        for step_x, step_y in ((1, 0), (-1, 0), (0.7, 1), (0.7, -1), (-0.7, 1), (-0.7, -1), (0, 1), (0, -1)):
            middle_x = x + step_x * (radius + 6 + far + width / 2)
            middle_y = y + step_y * (radius + 4 + far + LINE / 2)
            box = (middle_x - width / 2, middle_y - LINE / 2, middle_x + width / 2, middle_y + LINE / 2)
            inside = box[0] > LEFT and box[2] < RIGHT and box[1] > TOP and box[3] < BOTTOM
            if inside and not _hits(box, taken) and not _hits(box, solid):
                taken.append(box)
                leader = ""
                if far:
                    near_x = min(max(x, box[0]), box[2])
                    near_y = min(max(y, box[1]), box[3])
                    leader = _line("leader", x, y, near_x, near_y)
                text = _text(middle_x, middle_y + 4, "small", label, "middle")
                yield f'<g data-phase="{point.phase}">{leader}{text}</g>'
                return


def told(point: OperatorPoint, roofline: Roofline) -> str:
    """What a mark says when asked: lines of a tip."""
    lines = [
        f"{point.name}, {point.phase} ({point.kind})",
        f"{seconds(point.seconds)}, {percent(point.seconds / roofline.seconds)} of operators",
        f"{scaled(point.flops, 'FLOP')}, {scaled(point.stored_bytes, 'B')} stored bytes",
        f"reached {scaled(point.achieved_flops_per_s, 'FLOP/s')}",
    ]
    if point.ceiling_flops_per_s is not None and point.intensity is not None:
        lines += [
            f"{digits(point.intensity)} FLOP/byte: ceiling {scaled(point.ceiling_flops_per_s, 'FLOP/s')}",
            f"{percent(point.share or 0.0)} of it ({point.roof}), {seconds(max(0.0, point.gap_s or 0.0))} lost",
        ]
    return "\n".join(lines)


def _short(value: float) -> str:
    """A tick: 300 G, 1 T."""
    power = math.floor(math.log10(value) / 3 + 1e-9)
    return f"{digits(value / 1000**power, 1)} {PREFIXES[power] if 0 <= power < len(PREFIXES) else ''}"


def _legend(roofline: Roofline) -> Iterator[str]:
    phases = list(dict.fromkeys(point.phase for point in roofline.drawn))
    for place, phase in enumerate(phases):
        x = RIGHT - 96 * (len(phases) - place)
        shape = OperatorPoint(phase, "", "f32", 0.0, 0.0, 0.0, 0.0)
        yield _mark(shape, x, 30, 6) + _text(x + 12, 34, "faint", phase)


def _hits(box: Box, others: list[Box]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def _colour(point: OperatorPoint) -> str:
    return f"var({COLOURS.get(point.phase, '--ink')})"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, kind: str, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'
