"""What `ridgeline bench URL` does: a load against a server that is there already, ours or another's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.perf.arrivals import Ask, Lengths, in_turn, poisson, read_trace
from ridgeline.perf.http_load import Aim, HttpLoad
from ridgeline.perf.replay import Replay
from ridgeline.report.load_plot import load_plot
from ridgeline.report.units import digits, percent, seconds
from ridgeline.run.noise import CpuWatch

from .benchmark import is_busy, print_spreads
from .screen import Screen


@dataclass(frozen=True)
class Load:
    """What the options of `bench URL` say. rate None and no trace: clients ask in turn."""

    rate: float | None = None
    cv: float = 1.0
    clients: int = 1
    trace: Path | None = None
    speed: float = 1.0
    requests: int | None = None
    prompt_tokens: int = 128
    output_tokens: int = 64
    most_tokens: int | None = None
    slo: str | None = None
    seed: int = 0

    @property
    def kind(self) -> str:
        if self.trace is not None:
            return f"trace {self.trace.name}" + (f" at {self.speed:g} x" if self.speed != 1 else "")
        if self.rate is None:
            return f"{self.clients} clients in turn"
        return f"{'Poisson' if self.cv == 1 else f'gamma, cv {self.cv:g},'} {self.rate:g} a second"


def key_in(path: Path | None) -> str | None:
    """The first word of the file. UserError when there is none."""
    if path is None:
        return None
    try:
        return path.read_text("utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise UserError(f"cannot read a key in {path}: {error or 'it is empty'}.") from error


def measure_url(aim: Aim, load: Load, plot: Path | None, *, json: bool) -> None:
    """Send the load, print what was measured."""
    screen = Screen(json)
    limits = parse_slo(load.slo)
    asks = asks_of(load)
    if plot is not None and plot.suffix != ".svg":
        raise UserError(f"--plot {plot} must end in .svg.")
    watch = CpuWatch()
    with screen.counting(load.kind, len(asks)) as progress:
        sender = HttpLoad(aim, progress)
        run = sender.run(asks, load.clients)
    foreign = watch.foreign_cpu_share()
    _say(screen, run, load, limits)
    if foreign is not None and is_busy(foreign):
        screen.say(f"others used {percent(foreign)} of this machine's processor time meanwhile (a server here counts)")
    if plot is not None:
        plot.write_text(load_plot(f"Load on {aim.url}", _headline(run, load), run), "utf-8")
        screen.say(f"drawn into {plot}")
    screen.finish(
        "bench_url", url=aim.url, load=msgspec.to_builtins(load, enc_hook=str), requests=run.requests,
        summary=run.summary, errors=_errors(run), goodput_per_s=goodput(run, limits), foreign_cpu_share=foreign,
    )  # fmt: skip


def asks_of(load: Load) -> list[Ask]:
    """Everything that will be sent."""
    lengths = Lengths(load.prompt_tokens, load.output_tokens)
    if min(lengths.prompt, lengths.output) < 1 or load.clients < 1 or load.speed <= 0:
        raise UserError("--prompt-tokens, --output-tokens and --clients must be at least 1, --speed positive.")
    if load.trace is not None:
        return read_trace(load.trace, load.requests, load.speed, load.most_tokens)
    count = load.requests or 100
    if load.rate is None:
        return in_turn(count, lengths, load.seed)
    return poisson(load.rate, count, lengths, load.seed, load.cv)


def parse_slo(text: str | None) -> dict[str, float]:
    """ "ttft=0.5,tpot=0.05" in seconds. UserError for anything else."""
    found: dict[str, float] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if name not in ("ttft", "tpot", "e2e") or found[name] <= 0:
            raise UserError(
                f"{part!r} is no limit; write ttft=0.5, tpot=0.05 or e2e=10 (seconds), with commas between."
            )
    return found


def goodput(run: Replay, limits: dict[str, float]) -> float:
    """Requests a second that met every limit."""
    good = [
        one for one in run.requests
        if one.error is None and all((getattr(one, f"{name}_s") or 0.0) <= most for name, most in limits.items())
    ]  # fmt: skip
    return len(good) / run.summary.wall_s if run.summary.wall_s > 0 else 0.0


def _errors(run: Replay) -> dict[str, int]:
    return dict(Counter(one.error for one in run.requests if one.error is not None).most_common(16))


def _headline(run: Replay, load: Load) -> str:
    summary = run.summary
    return (
        f"{load.kind}: {summary.requests} requests in {seconds(summary.wall_s)}, "
        f"{digits(summary.output_tokens_per_s)} output tokens/s, {digits(summary.requests_per_s)} requests/s"
    )


def _say(screen: Screen, run: Replay, load: Load, limits: dict[str, float]) -> None:
    summary = run.summary
    screen.say(_headline(run, load))
    print_spreads(screen, summary)
    if limits:
        screen.say(f"goodput under {load.slo}: {digits(goodput(run, limits))} requests/s")
    for error, count in _errors(run).items():
        screen.say(f"{count} x {error}")
    if summary.is_void:
        screen.say(f"void: requests were sent up to {seconds(summary.late_s)} late, so this is not the load asked")
