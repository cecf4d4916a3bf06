"""Line charts and shares as inline SVG for pages: no dependency, no script, readable on a phone, light and dark.

Colours are the page's variables --s0 to --s5 (STYLE); every point carries its numbers in a title. Text stays in ink.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .units import digits

WIDTH, HEIGHT = 384, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 46
SERIES = 6  # colours there are
STYLE = """
  svg.chart { width: 100%; height: auto; display: block; }
  .chart text { fill: var(--ink); font-size: 13px; font-variant-numeric: tabular-nums; }
  .chart .faint { fill: var(--faint); } .chart .grid { stroke: var(--rule); stroke-width: 1; }
  .chart .axis { stroke: var(--faint); stroke-width: 1; } .chart .mark { stroke: var(--faint); stroke-dasharray: 4 4; }
  .chart polyline { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
  .chart .fitted { stroke-dasharray: 6 4; stroke-width: 1.6; }
  .legend { margin: .3rem 0 0; padding: 0; list-style: none; }
  .legend li { display: inline-block; margin: 0 .9rem .2rem 0; font-size: .84rem; color: var(--ink); }
  .legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem; }
""" + "".join(
    f".c{i} {{ stroke: var(--s{i}); }} .f{i} {{ fill: var(--s{i}); }} .b{i} {{ background: var(--s{i}); }}\n"
    for i in range(SERIES)
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """label: with its unit. is_log: base 2 or 10 by range; ticks lie on the points' own values then."""

    label: str
    is_log: bool = False
    is_percent: bool = False

    def write(self, value: float) -> str:
        return f"{value * 100:.0f} %" if self.is_percent else short(value)


def short(value: float) -> str:
    """20k, 1024, 0.5: a tick's label."""
    if 1000 <= abs(value) < 10_000:
        return f"{value:.0f}"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            text = f"{value / size:.3g}"
            return text + unit
    return f"{value:.3g}"


@dataclass(frozen=True)
class Line:
    """name: for the legend. fitted: drawn dashed and without dots."""

    name: str
    points: Sequence[Point]
    fitted: bool = False
    colour: int | None = None  # None: the next one


def line_chart(title: str, x: Axis, y: Axis, lines: Sequence[Line], level: float | None = None) -> str:
    """One chart with its legend, as HTML. level: a dashed horizontal line. Empty text when there is nothing to draw."""
    shown = [line for line in lines if line.points]
    points = [point for line in shown for point in line.points]
    if len(points) < 2:
        return ""
    scale_x = _Scale([px for px, _ in points], (LEFT, WIDTH - RIGHT), x.is_log, False)
    values = [py for _, py in points] + ([level] if level is not None else [])
    scale_y = _Scale(values, (HEIGHT - BOTTOM, TOP), y.is_log, True)
    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    for tick in scale_y.ticks():
        at = scale_y(tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(_text(LEFT - 7, at + 4.5, y.write(tick), "end"))
    for tick in scale_x.ticks():
        at = min(scale_x(tick), WIDTH - 4.5 * len(x.write(tick)))  # the last label stays inside the picture
        out.append(_text(at, HEIGHT - BOTTOM + 18, x.write(tick), "middle"))
    bottom = HEIGHT - BOTTOM
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label, "middle", "faint"))
    out.append(_text(LEFT - 46, TOP - 14, y.label, "start", "faint"))
    if level is not None:
        at = scale_y(level)
        out.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for index, line in enumerate(shown):
        out += _line(line, index if line.colour is None else line.colour, (scale_x, scale_y), (x, y))
    names = {line.name: index if line.colour is None else line.colour for index, line in enumerate(shown)}
    return "".join([*out, "</svg>", legend(names) if len(names) > 1 else ""])


