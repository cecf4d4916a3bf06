"""The nouns that travel."""
