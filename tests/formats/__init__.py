"""Weight formats and the readers of the files that carry them."""
