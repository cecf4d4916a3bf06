"""What `ridgeline pull` does."""

from __future__ import annotations

from ridgeline.kit.errors import UserError
from ridgeline.models.pull import TABLE, find, pull
from ridgeline.report.units import nbytes

from .screen import Screen


def fetch(name: str | None, *, is_listing: bool, json: bool) -> None:
    """Pull `name`, or list the table. UserError when neither or an unknown name was given."""
    screen = Screen(json)
    if is_listing:
        known = {entry: find(entry) for entry in TABLE}
        rows = [
            (entry, nbytes(TABLE[entry].bytes), TABLE[entry].licence, str(path or "not here"))
            for entry, path in known.items()
        ]
        screen.table(("name", "size", "licence", "file"), rows)
        screen.finish("pull", models={entry: None if path is None else str(path) for entry, path in known.items()})
        return
    if name is None:
        raise UserError(f"no model was named. Known: {', '.join(TABLE)}. `ridgeline pull --list` tells more.")
    with screen.fetching(name) as progress:
        path = pull(name, progress)
    screen.say(f"{name} is at {path}")
    screen.finish("pull", name=name, path=str(path), bytes=path.stat().st_size, licence=TABLE[name].licence)
