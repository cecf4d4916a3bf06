"""A GGUF file's dequantised weights as a folder of safetensors with its tokenizer: what every converter starts from.

Runs in the environment of transformers:   PYTHON export.py MODEL.gguf FOLDER float32|bfloat16
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers


def export(model: Path, folder: Path, dtype: str) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name)
    config = loaded.config
    if hasattr(config, "quantization_config"):  # transformers refuses to save what it dequantised
        del config.quantization_config
    config.architectures = [type(loaded).__name__]
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(folder)


if __name__ == "__main__":
    export(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3])
