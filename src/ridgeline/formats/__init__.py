"""How a weight is stored: one file a format; readers of GGUF and safetensors files. Knows nothing of models."""
