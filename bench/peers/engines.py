"""The engines of the peer table: who, at which precision, from which form of the weights, and on which workloads.

A slow one is kept from the workloads that would take it many minutes; the table says which those are.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OURS = "Ridgeline"
ALONE = ("W1", "W2-512", "W2-2048")  # for who does not batch, or is too slow to wait for


@dataclass(frozen=True)
class Engine:
    """`bits`: weights compare with those of about the same size. `form`: see models.py. `only`: None for everything."""

    peer: str
    precision: str
    bits: int
    form: str
    only: tuple[str, ...] | None = None
    memory_bytes: int = 1 << 30  # it and its pool, to know whether another one still fits beside it

    @property
    def name(self) -> str:
        return f"{self.peer} {self.precision}"

    def does(self, workload: str) -> bool:
        return self.only is None or workload in self.only


PEERS = (
    Engine("llama.cpp", "Q4_1", 4, "file", ("W1", "W2-512")),  # the same bits as ours
    Engine("llama.cpp", "Q4_0", 4, "gguf:Q4_0"),  # its repacked format
    Engine("llama.cpp", "Q8_0", 8, "gguf:Q8_0", ALONE),
    Engine("llama.cpp", "BF16", 16, "gguf:BF16", ALONE),
    Engine("openvino", "int4", 4, "openvino:int4", memory_bytes=3 << 30),
    Engine("openvino", "int8", 8, "openvino:int8", memory_bytes=3 << 30),
    Engine("onnxruntime", "int4", 4, "onnx:int4"),
    Engine("vllm", "bf16", 16, "safetensors:bfloat16", memory_bytes=4 << 30),
    Engine("transformers", "bf16", 16, "safetensors:bfloat16", ("W1", "W2-512")),
    Engine("transformers", "f32", 32, "safetensors:float32", ALONE),
    Engine("ctranslate2", "int8", 8, "ctranslate2:int8", ALONE),
    Engine("ctranslate2", "float32", 32, "ctranslate2:float32", ALONE),
)
SCRIPTS = {
    OURS: "ridgeline_worker.py",
    "llama.cpp": "llamacpp_worker.py",
    "openvino": "openvino_worker.py",
    "onnxruntime": "onnxruntime_worker.py",
    "vllm": "vllm_worker.py",
    "transformers": "transformers_worker.py",
    "ctranslate2": "ctranslate2_worker.py",
}


def bits_of(weights: str) -> int:
    """Of Ridgeline's WEIGHTS or WEIGHTS/ACTIVATIONS; the files that are compared hold 4 bits."""
    kind = weights.partition("/")[0].partition(":")[0]
    return {"native": 4, "q8_0": 8, "int8": 8, "fp8": 8, "bf16": 16, "f32": 32}.get(kind, 4)


def contestants(peers: list[str], weights: list[str]) -> list[Engine]:
    """Ours at each of `weights`, then every engine of `peers`, in the order of the table."""
    known = sorted({engine.peer for engine in PEERS})
    if unknown := set(peers) - set(known):
        raise SystemExit(f"unknown peer {', '.join(sorted(unknown))}. Known: {', '.join(known)}.")
    ours = [Engine(OURS, name, bits_of(name), "file") for name in weights]
    return ours + [engine for engine in PEERS if engine.peer in peers]


def command(engine: Engine, model: Path, environment: Path | None, threads: int) -> list[str]:
    """How to start its worker. `environment`: None for ours, and for no other."""
    is_program = engine.peer == "llama.cpp"
    python = sys.executable if environment is None or is_program else str(environment / "bin" / "python")
    start = [python, str(HERE / SCRIPTS[engine.peer]), "--model", str(model), "--precision", engine.precision]
    return [*start, "--threads", str(threads), *(["--environment", str(environment)] if environment else [])]