def share_bars(title: str, rows: Sequence[tuple[str, Mapping[str, float]]], names: Sequence[str]) -> str:
    """Shares that sum to one, a bar a row, split by name in the order given, with the legend, as HTML."""
    if not rows:
        return ""
    bar, gap, left = 22, 9, 66
    height = len(rows) * (bar + gap) + 26
    width = WIDTH - left - RIGHT
    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">']
    for index, (label, shares) in enumerate(rows):
        y, x = index * (bar + gap) + 4, float(left)
        out.append(_text(left - 8, y + bar / 2 + 4.5, label, "end"))
        for colour, name in enumerate(names):
            length = width * shares.get(name, 0.0)
            told = f"{label}, {name}: {shares.get(name, 0.0):.1%}"
            if length > 0.3:
                out.append(
                    f'<rect class="f{colour}" x="{x:.1f}" y="{y}" width="{max(0.5, length - 1.5):.1f}" height="{bar}" '
                    f'rx="2"><title>{escape(told)}</title></rect>'
                )
            x += length
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(_text(left + width * tick, height - 6, f"{tick * 100:.0f} %", "end" if tick == 1 else "middle"))
    return "".join([*out, "</svg>", legend({name: index for index, name in enumerate(names)})])


def legend(names: Mapping[str, int]) -> str:
    items = "".join(f'<li><i class="b{colour % SERIES}"></i>{escape(name)}</li>' for name, colour in names.items())
    return f'<ul class="legend">{items}</ul>'


def _line(line: Line, colour: int, scales: tuple[_Scale, _Scale], axes: tuple[Axis, Axis]) -> list[str]:
    (scale_x, scale_y), (x, y), colour = scales, axes, colour % SERIES
    points = sorted(line.points)
    path = " ".join(f"{scale_x(px):.1f},{scale_y(py):.1f}" for px, py in points)
    out = [f'<polyline class="c{colour}{" fitted" if line.fitted else ""}" points="{path}"/>']
    if line.fitted:
        return out
    for px, py in points:
        told = f"{line.name}: {short(px)} {x.label}, {y.write(py) if y.is_percent else digits(py)} {y.label}"
        out.append(
            f'<circle class="f{colour}" cx="{scale_x(px):.1f}" cy="{scale_y(py):.1f}" r="3.6">'
            f"<title>{escape(told)}</title></circle>"
        )
    return out


class _Scale:
    """Values to places on the picture. From zero when it is a height and not logarithmic."""

    def __init__(self, values: Sequence[float], room: tuple[float, float], is_log: bool, is_height: bool) -> None:
        self._is_log = is_log and min(values) > 0
        self._values = sorted(set(values))
        low, high = self._values[0], self._values[-1]
        if self._is_log:
            low, high = math.log(low), math.log(high)
        elif is_height:
            low, high = min(0.0, low), high * 1.05 if high > 0 else 1.0
        self._low, self._span = low, (high - low) or 1.0
        self._room = room

    def __call__(self, value: float) -> float:
        at = math.log(value) if self._is_log else value
        begin, end = self._room
        return begin + (at - self._low) / self._span * (end - begin)

    def ticks(self) -> list[float]:
        if self._is_log:
            return self._log_ticks()
        step = 10 ** math.floor(math.log10(self._span))
        step = next(step * size for size in (0.2, 0.5, 1, 2, 5) if self._span / (step * size) <= 6)
        first = math.ceil(self._low / step - 1e-9)
        return [n * step for n in range(first, first + 12) if n * step <= self._low + self._span * 1.0001]

    def _log_ticks(self) -> list[float]:
        """The points' own values, while they do not touch; powers of ten when they are not our grid's."""
        values = self._values
        if len(values) > 14 or self._span > math.log(5000):
            low, high = math.floor(self._low / math.log(10)), math.ceil((self._low + self._span) / math.log(10))
            tens = [10.0**power for power in range(low, high + 1)]
            inside = [ten for ten in tens if self._low - 1e-9 <= math.log(ten) <= self._low + self._span + 1e-9]
            if len(inside) >= 2:
                return inside
        kept: list[float] = []
        apart = abs(self._room[1] - self._room[0]) / 11
        for value in values:
            if not kept or abs(self(value) - self(kept[-1])) >= apart:
                kept.append(value)
        return kept


def _text(x: float, y: float, content: str, anchor: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text{mark} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
