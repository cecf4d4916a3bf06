"""Ridgeline: an LLM inference engine that knows why it is as fast as it is."""

__version__ = "0.1.0"
