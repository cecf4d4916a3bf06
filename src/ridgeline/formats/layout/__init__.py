"""How quantised checkpoints lay codes, scales and zeros in safetensors: one file a layout."""
