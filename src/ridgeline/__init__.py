"""Ridgeline: an LLM inference engine that knows why it is as fast as it is.

>>> from ridgeline import LLM
>>> with LLM("smollm2-135m") as llm:
...     print(llm.chat([{"role": "user", "content": "Name three fruits."}]).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .kit.version import __version__

if TYPE_CHECKING:
    from .answer import Completion, Score
    from .async_llm import AsyncLLM
    from .llm import LLM
    from .state.request import Grammar, Request, Sampling

__all__ = ["LLM", "AsyncLLM", "Completion", "Grammar", "Request", "Sampling", "Score", "__version__"]

_HOMES = {
    "LLM": ".llm",
    "AsyncLLM": ".async_llm",
    "Completion": ".answer",
    "Score": ".answer",
    "Sampling": ".state.request",
    "Request": ".state.request",
    "Grammar": ".state.request",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import ridgeline` stays light (DESIGN promise 5)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ridgeline' has no attribute {name!r}")
    return getattr(importlib.import_module(home, __name__), name)
