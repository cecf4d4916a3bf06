"""A roofline as a file: SVG, one HTML page that needs no network, or PNG where matplotlib is installed."""

from __future__ import annotations

import importlib
import importlib.util
from html import escape
from pathlib import Path

from ridgeline.kit.errors import UserError

from .roofline_plot import svg
from .roofline_view import COLUMNS, Roofline, rows, sentence

SUFFIXES = (".html", ".svg", ".png")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 14px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; max-width: 980px;
    margin: 24px auto; padding: 0 12px; }}
  svg {{ width: 100%; height: auto; }} .point {{ cursor: pointer; outline: none; }}
  .point:hover .mark, .point:focus .mark {{ stroke: currentColor; fill-opacity: 1; }} .off {{ display: none; }}
  #tip {{ position: fixed; display: none; white-space: pre; padding: 6px 10px; border-radius: 6px; font-size: 13px;
    background: #24292f; color: #fff; pointer-events: none; z-index: 1; }}
  table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }} .wide {{ overflow-x: auto; }}
  td, th {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }}
  td:nth-child(-n+2), th:nth-child(-n+2), td:last-child, th:last-child {{ text-align: left; }}
</style></head><body>
<div id="phases"></div>
{picture}
<div id="tip" role="status"></div>
<p>{sentence}.</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<script>
  "use strict";
  const tip = document.getElementById("tip"), points = [...document.querySelectorAll(".point")];
  const show = (point, x, y) => {{
    tip.textContent = point.dataset.tell;
    tip.style.display = "block";
    tip.style.left = Math.min(x + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(y + 14, innerHeight - tip.offsetHeight - 8) + "px";
  }};
  for (const point of points) {{
    point.addEventListener("pointermove", (event) => show(point, event.clientX, event.clientY));
    point.addEventListener("pointerleave", () => {{ tip.style.display = "none"; }});
    point.addEventListener("focus", () => {{
      const box = point.getBoundingClientRect();
      show(point, box.right, box.bottom);
    }});
    point.addEventListener("blur", () => {{ tip.style.display = "none"; }});
  }}
  for (const phase of new Set(points.map((point) => point.dataset.phase))) {{
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {{
      for (const part of document.querySelectorAll(`[data-phase="${{phase}}"]`))
        part.classList.toggle("off", !box.checked);
    }});
    label.append(box, " " + phase + "  ");
    document.getElementById("phases").append(label);
  }}
</script></body></html>
"""


def check_file(path: Path) -> None:
    """UserError for what could not be written after a long run: an ending there is not, no folder, no matplotlib."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--roofline writes {', '.join(SUFFIXES)}, not {path.name!r}.")
    if not path.parent.is_dir():
        raise UserError(f"cannot draw into {path}: there is no folder {path.parent}.")
    if path.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "a PNG needs matplotlib, which is not installed: pip install matplotlib, or write .svg or .html."
        )


def write(roofline: Roofline, path: Path) -> None:
    """The file that its ending asks for."""
    check_file(path)
    if path.suffix == ".png":
        _write_png(roofline, path)
    else:
        path.write_text(page(roofline) if path.suffix == ".html" else svg(roofline), "utf-8")


def page(roofline: Roofline) -> str:
    """One file: the picture, what every mark says under the pointer, phases to be switched off, the table."""
    body = "\n".join(
        f'<tr data-phase="{escape(row[1])}">' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(roofline)
    )
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    return PAGE.format(
        title=escape(roofline.title), picture=svg(roofline, is_page=True), sentence=escape(sentence(roofline)),
        head=head, body=body,
    )  # fmt: skip


def _write_png(roofline: Roofline, path: Path) -> None:
    """With matplotlib, which is no dependency of ours: the same points and roofs, plainer."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(9.6, 6.0), dpi=120)
    axes = figure.subplots()
    peaks = [ceiling.per_s for ceiling in roofline.ceilings if not ceiling.is_slope] or [1.0]
    xs = [point.intensity or 1.0 for point in roofline.drawn] or [1.0]
    slopes = [ceiling.per_s for ceiling in roofline.ceilings if ceiling.is_slope and ceiling.is_over]
    right = max([*xs, *(max(peaks) / slope for slope in slopes)]) * 2.5
    for ceiling in roofline.ceilings:
        style = {"color": "black", "lw": 1.8} if ceiling.is_over else {"color": "grey", "lw": 0.8, "ls": "--"}
        end = max(peaks) / ceiling.per_s if ceiling.is_slope else right
        begin = min(xs) / 2.2 if ceiling.is_slope else ceiling.per_s / slopes[0] if slopes else min(xs)
        if begin < end:
            heights = [begin * ceiling.per_s, end * ceiling.per_s] if ceiling.is_slope else [ceiling.per_s] * 2
            axes.plot([begin, end], heights, label=ceiling.name, **style)
    for point in roofline.drawn:
        mark = {"decode": ("D", "tab:orange")}.get(point.phase, ("o", "tab:blue"))
        size = 30 + 400 * point.seconds / roofline.seconds
        axes.scatter([point.intensity], [point.achieved_flops_per_s], s=size, marker=mark[0], color=mark[1], alpha=0.8)
        axes.annotate(f" {point.name}", (point.intensity, point.achieved_flops_per_s), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte of weights and KV", ylabel="FLOP/s",
             title=f"{roofline.title}\n{roofline.subtitle}")  # fmt: skip
    axes.grid(True, which="major", lw=0.4)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)
