"""Text and token ids: tokenizers, chat templates, stop strings. Knows nothing of files, weights or engines."""
