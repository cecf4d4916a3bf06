"""Where Ridgeline keeps files between runs. The only reader of RIDGELINE_HOME, the only variable of our own."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """RIDGELINE_HOME, or ~/.cache/ridgeline. Not created here: whoever writes creates its folder."""
    given = os.environ.get("RIDGELINE_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "ridgeline"
