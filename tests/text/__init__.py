"""Tokenizers, chat templates, stop strings."""
