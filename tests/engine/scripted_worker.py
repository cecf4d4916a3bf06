"""An engine process on the scripted model, for tests of the client: ridgeline.worker with another engine inside.

The model's name in the config says how it misbehaves: "scripted", "scripted:slow", "scripted:fails-at-start",
"scripted:fails-at-step", "scripted:silent-exit".
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from typing import Any

from scripted import scripted_engine

from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.engine.process import serve
from ridgeline.kit.errors import CapacityError
from ridgeline.state.plan import StepPlan, StepResult


class Counting:
    """An observer that can give account."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.steps, self.finished = 0, 0

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        self.steps += 1

    def on_finish(self, sequence: Any, reason: str, at_s: float) -> None:
        self.finished += 1

    def table(self) -> dict[str, int]:
        return {"steps": self.steps, "finished": self.finished}


def make_engine(config: EngineConfig) -> Engine:
    manner = config.model.partition(":")[2]
    if manner == "fails-at-start":
        raise CapacityError("it does not fit: 3 GiB short.")
    if manner == "silent-exit":
        os._exit(5)
    engine = scripted_engine(sequences=8, step_tokens=64, observer=Counting())
    if manner in ("slow", "fails-at-step"):
        submit = engine.runner.submit

        def troubled(plan: StepPlan) -> object:
            if manner == "fails-at-step":
                raise RuntimeError("the kernel fell over")
            time.sleep(0.02)
            return submit(plan)

        engine.runner.submit = troubled  # type: ignore[method-assign]
    return engine


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(serve(socket.socket(fileno=parser.parse_args().fd), make_engine))
