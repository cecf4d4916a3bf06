"""One GGUF file in the form that each peer loads, converted once with the peer's own tools and kept in the cache.

Every form holds the file's dequantised weights, stored anew at the peer's precision; only "file" is the file itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llamacpp_binaries import Binaries

HERE = Path(__file__).parent
EnvironmentOf = Callable[[str], Path]  # a peer's environment, made if need be


class Models:
    """Converted forms of `model` under `cache`."""

    def __init__(self, model: Path, cache: Path, environment_of: EnvironmentOf) -> None:
        self._model, self._environment_of = model, environment_of
        self._folder = cache.expanduser() / "models" / model.stem

    def get(self, form: str) -> Path:
        """`form`: "file", or "<tool>:<precision>" of the table below."""
        if form == "file":
            return self._model
        tool, _, precision = form.partition(":")
        return _TOOLS[tool](self, precision)

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        """Whole or not there at all: an interrupted conversion is done again."""
        target = self._folder / name
        if not target.exists():
            part = target.with_name(f"part-{name}")
            if part.is_dir():
                shutil.rmtree(part)
            self._folder.mkdir(parents=True, exist_ok=True)
            print(f"converting {self._model.name} to {name}", file=sys.stderr, flush=True)
            make(part)
            part.rename(target)
        return target

    def _gguf(self, kind: str) -> Path:
        def full(part: Path) -> None:
            self._quantize("--allow-requantize", self._model, part, "F32")

        return self._made(f"{kind}.gguf", lambda part: self._quantize(self._made("F32.gguf", full), part, kind))

    def _quantize(self, *arguments: object) -> None:
        binaries = Binaries(self._environment_of("llama.cpp"))
        binaries.run("llama-quantize", *arguments)
        binaries.close()

    def _safetensors(self, dtype: str) -> Path:
        script = HERE / "export.py"
        return self._made(
            f"safetensors-{dtype}",
            lambda part: self._call("transformers", "python", script, self._model, part, dtype),
        )

    def _openvino(self, precision: str) -> Path:
        task = ["--task", "text-generation-with-past", "--weight-format", precision]
        flags = ["--group-size", 64, "--ratio", 1.0] if precision == "int4" else []  # 64 divides 576 and 1536

        def make(part: Path) -> None:
            source = self._safetensors("float32")
            self._call("openvino-convert", "optimum-cli", "export", "openvino", "--model", source, *task, *flags, part)

        return self._made(f"openvino-{precision}", make)

    def _onnx(self, precision: str) -> Path:
        builder = ["-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-c", self._folder / "onnx-cache"]
        flags = ["--extra_options", "int4_accuracy_level=4"]

        def make(part: Path) -> None:
            source = self._safetensors("float32")
            self._call("onnxruntime", "python", *builder, "-i", source, "-p", precision, "-o", part, *flags)

        return self._made(f"onnx-{precision}", make)

    def _ctranslate2(self, precision: str) -> Path:
        def make(part: Path) -> None:
            source = self._safetensors("float32")
            flags = ["--model", source, "--quantization", precision, "--output_dir", part]
            self._call("ctranslate2", "ct2-transformers-converter", *flags)

        return self._made(f"ctranslate2-{precision}", make)

    def _call(self, environment: str, program: str, *arguments: object) -> None:
        """A program of a peer's environment, made if need be; what it prints goes to standard error."""
        settings = os.environ | {"HF_HUB_OFFLINE": "1"}
        settings.pop("PYTHONPATH", None)
        words = [str(word) for word in (self._environment_of(environment) / "bin" / program, *arguments)]
        done = subprocess.run(words, env=settings, stdout=2, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed with {done.returncode}")


_TOOLS: dict[str, Callable[[Models, str], Path]] = {
    "gguf": Models._gguf,
    "safetensors": Models._safetensors,
    "openvino": Models._openvino,
    "onnx": Models._onnx,
    "ctranslate2": Models._ctranslate2,
}
