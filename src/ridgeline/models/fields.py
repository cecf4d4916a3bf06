"""LIMITS: the largest numbers that a model's metadata may give."""

from __future__ import annotations

# Twice or more the largest published; beyond these a file is damaged or hostile.
LIMITS = {
    "layers": 1024,
    "width": 1 << 17,
    "heads": 1024,
    "ffn": 1 << 20,
    "vocabulary": 1 << 22,
    "context": 1 << 24,
    "experts": 1024,
}
