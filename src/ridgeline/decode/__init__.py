"""How many tokens to run next and what results commit: decoders and proposers."""
