"""What `ridgeline batch` does: reads, leaves out what is answered, starts an engine, writes answers as they come."""
# size: answer_file takes what a person asked for, by name

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.report.units import seconds
from ridgeline.serve.batch import Batch, BatchLine, answered, read_batch
from ridgeline.serve.door import Door
from ridgeline.serve.keys import Keys
from ridgeline.serve.served import Limits, Served

from .screen import Screen


def answer_file(
    source: Path, out: Path, model: str, name: str | None, options: dict[str, Any], *, json: bool
) -> None:  # fmt: skip
    """Exit code 0 when every line has an answer, be it that the request was wrong."""
    screen = Screen(json)
    lines = read_batch(source)
    if out.resolve() == source.resolve():
        raise UserError(f"{out} is the file that is read; give another OUT.")
    done = answered(out) & lines.keys()
    left = [line for custom_id, line in lines.items() if custom_id not in done]
    if done:
        screen.say(f"{len(done)} of {len(lines)} are answered in {out} already")
    began_s, failed = time.perf_counter(), 0
    if left:
        with screen.fetching(model) as progress:
            llm = LLM(model, progress=progress, **options)
        at_a_time = 2 * options["max_sequences"]
        with closing(llm), closing(Served(name or _named(left) or model, llm, Limits(queue_wait_s=1e9))) as served:
            screen.notes(model, llm.notes)
            with screen.counting(out.name, len(left)) as count:
                batch = Batch(Door([served], Keys()), out, at_a_time, count)
                asyncio.run(batch.run(left))
            failed = batch.failed
    took_s = time.perf_counter() - began_s
    screen.say(f"{len(left)} requests in {seconds(took_s)}, {failed} of them refused; {len(lines)} answers in {out}")
    screen.finish("batch", model=model, requests=len(lines), answered_before=len(done), failed=failed, seconds=took_s)


def _named(lines: list[BatchLine]) -> str:
    """The model that the first request names; a file made for another server runs as it is."""
    try:
        return str(msgspec.json.decode(lines[0].body, type=dict[str, Any]).get("model") or "")
    except msgspec.DecodeError:
        return ""
