"""Keeper: starts one worker on the machine it runs on, and knows when it ends. What Ray carries to other machines.

Says and hears strings only. The worker's standard input is held open here: it ends when this process does.
"""

from __future__ import annotations

import socket
import subprocess
import sys


class Keeper:
    """An actor of rayhosts.py; one worker in its life."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None

    def start(self, call: str, name: str, secret: str) -> str:
        """The worker's process id and the machine's name."""
        command = (sys.executable, "-P", "-m", "ridgeline.worker", "--call", call, "--name", name)
        worker = self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2)
        if worker.stdin is not None:
            worker.stdin.write(f"{secret}\n".encode())
            worker.stdin.flush()
        return f"{worker.pid} {socket.gethostname()}"

    def wait(self) -> str:
        """Its exit code, once it has ended."""
        return "" if self._worker is None else str(self._worker.wait())

    def kill(self) -> str:
        if self._worker is not None:
            self._worker.kill()
        return ""
