"""Sweeps over models: sizes, a mixture beside dense models of its active and its whole size, and threads (A16).

All shapes here have random weights: times are real, words are not. One engine at a time, all of its cells in one go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.run.count import parameters
from ridgeline.run.machine import Machine

from .cells import MOE, SIZES, THREADS, Cell
from .measure import Book, Subject, measure_cell, warm_up

SHAPES = ("smollm2-135m", "smollm2-360m", "qwen2.5-0.5b", "tinyllama-1.1b")
WEIGHTS = "q4_1"
CONTEXT, SEQUENCES = 1024, 32
MIXTURE = "mixture-64x2"  # 64 experts of 128, 2 of them active
MOE_BATCHES = (1, 8, 32)
# The same layers with a dense feed-forward part as wide as the active experts, and as wide as all of them.
DENSE = {"active": 2 * 128, "whole": 64 * 128}
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 16, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


Open = Callable[[str, dict[str, Any]], AbstractContextManager[Subject]]  # model, engine options
Progress = Callable[[Cell], bool]  # told before each cell; False: the time is up


class Sweep:
    """Opens engines and measures the cells that the book does not have."""

    def __init__(self, open_engine: Open, book: Book, machine: Machine, repeats: int, progress: Progress) -> None:
        self._open, self._book, self._machine = open_engine, book, machine
        self._repeats, self._progress = repeats, progress
        self.is_over = False

    def sizes(self) -> None:
        """The same prompt on larger and larger models; variant: name:parameters."""
        for shape in SHAPES:
            count = parameters(record(describe(f"random:{shape}", weights=WEIGHTS), STORAGES.get("bf16")))
            self._run(f"random:{shape}", {"weights": WEIGHTS}, [Cell(SIZES, 128, 16, variant=f"{shape}:{count}")])

    def mixtures(self, folder: Path) -> None:
        """folder: where the shapes of the dense models are written."""
        models = {"mixture": f"random:{MIXTURE}"}
        for name, width in DENSE.items():
            path = folder / f"dense-{name}.json"
            path.write_text(json.dumps(CONFIG | {"intermediate_size": width}), "utf-8")
            models[name] = f"random:{path}"
        for name, model in models.items():
            batches = MOE_BATCHES if name == "mixture" else MOE_BATCHES[:1]
            self._run(
                model, {"weights": WEIGHTS}, [Cell(MOE, 32, 32, batch=batch, variant=name) for batch in batches]
            )  # fmt: skip

    def threads(self, model: str, options: dict[str, Any], most: int) -> None:
        """One thread beside `most`, on the studied model."""
        for count in sorted({1, most}):
            self._run(model, options | {"threads": count}, [Cell(THREADS, 256, 16, variant=str(count))])

    def _run(self, model: str, options: dict[str, Any], cells: list[Cell]) -> None:
        missing = [
            (cell, repeat) for repeat in range(self._repeats) for cell in cells if not self._book.has(cell, repeat)
        ]
        if self.is_over or not missing:
            return
        with self._open(model, {"context": CONTEXT, "max_sequences": SEQUENCES} | options) as subject:
            warm_up(subject)
            for cell, repeat in missing:
                if not self._progress(cell):
                    self.is_over = True
                    return
                self._book.add(measure_cell(subject, cell, repeat, self._machine))
